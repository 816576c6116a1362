"""Triton kernels, one module per op; installed as eqtp.kernels. The family "triton": any GPU that Triton supports.

Triton is imported when a kernel is asked for, never with this module. With TRITON_INTERPRET=1 in the environment, set
before Triton is imported, the kernels run as NumPy on tensors of the CPU: slow, for tests.
"""

from __future__ import annotations

import hashlib
import importlib.util
import linecache
import os
from contextlib import nullcontext

import torch

from eqtp.backends.native.library import why_not_plan
from eqtp.plans.plan import TensorProductPlan

DTYPES = (torch.float32, torch.float64, torch.float16, torch.bfloat16)
DEVICES = ("cuda", "xpu")  # ROCm calls itself cuda
SIZES = ["num_edges", "num"]  # arguments that change from step to step, for which nothing is compiled again


def interpreted() -> bool:
    """Whether kernels run as NumPy."""
    return os.environ.get("TRITON_INTERPRET") == "1"


def why_not(op: str, plan: TensorProductPlan | None, device: torch.device, dtype: torch.dtype) -> str | None:
    """None if the kernels run this op for this plan, device and dtype, else the reason as a sentence."""
    if importlib.util.find_spec("triton") is None:
        return "triton is not installed (pip install triton)"
    if device.type not in DEVICES and not (device.type == "cpu" and interpreted()):
        return f"Triton runs on {' and '.join(DEVICES)}, the tensors are on {device.type} (there its interpreter runs, with TRITON_INTERPRET=1)"
    if dtype not in DTYPES:
        return f"the Triton kernels know {', '.join(str(d).removeprefix('torch.') for d in DTYPES)}, not {str(dtype).removeprefix('torch.')}"
    return why_not_plan(plan) if plan is not None else None


def real(dtype: torch.dtype):
    """Type in which kernels calculate: half precision is for storage."""
    import triton.language as tl

    return tl.float64 if dtype == torch.float64 else tl.float32


def function(name: str, text: str, sizes: list[str] | None = SIZES):
    """The Triton function of a text that defines `name`. Triton reads the source of a function again, so linecache must
    know it as a file.

    sizes: arguments for whose values nothing is compiled again, nor for their alignment; None: all.
    """
    import triton

    file = f"<eqtp.kernels {name} {hashlib.sha256(text.encode()).hexdigest()[:16]}>"
    linecache.cache[file] = (len(text), None, text.splitlines(keepends=True), file)
    namespace = {"tl": triton.language, "__name__": __name__}
    exec(compile(text, file, "exec"), namespace)
    made = namespace[name]
    if sizes is None:
        sizes = [
            a for a in made.__code__.co_varnames[: made.__code__.co_argcount] if a not in made.__annotations__
        ]  # those are constants
    return triton.jit(made, do_not_specialize=sizes)


def tuned(function, configurations: list[tuple[dict, int]], adds_to: list[str] | None = None):
    """A launchable of a Triton function: the quickest of some (block sizes, warps), found at its first call for a dtype
    and remembered.

    adds_to: names of the outputs that the function adds to, which trials must put back. The interpreter takes the first
    of the configurations. What is tuned does not depend on the size of the data: a neighbour list that grows tunes
    once.
    """
    import triton

    configs = [triton.Config(sizes, num_warps=warps, num_stages=2) for sizes, warps in configurations]
    return triton.autotune(configs=configs[:1] if interpreted() else configs, key=[], restore_value=adds_to)(function)


def _on(device: torch.device):
    """Context in which Triton launches on the device of the tensors, which need not be the current one."""
    return {"cuda": torch.cuda.device, "xpu": torch.xpu.device}.get(device.type, nullcontext)(device)


class Kernels:
    """What `eqtp.backends.registry` calls, on tensors that are checked; outputs are contiguous and written in place.

    A class, as the modules of this package have the names of some of its functions.
    """

    why_not = staticmethod(why_not)

    @staticmethod
    def walks_transpose(device: torch.device) -> bool:
        """Whether the gradients of a convolution need the transposed graph."""
        return True

    @staticmethod
    def adds_atomically(dtype: torch.dtype) -> bool:
        """Whether convolutions over an unsorted graph add with atomics: these kernels sort it."""
        return False

    @staticmethod
    def convolve(key: str, graph, inputs, outputs) -> None:
        """A pass of the convolution (graph: (src, dst, ptr, order, tptr, torder)) or of the product of rows (graph:
        ()), as in `eqtp.backends.native.library`."""
        from eqtp.kernels.channelwise import convolve

        with _on(inputs[0].device):
            convolve(key, graph, inputs, outputs)

    @staticmethod
    def spherical_harmonics(degrees, normalize: bool, normalization: str, xyz, g, c, out, gxyz) -> None:
        """out from xyz; gxyz from g; or both, along c. Unwanted outputs are None."""
        from eqtp.kernels.harmonics import spherical_harmonics

        with _on(xyz.device):
            spherical_harmonics(degrees, normalize, normalization, xyz, g, c, out, gxyz)

    @staticmethod
    def segment_sum(x, ptr, order, out) -> None:
        """out [n, c] = sums of the rows of x [e, c] over the segments of ptr [n + 1], order [e]."""
        from eqtp.kernels.segment_sum import segment_sum

        with _on(x.device):
            segment_sum(x, ptr, order, out)

    @staticmethod
    def segment_max(x, ptr, order, out, arg) -> None:
        """out, arg [n, c]: largest of the rows of x [e, c] over the segments, and which row; 0 and e for a segment
        without edges."""
        from eqtp.kernels.segment_max import segment_max

        with _on(x.device):
            segment_max(x, ptr, order, out, arg)

    @staticmethod
    def segment_softmax(x, ptr, order, out) -> None:
        """out [e, c] = softmax of x [e, c] over the segments."""
        from eqtp.kernels.segment_softmax import segment_softmax

        with _on(x.device):
            segment_softmax(x, ptr, order, out)

    @staticmethod
    def segment_softmax_bwd(g, y, ptr, order, gx) -> None:
        """gx [e, c] from the cotangent g [e, c] of the softmax y [e, c]."""
        from eqtp.kernels.segment_softmax import segment_softmax_bwd

        with _on(y.device):
            segment_softmax_bwd(g, y, ptr, order, gx)

    @staticmethod
    def signals(program, inputs, outputs) -> None:
        """Runs an `eqtp.plans.signals.Program`. inputs: [batch, channels, (lmax_in+1)^2] each, outputs: [batch,
        channels, (lmax_out+1)^2] each."""
        from eqtp.kernels.signals import signals

        with _on(outputs[0].device):
            signals(program, inputs, outputs)

    @staticmethod
    def couple(couplings, inputs, outputs) -> None:
        """Sums products by an `eqtp.plans.couplings.Couplings`. inputs, outputs: [batch, channels, components] each."""
        from eqtp.kernels.couplings import couple

        with _on(outputs[0].device):
            couple(couplings, inputs, outputs)

    @staticmethod
    def matrices(program, inputs, outputs) -> None:
        """Runs an `eqtp.plans.matrices.Program`. inputs: [batch, channels, (lmax_in+1)^2] each, outputs: [batch,
        channels, (lmax_out+1)^2] each."""
        from eqtp.kernels.matrices import matrices

        with _on(outputs[0].device):
            matrices(program, inputs, outputs)


KERNELS = Kernels()

"""Triton kernels, a file per engine, each with run(descriptor, pass_, inputs, outputs); installed as eqtp.kernels.

Importing this module does not import Triton; its functions do. With TRITON_INTERPRET=1 in the environment, set before
Triton is imported, the kernels run as NumPy on CPU tensors: slow, for tests.
"""

from __future__ import annotations

import hashlib
import linecache
import os
from collections.abc import Iterable

import torch

SIZES = ["num_edges", "num"]  # arguments that change from step to step and must not cause recompilation


def interpreted() -> bool:
    """Whether kernels run as NumPy."""
    return os.environ.get("TRITON_INTERPRET") == "1"


def compute_dtype(dtype: torch.dtype) -> torch.dtype:
    """The dtype that GPU kernels compute in: half precision is for storage."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def compute_type(dtype: torch.dtype):
    """`compute_dtype` as Triton's type."""
    import triton.language as tl

    return getattr(tl, compute_name(dtype))


def compute_name(dtype: torch.dtype) -> str:
    """`compute_dtype` by name: "float32" or "float64"."""
    return str(compute_dtype(dtype)).removeprefix("torch.")


def indent(lines: Iterable[str], depth: int = 1) -> str:
    """Lines of a kernel's text, indented by `depth` levels."""
    return "".join(f"{'    ' * depth}{line}\n" for line in lines)


def function(name: str, text: str, sizes: list[str] | None = SIZES):
    """The Triton function of a text that defines `name`. Triton reads a function's source, so linecache gets it as a
    file.

    sizes: arguments whose value and alignment Triton must not specialise on; None: all that are not constants.
    """
    import triton

    from eqtp.kernels import long_sums

    file = f"<eqtp.kernels {name} {hashlib.sha256(text.encode()).hexdigest()[:16]}>"
    linecache.cache[file] = (len(text), None, text.splitlines(keepends=True), file)
    namespace = {"tl": triton.language, "long_sums": long_sums, "__name__": __name__}
    exec(compile(text, file, "exec"), namespace)
    made = namespace[name]
    if sizes is None:
        parameters = made.__code__.co_varnames[: made.__code__.co_argcount]
        sizes = [a for a in parameters if a not in made.__annotations__]  # those are constants
    return triton.jit(made, do_not_specialize=sizes)


def tuned(function, configurations: list[tuple[dict, int]], adds_to: list[str] | None = None):
    """A Triton function autotuned over configurations (block sizes, warps) at its first call for each dtype.

    adds_to: outputs that the function adds to, which trials must restore. The interpreter takes the first
    configuration. The choice does not depend on the size of the data, so a neighbour list that grows is tuned once.
    """
    import triton

    configs = [triton.Config(sizes, num_warps=warps, num_stages=2) for sizes, warps in configurations]
    return triton.autotune(configs=configs[:1] if interpreted() else configs, key=[], restore_value=adds_to)(function)

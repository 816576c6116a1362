"""The family "triton": the kernels of the folder kernels/, on every GPU that Triton knows.

Triton is imported when a kernel runs, never with this package.
"""

from __future__ import annotations

import importlib
import importlib.util
from contextlib import nullcontext

import torch

from eqtp.backends import registry
from eqtp.backends.tensors import why_not_dtype
from eqtp.kernels import interpreted

DTYPES = (torch.float32, torch.float64, torch.float16, torch.bfloat16)
DEVICES = ("cuda", "xpu")  # ROCm calls itself cuda


def why_not(device: torch.device, dtype: torch.dtype) -> str | None:
    """None if Triton's kernels run for this device and dtype, else the reason as a sentence."""
    if importlib.util.find_spec("triton") is None:
        return "triton is not installed (pip install triton)"
    if device.type not in DEVICES and not (device.type == "cpu" and interpreted()):
        return (
            f"Triton runs on {' and '.join(DEVICES)}, the tensors are on {device.type} "
            "(there its interpreter runs, with TRITON_INTERPRET=1)"
        )
    return why_not_dtype("Triton", dtype, DTYPES)


def on(device: torch.device):
    """Context in which Triton launches on this device, which need not be the current one."""
    return {"cuda": torch.cuda.device, "xpu": torch.xpu.device}.get(device.type, nullcontext)(device)


def register(engine: str, prepare=lambda inputs: inputs, **more) -> registry.Kernel:
    """Registers kernels/<engine>.py, whose `run` is called with prepare(inputs). more: fields of the `Kernel`."""

    def run(descriptor, pass_, inputs, outputs) -> None:
        like = next(t for t in (*outputs, *inputs) if t is not None)
        with on(like.device):
            importlib.import_module(f"eqtp.kernels.{engine}").run(descriptor, pass_, prepare(inputs), outputs)

    fields = {"why_not": lambda descriptor, device, dtype: why_not(device, dtype)} | more
    sources = (f"kernels/{engine}.py",)
    return registry.register(registry.Kernel(engine, "triton", DEVICES, run=run, sources=sources, **fields))

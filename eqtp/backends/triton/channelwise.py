"""Channelwise products, by row or over a graph: kernels/channelwise.py."""

from __future__ import annotations

from eqtp.backends import triton
from eqtp.backends.tensors import contiguous_rows
from eqtp.plans import channelwise


def _why_not(plan, device, dtype) -> str | None:
    return triton.why_not(device, dtype) or (channelwise.why_not(plan) if plan is not None else None)


triton.register(
    "channelwise",
    lambda inputs: inputs.map(contiguous_rows),
    why_not=_why_not,
    transposes=("cpu", "cuda", "xpu"),
)

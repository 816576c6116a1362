"""Sums, maxima and softmaxes over the edges into each node: csrc/segments."""

from __future__ import annotations

import torch

from eqtp.backends import registry
from eqtp.backends.native import library
from eqtp.backends.tensors import contiguous_rows
from eqtp.plans.calls import Pass


def _why_not(op: str | None, device: torch.device, dtype: torch.dtype) -> str | None:
    return library.why_not(op or "segment_sum", device, dtype)


def _call(binding: str, rows: torch.Tensor, num: int, out: torch.Tensor, ptr, order, *more: int) -> None:
    """Rows [e, c]; more: what the binding takes besides."""
    addresses = rows.data_ptr(), rows.stride(0), ptr.data_ptr(), order.data_ptr()
    arguments = *addresses, len(rows), num, rows.shape[1], out.data_ptr(), *more
    if rows.is_cuda:
        end = library.dtype_code(rows.dtype), *library.device_and_stream(rows.device)
        getattr(library._native, f"{binding}_cuda")(*arguments, *end)
    else:
        getattr(library._native, binding)(*arguments, rows.dtype == torch.float64, torch.get_num_threads())


def run(op: str, pass_: Pass, inputs, outputs) -> None:
    """A pass of segment_sum, segment_max or segment_softmax, over the segments of ptr [num + 1] and order [e].

    FWD: inputs x [e, c], ptr, order; outputs out [num, c], of segment_max also arg [num, c] int64, of segment_softmax
    out [e, c]. BWD of segment_softmax: inputs g [e, c] and the softmax y [e, c], ptr, order; outputs gx [e, c].
    """
    *tensors, ptr, order = inputs
    rows, *others = map(contiguous_rows, tensors)
    more = [a for t in others for a in (t.data_ptr(), t.stride(0))] + [t.data_ptr() for t in outputs[1:]]
    _call(op if pass_ == Pass.FWD else f"{op}_bwd", rows, len(ptr) - 1, outputs[0], ptr, order, *more)


registry.register(
    registry.Kernel(
        engine="segments",
        family="native",
        devices=("cpu", "cuda"),
        why_not=_why_not,
        run=run,
        sources=("csrc/segments/segments.cpp", "csrc/segments/segments.cu"),
    )
)

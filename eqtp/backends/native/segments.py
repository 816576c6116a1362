"""Sums, maxima and softmaxes over the edges into each node: csrc/segments."""

from __future__ import annotations

import torch

from eqtp.backends import registry
from eqtp.backends.native import library
from eqtp.backends.tensors import address, contiguous_rows
from eqtp.plans.calls import Pass


def _why_not(op: str | None, device: torch.device, dtype: torch.dtype) -> str | None:
    return library.why_not(op or "segment_sum", device, dtype)


def run(op: str, pass_: Pass, inputs, outputs) -> None:
    """A pass of segment_sum, segment_max or segment_softmax, over the segments of ptr [num + 1] and order [e].

    FWD: inputs x [e, c], ptr, order; outputs out [num, c], of segment_max also arg [num, c] int64, of segment_softmax
    out [e, c]. BWD of segment_softmax: inputs g [e, c] and the softmax y [e, c], ptr, order; outputs gx [e, c].
    """
    *tensors, ptr, order = inputs
    rows, y = (*map(contiguous_rows, tensors), None)[:2]
    out, arg = (*outputs, None)[:2]
    binding = op if pass_ == Pass.FWD else f"{op}_bwd"
    arguments = rows.data_ptr(), rows.stride(0), ptr.data_ptr(), order.data_ptr(), len(rows), len(ptr) - 1
    arguments += rows.shape[1], out.data_ptr(), address(arg), address(y), 0 if y is None else y.stride(0)
    if rows.is_cuda:
        end = library.dtype_code(rows.dtype), *library.device_and_stream(rows.device)
        getattr(library._native, f"{binding}_cuda")(*arguments, *end)
    else:
        getattr(library._native, binding)(*arguments, rows.dtype == torch.float64, torch.get_num_threads())


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

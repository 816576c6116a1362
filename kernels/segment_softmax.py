"""Softmax over a segment, column by column, and its backward."""

from __future__ import annotations

from functools import lru_cache

import torch
import triton
import triton.language as tl

from eqtp import kernels
from eqtp.backends.native.library import row
from eqtp.kernels.segment_sum import blocks


@triton.jit
def _rows(order, p, end, columns, row, E: tl.constexpr, B: tl.constexpr):
    """Offsets [E, B] of the edges order[p ..] and this program's columns, and which of them exist."""
    q = p + tl.arange(0, E)
    c = tl.program_id(1) * B + tl.arange(0, B)
    e = tl.load(order + q, mask=q < end, other=0)
    return e[:, None] * row + c[None, :], (q < end)[:, None] & (c < columns)[None, :]


@triton.jit
def _segment_softmax(x, ptr, order, out, x_row, columns, REAL: tl.constexpr, E: tl.constexpr, B: tl.constexpr):
    # x, out [e, columns], ptr [num + 1], order [e]
    n = tl.program_id(0).to(tl.int64)
    start, end = tl.load(ptr + n), tl.load(ptr + n + 1)
    largest = tl.full([E, B], float("-inf"), REAL)
    for p in range(start, end, E):
        at, mask = _rows(order, p, end, columns, x_row, E, B)
        largest = tl.maximum(largest, tl.load(x + at, mask=mask, other=float("-inf")).to(REAL))
    top = tl.max(largest, 0)[None, :]
    top = tl.where(top == float("-inf"), 0.0, top)  # nothing but masked edges
    total = tl.zeros([E, B], REAL)
    for p in range(start, end, E):
        at, mask = _rows(order, p, end, columns, x_row, E, B)
        total += tl.exp(tl.load(x + at, mask=mask, other=float("-inf")).to(REAL) - top)
    norm = tl.sum(total, 0)[None, :]
    norm = tl.where(norm == 0.0, 1.0, norm)
    for p in range(start, end, E):
        at, mask = _rows(order, p, end, columns, x_row, E, B)
        y = tl.exp(tl.load(x + at, mask=mask, other=float("-inf")).to(REAL) - top) / norm
        at, mask = _rows(order, p, end, columns, columns, E, B)
        tl.store(out + at, y.to(out.dtype.element_ty), mask=mask)


@triton.jit
def _segment_softmax_bwd(
    g, y, ptr, order, gx, g_row, y_row, columns, REAL: tl.constexpr, E: tl.constexpr, B: tl.constexpr
):
    # g, y, gx [e, columns], ptr [num + 1], order [e]
    n = tl.program_id(0).to(tl.int64)
    start, end = tl.load(ptr + n), tl.load(ptr + n + 1)
    total = tl.zeros([E, B], REAL)
    for p in range(start, end, E):
        at, mask = _rows(order, p, end, columns, g_row, E, B)
        cotangent = tl.load(g + at, mask=mask, other=0.0).to(REAL)
        at, mask = _rows(order, p, end, columns, y_row, E, B)
        total += cotangent * tl.load(y + at, mask=mask, other=0.0).to(REAL)
    dot = tl.sum(total, 0)[None, :]
    for p in range(start, end, E):
        at, mask = _rows(order, p, end, columns, g_row, E, B)
        cotangent = tl.load(g + at, mask=mask, other=0.0).to(REAL)
        at, mask = _rows(order, p, end, columns, y_row, E, B)
        v = tl.load(y + at, mask=mask, other=0.0).to(REAL) * (cotangent - dot)
        at, mask = _rows(order, p, end, columns, columns, E, B)
        tl.store(gx + at, v.to(gx.dtype.element_ty), mask=mask)


@lru_cache(maxsize=128)
def _kernel(columns: int, backward: bool):
    return kernels.tuned(_segment_softmax_bwd if backward else _segment_softmax, blocks(columns))


def segment_softmax(x: torch.Tensor, ptr: torch.Tensor, order: torch.Tensor, out: torch.Tensor) -> None:
    """out [e, c] = exp(x [e, c]) over its sum in the segment of ptr [n + 1], order [e]; 0 where a whole segment is
    -inf."""
    if out.numel():
        x, num, columns = row(x), len(ptr) - 1, out.shape[1]
        kernel = _kernel(triton.next_power_of_2(columns), False)
        kernel[lambda meta: (num, triton.cdiv(columns, meta["B"]))](
            x, ptr, order, out, x.stride(0), columns, REAL=kernels.real(x.dtype)
        )


def segment_softmax_bwd(
    g: torch.Tensor, y: torch.Tensor, ptr: torch.Tensor, order: torch.Tensor, gx: torch.Tensor
) -> None:
    """gx [e, c] = y (g - sum of y g over the segment), with y the softmax and g its cotangent, [e, c]."""
    if gx.numel():
        g, y, num, columns = row(g), row(y), len(ptr) - 1, gx.shape[1]
        kernel = _kernel(triton.next_power_of_2(columns), True)

        def grid(meta):
            return (num, triton.cdiv(columns, meta["B"]))

        kernel[grid](g, y, ptr, order, gx, g.stride(0), y.stride(0), columns, REAL=kernels.real(y.dtype))

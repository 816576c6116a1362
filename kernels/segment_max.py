"""Largest value of a segment, column by column, and the edge that has it."""

from __future__ import annotations

from functools import lru_cache

import torch
import triton
import triton.language as tl

from eqtp import kernels
from eqtp.backends.native.library import row


@triton.jit(do_not_specialize=kernels.SIZES)
def _segment_max(x, ptr, order, out, arg, x_row, num_edges, columns, REAL: tl.constexpr, B: tl.constexpr):
    # x [e, columns], ptr [num + 1], order [e], out and arg [num, columns]
    n = tl.program_id(0).to(tl.int64)
    c = tl.program_id(1) * B + tl.arange(0, B)
    best = tl.zeros([B], REAL)
    edge = tl.zeros([B], tl.int64) + num_edges
    for p in range(tl.load(ptr + n), tl.load(ptr + n + 1)):
        e = tl.load(order + p)
        v = tl.load(x + e * x_row + c, mask=c < columns, other=0.0).to(REAL)
        taken = (
            (edge == num_edges) | (v > best) | ((v != v) & (best == best))
        )  # the first of equal ones, the first NaN of all
        best = tl.where(taken, v, best)
        edge = tl.where(taken, e, edge)
    tl.store(out + n * columns + c, best.to(out.dtype.element_ty), mask=c < columns)
    tl.store(arg + n * columns + c, edge, mask=c < columns)


def blocks(columns: int) -> list[tuple[dict, int]]:
    """Blocks of columns, and their warps."""
    full = triton.next_power_of_2(columns)
    return [({"B": min(full, 128)}, 1), *([({"B": 128}, 4), ({"B": 32}, 1)] if full >= 128 else [])]


@lru_cache(maxsize=64)
def _kernel(columns: int):
    return kernels.tuned(_segment_max, blocks(columns))


def segment_max(x: torch.Tensor, ptr: torch.Tensor, order: torch.Tensor, out: torch.Tensor, arg: torch.Tensor) -> None:
    """out [n, c] and arg [n, c]: largest of the rows of x [e, c] over the segments of ptr [n + 1], order [e], and its
    row; 0 and e if empty."""
    if out.numel():
        x, (num, columns) = row(x), out.shape
        kernel = _kernel(triton.next_power_of_2(columns))

        def grid(meta):
            return (num, triton.cdiv(columns, meta["B"]))

        kernel[grid](x, ptr, order, out, arg, x.stride(0), len(x), columns, REAL=kernels.real(x.dtype))

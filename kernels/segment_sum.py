"""Sums of the rows of a segment, and the gather that is their adjoint."""

from __future__ import annotations

from functools import lru_cache

import torch
import triton
import triton.language as tl

from eqtp import kernels
from eqtp.backends.native.library import row


@triton.jit
def _segment_sum(x, ptr, order, out, x_row, columns, REAL: tl.constexpr, E: tl.constexpr, B: tl.constexpr):
    # x [e, columns], ptr [num + 1], order [e], out [num, columns]; E rows at a time
    n = tl.program_id(0).to(tl.int64)
    c = tl.program_id(1) * B + tl.arange(0, B)
    end = tl.load(ptr + n + 1)
    total = tl.zeros([E, B], REAL)
    for p in range(tl.load(ptr + n), end, E):
        q = p + tl.arange(0, E)
        e = tl.load(order + q, mask=q < end, other=0)
        mask = (q < end)[:, None] & (c < columns)[None, :]
        total += tl.load(x + e[:, None] * x_row + c[None, :], mask=mask, other=0.0).to(REAL)
    tl.store(out + n * columns + c, tl.sum(total, 0).to(out.dtype.element_ty), mask=c < columns)


def blocks(columns: int) -> list[tuple[dict, int]]:
    """Tiles of B columns and E rows, and their warps."""
    b = min(triton.next_power_of_2(columns), 128)
    return [({"B": b, "E": max(1, size // b)}, warps) for size, warps in ((512, 4), (512, 1), (128, 1))]


@lru_cache(maxsize=64)
def _kernel(columns: int):
    return kernels.tuned(_segment_sum, blocks(columns))


def segment_sum(x: torch.Tensor, ptr: torch.Tensor, order: torch.Tensor, out: torch.Tensor) -> None:
    """out [n, c] = sums of the rows of x [e, c] over the segments of ptr [n + 1], order [e]."""
    if out.numel():
        x, (num, columns) = row(x), out.shape
        kernel = _kernel(triton.next_power_of_2(columns))
        kernel[lambda meta: (num, triton.cdiv(columns, meta["B"]))](
            x, ptr, order, out, x.stride(0), columns, REAL=kernels.real(x.dtype)
        )

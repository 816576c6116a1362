"""Sums, maxima and softmaxes over the edges of a segment, column by column."""

from __future__ import annotations

from functools import lru_cache

import triton
import triton.language as tl

from eqtp import kernels
from eqtp.kernels.long_sums import BLOCK_TERMS, fold, folded
from eqtp.plans.calls import Pass


@triton.jit
def _rows(order, p, end, columns, row, E: tl.constexpr, B: tl.constexpr):
    """Offsets [E, B] of the edges order[p ..] and this program's columns, and which of them exist."""
    q = p + tl.arange(0, E)
    c = tl.program_id(1) * B + tl.arange(0, B)
    e = tl.load(order + q, mask=q < end, other=0)
    return e[:, None] * row + c[None, :], (q < end)[:, None] & (c < columns)[None, :]


@triton.jit
def _segment_sum(x, ptr, order, out, x_row, columns, REAL: tl.constexpr, E: tl.constexpr, B: tl.constexpr):
    # x [e, columns], ptr [num + 1], order [e], out [num, columns]; E rows at a time
    n = tl.program_id(0).to(tl.int64)
    c = tl.program_id(1) * B + tl.arange(0, B)
    start, end = tl.load(ptr + n), tl.load(ptr + n + 1)
    total, error = tl.zeros([B], REAL), tl.zeros([B], REAL)
    for first in range(start, end, BLOCK_TERMS * E):
        part = tl.zeros([E, B], REAL)
        for p in range(first, tl.minimum(first + BLOCK_TERMS * E, end), E):
            at, mask = _rows(order, p, end, columns, x_row, E, B)
            part += tl.load(x + at, mask=mask, other=0.0).to(REAL)
        total, error = fold(tl.sum(part, 0), total, error)
    tl.store(out + n * columns + c, folded(total, error).to(out.dtype.element_ty), mask=c < columns)


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
        # the first of equal values, the first of all NaNs
        taken = (edge == num_edges) | (v > best) | ((v != v) & (best == best))
        best = tl.where(taken, v, best)
        edge = tl.where(taken, e, edge)
    tl.store(out + n * columns + c, best.to(out.dtype.element_ty), mask=c < columns)
    tl.store(arg + n * columns + c, edge, mask=c < columns)


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
    total, error = tl.zeros([B], REAL), tl.zeros([B], REAL)
    for first in range(start, end, BLOCK_TERMS * E):
        part = tl.zeros([E, B], REAL)
        for p in range(first, tl.minimum(first + BLOCK_TERMS * E, end), E):
            at, mask = _rows(order, p, end, columns, x_row, E, B)
            part += tl.exp(tl.load(x + at, mask=mask, other=float("-inf")).to(REAL) - top)
        total, error = fold(tl.sum(part, 0), total, error)
    norm = folded(total, error)[None, :]
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
    total, error = tl.zeros([B], REAL), tl.zeros([B], REAL)
    for first in range(start, end, BLOCK_TERMS * E):
        part = tl.zeros([E, B], REAL)
        for p in range(first, tl.minimum(first + BLOCK_TERMS * E, end), E):
            at, mask = _rows(order, p, end, columns, g_row, E, B)
            cotangent = tl.load(g + at, mask=mask, other=0.0).to(REAL)
            at, mask = _rows(order, p, end, columns, y_row, E, B)
            part += cotangent * tl.load(y + at, mask=mask, other=0.0).to(REAL)
        total, error = fold(tl.sum(part, 0), total, error)
    dot = folded(total, error)[None, :]
    for p in range(start, end, E):
        at, mask = _rows(order, p, end, columns, g_row, E, B)
        cotangent = tl.load(g + at, mask=mask, other=0.0).to(REAL)
        at, mask = _rows(order, p, end, columns, y_row, E, B)
        v = tl.load(y + at, mask=mask, other=0.0).to(REAL) * (cotangent - dot)
        at, mask = _rows(order, p, end, columns, columns, E, B)
        tl.store(gx + at, v.to(gx.dtype.element_ty), mask=mask)


def tile_configurations(columns: int) -> list[tuple[dict, int]]:
    """Tiles of B columns and E rows, with their warps."""
    b = min(triton.next_power_of_2(columns), 128)
    return [({"B": b, "E": max(1, size // b)}, warps) for size, warps in ((512, 4), (512, 1), (128, 1))]


def column_configurations(columns: int) -> list[tuple[dict, int]]:
    """Columns per program and warps of the maximum, which takes one row at a time."""
    full = triton.next_power_of_2(columns)
    return [({"B": min(full, 128)}, 1), *([({"B": 128}, 4), ({"B": 32}, 1)] if full >= 128 else [])]


# The function of each op and pass, and its configurations
FUNCTIONS = {
    ("segment_sum", Pass.FWD): (_segment_sum, tile_configurations),
    ("segment_max", Pass.FWD): (_segment_max, column_configurations),
    ("segment_softmax", Pass.FWD): (_segment_softmax, tile_configurations),
    ("segment_softmax", Pass.BWD): (_segment_softmax_bwd, tile_configurations),
}


@lru_cache(maxsize=256)
def _kernel(op: str, pass_: Pass, columns: int):
    function, configurations = FUNCTIONS[op, pass_]
    return kernels.tuned(function, configurations(columns))


def run(op: str, pass_: Pass, inputs, outputs) -> None:
    """A pass over the segments of ptr [num + 1] and order [e]; inputs and outputs as for
    `eqtp.backends.native.segments.run`, rows contiguous."""
    *tensors, ptr, order = inputs  # [e, c] each
    if not outputs[0].numel():
        return
    num, columns = len(ptr) - 1, outputs[0].shape[1]
    count = [len(tensors[0])] if op == "segment_max" else []
    kernel = _kernel(op, pass_, triton.next_power_of_2(columns))

    def grid(meta):
        return (num, triton.cdiv(columns, meta["B"]))

    strides = (t.stride(0) for t in tensors)
    real = kernels.compute_type(tensors[0].dtype)
    kernel[grid](*tensors, ptr, order, *outputs, *strides, *count, columns, REAL=real)

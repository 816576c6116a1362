"""The compiled CPU kernels (eqtp._native), and what they ask of their arguments. No formula lives here."""

from __future__ import annotations

from functools import lru_cache
from typing import NamedTuple

import numpy as np
import torch

from eqtp.plan import TensorProductPlan

try:
    from eqtp import _native
except ImportError as error:  # a source tree that was never built
    _native = None
    _missing = f"eqtp._native is not built ({error}); run: pip install ."
else:
    _missing = None

MAX_DIM = 33  # largest 2 l + 1 of a native path (csrc/plan.h)
DTYPES = (torch.float32, torch.float64)


def why_not(device: torch.device, dtype: torch.dtype) -> str | None:
    """None if the CPU kernels run for this device and dtype, else the reason as a sentence."""
    if _missing:
        return _missing
    if device.type != "cpu":
        return f"the native kernels are built for the CPU only, the tensors are on {device.type}"
    if dtype not in DTYPES:
        return f"the native kernels know float32 and float64, not {str(dtype).removeprefix('torch.')}"
    return None


def why_not_plan(plan: TensorProductPlan) -> str | None:
    """None if every path is channelwise (uvu with one channel in x2), else the first path that is not."""
    for n, p in enumerate(plan.paths):
        path = f"path {n} ({plan.irreps_in1[p.i1]} x {plan.irreps_in2[p.i2]} -> {plan.irreps_out[p.io]})"
        if p.mode != "uvu":
            return f"{path} has mode {p.mode}; the native kernels do uvu with one channel in irreps_in2"
        if p.mul2 != 1:
            return f"{path} has {p.mul2} channels in irreps_in2; the native kernels do uvu with one"
        if max(p.l1, p.l2, p.l3) > (MAX_DIM - 1) // 2:
            return f"{path} exceeds l = {(MAX_DIM - 1) // 2}, the largest degree of the native kernels"
    return None


class Dims(NamedTuple):
    """Row lengths of x1, x2, the output and the weights."""

    in1: int
    in2: int
    out: int
    weights: int


@lru_cache(maxsize=1024)
def dims(key: str) -> Dims:
    """Row lengths of a plan, from its key."""
    p = TensorProductPlan.from_key(key)
    return Dims(p.dim_in1, p.dim_in2, p.dim_out, p.weight_numel)


@lru_cache(maxsize=256)
def plan(key: str):
    """The kernels' own copy of a channelwise plan's columns (csrc/plan.h)."""
    p = TensorProductPlan.from_key(key)
    in2 = p.irreps_in2.slices()
    slots = [
        [x for s, (mul, ir) in zip(irreps.slices(), irreps, strict=True) for x in (s.start, mul, ir.dim)] for irreps in (p.irreps_in1, p.irreps_out)
    ]
    columns = [x for q in p.paths for x in (q.i1, in2[q.i2].start, 2 * q.l2 + 1, q.io, q.weight_offset)]
    coefficients = np.concatenate([np.zeros(0), *(p.coefficients(q).ravel() for q in p.paths)])
    return _native.Plan(*slots, columns, coefficients.tolist(), *dims(key))


def row(t: torch.Tensor) -> torch.Tensor:
    """A tensor [rows, n] whose rows are contiguous; their stride is free (0 for shared rows)."""
    return t.contiguous() if t.shape[1] > 1 and t.stride(1) != 1 else t


def convolve(key: str, graph, inputs, outputs) -> None:
    """Runs csrc/tensor_product_conv.cpp. graph: (src, ptr, order), or () for the product of rows; inputs: x, y, w [, g [, cx, cy, cw]];
    outputs: out, gx, gy, gw, contiguous or None."""
    inputs = [row(t) for t in inputs]
    x, y = inputs[:2]
    num_dst = graph[1].shape[0] - 1 if graph else x.shape[0]
    _native.tensor_product_conv(
        plan(key),
        x.shape[0],
        num_dst,
        y.shape[0],
        [t.data_ptr() for t in graph],
        [(t.data_ptr(), t.stride(0)) for t in inputs],
        [address(t) for t in outputs],
        x.dtype == torch.float64,
        torch.get_num_threads(),
    )


def empty(tensors, wanted) -> list[torch.Tensor | None]:
    """A contiguous output like each tensor; None where it is not wanted."""
    return [torch.empty(t.shape, dtype=t.dtype) if w else None for t, w in zip(tensors, wanted, strict=True)]


def present(like: torch.Tensor, *outputs: torch.Tensor | None) -> tuple[torch.Tensor, ...]:
    """The outputs of an op, which may not be None: an empty tensor stands for one that is not wanted."""
    return tuple(like.new_empty(0) if t is None else t for t in outputs)


def csr(index: torch.Tensor, num: int, ptr: torch.Tensor, order: torch.Tensor) -> int:
    """Fills ptr [num + 1] and order [e]; returns the position of the first value outside [0, num), or -1."""
    index = index.contiguous()
    is64 = index.dtype == torch.int64
    return _native.csr(index.data_ptr(), is64, len(index), num, ptr.data_ptr(), order.data_ptr())


def segment_sum(x: torch.Tensor, ptr: torch.Tensor, order: torch.Tensor, out: torch.Tensor) -> None:
    """out [n, c] = sums of the rows of x [e, c] over the segments of ptr [n + 1], order [e]."""
    x = row(x)
    _native.segment_sum(
        x.data_ptr(), x.stride(0), ptr.data_ptr(), order.data_ptr(), *out.shape, out.data_ptr(), x.dtype == torch.float64, torch.get_num_threads()
    )


def harmonics(*columns):
    """Constants of the spherical harmonics kernel (csrc/spherical_harmonics.h)."""
    return _native.Harmonics(*columns)


def spherical_harmonics(kernel, normalize: bool, xyz, g, c, out, gxyz) -> None:
    """Runs csrc/spherical_harmonics.cpp: out from xyz; gxyz from g; or both, along c. Outputs contiguous or None."""
    g = None if g is None else row(g)
    size = lambda t: (0, 0) if t is None else t.stride()  # noqa: E731
    _native.spherical_harmonics(
        kernel,
        normalize,
        xyz.shape[0],
        xyz.data_ptr(),
        *xyz.stride(),
        address(g),
        size(g)[0],
        address(c),
        *size(c),
        address(out),
        address(gxyz),
        xyz.dtype == torch.float64,
        torch.get_num_threads(),
    )


def address(t: torch.Tensor | None) -> int:
    """Address of the first element; 0 for None."""
    return 0 if t is None else t.data_ptr()

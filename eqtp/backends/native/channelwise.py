"""Channelwise products, by row or over a graph: csrc/channelwise."""

from __future__ import annotations

from functools import lru_cache

import torch

from eqtp.backends import registry
from eqtp.backends.native import library
from eqtp.backends.native.channelwise_columns import walk_columns
from eqtp.backends.tensors import address, compute_dtype, contiguous_rows
from eqtp.plans import channelwise
from eqtp.plans.calls import EdgeKind, Operands, Outputs, Pass
from eqtp.plans.plan import TensorProductPlan, dims


def _why_not(plan: TensorProductPlan | None, device: torch.device, dtype: torch.dtype) -> str | None:
    reason = library.why_not("tensor_product_conv", device, dtype)
    return reason or (channelwise.why_not(plan) if plan is not None else None)


@lru_cache(maxsize=256)
def plan(key: str):
    """A channelwise plan in C++ (csrc/channelwise/plan.h)."""
    (*columns, sizes), coefficients = channelwise.columns(key)
    return library._native.Plan(*columns, coefficients.tolist(), *sizes)


def run(key: str, pass_: Pass, inputs: Operands, outputs: Outputs) -> None:
    """A pass of the product of the plan with this key."""
    inputs = inputs.map(contiguous_rows)
    return (_run_cuda if inputs.x.is_cuda else _run_cpu)(key, pass_, inputs, outputs)


def _num_dst(inputs: Operands) -> int:
    return inputs.x.shape[0] if inputs.edges.kind is EdgeKind.ROWS else inputs.edges.ptr.shape[0] - 1


def _run_cpu(key: str, pass_: Pass, inputs: Operands, outputs: Outputs) -> None:
    x, edges = inputs.x, inputs.edges
    columns = () if edges.kind is EdgeKind.ROWS else (edges.src, edges.ptr, edges.order)
    library._native.tensor_product_conv(
        plan(key),
        x.shape[0],
        _num_dst(inputs),
        inputs.y.shape[0],
        [t.data_ptr() for t in columns],
        [(t.data_ptr(), t.stride(0)) for t in inputs.tensors],
        [address(t) for t in outputs],
        x.dtype == torch.float64,
        torch.get_num_threads(),
    )


@lru_cache(maxsize=256)
def _walk_tensors(key: str, device: torch.device, compute: torch.dtype) -> tuple:
    """`WalkColumns` of the forward and the backward walk as tensors on a device, and their sizes; coefficients in the
    dtype `compute`."""
    both = []
    for forward in (True, False):
        w = walk_columns(TensorProductPlan.from_key(key), forward)
        tensors = [torch.from_numpy(a).to(device) for a in w[:-1]]
        both.append(([t.to(compute) if t.is_floating_point() else t for t in tensors], w.sizes))
    return tuple(both)


def _run_cuda(key: str, pass_: Pass, inputs: Operands, outputs: Outputs) -> None:
    x, edges = inputs.x, inputs.edges
    (fwd, fwd_sizes), (bwd, bwd_sizes) = _walk_tensors(key, x.device, compute_dtype(x.dtype))
    gy = outputs.gy
    partial_gy = None  # [channel groups, e, dim2]
    if gy is not None:
        partial_gy = torch.empty(bwd_sizes[0], *gy.shape, dtype=compute_dtype(x.dtype), device=x.device)
    library._native.tensor_product_conv_cuda(
        [t.data_ptr() for t in fwd],
        fwd_sizes,
        [t.data_ptr() for t in bwd],
        bwd_sizes,
        x.shape[0],
        _num_dst(inputs),
        inputs.y.shape[0],
        [] if edges.kind is EdgeKind.ROWS else [t.data_ptr() for t in edges[:6]],
        [(t.data_ptr(), t.stride(0)) for t in inputs.tensors],
        [address(t) for t in outputs],
        address(partial_gy),
        tuple(dims(key)),
        library.dtype_code(x.dtype),
        *library.device_and_stream(x.device),
    )


registry.register(
    registry.Kernel(
        engine="channelwise",
        family="native",
        devices=("cpu", "cuda"),
        why_not=_why_not,
        run=run,
        sources=("csrc/channelwise/channelwise.cpp", "csrc/channelwise/channelwise.cu"),
        transposes=("cuda",),
    )
)

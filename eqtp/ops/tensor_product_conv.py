"""Tensor product convolution: gather, product and sum over a graph, without messages in memory.

    y[n] = sum over edges e with dst[e] = n of  tensor_product(x[src[e]], sh[e], w[e])

with the product of `eqtp.ops.tensor_product`. The kernels walk the edges of one destination at a time
(csrc/channelwise/channelwise.cpp); gradients of any order need two kernels (`eqtp.ops.autograd.register_multilinear`),
and a third one computes the second order at once.
"""

from __future__ import annotations

import torch

from eqtp.backends import registry
from eqtp.ops import segment_sum
from eqtp.ops import tensor_product as rows
from eqtp.ops.autograd import passes, register_multilinear
from eqtp.ops.graph import Graph
from eqtp.plans.calls import EdgeKind, Edges, Pass
from eqtp.plans.plan import TensorProductPlan, dims

registry.register_op("tensor_product_conv", engine="channelwise")


def reference(x, y, w, plan: TensorProductPlan, graph: Graph) -> torch.Tensor:
    """The formula in plain torch: x [num_src, dim_in1], y [e, dim_in2], w [e, numel] or [numel] -> [num_dst,
    dim_out]."""
    gathered = segment_sum.wide(x).index_select(0, graph.src).to(x.dtype)  # [e, dim_in1]; its adjoint is a sum
    return segment_sum.reference(rows.reference(gathered, y, w, plan), graph)


def _run(pass_: Pass, operands, outputs, src, dst, ptr, order, tptr, torder, plan: str, family: str) -> None:
    unsorted = src.numel() and not order.numel()
    edges = Edges(src, dst, ptr, order, tptr, torder, EdgeKind.UNSORTED if unsorted else EdgeKind.SORTED)
    rows.run(pass_, operands, outputs, edges, plan, family)


def _fake(x, y, w, src, dst, ptr, order, tptr, torder, plan, family):
    return x.new_empty(ptr.shape[0] - 1, dims(plan).out)


_op = register_multilinear(
    "tensor_product_conv",
    ("x", "y", "w"),
    "Tensor src, Tensor dst, Tensor ptr, Tensor order, Tensor tptr, Tensor torder, str plan, str family",
    *passes(3, _run, _fake),
    _fake,
    rows.part,
)


def _columns(graph: Graph, family: str, dtype: torch.dtype) -> tuple[torch.Tensor, ...]:
    """src, dst, ptr, order, and ptr, order of the transposed graph (empty if the family does not use it). If the graph
    is to stay unsorted, order is empty and only the size of ptr is valid."""
    kernel, none = registry.kernel(family, "channelwise"), graph.src.new_empty(0)
    if not graph.is_sorted and dtype in kernel.atomics and not torch.are_deterministic_algorithms_enabled():
        return graph.src, graph.dst, graph.src.new_zeros(1).expand(graph.num_dst + 1), none, none, none
    if graph.src.device.type in kernel.transposes:
        t = graph.transpose()
        return graph.src, graph.dst, graph.ptr, graph.order, t.ptr, t.order
    return graph.src, graph.dst, graph.ptr, graph.order, none, none


def tensor_product_conv(
    x: torch.Tensor,
    y: torch.Tensor,
    w: torch.Tensor | None,
    plan: TensorProductPlan,
    graph: Graph,
    backend: str = "auto",
) -> torch.Tensor:
    """Sum over the edges into each destination of the tensor product of source features and edge features.

    x: [num_src, dim_in1] features of the sources (atoms, including ghosts). y: [e, dim_in2] features of the edges,
    usually spherical harmonics. w: [e, weight_numel] weights per edge, or [weight_numel] shared, or None for a plan
    without weights. graph: `eqtp.Graph`; source and destination counts are independent. Returns [graph.num_dst,
    dim_out]; destinations without edges get zeros.

    Zero edges and zero nodes are valid. Deterministic: repeats are equal bit by bit for a given number of threads.
    Raises TypeError or ValueError, naming the argument, before any kernel runs; RuntimeError if the named backend
    cannot run.

    Source: Thomas et al., Tensor field networks, 2018, equation of the point convolution; Batzner et al., NequIP, 2022,
    eq. 6.
    """
    if not isinstance(graph, Graph):
        raise TypeError(f"tensor_product_conv: graph must be an eqtp.Graph, got {type(graph).__name__}")
    w = rows.check("tensor_product_conv", "x", x, graph.num_src, "y", y, graph.num_edges, w, plan)
    if graph.src.device != x.device:
        raise ValueError(f"tensor_product_conv: graph is on {graph.src.device}, x is on {x.device}")
    family = registry.resolve(backend, "tensor_product_conv", plan, x.device, x.dtype)
    if family == "reference":
        return reference(x, y, w, plan, graph)
    return _op(x, y, rows.per_row(w, graph.num_edges), *_columns(graph, family, x.dtype), plan.key, family)

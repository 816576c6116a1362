"""Tensor product convolution: gather, product and sum over a graph, without messages in memory.

    y[n] = sum over edges e with dst[e] = n of  tensor_product(x[src[e]], sh[e], w[e])

with `eqtp.ops.tensor_product` as the product. The kernels walk the edges of one destination at a time (csrc/tensor_product_conv.cpp);
gradients of any order need two kernels (`eqtp.autograd.register_multilinear`), and a third one does the second order at once.
"""

from __future__ import annotations

import torch

from eqtp import backend as backends
from eqtp import native
from eqtp.autograd import register_multilinear
from eqtp.graph import Graph
from eqtp.ops import tensor_product as rows
from eqtp.plan import TensorProductPlan


def reference(x, y, w, plan: TensorProductPlan, graph: Graph) -> torch.Tensor:
    """The formula in plain torch: x [num_src, dim_in1], y [e, dim_in2], w [e, numel] or [numel] -> [num_dst, dim_out]."""
    messages = rows.reference(x.index_select(0, graph.src), y, w, plan)  # [e, dim_out]
    return x.new_zeros(graph.num_dst, plan.dim_out).index_add(0, graph.dst, messages)


def _fwd(x, y, w, src, ptr, order, plan):
    out = x.new_empty(len(ptr) - 1, native.dims(plan).out)
    native.convolve(plan, (src, ptr, order), (x, y, w), (out, None, None, None))
    return out


def _bwd(g, x, y, w, wanted, src, ptr, order, plan):
    gx, gy, gw = native.empty((x, y, w), wanted)
    native.convolve(plan, (src, ptr, order), (x, y, w, g), (None, gx, gy, gw))
    return native.present(x, gx, gy, gw)


def _bwdbwd(g, x, y, w, cx, cy, cw, wanted, src, ptr, order, plan):
    out, gx, gy, gw = native.empty((g, x, y, w), wanted)
    native.convolve(plan, (src, ptr, order), (x, y, w, g, cx, cy, cw), (out, gx, gy, gw))
    return native.present(x, out, gx, gy, gw)


_op = register_multilinear(
    "tensor_product_conv",
    ("x", "y", "w"),
    "Tensor src, Tensor ptr, Tensor order, str plan",
    _fwd,
    _bwd,
    _bwdbwd,
    lambda x, y, w, src, ptr, order, plan: x.new_empty(ptr.shape[0] - 1, native.dims(plan).out),
    rows.part,
)


def tensor_product_conv(
    x: torch.Tensor,
    y: torch.Tensor,
    w: torch.Tensor | None,
    plan: TensorProductPlan,
    graph: Graph,
    backend: str = "auto",
) -> torch.Tensor:
    """Sum over the edges into each destination of the tensor product of source features and edge features.

    x: [num_src, dim_in1] features of the sources (atoms, including ghosts). y: [e, dim_in2] features of the edges, usually spherical
    harmonics. w: [e, weight_numel] weights per edge, or [weight_numel] shared, or None for a plan without weights. graph: `eqtp.Graph`;
    source and destination counts are independent. Returns [graph.num_dst, dim_out]; destinations without edges get zeros.

    Zero edges and zero nodes are valid. Deterministic: repeats are equal bit by bit for a given number of threads.
    Raises TypeError or ValueError, naming the argument, before any kernel runs; RuntimeError if the backend that was named cannot run.

    Source: Thomas et al., Tensor field networks, 2018, equation of the point convolution; Batzner et al., NequIP, 2022, eq. 6.
    """
    if not isinstance(graph, Graph):
        raise TypeError(f"tensor_product_conv: graph must be an eqtp.Graph, got {type(graph).__name__}")
    w = rows.check("tensor_product_conv", "x", x, graph.num_src, "y", y, graph.num_edges, w, plan)
    if graph.src.device != x.device:
        raise ValueError(f"tensor_product_conv: graph is on {graph.src.device}, x is on {x.device}")
    if backends.resolve(backend, plan, x.device, x.dtype) == "reference":
        return reference(x, y, w, plan, graph)
    return _op(x, y, rows.per_row(w, graph.num_edges), graph.src, graph.ptr, graph.order, plan.key)

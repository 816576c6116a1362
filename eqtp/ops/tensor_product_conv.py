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
from eqtp.ops.coefficients import upcast_for_kernels, upcast_half
from eqtp.ops.graph import Graph, transposed_csr
from eqtp.ops.precision import float32_under_autocast
from eqtp.plans.calls import EdgeKind, Edges, Pass
from eqtp.plans.plan import TensorProductPlan, dims
from eqtp.plans.record import key_of

registry.register_op("tensor_product_conv", engine="channelwise")


def reference(x, y, w, plan: TensorProductPlan, graph: Graph) -> torch.Tensor:
    """The formula in plain torch: x [num_src, dim_in1], y [e, dim_in2], w [e, numel] or [numel] -> [num_dst,
    dim_out]."""
    y, w = graph.zero_padding(y), w if w is None or w.ndim == 1 else graph.zero_padding(w)
    gathered = segment_sum.gather_reference(x, graph)  # [e, dim_in1]
    return segment_sum.reference(rows.reference(gathered, y, w, plan), graph)


def _run(pass_: Pass, operands, outputs, src, dst, ptr, order, tptr, torder, padded, plan: str, family: str) -> None:
    unsorted = src.numel() and not order.numel()
    edges = Edges(src, dst, ptr, order, tptr, torder, EdgeKind.UNSORTED if unsorted else EdgeKind.SORTED)
    if padded and pass_ != Pass.FWD:
        for t in outputs[-2:]:  # gradients of y and w, which kernels do not write where an edge does not count
            if t is not None and t.device.type == "cpu":
                t.index_fill_(0, order[int(ptr[-1]) :], 0)
            elif t is not None:  # without a wait for ptr
                t.zero_()
    rows.run(pass_, operands, outputs, edges, plan, family)


def _fake(x, y, w, src, dst, ptr, order, tptr, torder, padded, plan, family):
    return x.new_empty(ptr.shape[0] - 1, dims(key_of(plan)).out)


def _with_transpose(operands, constants: tuple) -> tuple:
    """The constants with the CSR by source, if the backward of the family walks it."""
    src, dst, ptr, order, tptr, _, padded, *rest = constants
    transposes = registry.kernel(rest[-1], "channelwise").transposes
    unsorted = src.shape[0] and not order.shape[0]
    if tptr.shape[0] or unsorted or src.device.type not in transposes:
        return constants
    csr = transposed_csr(src, dst, operands[0].shape[0], ptr.shape[0] - 1, padded)
    return (src, dst, ptr, order, *csr, padded, *rest)


_op = register_multilinear(
    "tensor_product_conv",
    ("x", "y", "w"),
    "Tensor src, Tensor dst, Tensor ptr, Tensor order, Tensor tptr, Tensor torder, bool padded, str plan, str family",
    *passes(3, _run, _fake),
    _fake,
    rows.part,
    _with_transpose,
)


def _columns(graph: Graph, family: str, dtype: torch.dtype) -> tuple:
    """src, dst, ptr, order of the graph, two empty columns for ptr and order of the transposed one, whether there is
    padding. If the graph is to stay unsorted, order is empty and only the size of ptr is valid."""
    kernel, none = registry.kernel(family, "channelwise"), graph.src.new_empty(0)
    atomic = dtype in kernel.atomics and not torch.are_deterministic_algorithms_enabled()
    if not graph.is_sorted and atomic and not graph.padded:
        return graph.src, graph.dst, graph.src.new_zeros(1).expand(graph.num_dst + 1), none, none, none, False
    return graph.src, graph.dst, *graph.csr(), none, none, graph.padded


@float32_under_autocast
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
    dtype = x.dtype
    x, y, w = upcast_for_kernels(x, y, w, backend=backend)
    family = registry.resolve(backend, "tensor_product_conv", plan, x.device, x.dtype)
    if family == "reference":
        return reference(*upcast_half(x, y, w), plan, graph).to(dtype)
    return _op(
        x,
        y,
        rows.per_row(w, graph.num_edges),
        *_columns(graph, family, x.dtype),
        rows.constant(plan.key, family),
        family,
    ).to(dtype)

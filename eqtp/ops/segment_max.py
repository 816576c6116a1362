"""Largest value over the edges into each destination, column by column.

    out[n] = max over edges e with dst[e] = n of x[e],      zero where there are none.

The gradient of each output goes to one edge, arg[n]: a scatter to arg, whose adjoint is the gather from arg. These two
give derivatives of every order.
"""

from __future__ import annotations

import torch

from eqtp.backends import registry
from eqtp.ops.autograd import define, differentiable
from eqtp.ops.graph import Graph
from eqtp.ops.precision import float32_under_autocast
from eqtp.ops.segment_sum import as_rows, resolve
from eqtp.plans.calls import Pass

registry.register_op("segment_max", engine="segments")


def reference(x: torch.Tensor, graph: Graph) -> torch.Tensor:
    """x [e, ...] -> [num_dst, ...]"""
    e, n = graph.num_edges, graph.num_dst + graph.padded  # the last row for edges that do not count
    x = graph.zero_padding(x)

    def at(t):
        return t.reshape(-1, *[1] * (x.ndim - 1)).expand_as(x)

    dst, edge = at(graph.dst), at(torch.arange(e, device=x.device))
    values = x.detach()
    # [e, ...]
    largest = values.new_zeros(n, *x.shape[1:]).scatter_reduce(0, dst, values, "amax", include_self=False)[graph.dst]
    taken = (values == largest) | (values.isnan() & largest.isnan())
    # [num_dst, ...]; e: no edges
    arg = edge.new_full((n, *x.shape[1:]), e).scatter_reduce(0, dst, torch.where(taken, edge, e), "amin")
    return torch.cat([x, x.new_zeros(1, *x.shape[1:])]).gather(0, arg[: graph.num_dst])


def _max(x, ptr, order, family):
    out = x.new_empty(len(ptr) - 1, x.shape[1])
    arg = ptr.new_empty(out.shape)
    registry.kernel(family, "segments").run("segment_max", Pass.FWD, (x, ptr, order), (out, arg))
    return out, arg


def _gather(t, arg):
    if not len(t):
        return t.new_zeros(arg.shape)
    return t.gather(0, arg.clamp(max=len(t) - 1)).masked_fill_(arg == len(t), 0)


def _scatter(g, arg, e):
    # an edge has one destination, so nothing is added. Row e stands for no edge
    return g.new_zeros(e + 1, g.shape[1]).scatter_(0, arg, g)[:e]


_max_op = define(
    "segment_max",
    "(Tensor x, Tensor ptr, Tensor order, str family) -> (Tensor, Tensor)",
    _max,
    lambda x, ptr, order, family: (
        x.new_empty(ptr.shape[0] - 1, x.shape[1]),
        ptr.new_empty(ptr.shape[0] - 1, x.shape[1]),
    ),
)
_gather_op = define(
    "segment_max_gather", "(Tensor t, Tensor arg) -> Tensor", _gather, lambda t, arg: t.new_empty(arg.shape)
)
_scatter_op = define(
    "segment_max_scatter",
    "(Tensor g, Tensor arg, SymInt e) -> Tensor",
    _scatter,
    lambda g, arg, e: g.new_empty(e, g.shape[1]),
)

# t [e, c], arg [num_dst, c] -> [num_dst, c], and its adjoint g [num_dst, c], arg, e -> [e, c]; arg is e where there are
# no edges
gather = differentiable(
    _gather_op,
    lambda args, needs, grads: [scatter(grads[0], args[1], args[0].shape[0]), None],
    lambda args, tangents: gather(tangents[0], args[1]),
)
scatter = differentiable(
    _scatter_op,
    lambda args, needs, grads: [gather(grads[0], args[1]), None, None],
    lambda args, tangents: scatter(tangents[0], *args[1:]),
)


def _backward(args, needs, grads, outputs):
    return [None if grads[0] is None else scatter(grads[0], outputs[1], args[0].shape[0]), None, None, None]


def _jvp(args, tangents):
    arg = max_rows(*args)[1]
    return gather(tangents[0], arg), None


# x [e, c], ptr, order, family -> out [num_dst, c], arg [num_dst, c]
max_rows = differentiable(_max_op, _backward, _jvp, outputs=True)


@float32_under_autocast
def segment_max(x: torch.Tensor, graph: Graph, backend: str = "auto") -> torch.Tensor:
    """Largest of the rows of x over the edges into each destination, column by column.

    x: [e, ...]. Returns [graph.num_dst, ...]. A destination without edges gets 0, and no gradient comes from it (as in
    torch_scatter and PyG). Among equal values the gradient goes to the first edge, in the order of the edges. NaN
    propagates: if there is one, it is the result, and the first one gets the gradient. Deterministic. Raises TypeError
    or ValueError, naming the argument.
    """
    family, rows = resolve("segment_max", x, graph, backend)
    if family == "reference":
        return reference(x, graph)
    out = max_rows(as_rows(rows), *graph.csr(), family)[0].to(x.dtype)
    return out if x.ndim == 2 else out.reshape(graph.num_dst, *x.shape[1:])

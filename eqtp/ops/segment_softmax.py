"""Softmax over the edges into each destination, column by column.

    out[e] = exp(x[e] - m[dst[e]]) / sum over edges f with dst[f] = dst[e] of exp(x[f] - m[dst[f]])
    m = segment_max(x)

With y = out and S the segment sum, the backward is  B(g, y)[e] = y[e] (g[e] - S(y g)[dst[e]]),  linear in g and its own
adjoint. Its derivative by y consists of S, its gather and products, which gives derivatives of every order.
"""

from __future__ import annotations

import torch

from eqtp.backends import registry
from eqtp.ops.autograd import define, differentiable, sum_present
from eqtp.ops.graph import Graph
from eqtp.ops.precision import float32_under_autocast
from eqtp.ops.segment_sum import as_rows, gather_rows, resolve, sum_rows, wide
from eqtp.plans.calls import Pass

registry.register_op("segment_softmax", engine="segments")


def reference(x: torch.Tensor, graph: Graph) -> torch.Tensor:
    """x [e, ...] -> [e, ...]"""
    dtype, x = x.dtype, wide(graph.zero_padding(x))  # [e, ...]
    values = x.detach()
    dst = graph.dst.reshape(-1, *[1] * (x.ndim - 1)).expand_as(x)
    rows = graph.num_dst + graph.padded  # the last one for edges that do not count
    largest = values.new_zeros(rows, *x.shape[1:]).scatter_reduce(0, dst, values, "amax", include_self=False)
    largest = torch.where(largest == -torch.inf, 0, largest)  # nothing but masked edges
    p = (x - largest[graph.dst]).exp()
    norm = p.new_zeros(largest.shape).index_add(0, graph.dst, p)
    return graph.zero_padding(p / torch.where(norm == 0, 1, norm)[graph.dst]).to(dtype)


def _softmax(x, dst, ptr, order, padded, family):
    out = x.new_zeros(x.shape) if padded else x.new_empty(x.shape)  # kernels do not write where an edge does not count
    registry.kernel(family, "segments").run("segment_softmax", Pass.FWD, (x, ptr, order), (out,))
    return out


def _softmax_bwd(g, y, dst, ptr, order, padded, family):
    gx = y.new_zeros(y.shape) if padded else y.new_empty(y.shape)
    registry.kernel(family, "segments").run("segment_softmax", Pass.BWD, (g, y, ptr, order), (gx,))
    return gx


_op = define(
    "segment_softmax",
    "(Tensor x, Tensor dst, Tensor ptr, Tensor order, bool padded, str family) -> Tensor",
    _softmax,
    lambda x, dst, ptr, order, padded, family: x.new_empty(x.shape),
)
_bwd_op = define(
    "segment_softmax_bwd",
    "(Tensor g, Tensor y, Tensor dst, Tensor ptr, Tensor order, bool padded, str family) -> Tensor",
    _softmax_bwd,
    lambda g, y, dst, ptr, order, padded, family: y.new_empty(y.shape),
)


def _dot(a, b, graph):
    """sum over f with dst[f] = dst[e] of a[f] b[f], for each edge e: [e, c]"""
    return gather_rows(sum_rows(a * b, *graph), *graph)


def _bwd_backward(args, needs, grads):
    (g, y, *graph), (c,) = args, grads
    gy = c * (g - _dot(y, g, graph)) - g * _dot(y, c, graph) if needs[1] else None
    return [bwd(c, y, *graph) if needs[0] else None, gy, *[None] * 5]


def _bwd_jvp(args, tangents):
    (g, y, *graph), (tg, ty) = args, tangents[:2]
    along_y = None if ty is None else ty * (g - _dot(y, g, graph)) - y * _dot(ty, g, graph)
    return sum_present([None if tg is None else bwd(tg, y, *graph), along_y])


bwd = differentiable(_bwd_op, _bwd_backward, _bwd_jvp)
softmax_rows = differentiable(
    _op,
    lambda args, needs, grads, outputs: [bwd(grads[0], outputs[0], *args[1:]), *[None] * 5],
    lambda args, tangents: bwd(tangents[0], softmax_rows(*args), *args[1:]),
    outputs=True,
)


@float32_under_autocast
def segment_softmax(x: torch.Tensor, graph: Graph, backend: str = "auto") -> torch.Tensor:
    """Softmax over the edges into each destination, column by column: the weights of attention over neighbours.

    x: [e, ...], logits of any magnitude: the largest of each destination is subtracted first. Returns [e, ...]; the
    values of a destination sum to 1. A logit of -inf masks its edge, which gets 0 and no gradient; if all edges of a
    destination are masked, all get 0 (as in masked attention; torch.softmax gives NaN). A logit of +inf or NaN makes
    its destination NaN. Deterministic. Raises TypeError or ValueError, naming the argument.
    """
    family, rows = resolve("segment_softmax", x, graph, backend)
    if family == "reference":
        return reference(x, graph)
    return softmax_rows(as_rows(rows), graph.dst, *graph.csr(), graph.padded, family).reshape(x.shape).to(x.dtype)

"""Sum and mean of edge rows over the edges into each destination.

    out[n] = sum over edges e with dst[e] = n of x[e]

The mean divides this by the number of edges; it is zero where there are none. Sum and gather (g[dst]) are adjoint to
each other, so the derivative of either is the other.
"""

from __future__ import annotations

import torch

from eqtp.backends import registry
from eqtp.ops.autograd import define, differentiable
from eqtp.ops.coefficients import upcast_for_kernels, upcast_half
from eqtp.ops.graph import Graph
from eqtp.ops.precision import float32_under_autocast
from eqtp.plans.calls import Pass

registry.register_op("segment_sum", engine="segments")


def wide(x: torch.Tensor) -> torch.Tensor:
    """x in the dtype in which references add up rows, of which there may be millions: float64, or at least float32 on
    a device that may not have it."""
    return x.to(torch.promote_types(x.dtype, torch.float32 if x.device.type in ("mps", "xpu") else torch.float64))


def reference(x: torch.Tensor, graph: Graph) -> torch.Tensor:
    """x [e, ...] -> [num_dst, ...]"""
    rows, count = wide(x), graph.num_dst + graph.padded  # the last row for edges that do not count
    return rows.new_zeros(count, *x.shape[1:]).index_add(0, graph.dst, rows)[: graph.num_dst].to(x.dtype)


def gather_reference(x: torch.Tensor, graph: Graph) -> torch.Tensor:
    """Rows of the sources, x [num_src, ...] -> [e, ...], zero where an edge does not count. Its adjoint is a sum."""
    rows = wide(x)
    if graph.padded:  # the source of an edge that does not count is 0, which need not exist
        rows = torch.cat([rows, rows.new_zeros(1, *x.shape[1:])])
    return graph.zero_padding(rows.index_select(0, graph.src)).to(x.dtype)


def _sum(x, dst, ptr, order, padded, family):
    out = x.new_empty(len(ptr) - 1, x.shape[1])
    registry.kernel(family, "segments").run("segment_sum", Pass.FWD, (x, ptr, order), (out,))
    return out


def _gather(g, dst, ptr, order, padded, family):
    g = torch.cat([g, g.new_zeros(1, g.shape[1])]) if padded else g
    return g.index_select(0, dst)


_sum_op = define(
    "segment_sum",
    "(Tensor x, Tensor dst, Tensor ptr, Tensor order, bool padded, str family) -> Tensor",
    _sum,
    lambda x, dst, ptr, order, padded, family: x.new_empty(ptr.shape[0] - 1, x.shape[1]),
)
_gather_op = define(
    "segment_gather",
    "(Tensor g, Tensor dst, Tensor ptr, Tensor order, bool padded, str family) -> Tensor",
    _gather,
    lambda g, dst, ptr, order, padded, family: g.new_empty(dst.shape[0], g.shape[1]),
)


def _linear(op, adjoint):
    """A linear op of its first argument, whose backward is its adjoint and whose tangent is itself."""
    call = differentiable(
        op,
        lambda args, needs, grads: [adjoint()(grads[0], *args[1:]), *[None] * 5],
        lambda args, tangents: call(tangents[0], *args[1:]),
    )
    return call


sum_rows = _linear(_sum_op, lambda: gather_rows)  # x [e, c], dst, ptr, order, padded, family -> [num_dst, c]
gather_rows = _linear(_gather_op, lambda: sum_rows)  # g [num_dst, c], dst, ptr, order, padded, family -> [e, c]


def resolve(op: str, x: torch.Tensor, graph: Graph, backend: str) -> tuple[str, torch.Tensor]:
    """The family that runs a segment op, and x as it takes it, after the arguments are checked."""
    if not isinstance(graph, Graph):
        raise TypeError(f"{op}: graph must be an eqtp.Graph, got {type(graph).__name__}")
    if not isinstance(x, torch.Tensor) or not x.is_floating_point():
        raise TypeError(f"{op}: x must be a floating point tensor, got {getattr(x, 'dtype', type(x).__name__)}")
    if x.ndim < 1 or x.shape[0] != graph.num_edges:
        raise ValueError(f"{op}: x must be [{graph.num_edges}, ...], got {list(x.shape)}")
    if x.device != graph.src.device:
        raise ValueError(f"{op}: graph is on {graph.src.device}, x is on {x.device}")
    (x,) = upcast_for_kernels(x, backend=backend)
    return registry.resolve(backend, op, None, x.device, x.dtype), x


def as_rows(x: torch.Tensor) -> torch.Tensor:
    """[e, ...] -> [e, c]"""
    return x.flatten(1) if x.ndim > 1 else x.unsqueeze(1)


def gather(x: torch.Tensor, graph: Graph) -> torch.Tensor:
    """`gather_reference` with kernels: the gradient of x is a segment sum over the transposed graph."""
    if not (x.requires_grad and torch.is_grad_enabled()) and not graph.padded:
        return x.index_select(0, graph.src)
    back = graph.transpose()
    family = registry.resolve("auto", "segment_sum", None, x.device, x.dtype)
    if family == "reference":
        return gather_reference(x, graph)
    rows = gather_rows(as_rows(x), back.dst, *back.csr(), back.padded, family)
    return rows.reshape(graph.num_edges, *x.shape[1:])


@float32_under_autocast
def segment_sum(x: torch.Tensor, graph: Graph, backend: str = "auto") -> torch.Tensor:
    """Sum of the rows of x over the edges into each destination.

    x: [e, ...]. Returns [graph.num_dst, ...], zeros where a destination has no edges. A float32 sum is good to 1e-6 for
    any number of terms that are alike (2e-6 of their magnitudes at worst, as that of 32 terms). Deterministic: the same
    bits every time, and on the CPU whatever the number of threads: the rows of a destination are added in the order of
    the edges, from 33 rows on in blocks of 32 whose sums are added without loss (csrc/common/long_sums.h). Raises
    TypeError or ValueError, naming the argument.
    """
    family, rows = resolve("segment_sum", x, graph, backend)
    if family == "reference":
        return reference(x, graph)
    out = sum_rows(as_rows(rows), graph.dst, *graph.csr(), graph.padded, family).to(x.dtype)
    return out if x.ndim == 2 else out.reshape(graph.num_dst, *x.shape[1:])


@float32_under_autocast
def segment_mean(x: torch.Tensor, graph: Graph, backend: str = "auto") -> torch.Tensor:
    """Mean of the rows of x over the edges into each destination, zero where there are none. Shapes and errors as
    `segment_sum`. The sum of half precision may lie beyond its range: it stays in float32 until it is divided."""
    total = segment_sum(*(upcast_half(x) if isinstance(x, torch.Tensor) else [x]), graph, backend)
    count = graph.ptr.diff().clamp(min=1)  # [num_dst]
    return (total / count.to(total.dtype).reshape(-1, *[1] * (total.ndim - 1))).to(x.dtype)

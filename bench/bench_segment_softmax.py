"""Softmax over the edges into each node. Problems are those of the convolution: rows as wide as its messages."""

from __future__ import annotations

from collections.abc import Callable

import torch

from bench import peers
from bench.harness import Case, neighbours, random, require
from eqtp.ops.segment_softmax import segment_softmax
from eqtp.testing import problems

PROBLEMS = tuple(problems.TENSOR_PRODUCTS)
PASSES = ("fwd", "bwd", "bwdbwd")
CHECK_SIZE = {"nodes": 7, "edges": 33, "graph": "random"}


def peer(name: str, dst: torch.Tensor, num_dst: int) -> Callable:
    """f(x [e, c]) -> [e, c]; raises Missing."""
    if name == "torch":

        def composed(x):
            columns = dst[:, None].expand_as(x)
            largest = (
                x.detach()
                .new_zeros(num_dst, x.shape[1])
                .scatter_reduce(0, columns, x.detach(), "amax", include_self=False)
            )
            p = (x - largest[dst]).exp()
            return p / p.new_zeros(largest.shape).index_add(0, dst, p)[dst]

        return composed
    if name == "pyg":
        softmax = peers._import("torch_geometric.utils").softmax
        return lambda x: softmax(x, dst, num_nodes=num_dst)
    return peers._refuse(name, "segment softmax")


def case(problem_id: str, dtype: torch.dtype, *, nodes: int, edges: int, graph: str, device: str = "cpu", **_) -> Case:
    width = problems.tensor_product(problem_id).dim_out
    csr = neighbours(graph, nodes, edges, device)
    nodes, edges = csr.num_dst, csr.num_edges

    def ours(backend: str) -> Callable:
        require(backend, "segment_softmax", None, dtype, torch.device(device))
        return lambda x: segment_softmax(x, csr, backend=backend)

    row = edges * width * dtype.itemsize
    return Case(
        problem=problem_id,
        size={"nodes": nodes, "edges": edges},
        inputs={"x": random(edges, width, dtype=dtype, seed=1, device=device)},
        cotangent=random(edges, width, dtype=dtype, seed=2, device=device, grad=False),
        ours=ours,
        peer=lambda name: peer(name, csr.dst, nodes),
        bytes={
            "fwd": 2 * row + 8 * edges,
            "bwd": 3 * row + 8 * edges,
            "bwdbwd": 5 * row + 8 * edges,
        },  # bwdbwd: g, y, c; their gradients
        flops={"fwd": 5 * edges * width, "bwd": 4 * edges * width, "bwdbwd": 12 * edges * width},
    )

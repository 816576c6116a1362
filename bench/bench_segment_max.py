"""Largest value over the edges into each node. Problems are those of the convolution: rows as wide as its messages.

The gradient is a scatter, linear in the cotangent, so its second-order gradient is zero and there is no bwdbwd pass.
"""

from __future__ import annotations

from collections.abc import Callable

import torch

from bench import peers
from bench.harness import Case, neighbours, random, require
from eqtp.ops.segment_max import segment_max
from eqtp.testing import problems

PROBLEMS = tuple(problems.TENSOR_PRODUCTS)
PASSES = ("fwd", "bwd")
CHECK_SIZE = {"nodes": 7, "edges": 33, "graph": "random"}


def peer(name: str, dst: torch.Tensor, num_dst: int) -> Callable:
    """f(x [e, c]) -> [num_dst, c]; raises Missing. Among equal values torch shares the gradient out; random numbers are
    not equal."""
    if name == "torch":

        def new(x):
            return x.new_zeros(num_dst, x.shape[1])

        return lambda x: new(x).scatter_reduce(0, dst[:, None].expand_as(x), x, "amax", include_self=False)
    if name == "pyg":
        scatter = peers._import("torch_geometric.utils").scatter
        return lambda x: scatter(x, dst, dim=0, dim_size=num_dst, reduce="max")
    return peers._refuse(name, "segment max")


def case(problem_id: str, dtype: torch.dtype, *, nodes: int, edges: int, graph: str, device: str = "cpu", **_) -> Case:
    width = problems.tensor_product(problem_id).dim_out
    csr = neighbours(graph, nodes, edges, device)
    nodes, edges = csr.num_dst, csr.num_edges

    def ours(backend: str) -> Callable:
        require(backend, "segment_max", None, dtype, torch.device(device))
        return lambda x: segment_max(x, csr, backend=backend)

    values = (edges + nodes) * width * dtype.itemsize
    arg = 8 * nodes * width
    return Case(
        problem=problem_id,
        size={"nodes": nodes, "edges": edges},
        inputs={"x": random(edges, width, dtype=dtype, seed=1, device=device)},
        cotangent=random(nodes, width, dtype=dtype, seed=2, device=device, grad=False),
        ours=ours,
        peer=lambda name: peer(name, csr.dst, nodes),
        bytes={"fwd": values + arg + 8 * edges, "bwd": values + arg},
        flops={"fwd": edges * width, "bwd": 0},
    )

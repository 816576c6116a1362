"""Sum of edge rows into nodes. Problems are those of the convolution: rows as wide as its messages.

The sum is linear, so its second-order gradient is zero and there is no bwdbwd pass.
"""

from __future__ import annotations

from collections.abc import Callable

import torch

import eqtp
from bench import peers
from bench.harness import Case, neighbours, random, require
from eqtp.testing import problems

PROBLEMS = tuple(problems.TENSOR_PRODUCTS)
PASSES = ("fwd", "bwd")
CHECK_SIZE = {"nodes": 7, "edges": 33, "graph": "random"}


def case(problem_id: str, dtype: torch.dtype, *, nodes: int, edges: int, graph: str, device: str = "cpu", **_) -> Case:
    width = problems.tensor_product(problem_id).dim_out
    csr = neighbours(graph, nodes, edges, device)
    nodes, edges = csr.num_dst, csr.num_edges
    inputs = {"x": random(edges, width, dtype=dtype, seed=1, device=device)}
    cotangent = random(nodes, width, dtype=dtype, seed=2, device=device, grad=False)

    def ours(backend: str) -> Callable:
        require(backend, "segment_sum", None, dtype, torch.device(device))
        return lambda x: eqtp.segment_sum(x, csr, backend=backend)

    moved = (edges + nodes) * width * dtype.itemsize + 8 * edges  # both ways: linear, so backward does not read x
    return Case(
        problem=problem_id,
        size={"nodes": nodes, "edges": edges},
        inputs=inputs,
        cotangent=cotangent,
        ours=ours,
        peer=lambda name: peers.summation(name, csr.dst, nodes),
        bytes={"fwd": moved, "bwd": moved},
        flops={"fwd": edges * width, "bwd": 0},
    )

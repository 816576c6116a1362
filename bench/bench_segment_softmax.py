"""Softmax over the edges into each node. Problems are those of the convolution: rows as wide as its messages."""

from __future__ import annotations

from collections.abc import Callable

import torch

from bench import peers
from bench.gpu_jobs import DIAMOND, FIRST_ORDER, SEGMENT_ROWS, Job
from bench.harness import Case, case_of_segments
from eqtp.ops.segment_softmax import segment_softmax
from eqtp.testing import problems

PROBLEMS = tuple(problems.TENSOR_PRODUCTS)
PASSES = ("fwd", "bwd", "bwdbwd")
CHECK_SIZE = {"nodes": 7, "edges": 33, "graph": "random"}
SMALL = ("tetris-2", "e3tools-transformer")
GPU_JOBS = [
    Job(60, "softmax", "segment_softmax", SEGMENT_ROWS, (*DIAMOND, *FIRST_ORDER)),
]


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


def costs(edges: int, nodes: int, width: int, itemsize: int) -> tuple[dict[str, int], dict[str, int]]:
    """Double backward reads g, y, c and writes two gradients."""
    rows = {"fwd": 2, "bwd": 3, "bwdbwd": 5}
    flops = {"fwd": 5, "bwd": 4, "bwdbwd": 12}
    return (
        {stage: n * edges * width * itemsize + 8 * edges for stage, n in rows.items()},
        {stage: n * edges * width for stage, n in flops.items()},
    )


def case(problem_id: str, dtype: torch.dtype, *, device: str = "cpu", **size) -> Case:
    return case_of_segments(segment_softmax, problem_id, dtype, size, device, peer, costs, to="edges")

"""Largest value over the edges into each node. Problems are those of the convolution: rows as wide as its messages.

The gradient is a scatter, linear in the cotangent, so its second-order gradient is zero and there is no bwdbwd pass.
"""

from __future__ import annotations

from collections.abc import Callable

import torch

from bench import peers
from bench.gpu_jobs import DIAMOND, FIRST_ORDER, SEGMENT_ROWS, Job
from bench.harness import Case, case_of_segments
from eqtp.ops.segment_max import segment_max
from eqtp.testing import problems

PROBLEMS = tuple(problems.TENSOR_PRODUCTS)
PASSES = ("fwd", "bwd")
CHECK_SIZE = {"nodes": 7, "edges": 33, "graph": "random"}
SMALL = ("tetris-2", "e3tools-transformer")
GPU_JOBS = [
    Job(50, "max", "segment_max", SEGMENT_ROWS, (*DIAMOND, *FIRST_ORDER)),
]


def peer(name: str, dst: torch.Tensor, num_dst: int) -> Callable:
    """f(x [e, c]) -> [num_dst, c]; raises Missing. Among equal values torch shares the gradient out; random numbers are
    not equal."""
    if name == "torch":

        def largest(x):
            out = x.new_zeros(num_dst, x.shape[1])
            return out.scatter_reduce(0, dst[:, None].expand_as(x), x, "amax", include_self=False)

        return largest
    if name == "pyg":
        scatter = peers._import("torch_geometric.utils").scatter
        return lambda x: scatter(x, dst, dim=0, dim_size=num_dst, reduce="max")
    return peers._refuse(name, "segment max")


def costs(edges: int, nodes: int, width: int, itemsize: int) -> tuple[dict[str, int], dict[str, int]]:
    """Forward writes the edge of each maximum too, which backward reads."""
    moved = (edges + nodes) * width * itemsize + 8 * nodes * width
    return {"fwd": moved + 8 * edges, "bwd": moved}, {"fwd": edges * width, "bwd": 0}


def case(problem_id: str, dtype: torch.dtype, *, device: str = "cpu", **size) -> Case:
    return case_of_segments(segment_max, problem_id, dtype, size, device, peer, costs)

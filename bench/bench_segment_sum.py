"""Sum of edge rows into nodes. Problems are those of the convolution: rows as wide as its messages.

The sum is linear, so its second-order gradient is zero and there is no bwdbwd pass.
"""

from __future__ import annotations

import torch

from bench import peers
from bench.gpu_jobs import DIAMOND, FIRST_ORDER, SEGMENT_ROWS, Job
from bench.harness import Case, case_of_segments
from eqtp.ops.segment_sum import segment_sum
from eqtp.testing import problems

PROBLEMS = tuple(problems.TENSOR_PRODUCTS)
PASSES = ("fwd", "bwd")
CHECK_SIZE = {"nodes": 7, "edges": 33, "graph": "random"}
SMALL = ("tetris-2", "e3tools-transformer")
GPU_JOBS = [
    Job(40, "sum", "segment_sum", SEGMENT_ROWS, (*DIAMOND, *FIRST_ORDER)),
]


def costs(edges: int, nodes: int, width: int, itemsize: int) -> tuple[dict[str, int], dict[str, int]]:
    """Both ways alike: the op is linear, so backward does not read x."""
    moved = (edges + nodes) * width * itemsize + 8 * edges
    return {"fwd": moved, "bwd": moved}, {"fwd": edges * width, "bwd": 0}


def case(problem_id: str, dtype: torch.dtype, *, device: str = "cpu", **size) -> Case:
    return case_of_segments(segment_sum, problem_id, dtype, size, device, peers.summation, costs)

"""Matrix products, x1 [rows, channels, (lmax1+1)^2] by x2 alike; problems are named as in
bench_gaunt_tensor_product.py. `--edges` counts the rows.

Operations: each non-zero entry of the matrices of a degree once, and the product of two matrices.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch

from bench import peers
from bench.bench_gaunt_tensor_product import SIZES, operands, parse
from bench.gpu_jobs import FIRST_ORDER, SAMPLES, Job
from bench.harness import Case, case_of_signals, degrees_of, random, require
from eqtp.math.so3 import wigner_3j
from eqtp.ops.matrix_tensor_product import matrix_tensor_product

PROBLEMS = tuple(f"{l1}-{l2}-{l3}-c{channels}" for l1, l2, l3, channels in dict.fromkeys(SIZES))
PASSES = ("fwd", "bwd", "bwdbwd")
CHECK_SIZE = {"edges": 5}
SMALL = ("2-2-2-c32",)
GPU_JOBS = [
    Job(
        150,
        "matrix",
        "matrix_tensor_product",
        ("4-4-8-c32", "6-6-6-c128"),
        ("--edges", "10000", *FIRST_ORDER),
        families=SAMPLES,
    ),
]


def row_flops(degrees: tuple[int, int, int]) -> int:
    """Operations of one product."""
    s = (max(degrees) + 1) // 2
    return (
        2 * sum(np.count_nonzero(wigner_3j(s, s, l)) for lmax in degrees for l in range(lmax + 1))
        + 2 * (2 * s + 1) ** 3
    )


def case(problem_id: str, dtype: torch.dtype, *, edges: int, device: str = "cpu", **_) -> Case:
    degrees, channels, _, _ = parse(problem_id)
    inputs, n3 = operands(degrees, channels, edges, dtype, device)
    cotangent = random(edges, channels, n3, dtype=dtype, seed=3, device=device, grad=False)

    def ours(backend: str) -> Callable:
        require(backend, "matrix_tensor_product", None, dtype, torch.device(device))
        return lambda x1, x2: matrix_tensor_product(x1, x2, degrees[2], backend=backend)

    flops = edges * channels * row_flops(degrees)

    def their(name):
        return peers._refuse(name, "matrix product", device)

    return case_of_signals(problem_id, inputs, cotangent, ours, their, flops, degrees_of(degrees[2]))

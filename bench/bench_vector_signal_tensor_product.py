"""Vector-signal products with the default legs, x1 [rows, channels, (lmax1+1)^2] by x2 alike; problems are named as in
bench_gaunt_tensor_product.py. `--edges` counts the rows.

Operations: each non-zero coefficient of a vector harmonic once, three transforms of each operand on the folded grid, a
cross product at its points.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch

from bench import peers
from bench.bench_gaunt_tensor_product import SIZES, operands, parse
from bench.gpu_jobs import FIRST_ORDER, SAMPLES, Job
from bench.harness import Case, case_of_signals, degrees_of, random, require
from eqtp.math import vector_signals
from eqtp.math.sphere import folded_flops, folded_size
from eqtp.ops.vector_signal_tensor_product import vector_signal_tensor_product

PROBLEMS = tuple(
    f"{l1}-{l2}-{l3}-c{channels}{method}"
    for l1, l2, l3, channels in dict.fromkeys(SIZES)
    for method in ("", "-sparse", "-grid")
)
PASSES = ("fwd", "bwd", "bwdbwd")
CHECK_SIZE = {"edges": 5}
SMALL = ("2-2-2-c32-grid", "2-2-2-c32-sparse")
GPU_JOBS = [
    Job(
        160,
        "vector-signal",
        "vector_signal_tensor_product",
        ("4-4-8-c32",),
        ("--edges", "10000", *FIRST_ORDER),
        families=SAMPLES,
    ),
]


def row_flops(degrees: tuple[int, int, int]) -> int:
    """Operations of one product."""
    top = [vector_signals.top(lmax, -1) for lmax in degrees]
    rows, columns = folded_size(sum(top))
    maps = 2 * sum(np.count_nonzero(vector_signals.harmonics(lmax, -1)) for lmax in degrees)
    return maps + 3 * folded_flops(*top) + 6 * rows * columns


def case(problem_id: str, dtype: torch.dtype, *, edges: int, device: str = "cpu", **_) -> Case:
    degrees, channels, method, _ = parse(problem_id)
    inputs, n3 = operands(degrees, channels, edges, dtype, device)
    cotangent = random(edges, channels, n3, dtype=dtype, seed=3, device=device, grad=False)

    def ours(backend: str) -> Callable:
        require(backend, "vector_signal_tensor_product", None, dtype, torch.device(device))
        return lambda x1, x2: vector_signal_tensor_product(x1, x2, degrees[2], method=method, backend=backend)

    flops = edges * channels * row_flops(degrees)
    top = min(degrees[2], degrees[0] + degrees[1] - 1)  # beyond, and degree 0: zero

    def their(name):
        return peers._refuse(name, "vector-signal product", device)

    return case_of_signals(problem_id, inputs, cotangent, ours, their, flops, degrees_of(top, 1))

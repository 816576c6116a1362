"""Powers of a function on the sphere, x [rows, channels, (lmax+1)^2] to [rows, channels, degree, (lmax_out+1)^2].
`--edges` counts the rows.

Problem 3-1-n3-c128: degrees to 3, output to 1, powers to the third, 128 channels. Operations: the transforms of the
folded grid, a multiplication at each point for each power after the first. Against MACE's contraction: `python -m bench
products --targets`.
"""

from __future__ import annotations

from collections.abc import Callable

import torch

from bench import peers
from bench.gpu_jobs import FIRST_ORDER, SAMPLES, Job
from bench.harness import Case, case_of_signals, degrees_of, random, require
from eqtp.math.sphere import folded_size, transform_flops
from eqtp.ops.gaunt_many_body import gaunt_many_body

SIZES = [(lmax, lmax_out, degree) for lmax in (1, 2, 3, 4) for lmax_out in (0, 1, 2) for degree in (2, 3, 4)]
PROBLEMS = tuple(
    f"{lmax}-{lmax_out}-n{degree}-c{channels}" for lmax, lmax_out, degree in SIZES for channels in (1, 32, 128)
)
PASSES = ("fwd", "bwd", "bwdbwd")
CHECK_SIZE = {"edges": 5}
SMALL = ("2-1-n3-c32",)
GPU_JOBS = [
    Job(90, "many-body", "gaunt_many_body", ("3-1-n3-c128",), ("--edges", "1000", *FIRST_ORDER), families=SAMPLES),
]


def row_flops(lmax: int, lmax_out: int, degree: int) -> int:
    """Operations of one row and channel."""
    rows, columns = folded_size(degree * lmax + lmax_out)
    return (
        transform_flops(lmax, rows, columns)
        + degree * transform_flops(lmax_out, rows, columns)
        + (degree - 1) * rows * columns
    )


def case(problem_id: str, dtype: torch.dtype, *, edges: int, device: str = "cpu", **_) -> Case:
    lmax, lmax_out, degree, channels = (int(part.lstrip("nc")) for part in problem_id.split("-"))
    inputs = {"x": random(edges, channels, (lmax + 1) ** 2, dtype=dtype, seed=1, device=device)}
    cotangent = random(edges, channels, degree, (lmax_out + 1) ** 2, dtype=dtype, seed=3, device=device, grad=False)

    def ours(backend: str) -> Callable:
        require(backend, "gaunt_many_body", None, dtype, torch.device(device))
        return lambda x: gaunt_many_body(x, lmax_out, degree, backend=backend)

    flops = edges * channels * row_flops(lmax, lmax_out, degree)

    def their(name):
        return peers._refuse(name, "powers of a function", device)

    return case_of_signals(problem_id, inputs, cotangent, ours, their, flops, degrees_of(lmax_out))

"""Spherical harmonics of all degrees to lmax, normalisation "component". Problems lmax1, lmax3, ...: of
normalised vectors; lmax3-solid, ...: of the vectors as they are (r^l Y). `--points` is their number."""

from __future__ import annotations

from collections.abc import Callable

import torch

import eqtp
from bench import peers
from bench.gpu_jobs import TIMES, Job
from bench.harness import Case, multilinear_bytes, random, require
from eqtp.testing import problems

LMAX = {f"lmax{lmax}": lmax for lmax in sorted({*range(1, 11), *problems.SPHERICAL_HARMONICS.values()})}
PROBLEMS = tuple(LMAX) + tuple(f"{name}-solid" for name in LMAX)
PASSES = ("fwd", "bwd", "bwdbwd")
CHECK_SIZE = {"points": 33}
SMALL = ("lmax3", "lmax3-solid")
GPU_JOBS = [
    Job(
        20,
        "harmonics",
        "spherical_harmonics",
        tuple(LMAX)[:10],
        ("--points", "1000000", "--pass", "fwd,grad,gradgrad", *TIMES),
    ),
]


def point_flops(lmax: int) -> dict[str, int]:
    """Operations per point by stage of the recursion over solid harmonics (an estimate, no count is unique).

    With n = (lmax + 1)**2 components and h = (lmax + 1)(lmax + 2) / 2 of them with m >= 0: a step of the
    Legendre recursion (3) per h and a product with cos or sin and one with a constant per n; for the
    gradient, per n and axis, one harmonic of one degree less times a constant, times the cotangent, added;
    twice that at second order.
    """
    n, h = (lmax + 1) ** 2, (lmax + 1) * (lmax + 2) // 2
    return {"fwd": 3 * h + 2 * n, "bwd": 9 * n, "bwdbwd": 18 * n}


def case(problem_id: str, dtype: torch.dtype, *, points: int, device: str = "cpu", **_) -> Case:
    lmax = LMAX[problem_id.removesuffix("-solid")]
    normalize = not problem_id.endswith("-solid")
    degrees = list(range(lmax + 1))
    inputs = {"xyz": random(points, 3, dtype=dtype, seed=1, device=device)}
    cotangent = random(points, (lmax + 1) ** 2, dtype=dtype, seed=2, device=device, grad=False)

    def ours(backend: str) -> Callable:
        require(backend, "spherical_harmonics", None, dtype, torch.device(device))
        return lambda xyz: eqtp.spherical_harmonics(degrees, xyz, normalize, "component", backend=backend)

    return Case(
        problem=problem_id,
        size={"points": points},
        inputs=inputs,
        cotangent=cotangent,
        ours=ours,
        peer=lambda name: peers.harmonics(name, lmax, normalize, dtype, device),
        bytes=multilinear_bytes(inputs, cotangent),
        flops={stage: points * count for stage, count in point_flops(lmax).items()},
        pieces={"out": [slice(l * l, (l + 1) ** 2) for l in degrees]},
    )

"""Convolutions of edges before the sum: x [edges, channels, (lmax+1)^2] with the harmonics of r [edges, 1, 3] and
radial weights of each edge.

Problem 2-3-2-c32: degrees to 2, filter to 3, output to 2, 32 channels; -product or -rotated at its end names the
method; -so2 is the SO(2) form of the Clebsch-Gordan convolution, with weights [edges, channels, weights] for all paths,
another operator. Operations are those of the product with given harmonics on the folded grid; for -so2 those of the
small matrices, without rotations.
"""

from __future__ import annotations

from collections.abc import Callable

import torch

from bench import peers
from bench.gpu_jobs import FIRST_ORDER, SAMPLES, Job
from bench.harness import Case, Missing, case_of_signals, degrees_of, random, require
from eqtp.math.sphere import folded_flops
from eqtp.ops.gaunt_convolution import METHODS, gaunt_convolution, so2_convolution, so2_paths

SIZES = [(1, 1, 1, 32), (2, 2, 2, 32), (2, 3, 2, 32), (3, 3, 3, 32), (4, 4, 4, 32), (6, 6, 6, 128), (8, 8, 8, 32)]
PROBLEMS = tuple(
    f"{l1}-{l2}-{l3}-c{channels}{form}"
    for l1, l2, l3, channels in SIZES
    for form in ("", *(f"-{m}" for m in METHODS), "-so2")
)
PASSES = ("fwd", "bwd", "bwdbwd")
CHECK_SIZE = {"edges": 5}
SMALL = ()  # it has the kernels of the Gaunt product, or none
GPU_JOBS = [
    Job(
        170,
        "gaunt-conv",
        "gaunt_convolution",
        ("4-4-4-c32-product",),
        ("--edges", "10000", *FIRST_ORDER),
        families=SAMPLES,
    ),
]


def parse(problem_id: str) -> tuple[tuple[int, int, int], int, str]:
    """Degrees, channels, and the method or "so2"."""
    l1, l2, l3, channels, *form = problem_id.split("-")
    return (int(l1), int(l2), int(l3)), int(channels[1:]), form[0] if form else "auto"


def case(problem_id: str, dtype: torch.dtype, *, edges: int, device: str = "cpu", **_) -> Case:
    (lmax, lmax_filter, lmax_out), channels, form = parse(problem_id)

    def number(*shape, seed, **o):
        return random(edges, *shape, dtype=dtype, seed=seed, device=device, **o)

    count = len(so2_paths(lmax, lmax_out)) if form == "so2" else lmax_filter + 1
    inputs = {
        "x": number(channels, (lmax + 1) ** 2, seed=1),
        "r": number(1, 3, seed=2),
        "h": number(channels, count, seed=3),
    }
    cotangent = number(channels, (lmax_out + 1) ** 2, seed=4, grad=False)

    def ours(backend: str) -> Callable:
        if form == "so2":
            require(backend, "so2_convolution", None, dtype, torch.device(device))
            return lambda x, r, h: so2_convolution(x, r, h, lmax_out, backend=backend)
        if backend not in ("auto", "reference") and form == "rotated":
            raise Missing("the rotated method has no kernels")
        require(backend, "gaunt_tensor_product", None, dtype, torch.device(device))
        return lambda x, r, h: gaunt_convolution(x, r, lmax_out, h=h, method=form, backend=backend)

    flops = edges * channels * (4 * count if form == "so2" else folded_flops(lmax, lmax_filter, lmax_out))
    top = lmax_out if form == "so2" else min(lmax_out, lmax + lmax_filter)

    def their(name):
        return peers._refuse(name, "Gaunt convolution", device)

    return case_of_signals(problem_id, inputs, cotangent, ours, their, flops, degrees_of(top))

"""Gaunt products, x1 [rows, channels, (lmax1+1)^2] by x2 alike. `--edges` counts the rows.

Problem 4-4-8-c32: degrees to 4 by degrees to 4, output to 8, 32 channels; -sparse, -grid or -fourier at its end names
the route, and -odd asks for the bracket too. Operations are those of the folded grid, whichever route runs.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache

import torch

from bench import peers
from bench.gpu_jobs import FIRST_ORDER, SAMPLES, Job
from bench.harness import Case, Missing, case_of_signals, random, require
from eqtp.math.so3 import gaunt, wigner_3j
from eqtp.math.sphere import folded_flops
from eqtp.ops.gaunt_tensor_product import METHODS, gaunt_tensor_product

SIZES = [
    (4, 4, 8, 1),
    (4, 4, 8, 32),
    (8, 8, 16, 1),
    (6, 6, 6, 128),
    *((l, l, l, c) for c in (32, 128) for l in range(1, 11)),
]
PROBLEMS = tuple(
    f"{l1}-{l2}-{l3}-c{channels}{method}{odd}"
    for l1, l2, l3, channels in dict.fromkeys(SIZES)
    for method in ("", *(f"-{name}" for name in METHODS))
    for odd in ("", "-odd")
)
PASSES = ("fwd", "bwd", "bwdbwd")
CHECK_SIZE = {"edges": 5}
GAUNTS = ("2-2-2-c128", "3-3-3-c128", "4-4-4-c128", "6-6-6-c128", "4-4-8-c32", "4-4-4-c128-odd")
SMALL = ("2-2-2-c32-odd", "4-4-4-c32-grid-odd")
GPU_JOBS = [
    Job(80, "gaunt", "gaunt_tensor_product", GAUNTS, ("--edges", "10000", *FIRST_ORDER), families=SAMPLES),
]


def parse(problem_id: str) -> tuple[tuple[int, int, int], int, str, bool]:
    """Degrees, channels, method, odd."""
    l1, l2, l3, channels, *rest = problem_id.split("-")
    return (
        (int(l1), int(l2), int(l3)),
        int(channels[1:]),
        next((name for name in rest if name in METHODS), "auto"),
        "odd" in rest,
    )


@cache
def _e3nn(mode: str, degrees: tuple[int, int, int], dtype: torch.dtype, device: str):
    """e3nn.o3.TensorProduct with the Gaunt coefficients as path weights, one channel: channels are rows to it."""
    o3 = peers._import("e3nn.o3")
    irreps = [o3.Irreps.spherical_harmonics(lmax) for lmax in degrees]
    paths = []
    for l1 in range(degrees[0] + 1):
        for l2 in range(degrees[1] + 1):
            for l3 in range(abs(l1 - l2), min(l1 + l2, degrees[2]) + 1, 2):
                c = (gaunt(l1, l2, l3) * wigner_3j(l1, l2, l3)).sum()
                paths.append((l1, l2, l3, "uuu", False, c**2))  # e3nn takes the root
    with peers._e3nn_mode("script" if mode == "e3nn-script" else "eager", dtype):
        return o3.TensorProduct(*irreps, paths, irrep_normalization="none", path_normalization="none").to(device)


def peer(name: str, degrees: tuple[int, int, int], odd: bool, dtype: torch.dtype, device: str) -> Callable:
    """f(x1, x2) of a peer; raises Missing."""
    if name not in peers.E3NN:
        return peers._refuse(name, "Gaunt product", device)
    if odd:
        raise Missing(f"{name} has no bracket")
    product = _e3nn(name, degrees, dtype, device)
    return lambda x1, x2: product(x1.flatten(0, 1), x2.flatten(0, 1)).unflatten(0, x1.shape[:2])


def operands(
    degrees, channels: int, edges: int, dtype: torch.dtype, device: str
) -> tuple[dict[str, torch.Tensor], int]:
    """x1 and x2, [edges, channels, (lmax+1)^2], and the components of the product."""
    n1, n2, n3 = ((l + 1) ** 2 for l in degrees)

    def number(n, seed):
        return random(edges, channels, n, dtype=dtype, seed=seed, device=device)

    return {"x1": number(n1, 1), "x2": number(n2, 2)}, n3


def case(problem_id: str, dtype: torch.dtype, *, edges: int, device: str = "cpu", **_) -> Case:
    degrees, channels, method, odd = parse(problem_id)
    inputs, n3 = operands(degrees, channels, edges, dtype, device)
    cotangent = random(edges, channels, n3 * (1 + odd), dtype=dtype, seed=3, device=device, grad=False)

    def ours(backend: str) -> Callable:
        require(backend, "gaunt_tensor_product", None, dtype, torch.device(device))

        def product(x1, x2):
            return gaunt_tensor_product(x1, x2, degrees[2], method=method, odd=odd, backend=backend)

        return (lambda x1, x2: torch.cat(product(x1, x2), -1)) if odd else product

    flops = edges * channels * folded_flops(*degrees, odd=odd)
    # beyond, and the bracket's degree 0: zero
    top = [min(degrees[2], degrees[0] + degrees[1] - part) for part in range(1 + odd)]
    blocks = [
        slice(part * n3 + l * l, part * n3 + (l + 1) ** 2)
        for part in range(1 + odd)
        for l in range(part, top[part] + 1)
    ]

    def their(name):
        return peer(name, degrees, odd, dtype, device)

    return case_of_signals(problem_id, inputs, cotangent, ours, their, flops, blocks)

"""Clebsch-Gordan products, x1 [rows, channels, (lmax1+1)^2] by x2 alike, with weights of each, w [rows, channels,
paths]. `--edges` counts rows.

Problem 2-2-2-c32: degrees to 2 by degrees to 2, output to 2, 32 channels; with -shared at its end there is one set of
weights, w [paths]. The backend "reference" is the dense method, the others have the sparse one. Operations are those of
the sparse table: three for each coefficient, two for each sum that a weight scales.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache

import torch

from bench import peers
from bench.bench_gaunt_tensor_product import operands
from bench.gpu_jobs import FIRST_ORDER, SAMPLES, Job
from bench.harness import Case, case_of_signals, degrees_of, random, require
from eqtp.ops.cg_tensor_product import cg_paths, cg_tensor_product
from eqtp.plans import couplings

SIZES = [(l, l, l, channels) for l in range(1, 7) for channels in (1, 32)]
PROBLEMS = tuple(f"{l1}-{l2}-{l3}-c{channels}{shared}" for l1, l2, l3, channels in SIZES for shared in ("", "-shared"))
PASSES = ("fwd", "bwd", "bwdbwd")
CHECK_SIZE = {"edges": 5}
SMALL = ("2-2-2-c32", "2-2-2-c32-shared")
GPU_JOBS = [
    Job(
        140, "cg", "cg_tensor_product", ("2-2-2-c32", "4-4-4-c32"), ("--edges", "10000", *FIRST_ORDER), families=SAMPLES
    ),
]


def parse(problem_id: str) -> tuple[tuple[int, int, int], int, bool]:
    """Degrees, channels, shared."""
    l1, l2, l3, channels, *rest = problem_id.split("-")
    return (int(l1), int(l2), int(l3)), int(channels[1:]), "shared" in rest


@cache
def row_flops(degrees: tuple[int, int, int], pass_: str) -> int:
    """Operations of one product, or of the pass of one."""
    table = couplings.cg(*degrees, pass_, (True,) * {"fwd": 1, "bwd": 3, "bwdbwd": 4}[pass_])
    return 3 * len(table.c) + 2 * len(table.scale)


@cache
def _e3nn(mode: str, degrees: tuple[int, int, int], dtype: torch.dtype, device: str):
    """e3nn.o3.TensorProduct, one channel: channels are rows to it."""
    o3 = peers._import("e3nn.o3")
    # one parity: else the paths with an odd sum are not allowed
    irreps = [o3.Irreps([(1, (l, 1)) for l in range(lmax + 1)]) for lmax in degrees]
    paths = [(*path, "uuu", True) for path in cg_paths(*degrees)]
    options = {
        "irrep_normalization": "component",
        "path_normalization": "none",
        "shared_weights": False,
        "internal_weights": False,
    }
    with peers._e3nn_mode("script" if mode == "e3nn-script" else "eager", dtype):
        return o3.TensorProduct(*irreps, paths, **options).to(device)


def peer(name: str, degrees: tuple[int, int, int], dtype: torch.dtype, device: str) -> Callable:
    """f(x1, x2, w) of a peer; raises Missing."""
    if name not in peers.E3NN:
        return peers._refuse(name, "Clebsch-Gordan product of all degrees", device)
    product = _e3nn(name, degrees, dtype, device)

    def each(t, like):
        return t.expand(*like.shape[:2], -1).flatten(0, 1)

    return lambda x1, x2, w: product(each(x1, x1), each(x2, x1), each(w, x1)).unflatten(0, x1.shape[:2])


def case(problem_id: str, dtype: torch.dtype, *, edges: int, device: str = "cpu", **_) -> Case:
    degrees, channels, shared = parse(problem_id)
    inputs, n3 = operands(degrees, channels, edges, dtype, device)
    lead = () if shared else (edges, channels)
    inputs["w"] = random(*lead, len(cg_paths(*degrees)), dtype=dtype, seed=4, device=device)
    cotangent = random(edges, channels, n3, dtype=dtype, seed=3, device=device, grad=False)

    def ours(backend: str) -> Callable:
        require(backend, "cg_tensor_product", None, dtype, torch.device(device))
        return lambda x1, x2, w: cg_tensor_product(x1, x2, degrees[2], w, backend=backend)

    flops = {pass_: edges * channels * row_flops(degrees, pass_) for pass_ in PASSES}

    def their(name):
        return peer(name, degrees, dtype, device)

    return case_of_signals(problem_id, inputs, cotangent, ours, their, flops, degrees_of(degrees[2]))

"""Rows of tensor products, no graph: out[z] = product of x1[z], x2[z], w[z]. `--edges` counts the rows."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache

import torch

import eqtp
from bench import peers
from bench.gpu_jobs import ORDERS, Job
from bench.harness import Case, multilinear_bytes, random, require
from eqtp.math.cost import nonzeros, path_flops
from eqtp.plans.plan import TensorProductPlan
from eqtp.testing import problems

PROBLEMS = tuple(problems.TENSOR_PRODUCTS)
PASSES = ("fwd", "bwd", "bwdbwd")
CHECK_SIZE = {"edges": 33}
SMALL = ("small",)
GPU_JOBS = [
    Job(130, "rows", "tensor_product", ("mace-medium", "sevennet-0"), ("--edges", "100000", *ORDERS)),
]


def row_flops(plan: TensorProductPlan) -> dict[str, int]:
    """Operations per row by stage, from `plan.flops`.

    The last stage is not asked for the gradient of the cotangent, which is the sum of three forward
    products (two where the path has no weight): these are taken off. Their share of tables is not, it is
    used elsewhere.
    """
    spared = 0
    for path in plan.paths:
        table = 2 * nonzeros(path.l1, path.l2, path.l3)[0] * path.mul2
        spared += (3 if path.has_weight else 2) * max(0, path_flops(path, "fwd") - table)
    return {"fwd": plan.flops("fwd"), "bwd": plan.flops("bwd"), "bwdbwd": plan.flops("bwdbwd") - spared}


def pieces(plan: TensorProductPlan, names: tuple[str, str, str] = ("x1", "x2", "w")) -> dict[str, list[slice]]:
    """Columns of each operand and of the output, by irrep; of the weights, by path."""
    in1, in2, out = plan.offsets
    weights = [slice(p.weight_offset, p.weight_offset + p.weight_numel) for p in plan.paths if p.has_weight]
    return dict(zip((*names, "out"), (in1, in2, weights, out), strict=True))


@cache
def small_plan() -> TensorProductPlan:
    """Uneven multiplicities, more and fewer channels than a warp has lanes, degrees to 3."""
    in1, in2, out, instructions = eqtp.Irreps("5x0e + 33x1o + 8x2e"), eqtp.Irreps("0e + 1o + 2e"), [], []
    for i, (mul, ir1) in enumerate(in1):
        for j, (_, ir2) in enumerate(in2):
            for ir in ir1 * ir2:
                if ir.l <= 3:
                    instructions.append((i, j, len(out), "uvu", True))
                    out.append((mul, ir))
    return TensorProductPlan(in1, in2, eqtp.Irreps(out), instructions)


def plan_of(problem_id: str) -> TensorProductPlan:
    """The plan of a problem, or of "small"."""
    return small_plan() if problem_id == "small" else problems.plan(problem_id)


def weights(problem_id: str, rows: int, dtype: torch.dtype, device: str) -> torch.Tensor:
    """Random weights, [rows, numel] or shared [numel]."""
    numel = plan_of(problem_id).weight_numel
    shared = problem_id != "small" and problems.tensor_product(problem_id).weights == "shared"
    return random(*((numel,) if shared else (rows, numel)), dtype=dtype, seed=3, device=device)


def case(problem_id: str, dtype: torch.dtype, *, edges: int, device: str = "cpu", **_) -> Case:
    plan = plan_of(problem_id)
    inputs = {
        "x1": random(edges, plan.dim_in1, dtype=dtype, seed=1, device=device),
        "x2": random(edges, plan.dim_in2, dtype=dtype, seed=2, device=device),
        "w": weights(problem_id, edges, dtype, device),
    }
    cotangent = random(edges, plan.dim_out, dtype=dtype, seed=4, device=device, grad=False)

    def ours(backend: str) -> Callable:
        require(backend, "tensor_product", plan, dtype, torch.device(device))
        return lambda x1, x2, w: eqtp.tensor_product(x1, x2, w, plan, backend=backend)

    return Case(
        problem=problem_id,
        size={"edges": edges},
        inputs=inputs,
        cotangent=cotangent,
        ours=ours,
        peer=lambda name: peers.product(name, problem_id, dtype, device),
        bytes=multilinear_bytes(inputs, cotangent),
        flops={stage: edges * count for stage, count in row_flops(plan).items()},
        pieces=pieces(plan),
    )

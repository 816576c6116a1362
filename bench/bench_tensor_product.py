"""Rows of tensor products, no graph: out[z] = product of x1[z], x2[z], w[z]. `--edges` counts the rows."""

from __future__ import annotations

from collections.abc import Callable

import torch

import eqtp
from bench import peers
from bench.harness import Case, multilinear_bytes, random, require
from eqtp.math.cost import nonzeros, path_flops
from eqtp.plans.plan import TensorProductPlan
from eqtp.testing import problems

PROBLEMS = tuple(problems.TENSOR_PRODUCTS)
PASSES = ("fwd", "bwd", "bwdbwd")
CHECK_SIZE = {"edges": 33}


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


def weights(problem: problems.TensorProductProblem, rows: int, dtype: torch.dtype, device: str) -> torch.Tensor:
    """Random weights, [rows, numel] or shared [numel]."""
    shape = (problem.weight_numel,) if problem.weights == "shared" else (rows, problem.weight_numel)
    return random(*shape, dtype=dtype, seed=3, device=device)


def case(problem_id: str, dtype: torch.dtype, *, edges: int, device: str = "cpu", **_) -> Case:
    problem, plan = problems.tensor_product(problem_id), problems.plan(problem_id)
    inputs = {
        "x1": random(edges, plan.dim_in1, dtype=dtype, seed=1, device=device),
        "x2": random(edges, plan.dim_in2, dtype=dtype, seed=2, device=device),
        "w": weights(problem, edges, dtype, device),
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

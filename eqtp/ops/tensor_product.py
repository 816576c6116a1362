"""Tensor product of O(3) features, one per row.

    y[z, w, k] = sum over paths of scale * sum over u, v, i, j of
                 weight[z, u, v, w] w3j[i, j, k] x1[z, u, i] x2[z, v, j]

u, v, w are the multiplicities of the path's blocks, tied or summed as its mode says (`eqtp.plans.plan.MODES`); i,
j, k the components. Source: e3nn.o3.TensorProduct.
"""

from __future__ import annotations

from functools import lru_cache

import torch

from eqtp.backends import registry
from eqtp.ops.autograd import passes, register_multilinear
from eqtp.ops.coefficients import upcast_for_kernels, upcast_half
from eqtp.ops.constants import constants
from eqtp.ops.precision import float32_under_autocast
from eqtp.plans.calls import ROWS, Edges, Operands, Outputs, Pass
from eqtp.plans.channelwise import record
from eqtp.plans.plan import MODES, TensorProductPlan, dims
from eqtp.plans.record import key_of

registry.register_op("tensor_product", engine="channelwise")


def reference(x1: torch.Tensor, x2: torch.Tensor, w: torch.Tensor | None, plan: TensorProductPlan) -> torch.Tensor:
    """Plain torch, differentiable by torch itself to any order, every mode. Does not check its arguments.

    x1 [z, dim_in1], x2 [z, dim_in2], w [z, weight_numel] or shared [weight_numel] (None if there are no
    weights) -> [z, dim_out], in the dtype of x1.
    """
    z = x1.shape[0]
    at1, at2, _ = plan.offsets
    blocks = [x1.new_zeros(z, mul_ir.dim) for mul_ir in plan.irreps_out]  # each [z, mul3 * (2*l3+1)]
    for n, p in enumerate(plan.paths):
        if p.num_pairs == 0 or p.mul3 == 0:
            continue
        pair, weight, out = MODES[p.mode]
        c = constants("path_coefficients", n, like=x1, text=plan.key)  # [2*l1+1, 2*l2+1, 2*l3+1]
        a = x1[:, at1[p.i1]].reshape(z, p.mul1, 2 * p.l1 + 1)  # [z, mul1, 2*l1+1]
        b = x2[:, at2[p.i2]].reshape(z, p.mul2, 2 * p.l2 + 1)  # [z, mul2, 2*l2+1]
        if pair == "q":  # pairs of channels u < v
            u, v = torch.triu_indices(p.mul1, p.mul2, 1, device=x1.device)
            a, b = a[:, u], b[:, v]  # [z, pairs, 2*l1+1], [z, pairs, 2*l2+1]
        m = torch.einsum("zvj,ijk->zvik", b, c)  # [z, mul2, 2*l1+1, 2*l3+1]
        xx = torch.einsum("zui,zvik->zuvk" if pair == "uv" else "zui,zuik->zuk", a, m)  # [z, *pair, 2*l3+1]
        if p.has_weight:
            part = w[..., p.weight_offset : p.weight_offset + p.weight_numel]
            part = part.reshape(*w.shape[:-1], *p.weight_shape)
            batch = "z" if w.ndim == 2 else ""
            y = torch.einsum(f"{batch}{weight},z{pair}k->z{out}k", part, xx)  # [z, *out, 2*l3+1]
        else:
            y = torch.einsum(f"z{pair}k->z{out.replace('w', '')}k", xx)
        blocks[p.io] = blocks[p.io] + y.reshape(z, p.mul3 * (2 * p.l3 + 1))
    return torch.cat(blocks, dim=1) if blocks else x1.new_zeros(z, 0)


def run(pass_: Pass, operands, outputs, edges: Edges, plan: str, family: str) -> None:
    """A pass of the channelwise product over `edges`; arguments as for `eqtp.ops.autograd.passes`."""
    none = [None] * (4 - len(outputs))  # of (out, gx, gy, gw) FWD has the first, BWD the others, BWDBWD all
    filled = Outputs(*outputs, *none) if pass_ == Pass.FWD else Outputs(*none, *outputs)
    registry.kernel(family, "channelwise").run(key_of(plan), pass_, Operands(*operands, edges=edges), filled)


def _run(pass_: Pass, operands, outputs, plan: str, family: str) -> None:
    run(pass_, operands, outputs, ROWS, plan, family)


def _fake(x1, x2, w, plan, family):
    return x1.new_empty(x1.shape[0], dims(key_of(plan)).out)


@lru_cache(maxsize=1024)
def _weighted_paths_key(key: str) -> str:
    """Key of the plan's paths that have a weight, the only ones that depend on w."""
    p = TensorProductPlan.from_key(key)
    paths = [(q.i1, q.i2, q.io, q.mode, True, q.scale**2) for q in p.paths if q.has_weight]
    if len(paths) == len(p.paths):
        return key
    return TensorProductPlan(p.irreps_in1, p.irreps_in2, p.irreps_out, paths, "none", "none").key


def part(s: int, constants: tuple) -> tuple:
    """Constants (plan and family come last) of the part of a product that depends on operand s (x1, x2, w)."""
    *graph, plan, family = constants
    return (*graph, constant(_weighted_paths_key(key_of(plan)), family), family) if s == 2 else constants


def constant(key: str, family: str) -> str:
    """How the ops take the plan with this key: kernels of C++ need its numbers, too."""
    return record(key) if family == "native" else key


_op = register_multilinear(
    "tensor_product", ("x1", "x2", "w"), "str plan, str family", *passes(3, _run, _fake), _fake, part
)


def check(op: str, name1: str, x1, rows1: int, name2: str, x2, rows2: int, w, plan: TensorProductPlan):
    """Checks the operands of a product for `op`; returns w, or an empty one, [0], if it is None."""
    if not isinstance(plan, TensorProductPlan):
        raise TypeError(f"{op}: plan must be a TensorProductPlan, got {type(plan).__name__}")
    for name, t, count, dim in ((name1, x1, rows1, plan.dim_in1), (name2, x2, rows2, plan.dim_in2)):
        if not isinstance(t, torch.Tensor):
            raise TypeError(f"{op}: {name} must be a tensor, got {type(t).__name__}")
        if t.ndim != 2 or t.shape[0] != count or t.shape[1] != dim:
            raise ValueError(f"{op}: {name} must be [{count}, {dim}], got {list(t.shape)}")
    if not x1.is_floating_point():
        raise TypeError(f"{op}: {name1} must be floating point, got {x1.dtype}")
    n = plan.weight_numel
    if w is None:
        if n:
            raise ValueError(f"{op}: w must be [{rows2}, {n}] or [{n}], got None")
        w = x1.new_empty(0)
    if not isinstance(w, torch.Tensor):
        raise TypeError(f"{op}: w must be a tensor, got {type(w).__name__}")
    if not (w.ndim == 1 and w.shape[0] == n) and not (w.ndim == 2 and w.shape[0] == rows2 and w.shape[1] == n):
        raise ValueError(f"{op}: w must be [{rows2}, {n}] or [{n}], got {list(w.shape)}")
    for name, t in ((name2, x2), ("w", w)):
        if t.dtype != x1.dtype:
            raise TypeError(f"{op}: {name} must have the dtype of {name1}, {x1.dtype}, got {t.dtype}")
        if t.device != x1.device:
            raise ValueError(f"{op}: {name} must be on the device of {name1}, {x1.device}, got {t.device}")
    return w


def per_row(w: torch.Tensor, count: int) -> torch.Tensor:
    """Weights as [count, numel]; shared ones are not copied."""
    return w.expand(count, -1) if w.ndim == 1 else w


@float32_under_autocast
def tensor_product(
    x1: torch.Tensor,
    x2: torch.Tensor,
    w: torch.Tensor | None,
    plan: TensorProductPlan,
    backend: str = "auto",
) -> torch.Tensor:
    """Tensor product of the rows of x1 and x2.

    x1: [z, dim_in1]. x2: [z, dim_in2]. w: [z, weight_numel] weights per row, or [weight_numel] shared, or None for a
    plan without weights. Layout mul_ir (channel-major, m fastest). Returns [z, dim_out]; z = 0 is valid.

    Raises TypeError or ValueError, naming the argument, before any kernel runs; RuntimeError if the named backend
    cannot run.

    Source: e3nn.o3.TensorProduct (same coefficients, normalizations and weight order).
    """
    rows = x1.shape[0] if isinstance(x1, torch.Tensor) and x1.ndim else 0
    w = check("tensor_product", "x1", x1, rows, "x2", x2, rows, w, plan)
    dtype = x1.dtype
    x1, x2, w = upcast_for_kernels(x1, x2, w, backend=backend)
    family = registry.resolve(backend, "tensor_product", plan, x1.device, x1.dtype)
    if family == "reference":
        return reference(*upcast_half(x1, x2, w), plan).to(dtype)
    return _op(x1, x2, per_row(w, x1.shape[0]), constant(plan.key, family), family).to(dtype)

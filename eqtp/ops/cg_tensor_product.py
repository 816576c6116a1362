"""Clebsch-Gordan product: every path of two sets of spherical-harmonic coefficients, each with a weight of its own.

    out[l3, k] = sum over l1, l2, i, j of w[l1, l2, l3] sqrt(2 l3 + 1) w3j(l1, l2, l3)[i, j, k] x1[l1, i] x2[l2, j]

One output per degree, the sum of its paths. Two routes to the same numbers: for each pair of degrees the outer product
times a dense matrix (`dense`, plain torch), or the table of non-zero coefficients (`sparse`, kernels;
`eqtp.plans.couplings.cg`).

Source: e3nn.o3.TensorProduct (irrep_normalization="component", path_normalization="none", one channel).
"""

from __future__ import annotations

import torch

from eqtp.backends import registry
from eqtp.math.so3 import cg_paths
from eqtp.ops.autograd import passes, register_multilinear, sum_present
from eqtp.ops.coefficients import (
    as_batch_channels,
    batch_shape,
    check_alike,
    check_operands,
    degree_of,
    last_contiguous,
    scale_degrees,
    upcast_for_kernels,
    upcast_half,
)
from eqtp.ops.constants import constants
from eqtp.ops.precision import float32_under_autocast
from eqtp.plans import couplings
from eqtp.plans.calls import Pass

METHODS = ("dense", "sparse")

registry.register_op("cg_tensor_product", engine="couplings")


def dense(x1: torch.Tensor, x2: torch.Tensor, w: torch.Tensor | None, lmax_out: int) -> torch.Tensor:
    """x1 [..., (lmax1+1)^2], x2 [..., (lmax2+1)^2], w [..., paths] -> [..., (lmax_out+1)^2], in plain torch."""
    parts, first = [], 0
    for l1 in range(degree_of(x1) + 1):
        for l2 in range(degree_of(x2) + 1):
            met = range(abs(l1 - l2), min(l1 + l2, lmax_out) + 1)
            if not met:
                continue
            # [..., 2 l1+1, 2 l2+1]
            pairs = x1[..., l1 * l1 : (l1 + 1) ** 2, None] * x2[..., None, l2 * l2 : (l2 + 1) ** 2]
            c = constants("cg_pair", l1, l2, lmax_out, like=x1)
            part = pairs.flatten(-2) @ c.coupling
            if w is not None:
                part = part * w[..., first : first + len(met)][..., c.path]
            parts.append(torch.nn.functional.pad(part, (met[0] ** 2, (lmax_out + 1) ** 2 - (met[-1] + 1) ** 2)))
            first += len(met)
    return sum_present(parts)


def _run(pass_: Pass, operands, outputs, lmax_out: int, family: str) -> None:
    wanted = tuple(t is not None for t in outputs)
    if any(wanted):
        table = couplings.cg(degree_of(operands[0]), degree_of(operands[1]), lmax_out, pass_, wanted)
        run = registry.kernel(family, "couplings").run
        run(table, pass_, [last_contiguous(t) for t in operands], [t for t in outputs if t is not None])


def _fake(x1, x2, w, lmax_out, family):
    return x1.new_empty(*x1.shape[:2], (lmax_out + 1) ** 2)


# [b, c, n] each
_op = register_multilinear(
    "cg_tensor_product", ("x1", "x2", "w"), "int lmax_out, str family", *passes(3, _run, _fake), _fake
)


@float32_under_autocast
def rank_weights(a: torch.Tensor, b: torch.Tensor, c: torch.Tensor, odd: bool = False) -> torch.Tensor:
    """Weights of the Clebsch-Gordan product of rank R: those that a sum of R Gaunt products can have.

    a: [..., R, lmax1+1], b: [..., R, lmax2+1], c: [..., R, lmax_out+1]. Returns w [..., paths] with which
    `cg_tensor_product` is the sum over r of `gaunt_tensor_product` with weights w1 = a_r, w2 = b_r and w3 = c_r, which
    has between the 4 lmax + 1 degrees of freedom of one Gaunt product (R = 1) and those of all its paths. odd: add the
    brackets of those products, with the same weights; otherwise the paths with an odd sum get 0. Raises ValueError
    unless R agrees.
    """
    if not a.ndim > 1 < b.ndim or c.ndim < 2 or not a.shape[-2] == b.shape[-2] == c.shape[-2]:
        got = f"{list(a.shape)}, {list(b.shape)} and {list(c.shape)}"
        raise ValueError(f"rank_weights: a, b and c must be [..., R, lmax+1] with one R, got {got}")
    degrees = [int(t.shape[-1]) - 1 for t in (a, b, c)]  # a symbol is made a number
    dtype = a.dtype
    a, b, c = upcast_half(a, b, c)
    products = torch.stack([(a[..., l1] * b[..., l2] * c[..., l3]).sum(-1) for l1, l2, l3 in cg_paths(*degrees)], -1)
    return (products * constants("gaunt_weights", *degrees, odd, like=a)).to(dtype)


def _check_weights(op: str, x1, x2, w, paths: int) -> None:
    if not isinstance(w, torch.Tensor):
        raise TypeError(f"{op}: w must be a tensor or None, got {type(w).__name__}")
    if w.ndim == 0 or w.shape[-1] != paths:
        raise ValueError(f"{op}: w must be [..., {paths}], got {list(w.shape)}")
    check_alike(op, {"x1": x1, "x2": x2, "w": w})


@float32_under_autocast
def cg_tensor_product(
    x1: torch.Tensor,
    x2: torch.Tensor,
    lmax_out: int,
    w: torch.Tensor | None = None,
    *,
    w1: torch.Tensor | None = None,
    w2: torch.Tensor | None = None,
    w3: torch.Tensor | None = None,
    method: str = "auto",
    backend: str = "auto",
) -> torch.Tensor:
    """Clebsch-Gordan product of two sets of spherical-harmonic coefficients, every path with a weight.

    x1: [..., (lmax1+1)^2], x2: [..., (lmax2+1)^2], e3nn's order; leading dimensions (batch, channels) broadcast. w:
    [..., paths], in the order of `cg_paths(lmax1, lmax2, lmax_out)`; None: all 1. w1 [..., lmax1+1], w2 [..., lmax2+1],
    w3 [..., lmax_out+1] scale each degree of x1, x2 and the output. method: "dense", plain torch; "sparse", the kernels
    of the backend; "auto": kernels if there are any. Returns [..., (lmax_out+1)^2]: the path (l1, l2, l3) has the
    coefficients sqrt(2 l3 + 1) wigner_3j(l1, l2, l3), so that each path takes inputs of unit variance to an output of
    unit variance. Half precision is computed in float32.

    O(3): inputs with parities p (-1)^l and q (-1)^l give p q (-1)^l on the paths with l1 + l2 + l3 even and -p q (-1)^l
    on the others, so their sum has a parity only if the weights of one kind are 0. If each input has a single parity
    for all degrees (such as all even), so has the sum.

    Differentiable to every order. Raises TypeError or ValueError, naming the argument; RuntimeError for a method or a
    backend without kernels.
    """
    op = "cg_tensor_product"
    lmax1, lmax2, lmax_out = check_operands(op, x1, x2, lmax_out, w1, w2, w3)
    paths = len(cg_paths(lmax1, lmax2, lmax_out))
    if w is not None:
        _check_weights(op, x1, x2, w, paths)
    if method not in (*METHODS, "auto"):
        raise ValueError(f"{op}: method must be one of auto, {', '.join(METHODS)}, got {method!r}")
    dtype = x1.dtype
    x1, x2, w, w1, w2, w3 = upcast_for_kernels(x1, x2, w, w1, w2, w3)
    family = registry.resolve(backend, op, None, x1.device, x1.dtype)
    if method == "sparse" and family == "reference":
        raise RuntimeError(f"{op}: method 'sparse' needs kernels, backend 'reference' has none; its method is 'dense'")
    if method == "dense" and backend not in ("auto", "reference"):
        raise RuntimeError(f"{op}: there are no kernels for the method 'dense'; it is plain torch, backend 'reference'")
    plain = method == "dense" or family == "reference"
    if plain:
        x1, x2, w, w1, w2, w3 = upcast_half(x1, x2, w, w1, w2, w3)
    x1, x2 = scale_degrees(x1, w1), scale_degrees(x2, w2)
    if plain:
        return scale_degrees(dense(x1, x2, w, lmax_out), w3).to(dtype)
    operands = x1, x2, x1.new_ones(paths) if w is None else w
    out = _op(*as_batch_channels(*operands), lmax_out, family)
    return scale_degrees(out.reshape(*batch_shape(*operands), out.shape[-1]), w3).to(dtype)

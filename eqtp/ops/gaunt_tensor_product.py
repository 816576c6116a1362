"""Gaunt product: spherical-harmonic coefficients of the pointwise product of two functions on the sphere.

    f(r) = sum over l, m of x[l, m] Y_lm(r)              out[l, m] = integral of f1 f2 Y_lm
    bracket[l, m] = integral of r . (grad f1 x grad f2) Y_lm

    f1 f2:   coefficients gaunt(l1, l2, l3), the paths with l1 + l2 + l3 even;   bracket: `eqtp.math.sphere.bracket`,
             those with an odd sum.

Three routes to the same numbers: a table of the couplings (`sparse`), values at the points of a folded grid (`grid`),
or a Fourier series on the torus that covers the sphere twice (`fourier`). `eqtp.math.sphere` has the tables and
explains their symmetries. The first two have kernels, which run the tables of `eqtp.plans.couplings` and the programs
of `eqtp.plans.signals`, including derivatives; here all three are in plain torch.

Source: Luo, Chen, Krishnapriyan, ICLR 2024 (Gaunt product, Fourier); Xie et al., 2506.13523 (grid); 2605.15073
(bracket).
"""

from __future__ import annotations

import torch

from eqtp.backends import registry
from eqtp.ops.autograd import passes, register_multilinear
from eqtp.ops.coefficients import (
    as_batch_channels,
    batch_shape,
    check_operands,
    degree_of,
    last_contiguous,
    pad_degrees,
    scale_degrees,
    upcast_for_kernels,
    upcast_half,
)
from eqtp.ops.constants import constants
from eqtp.ops.gaunt_fourier import fourier
from eqtp.ops.gaunt_grid import grid
from eqtp.ops.precision import float32_under_autocast
from eqtp.plans import couplings, signals
from eqtp.plans.calls import Pass

METHODS = ("sparse", "grid", "fourier")
# method="auto" takes the table where both degrees are at most the first number, or one of them at most the second; else
# the grid. Source: for native `python -m bench products --rule` (AMD EPYC with AVX-512, one thread, batch 1,000, 1 and
# 32 channels, forward and with backward), for reference a timing of this plain torch code; for families not named here
# (those of GPUs) nothing was timed yet: as the reference.
AUTO = {"native": (3, 1), "reference": (2, 0)}
ENGINES = {"sparse": "couplings", "grid": "signals"}

registry.register_op("gaunt_tensor_product", engine="signals")


def sparse(x1: torch.Tensor, x2: torch.Tensor, lmax_out: int, odd: bool) -> tuple[torch.Tensor, ...]:
    """By the table of couplings. Arguments as for `grid`."""
    pairs = (x1.unsqueeze(-1) * x2.unsqueeze(-2)).flatten(-2)  # [..., (lmax1+1)^2 (lmax2+1)^2]

    def matrix(odd):
        return constants("coupling", degree_of(x1), degree_of(x2), lmax_out, odd, like=x1).flatten(0, 1)

    return tuple(pairs @ matrix(half) for half in ((False, True) if odd else (False,)))


ROUTES = {"sparse": sparse, "grid": grid, "fourier": fourier}


# ------------------------------------------------------------------------ kernels
# operands [b, c, signals, n]; a signal is a function on the sphere (`eqtp.plans.signals.SIGNALS`)
def _run(pass_: Pass, operands, outputs, lmax_out: int, kind: str, method: str, family: str) -> None:
    wanted = tuple(t is not None for t in outputs)
    if not any(wanted):
        return
    inputs = [s for t in operands for s in last_contiguous(t).unbind(-2)]
    outputs = [s for t in outputs if t is not None for s in t.unbind(-2)]
    plan_of = couplings.gaunt if method == "sparse" else signals.product
    plan = plan_of(kind, degree_of(operands[0]), degree_of(operands[1]), lmax_out, pass_, wanted)
    registry.kernel(family, ENGINES[method]).run(plan, pass_, inputs, outputs)


def _fake(x1, x2, lmax_out, kind, method, family):
    return x1.new_empty(*x1.shape[:2], signals.SIGNALS[kind][2], (lmax_out + 1) ** 2)


product_op = register_multilinear(
    "gaunt_tensor_product",
    ("x1", "x2"),
    "int lmax_out, str kind, str method, str family",
    *passes(2, _run, _fake),
    _fake,
)


def choose(op: str, method: str, backend: str, degrees: tuple[int, int], x: torch.Tensor) -> tuple[str, str]:
    """Checks a method and a backend; returns the method and the family to run for x1 and x2 of these degrees."""
    if method not in (*METHODS, "auto"):
        raise ValueError(f"{op}: method must be one of auto, {', '.join(METHODS)}, got {method!r}")
    if method == "fourier":
        if registry.resolve(backend, op, None, x.device, x.dtype) != "reference" and backend not in (
            "auto",
            "reference",
        ):
            raise RuntimeError(
                f"{op}: there are no kernels for the method 'fourier'; it is plain torch, backend 'reference'"
            )
        return method, "reference"
    family = registry.resolve(backend, op, None, x.device, x.dtype)
    if method == "auto":
        both, one = AUTO.get(family, AUTO["reference"])
        method = "sparse" if max(degrees) <= both or min(degrees) <= one else "grid"
    return method, family


@float32_under_autocast
def gaunt_tensor_product(
    x1: torch.Tensor,
    x2: torch.Tensor,
    lmax_out: int,
    *,
    method: str = "auto",
    w1: torch.Tensor | None = None,
    w2: torch.Tensor | None = None,
    w3: torch.Tensor | None = None,
    odd: bool = False,
    backend: str = "auto",
) -> torch.Tensor | tuple[torch.Tensor, torch.Tensor]:
    """Coefficients of the pointwise product of two functions on the sphere.

    x1: [..., (lmax1+1)^2], x2: [..., (lmax2+1)^2] real spherical-harmonic coefficients in e3nn's order, normalization
    "integral"; leading dimensions (batch, channels) broadcast. lmax_out: degree to which the result is truncated or
    zero-padded. w1 [..., lmax1+1], w2 [..., lmax2+1], w3 [..., lmax_out+1] scale each degree of x1, x2 and the output.
    method: "sparse", "grid", "fourier" or "auto": the same numbers. Returns [..., (lmax_out+1)^2]; with odd=True the
    pair (product, bracket), bracket = r . (grad f1 x grad f2): the paths with l1 + l2 + l3 odd, which a plain Gaunt
    product lacks. Both are exact (no aliasing). Half precision is computed in float32.

    O(3): inputs with parities p (-1)^l and q (-1)^l (p, q = 1 for a function of the direction) give a product with p q
    (-1)^l and a bracket with -p q (-1)^l. For l = 1 x 1 -> 1 the bracket is sqrt(3 / 4 pi) times the cross product.

    Differentiable to every order. Raises TypeError or ValueError, naming the argument; RuntimeError for a backend
    without kernels for this.
    """
    op = "gaunt_tensor_product"
    lmax1, lmax2, lmax_out = check_operands(op, x1, x2, lmax_out, w1, w2, w3)
    dtype = x1.dtype
    x1, x2, w1, w2, w3 = upcast_for_kernels(x1, x2, w1, w2, w3)
    method, family = choose(op, method, backend, (lmax1, lmax2), x1)
    if family == "reference":
        x1, x2, w1, w2, w3 = upcast_half(x1, x2, w1, w2, w3)
    x1, x2, reach = scale_degrees(x1, w1), scale_degrees(x2, w2), min(lmax_out, lmax1 + lmax2)
    if family == "reference":
        out = ROUTES[method](x1, x2, reach, odd)
    else:
        lead = batch_shape(x1, x2)
        both = product_op(
            *(t.unsqueeze(-2) for t in as_batch_channels(x1, x2)), reach, "odd" if odd else "product", method, family
        )
        out = both.reshape(*lead, 1 + odd, both.shape[-1]).unbind(-2)
    out = tuple(scale_degrees(pad_degrees(t, lmax_out), w3).to(dtype) for t in out)
    return out if odd else out[0]

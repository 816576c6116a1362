"""Matrix product: coefficients of the product of two matrices that represent functions on the sphere.

    X = sum over l, m of x[l, m] M_lm
    M_lm[a, b] = (-1)^(l // 2) sqrt((2 s + 1)(2 l + 1) / 4 pi) w3j(s, s, l)[b, a, m]
    s = ceil(max(lmax1, lmax2, lmax_out) / 2)
    out[l, m] = 4 pi / (2 s + 1) trace(M_lm^T X1 X2)

Up to the sign, the path (l1, l2, l3) has the coefficient sqrt((2 s + 1)(2 l1 + 1)(2 l2 + 1)(2 l3 + 1) / 4 pi) times the
6j symbol {l1 l2 l3; s s s}, odd l1 + l2 + l3 included. The paths with an even sum come from (X1 X2 + X2 X1) / 2, those
with an odd sum from (X1 X2 - X2 X1) / 2. The scale makes the constant function 1 the unit matrix: 1 times f is f, as in
the Gaunt product. For large s at fixed degrees the even paths tend to those of the Gaunt product, negated where l1 and
l2 are odd, and the odd paths to those of the bracket / 2 sqrt(s (s + 1)), negated where l1 and l2 are even (the
matrices of odd degree are antisymmetric).

Source: e3x, FusedTensor (which scales each path by a normalisation of its own); Madore, Class. Quantum Grav. 9, 1992
(fuzzy sphere).
"""

from __future__ import annotations

from math import pi

import torch

from eqtp.backends import registry
from eqtp.ops.autograd import passes, register_multilinear
from eqtp.ops.coefficients import (
    as_batch_channels,
    batch_shape,
    check_operands,
    degree_of,
    last_contiguous,
    scale_degrees,
    upcast_half,
)
from eqtp.ops.constants import constants
from eqtp.ops.precision import float32_under_autocast
from eqtp.plans import matrices
from eqtp.plans.calls import Pass

registry.register_op("matrix_tensor_product", engine="matrices")


def reference(x1: torch.Tensor, x2: torch.Tensor, lmax_out: int, split: bool) -> tuple[torch.Tensor, ...]:
    """x1 [..., (lmax1+1)^2], x2 [..., (lmax2+1)^2] -> (product,) or its parts (even, odd), [..., (lmax_out+1)^2]."""
    degrees = degree_of(x1), degree_of(x2), lmax_out
    s = (max(degrees) + 1) // 2
    m1, m2, m3 = (constants("matrices", l, s, like=x1) for l in degrees)
    a, b = torch.einsum("...i,iab->...ab", x1, m1), torch.einsum("...i,iab->...ab", x2, m2)  # [..., 2 s+1, 2 s+1]

    def back(z):
        return torch.einsum("...ab,iab->...i", z, 4 * pi / (2 * s + 1) * m3)

    if not split:
        return (back(a @ b),)
    ab, ba = a @ b, b @ a
    return back((ab + ba) / 2), back((ab - ba) / 2)


# ------------------------------------------------------------------------ kernels
# operands [b, c, (lmax+1)^2]; the product and its cotangent [b, c, 1 or 2 parts, (lmax_out+1)^2]
def _run(pass_: Pass, operands, outputs, lmax_out: int, split: bool, family: str) -> None:
    wanted = tuple(t is not None for t in outputs)
    if any(wanted):
        program = matrices.product(degree_of(operands[0]), degree_of(operands[1]), lmax_out, split, pass_, wanted)

        def signals(tensors):
            return [s for t in tensors if t is not None for s in (t.unbind(-2) if t.ndim == 4 else (t,))]

        run = registry.kernel(family, "matrices").run
        run(program, pass_, signals(map(last_contiguous, operands)), signals(outputs))


def _fake(x1, x2, lmax_out, split, family):
    return x1.new_empty(*x1.shape[:2], 1 + split, (lmax_out + 1) ** 2)


_op = register_multilinear(
    "matrix_tensor_product", ("x1", "x2"), "int lmax_out, bool split, str family", *passes(2, _run, _fake), _fake
)


@float32_under_autocast
def matrix_tensor_product(
    x1: torch.Tensor,
    x2: torch.Tensor,
    lmax_out: int,
    *,
    w1: torch.Tensor | None = None,
    w2: torch.Tensor | None = None,
    w3: torch.Tensor | None = None,
    split: bool = False,
    backend: str = "auto",
) -> torch.Tensor | tuple[torch.Tensor, torch.Tensor]:
    """Matrix product of two sets of spherical-harmonic coefficients, as in e3x.

    x1: [..., (lmax1+1)^2], x2: [..., (lmax2+1)^2], e3nn's order; leading dimensions (batch, channels) broadcast. w1
    [..., lmax1+1], w2 [..., lmax2+1], w3 [..., lmax_out+1] scale each degree of x1, x2 and the output. Returns [...,
    (lmax_out+1)^2]; with split=True its two terms (even, odd): the paths with even and odd l1 + l2 + l3. Half precision
    is computed in float32.

    The coefficient of a path is a 6j symbol, which depends on the largest of lmax1, lmax2 and lmax_out and is zero for
    a few paths from degree 5 on, such as (3, 5, 5) where that largest degree is 5 or 6.

    O(3): equivariant under rotations. With inputs of parities p (-1)^l and q (-1)^l the even part has p q (-1)^l and
    the odd part -p q (-1)^l, so their sum has no parity: use split=True. If each input has a single parity for all
    degrees (such as all even), so has the sum.

    Differentiable to every order. Raises TypeError or ValueError, naming the argument; RuntimeError for a backend
    without kernels for this.
    """
    op = "matrix_tensor_product"
    *_, lmax_out = check_operands(op, x1, x2, lmax_out, w1, w2, w3)
    dtype, split = x1.dtype, bool(split)
    x1, x2, w1, w2, w3 = upcast_half(x1, x2, w1, w2, w3)
    family = registry.resolve(backend, op, None, x1.device, x1.dtype)
    x1, x2 = scale_degrees(x1, w1), scale_degrees(x2, w2)
    if family == "reference":
        out = reference(x1, x2, lmax_out, split)
    else:
        lead = batch_shape(x1, x2)
        both = _op(*as_batch_channels(x1, x2), lmax_out, split, family)
        out = both.reshape(*lead, 1 + split, both.shape[-1]).unbind(-2)
    out = tuple(scale_degrees(t, w3).to(dtype) for t in out)
    return out if split else out[0]

"""Vector-signal product: coefficients of the pointwise cross product of two vector functions on the sphere.

    f_n(r)    = sum over j, m of x_n[j, m] V^(j, l)_m(r)              l = |j + leg_n|, leg -1, 0 or 1
    out[j, m] = integral of V^(j, l)_m . (f1 x f2)                    with the third leg

V are the vector spherical harmonics of `eqtp.math.vector_signals`. The path (j1, j2, j3) has c w3j(j1, j2, j3) with, up
to the sign,

    c = sqrt(6 (2 j1 + 1)(2 j2 + 1)(2 j3 + 1)) g(l1, l2, l3) {l1 l2 l3; 1 1 1; j1 j2 j3},     g w3j = `eqtp.so3.gaunt`

and exists only if l1 + l2 + l3 is even. So legs with an odd sum couple odd j1 + j2 + j3, which a Gaunt product cannot,
and legs with an even sum couple even j1 + j2 + j3. The products of all legs together have every path of the
Clebsch-Gordan product but (0, 0, 0).

Computed as a linear map of each operand to three functions, the cross product of their values on a grid, and a linear
map back.
Source: Xie et al., 2602.21466.
"""

from __future__ import annotations

from functools import lru_cache

import torch

from eqtp.backends import registry
from eqtp.math import vector_signals
from eqtp.ops.autograd import define, differentiable
from eqtp.ops.coefficients import (
    as_batch_channels,
    as_integer,
    check_operands,
    degree_of,
    pad_degrees,
    scale_degrees,
    upcast_half,
)
from eqtp.ops.gaunt_tensor_product import ROUTES, choose, product_op
from eqtp.ops.precision import float32_under_autocast

registry.register_op("vector_signal_tensor_product", engine="signals")


@lru_cache(maxsize=64)
def _harmonics(lmax: int, leg: int, device: torch.device, dtype: torch.dtype) -> torch.Tensor:
    with torch.inference_mode(False):  # a cached tensor may be used for training later
        return torch.tensor(vector_signals.harmonics(lmax, leg), dtype=dtype, device=device).flatten(1)


def _signals(x: torch.Tensor, lmax: int, leg: int, back: bool) -> torch.Tensor:
    h = _harmonics(lmax, leg, x.device, x.dtype)  # [(lmax+1)^2, 3 (top+1)^2]
    return x.flatten(-2) @ h.mT if back else (x @ h).unflatten(-1, (3, -1))


def _signals_fake(x, lmax, leg, back):
    return (
        x.new_empty(*x.shape[:-2], (lmax + 1) ** 2)
        if back
        else x.new_empty(*x.shape[:-1], 3, (vector_signals.top(lmax, leg) + 1) ** 2)
    )


_map = differentiable(
    define("vector_signals", "(Tensor x, int lmax, int leg, bool back) -> Tensor", _signals, _signals_fake),
    lambda args, needs, grads: (_map(grads[0], *args[1:3], not args[3]), None, None, None),
    lambda args, tangents: _map(tangents[0], *args[1:]),
    lambda info, in_dims, x, *rest: (_map(x.movedim(in_dims[0], 0), *rest), 0),
)


def signals(x: torch.Tensor, leg: int) -> torch.Tensor:
    """Coefficients x [..., (lmax+1)^2] of vector harmonics -> coefficients of three functions, [..., 3, (top+1)^2]."""
    return _map(x, degree_of(x), leg, False)


def _crossed(route, x1: torch.Tensor, x2: torch.Tensor, lmax_out: int) -> torch.Tensor:
    """x1 [..., 3, (lmax1+1)^2], x2 [..., 3, (lmax2+1)^2] -> their cross product at every point, [..., 3,
    (lmax_out+1)^2]"""
    up, down = [1, 2, 0], [2, 0, 1]
    return (
        route(x1[..., up, :], x2[..., down, :], lmax_out, False)[0]
        - route(x1[..., down, :], x2[..., up, :], lmax_out, False)[0]
    )


def _cross_signals(
    x1: torch.Tensor, x2: torch.Tensor, lmax_out: int, method: str, backend: str, op: str
) -> torch.Tensor:
    """Cross product, at every point, of vector signals in Cartesian components, for `op`: x1 [..., 3, (lmax1+1)^2], x2
    [..., 3, (lmax2+1)^2] -> [..., 3, (lmax_out+1)^2], lmax_out at most lmax1 + lmax2."""
    method, family = choose(op, method, backend, (degree_of(x1), degree_of(x2)), x1)
    if family == "reference":
        return _crossed(ROUTES[method], x1, x2, lmax_out)
    lead = torch.broadcast_shapes(x1.shape[:-2], x2.shape[:-2])
    vectors = [t.unflatten(-1, (3, -1)) for t in as_batch_channels(x1.flatten(-2), x2.flatten(-2))]
    out = product_op(*vectors, lmax_out, "cross", method, family)
    return out.reshape(*lead, 3, out.shape[-1])


@float32_under_autocast
def vector_signal_tensor_product(
    x1: torch.Tensor,
    x2: torch.Tensor,
    lmax_out: int,
    *,
    legs: tuple[int, int, int] = (-1, -1, -1),
    method: str = "auto",
    w1: torch.Tensor | None = None,
    w2: torch.Tensor | None = None,
    w3: torch.Tensor | None = None,
    backend: str = "auto",
) -> torch.Tensor:
    """Coefficients, in vector spherical harmonics, of the pointwise cross product of two vector functions on the
    sphere.

    x1: [..., (lmax1+1)^2], x2: [..., (lmax2+1)^2], e3nn's order; leading dimensions (batch, channels) broadcast. legs:
    the vector harmonics of degree j of x1, x2 and the output: l = |j + leg| (leg 0 leaves out j = 0). w1 [...,
    lmax1+1], w2 [..., lmax2+1], w3 [..., lmax_out+1] scale each degree of x1, x2 and the output. method: as for
    `gaunt_tensor_product`. Returns [..., (lmax_out+1)^2]. Half precision is computed in float32.

    The default legs couple exactly the (j1, j2, j3) with an odd sum; 1 x 1 -> 1 is the cross product divided by sqrt(4
    pi). Other legs give these, or the paths with an even sum, other coefficients, some of them zero: the head of this
    file has the formula.

    O(3): inputs with parities p (-1)^j and q (-1)^j give p q (-1)^j if the sum of the legs is even, else -p q (-1)^j.

    Differentiable to every order. Raises TypeError or ValueError, naming the argument; RuntimeError for a backend
    without kernels for this.
    """
    op = "vector_signal_tensor_product"
    *_, lmax_out = check_operands(op, x1, x2, lmax_out, w1, w2, w3)
    given = [as_integer(leg) for leg in legs] if hasattr(legs, "__iter__") else []
    if len(given) != 3 or any(leg not in vector_signals.LEGS for leg in given):
        raise ValueError(f"{op}: legs must be three of -1, 0 and 1, got {legs!r}")
    legs = given
    dtype = x1.dtype
    x1, x2, w1, w2, w3 = upcast_half(x1, x2, w1, w2, w3)
    f1, f2 = signals(scale_degrees(x1, w1), legs[0]), signals(scale_degrees(x2, w2), legs[1])
    top = vector_signals.top(lmax_out, legs[2])
    f = _cross_signals(f1, f2, min(top, degree_of(f1) + degree_of(f2)), method, backend, op)
    return scale_degrees(_map(pad_degrees(f, top), lmax_out, legs[2], True), w3).to(dtype)

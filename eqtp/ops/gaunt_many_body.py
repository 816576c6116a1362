"""Powers of a function on the sphere: coefficients of f, f^2, .. f^degree, all from one grid.

    f(r) = sum over l, m of x[l, m] Y_lm(r)              out[n, l, m] = integral of f^n Y_lm

Derivatives. With tangents t_1 .. t_k, functions like f, there are two ops,

    M(x, t)_n  = n! / (n - k)! P(f^(n - k) t_1 .. t_k),
    A(x, t, g) = gradient by one more tangent s of <g, M(x, (t, s))>.

M without tangents is the op itself, and each derivative of either, in any direction, is again M or A with a tangent
added, dropped or replaced.

Source: Luo, Chen, Krishnapriyan, ICLR 2024 (many-body interactions); as powers on one grid: Xie et al., 2506.13523.
"""

from __future__ import annotations

import torch

from eqtp.backends import registry
from eqtp.math import sphere as tables
from eqtp.ops.autograd import define, differentiable, sum_present
from eqtp.ops.coefficients import (
    as_batch_channels,
    as_rows,
    check_natural,
    degree_of,
    last_contiguous,
    lmax_of,
    pad_degrees,
    upcast_for_kernels,
    upcast_half,
)
from eqtp.ops.constants import constants
from eqtp.ops.gaunt_grid import butterflies, by_kind, project
from eqtp.ops.precision import float32_under_autocast
from eqtp.plans import signals
from eqtp.plans.calls import Pass

registry.register_op("gaunt_many_body", engine="signals")


def reference(x: torch.Tensor, lmax_out: int, degree: int) -> torch.Tensor:
    """Plain torch: x [..., (lmax+1)^2] -> [..., degree, (lmax_out+1)^2]"""
    lmax = degree_of(x)
    size = tables.folded_size(degree * lmax + lmax_out)
    t = constants("octant", lmax, *size, like=x)
    powers = [butterflies(t.values @ by_kind(as_rows(x), t))]  # [8, P, b] each
    while len(powers) < degree:
        powers.append(powers[-1] * powers[0])
    out = project(torch.cat(powers, -1), constants("octant", lmax_out, *size, like=x))  # [degree b, (lmax_out+1)^2]
    return out.unflatten(0, (degree, -1)).movedim(0, 1).reshape(*x.shape[:-1], degree, out.shape[-1])


# ------------------------------------------------------------------------ kernels
# x [b, c, n], tangents [b, c, k, n], g [b, c, degree, n_out]
def _run(program, pass_: Pass, inputs, outputs, family: str) -> None:
    registry.kernel(family, "signals").run(program, pass_, [last_contiguous(t) for t in inputs], outputs)


def _powers_fake(x, along, lmax_out, degree, family):
    return x.new_empty(*x.shape[:2], degree, (lmax_out + 1) ** 2)


def _powers(x, along, lmax_out, degree, family):
    out = _powers_fake(x, along, lmax_out, degree, family)
    program = signals.powers(degree_of(x), lmax_out, degree, along.shape[2])
    _run(program, Pass.FWD, [x, *along.unbind(2)], out.unbind(2), family)
    return out


def _adjoint_fake(x, along, g, family):
    return x.new_empty(x.shape)


def _adjoint(x, along, g, family):
    out = _adjoint_fake(x, along, g, family)
    program = signals.powers_adjoint(degree_of(x), degree_of(g), g.shape[2], along.shape[2])
    _run(program, Pass.BWD, [x, *along.unbind(2), *g.unbind(2)], [out], family)
    return out


_powers_op = define(
    "gaunt_many_body", "(Tensor x, Tensor along, int lmax_out, int degree, str family) -> Tensor", _powers, _powers_fake
)
_adjoint_op = define(
    "gaunt_many_body_bwd", "(Tensor x, Tensor along, Tensor g, str family) -> Tensor", _adjoint, _adjoint_fake
)


def _append_tangent(along: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
    """One more tangent."""
    return torch.cat([along, t.unsqueeze(2)], 2)


def _drop_tangent(along: torch.Tensor, j: int) -> torch.Tensor:
    """Tangents without the j-th."""
    return torch.cat([along[:, :, :j], along[:, :, j + 1 :]], 2)


def _stack_gradients(along: torch.Tensor, each) -> torch.Tensor:
    """Gradient of all tangents; each(j): that of the j-th."""
    return torch.stack([each(j) for j in range(along.shape[2])], 2) if along.shape[2] else torch.zeros_like(along)


def _powers_backward(args, needs, grads):
    x, along, _, _, family = args
    g = grads[0]
    gx = _adjoint_call(x, along, g, family) if needs[0] else None
    g_along = (
        _stack_gradients(along, lambda j: _adjoint_call(x, _drop_tangent(along, j), g, family)) if needs[1] else None
    )
    return gx, g_along, None, None, None


def _powers_jvp(args, tangents):
    x, along, *rest = args
    terms = [] if tangents[0] is None else [_powers_call(x, _append_tangent(along, tangents[0]), *rest)]
    if tangents[1] is not None:
        terms += [
            _powers_call(x, _append_tangent(_drop_tangent(along, j), tangents[1][:, :, j]), *rest)
            for j in range(along.shape[2])
        ]
    return sum_present(terms)


def _adjoint_backward(args, needs, grads):
    x, along, g, family = args
    h = grads[0]
    gx = _adjoint_call(x, _append_tangent(along, h), g, family) if needs[0] else None
    g_along = (
        _stack_gradients(along, lambda j: _adjoint_call(x, _append_tangent(_drop_tangent(along, j), h), g, family))
        if needs[1]
        else None
    )
    gg = _powers_call(x, _append_tangent(along, h), degree_of(g), g.shape[2], family) if needs[2] else None
    return gx, g_along, gg, None


def _adjoint_jvp(args, tangents):
    x, along, g, family = args
    tx, t_along, tg = tangents[:3]
    terms = [] if tx is None else [_adjoint_call(x, _append_tangent(along, tx), g, family)]
    if t_along is not None:
        terms += [
            _adjoint_call(x, _append_tangent(_drop_tangent(along, j), t_along[:, :, j]), g, family)
            for j in range(along.shape[2])
        ]
    if tg is not None:
        terms.append(_adjoint_call(x, along, tg, family))
    return sum_present(terms)


_powers_call = differentiable(_powers_op, _powers_backward, _powers_jvp)
_adjoint_call = differentiable(_adjoint_op, _adjoint_backward, _adjoint_jvp)


@float32_under_autocast
def gaunt_many_body(x: torch.Tensor, lmax_out: int, degree: int, *, backend: str = "auto") -> torch.Tensor:
    """Coefficients of f, f^2, .. f^degree, all on one grid.

    x: [..., (lmax+1)^2] as in `gaunt_tensor_product`. Returns [..., degree, (lmax_out+1)^2]. Exact; differentiable to
    every order. Raises TypeError or ValueError, naming the argument; RuntimeError for a backend without kernels for
    this.
    """
    op = "gaunt_many_body"
    lmax = lmax_of(op, "x", x)
    lmax_out, degree = check_natural(op, "lmax_out", lmax_out), check_natural(op, "degree", degree, 1)
    (a,) = upcast_for_kernels(x)
    family = registry.resolve(backend, op, None, a.device, a.dtype)
    reach = min(lmax_out, degree * lmax)
    if family == "reference":
        out = reference(*upcast_half(a), reach, degree)
    else:
        (flat,) = as_batch_channels(a)
        out = _powers_call(flat, flat.new_empty(*flat.shape[:2], 0, flat.shape[2]), reach, degree, family)
        out = out.reshape(*x.shape[:-1], degree, out.shape[-1])
    return pad_degrees(out, lmax_out).to(x.dtype)

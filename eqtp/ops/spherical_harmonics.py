"""Real spherical harmonics of vectors, in e3nn's order and sign (y is the polar axis, m = -l .. l inside each degree).

With Re, Im of (z + i x)^m and the polynomials P_lm(y, r^2) of the recursion in `constants`,

    r^l Y_l(+m) = P_lm Re (z + i x)^m,    r^l Y_l(-m) = P_lm Im (z + i x)^m,

polynomials in x, y, z for every l: no angles, so no pole and no special case along the axes. Normalizations:
"integral" (the square integrates to 1 over the sphere), "component" (|Y_l|^2 = 2 l + 1), "norm" (|Y_l| = 1).

Derivatives of any order: the gradient of the solid harmonics S_l = r^l Y_l is a fixed linear map of S_(l-1)
(`gradient_map`), so gradients of gradients are again harmonics and matrix products; kernels compute the value, the
gradient and the second order in one pass each.
"""

from __future__ import annotations

import torch

from eqtp.backends import registry
from eqtp.math.harmonics import NORMALIZATIONS, constants, table_columns
from eqtp.math.irreps import Irreps
from eqtp.ops.autograd import define, differentiable, empty_for_none, new_outputs, run
from eqtp.ops.coefficients import as_integer, as_rows, upcast_for_kernels, upcast_half
from eqtp.ops.constants import constants as tables
from eqtp.ops.precision import float32_under_autocast
from eqtp.plans.calls import Harmonics, Pass
from eqtp.plans.record import constant, key_of, record

# Beyond this degree harmonics are computed in float64. Near the poles Y_l changes by l^2 / 2 times the rounding of a
# vector: in float32 by 7.5e-6 of its largest value at l = 10, by 5.7e-4 at l = 100; from l = 180 on P_lm overflows
LMAX_FLOAT32 = 10

registry.register_op("spherical_harmonics", engine="harmonics")


def _direction(xyz: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """xyz / |xyz| [n, 3] and 1 / |xyz| [n, 1]; both zero at the zero vector, with zero derivatives of every order."""
    # a scale for each row that cancels: no square over- or underflows
    size = xyz.detach().abs().sum(-1, keepdim=True)
    null = size < torch.finfo(xyz.dtype).tiny
    scaled = xyz / torch.where(null, 1.0, size)
    unit = torch.where(null, 0.0, torch.where(null, 1.0, scaled.square().sum(-1, keepdim=True)).rsqrt())
    return scaled * unit, unit / torch.where(null, 1.0, size)


@constant
def _recursion(lmax: int, normalization: str) -> tuple[tuple[float, ...], ...]:
    return tuple(map(tuple, constants(lmax, normalization).tolist()))


def reference(degrees, xyz: torch.Tensor, normalize: bool, normalization: str) -> torch.Tensor:
    """The recursion in plain torch: xyz [n, 3] -> [n, sum of 2 l + 1]."""
    lmax = max(degrees, default=0)
    x, y, z = (_direction(xyz)[0] if normalize else xyz).unbind(-1)  # [n]
    r2 = x * x + y * y + z * z
    if normalize:  # 1, but 0 at the zero vector, where only l = 0 remains
        r2 = (r2 > 0).to(xyz.dtype)
    rows = iter(_recursion(lmax, normalization))
    parts = [[None] * (2 * l + 1) for l in range(lmax + 1)]
    c, s = torch.ones_like(x), torch.zeros_like(x)  # Re, Im (z + i x)^m
    for m in range(lmax + 1):
        if m:
            c, s = z * c - x * s, z * s + x * c
        p1, p2 = torch.ones_like(x), torch.zeros_like(x)
        for l in range(m, lmax + 1):
            a, b, _, _ = next(rows)
            p1, p2 = (a * p1, p2) if l == m else (a * y * p1 + b * r2 * p2, p1)
            parts[l][l + m] = p1 * c
            if m:
                parts[l][l - m] = p1 * s
    out = [parts[l][i] for l in degrees for i in range(2 * l + 1)]
    return torch.stack(out, -1) if out else xyz.new_zeros(len(xyz), 0)


@constant
def _table(degrees: tuple[int, ...], normalization: str) -> str:
    """The normalization, and the constants of the kernels in C++."""
    return record(normalization, *table_columns(degrees, normalization))


def _run(pass_: Pass, xyz, g, c, outputs, degrees, normalize, table, family):
    what = Harmonics(tuple(degrees), normalize, key_of(table))
    registry.kernel(family, "harmonics").run(what, pass_, (xyz, g, c), outputs)


def _fwd(xyz, degrees, *constants):
    out = xyz.new_empty(len(xyz), sum(degrees) * 2 + len(degrees))
    _run(Pass.FWD, xyz, None, None, (out, None), degrees, *constants)
    return out


def _bwd(g, xyz, *constants):
    gxyz = xyz.new_empty(xyz.shape)
    _run(Pass.BWD, xyz, g, None, (None, gxyz), *constants)
    return gxyz


def _bwdbwd(g, xyz, c, wanted, *constants):
    outputs = new_outputs((g, xyz), wanted)
    _run(Pass.BWDBWD, xyz, g, c, outputs, *constants)
    return empty_for_none(xyz, *outputs)


_CONSTANTS = "int[] degrees, bool normalize, str table, str family"
_op = define(
    "spherical_harmonics",
    f"(Tensor xyz, {_CONSTANTS}) -> Tensor",
    _fwd,
    lambda xyz, degrees, *_: xyz.new_empty(xyz.shape[0], sum(degrees) * 2 + len(degrees)),
)
_bwd_op = define(
    "spherical_harmonics_bwd",
    f"(Tensor g, Tensor xyz, {_CONSTANTS}) -> Tensor",
    _bwd,
    lambda g, xyz, *_: xyz.new_empty(xyz.shape),
)
_bwdbwd_op = define(
    "spherical_harmonics_bwdbwd",
    f"(Tensor g, Tensor xyz, Tensor c, bool[] wanted, {_CONSTANTS}) -> (Tensor, Tensor)",
    _bwdbwd,
    lambda g, xyz, c, wanted, *_: tuple(
        t.new_empty(t.shape if w else 0) for t, w in zip((g, xyz), wanted, strict=True)
    ),
)


def _directional_derivative(g, xyz, c, degrees, normalize, table, family):
    """Derivatives along c of the harmonics and of their gradient gxyz for the cotangent g (g None: no gradient).

    Consists of differentiable ops. With n = xyz / |xyz|, P = (1 - n n^T) / |xyz|, q = grad <g, S>(n): gxyz = P q.
    """
    D = tables("gradient_map", *degrees, like=xyz, text=key_of(table))  # [3, columns, lmax^2]
    lower = list(range(max([*degrees, 1])))
    solid = _table(tuple(lower), "integral")
    n, inverse = _direction(xyz) if normalize else (xyz, None)

    def project(v):
        return (v - n * (n * v).sum(-1, keepdim=True)) * inverse

    pc = project(c) if normalize else c  # [n, 3] derivative of the argument
    along = torch.einsum("za,acj,zj->zc", pc, D, _call(n, lower, False, solid, family))
    if g is None:
        return along, None
    # [n, 3] Hessian times pc
    h = _call_bwd(torch.einsum("za,zc,acj->zj", pc, g, D), n, lower, False, solid, family)
    if not normalize:
        return along, h
    q = _call_bwd(g, n, degrees, False, table, family)  # [n, 3]

    def dot(a, b):
        return (a * b).sum(-1, keepdim=True)

    bent = inverse * (dot(n, q) * pc + dot(c, n) * project(q)) + n * inverse**2 * (dot(c, q) - dot(c, n) * dot(n, q))
    return along, project(h) - bent


def _backward(args, needs, grads):
    return [_call_bwd(grads[0], *args), *[None] * 4]


def _jvp(args, tangents):
    return _directional_derivative(None, args[0], tangents[0], *args[1:])[0]


def _bwd_backward(args, needs, grads):
    g, xyz, *rest = args
    (c,) = grads
    if torch.is_grad_enabled() or torch._C._are_functorch_transforms_active():
        return [*_directional_derivative(g, xyz, c, *rest), *[None] * 4]
    second = run(_bwdbwd_op, g, xyz, c, list(needs[:2]), *rest)
    return [*(t if want else None for t, want in zip(second, needs, strict=False)), *[None] * 4]


def _bwd_jvp(args, tangents):
    g, xyz, *rest = args
    tg, txyz = tangents[:2]
    parts = [] if tg is None else [_call_bwd(tg, xyz, *rest)]
    if txyz is not None:  # the Hessian is symmetric
        parts.append(_directional_derivative(g, xyz, txyz, *rest)[1])
    return sum(parts[1:], parts[0])


def _batch_as_points(call):
    """vmap rule: the batch joins the points."""

    def rule(info, in_dims, *args):
        tensors = [a for a in args if isinstance(a, torch.Tensor)]
        n, folded = info.batch_size, []
        for t, d in zip(tensors, in_dims, strict=False):
            t = t.unsqueeze(0).expand(n, *t.shape) if d is None else t.movedim(d, 0)
            points = t.shape[1]
            folded.append(t.reshape(n * points, t.shape[2]))
        out = call()(*folded, *args[len(tensors) :])
        return out.reshape(n, points, out.shape[1]), 0

    return rule


_call = differentiable(_op, _backward, _jvp, _batch_as_points(lambda: _call))
_call_bwd = differentiable(_bwd_op, _bwd_backward, _bwd_jvp, _batch_as_points(lambda: _call_bwd))


def integer_degrees(l) -> tuple[int, ...] | None:
    """Degrees, in order, of an integer, or of integers in a list, a range or an array; None for anything else."""
    values = l.tolist() if hasattr(l, "tolist") else l  # of NumPy or torch
    several = type(values) in (list, tuple, range)  # irreps, and an irrep, are tuples of other types
    degrees = tuple(as_integer(v) for v in (values if several else (values,)))
    return None if None in degrees else degrees


def parse_degrees(l) -> tuple[int, ...]:
    """Degrees, in order, as of `integer_degrees`, or of irreps (any form `Irreps` takes)."""
    degrees = integer_degrees(l)
    if degrees is None:
        irreps = Irreps(l)
        parity = next((ir.p for _, ir in irreps if ir.l % 2), None)
        for mul, ir in irreps:
            if mul and ir.p != (parity if ir.l % 2 else 1):
                raise ValueError(f"spherical_harmonics: no vector has the harmonics {irreps}; parities must be p^l")
        degrees = tuple(ir.l for mul, ir in irreps for _ in range(mul))
    if any(v < 0 for v in degrees):
        raise ValueError(f"spherical_harmonics: l must not be negative, got {min(degrees)}")
    return degrees


@float32_under_autocast
def spherical_harmonics(
    l, xyz: torch.Tensor, normalize: bool, normalization: str = "integral", backend: str = "auto"
) -> torch.Tensor:
    """Real spherical harmonics Y_l of the vectors xyz.

    l: a degree, degrees in any order (a list, a range, an array), or irreps such as "0e + 1o + 2e"; any l. xyz: [...,
    3]. normalize: True for Y_l of the direction xyz / |xyz|, False for the polynomials r^l Y_l. normalization:
    "integral", "component" or "norm". Returns [..., sum of 2 l + 1].

    At the zero vector, with normalize=True, Y_0 keeps its value, the others are 0, and derivatives of every order are
    0. A vector counts as zero if |x| + |y| + |z| is below the smallest normal number of its dtype; where the sum is
    infinite or NaN, all but Y_0 are NaN. Half precision is computed in float32, and any precision in float64 for
    degrees above 10, where float32 would not be right to 1e-5. float64 is right to 1e-12, above l = 100 to 1e-16 l^2.

    Raises TypeError or ValueError, naming the argument, before any kernel runs; RuntimeError if the named backend
    cannot run.

    Source: e3nn.o3.spherical_harmonics (order, sign and normalizations); recursion as Bigi et al., sphericart, 2023,
    eqs. 4-9.
    """
    degrees = parse_degrees(l)
    if not isinstance(xyz, torch.Tensor) or not xyz.is_floating_point():
        got = xyz.dtype if isinstance(xyz, torch.Tensor) else type(xyz).__name__
        raise TypeError(f"spherical_harmonics: xyz must be a floating point tensor, got {got}")
    if xyz.ndim < 1 or xyz.shape[-1] != 3:
        raise ValueError(f"spherical_harmonics: xyz must be [..., 3], got {list(xyz.shape)}")
    if normalization not in NORMALIZATIONS:
        raise ValueError(
            f"spherical_harmonics: normalization must be one of {', '.join(NORMALIZATIONS)}, got {normalization!r}"
        )
    points = as_rows(
        xyz.double() if max(degrees, default=0) > LMAX_FLOAT32 else upcast_for_kernels(xyz, backend=backend)[0]
    )
    family = registry.resolve(backend, "spherical_harmonics", None, points.device, points.dtype)
    if family == "reference":
        out = reference(degrees, *upcast_half(points), bool(normalize), normalization)
    else:
        out = _call(points, list(degrees), bool(normalize), _table(degrees, normalization), family)
    return (out if xyz.ndim == 2 else out.reshape(*xyz.shape[:-1], out.shape[-1])).to(xyz.dtype)

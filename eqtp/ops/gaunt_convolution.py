"""Products of features with the harmonics of an edge's direction: the Gaunt convolution, and the SO(2) form of the
Clebsch-Gordan one.

    Gaunt:            product of f_x with the filter  sum over l, m of h[l] Y_lm(r) Y_lm,     r the edge
    Clebsch-Gordan:   out[l3] = sum over paths of  w[path] sqrt(2 l3 + 1) w3j(l1, l2, l3) x[l1] Y_l2(r)
                      (Y in normalization "component")

In a frame rotated so that the edge lies along the polar axis +y, the filter has components with m = 0 only, and the
product becomes one small matrix for each |m| (`eqtp.math.so2`), at the price of rotating x there and the result back:

    out = D(R)^T K D(R) x,    R r = |r| y.

R is not unique, and no choice is continuous everywhere; but K commutes with rotations about y, so neither the result
nor its derivatives depend on the choice, as long as R is smooth near the edge. Hence two charts, each without a
singularity where it is used:

    y >= 0:  the smallest rotation from r to +y, rational in r / |r|;      y < 0:  a half turn about x, then the same.

Wigner's matrices D are polynomials of R by a recursion in l; there are no angles. Sources: Luo, Chen, Krishnapriyan,
ICLR 2024 (Gaunt convolution); Passaro, Zitnick, 2302.03655 (SO(2) form).
"""

from __future__ import annotations

import torch

from eqtp.backends import registry
from eqtp.math import so2
from eqtp.math.so3 import cg_paths
from eqtp.ops.coefficients import (
    check_alike,
    check_natural,
    degree_of,
    lmax_of,
    pad_degrees,
    scale_degrees,
    upcast_half,
)
from eqtp.ops.constants import constants
from eqtp.ops.gaunt_tensor_product import gaunt_tensor_product
from eqtp.ops.precision import float32_under_autocast
from eqtp.ops.spherical_harmonics import spherical_harmonics

METHODS = ("product", "rotated")
# method="auto": faster at all degrees timed, 1 to 8 on one CPU thread; the other method is plain torch
AUTO = "product"

registry.register_op("gaunt_convolution", engine=None)
registry.register_op("so2_convolution", engine=None)


def frame(unit: torch.Tensor) -> torch.Tensor:
    """A rotation that takes the unit vector to +y: [..., 3] -> [..., 3, 3], in one of two charts (see above)."""
    x, y, z = unit.split(1, -1)  # [..., 1]
    turn = torch.where(y < 0, -1.0, 1.0).to(unit.dtype)
    y, z = y * turn, z * turn
    k = 1 / (1 + y)
    rows = [[1 - x * x * k, -x, -x * z * k], [x, y, z], [-x * z * k, -z, 1 - z * z * k]]
    return torch.stack([torch.cat((a, b * turn, c * turn), -1) for a, b, c in rows], -2)


def wigner(rotation: torch.Tensor, lmax: int) -> list[torch.Tensor]:
    """Wigner's matrices of the degrees 0..lmax in e3nn's basis, polynomials of the rotation: [..., 3, 3] ->
    [..., 2 l+1, 2 l+1] each."""
    found = [torch.ones_like(rotation[..., :1, :1]), rotation]
    while len(found) <= lmax:
        c = constants("step", len(found), like=rotation)  # [2 l+1, (2 l-1) 3]
        pairs = found[-1][..., :, None, :, None] * rotation[..., None, :, None, :]  # [..., 2 l-1, 3, 2 l-1, 3]
        found.append(c @ pairs.flatten(-4, -3).flatten(-2) @ c.mT)
    return found[: lmax + 1]


def _rotate(x: torch.Tensor, wigners: list[torch.Tensor], back: bool = False) -> torch.Tensor:
    """D x, or D^T x: x [..., (lmax+1)^2]; leading dimensions broadcast."""
    how = "...i,...ij->...j" if back else "...j,...ij->...i"
    return torch.cat([torch.einsum(how, x[..., l * l : (l + 1) ** 2], wigners[l]) for l in range(degree_of(x) + 1)], -1)


def _apply_so2(x: torch.Tensor, w: torch.Tensor, lmax_out: int, even: bool, odd: bool) -> torch.Tensor:
    """The matrices W (even), V (odd) or both in w [..., weights] times x [..., (lmax+1)^2] -> [..., (lmax_out+1)^2]."""
    lmax, lead = degree_of(x), torch.broadcast_shapes(x.shape[:-1], w.shape[:-1])
    x = x[..., constants("order", lmax, like=x)]
    zero = x.new_zeros(*lead, lmax_out + 1)
    sums = {0: zero}  # m -> [..., lmax_out+1-m, 1 (m = 0) or 2 (+m, -m)] flattened
    for name, m, at in so2.weight_blocks(lmax, lmax_out, even, odd):
        start = lmax + 1 + 2 * sum(lmax + 1 - n for n in range(1, m))
        a = x[..., start : start + 2 * (lmax + 1 - m)].unflatten(-1, (-1, 2)) if m else x[..., : lmax + 1, None]
        if name == "V":
            a = torch.stack((-a[..., 1], a[..., 0]), -1)
        part = torch.einsum(
            "...oi,...ic->...oc", w[..., at].unflatten(-1, (lmax_out + 1 - m, lmax + 1 - m)), a
        ).flatten(-2)
        sums[m] = sums[m] + part if m in sums else part
    out = torch.cat([t.expand(*lead, t.shape[-1]) for t in sums.values()], -1)
    return pad_degrees(out, lmax_out)[..., constants("place", lmax_out, like=x)]


def _check(op: str, x, r, lmax_out: int, **weights) -> tuple[int, int]:
    """Checks the arguments of `op`; returns lmax and lmax_out."""
    lmax = lmax_of(op, "x", x)
    given = {"x": x, "r": r} | weights
    for key, t in given.items():
        if not isinstance(t, torch.Tensor):
            raise TypeError(f"{op}: {key} must be a tensor, got {type(t).__name__}")
        if not t.is_floating_point() or t.dtype != x.dtype:
            raise TypeError(f"{op}: {key} must be floating point, of the dtype of x, {x.dtype}, got {t.dtype}")
    if r.ndim == 0 or r.shape[-1] != 3:
        raise ValueError(f"{op}: r must be [..., 3], got {list(r.shape)}")
    lmax_out = check_natural(op, "lmax_out", lmax_out)
    check_alike(op, given)
    return lmax, lmax_out


def _rotation_to_axis(r: torch.Tensor, lmax: int) -> tuple[torch.Tensor, list[torch.Tensor]]:
    """Whether r [..., 3] counts as zero, [..., 1], and Wigner's matrices of degrees 0..lmax of a rotation that takes r
    to +y (the identity if r is zero)."""
    unit = spherical_harmonics(1, r, True, "norm")  # r / |r|, or zero
    null = (unit == 0).all(-1, keepdim=True)
    axis = torch.nn.functional.pad(null.to(unit.dtype), (1, 1))  # [..., 3]: +y where r is zero
    return null, wigner(frame(unit + axis), lmax)


@float32_under_autocast
def gaunt_convolution(
    x: torch.Tensor,
    r: torch.Tensor,
    lmax_out: int,
    *,
    lmax_filter: int | None = None,
    h: torch.Tensor | None = None,
    method: str = "auto",
    odd: bool = False,
    backend: str = "auto",
) -> torch.Tensor | tuple[torch.Tensor, torch.Tensor]:
    """Gaunt product of features with the filter sum over l, m of h[l] Y_lm(r) Y_lm of each edge.

    x: [..., (lmax+1)^2] coefficients in e3nn's order, normalization "integral". r: [..., 3] edges; only their direction
    matters. h: [..., lmax_filter+1] weight of each degree of the filter (radial functions of |r|), by default 1.
    lmax_filter: by default that of h, or every degree that couples x to the output, lmax + lmax_out. Leading dimensions
    broadcast: x [e, C, n] takes r [e, 1, 3]. Returns [..., (lmax_out+1)^2], as `eqtp.gaunt_tensor_product(x,
    Y(r), lmax_out, w2=h)` does; with odd=True the pair (product, bracket).

    method: "product", that product; "rotated", by rotation to the polar axis; or "auto": the same numbers. Equivariance
    and parities are those of the product, with q = 1 if r is a vector. At r = 0 only Y_0 is non-zero and all
    derivatives by r are zero, as in `eqtp.spherical_harmonics`.

    Smooth everywhere else: values and derivatives of every order are correct for edges along the axes too. Raises
    TypeError or ValueError, naming the argument; RuntimeError for a backend without kernels for this. Source: Luo,
    Chen, Krishnapriyan, ICLR 2024.
    """
    op = "gaunt_convolution"
    lmax, lmax_out = _check(op, x, r, lmax_out, **({} if h is None else {"h": h}))
    if lmax_filter is None:
        lmax_filter = lmax + lmax_out if h is None or h.ndim == 0 else h.shape[-1] - 1
    lmax_filter = check_natural(op, "lmax_filter", lmax_filter)
    if h is not None and h.shape[-1:] != (lmax_filter + 1,):
        raise ValueError(f"{op}: h must be [..., {lmax_filter + 1}], got {list(h.shape)}")
    if method not in (*METHODS, "auto"):
        raise ValueError(f"{op}: method must be one of auto, {', '.join(METHODS)}, got {method!r}")
    if method == "auto":
        method = AUTO
    dtype = x.dtype
    x, r, h = upcast_half(x, r, h)
    if method == "product":
        y = spherical_harmonics(list(range(lmax_filter + 1)), r, True, "integral", backend)
        out = gaunt_tensor_product(x, y, lmax_out, w2=h, odd=odd, backend=backend)
        out = out if odd else [out]
    else:
        registry.resolve(backend, op, None, x.device, x.dtype)  # reference: plain torch so far
        out = _by_rotation(x, r, h, (lmax, lmax_filter, lmax_out), odd)
    out = tuple(t.to(dtype) for t in out)
    return out if odd else out[0]


def _by_rotation(x, r, h, degrees: tuple[int, int, int], odd: bool) -> list[torch.Tensor]:
    """`gaunt_convolution` in the frame of the edge. degrees: lmax, lmax_filter, lmax_out."""
    lmax, lmax_filter, lmax_out = degrees
    null, wigners = _rotation_to_axis(r, max(lmax, lmax_out))
    h = x.new_ones(lmax_filter + 1) if h is None else h
    h = torch.where(null, h * (torch.arange(lmax_filter + 1, device=h.device) == 0), h)
    rotated, out = _rotate(x, wigners), []
    for half in (False, True)[: 1 + odd]:
        w = h @ constants("of_gaunt", *degrees, half, like=h)
        out.append(_rotate(_apply_so2(rotated, w, lmax_out, not half, half), wigners, True))
    return out


def _check_degrees(op: str, lmax: int, lmax_out: int, lmax_filter: int | None) -> tuple[int, int, int]:
    """lmax, lmax_filter and lmax_out as ints."""
    lmax, lmax_out = check_natural(op, "lmax", lmax), check_natural(op, "lmax_out", lmax_out)
    lmax_filter = lmax + lmax_out if lmax_filter is None else check_natural(op, "lmax_filter", lmax_filter)
    return lmax, lmax_filter, lmax_out


def so2_paths(lmax: int, lmax_out: int, lmax_filter: int | None = None) -> list[tuple[int, int, int]]:
    """The paths (l1, l2, l3) of a Clebsch-Gordan convolution, in the order of their weights (lexicographic).

    lmax, lmax_out, lmax_filter: largest l1, l3 and l2; by default every possible l2, up to lmax + lmax_out, which gives
    as many paths as `so2_convolution` has weights. Odd l1 + l2 + l3 included. Raises TypeError or ValueError, naming
    the argument.
    """
    return cg_paths(*_check_degrees("so2_paths", lmax, lmax_out, lmax_filter))


def _map_weights(op: str, w, table: str, degrees: tuple[int, int, int]) -> torch.Tensor:
    if not isinstance(w, torch.Tensor) or not w.is_floating_point():
        raise TypeError(f"{op}: w must be a floating point tensor, got {getattr(w, 'dtype', type(w).__name__)}")
    (wide,) = upcast_half(w)
    matrix = constants(table, *degrees, like=wide)
    if w.ndim == 0 or w.shape[-1] != len(matrix):
        raise ValueError(f"{op}: w must be [..., {len(matrix)}], got {list(w.shape)}")
    return (wide @ matrix).to(w.dtype)


@float32_under_autocast
def so2_weights(w: torch.Tensor, lmax: int, lmax_out: int, lmax_filter: int | None = None) -> torch.Tensor:
    """Weights of `so2_convolution` from the path weights of a Clebsch-Gordan convolution.

    w: [..., paths] in the order of `so2_paths` with the same degrees: e3nn's weights for
    irrep_normalization="component" and path_normalization="none" (for others, times the path's coefficient). Returns
    [..., weights]: W_0, W_1, V_1, W_2, V_2, .. concatenated, W_m and V_m [lmax_out+1-m, lmax+1-m]. With every l2 there
    are as many weights as paths and `so2_path_weights` is the inverse. Raises TypeError or ValueError.
    """
    degrees = _check_degrees("so2_weights", lmax, lmax_out, lmax_filter)
    return _map_weights("so2_weights", w, "from_paths", degrees)


@float32_under_autocast
def so2_path_weights(w: torch.Tensor, lmax: int, lmax_out: int, lmax_filter: int | None = None) -> torch.Tensor:
    """Path weights from the weights of `so2_convolution`, [..., weights] -> [..., paths]: the inverse of `so2_weights`.

    If lmax_filter leaves out some l2, the least-squares path weights: only a left inverse. Raises TypeError or
    ValueError.
    """
    degrees = _check_degrees("so2_path_weights", lmax, lmax_out, lmax_filter)
    return _map_weights("so2_path_weights", w, "to_paths", degrees)


@float32_under_autocast
def so2_convolution(
    x: torch.Tensor, r: torch.Tensor, w: torch.Tensor, lmax_out: int, *, backend: str = "auto"
) -> torch.Tensor:
    """Channelwise Clebsch-Gordan convolution with all paths, odd ones included, in its SO(2) form.

    x: [..., (lmax+1)^2] in e3nn's order. r: [..., 3] edges; only their direction matters. w: [..., weights] from
    `so2_weights`, or free parameters. Leading dimensions broadcast: x [e, C, n] takes r [e, 1, 3], and w per edge and
    channel, or shared. Returns [..., (lmax_out+1)^2]:

        out[l3] = sum over paths of  w[path] sqrt(2 l3 + 1) w3j(l1, l2, l3) x[l1] Y_l2(r),

    Y in normalization "component": e3nn's uvu product of x with the harmonics of r. At r = 0 only the paths with l2 = 0
    contribute, as all other Y are 0 there. Equivariant under rotations; the paths with an odd sum give pseudotensors.
    Smooth wherever `gaunt_convolution` is. Raises TypeError or ValueError, naming the argument; RuntimeError for a
    backend without kernels for this. Source: Passaro, Zitnick, 2302.03655.
    """
    op = "so2_convolution"
    lmax, lmax_out = _check(op, x, r, lmax_out, w=w)
    count = so2.weight_blocks(lmax, lmax_out)[-1][2].stop
    if w.ndim == 0 or w.shape[-1] != count:
        raise ValueError(f"{op}: w must be [..., {count}], got {list(w.shape)}")
    registry.resolve(backend, op, None, x.device, x.dtype)  # reference: plain torch so far
    dtype = x.dtype
    x, r, w = upcast_half(x, r, w)
    null, wigners = _rotation_to_axis(r, max(lmax, lmax_out))
    out = _rotate(_apply_so2(_rotate(x, wigners), w, lmax_out, True, True), wigners, True)
    least = min(lmax, lmax_out)
    alone = scale_degrees(x[..., : (least + 1) ** 2], w @ constants("mean", lmax, lmax_out, like=w))
    return torch.where(null, pad_degrees(alone, lmax_out), out).to(dtype)

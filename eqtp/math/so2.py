"""Tables of products with a function that is symmetric about the polar axis y, in float64. No torch here.

Such a function (the harmonics Y of the axis) has components with m = 0 only, so a product with it preserves |m|. The
part of a Clebsch-Gordan product of x with it, from degree l1 to degree l3, is for each m >= 0

    y[l3, +m] = W_m x[l1, +m] - V_m x[l1, -m]        W_m from the paths (l1, l2, l3) with an even sum,
    y[l3, -m] = V_m x[l1, +m] + W_m x[l1, -m]        V_m from those with an odd one; V_0 = 0:

as many numbers W_0 .. W_k, V_1 .. V_k, k = min(l1, l3), as there are l2 that couple l1 to l3. Source: Passaro, Zitnick,
2302.03655.

The weight w of a path (l1, l2, l3) multiplies sqrt(2 l3 + 1) w3j(l1, l2, l3), with Y in normalization "component" (a
path of e3nn with irrep_normalization="component", path_normalization="none"); so the map from path weights to W and V
has orthogonal columns.
"""

from __future__ import annotations

from functools import lru_cache
from math import pi, sqrt

import numpy as np

from eqtp.math import sphere
from eqtp.math.so3 import cg_paths, wigner_3j


def order(lmax: int) -> np.ndarray:
    """[(lmax+1)^2]: the components by |m|: m = 0, then for each m > 0 the pairs (+m, -m) of degrees m .. lmax."""
    pairs = [l * l + l + s * m for m in range(1, lmax + 1) for l in range(m, lmax + 1) for s in (1, -1)]
    return np.array([l * l + l for l in range(lmax + 1)] + pairs)


def place(lmax: int) -> np.ndarray:
    """[(lmax+1)^2]: the position of each component in `order`."""
    return np.argsort(order(lmax))


def weight_blocks(lmax: int, lmax_out: int, even: bool = True, odd: bool = True) -> list[tuple[str, int, slice]]:
    """("W" or "V", m, slice): the matrices [lmax_out+1-m (l3), lmax+1-m (l1)] that a row of SO(2) weights holds."""
    found, start = [], 0
    for m in range(min(lmax, lmax_out) + 1):
        for name, there in (("W", even), ("V", odd and m > 0)):
            if there:
                size = (lmax_out + 1 - m) * (lmax + 1 - m)
                found.append((name, m, slice(start, start + size)))
                start += size
    return found


@lru_cache(maxsize=64)
def from_paths(lmax: int, lmax_filter: int, lmax_out: int) -> np.ndarray:
    """[paths, weights]: from path weights to SO(2) weights, in the order of `weight_blocks`."""
    places = weight_blocks(lmax, lmax_out)
    out = np.zeros((len(cg_paths(lmax, lmax_filter, lmax_out)), places[-1][2].stop))
    for row, (l1, l2, l3) in zip(out, cg_paths(lmax, lmax_filter, lmax_out), strict=True):
        # [2 l1+1, 2 l3+1], Y of the axis is sqrt(2 l2+1) at m = 0
        c = sqrt((2 * l2 + 1) * (2 * l3 + 1)) * wigner_3j(l1, l2, l3)[:, l2]
        for name, m, at in places:
            if m <= min(l1, l3):
                row[at.start + (l3 - m) * (lmax + 1 - m) + l1 - m] = c[l1 + m, l3 + (m if name == "W" else -m)]
    return out


@lru_cache(maxsize=64)
def to_paths(lmax: int, lmax_filter: int, lmax_out: int) -> np.ndarray:
    """[weights, paths]: the inverse of `from_paths` (where lmax_filter < lmax + lmax_out: least squares).

    The squares of a path's coefficients, summed over m = -l .. l, give 2 l3 + 1, and those of m > 0 occur twice.
    """
    forward = from_paths(lmax, lmax_filter, lmax_out)
    twice = np.concatenate([np.full(at.stop - at.start, 2 if m else 1) for _, m, at in weight_blocks(lmax, lmax_out)])
    l3 = np.array([path[2] for path in cg_paths(lmax, lmax_filter, lmax_out)])
    return twice[:, None] * forward.T / (2 * l3 + 1)


@lru_cache(maxsize=64)
def mean(lmax: int, lmax_out: int) -> np.ndarray:
    """[weights, min(lmax, lmax_out)+1]: the factor of each degree in the average of the product over all directions:
    the paths (l, 0, l)."""
    every = cg_paths(lmax, lmax + lmax_out, lmax_out)
    chosen = [every.index((l, 0, l)) for l in range(min(lmax, lmax_out) + 1)]
    return to_paths(lmax, lmax + lmax_out, lmax_out)[:, chosen]


@lru_cache(maxsize=64)
def of_gaunt(lmax: int, lmax_filter: int, lmax_out: int, odd: bool) -> np.ndarray:
    """[lmax_filter+1, weights of W, or of V (odd)]: SO(2) weights of the Gaunt product, or the bracket, with Y_l of the
    axis ("integral")."""
    coupling = sphere.bracket if odd else sphere.gaunt
    every = cg_paths(lmax, lmax_filter, lmax_out)
    share = np.zeros((lmax_filter + 1, len(every)))
    for n, (l1, l2, l3) in enumerate(every):
        share[l2, n] = (coupling(l1, l2, l3) * wigner_3j(l1, l2, l3)).sum() / sqrt(4 * pi * (2 * l3 + 1))
    columns = [np.arange(at.start, at.stop) for name, _, at in weight_blocks(lmax, lmax_out) if name == "WV"[odd]]
    return (share @ from_paths(lmax, lmax_filter, lmax_out))[:, np.concatenate(columns) if columns else []]


@lru_cache(maxsize=64)
def step(l: int) -> np.ndarray:
    """C [2 l+1, (2 l-1) 3], an isometry: Wigner's D_l = C (D_(l-1) x D_1) C^T."""
    return sqrt(2 * l + 1) * wigner_3j(l - 1, 1, l).reshape(-1, 2 * l + 1).T

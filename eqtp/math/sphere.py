"""Tables of the Gaunt product and of its odd half, in float64: grids, folded transforms, couplings. No torch here.

Conventions of e3nn: y is the polar axis, x = sin(beta) sin(alpha), y = cos(beta), z = sin(beta) cos(alpha); components
m = -l..l; "integral":

    Y_lm = P_l^|m|(beta) A_m(alpha),    A_m = sqrt(2) sin(|m| alpha), 1, sqrt(2) cos(m alpha)  for m < 0, m = 0, m > 0.

Folding. Y_lm is even or odd under each of x -> -x, y -> -y, z -> -z: x flips its sign where m < 0, y where l - |m| is
odd, z where one of "m is odd", "m < 0" holds. So f on the eight images of a point is the Hadamard transform
(butterflies) of eight sums, each over the components of one kind, and only the octant x, y, z > 0 needs tables.
Components are kept in blocks [2, M, 2, K], at (x, m, y, k):

    x = 1 where the order is negative,  m = |order|,  y = (l - m) mod 2,  k = (l - m - y) / 2,
    M = lmax + 1 rounded up to even,  K = lmax // 2 + 1.

A kind is named by the parity of m instead of z, which only reorders the images of a point. The Fourier series in beta
(`eqtp.math.fourier`) has the same blocks, as its frequencies u have the parity of l: u = 2 q + (m + y) mod 2 takes the
place of the rows of the grid.
"""

from __future__ import annotations

from functools import lru_cache
from math import pi, sqrt
from typing import NamedTuple

import numpy as np
from numpy.polynomial.legendre import leggauss

from eqtp.math.so3 import gaunt, wigner_3j


class Grid(NamedTuple):
    """Rows of constant beta, Gauss-Legendre, times evenly spaced columns of constant alpha."""

    cosine: np.ndarray  # [rows] cos(beta), increasing
    weight: np.ndarray  # [rows] of each point of the row; all weights add up to 4 pi
    alpha: np.ndarray  # [columns]


def minimal_size(degree: int) -> tuple[int, int]:
    """Fewest rows and columns that integrate every polynomial of this degree over the sphere exactly."""
    return degree // 2 + 1, degree + 1


def folded_size(degree: int) -> tuple[int, int]:
    """The same for a grid that the three reflections map to itself with no fixed point: an even number of rows, a
    multiple of 4 columns."""
    rows, columns = minimal_size(degree)
    return rows + rows % 2, columns + -columns % 4


def grid(rows: int, columns: int, offset: float = 0.0) -> Grid:
    """offset: of the first column, in columns; a folded grid has 1/2."""
    cosine, weight = leggauss(rows)
    return Grid(cosine, weight * (2 * pi / columns), 2 * pi * (np.arange(columns) + offset) / columns)


def legendre(lmax: int, cosine: np.ndarray) -> np.ndarray:
    """P [lmax+1 (l), lmax+1 (m >= 0), n] at cos(beta), normalised as in the head of this file; 0 for m > l.

    Source: the recursion in l at fixed m, stable upwards (Holmes and Featherstone, J. Geodesy 76, 2002).
    """
    sine = np.sqrt((1 - cosine) * (1 + cosine))
    p = np.zeros((lmax + 1, lmax + 1, len(cosine)))
    p[0, 0] = sqrt(1 / (4 * pi))
    for m in range(lmax + 1):
        if m:
            p[m, m] = sqrt((2 * m + 1) / (2 * m)) * sine * p[m - 1, m - 1]
        for l in range(m + 1, lmax + 1):
            a = sqrt((4 * l * l - 1) / (l * l - m * m))
            b = sqrt(((l - 1) ** 2 - m * m) / (4 * (l - 1) ** 2 - 1)) if l > m + 1 else 0.0
            p[l, m] = a * (cosine * p[l - 1, m] - b * p[l - 2, m])
    return p


def legendre_gradient(lmax: int, cosine: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """dP / dbeta and m P / sin(beta), [lmax+1, lmax+1, n] each, away from the poles, without cancellation."""
    p = legendre(lmax, cosine)
    slope = np.zeros_like(p)
    for l in range(1, lmax + 1):
        slope[l, 0] = -sqrt(l * (l + 1)) * p[l, 1]
        for m in range(1, l + 1):
            higher = sqrt((l - m) * (l + m + 1)) * p[l, m + 1] if m < l else 0.0
            slope[l, m] = (sqrt((l + m) * (l - m + 1)) * p[l, m - 1] - higher) / 2
    return slope, np.arange(lmax + 1)[:, None] * p / np.sqrt((1 - cosine) * (1 + cosine))


def azimuth(lmax: int, alpha: np.ndarray) -> np.ndarray:
    """A [2 lmax+1, n], m = -lmax..lmax."""
    m = np.arange(1, lmax + 1)[:, None] * alpha
    return np.concatenate([sqrt(2) * np.sin(m)[::-1], np.ones((1, len(alpha))), sqrt(2) * np.cos(m)])


def _orders(lmax: int) -> tuple[np.ndarray, np.ndarray]:
    """l and m of each component, [(lmax+1)^2]."""
    l = np.repeat(np.arange(lmax + 1), 2 * np.arange(lmax + 1) + 1)
    return l, np.arange((lmax + 1) ** 2) - l * l - l


def synthesis(lmax: int, points: Grid) -> np.ndarray:
    """Y [(lmax+1)^2, rows, columns]; Y times `points.weight[:, None]` is the projection."""
    l, m = _orders(lmax)
    return legendre(lmax, points.cosine)[l, abs(m)][:, :, None] * azimuth(lmax, points.alpha)[lmax + m][:, None]


def synthesis_gradient(lmax: int, points: Grid) -> tuple[np.ndarray, np.ndarray]:
    """dY / dbeta and dY / dalpha / sin(beta), [(lmax+1)^2, rows, columns] each. dA_m / dalpha = -m A_-m."""
    l, m = _orders(lmax)
    slope, steep = legendre_gradient(lmax, points.cosine)
    a = azimuth(lmax, points.alpha)
    return slope[l, abs(m)][:, :, None] * a[lmax + m][:, None], (-np.sign(m)[:, None] * steep[l, abs(m)])[
        :, :, None
    ] * a[lmax - m][:, None]


def block_shape(lmax: int) -> tuple[int, int, int]:
    """M, 2, K: the shape of blocks without x."""
    return lmax + 1 + (lmax + 1) % 2, 2, lmax // 2 + 1


class Blocks(NamedTuple):
    """The position of each component of degrees 0..lmax in blocks, and the reverse."""

    take: np.ndarray  # [2, M, 2, K] the component at each place, (lmax+1)^2 where there is none
    place: np.ndarray  # [(lmax+1)^2] the place of each component, in `take` flattened


@lru_cache(maxsize=64)
def blocks(lmax: int) -> Blocks:
    """Both maps for the degrees 0..lmax."""
    l, m = _orders(lmax)
    shape = (2, *block_shape(lmax))
    y = (l - abs(m)) % 2
    place = np.ravel_multi_index(((m < 0).astype(int), abs(m), y, (l - abs(m) - y) // 2), shape)
    take = np.full(shape, len(l))
    take.flat[place] = np.arange(len(l))
    return Blocks(take, place)


def in_blocks(lmax: int, values: np.ndarray) -> np.ndarray:
    """[lmax+1 (l), lmax+1 (m), n] -> [M, 2, K, n]"""
    out = np.zeros((*block_shape(lmax), values.shape[-1]))
    for m in range(lmax + 1):
        for l in range(m, lmax + 1):
            out[m, (l - m) % 2, (l - m) // 2] = values[l, m]
    return out


class Fold(NamedTuple):
    """Transforms between components in blocks and the octant of a folded grid: R = rows / 2 rows with y > 0, Q =
    columns / 4 columns.

    Synthesis at the images of a point, and projection from the eight images to each kind:

        part[x, p, y, r, c] = sum over m = p mod 2 of azimuth[x, m, c] sum over k of legendre[m, y, k, r] f[x, m, y, k]
        value[.., r, c]     = butterflies of part over x, p, y
        f[x, m, y, k]       = sum over r of projection[m, y, k, r] sum over c of azimuth[x, m, c]
                              (butterflies of value)[x, m mod 2, y, r, c]

    d/dbeta is the same with `slope`, its part for y at index 1 - y; d/dalpha / sin(beta) with `steep` and `turned`, at
    index 1 - x.
    """

    legendre: np.ndarray  # [M, 2, K, R]
    slope: np.ndarray  # [M, 2, K, R]
    steep: np.ndarray  # [M, 2, K, R]
    azimuth: np.ndarray  # [2, M, Q]
    turned: np.ndarray  # [2, M, Q] derivative of azimuth, divided by m
    projection: np.ndarray  # [M, 2, K, R] legendre times weight


@lru_cache(maxsize=64)
def fold(lmax: int, rows: int, columns: int) -> Fold:
    """Tables of degrees 0..lmax on the folded grid. Raises ValueError unless rows is even and columns a multiple of
    4."""
    if rows % 2 or columns % 4:
        raise ValueError(f"fold: a folded grid has even rows and columns in fours, got {rows} x {columns}")
    points = grid(rows, columns, 0.5)
    cosine, weight, alpha = points.cosine[rows // 2 :], points.weight[rows // 2 :], points.alpha[: columns // 4]
    p, slope, steep = (in_blocks(lmax, t) for t in (legendre(lmax, cosine), *legendre_gradient(lmax, cosine)))
    a, turned = np.zeros((2, 2, len(p), len(alpha)))  # [2, M, Q] each
    m = np.arange(lmax + 1)[:, None] * alpha
    a[0, : lmax + 1], a[1, : lmax + 1] = sqrt(2) * np.cos(m), sqrt(2) * np.sin(m)
    a[0, 0] = 1
    turned[0], turned[1] = -a[1], a[0]
    return Fold(p, slope, steep, a, turned, p * weight)


class Octant(NamedTuple):
    """The transforms of `Fold` as one dense matrix for each kind 4 x + 2 p + y: P = R Q points, the components of a
    kind padded to N.

    Derivatives take kind k to kind k ^ 1 (d/dbeta) and k ^ 4 (d/dalpha / sin(beta)): their matrices are stored there.
    """

    take: np.ndarray  # [8, N] the components of each kind, (lmax+1)^2 where there is none
    place: np.ndarray  # [(lmax+1)^2] the place of each component, in `take` flattened
    values: np.ndarray  # [8, P, N]
    down: np.ndarray  # [8, P, N] of the components take[k ^ 1]
    east: np.ndarray  # [8, P, N] of the components take[k ^ 4]
    projection: np.ndarray  # [8, N, P]


@lru_cache(maxsize=64)
def octant(lmax: int, rows: int, columns: int) -> Octant:
    """The tables of `fold` for the same grid, without its sparsity in m."""
    f, n = fold(lmax, rows, columns), (lmax + 1) ** 2
    x, m, y, k = np.unravel_index(blocks(lmax).place, blocks(lmax).take.shape)  # [n] each
    kind = 4 * x + 2 * (m % 2) + y
    members = [np.flatnonzero(kind == j) for j in range(8)]
    take = np.full((8, max(map(len, members))), n)
    place = np.zeros(n, int)
    for j, of_kind in enumerate(members):
        take[j, : len(of_kind)] = of_kind
        place[of_kind] = j * take.shape[1] + np.arange(len(of_kind))

    def matrices(legendre: np.ndarray, azimuth: np.ndarray, flip: int) -> np.ndarray:
        dense = (legendre[m, y, k][:, :, None] * azimuth[x, m][:, None]).reshape(n, -1)  # [n, P]
        return np.append(dense, np.zeros((1, dense.shape[1])), 0)[take[np.arange(8) ^ flip]]  # [8, N, P]

    transposed = [
        matrices(*t).transpose(0, 2, 1)
        for t in ((f.legendre, f.azimuth, 0), (f.slope, f.azimuth, 1), (f.steep, f.turned, 4))
    ]
    return Octant(take, place, *transposed, matrices(f.projection, f.azimuth, 0))


@lru_cache(maxsize=1)
def hadamard() -> np.ndarray:
    """[8, 8]: the butterflies over x, p and y at once; symmetric."""
    h = np.array([[1.0, 1.0], [1.0, -1.0]])
    return np.kron(h, np.kron(h, h))


def bracket(l1: int, l2: int, l3: int) -> np.ndarray:
    """Integral of r . (grad Y1 x grad Y2) Y3 over the sphere: float64 [2 l1+1, 2 l2+1, 2 l3+1]. Zero for even l1 + l2 +
    l3.

    Equal to ``sqrt((2 l1 + 1)(2 l2 + 1)(2 l3 + 1) / 4 pi) sqrt(l1 (l1 + 1) l2 (l2 + 1)) |(l1 l2 l3; 1 -1 0)|
    wigner_3j(l1, l2, l3)``. Raises ValueError unless |l1 - l2| <= l3 <= l1 + l2. Source: arXiv 2605.15073.
    """
    c = wigner_3j(l1, l2, l3)
    if (l1 + l2 + l3) % 2 == 0 or l1 == 0 or l2 == 0:
        return np.zeros_like(c)
    size = (2 * l1 + 1) * (2 * l2 + 1) * (2 * l3 + 1) * l1 * (l1 + 1) * l2 * (l2 + 1) / (4 * pi)
    return sqrt(size) * abs(c[l1 + 1, l2 - 1, l3]) * c  # for an odd sum this entry is +-(l1 l2 l3; 1 -1 0)


class GauntTable(NamedTuple):
    """out[k] = sum of c x1[i] x2[j] over the entries; sorted by k, then i, then j."""

    i: np.ndarray  # [nnz]
    j: np.ndarray  # [nnz]
    k: np.ndarray  # [nnz]
    c: np.ndarray  # [nnz]


@lru_cache(maxsize=64)
def table(lmax1: int, lmax2: int, lmax_out: int, odd: bool = False) -> GauntTable:
    """The non-zero integrals of three harmonics, or (odd) of the bracket of two and a third."""
    found = []
    for l1 in range(lmax1 + 1):
        for l2 in range(lmax2 + 1):
            for l3 in range(abs(l1 - l2), min(l1 + l2, lmax_out) + 1):
                if (l1 + l2 + l3) % 2 == odd:
                    c = (bracket if odd else gaunt)(l1, l2, l3)
                    i, j, k = np.nonzero(c)
                    found.append((i + l1 * l1, j + l2 * l2, k + l3 * l3, c[i, j, k]))
    i, j, k, c = (
        (np.concatenate(column) for column in zip(*found, strict=True))
        if found
        else (np.zeros(0, int),) * 3 + (np.zeros(0),)
    )
    order = np.lexsort((j, i, k))
    return GauntTable(i[order], j[order], k[order], c[order])


def coupling(lmax1: int, lmax2: int, lmax_out: int, odd: bool = False) -> np.ndarray:
    """`table` as a dense array: [(lmax1+1)^2, (lmax2+1)^2, (lmax_out+1)^2]."""
    t = table(lmax1, lmax2, lmax_out, odd)
    c = np.zeros([(l + 1) ** 2 for l in (lmax1, lmax2, lmax_out)])
    c[t.i, t.j, t.k] = t.c
    return c


def matrices(lmax: int, s: int) -> np.ndarray:
    """M [(lmax+1)^2, 2 s+1, 2 s+1] of the matrix product (`eqtp.ops.matrix_tensor_product`)."""
    scale = [(-1) ** (l // 2) * sqrt((2 * s + 1) * (2 * l + 1) / (4 * pi)) for l in range(lmax + 1)]
    return np.concatenate([scale[l] * wigner_3j(s, s, l).transpose(2, 1, 0) for l in range(lmax + 1)])


def transform_flops(lmax: int, rows: int, columns: int) -> int:
    """Operations of one transform of degrees 0..lmax on a folded grid: butterflies included, empty places not."""
    kinds = 4 * lmax or 1  # (x, m, y) with a component
    return (lmax + 1) ** 2 * rows + (2 * kinds + 24) * (rows * columns // 8)


def folded_flops(lmax1: int, lmax2: int, lmax_out: int, odd: bool = False) -> int:
    """Operations of one product on the folded grid: its transforms and the products of values."""
    rows, columns = folded_size(lmax1 + lmax2 + lmax_out)
    f1, f2, out = (transform_flops(l, rows, columns) for l in (lmax1, lmax2, lmax_out))
    return f1 + f2 + out + rows * columns + (2 * f1 + 2 * f2 + out + 3 * rows * columns if odd else 0)

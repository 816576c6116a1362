"""How much each product of two features can express, computed from its coupling coefficients. No torch here.

Every product couples degrees (l1, l2, l3) by w3j(l1, l2, l3) times a coefficient of its own. Products differ in which
coefficients are zero and in how many of the others a layer can set: in a Clebsch-Gordan product each path has a weight;
in the others each degree of x1, of x2 and of the output has one, so the coefficient of a path is multiplied by a[l1]
b[l2] c[l3].
"""

from __future__ import annotations

import operator
from functools import cache

import numpy as np

from eqtp.math import sphere, vector_signals
from eqtp.math.so3 import wigner_3j

PRODUCTS = ("cg", "gaunt", "gaunt+odd", "matrix", "vector")
# Coefficients below this are zero; the others are above 1e-3 for all degrees of practical use
ZERO_COEFFICIENT = 1e-10


@cache
def _outputs(product: str, l1: int, l2: int, l3: int, s: int) -> tuple[int, ...]:
    """The outputs that the path contributes to: 0, or 1 for the second of a pair; none where its coefficient is zero.

    s: spin of the matrices, for the matrix product.
    """
    if product == "cg":
        return (0,)
    if product == "matrix":
        # a triangle of (s, s, l) is the 6j symbol {l1 l2 l3; s s s} times w3j(l1, l2, l3): one entry tells
        w = wigner_3j(l1, l2, l3)
        at = np.unravel_index(np.abs(w).argmax(), w.shape)
        a, b, c = (wigner_3j(s, s, l)[:, :, m] for l, m in zip((l1, l2, l3), at, strict=True))
        return (0,) if abs(np.trace(a @ b @ c.T) / w[at]) > ZERO_COEFFICIENT else ()
    if product == "vector":  # with the default legs of its op
        return (0,) if np.abs(vector_signals.coupling((l1, l2, l3), (-1, -1, -1))).max() > ZERO_COEFFICIENT else ()
    halves = (sphere.gaunt, sphere.bracket) if product == "gaunt+odd" else (sphere.gaunt,)
    return tuple(n for n, half in enumerate(halves) if np.abs(half(l1, l2, l3)).max() > ZERO_COEFFICIENT)


def _paths(name: str, product: str, lmax: int, lmax_out: int | None) -> list[tuple[int, int, int, int]]:
    """(l1, l2, l3, output) of every path that is not zero."""
    if product not in PRODUCTS:
        raise ValueError(f"{name}: product must be one of {', '.join(PRODUCTS)}, got {product!r}")
    try:
        lmax = operator.index(lmax)
        top = 2 * lmax if lmax_out is None else operator.index(lmax_out)
    except TypeError:
        raise TypeError(f"{name}: lmax and lmax_out must be integers, got {lmax!r} and {lmax_out!r}") from None
    if lmax < 0 or top < 0:
        raise ValueError(f"{name}: lmax and lmax_out must not be negative, got {lmax} and {top}")
    s = (max(lmax, top) + 1) // 2
    degrees = (
        (l1, l2, l3)
        for l1 in range(lmax + 1)
        for l2 in range(lmax + 1)
        for l3 in range(abs(l1 - l2), min(l1 + l2, top) + 1)
    )
    return [(*path, n) for path in degrees for n in _outputs(product, *path, s if product == "matrix" else 0)]


def expressivity(product: str, lmax: int, lmax_out: int | None = None) -> int:
    """Degrees of freedom of one product of x1 and x2, degrees 0..lmax, one channel each, to degrees 0..lmax_out (by
    default 2 lmax).

    product: "cg", "gaunt", "gaunt+odd" (the product and the bracket, with their own output weights), "matrix" or
    "vector" (with legs -1, -1, -1). Returns the dimension of the set of bilinear maps that its weights reach: the rank
    of the derivative of the paths' coefficients by the weights, where no weight is zero. There the logarithm of a
    coefficient is the sum of the logarithms of its weights, so the rank is that of a matrix of zeros and ones. Raises
    TypeError or ValueError, naming the argument. Source: Xie et al., 2506.13523 (the definition).
    """
    paths = _paths("expressivity", product, lmax, lmax_out)
    if product == "cg":
        weights = [[path] for path in paths]
    else:
        weights = [[("x1", l1), ("x2", l2), ("out", l3, n)] for l1, l2, l3, n in paths]
    columns = {w: n for n, w in enumerate(dict.fromkeys(w for row in weights for w in row))}
    incidence = np.zeros((len(paths), len(columns)))  # [paths, weights]
    for row, used in zip(incidence, weights, strict=True):
        row[[columns[w] for w in used]] = 1
    return int(np.linalg.matrix_rank(incidence))


def interactability(product: str, lmax: int, lmax_out: int | None = None) -> set[tuple[int, int, int]]:
    """The (l1, l2, l3) that the product couples: l1, l2 up to lmax, l3 up to lmax_out (by default 2 lmax). Arguments
    and errors as for `expressivity`."""
    return {path[:3] for path in _paths("interactability", product, lmax, lmax_out)}

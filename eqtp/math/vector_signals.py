"""Vector functions on the sphere by their coefficients: vector spherical harmonics and the products of three of them.
No torch here.

    V^(j, l)_m(r) = sqrt(2 j + 1) sum over n, a of w3j(l, 1, j)[n, a, m] Y_ln(r) e_a,        l = j - 1, j or j + 1,

orthonormal on the sphere. A leg of -1, 0 or 1 selects l = |j + leg|. Degree j = 0 has l = 1 only: legs -1 and 1 both
select it; leg 0 leaves it out.
"""

from __future__ import annotations

from functools import lru_cache
from math import sqrt

import numpy as np

from eqtp.math.so3 import gaunt, wigner_3j

LEGS = (-1, 0, 1)


def degree(j: int, leg: int) -> int | None:
    """l of the harmonic of degree j; None if there is none."""
    return abs(j + leg) if j or leg else None


def top(lmax: int, leg: int) -> int:
    """Largest l of the harmonics of degrees 0..lmax."""
    return max(degree(j, leg) or 0 for j in range(lmax + 1))


def harmonic(j: int, l: int) -> np.ndarray:
    """V^(j, l) as coefficients of Y_l, [2 j+1, 3, 2 l+1]."""
    return sqrt(2 * j + 1) * wigner_3j(l, 1, j).transpose(2, 1, 0)


@lru_cache(maxsize=64)
def harmonics(lmax: int, leg: int) -> np.ndarray:
    """The vector harmonics of degrees 0..lmax as coefficients of three functions: [(lmax+1)^2, 3, (top+1)^2]."""
    out = np.zeros(((lmax + 1) ** 2, 3, (top(lmax, leg) + 1) ** 2))
    for j in range(lmax + 1):
        l = degree(j, leg)
        if l is not None:
            out[j * j : (j + 1) ** 2, :, l * l : (l + 1) ** 2] = harmonic(j, l)
    return out


def coupling(degrees: tuple[int, int, int], legs: tuple[int, int, int]) -> np.ndarray:
    """Integral of V1 . (V2 x V3) over the sphere: [2 j1+1, 2 j2+1, 2 j3+1]. Zero where a harmonic or the path (l1, l2,
    l3) does not exist.

    Up to the sign, sqrt(6 (2 j1 + 1)(2 j2 + 1)(2 j3 + 1)) g(l1, l2, l3) {l1 l2 l3; 1 1 1; j1 j2 j3} w3j(j1, j2, j3),
    where g w3j = gaunt(l1, l2, l3): l1 + l2 + l3 must be even, j1 + j2 + j3 need not. Source: Xie et al., 2602.21466.
    """
    l = [degree(j, leg) for j, leg in zip(degrees, legs, strict=True)]
    if None in l or not abs(l[0] - l[1]) <= l[2] <= l[0] + l[1] or sum(l) % 2:
        return np.zeros([2 * j + 1 for j in degrees])
    v1, v2, v3 = (harmonic(j, n) for j, n in zip(degrees, l, strict=True))
    g = np.einsum("iap,pqr->iaqr", v1, gaunt(*l))
    cross = sum(
        np.einsum("iqr,jq->ijr", g[:, a], v2[:, (a + s) % 3])[..., None, :] * s * v3[:, (a - s) % 3]
        for a in range(3)
        for s in (1, -1)
    )
    return cross.sum(-1)

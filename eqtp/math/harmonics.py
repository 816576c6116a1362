"""Constants of the spherical harmonics' recursion and of their gradients, in float64, for all kernels.

The formulas are in `eqtp.ops.spherical_harmonics`. No torch here.
"""

from __future__ import annotations

from functools import lru_cache
from math import pi, sqrt

import numpy as np

from eqtp.math.so3 import wigner_3j

NORMALIZATIONS = ("integral", "component", "norm")


def _scale(l: int, normalization: str) -> float:
    """|Y_l| over that of "integral"."""
    return {"integral": 1.0, "component": sqrt(4 * pi), "norm": sqrt(4 * pi / (2 * l + 1))}[normalization]


@lru_cache(maxsize=256)
def constants(lmax: int, normalization: str) -> np.ndarray:
    """[(lmax+1)(lmax+2)/2, 4]: a, b, e, f of each (m, l), m from 0 to lmax and l from m to lmax
    (csrc/harmonics/harmonics.h).

    P_mm = a, P_lm = a y P_(l-1)m + b r^2 P_(l-2)m;  dP_lm/dy = e P_(l-1)m,  dP_lm/dx = x f P_(l-1)(m+1).
    """
    s = [_scale(l, normalization) for l in range(lmax + 1)]
    rows, first = [], sqrt(1 / (4 * pi))
    for m in range(lmax + 1):
        if m:
            first *= sqrt((2 * m + 1) / (2 * m)) * (sqrt(2) if m == 1 else 1)
        rows.append((first * s[m], 0.0, 0.0, 0.0))
        for l in range(m + 1, lmax + 1):
            one = sqrt((2 * l + 1) / (2 * l - 1) * (l - m) / (l + m)) * s[l] / s[l - 1]  # one degree down
            b = f = 0.0
            if l > m + 1:
                two = (
                    sqrt((2 * l + 1) / (2 * l - 3) * (l - m) * (l - m - 1) / ((l + m) * (l + m - 1))) * s[l] / s[l - 2]
                )
                b = -(l + m - 1) / (l - m) * two
                f = -sqrt((2 * l + 1) / (2 * l - 1) * (l - m) * (l - m - 1) / (1 if m else 2)) * s[l] / s[l - 1]
            rows.append(((2 * l - 1) / (l - m) * one, b, (l + m) * one, f))
    return np.array(rows)


@lru_cache(maxsize=64)
def gradient_map(degrees: tuple[int, ...], normalization: str) -> np.ndarray:
    """D [3, columns, lmax^2]: d S_c / d x_a = sum_j D[a, c, j] S_j, S_j the "integral" solid harmonics of degrees 0 ..
    lmax - 1.

    Source: gradient formula of the solid harmonics (Varshalovich 5.8.3), with the coupling written as a 3j symbol.
    """
    lmax = max(degrees, default=0)
    D = np.zeros((3, sum(2 * l + 1 for l in degrees), max(lmax, 1) ** 2))
    at = 0
    for l in degrees:
        if l:
            coupling = wigner_3j(l - 1, 1, l) * (2 * l + 1) * sqrt(l) * _scale(l, normalization)  # [2l-1, 3, 2l+1]
            D[:, at : at + 2 * l + 1, (l - 1) ** 2 : l * l] = coupling.transpose(1, 2, 0)
        at += 2 * l + 1
    return D


def columns(degrees) -> list[int]:
    """Index of each column among the components of degrees 0 .. lmax; empty if the columns are all of these, in
    order."""
    found = [l * l + i for l in degrees for i in range(2 * l + 1)]
    return [] if found == list(range((max(degrees, default=0) + 1) ** 2)) else found


def table_columns(degrees: tuple[int, ...], normalization: str) -> tuple[list[list[int]], np.ndarray]:
    """What csrc/harmonics/harmonics.h is made of: [lmax, number of columns], `columns`, and `constants`, flat."""
    lmax = max(degrees, default=0)
    return [[lmax, sum(2 * l + 1 for l in degrees)], columns(degrees)], constants(lmax, normalization).ravel()


@lru_cache(maxsize=256)
def tables(degrees, normalization: str) -> tuple[np.ndarray, list[int], list[int]]:
    """constants [(lmax+1)(lmax+2)/2, 4] float64; start [(lmax+1)^2 + 1], column [columns]: component k is in the
    columns column[start[k]:start[k+1]]."""
    lmax, components = max(degrees, default=0), [l * l + i for l in degrees for i in range(2 * l + 1)]
    where = [[j for j, k in enumerate(components) if k == n] for n in range((lmax + 1) ** 2)]
    start = [0]
    for columns in where:
        start.append(start[-1] + len(columns))
    return constants(lmax, normalization), start, [j for columns in where for j in columns]

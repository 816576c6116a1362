"""Coupling coefficients of SO(3) in the real basis of e3nn (>= 0.5): NumPy float64, accurate to the last bits.

The complex coefficients come from integer arithmetic (Racah's sum written with binomials), so no digits are
lost at any degree. The change to real harmonics only adds and subtracts bitwise equal numbers: what is zero in
exact arithmetic is zero here.
"""

from __future__ import annotations

import operator
from functools import cache, lru_cache
from math import comb, pi, sqrt
from typing import NamedTuple

import numpy as np


def wigner_3j(l1: int, l2: int, l3: int) -> np.ndarray:
    """Real invariant tensor of three degrees, Frobenius norm 1: float64 [2 l1 + 1, 2 l2 + 1, 2 l3 + 1].

    Components run m = -l..l; y is the polar axis; l = 1 is (x, y, z). Sign convention of e3nn >= 0.5 (factor
    (-i)^l in the change of basis). The array is shared and read-only.
    Raises ValueError unless |l1 - l2| <= l3 <= l1 + l2.
    Source: Racah's formula; Varshalovich, Moskalev, Khersonskii, Quantum Theory of Angular Momentum, 8.2.
    """
    return _wigner_3j(*_check("wigner_3j", l1, l2, l3))


def gaunt(l1: int, l2: int, l3: int) -> np.ndarray:
    """Integral of three real spherical harmonics over the sphere: float64 [2 l1 + 1, 2 l2 + 1, 2 l3 + 1].

    The harmonics are orthonormal on the sphere (``normalization="integral"``). Zero if l1 + l2 + l3 is odd.
    The array is shared and read-only. Raises ValueError unless |l1 - l2| <= l3 <= l1 + l2. Equal to
    ``sqrt((2 l1 + 1)(2 l2 + 1)(2 l3 + 1) / 4 pi) |(l1 l2 l3; 0 0 0)| wigner_3j(l1, l2, l3)``.
    """
    return _gaunt(*_check("gaunt", l1, l2, l3))


def _check(name: str, *degrees) -> tuple[int, int, int]:
    try:
        l1, l2, l3 = (operator.index(l) for l in degrees)
    except TypeError:
        raise ValueError(f"{name}: the degrees must be integers, got {degrees}") from None
    if min(l1, l2, l3) < 0 or not abs(l1 - l2) <= l3 <= l1 + l2:
        raise ValueError(f"{name}: degrees must satisfy 0 <= |l1 - l2| <= l3 <= l1 + l2, got {degrees}")
    return l1, l2, l3


@cache
def _wigner_3j(l1: int, l2: int, l3: int) -> np.ndarray:
    c = _su2(l1, l2, l3).astype(np.complex128)  # [2*l1+1, 2*l2+1, 2*l3+1]
    c = np.tensordot(_to_real(l1), c, (0, 0))
    c = np.tensordot(_to_real(l2), c, (0, 1))
    c = np.tensordot(_to_real(l3).conj(), c, (0, 2))  # axes now l3, l2, l1
    # The entries of _to_real are +-1 and +-i: the factor 1/sqrt(2) of each m != 0 is put in here, at the end.
    s1, s2, s3 = (np.where(np.arange(-l, l + 1) == 0, 1.0, sqrt(0.5)) for l in (l1, l2, l3))
    scale = s1[:, None, None] * s2[:, None] * s3 / sqrt(2 * l3 + 1)
    out = np.ascontiguousarray(c.real.transpose(2, 1, 0)) * scale
    out.flags.writeable = False
    return out


@cache
def _gaunt(l1: int, l2: int, l3: int) -> np.ndarray:
    zero = abs(_su2(l1, l2, l3)[l1, l2, l3])  # = sqrt(2 l3 + 1) |(l1 l2 l3; 0 0 0)|
    out = sqrt((2 * l1 + 1) * (2 * l2 + 1) / (4 * pi)) * zero * _wigner_3j(l1, l2, l3)
    out.flags.writeable = False
    return out


@cache
def _to_real(l: int) -> np.ndarray:
    """Complex [m] to real [m'] harmonics times (-i)^l, with every 1/sqrt(2) left out: entries 0, +-1, +-i."""
    q = np.zeros((2 * l + 1, 2 * l + 1), dtype=np.complex128)  # [m, m']
    q[l, l] = 1
    for m in range(1, l + 1):
        q[l - m, l + m], q[l - m, l - m] = 1, -1j
        q[l + m, l + m], q[l + m, l - m] = (-1) ** m, 1j * (-1) ** m
    return (1, -1j, -1, 1j)[l % 4] * q


@lru_cache(maxsize=256)
def _su2(j1: int, j2: int, j3: int) -> np.ndarray:
    """Clebsch-Gordan coefficients <j1 m1 j2 m2 | j3 m1+m2>: [2 j1 + 1, 2 j2 + 1, 2 j3 + 1].

    Each is sign(s) sqrt(s^2 a / b) with integers s, a, b; the quotient of integers is rounded once.
    """
    n0, n1, n2 = j1 + j2 - j3, j1 - j2 + j3, j2 + j3 - j1
    signed = [(-1) ** z * comb(n0, z) for z in range(n0 + 1)]
    row1, row2 = ([comb(n, z) for z in range(n + 1)] for n in (n1, n2))
    b1, b2, b3 = ([comb(2 * j, j + m) for m in range(-j, j + 1)] for j in (j1, j2, j3))
    a, b = comb(2 * j1, n0) * comb(2 * j2, n0), comb(j1 + j2 + j3 + 1, n0)
    c = np.zeros((2 * j1 + 1, 2 * j2 + 1, 2 * j3 + 1))
    for m1 in range(-j1, j1 + 1):
        for m2 in range(max(-j2, -j3 - m1), min(j2, j3 - m1) + 1):
            p, q = j1 - m1, j2 + m2
            s = 0
            for z in range(max(0, p - n1, q - n2), min(n0, p, q) + 1):
                s += signed[z] * row1[p - z] * row2[q - z]
            value = sqrt(s * s * a / (b * b1[j1 + m1] * b2[j2 + m2] * b3[j3 + m1 + m2]))
            c[j1 + m1, j2 + m2, j3 + m1 + m2] = value if s >= 0 else -value
    return c


def cg_paths(lmax1: int, lmax2: int, lmax_out: int) -> list[tuple[int, int, int]]:
    """The paths (l1, l2, l3) of the Clebsch-Gordan product, in the order of its weights: l1, then l2, then l3,
    increasing."""
    pairs = ((l1, l2) for l1 in range(lmax1 + 1) for l2 in range(lmax2 + 1))
    return [(l1, l2, l3) for l1, l2 in pairs for l3 in range(abs(l1 - l2), min(l1 + l2, lmax_out) + 1)]


class CgPair(NamedTuple):
    """All paths of degrees l1, l2 in a Clebsch-Gordan product, their outputs one after the other."""

    coupling: np.ndarray  # [(2 l1+1) (2 l2+1), components]
    path: np.ndarray  # int [components], among the paths of these degrees


@lru_cache(maxsize=256)
def cg_pair(l1: int, l2: int, lmax_out: int) -> CgPair:
    """The paths (l1, l2, l3) with l3 up to lmax_out; there must be one."""
    met = range(abs(l1 - l2), min(l1 + l2, lmax_out) + 1)
    parts = [sqrt(2 * l3 + 1) * wigner_3j(l1, l2, l3).reshape(-1, 2 * l3 + 1) for l3 in met]
    return CgPair(np.concatenate(parts, 1), np.repeat(np.arange(len(met)), [2 * l3 + 1 for l3 in met]))

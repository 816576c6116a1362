"""Variances of the components of Gaunt products, and the scales by which layers make them 1. No torch here."""

from __future__ import annotations

from functools import lru_cache
from math import comb, factorial, pi, prod

import numpy as np

from eqtp.math import sphere

ZERO_VARIANCE = 1e-12  # variances below this are zero


def product_variance(lmax1: int, lmax2: int, lmax_out: int, odd: bool) -> np.ndarray:
    """[lmax_out+1]: variance of a component of each degree of the Gaunt product (odd: of the bracket) of independent
    inputs of variance 1."""
    t = sphere.table(lmax1, lmax2, lmax_out, odd)
    degree = np.sqrt(t.k).astype(int)  # of each entry, exact: k < (l+1)^2
    return np.bincount(degree, t.c**2, lmax_out + 1) / (2 * np.arange(lmax_out + 1) + 1)


def power_moment(lmax: int, lmax_out: int, degree: int) -> np.ndarray:
    """[degree, lmax_out+1]: mean square of a component of each degree of f, f^2 .. f^degree, where the coefficients of
    f are independent Gaussians of variance 1.

    The values of f at two points are a pair of Gaussians of variance s = K(1) and covariance
    K = sum of (2 l + 1) / 4 pi P_l(cos(angle)), so (Isserlis; Hermite polynomials)

        E f(a)^n f(b)^n = sum over k = n, n - 2, .. of  C(n, k)^2 k! ((n - k - 1)!!)^2 s^(n - k) K^k,

    a function of the angle whose Legendre coefficients (Funk and Hecke) are the mean squares.
    """
    x, weight = np.polynomial.legendre.leggauss((degree * lmax + lmax_out) // 2 + 1)
    p = np.polynomial.legendre.legvander(x, max(lmax, lmax_out))  # [points, l]
    size = (2 * np.arange(lmax + 1) + 1) / (4 * pi)
    k, s = p[:, : lmax + 1] @ size, size.sum()
    found = []
    for n in range(1, degree + 1):
        pairs = [(j, comb(n, j) ** 2 * factorial(j) * prod(range(n - j - 1, 0, -2)) ** 2) for j in range(n, -1, -2)]
        found.append(2 * pi * (weight * sum(c * s ** (n - j) * k**j for j, c in pairs)) @ p[:, : lmax_out + 1])
    return np.array(found)


def _inverse_root(variance: np.ndarray) -> np.ndarray:
    """1 / sqrt(variance), 0 where the variance is zero."""
    zero = variance < ZERO_VARIANCE
    return np.where(zero, 0, 1 / np.sqrt(np.where(zero, 1, variance)))


@lru_cache(maxsize=256)
def product_scale(lmax1: int, lmax2: int, lmax_out: int, odd: bool, rank: int) -> np.ndarray:
    """[lmax_out+1]: the scale of each degree of the sum of `rank` products (odd: brackets)."""
    return _inverse_root(rank * product_variance(lmax1, lmax2, lmax_out, odd))


@lru_cache(maxsize=256)
def powers_scale(lmax: int, lmax_out: int, degree: int) -> np.ndarray:
    """[degree, lmax_out+1]: the scale of each power's degrees, by the variance of a sum of all powers that reach the
    degree."""
    moment = power_moment(lmax, lmax_out, degree)
    return _inverse_root(moment * (moment > ZERO_VARIANCE).sum(0))


@lru_cache(maxsize=256)
def convolution_scale(lmax: int, lmax_filter: int, lmax_out: int, odd: bool) -> np.ndarray:
    """[lmax_out+1]: the scale of each degree of the product (odd: bracket) with the harmonics of a direction, whose
    mean square is 1 / 4 pi."""
    return _inverse_root(product_variance(lmax, lmax_filter, lmax_out, odd) / (4 * pi))

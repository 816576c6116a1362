"""Tables of the Fourier route of the Gaunt product, in float64: harmonics as series on the torus that covers the sphere
twice, angles beta (frequency u) and alpha (frequency v). Blocks are those of `eqtp.math.sphere`."""

from __future__ import annotations

from functools import lru_cache
from math import pi, sqrt
from typing import NamedTuple

import numpy as np
from numpy.polynomial.legendre import leggauss

from eqtp.math.sphere import block_shape, in_blocks, legendre


@lru_cache(maxsize=64)
def to_fourier(lmax: int) -> np.ndarray:
    """T [M, 2, K, K]: P_l^m = sum over q of T[.., q] times cos(u beta) (m even) or sin(u beta) (m odd), with
    u = 2 q + (m + y) mod 2."""
    count = 2 * lmax + 2
    beta = (np.arange(count) + 0.5) * pi / count
    p = legendre(lmax, np.cos(beta))  # [l, m, n]
    u, m = np.arange(lmax + 1)[:, None], np.arange(lmax + 1)
    waves = np.where(m[:, None, None] % 2, np.sin(u * beta), np.cos(u * beta))  # [m, u, n]
    series = np.einsum("lmn,mun->lmu", p, waves) * np.where(np.arange(lmax + 1), 2 / count, 1 / count)
    return _frequencies(lmax, series, 0)


@lru_cache(maxsize=64)
def from_fourier(lmax: int, umax: int, bracket: bool = False) -> np.ndarray:
    """[M, 2, K, umax // 2 + 1]: 2 pi times the integral over beta of P_l^m sin(beta) times cos(u beta) (m even) or
    sin(u beta) (m odd).

    u as in `to_fourier`, up to umax. bracket: without sin(beta), with sin(u beta) for even m and cos(u beta) for odd m,
    u = 2 q + (m + y + 1) mod 2.
    """
    series = np.zeros((lmax + 1, lmax + 1, umax + 1))
    u = np.arange(umax + 1)
    if not bracket:  # polynomials in cos(beta)
        cosine, weight = leggauss((lmax + umax) // 2 + 1)
        angle = u[:, None] * np.arccos(cosine)
        for m in range(lmax + 1):
            series[:, m] = (
                2 * pi * legendre(lmax, cosine)[:, m] @ (weight * (np.sin(angle) if m % 2 else np.cos(angle))).T
            )
        return _frequencies(lmax, series, 0, umax)
    p = to_fourier(lmax)
    for m in range(lmax + 1):
        for l in range(m, lmax + 1):
            for q, c in enumerate(p[m, (l - m) % 2, (l - m) // 2]):
                v = 2 * q + l % 2
                other = (u + v) % 2 == 1
                series[l, m, other] += 4 * pi * c * (-v if m % 2 else u[other]) / (u[other] ** 2 - v * v)
    return _frequencies(lmax, series, 1, umax)


def _frequencies(lmax: int, series: np.ndarray, shift: int, umax: int | None = None) -> np.ndarray:
    """[l, m, u] -> [M, 2, K, q], u = 2 q + (l + shift) mod 2."""
    umax = lmax if umax is None else umax
    picked = np.zeros((lmax + 1, lmax + 1, umax // 2 + 1))
    for l in range(lmax + 1):
        part = series[l, :, (l + shift) % 2 :: 2]
        picked[l, :, : part.shape[1]] = part
    return in_blocks(lmax, picked)


def _phases(u: np.ndarray, vmax: int, shift: int) -> np.ndarray:
    """[len(u), vmax+1]: a function with coefficients c and s of cos(v alpha) and sin(v alpha), each times cos(u beta)
    for even v + shift and sin(u beta) for odd, has the coefficient (c - i s) times this at exp(i (u beta + v
    alpha))."""
    u, v = u[:, None], np.arange(vmax + 1)
    return np.where((v + shift) % 2, -0.5j * np.sign(u), np.where(u == 0, 1, 0.5)) * np.where(v, sqrt(0.5), 1)


def _places(vmax: int, u: np.ndarray, shift: int, count: int) -> np.ndarray:
    """[len(u), vmax+1]: places of the frequencies (|u|, v) in blocks [M, 2, count] flattened."""
    u, v = abs(u)[:, None], np.arange(vmax + 1)
    return (2 * v + (u + v + shift) % 2) * count + u // 2


class Spectrum(NamedTuple):
    """From blocks of frequencies to half a spectrum of exp(i (u beta + v alpha)): v >= 0, u in the order of an FFT."""

    places: np.ndarray  # [count, lmax+1] in the blocks [M, 2, K] flattened
    phases: np.ndarray  # [count, lmax+1] complex; 0 where |u| > lmax
    down: np.ndarray  # [count, 1] complex: the factor for d/dbeta
    east: np.ndarray  # [lmax+1] complex: the factor for d/dalpha


@lru_cache(maxsize=64)
def spectrum(lmax: int, count: int) -> Spectrum:
    """count: frequencies u, at least 2 lmax + 1."""
    u = np.fft.fftfreq(count, 1 / count).round().astype(int)
    inside = abs(u) <= lmax
    u = np.where(inside, u, 0)
    phases = _phases(u, lmax, 0) * inside[:, None]
    return Spectrum(_places(lmax, u, 0, lmax // 2 + 1), phases, 1j * u[:, None], 1j * np.arange(lmax + 1.0))


class Series(NamedTuple):
    """From half a spectrum, u >= 0 and v >= 0, to blocks of frequencies."""

    factor: np.ndarray  # [umax+1, lmax+1] complex
    places: np.ndarray  # [M, 2, umax // 2 + 1] in the spectrum flattened; (umax+1) (lmax+1) where there is none


@lru_cache(maxsize=64)
def series(lmax: int, umax: int, shift: int) -> Series:
    """shift: 0, or 1 for a bracket times sin(beta)."""
    u, count = np.arange(umax + 1), umax // 2 + 1
    phases = _phases(u, lmax, shift)
    places = np.full((block_shape(lmax)[0], 2, count), phases.size)
    places.flat[_places(lmax, u, shift, count)] = np.arange(phases.size).reshape(phases.shape)
    return Series(np.divide(1, phases, out=np.zeros_like(phases), where=phases != 0), places)


@lru_cache(maxsize=64)
def shifts(lmax1: int, lmax2: int, lmax_out: int) -> np.ndarray:
    """[(lmax1+lmax2+1) (lmax_out+1), (2 lmax1+1)^2]: the frequency of f2 that, with each frequency of f1, adds up to
    each (u, v) >= 0 of the product.

    Frequencies of f1 and f2: [u in the order of an FFT, v from -lmax] flattened; (2 lmax2+1)^2 where there is none.
    """
    n1, n2 = 2 * lmax1 + 1, 2 * lmax2 + 1
    u, v = np.ogrid[: lmax1 + lmax2 + 1, : lmax_out + 1]
    u1 = np.fft.ifftshift(np.arange(-lmax1, lmax1 + 1))[:, None]
    u2, v2 = u[..., None, None] - u1, v[..., None, None] - np.arange(-lmax1, lmax1 + 1)
    met = np.where((abs(u2) <= lmax2) & (abs(v2) <= lmax2), u2 % n2 * n2 + v2 + lmax2, n2 * n2)
    return met.reshape(u.size * v.size, n1 * n1)

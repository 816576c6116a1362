"""The published ways to calculate a Gaunt product, in plain torch: what people run today. Written from the papers;
tables made beforehand.

    published-fft      Luo, Chen, Krishnapriyan (ICLR 2024): coefficients in padded rows [lmax+1, 2 lmax+1], dense
                       conversion to a complex double Fourier series (a product that holds [rows, channels, l, m, u, 2]
                       and its sum over l), complex FFT of exact size, dense conversion back
    published-direct   the same, with matrix products as conversions and the convolution of the two series as it stands
    published-grid     Xie et al. (Price of Freedom): values on (2 L + 1) x (4 L + 2) points of a Gauss-Legendre grid,
                       2 L = lmax1 + lmax2, by dense matrices
    dense-grid         the same on the smallest exact grid: what one writes who knows how many points are needed

Each is a `Published`: operands in the layout that the method wants (made before the clock starts) to a result in its
own layout.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from math import pi, sqrt
from typing import NamedTuple

import numpy as np
import torch

from eqtp.math import sphere as tables

NAMES = ("published-fft", "published-direct", "published-grid", "dense-grid")


class Published(NamedTuple):
    """A way to calculate x1 [b, c, (lmax1+1)^2] by x2 -> [b, c, (lmax_out+1)^2]."""

    call: Callable  # f(pack1(x1), pack2(x2)); what is timed
    pack1: Callable
    pack2: Callable
    unpack: Callable  # result of f -> [b, c, (lmax_out+1)^2]
    bytes: int  # of the largest tensor on the way, for one (b, c)


# ---- tables, complex128 and float64


@cache
def series(lmax: int) -> np.ndarray:
    """[l, m, u, 2] complex: Y_lm = sum over u of exp(i u beta) ([.., 0] exp(i m alpha) + [.., 1] exp(-i m alpha)), m
    and u from -lmax.

    On the torus: beta to 2 pi, where sin(beta)^|m| changes its sign if m is odd.
    """
    size = 2 * lmax + 1
    beta = 2 * pi * np.arange(size) / size
    p = tables.legendre(lmax, np.cos(beta))  # [l, |m|, beta]
    p = np.where((np.arange(lmax + 1)[:, None] % 2 == 1) & (beta > pi), -p, p)
    waves = np.fft.fftshift(np.fft.fft(p), -1) / size  # [l, |m|, u]
    out = np.zeros((lmax + 1, size, size, 2), complex)
    for m in range(lmax + 1):
        if m == 0:
            out[:, lmax, :, 0] = waves[:, 0]
        else:  # cos = (e + e*) / 2 at m; sin |m| alpha = i (exp(i m alpha) - exp(-i m alpha)) / 2 at m = -|m|
            out[:, lmax + m] = waves[:, m, :, None] * sqrt(0.5)
            out[:, lmax - m] = waves[:, m, :, None] * sqrt(0.5) * np.array([1j, -1j])
    return out


@cache
def integrals(lmax: int, umax: int) -> np.ndarray:
    """[l, m, u, 2] complex: the integral over the sphere of exp(i (u beta + v alpha)) Y_lm, u from -umax, at v = m (0)
    and at v = -m (1).

    For m = 0 the two are one, which stands at 0.
    """
    u, q = np.arange(-umax, umax + 1)[:, None], np.arange(-lmax, lmax + 1)
    k = (u + q).astype(float)
    one = abs(k) == 1
    # of exp(i k beta) sin(beta) over 0..pi
    sine = np.where(one, 0.5j * pi * k, (1 + np.exp(1j * pi * k)) / np.where(one, 1, 1 - k * k))
    out = 2 * pi * np.einsum("uq,lmqs->lmus", sine, series(lmax))
    # exp(i v alpha) meets exp(-i v alpha)
    out[:, np.arange(2 * lmax + 1) != lmax] = out[:, np.arange(2 * lmax + 1) != lmax][..., ::-1]
    return out


def constant(array: np.ndarray, dtype: torch.dtype) -> torch.Tensor:
    return torch.tensor(array, dtype=dtype.to_complex() if np.iscomplexobj(array) else dtype)


# ---- layouts


def _places(lmax: int) -> torch.Tensor:
    """[(lmax+1)^2] of each component in padded rows [lmax+1, 2 lmax+1], flattened."""
    return torch.tensor([l * (2 * lmax + 1) + lmax + m for l in range(lmax + 1) for m in range(-l, l + 1)])


def rows(x: torch.Tensor, lmax: int) -> torch.Tensor:
    """[b, c, (lmax+1)^2] -> [b, c, lmax+1, 2 lmax+1]"""
    out = x.new_zeros(*x.shape[:-1], (lmax + 1) * (2 * lmax + 1))
    out[..., _places(lmax)] = x
    return out.unflatten(-1, (lmax + 1, -1))


def _same(x: torch.Tensor) -> torch.Tensor:
    return x


# ---- the methods


def _spread(x: torch.Tensor, table: torch.Tensor) -> torch.Tensor:
    """[b, c, l, m] by [l, m, u, 2] -> series [b, c, u, v]"""
    parts = (x[..., None, None] * table).sum(-4)  # [b, c, m, u, 2]
    return (parts[..., 0] + parts[..., 1].flip(-2)).mT


def _collect(f: torch.Tensor, table: torch.Tensor) -> torch.Tensor:
    """Series [b, c, u, v] by [l, m, u, 2] -> [b, c, l, m]"""
    f = f.mT.unsqueeze(-3)  # [b, c, 1, v, u]
    return ((f * table[..., 0]).sum(-1) + (f.flip(-2) * table[..., 1]).sum(-1)).real


def fft(lmax1: int, lmax2: int, lmax_out: int, dtype: torch.dtype) -> Published:
    """published-fft"""
    top = lmax1 + lmax2
    size = (2 * top + 1,) * 2
    t1, t2, t3 = (constant(t, dtype) for t in (series(lmax1), series(lmax2), integrals(lmax_out, top)))
    cut = slice(top - lmax_out, top + lmax_out + 1)  # of v

    def call(x1, x2):
        f1, f2 = _spread(x1, t1), _spread(x2, t2)
        product = torch.fft.ifft2(torch.fft.fft2(f1, size) * torch.fft.fft2(f2, size))  # from the lowest frequencies on
        return _collect(product[..., cut], t3)

    place = _places(lmax_out)
    largest = max(t1.numel(), t2.numel(), t3.numel() // 2) * t1.element_size()
    return Published(
        call, lambda x: rows(x, lmax1), lambda x: rows(x, lmax2), lambda out: out.flatten(-2)[..., place], largest
    )


def _matrix(table: torch.Tensor, lmax: int) -> torch.Tensor:
    """[l, m, u, 2] -> [(lmax+1)^2, u v], the v of each m and of -m."""
    size = 2 * lmax + 1
    full = table.new_zeros(lmax + 1, size, table.shape[2], size)
    m = torch.arange(size)
    full[:, m, :, m] += table[..., 0].transpose(0, 1)
    full[:, m, :, size - 1 - m] += table[..., 1].transpose(0, 1)
    return full.flatten(0, 1)[_places(lmax)].flatten(1)


def direct(lmax1: int, lmax2: int, lmax_out: int, dtype: torch.dtype) -> Published:
    """published-direct"""
    top = lmax1 + lmax2
    n1, n2, size = 2 * lmax1 + 1, 2 * lmax2 + 1, 2 * top + 1

    def real(t):
        return torch.view_as_real(t.resolve_conj()).flatten(1)

    t1, t2 = (real(_matrix(constant(series(l), dtype), l)) for l in (lmax1, lmax2))  # [(lmax+1)^2, u v 2]
    t3 = real(
        _matrix(constant(integrals(lmax_out, top), dtype), lmax_out).conj()
    ).mT.contiguous()  # [u v 2, (lmax_out+1)^2]: the real part
    cut = slice(top - lmax_out, top + lmax_out + 1)

    def call(x1, x2):
        f1 = torch.view_as_complex((x1.flatten(0, 1) @ t1).view(-1, n1, n1, 2))  # [z, u1, v1]
        f2 = torch.view_as_complex((x2.flatten(0, 1) @ t2).view(-1, n2, n2, 2))
        windows = torch.nn.functional.pad(f2, (n1 - 1, n1 - 1)).unfold(-1, n1, 1)[:, :, cut]  # [z, u2, v, v1 backwards]
        met = torch.einsum("zuvk,zwk->zwuv", windows, f1.flip(-1))  # [z, u1, u2, v]
        product = f1.new_zeros(len(f1), size, met.shape[-1])
        for u in range(n1):
            product[:, u : u + n2] += met[:, u]
        return (torch.view_as_real(product).flatten(1) @ t3).unflatten(0, x1.shape[:2])

    return Published(call, _same, _same, _same, n1 * n2 * (2 * lmax_out + 1) * 2 * t1.element_size())


def grid(lmax1: int, lmax2: int, lmax_out: int, dtype: torch.dtype, smallest: bool = False) -> Published:
    """published-grid, or (smallest) dense-grid"""
    least = tables.minimal_size(lmax1 + lmax2 + lmax_out)
    size = least if smallest else (max(least[0], lmax1 + lmax2 + 1), max(least[1], 2 * (lmax1 + lmax2 + 1)))
    points = tables.grid(*size)

    def table(l, scale=1.0):
        return constant(tables.synthesis(l, points) * scale, dtype).flatten(1)

    y1, y2, y3 = table(lmax1), table(lmax2), table(lmax_out, points.weight[:, None]).mT.contiguous()

    def call(x1, x2):
        return ((x1.flatten(0, 1) @ y1) * (x2.flatten(0, 1) @ y2) @ y3).unflatten(0, x1.shape[:2])

    return Published(call, _same, _same, _same, y1.shape[1] * y1.element_size())


@cache
def product(name: str, lmax1: int, lmax2: int, lmax_out: int, dtype: torch.dtype) -> Published:
    """One of NAMES. lmax_out may not be above lmax1 + lmax2. Raises ValueError."""
    if not 0 <= lmax_out <= lmax1 + lmax2:
        raise ValueError(f"{name}: lmax_out must be 0 to {lmax1 + lmax2}, got {lmax_out}")
    if name in ("published-grid", "dense-grid"):
        return grid(lmax1, lmax2, lmax_out, dtype, smallest=name == "dense-grid")
    if name not in NAMES:
        raise ValueError(f"unknown published product {name!r}; known: {', '.join(NAMES)}")
    return (fft if name == "published-fft" else direct)(lmax1, lmax2, lmax_out, dtype)

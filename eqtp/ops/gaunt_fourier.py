"""The Fourier route of the Gaunt product in plain torch: a series on the torus that covers the sphere twice.

Its tables are in `eqtp.math.fourier`. Source: Luo, Chen, Krishnapriyan, ICLR 2024.
"""

from __future__ import annotations

import torch

from eqtp.ops.coefficients import degree_of, gather_padded
from eqtp.ops.constants import constants

# Terms of the convolution of two series: with more, FFT instead of a direct sum; timed on one CPU thread
DIRECT_TERMS = 100


def _in_blocks(x: torch.Tensor) -> torch.Tensor:
    """[..., (lmax+1)^2] -> [..., 2, M, 2, K]"""
    return gather_padded(x, constants("blocks", degree_of(x), like=x).take)


def _series(x: torch.Tensor, count: int, odd: bool) -> list[torch.Tensor]:
    """Half spectrum [..., count (u), lmax+1 (v >= 0)] of f, and (odd) of its derivatives by beta and alpha."""
    lmax = degree_of(x)
    parts = torch.einsum("...xmyk,mykq->...xmyq", _in_blocks(x), constants("to_fourier", lmax, like=x)).flatten(-3)
    s = constants("spectrum", lmax, count, like=x)
    c, minus = parts[..., s.places].unbind(-3)
    f = torch.complex(c, -minus) * s.phases
    return [f, f * s.down, f * s.east] if odd else [f]


def _from_series(c: torch.Tensor, lmax: int, umax: int, shift: int) -> torch.Tensor:
    """[..., umax+1, lmax+1] -> components [..., (lmax+1)^2]; shift 1: of the bracket times sin(beta)."""
    like = c.real
    g = constants("series", lmax, umax, shift, like=like)
    c = c * g.factor
    waves = gather_padded(torch.stack((c.real, -c.imag), -3).flatten(-2), g.places)  # [..., 2, M, 2, umax // 2 + 1]
    x = torch.einsum("...xmyq,mykq->...xmyk", waves, constants("from_fourier", lmax, umax, shift, like=like))
    return x.flatten(-4)[..., constants("blocks", lmax, like=like).place]


def _full_spectrum(c: torch.Tensor) -> torch.Tensor:
    """Half spectrum of a real function [..., 2 lmax+1 (u as in an FFT), lmax+1] -> [..., (2 lmax+1) (2 lmax+1)], v from
    -lmax."""
    other = c[..., 1:].flip((-2, -1)).roll(1, -2).conj()  # at -u, -v
    return torch.cat((other, c), -1).flatten(-2)


def _convolve(c1: torch.Tensor, c2: torch.Tensor, degrees: tuple[int, int], lmax_out: int) -> torch.Tensor:
    shifts = constants("shifts", *degrees, lmax_out, like=c1.real)
    met = gather_padded(_full_spectrum(c2), shifts)  # [..., (lmax1+lmax2+1) (lmax_out+1), (2 lmax1+1)^2]
    return (met * _full_spectrum(c1).unsqueeze(-2)).sum(-1).unflatten(-1, (-1, lmax_out + 1))


def _is_empty(x: torch.Tensor) -> bool:
    """Whether a tensor has no elements, a batch of vmap included."""
    while not torch.compiler.is_compiling() and torch._C._functorch.is_functorch_wrapped_tensor(x):
        x = torch._C._functorch.get_unwrapped(x)
    return x.numel() == 0


def _fft_length(n: int) -> int:
    """The smallest length >= n without a prime factor above 5."""
    while True:
        rest = n
        for p in (2, 3, 5):
            while rest % p == 0:
                rest //= p
        if rest == 1:
            return n
        n += 1


def _transform(fft, t: torch.Tensor, size: tuple[int, int] | None) -> torch.Tensor:
    """A transform of the last two dimensions. MKL refuses tensors without elements, which a program that is being
    written may be given: there one more row, of zeros, goes in."""
    if t.ndim == 2 or (type(t.numel()) is int and not torch.compiler.is_exporting()):
        return fft(t, size, norm="forward")
    rows = torch.nn.functional.pad(t.flatten(0, -3), (0, 0, 0, 0, 0, 1))
    out = fft(rows, size, norm="forward")[:-1]
    return out.reshape(*t.shape[:-2], *out.shape[-2:])


def fourier(x1: torch.Tensor, x2: torch.Tensor, lmax_out: int, odd: bool) -> tuple[torch.Tensor, ...]:
    """By a double Fourier series, convolved directly or by FFT. Arguments as for `grid`."""
    lmax1, lmax2 = degree_of(x1), degree_of(x2)
    umax = lmax1 + lmax2
    empty = _is_empty(x1) or _is_empty(x2)  # MKL cannot transform these
    if empty or (umax + 1) * (lmax_out + 1) * (2 * lmax1 + 1) ** 2 <= DIRECT_TERMS:
        c1, c2 = (_series(x, 2 * degree_of(x) + 1, odd) for x in (x1, x2))

        def product(a, b):
            return _convolve(c1[a], c2[b], (lmax1, lmax2), lmax_out)

        def spectrum(c):
            return c
    else:  # the projection needs all frequencies in beta; in alpha those above lmax_out may alias
        size = _fft_length(2 * umax + 1), _fft_length(umax + lmax_out + 1)
        f1, f2 = ([_transform(torch.fft.irfft2, c, size) for c in _series(x, size[0], odd)] for x in (x1, x2))

        def product(a, b):
            return f1[a] * f2[b]

        def spectrum(f):
            return _transform(torch.fft.rfft2, f, None)[..., : umax + 1, : lmax_out + 1]

    even = _from_series(spectrum(product(0, 0)), lmax_out, umax, 0)
    return (even, _from_series(spectrum(product(1, 2) - product(2, 1)), lmax_out, umax, 1)) if odd else (even,)

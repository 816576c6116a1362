"""Layers of Gaunt products on features [..., channels, (lmax+1)^2], exported as `eqtp.nn.GauntTensorProduct` and so on.

Components of x are real spherical-harmonic coefficients in e3nn's order, of natural parity: p (-1)^l with one p = 1 or
-1 for all degrees; harmonics of vectors, and products of them, have p = 1. Couplings of a Gaunt product vary widely in
size, so each layer divides every degree of its output by the standard deviation, computed from the couplings, that it
would have for independent inputs of mean 0 and variance 1.
"""

from __future__ import annotations

from math import comb, factorial, pi, prod

import numpy as np
import torch

from eqtp.math import sphere
from eqtp.nn.module import Module
from eqtp.ops.coefficients import check_natural, scale_degrees
from eqtp.ops.gaunt_convolution import gaunt_convolution
from eqtp.ops.gaunt_many_body import gaunt_many_body
from eqtp.ops.gaunt_tensor_product import gaunt_tensor_product
from eqtp.ops.graph import Graph
from eqtp.ops.segment_sum import segment_sum

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


def _inverse_root(variance: np.ndarray) -> torch.Tensor:
    """1 / sqrt(variance), 0 where the variance is zero."""
    zero = variance < ZERO_VARIANCE
    return torch.tensor(np.where(zero, 0, 1 / np.sqrt(np.where(zero, 1, variance))), dtype=torch.get_default_dtype())


class _Layer(Module):
    def _set(self, least: dict[str, int], backend: str, **sizes: int) -> None:
        for name, value in sizes.items():
            setattr(self, name, check_natural(type(self).__name__, name, value, least.get(name, 0)))
        self.backend = backend

    def _check(self, name: str, x, *tail: int) -> None:
        op = type(self).__name__
        if not isinstance(x, torch.Tensor) or not x.is_floating_point():
            raise TypeError(
                f"{op}: {name} must be a floating point tensor, got {getattr(x, 'dtype', type(x).__name__)}"
            )
        if x.shape[-len(tail) :] != tail:
            raise ValueError(f"{op}: {name} must be [..., {', '.join(map(str, tail))}], got {list(x.shape)}")


class GauntTensorProduct(_Layer):
    """Channelwise Gaunt product of two sets of features, with a weight per channel for each degree of x1, x2 and the
    output.

    rank: number of products, with weights of their own, that are summed. A path (l1, l2, l3) then has the weight sum
    over r of w1[r, l1] w2[r, l2] w3[r, l3]. One product has the degrees of freedom that `eqtp.expressivity("gaunt",
    lmax)` counts; with enough of them every path with an even sum has an independent weight, as in a Clebsch-Gordan
    product.
    odd: also the bracket (the paths with an odd sum), with its own output weights; the layer then returns the pair
    (product, bracket).

    Weights w1 [rank, channels, lmax1+1], w2 [rank, channels, lmax2+1], w3 (and w3_odd) [rank, channels, lmax_out+1]: 1
    at first, or normal numbers if the rank is more than 1. O(3): for inputs of natural parities p and q the product has
    p q, the bracket -p q (a pseudotensor for p = q = 1).

    Raises TypeError or ValueError, naming the argument. Source: Luo, Chen, Krishnapriyan, ICLR 2024; 2605.15073
    (bracket, sums of products).
    """

    def __init__(
        self,
        lmax1: int,
        lmax2: int,
        lmax_out: int,
        channels: int,
        *,
        odd: bool = False,
        rank: int = 1,
        backend: str = "auto",
    ):
        super().__init__()
        self._set(
            {"channels": 1, "rank": 1},
            backend,
            lmax1=lmax1,
            lmax2=lmax2,
            lmax_out=lmax_out,
            channels=channels,
            rank=rank,
        )
        self.odd = bool(odd)
        new = torch.ones if rank == 1 else torch.randn

        def weight(lmax):
            return torch.nn.Parameter(new(rank, channels, lmax + 1))

        self.w1, self.w2, self.w3 = weight(lmax1), weight(lmax2), weight(lmax_out)
        if odd:
            self.w3_odd = weight(lmax_out)
        for half in (False, True)[: 1 + self.odd]:
            scale = _inverse_root(rank * product_variance(lmax1, lmax2, lmax_out, half))  # [lmax_out+1]
            self.register_buffer("scale_odd" if half else "scale", scale, persistent=False)

    def forward(self, x1: torch.Tensor, x2: torch.Tensor) -> torch.Tensor | tuple[torch.Tensor, torch.Tensor]:
        """x1 [..., channels, (lmax1+1)^2], x2 [..., channels, (lmax2+1)^2] -> [..., channels, (lmax_out+1)^2], or the
        pair of these."""
        self._check("x1", x1, self.channels, (self.lmax1 + 1) ** 2)
        self._check("x2", x2, self.channels, (self.lmax2 + 1) ** 2)
        several = self.rank > 1  # [..., rank, channels, n] then

        def weight(w):
            return w if several else w[0]

        x1, x2 = (x.unsqueeze(-3) if several else x for x in (x1, x2))
        out = gaunt_tensor_product(
            x1, x2, self.lmax_out, w1=weight(self.w1), w2=weight(self.w2), odd=self.odd, backend=self.backend
        )
        ends = [(self.w3, self.scale), (self.w3_odd, self.scale_odd)] if self.odd else [(self.w3, self.scale)]
        out = [scale_degrees(t, weight(w) * s) for t, (w, s) in zip(out if self.odd else [out], ends, strict=True)]
        out = [t.sum(-3) if several else t for t in out]
        return tuple(out) if self.odd else out[0]

    def extra_repr(self) -> str:
        degrees = f"{self.lmax1} x {self.lmax2} -> {self.lmax_out}"
        return f"{degrees}, {self.channels} channels, odd={self.odd}, rank={self.rank}"


class GauntManyBody(_Layer):
    """Contraction of the powers of a function on the sphere, with weights for each element, as in MACE:

        out[c, l] = sum over n = 1 .. degree of  weight[element, c, n, l] P_l[f_c^n],

    f_c the function with coefficients x[c]; all powers on one grid. weight: [num_elements, channels, degree,
    lmax_out+1], normal numbers at first. The couplings are those of a Gaunt product; MACE's symmetric contraction has
    more of them, each with a weight, all with an even sum of degrees. O(3): natural parity p = 1 in and out.

    Raises TypeError or ValueError, naming the argument. Source: Luo, Chen, Krishnapriyan, ICLR 2024; Batatia et al.,
    MACE, NeurIPS 2022, eq. 10.
    """

    def __init__(
        self, lmax: int, lmax_out: int, channels: int, degree: int, num_elements: int, *, backend: str = "auto"
    ):
        super().__init__()
        least = {"channels": 1, "degree": 1, "num_elements": 1}
        self._set(
            least, backend, lmax=lmax, lmax_out=lmax_out, channels=channels, degree=degree, num_elements=num_elements
        )
        self.weight = torch.nn.Parameter(torch.randn(num_elements, channels, degree, lmax_out + 1))
        moment = power_moment(lmax, lmax_out, degree)  # [degree, lmax_out+1]
        # the variance of a sum of all powers that reach the degree
        self.register_buffer("scale", _inverse_root(moment * (moment > ZERO_VARIANCE).sum(0)), persistent=False)

    def forward(self, x: torch.Tensor, element: torch.Tensor) -> torch.Tensor:
        """x [..., channels, (lmax+1)^2], element [...] integers below num_elements -> [..., channels,
        (lmax_out+1)^2]"""
        self._check("x", x, self.channels, (self.lmax + 1) ** 2)
        if not isinstance(element, torch.Tensor) or element.dtype not in (torch.int32, torch.int64):
            got = getattr(element, "dtype", type(element).__name__)
            raise TypeError(f"GauntManyBody: element must be int32 or int64, got {got}")
        if element.shape != x.shape[:-2]:
            raise ValueError(f"GauntManyBody: element must be {list(x.shape[:-2])}, got {list(element.shape)}")
        # [..., channels, degree, (lmax_out+1)^2]
        powers = gaunt_many_body(x, self.lmax_out, self.degree, backend=self.backend)
        return scale_degrees(powers, (self.weight * self.scale)[element]).sum(-2)

    def extra_repr(self) -> str:
        degrees = f"{self.lmax} -> {self.lmax_out}"
        return f"{degrees}, {self.channels} channels, degree {self.degree}, {self.num_elements} elements"


class GauntConvolution(_Layer):
    """Sum over edges of the Gaunt product of source features with the harmonics of the edge and its radial weights
    (`eqtp.gaunt_convolution`).

        out[n] = w3 sum over edges e into n of  (w1 x[src[e]]) times sum over l, m of h[e, l] Y_lm(r[e]) Y_lm

    Weights w1 [channels, lmax+1], w3 (and w3_odd) [channels, lmax_out+1]: 1 at first. num_neighbors: typical number of
    edges into a node, by the square root of which the sum is divided. odd: also the bracket (the paths with an odd sum
    of degrees); then the layer returns the pair (product, bracket). O(3): natural parity p of x gives p for the product
    and -p for the bracket.

    Raises TypeError or ValueError, naming the argument. Source: Luo, Chen, Krishnapriyan, ICLR 2024.
    """

    def __init__(
        self,
        lmax: int,
        lmax_filter: int,
        lmax_out: int,
        channels: int,
        *,
        odd: bool = False,
        num_neighbors: float = 1.0,
        backend: str = "auto",
    ):
        super().__init__()
        self._set({"channels": 1}, backend, lmax=lmax, lmax_filter=lmax_filter, lmax_out=lmax_out, channels=channels)
        if not num_neighbors > 0:
            raise ValueError(f"GauntConvolution: num_neighbors must be positive, got {num_neighbors}")
        self.odd, self.num_neighbors = bool(odd), float(num_neighbors)
        self.w1, self.w3 = (torch.nn.Parameter(torch.ones(channels, l + 1)) for l in (lmax, lmax_out))
        if odd:
            self.w3_odd = torch.nn.Parameter(torch.ones(channels, lmax_out + 1))
        for half in (False, True)[: 1 + self.odd]:
            # [lmax_out+1]; the mean square of a harmonic is 1 / 4 pi
            scale = _inverse_root(self.num_neighbors / (4 * pi) * product_variance(lmax, lmax_filter, lmax_out, half))
            self.register_buffer("scale_odd" if half else "scale", scale, persistent=False)

    def forward(
        self, x: torch.Tensor, r: torch.Tensor, h: torch.Tensor, graph: Graph
    ) -> torch.Tensor | tuple[torch.Tensor, torch.Tensor]:
        """x [num_src, channels, (lmax+1)^2], edges r [e, 3], radial weights h [e, channels or 1, lmax_filter+1] ->
        [num_dst, channels, (lmax_out+1)^2], or the pair of these."""
        if not isinstance(graph, Graph):
            raise TypeError(f"GauntConvolution: graph must be an eqtp.Graph, got {type(graph).__name__}")
        self._check("x", x, graph.num_src, self.channels, (self.lmax + 1) ** 2)
        self._check("r", r, graph.num_edges, 3)
        self._check("h", h, graph.num_edges, *h.shape[1:2], self.lmax_filter + 1)
        x = scale_degrees(x, self.w1).index_select(0, graph.src)
        out = gaunt_convolution(
            x, r.unsqueeze(-2), self.lmax_out, lmax_filter=self.lmax_filter, h=h, odd=self.odd, backend=self.backend
        )
        ends = [(self.w3, self.scale), (self.w3_odd, self.scale_odd)] if self.odd else [(self.w3, self.scale)]
        out = [
            scale_degrees(segment_sum(t, graph), w * s)
            for t, (w, s) in zip(out if self.odd else [out], ends, strict=True)
        ]
        return tuple(out) if self.odd else out[0]

    def extra_repr(self) -> str:
        degrees = f"{self.lmax} x {self.lmax_filter} -> {self.lmax_out}"
        return f"{degrees}, {self.channels} channels, odd={self.odd}, num_neighbors={self.num_neighbors}"

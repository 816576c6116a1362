"""Layers of Gaunt products on features [..., channels, (lmax+1)^2], exported as `eqtp.nn.GauntTensorProduct` and so on.

Components of x are real spherical-harmonic coefficients in e3nn's order, of natural parity: p (-1)^l with one p = 1 or
-1 for all degrees; harmonics of vectors, and products of them, have p = 1. Couplings of a Gaunt product vary widely in
size, so each layer divides every degree of its output by the standard deviation, computed from the couplings, that it
would have for independent inputs of mean 0 and variance 1.
"""

from __future__ import annotations

import torch

from eqtp.nn.module import Module
from eqtp.ops.coefficients import check_natural, scale_degrees
from eqtp.ops.constants import constants
from eqtp.ops.gaunt_convolution import gaunt_convolution
from eqtp.ops.gaunt_many_body import gaunt_many_body
from eqtp.ops.gaunt_tensor_product import gaunt_tensor_product
from eqtp.ops.graph import Graph
from eqtp.ops.segment_sum import gather, segment_sum, wide


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
        new = torch.ones if self.rank == 1 else torch.randn

        def weight(lmax):
            return torch.nn.Parameter(new(self.rank, self.channels, lmax + 1))

        self.w1, self.w2, self.w3 = weight(self.lmax1), weight(self.lmax2), weight(self.lmax_out)
        if odd:
            self.w3_odd = weight(self.lmax_out)

    def _scale(self, odd: bool, like: torch.Tensor) -> torch.Tensor:
        """[lmax_out+1] by which the degrees of the product (odd: of the bracket) are multiplied."""
        return constants("product_scale", self.lmax1, self.lmax2, self.lmax_out, odd, self.rank, like=like)

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
        ends = [self.w3, self.w3_odd] if self.odd else [self.w3]
        out = [
            scale_degrees(t, weight(w) * self._scale(bool(odd), w))
            for odd, (t, w) in enumerate(zip(out if self.odd else [out], ends, strict=True))
        ]
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
        self.weight = torch.nn.Parameter(torch.randn(self.num_elements, self.channels, self.degree, self.lmax_out + 1))

    def _scale(self, like: torch.Tensor) -> torch.Tensor:
        """[degree, lmax_out+1] by which the degrees of the powers are multiplied."""
        return constants("powers_scale", self.lmax, self.lmax_out, self.degree, like=like)

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
        weight = self.weight * self._scale(self.weight)
        if weight.requires_grad:  # the gradient adds up all nodes of an element
            weight = wide(weight)
        return scale_degrees(powers, weight[element].to(powers.dtype)).sum(-2)

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

        def weight(lmax):
            return torch.nn.Parameter(torch.ones(self.channels, lmax + 1))

        self.w1, self.w3 = weight(self.lmax), weight(self.lmax_out)
        if odd:
            self.w3_odd = weight(self.lmax_out)

    def _scale(self, odd: bool, like: torch.Tensor) -> torch.Tensor:
        """[lmax_out+1] by which the degrees of the product (odd: of the bracket) are multiplied."""
        degrees = self.lmax, self.lmax_filter, self.lmax_out
        return constants("convolution_scale", *degrees, odd, like=like)

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
        # messages of such a size that their sums stay in the range of half precision
        x = gather(scale_degrees(x, self.w1 / self.num_neighbors**0.5), graph)
        r, h = graph.zero_padding(r).unsqueeze(-2), graph.zero_padding(h)
        options = {"lmax_filter": self.lmax_filter, "h": h, "odd": self.odd, "backend": self.backend}
        out = gaunt_convolution(x, r, self.lmax_out, **options)
        ends = [self.w3, self.w3_odd] if self.odd else [self.w3]
        out = [
            scale_degrees(segment_sum(t, graph), w * self._scale(bool(odd), w))
            for odd, (t, w) in enumerate(zip(out if self.odd else [out], ends, strict=True))
        ]
        return tuple(out) if self.odd else out[0]

    def extra_repr(self) -> str:
        degrees = f"{self.lmax} x {self.lmax_filter} -> {self.lmax_out}"
        return f"{degrees}, {self.channels} channels, odd={self.odd}, num_neighbors={self.num_neighbors}"

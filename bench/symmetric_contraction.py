"""The symmetric contraction of MACE, even part, in plain torch: the peer of `eqtp.gaunt_many_body`. Written from the
paper.

    out[b, c, LM] = sum over nu and paths k of  W_nu[z_b, L, k, c] sum over i1 .. i_nu of  U_nu[LM, i1 .. i_nu, k] x[b,
      c, i1] .. x[b, c, i_nu]

U: products of Clebsch-Gordan coefficients, coupled one after the other. Only paths whose steps all have an even sum of
degrees are there: those that a Gaunt product has too (MACE has more of them, so its own code does more work).
Contracted as in the paper, one x after the other, where the next lower order is added on the way; the first x meets W
before U, the order that holds the smallest tensors. Nodes are taken `CHUNK` at a time, which is quicker than all at
once.

Source: Batatia et al., 2206.07697, equations 10 and 11.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache

import numpy as np
import torch

import eqtp
from eqtp.math.so3 import gaunt, wigner_3j

CHUNK = 20  # nodes


@cache
def paths(lmax: int, degree: int, l_out: int) -> tuple[np.ndarray, np.ndarray]:
    """U [2 l_out+1, n, .. n, k] and what each path is multiplied by in the power of a function [k]; n = (lmax+1)^2."""
    n = (lmax + 1) ** 2
    # (degree, factor, tensor [2 l+1, n, ..])
    found = [(l, 1.0, np.eye(n)[l * l : (l + 1) ** 2]) for l in range(lmax + 1)]
    for _ in range(degree - 1):
        found = [
            (l3, c * (gaunt(l1, l2, l3) * wigner_3j(l1, l2, l3)).sum(), _coupled(t, l1, l2, l3, n))
            for l1, c, t in found
            for l2 in range(lmax + 1)
            for l3 in range(abs(l1 - l2), l1 + l2 + 1, 2)
        ]
    mine = [(c, t) for l, c, t in found if l == l_out]
    return np.stack([t for _, t in mine], -1), np.array([c for c, _ in mine])


def _coupled(t: np.ndarray, l1: int, l2: int, l3: int, n: int) -> np.ndarray:
    """t [2 l1+1, n, ..] by the components of degree l2 -> [2 l3+1, n, .., n]"""
    out = np.zeros((2 * l3 + 1, *t.shape[1:], n))
    out[..., l2 * l2 : (l2 + 1) ** 2] = np.einsum("a...,abc->c...b", t, wigner_3j(l1, l2, l3))
    return out


class Contraction:
    """The contraction to degrees 0..lmax_out, with weights that make it the sum over nu of w[z, nu, L, c] times the
    nu-th power of a function."""

    def __init__(self, lmax: int, lmax_out: int, degree: int, elements: int, channels: int, dtype: torch.dtype):
        self.z = lambda nodes: torch.arange(nodes) % elements  # [nodes] element of each
        generator = torch.Generator().manual_seed(5)
        self.w = torch.randn(elements, degree, lmax_out + 1, channels, generator=generator, dtype=torch.float64).to(
            dtype
        )
        self.u, self.weights = [], []  # [L][nu - 1]: U [2 L+1, n .. n, k]; W [elements, k, c]
        for l in range(lmax_out + 1):
            tables = [paths(lmax, nu, l) for nu in range(1, degree + 1)]
            self.u.append([torch.tensor(u, dtype=dtype) for u, _ in tables])
            self.weights.append(
                [torch.tensor(c, dtype=dtype)[:, None] * self.w[:, nu, l, None] for nu, (_, c) in enumerate(tables)]
            )

    def operands(self) -> list[torch.Tensor]:
        """Weights, all orders of a degree after each other."""
        return [w for of_degree in self.weights for w in of_degree]

    def contract(self, x: torch.Tensor, z: torch.Tensor, *weights: torch.Tensor) -> torch.Tensor:
        """x [b, c, n], z [b], weights as `operands` -> [b, c, (lmax_out+1)^2]"""
        out, weights = [], iter(weights)
        for u in self.u:
            *lower, (table, w) = [(table, next(weights)[z].mT) for table in u]  # w [b, c, k]
            # [b, c, n k]: less to keep than U W, which has n^nu
            pairs = (x.unsqueeze(-1) * w.unsqueeze(-2)).flatten(-2)
            # [b, c, 2 L+1, n .. n]
            total = (pairs @ table.flatten(-2).flatten(0, -2).mT).unflatten(-1, table.shape[:-2])
            for table, w in lower[::-1]:
                total = total + (w @ table.flatten(0, -2).mT).unflatten(-1, table.shape[:-1])
                # one n less
                total = (total.flatten(2, -2) @ x.unsqueeze(-1)).squeeze(-1).unflatten(-1, table.shape[:-2])
            out.append(total)
        return torch.cat(out, -1)

    def timed(self, x: torch.Tensor, g: torch.Tensor, pass_: str) -> Callable[[], list[torch.Tensor]]:
        """What is timed: all nodes of x [b, c, n], `CHUNK` at a time; g [b, c, (lmax_out+1)^2] the cotangent of the
        result."""
        z, weights = self.z(len(x)), [w.clone().requires_grad_(pass_ != "fwd") for w in self.operands()]

        def part(s: slice) -> torch.Tensor:
            if pass_ == "fwd":
                with torch.no_grad():
                    return self.contract(x[s], z[s], *weights)
            mine = x[s].detach().requires_grad_()
            return torch.autograd.grad(self.contract(mine, z[s], *weights), [mine, *weights], g[s])[0]

        return lambda: [part(slice(n, n + CHUNK)) for n in range(0, len(x), CHUNK)]


def powers(x: torch.Tensor, w: torch.Tensor, lmax_out: int, degree: int, backend: str = "auto") -> torch.Tensor:
    """The same by `eqtp.gaunt_many_body`: x [b, c, n], w [b, c, degree, lmax_out+1], the weights of each node -> [b, c,
    (lmax_out+1)^2]"""
    wide = w.repeat_interleave(2 * torch.arange(lmax_out + 1, device=w.device) + 1, -1, output_size=(lmax_out + 1) ** 2)
    return (eqtp.gaunt_many_body(x, lmax_out, degree, backend=backend) * wide).sum(-2)

"""Products of the matrices that stand for functions on the sphere (`eqtp.ops.matrix_tensor_product`) as data. No torch
here.

A `MatrixProgram` takes its inputs to matrices, sums products of two of them, and takes each sum back: what the matrix
product is, and what its derivatives are. With <A, B> = trace(A^T B) and Phi = <G, X1 X2> they are those of Phi: G X2^T
and X1^T G.

Split in two. The parts (X1 X2 + X2 X1) / 2 and (X1 X2 - X2 X1) / 2 are half the sum and half the difference of two
products, and their cotangents enter as half the sum and half the difference: a pair of signals of which this is formed,
among the inputs or the outputs.
"""

from __future__ import annotations

from functools import lru_cache
from math import pi
from typing import NamedTuple

import numpy as np

from eqtp.math.sphere import matrices


class MatrixProgram(NamedTuple):
    """Output o = sum over terms[o] of left right, each (left, left is transposed, right, right is transposed), left and
    right inputs as matrices."""

    size: int  # 2 s+1, rows of the matrices
    lmax_in: tuple[int, ...]
    lmax_out: tuple[int, ...]
    # this input and the next one are replaced by half their sum and half their difference before all else; -1: none
    pair_in: int
    pair_out: int  # the same of outputs, after all else
    terms: tuple[tuple[tuple[int, bool, int, bool], ...], ...]


@lru_cache(maxsize=1024)
def product(lmax1: int, lmax2: int, lmax_out: int, split: bool, pass_: str, wanted: tuple[bool, ...]) -> MatrixProgram:
    """A pass ("fwd", "bwd", "bwdbwd") of the matrix product, as of `eqtp.plans.signals.product`; split: product and g
    are pairs (even, odd)."""
    parts = 1 + split
    x1, x2, g, c1, c2 = 0, 1, 2, 2 + parts, 3 + parts  # inputs; g is the cotangent of X1 X2, g + 1 that of X2 X1
    pairs = [(c1, x2), (x1, c2)] if pass_ == "bwdbwd" else [(x1, x2)]
    a, b = (c1, c2) if pass_ == "bwdbwd" else (x1, x2)
    forward, reverse = tuple((l, False, r, False) for l, r in pairs), tuple((r, False, l, False) for l, r in pairs)
    by_x1 = ((g, False, b, True), (b, True, g + 1, False))[:parts]
    by_x2 = ((a, True, g, False), (g + 1, False, a, True))[:parts]
    whole, gradients = [(lmax_out, forward), (lmax_out, reverse)][:parts], [[(lmax1, by_x1)], [(lmax2, by_x2)]]
    found = {"fwd": [whole], "bwd": gradients, "bwdbwd": [whole, *gradients]}[pass_]
    outputs = [output for part, want in zip(found, wanted, strict=True) if want for output in part]
    lmax_in = (lmax1, lmax2, *[lmax_out] * parts, lmax1, lmax2)[
        : {"fwd": 2, "bwd": 2 + parts, "bwdbwd": 4 + parts}[pass_]
    ]
    return MatrixProgram(
        size=2 * ((max(lmax1, lmax2, lmax_out) + 1) // 2) + 1,
        lmax_in=lmax_in,
        lmax_out=tuple(lmax for lmax, _ in outputs),
        pair_in=g if split and pass_ != "fwd" else -1,
        pair_out=0 if split and pass_ != "bwd" and wanted[0] else -1,
        terms=tuple(terms for _, terms in outputs),
    )


class Conversion(NamedTuple):
    """Components to a matrix and back, each entry for two places: matrices of even degrees are symmetric, those of odd
    ones antisymmetric.

    For a < b the symmetric part stands at (a, b) and the antisymmetric part at (b, a): with u and v at these places,
    butterflies (u + v, u - v) take this to a matrix X[a, b], X[b, a], and the adjoint likewise back. Entries are sorted
    by place, then by component.
    """

    place: np.ndarray  # [nnz] in the matrix flattened
    component: np.ndarray  # [nnz]
    to: np.ndarray  # [nnz] the part at the place is the sum of to x[component]
    back: np.ndarray  # [nnz] x[component] is the sum of back times what stands at the place


@lru_cache(maxsize=64)
def conversion(lmax: int, size: int) -> Conversion:
    """Of degrees 0..lmax to matrices of `size` rows."""
    m = matrices(lmax, size // 2)  # [(lmax+1)^2, size, size]
    odd = np.repeat(np.arange(lmax + 1) % 2, 2 * np.arange(lmax + 1) + 1)
    i, a, b = np.nonzero(np.triu(m))
    place = np.where(odd[i], b * size + a, a * size + b)
    order = np.lexsort((i, place))
    c = m[i, a, b][order]
    return Conversion(place[order], i[order], c, 4 * pi / size * c)

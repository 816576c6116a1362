"""Products of matrices that represent functions on the sphere (`eqtp.ops.matrix_tensor_product`) as data. No torch
here.

A `MatrixProgram` converts its inputs to matrices, sums products of two of them, and converts each sum back. The matrix
product and its derivatives have this form: with <A, B> = trace(A^T B), the gradients of Phi = <G, X1 X2> are G X2^T and
X1^T G.

Split in two, the parts (X1 X2 + X2 X1) / 2 and (X1 X2 - X2 X1) / 2 are half the sum and half the difference of two
products, and so are their cotangents. Two such signals are a pair, among the inputs or among the outputs.
"""

from __future__ import annotations

from functools import lru_cache
from math import pi
from typing import NamedTuple

import numpy as np

from eqtp.math.sphere import matrices


class MatrixProgram(NamedTuple):
    """Output o = sum over terms[o] of left @ right; a term is (left, left transposed, right, right transposed), left
    and right being inputs as matrices."""

    size: int  # 2 s+1, rows of the matrices
    lmax_in: tuple[int, ...]
    lmax_out: tuple[int, ...]
    # this input and the next are first replaced by half their sum and half their difference; -1: none
    pair_in: int
    pair_out: int  # the same for outputs, last
    terms: tuple[tuple[tuple[int, bool, int, bool], ...], ...]


@lru_cache(maxsize=1024)
def product(lmax1: int, lmax2: int, lmax_out: int, split: bool, pass_: str, wanted: tuple[bool, ...]) -> MatrixProgram:
    """A pass ("fwd", "bwd", "bwdbwd") of the matrix product, as in `eqtp.plans.signals.product`; split: the product and
    g are pairs (even, odd)."""
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
    """Components to a matrix and back. Each entry serves two places: matrices of even degree are symmetric, those of
    odd degree antisymmetric.

    For a < b the symmetric part is stored at (a, b) and the antisymmetric part at (b, a). With u and v at these places,
    butterflies (u + v, u - v) give X[a, b] and X[b, a]; the adjoint does the reverse. Entries are sorted by place, then
    by component.
    """

    place: np.ndarray  # [nnz] index into the flattened matrix
    component: np.ndarray  # [nnz]
    to: np.ndarray  # [nnz] the part at the place is the sum of to x[component]
    back: np.ndarray  # [nnz] x[component] is the sum of back times the part at the place


@lru_cache(maxsize=64)
def conversion(lmax: int, size: int) -> Conversion:
    """The conversion of degrees 0..lmax to matrices of `size` rows."""
    m = matrices(lmax, size // 2)  # [(lmax+1)^2, size, size]
    odd = np.repeat(np.arange(lmax + 1) % 2, 2 * np.arange(lmax + 1) + 1)
    i, a, b = np.nonzero(np.triu(m))
    place = np.where(odd[i], b * size + a, a * size + b)
    order = np.lexsort((i, place))
    c = m[i, a, b][order]
    return Conversion(place[order], i[order], c, 4 * pi / size * c)

"""Sums of products of components, from tables of coupling coefficients, as data. No torch here.

A `CouplingTable` gives each component of its outputs as a sum over groups of

    (one component, or 1) times the sum over the group's entries of  c a b,

a and b components of the inputs, which are concatenated. Clebsch-Gordan products, with a weight for each path, and
Gaunt products have this form, and so have their derivatives.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from math import sqrt

import numpy as np

from eqtp.math import so3
from eqtp.math.so3 import cg_paths
from eqtp.math.sphere import bracket as odd_coupling
from eqtp.math.sphere import table
from eqtp.plans.signals import OPERANDS, forms, signal_counts


class CouplingTable:
    """Equal only to itself: the functions below make each table once, so it is the key of what is compiled from it."""

    def __init__(self, inputs: Sequence[int], outputs: Sequence[int], entries: np.ndarray, coefficients: np.ndarray):
        """inputs, outputs: numbers of components. entries int [nnz, 4]: output component, scale (a component of the
        inputs, or -1), a, b."""
        order = np.lexsort(entries.T[::-1])
        entries, self.c = entries[order], coefficients[order]
        self.inputs, self.outputs = tuple(inputs), tuple(outputs)
        # [nnz] indices into the components of all inputs, concatenated
        self.a, self.b = entries[:, 2].astype(np.int32), entries[:, 3].astype(np.int32)
        groups, first = np.unique(entries[:, :2], axis=0, return_index=True)
        self.group_ptr = np.append(first, len(entries)).astype(np.int32)  # [groups + 1] into the entries
        self.scale = groups[:, 1].astype(np.int32)  # [groups] component that multiplies the group's sum; -1: none
        # [components of all outputs + 1] into the groups
        self.out_ptr = np.searchsorted(groups[:, 0], np.arange(sum(outputs) + 1)).astype(np.int32)


@lru_cache(maxsize=256)
def gaunt(kind: str, lmax1: int, lmax2: int, lmax_out: int, pass_: str, wanted: tuple[bool, ...]) -> CouplingTable:
    """The same as `eqtp.plans.signals.product`, inputs and outputs alike, by the tables of `eqtp.math.sphere`."""
    lmax, operands = (lmax1, lmax2, lmax_out, lmax1, lmax2), OPERANDS[pass_]
    count, outputs = signal_counts(kind, pass_, wanted)
    size = [(l + 1) ** 2 for l in lmax]
    start = np.concatenate([[0], np.cumsum([size[n] * count[n] for n in range(operands)])])
    entries, coefficients, first = [], [], 0
    for o in outputs:
        for s in range(count[o]):
            for (i, a), (j, b), sign, bracket in forms(kind, pass_)[o, s]:
                t = table(lmax[i], lmax[j], lmax[o], bracket)
                ia, jb = start[i] + a * size[i] + t.i, start[j] + b * size[j] + t.j
                entries.append(np.stack([first + t.k, np.full(len(t.k), -1), ia, jb], 1))
                coefficients.append(sign * t.c)
            first += size[o]
    sizes = [[size[n] for n in which for _ in range(count[n])] for which in (range(operands), outputs)]
    return CouplingTable(*sizes, np.concatenate(entries), np.concatenate(coefficients))


@lru_cache(maxsize=64)
def gaunt_weights(lmax1: int, lmax2: int, lmax_out: int, odd: bool) -> tuple[float, ...]:
    """[paths]: weights that make the Clebsch-Gordan product the Gaunt product, or (odd) its sum with the bracket."""
    factors = []
    for l1, l2, l3 in cg_paths(lmax1, lmax2, lmax_out):
        c = so3.gaunt(l1, l2, l3) if (l1 + l2 + l3) % 2 == 0 else odd_coupling(l1, l2, l3) * odd
        factors.append(float((c * so3.wigner_3j(l1, l2, l3)).sum()) / sqrt(2 * l3 + 1))
    return tuple(factors)


@lru_cache(maxsize=64)
def _cg_entries(lmax1: int, lmax2: int, lmax_out: int) -> tuple[np.ndarray, np.ndarray]:
    """(i, j, p, k) [nnz, 4] and c [nnz]: the product is the sum of c x1[i] x2[j] w[p] at k."""
    found, coefficients = [np.zeros((0, 4), int)], [np.zeros(0)]
    for p, (l1, l2, l3) in enumerate(cg_paths(lmax1, lmax2, lmax_out)):
        c = so3.wigner_3j(l1, l2, l3)
        i, j, k = np.nonzero(c)
        found.append(np.stack([i + l1 * l1, j + l2 * l2, np.full(len(i), p), k + l3 * l3], 1))
        coefficients.append(sqrt(2 * l3 + 1) * c[i, j, k])
    return np.concatenate(found), np.concatenate(coefficients)


@lru_cache(maxsize=256)
def cg(lmax1: int, lmax2: int, lmax_out: int, pass_: str, wanted: tuple[bool, ...]) -> CouplingTable:
    """A pass ("fwd", "bwd", "bwdbwd") of the Clebsch-Gordan product with a weight for each path.

    Inputs: x1, x2, w [, g [, c1, c2, cw]], operands 0..6. Outputs: the product (fwd), or the wanted gradients: of x1,
    x2, w (bwd), of g, x1, x2, w (bwdbwd). bwd differentiates <g, product>, bwdbwd the sum of the three forms in which
    one operand is replaced by its cotangent.
    """
    # the operands in the places of x1, x2, w, g; one of these is the output
    replaced = ((4, 1, 2, 3), (0, 5, 2, 3), (0, 1, 6, 3))
    terms = {
        "fwd": {3: [(0, 1, 2, 3)]},
        "bwd": {o: [(0, 1, 2, 3)] for o in (0, 1, 2)},
        "bwdbwd": {o: [t for t in replaced if o in t] for o in (3, 0, 1, 2)},
    }[pass_]
    outputs = [o for o, want in zip(terms, wanted, strict=True) if want]
    n1, n2, n3 = ((l + 1) ** 2 for l in (lmax1, lmax2, lmax_out))
    paths = len(cg_paths(lmax1, lmax2, lmax_out))
    size = (n1, n2, paths, n3, n1, n2, paths)
    inputs = size[: {"fwd": 3, "bwd": 4, "bwdbwd": 7}[pass_]]
    start, components, c = np.concatenate([[0], np.cumsum(size)]), *_cg_entries(lmax1, lmax2, lmax_out)
    entries, coefficients, first = [np.zeros((0, 4), int)], [np.zeros(0)], 0
    for o in outputs:
        for term in terms[o]:
            column = {place: start[operand] + components[:, place] for place, operand in enumerate(term)}
            out = first + components[:, term.index(o)]
            del column[term.index(o)]
            scale = column.pop(2 if 2 in column else 3)  # w scales the sum over a path; g, for the gradient of w
            entries.append(np.stack([out, scale, *column.values()], 1))
            coefficients.append(c)
        first += size[o]
    return CouplingTable(inputs, [size[o] for o in outputs], np.concatenate(entries), np.concatenate(coefficients))

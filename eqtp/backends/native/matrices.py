"""Products of matrices that represent functions on the sphere: csrc/matrices."""

from __future__ import annotations

from functools import lru_cache

import numpy as np

from eqtp.backends import registry
from eqtp.backends.native import library
from eqtp.backends.native.samples import sample_kernel
from eqtp.plans.matrices import MatrixProgram, conversion


@lru_cache(maxsize=256)
def _matrix_conversion(lmax: int, size: int):
    """Between the components of degrees 0..lmax and matrices (csrc/matrices/matrices.h)."""
    c = conversion(lmax, size)
    back = np.argsort(c.component, kind="stable")

    def ptr(ordered, count):
        return np.searchsorted(ordered, np.arange(count + 1)).tolist()

    to = ptr(c.place, size * size), c.component.tolist()
    return library._native.MatrixConversion(
        *to, ptr(c.component[back], (lmax + 1) ** 2), c.place[back].tolist(), c.to.tolist(), c.back[back].tolist()
    )


@lru_cache(maxsize=1024)
def _matrix_program(p: MatrixProgram):
    conversions = [[_matrix_conversion(lmax, p.size) for lmax in degrees] for degrees in (p.lmax_in, p.lmax_out)]
    ptr = np.cumsum([0, *map(len, p.terms)]).tolist()
    return library._native.MatrixProgram(
        p.size, *conversions, p.pair_in, p.pair_out, ptr, [int(x) for terms in p.terms for term in terms for x in term]
    )


registry.register(sample_kernel("matrices", "matrices", _matrix_program))

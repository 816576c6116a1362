"""Programs of signals on a folded grid: csrc/signals."""

from __future__ import annotations

from functools import lru_cache

import numpy as np

from eqtp.backends import registry
from eqtp.backends.native import library
from eqtp.backends.native.samples import sample_kernel
from eqtp.math import sphere
from eqtp.plans.signals import SignalProgram


@lru_cache(maxsize=256)
def _signal_tables(lmax: int, rows: int, columns: int):
    """Tables of the transforms of degrees 0..lmax on a folded grid (csrc/signals/signals.h)."""
    f, ordered = sphere.fold(lmax, rows, columns), np.ascontiguousarray
    back = f.azimuth.reshape(2, -1, 2, columns // 4).transpose(0, 2, 3, 1)  # [2, 2 (p), Q, M / 2]
    tables = [
        f.legendre,
        f.slope,
        f.steep,
        f.azimuth,
        f.turned,
        ordered(back),
        ordered(f.projection.transpose(0, 1, 3, 2)),
    ]
    return library._native.SignalTables(lmax, sphere.blocks(lmax).place.tolist(), [a.ravel().tolist() for a in tables])


@lru_cache(maxsize=1024)
def _signal_program(program: SignalProgram):
    fields = [(n, field) for n in range(len(program.lmax_in)) for field in program.fields(n)]
    terms = [term for of_output in program.terms for term in of_output]

    def ptr(lengths):
        return np.cumsum([0, *lengths]).tolist()

    return library._native.SignalProgram(
        program.rows // 2,
        program.columns // 4,
        *(
            [_signal_tables(lmax, program.rows, program.columns) for lmax in degrees]
            for degrees in (program.lmax_in, program.lmax_out)
        ),
        [x for field in fields for x in field],
        ptr(map(len, program.terms)),
        [term.coefficient for term in terms],
        ptr(len(term.factors) for term in terms),
        [fields.index(factor) for term in terms for factor in term.factors],
    )


registry.register(sample_kernel("signals", "signals", _signal_program))

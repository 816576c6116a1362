"""Sums of products by a table of couplings: csrc/couplings."""

from __future__ import annotations

from functools import lru_cache

from eqtp.backends import registry
from eqtp.backends.native import library
from eqtp.backends.native.samples import sample_kernel
from eqtp.plans.couplings import CouplingTable


@lru_cache(maxsize=256)
def _coupling_table(c: CouplingTable):
    return library._native.CouplingTable(
        c.inputs, c.outputs, *(a.tolist() for a in (c.out_ptr, c.group_ptr, c.scale, c.a, c.b, c.c))
    )


registry.register(sample_kernel("couplings", "couple", _coupling_table))

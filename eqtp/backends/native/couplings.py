"""Sums of products by a table of couplings: csrc/couplings."""

from __future__ import annotations

from functools import lru_cache

import torch

from eqtp.backends import registry
from eqtp.backends.native import library
from eqtp.backends.native.samples import run_samples
from eqtp.plans.calls import Pass
from eqtp.plans.couplings import CouplingTable


def _why_not(plan: None, device: torch.device, dtype: torch.dtype) -> str | None:
    return library.why_not("couple", device, dtype)


@lru_cache(maxsize=256)
def _coupling_table(c: CouplingTable):
    return library._native.CouplingTable(
        c.inputs, c.outputs, *(a.tolist() for a in (c.out_ptr, c.group_ptr, c.scale, c.a, c.b, c.c))
    )


def run(table: CouplingTable, pass_: Pass, inputs, outputs) -> None:
    """inputs, outputs: [b, c, components] each, the last dimension contiguous, strides of b and c free."""
    run_samples(library._native.couple, _coupling_table(table), inputs, outputs)


registry.register(
    registry.Kernel(
        engine="couplings",
        family="native",
        devices=("cpu",),
        why_not=_why_not,
        run=run,
        sources=("csrc/couplings/couplings.cpp",),
    )
)

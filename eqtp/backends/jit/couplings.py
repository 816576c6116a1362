"""`CouplingTable`s (`eqtp.plans.couplings`) as compile-time tables for csrc/couplings/couplings.cuh."""

from __future__ import annotations

from functools import lru_cache

import numpy as np
import torch

from eqtp.backends import registry
from eqtp.backends.jit.samples import (
    MAX_UNROLLED_ENTRIES,
    SpecialisedKernel,
    kernel_text,
    members_text,
    running_sum,
    sample_kernel,
    sample_tile,
    tables_text,
)
from eqtp.backends.jit.toolchain import GPU, STORAGE, Toolchain
from eqtp.plans.couplings import CouplingTable

FILE = "couplings/couplings.cuh"


@lru_cache(maxsize=1024)
def specialise(couplings: CouplingTable, dtype: torch.dtype) -> SpecialisedKernel | None:
    """The kernel of a table; None if it has no entries. Raises RuntimeError for rows that are too long."""
    if not len(couplings.c):
        return None
    c = couplings
    first = np.array(running_sum(c.inputs))
    needed = np.unique(np.concatenate([c.a, c.b, c.scale[c.scale >= 0]]))
    used = np.unique(np.searchsorted(first, needed, "right") - 1)  # inputs
    first_in, first_out = running_sum(c.inputs[n] for n in used), running_sum(c.outputs)
    shift = np.zeros(first[-1] + 1, int)  # of each component, to its row in the tile; one more for scale -1
    for n, to in zip(used, first_in, strict=False):
        shift[first[n] : first[n + 1]] = to - first[n]
    unroll = 2 * len(c.c) + 2 * len(c.scale) <= MAX_UNROLLED_ENTRIES
    itemsize, tensors = 8 if dtype == torch.float64 else 4, len(used) + len(c.outputs)
    tile = sample_tile("couple", 1 if unroll else 8, tensors, lambda workers: first_in[-1] + first_out[-1], itemsize)
    number, short = "double" if dtype == torch.float64 else "float", "short" if first_in[-1] < 2**15 else "int"
    tables = {
        "group": (c.out_ptr, "int"),
        "scale": (c.scale + shift[c.scale], short),
        "entry": (c.group_ptr, "int"),
        "a": (c.a + shift[c.a], short),
        "b": (c.b + shift[c.b], short),
        "c": (c.c, number),
    }
    text, readers = tables_text("COUPLING", tables)
    members = members_text(
        SAMPLES=tile.samples,
        WORKERS=tile.workers,
        UNROLL=int(unroll),
        IN=len(used),
        OUT=len(c.outputs),
        FIRST_IN=first_in,
        FIRST_OUT=first_out,
    )
    threads = tile.samples * tile.workers
    text += f"struct Plan {{\n{members}{readers}}};\n" + kernel_text(
        "couple", STORAGE[dtype], threads, 0, len(used), len(c.outputs)
    )
    return SpecialisedKernel(
        f"namespace eqtp {{\n{text}}}\n",
        "eqtp::couple_kernel",
        tuple(used.tolist()),
        tile.samples,
        threads,
        tile.shared,
    )


def kernel(toolchain: Toolchain) -> registry.Kernel:
    """The kernels, built and launched by a toolchain."""
    return sample_kernel("couplings", FILE, specialise, toolchain)


registry.register(kernel(GPU))

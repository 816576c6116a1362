"""Programs of signals on a folded grid (`eqtp.plans.signals`) as compile-time tables for csrc/signals/signals.cuh."""

from __future__ import annotations

from functools import lru_cache

import numpy as np
import torch

from eqtp.backends import registry
from eqtp.backends.jit.samples import (
    SpecialisedKernel,
    array_text,
    kernel_text,
    members_text,
    memory_space,
    running_sum,
    sample_kernel,
    sample_tile,
)
from eqtp.backends.jit.toolchain import GPU, STORAGE, Toolchain
from eqtp.math import sphere
from eqtp.plans.signals import SignalProgram

FILE = "signals/signals.cuh"
KINDS = ("VALUE", "DOWN", "EAST")  # fields of an input in C++
MAX_UNROLLED_INSTRUCTIONS = 4000  # of a row of a program: with more, its columns are a loop
# numbers in a row of a program: with more, unrolled columns would spill; fitted to what ptxas reports
MAX_UNROLLED_NUMBERS = 220


def _slots(lmax: int) -> int:
    """Number of parts (x, m, y) of one field."""
    return 4 * lmax or 1


def _triangle(lmax: int, table: np.ndarray, rows: int) -> np.ndarray:
    """[M, 2, K, R] -> [rows, (m, l)], zeros after R rows; the order of `harmonic` in C++."""
    picked = np.zeros((rows, (lmax + 1) * (lmax + 2) // 2))
    places = [(m, (l - m) % 2, (l - m) // 2) for m in range(lmax + 1) for l in range(m, lmax + 1)]
    picked[: table.shape[-1]] = table[tuple(np.array(places).T)].T
    return picked


def _synthesis(program: SignalProgram, fields: list[tuple[int, int]], rows: int) -> tuple[dict[str, np.ndarray], str]:
    """Tables by name, without duplicates, and the C++ functions `synthesis`, `projection`, `azimuth` that read them."""
    tables, functions = {}, {"synthesis": [], "projection": []}
    uses = [("synthesis", program.lmax_in[n], ("legendre", "slope", "steep")[field]) for n, field in fields]
    uses += [("projection", lmax, "projection") for lmax in program.lmax_out]
    for function, lmax, kind in uses:
        name = f"{kind.upper()}_{lmax}"
        if name not in tables:
            fold = sphere.fold(lmax, program.rows, program.columns)
            tables[name] = _triangle(lmax, getattr(fold, kind), rows)
        functions[function].append(f"{name}[r * {tables[name].shape[1]} + n]")
    tables["AZIMUTH"] = sphere.fold(
        max(program.lmax_in + program.lmax_out), program.rows, program.columns
    ).azimuth  # [2, M, Q]
    text = ""
    for function, reads in functions.items():
        last = len(reads) - 1
        chosen = "".join(
            f"    {'else ' * bool(n)}{f'if constexpr (I == {n}) ' * (n < last)}return {read};\n"
            for n, read in enumerate(reads)
        )
        text += f"  template <int I>\n  static __device__ constexpr Number {function}(int r, int n) {{\n{chosen}  }}\n"
    _, m, columns = tables["AZIMUTH"].shape
    body = f"{{ return AZIMUTH[(x * {m} + m) * {columns} + c]; }}"
    return tables, f"{text}  static __device__ constexpr Number azimuth(int x, int m, int c) {body}\n"


@lru_cache(maxsize=1024)
def specialise(program: SignalProgram, dtype: torch.dtype) -> SpecialisedKernel | None:
    """The kernel of a program; None if it has no terms, so that all outputs are zero. Raises RuntimeError for one that
    is too large."""
    fields = [(n, field) for n in range(len(program.lmax_in)) for field in program.fields(n)]
    if not fields:
        return None
    used = tuple(sorted({n for n, _ in fields}))
    rows, columns, itemsize = program.rows // 2, program.columns // 4, 8 if dtype == torch.float64 else 4
    lmax_in, terms = [program.lmax_in[n] for n in used], [t for terms in program.terms for t in terms]
    first_in, first_out = (running_sum((l + 1) ** 2 for l in lmax) for lmax in (lmax_in, program.lmax_out))
    part = running_sum(_slots(program.lmax_in[n]) for n, _ in fields)
    total = running_sum(_slots(l) for l in program.lmax_out)

    def numbers(workers: int) -> int:
        # where a worker has one row, the inputs are no longer needed when the outputs are written
        both = max(first_in[-1], first_out[-1]) if workers == rows else first_in[-1] + first_out[-1]
        return both + workers * total[-1]

    tile = sample_tile("signals", rows, len(used) + len(program.lmax_out), numbers, itemsize)
    column = part[-1] + total[-1] + 24 * (len(fields) + len(program.lmax_out)) + 8 * sum(len(t.factors) for t in terms)
    registers = part[-1] + total[-1] + 8 * (len(fields) + 1)
    tables, functions = _synthesis(program, fields, -(-rows // tile.workers) * tile.workers)
    number = "double" if dtype == torch.float64 else "float"
    space = memory_space(sum(t.size for t in tables.values()) * itemsize)
    members = members_text(
        SAMPLES=tile.samples,
        WORKERS=tile.workers,
        UNROLL=int(column * columns <= MAX_UNROLLED_INSTRUCTIONS and registers <= MAX_UNROLLED_NUMBERS),
        ROWS=rows,
        COLUMNS=columns,
        IN=len(used),
        OUT=len(program.lmax_out),
        FIELDS=len(fields),
        FIRST_IN=first_in,
        FIRST_OUT=first_out,
        LMAX_IN=lmax_in,
        LMAX_OUT=list(program.lmax_out),
        SUM=total,
        OF=[used.index(n) for n, _ in fields],
        KIND=[KINDS[field] for _, field in fields],
        PART=part,
        TERM=running_sum(map(len, program.terms)),
        C=[float(t.coefficient) for t in terms],
        FACTOR=running_sum(len(t.factors) for t in terms),
        FIELD=[fields.index(factor) for t in terms for factor in t.factors],
    )
    text = "".join(array_text(space, name, table, number) for name, table in tables.items())
    text += f"struct Plan {{\n  using Number = {number};\n{members}{functions}}};\n"
    threads = tile.samples * tile.workers
    text += kernel_text("signals", STORAGE[dtype], threads, registers * itemsize // 4, len(used), len(program.lmax_out))
    return SpecialisedKernel(
        f"namespace eqtp {{\n{text}}}\n", "eqtp::signals_kernel", used, tile.samples, threads, tile.shared
    )


def kernel(toolchain: Toolchain) -> registry.Kernel:
    """The kernels, built and launched by a toolchain."""
    return sample_kernel("signals", FILE, specialise, toolchain)


registry.register(kernel(GPU))

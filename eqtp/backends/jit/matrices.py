"""Products of matrices (`eqtp.plans.matrices`) as compile-time tables for csrc/matrices/matrices.cuh."""

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
from eqtp.plans.matrices import MatrixProgram, conversion

FILE = "matrices/matrices.cuh"
MAX_SUMS = 36  # elements of a product of matrices that a thread keeps in registers
# threads that read the same element of a table, for it to be in constant memory, where reads of different elements are
# slow
MIN_BROADCAST_THREADS = 16


def _register_block(size: int) -> tuple[int, int]:
    """Rows and columns of the sums that a thread keeps in registers: as few blocks as possible, with as few rows
    computed twice as possible."""
    rows = min((3, 4, 5), key=lambda n: -(-size // n) * n)
    count = -(-size // (MAX_SUMS // rows))  # blocks beside each other
    return min(rows, size), -(-size // count)


def _conversions(program: MatrixProgram, inputs: list[int]) -> tuple[dict[str, np.ndarray], list[int], list[int]]:
    """Tables `first`, `at` and `c` of sums, and the first sum of each input (parts in the order of pairs) and of each
    output (components)."""
    n, lengths, at, c = program.size, [], [], []
    start: dict[tuple[bool, int], int] = {}  # first sum
    pair = np.arange(n * (n + 1) // 2)
    a, b = np.sort([pair % n, (pair % n + pair // n) % n], axis=0)
    rank = np.zeros(n * n, int)  # of each place in that order: upper, lower, upper, ..; on the diagonal only upper
    rank[b * n + a], rank[a * n + b] = 2 * pair + 1, 2 * pair
    for back, lmax in dict.fromkeys(
        [(False, program.lmax_in[i]) for i in inputs] + [(True, lmax) for lmax in program.lmax_out]
    ):
        found = conversion(lmax, n)
        key, numbers = (found.component, (lmax + 1) ** 2) if back else (rank[found.place], 2 * len(pair))
        order = np.argsort(key, kind="stable")
        start[back, lmax] = len(lengths)
        lengths += np.bincount(key, minlength=numbers).tolist()
        at.append((found.place if back else found.component)[order])
        c.append((found.back if back else found.to)[order])
    tables = {"first": np.array(running_sum(lengths)), "at": np.concatenate(at), "c": np.concatenate(c)}
    return tables, [start[False, program.lmax_in[i]] for i in inputs], [start[True, lmax] for lmax in program.lmax_out]


@lru_cache(maxsize=1024)
def specialise(program: MatrixProgram, dtype: torch.dtype) -> SpecialisedKernel:
    """The kernel of a program. Raises RuntimeError for one that is too large."""
    terms = [term for terms in program.terms for term in terms]
    used = sorted({n for left, _, right, _ in terms for n in (left, right)})  # of a pair both
    first_in = running_sum((program.lmax_in[n] + 1) ** 2 for n in used)
    first_out = running_sum((lmax + 1) ** 2 for lmax in program.lmax_out)
    itemsize, size, tensors = 8 if dtype == torch.float64 else 4, program.size, len(used) + len(program.lmax_out)
    rows, columns = _register_block(size)
    numbers = (len(used) + 1) * size**2 + max(first_in[-1], first_out[-1])
    tile = sample_tile("matrices", -(-size // rows) * -(-size // columns), tensors, lambda workers: numbers, itemsize)
    tables, to, back = _conversions(program, used)
    entries = sum(len(conversion(lmax, size).to) for lmax in [*(program.lmax_in[n] for n in used), *program.lmax_out])
    kinds = {"first": "int", "at": "short", "c": "double" if dtype == torch.float64 else "float"}
    typed = {name: (values, kinds[name]) for name, values in tables.items()}
    text, readers = tables_text("MATRIX", typed, tile.samples >= MIN_BROADCAST_THREADS)
    members = members_text(
        SAMPLES=tile.samples,
        WORKERS=tile.workers,
        UNROLL=int(2 * entries <= MAX_UNROLLED_ENTRIES and (tile.workers == 1 or tile.samples == 32)),
        SIZE=size,
        ROWS=rows,
        COLUMNS=columns,
        IN=len(used),
        OUT=len(program.lmax_out),
        FIRST_IN=first_in,
        FIRST_OUT=first_out,
        PAIR_IN=used.index(program.pair_in) if program.pair_in in used else -1,
        PAIR_OUT=program.pair_out,
        TERM=running_sum(map(len, program.terms)),
        LEFT=[used.index(left) for left, _, _, _ in terms],
        RIGHT=[used.index(right) for _, _, right, _ in terms],
        LEFT_TRANSPOSED=[int(transposed) for _, transposed, _, _ in terms],
        RIGHT_TRANSPOSED=[int(transposed) for _, _, _, transposed in terms],
        TO=to,
        BACK=back,
    )
    threads, registers = tile.samples * tile.workers, (rows * columns + columns + 30) * itemsize // 4
    text += f"struct Plan {{\n{members}{readers}}};\n" + kernel_text(
        "matrices", STORAGE[dtype], threads, registers, len(used), len(program.lmax_out)
    )
    return SpecialisedKernel(
        f"namespace eqtp {{\n{text}}}\n", "eqtp::matrices_kernel", tuple(used), tile.samples, threads, tile.shared
    )


def kernel(toolchain: Toolchain) -> registry.Kernel:
    """The kernels, built and launched by a toolchain."""
    return sample_kernel("matrices", FILE, specialise, toolchain)


registry.register(kernel(GPU))

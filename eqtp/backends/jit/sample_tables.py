"""Programs (`eqtp.plans.signals`), couplings (`eqtp.plans.couplings`) and programs of matrices (`eqtp.plans.matrices`)
as compile-time tables: a C++ struct of numbers and an entry point, for csrc/signals/signals.cuh,
csrc/couplings/couplings.cuh and csrc/matrices/matrices.cuh.

Every kernel takes C, B C, and for each input that is used and each output a pointer and the strides of B and C.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import lru_cache
from typing import NamedTuple

import numpy as np
import torch

from eqtp.backends.jit.channelwise_tables import MAX_BLOCKS, STORAGE
from eqtp.math import sphere
from eqtp.plans import matrices as matrix_data
from eqtp.plans.couplings import Couplings
from eqtp.plans.signals import Program

KINDS = ("VALUE", "DOWN", "EAST")  # fields of an input in C++
TILES = (32, 16, 8, 4, 2, 1)  # samples of a tile
SHARED = 96 * 1024  # bytes of a block, which every GPU since 2020 has
MULTIPROCESSOR = (
    224 * 1024
)  # bytes of shared memory that blocks beside each other have (H100 and later), only to choose between tiles
ENOUGH = 16  # warps of a multiprocessor: with the registers of these kernels there are seldom more
MAX_THREADS = 256  # of a block: a thread may have all registers there are
CONSTANT = 60 * 1024  # bytes of tables that fit the constant memory; longer ones are read through the caches
UNROLLED = 4000  # instructions of a row of a program up to which its columns are no loop
COUPLED = (
    1500  # instructions of couplings, or to and from matrices, up to which their tables are instructions, not data
)
SUMS = 36  # of products of matrices that a thread has in registers at most
# threads that read the same place of a table from which on it stands in constant memory, which is slow for different
# places
TOGETHER = 16
FEW = 100  # registers with which ENOUGH warps fit
# numbers that a row of a program works on, up to which its columns are unrolled without spills; fitted to what ptxas
# reports
REGISTERS = 220


class Specialised(NamedTuple):
    """A kernel: what follows the text of its file, its name, the inputs it takes, and its launch."""

    text: str
    name: str
    inputs: tuple[int, ...]  # those that are used
    samples: int  # of a tile, of a block of threads
    threads: int
    shared: int  # bytes

    def blocks(self, samples: int) -> int:
        """Blocks of threads for this many samples."""
        return min(-(-samples // self.samples), MAX_BLOCKS)


class Tile(NamedTuple):
    """How samples are spread over threads: samples x workers threads in a block."""

    samples: int
    workers: int
    shared: int  # bytes


def _tile(op: str, most: int, tensors: int, numbers, itemsize: int) -> Tile:
    """The tile that keeps most threads at work. most: rows that workers share; numbers(workers): numbers of a sample in
    shared memory."""
    best, score = None, 0.0
    for samples in TILES:
        for workers in range(min(most, MAX_THREADS // samples), 0, -1):
            shared = tensors * samples * 8 + numbers(workers) * (samples | 1) * itemsize
            blocks = min(MULTIPROCESSOR // shared, ENOUGH // -(-samples * workers // 32))
            busy = blocks * samples * most / -(-most // workers)  # threads at work, on average
            busy *= samples**0.25  # those of one row read the same tables; a guess, not a measurement
            if shared <= SHARED and busy > score:
                best, score = Tile(samples, workers, shared), busy
    if best is None:
        raise RuntimeError(f"{op}: inputs and outputs with {numbers(1)} numbers do not fit the shared memory of a GPU")
    return best


def _running(counts: Iterable[int]) -> list[int]:
    return [0, *np.cumsum([*counts]).tolist()]


def _members(**arrays: Sequence) -> str:
    """Constants of a struct: integers, lists of integers, and the doubles C."""
    text = ""
    for name, value in arrays.items():
        if isinstance(value, int):
            text += f"  static constexpr int {name} = {value};\n"
        else:
            kind = "double" if name == "C" else "int"
            text += f"  static constexpr {kind} {name}[] = {{{', '.join(map(str, value or [0]))}}};\n"
    return text


def _array(space: str, name: str, values: np.ndarray, kind: str) -> str:
    flat = values.ravel().tolist() or [0]
    return f"{space} constexpr {kind} {name}[] = {{{', '.join(x.hex() if isinstance(x, float) else str(x) for x in flat)}}};\n"


def _space(size: int) -> str:
    """Where tables of this many bytes stand."""
    return "__constant__" if size <= CONSTANT else "__device__"


def _entry(op: str, storage: str, threads: int, registers: int, inputs: int, outputs: int) -> str:
    """The kernel `eqtp::{op}_kernel`. registers: about how many a thread needs."""
    resident = (
        max(1, ENOUGH // -(-threads // 32)) if registers <= FEW else 1
    )  # told nothing, ptxas spills for the sake of more blocks
    tensors = [("const " + storage, f"in{n}") for n in range(inputs)] + [(storage, f"out{n}") for n in range(outputs)]
    parameters = "".join(f", {kind}* {name}, Index {name}_batch, Index {name}_channel" for kind, name in tensors)
    rows = [f"{{{name}, {name}_batch, {name}_channel}}" for _, name in tensors]
    return f"""__global__ void __launch_bounds__({threads}, {resident}) {op}_kernel(Index channels, Index samples{parameters}) {{
  const SampleRows<const {storage}> in[] = {{{", ".join(rows[:inputs])}}};
  const SampleRows<{storage}> out[] = {{{", ".join(rows[inputs:])}}};
  {op}<Plan>(channels, samples, in, out);
}}
"""


# ------------------------------------------------------------------------------------------------ programs
def _slots(lmax: int) -> int:
    """Parts (x, m, y) that there are of one field."""
    return 4 * lmax or 1


def _triangle(lmax: int, table: np.ndarray, rows: int) -> np.ndarray:
    """[M, 2, K, R] -> [rows, (m, l)], zeros after R rows; the order of `harmonic` in C++."""
    picked = np.zeros((rows, (lmax + 1) * (lmax + 2) // 2))
    places = [(m, (l - m) % 2, (l - m) // 2) for m in range(lmax + 1) for l in range(m, lmax + 1)]
    picked[: table.shape[-1]] = table[tuple(np.array(places).T)].T
    return picked


def _synthesis(program: Program, fields: list[tuple[int, int]], rows: int) -> tuple[dict[str, np.ndarray], str]:
    """Tables by name, each once, and the functions `synthesis`, `projection` and `azimuth` that read them."""
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
    return (
        tables,
        f"{text}  static __device__ constexpr Number azimuth(int x, int m, int c) {{ return AZIMUTH[(x * {m} + m) * {columns} + c]; }}\n",
    )


@lru_cache(maxsize=1024)
def signals(program: Program, dtype: torch.dtype) -> Specialised | None:
    """The kernel of a program; None if it has no terms, so that all outputs are zero. Raises RuntimeError for one too
    large."""
    fields = [(n, field) for n in range(len(program.lmax_in)) for field in program.fields(n)]
    if not fields:
        return None
    used = tuple(sorted({n for n, _ in fields}))
    rows, columns, itemsize = program.rows // 2, program.columns // 4, 8 if dtype == torch.float64 else 4
    lmax_in, terms = [program.lmax_in[n] for n in used], [t for terms in program.terms for t in terms]
    first_in, first_out = (_running((l + 1) ** 2 for l in lmax) for lmax in (lmax_in, program.lmax_out))
    part, total = _running(_slots(program.lmax_in[n]) for n, _ in fields), _running(_slots(l) for l in program.lmax_out)

    def numbers(
        workers: int,
    ) -> int:  # where a worker has one row, inputs are not needed any more when outputs are made
        both = max(first_in[-1], first_out[-1]) if workers == rows else first_in[-1] + first_out[-1]
        return both + workers * total[-1]

    tile = _tile("signals", rows, len(used) + len(program.lmax_out), numbers, itemsize)
    column = part[-1] + total[-1] + 24 * (len(fields) + len(program.lmax_out)) + 8 * sum(len(t.factors) for t in terms)
    registers = part[-1] + total[-1] + 8 * (len(fields) + 1)
    tables, functions = _synthesis(program, fields, -(-rows // tile.workers) * tile.workers)
    number = "double" if dtype == torch.float64 else "float"
    space = _space(sum(t.size for t in tables.values()) * itemsize)
    members = _members(
        SAMPLES=tile.samples,
        WORKERS=tile.workers,
        UNROLL=int(column * columns <= UNROLLED and registers <= REGISTERS),
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
        TERM=_running(map(len, program.terms)),
        C=[float(t.coefficient) for t in terms],
        FACTOR=_running(len(t.factors) for t in terms),
        FIELD=[fields.index(factor) for t in terms for factor in t.factors],
    )
    text = "".join(_array(space, name, table, number) for name, table in tables.items())
    text += f"struct Plan {{\n  using Number = {number};\n{members}{functions}}};\n"
    threads = tile.samples * tile.workers
    text += _entry("signals", STORAGE[dtype], threads, registers * itemsize // 4, len(used), len(program.lmax_out))
    return Specialised(
        f"namespace eqtp {{\n{text}}}\n", "eqtp::signals_kernel", used, tile.samples, threads, tile.shared
    )


# ------------------------------------------------------------------------------------------------ couplings
@lru_cache(maxsize=1024)
def couple(couplings: Couplings, dtype: torch.dtype) -> Specialised | None:
    """The kernel of couplings; None if they have no entries. Raises RuntimeError for rows too long."""
    if not len(couplings.c):
        return None
    c = couplings
    first = np.array(_running(c.inputs))
    needed = np.unique(np.concatenate([c.a, c.b, c.scale[c.scale >= 0]]))
    used = np.unique(np.searchsorted(first, needed, "right") - 1)  # inputs
    first_in, first_out = _running(c.inputs[n] for n in used), _running(c.outputs)
    shift = np.zeros(first[-1] + 1, int)  # of each component, to where it stands in the tile; one more for scale -1
    for n, to in zip(used, first_in, strict=False):
        shift[first[n] : first[n + 1]] = to - first[n]
    unroll = 2 * len(c.c) + 2 * len(c.scale) <= COUPLED
    itemsize, tensors = 8 if dtype == torch.float64 else 4, len(used) + len(c.outputs)
    tile = _tile("couple", 1 if unroll else 8, tensors, lambda workers: first_in[-1] + first_out[-1], itemsize)
    number, short = "double" if dtype == torch.float64 else "float", "short" if first_in[-1] < 2**15 else "int"
    tables = {
        "group": (c.out_ptr, "int"),
        "scale": (c.scale + shift[c.scale], short),
        "entry": (c.group_ptr, "int"),
        "a": (c.a + shift[c.a], short),
        "b": (c.b + shift[c.b], short),
        "c": (c.c, number),
    }
    space = _space(sum(len(values) * {"short": 2, "double": 8}.get(kind, 4) for values, kind in tables.values()))
    text = "".join(_array(space, f"COUPLING_{name.upper()}", values, kind) for name, (values, kind) in tables.items())
    members = _members(
        SAMPLES=tile.samples,
        WORKERS=tile.workers,
        UNROLL=int(unroll),
        IN=len(used),
        OUT=len(c.outputs),
        FIRST_IN=first_in,
        FIRST_OUT=first_out,
    )
    for name, (_, kind) in tables.items():
        members += f"  static __device__ constexpr {kind} {name}(int i) {{ return COUPLING_{name.upper()}[i]; }}\n"
    threads = tile.samples * tile.workers
    text += f"struct Plan {{\n{members}}};\n" + _entry("couple", STORAGE[dtype], threads, 0, len(used), len(c.outputs))
    return Specialised(
        f"namespace eqtp {{\n{text}}}\n",
        "eqtp::couple_kernel",
        tuple(used.tolist()),
        tile.samples,
        threads,
        tile.shared,
    )


# ------------------------------------------------------------------------------------------------ matrices
def _block(size: int) -> tuple[int, int]:
    """Rows and columns of the sums that a thread has in registers: as few blocks as there may be, with few rows that
    two of them make."""
    rows = min((3, 4, 5), key=lambda n: -(-size // n) * n)
    count = -(-size // (SUMS // rows))  # blocks beside each other
    return min(rows, size), -(-size // count)


def _conversions(program: matrix_data.Program, inputs: list[int]) -> tuple[dict[str, np.ndarray], list[int], list[int]]:
    """Tables `first`, `at` and `c` of sums, and the first sum of each input and of each output: parts in the order of
    pairs, and components."""
    n, lengths, at, c = program.size, [], [], []
    start: dict[tuple[bool, int], int] = {}  # first sum
    pair = np.arange(n * (n + 1) // 2)
    a, b = np.sort([pair % n, (pair % n + pair // n) % n], axis=0)
    rank = np.zeros(n * n, int)  # of the places in that order: upper, lower, upper, ..; on the diagonal only upper ones
    rank[b * n + a], rank[a * n + b] = 2 * pair + 1, 2 * pair
    for back, lmax in dict.fromkeys(
        [(False, program.lmax_in[i]) for i in inputs] + [(True, lmax) for lmax in program.lmax_out]
    ):
        found = matrix_data.conversion(lmax, n)
        key, numbers = (found.component, (lmax + 1) ** 2) if back else (rank[found.place], 2 * len(pair))
        order = np.argsort(key, kind="stable")
        start[back, lmax] = len(lengths)
        lengths += np.bincount(key, minlength=numbers).tolist()
        at.append((found.place if back else found.component)[order])
        c.append((found.back if back else found.to)[order])
    tables = {"first": np.array(_running(lengths)), "at": np.concatenate(at), "c": np.concatenate(c)}
    return tables, [start[False, program.lmax_in[i]] for i in inputs], [start[True, lmax] for lmax in program.lmax_out]


@lru_cache(maxsize=1024)
def matrices(program: matrix_data.Program, dtype: torch.dtype) -> Specialised:
    """The kernel of a program of matrices. Raises RuntimeError for one too large."""
    terms = [term for terms in program.terms for term in terms]
    used = sorted({n for left, _, right, _ in terms for n in (left, right)})  # of a pair both
    first_in = _running((program.lmax_in[n] + 1) ** 2 for n in used)
    first_out = _running((lmax + 1) ** 2 for lmax in program.lmax_out)
    itemsize, size, tensors = 8 if dtype == torch.float64 else 4, program.size, len(used) + len(program.lmax_out)
    rows, columns = _block(size)
    numbers = (len(used) + 1) * size**2 + max(first_in[-1], first_out[-1])
    tile = _tile("matrices", -(-size // rows) * -(-size // columns), tensors, lambda workers: numbers, itemsize)
    tables, to, back = _conversions(program, used)
    entries = sum(
        len(matrix_data.conversion(lmax, size).to) for lmax in [*(program.lmax_in[n] for n in used), *program.lmax_out]
    )
    kinds = {"first": "int", "at": "short", "c": "double" if dtype == torch.float64 else "float"}
    length = sum(len(values) * {"first": 4, "at": 2, "c": itemsize}[name] for name, values in tables.items())
    space = _space(length if tile.samples >= TOGETHER else CONSTANT + 1)
    text = "".join(_array(space, f"MATRIX_{name.upper()}", values, kinds[name]) for name, values in tables.items())
    members = _members(
        SAMPLES=tile.samples,
        WORKERS=tile.workers,
        UNROLL=int(2 * entries <= COUPLED and (tile.workers == 1 or tile.samples == 32)),
        SIZE=size,
        ROWS=rows,
        COLUMNS=columns,
        IN=len(used),
        OUT=len(program.lmax_out),
        FIRST_IN=first_in,
        FIRST_OUT=first_out,
        PAIR_IN=used.index(program.pair_in) if program.pair_in in used else -1,
        PAIR_OUT=program.pair_out,
        TERM=_running(map(len, program.terms)),
        LEFT=[used.index(left) for left, _, _, _ in terms],
        RIGHT=[used.index(right) for _, _, right, _ in terms],
        LEFT_TURNED=[int(turned) for _, turned, _, _ in terms],
        RIGHT_TURNED=[int(turned) for _, _, _, turned in terms],
        TO=to,
        BACK=back,
    )
    for name, kind in kinds.items():
        members += f"  static __device__ constexpr {kind} {name}(int i) {{ return MATRIX_{name.upper()}[i]; }}\n"
    threads, registers = tile.samples * tile.workers, (rows * columns + columns + 30) * itemsize // 4
    text += f"struct Plan {{\n{members}}};\n" + _entry(
        "matrices", STORAGE[dtype], threads, registers, len(used), len(program.lmax_out)
    )
    return Specialised(
        f"namespace eqtp {{\n{text}}}\n", "eqtp::matrices_kernel", tuple(used), tile.samples, threads, tile.shared
    )

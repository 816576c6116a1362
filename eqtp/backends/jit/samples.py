"""Specialised kernels whose threads work on samples: their text, their sizes, their launch.

Every kernel takes C, B C, and for each used input and each output a pointer and the strides of B and C.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple

import numpy as np

from eqtp.backends import registry
from eqtp.backends.jit.toolchain import MAX_BLOCKS, Toolchain

TILE_SAMPLES = (32, 16, 8, 4, 2, 1)  # samples of a tile, to choose from
MAX_SHARED = 96 * 1024  # bytes of shared memory of a block, which every GPU since 2020 has
SHARED_PER_SM = 224 * 1024  # bytes of shared memory of a multiprocessor (H100 and later), to choose between tiles
WARPS_PER_SM = 16  # resident on a multiprocessor: these kernels' registers seldom allow more
FEW_REGISTERS = 100  # of a thread, with which WARPS_PER_SM warps are resident
MAX_THREADS = 256  # of a block: each may have the maximum of 255 registers
TYPE_BYTES = {"short": 2, "int": 4, "float": 4, "double": 8}
MAX_CONSTANT_BYTES = 60 * 1024  # of tables in constant memory; longer ones are in global memory
MAX_UNROLLED_ENTRIES = 1500  # of couplings or conversions: with more, tables are data, not instructions


class SpecialisedKernel(NamedTuple):
    """A kernel: the text that follows its file, its name, its inputs and its launch."""

    text: str
    name: str
    inputs: tuple[int, ...]  # those that are used
    samples: int  # per block of threads
    threads: int  # per block
    shared: int  # bytes of dynamic shared memory

    def blocks(self, samples: int) -> int:
        """Blocks of threads for this many samples."""
        return min(-(-samples // self.samples), MAX_BLOCKS)


class SampleTile(NamedTuple):
    """How samples are distributed over threads: a block has samples x workers threads."""

    samples: int
    workers: int
    shared: int  # bytes


def sample_tile(op: str, most: int, tensors: int, numbers, itemsize: int) -> SampleTile:
    """The tile that keeps most threads busy. most: rows that a sample's workers divide among them; numbers(workers):
    numbers of a sample in shared memory. Raises RuntimeError if none fits."""
    best, score = None, 0.0
    for samples in TILE_SAMPLES:
        for workers in range(min(most, MAX_THREADS // samples), 0, -1):
            shared = tensors * samples * 8 + numbers(workers) * (samples | 1) * itemsize
            blocks = min(SHARED_PER_SM // shared, WARPS_PER_SM // -(-samples * workers // 32))
            busy = blocks * samples * most / -(-most // workers)  # threads at work, on average
            busy *= samples**0.25  # the samples of a row read the same tables; a guess, not a measurement
            if shared <= MAX_SHARED and busy > score:
                best, score = SampleTile(samples, workers, shared), busy
    if best is None:
        raise RuntimeError(f"{op}: inputs and outputs with {numbers(1)} numbers do not fit the shared memory of a GPU")
    return best


def running_sum(counts: Iterable[int]) -> list[int]:
    """[0, counts[0], counts[0] + counts[1], ..]"""
    return [0, *np.cumsum([*counts]).tolist()]


def members_text(**arrays: Sequence) -> str:
    """Constants of a struct: integers, lists of integers, and the doubles C."""
    text = ""
    for name, value in arrays.items():
        if isinstance(value, int):
            text += f"  static constexpr int {name} = {value};\n"
        else:
            kind = "double" if name == "C" else "int"
            text += f"  static constexpr {kind} {name}[] = {{{', '.join(map(str, value or [0]))}}};\n"
    return text


def array_text(space: str, name: str, values: np.ndarray, kind: str) -> str:
    """A constant array of C++."""
    numbers = (x.hex() if isinstance(x, float) else str(x) for x in values.ravel().tolist() or [0])
    return f"{space} constexpr {kind} {name}[] = {{{', '.join(numbers)}}};\n"


def memory_space(size: int) -> str:
    """The memory space for tables of this many bytes."""
    return "__constant__" if size <= MAX_CONSTANT_BYTES else "__device__"


def tables_text(prefix: str, tables: dict[str, tuple[np.ndarray, str]], broadcast: bool = True) -> tuple[str, str]:
    """The constant arrays PREFIX_NAME of tables, (values, C++ type) by name, and the members of a struct that read
    them. broadcast: whether threads read the same elements at the same time; for others constant memory is slow."""
    size = sum(len(values) * TYPE_BYTES[kind] for values, kind in tables.values())
    space, arrays, members = memory_space(size) if broadcast else "__device__", "", ""
    for name, (values, kind) in tables.items():
        array = f"{prefix}_{name.upper()}"
        arrays += array_text(space, array, values, kind)
        members += f"  static __device__ constexpr {kind} {name}(int i) {{ return {array}[i]; }}\n"
    return arrays, members


def kernel_text(op: str, storage: str, threads: int, registers: int, inputs: int, outputs: int) -> str:
    """The kernel `eqtp::{op}_kernel`. registers: estimate per thread."""
    # without a minimum of resident blocks, ptxas spills to make room for more of them
    resident = max(1, WARPS_PER_SM // -(-threads // 32)) if registers <= FEW_REGISTERS else 1
    tensors = [("const " + storage, f"in{n}") for n in range(inputs)] + [(storage, f"out{n}") for n in range(outputs)]
    parameters = "".join(f", {kind}* {name}, Index {name}_batch, Index {name}_channel" for kind, name in tensors)
    rows = [f"{{{name}, {name}_batch, {name}_channel}}" for _, name in tensors]
    return f"""__global__ void __launch_bounds__({threads}, {resident})
    {op}_kernel(Index channels, Index samples{parameters}) {{
  const SampleRows<const {storage}> in[] = {{{", ".join(rows[:inputs])}}};
  const SampleRows<{storage}> out[] = {{{", ".join(rows[inputs:])}}};
  {op}<Plan>(channels, samples, in, out);
}}
"""


def sample_kernel(engine: str, file: str, specialise: Callable, toolchain: Toolchain) -> registry.Kernel:
    """The kernels of an engine: specialise(descriptor, dtype) -> SpecialisedKernel, or None for an empty sum."""

    def run(descriptor, pass_, inputs, outputs) -> None:
        """inputs, outputs: [B, C, n] each, the last dimension contiguous (csrc/common/tile.cuh). Raises RuntimeError
        for rows that do not fit the shared memory of a GPU."""
        if not outputs or not outputs[0].shape[:2].numel():
            return
        made = specialise(descriptor, outputs[0].dtype)
        if made is None:
            for t in outputs:
                t.zero_()
            return
        batch, channels = outputs[0].shape[:2]
        function = toolchain.build(file, made.text, (made.name,), outputs[0].device)[made.name]
        tensors = [*[inputs[n] for n in made.inputs], *outputs]
        rows = [a for t in tensors for a in (t, np.int64(t.stride(0)), np.int64(t.stride(1)))]
        grid, samples = (made.blocks(batch * channels),), np.int64(batch * channels)
        toolchain.launch(function, grid, (made.threads,), made.shared, np.int64(channels), samples, *rows)

    return registry.Kernel(
        engine=engine,
        family=toolchain.family,
        devices=toolchain.devices,
        why_not=lambda plan, device, dtype: toolchain.why_not(device, dtype),
        run=run,
        sources=(f"csrc/{file}",),
    )

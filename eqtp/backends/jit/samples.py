"""Specialised kernels whose threads work on samples: how a kernel is written as text, sized and launched.

Every kernel takes C, B C, and for each input that is used and each output a pointer and the strides of B and C.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple

import numpy as np

from eqtp.backends import registry
from eqtp.backends.jit.toolchain import MAX_BLOCKS, Toolchain

TILES = (32, 16, 8, 4, 2, 1)  # samples of a tile
MAX_SHARED = 96 * 1024  # bytes of a block, which every GPU since 2020 has
# bytes of shared memory that blocks beside each other have (H100 and later), only to choose between tiles
SHARED_PER_SM = 224 * 1024
WARPS_PER_SM = 16  # of a multiprocessor: with the registers of these kernels there are seldom more
FEW_REGISTERS = 100  # with which WARPS_PER_SM warps fit
MAX_THREADS = 256  # of a block: a thread may have all registers there are
CONSTANT_BYTES = 60 * 1024  # bytes of tables that fit the constant memory; longer ones are read through the caches
UNROLLED_ENTRIES = 1500  # of couplings, or to and from matrices, up to which tables are instructions, not data


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


def tile_of(op: str, most: int, tensors: int, numbers, itemsize: int) -> Tile:
    """The tile that keeps most threads at work. most: rows that workers share; numbers(workers): numbers of a sample in
    shared memory."""
    best, score = None, 0.0
    for samples in TILES:
        for workers in range(min(most, MAX_THREADS // samples), 0, -1):
            shared = tensors * samples * 8 + numbers(workers) * (samples | 1) * itemsize
            blocks = min(SHARED_PER_SM // shared, WARPS_PER_SM // -(-samples * workers // 32))
            busy = blocks * samples * most / -(-most // workers)  # threads at work, on average
            busy *= samples**0.25  # those of one row read the same tables; a guess, not a measurement
            if shared <= MAX_SHARED and busy > score:
                best, score = Tile(samples, workers, shared), busy
    if best is None:
        raise RuntimeError(f"{op}: inputs and outputs with {numbers(1)} numbers do not fit the shared memory of a GPU")
    return best


def running_sum(counts: Iterable[int]) -> list[int]:
    """0, and the sums of the first, the first two, .."""
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
    """Where tables of this many bytes stand."""
    return "__constant__" if size <= CONSTANT_BYTES else "__device__"


def entry_text(op: str, storage: str, threads: int, registers: int, inputs: int, outputs: int) -> str:
    """The kernel `eqtp::{op}_kernel`. registers: about how many a thread needs."""
    # told nothing, ptxas spills for the sake of more blocks
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


def run_samples(toolchain: Toolchain, file: str, kernel: Specialised | None, inputs, outputs) -> None:
    """Rows [B, C, n] of many tensors, the last dimension contiguous (csrc/common/tile.cuh). kernel: None for a sum of
    nothing."""
    if not outputs or not outputs[0].shape[:2].numel():
        return
    batch, channels = outputs[0].shape[:2]
    if kernel is None:
        for t in outputs:
            t.zero_()
        return
    function = toolchain.build(file, kernel.text, (kernel.name,), outputs[0].device)[kernel.name]
    tensors = [*[inputs[n] for n in kernel.inputs], *outputs]
    rows = [a for t in tensors for a in (t, np.int64(t.stride(0)), np.int64(t.stride(1)))]
    grid, samples = (kernel.blocks(batch * channels),), np.int64(batch * channels)
    toolchain.launch(function, grid, (kernel.threads,), kernel.shared, np.int64(channels), samples, *rows)


def sample_kernel(engine: str, file: str, specialise: Callable, toolchain: Toolchain) -> registry.Kernel:
    """The kernels of an engine: specialise(descriptor, dtype) -> Specialised, or None for a sum of nothing."""

    def run(descriptor, pass_, inputs, outputs) -> None:
        """inputs, outputs: [B, C, n] each, the last dimension contiguous. Raises RuntimeError for rows that do not fit
        the shared memory of a GPU."""
        if outputs and outputs[0].shape[:2].numel():
            run_samples(toolchain, file, specialise(descriptor, outputs[0].dtype), inputs, outputs)

    return registry.Kernel(
        engine=engine,
        family=toolchain.family,
        devices=toolchain.devices,
        why_not=lambda plan, device, dtype: toolchain.why_not(device, dtype),
        run=run,
        sources=(f"csrc/{file}",),
    )

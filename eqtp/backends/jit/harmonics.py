"""Spherical harmonics specialised for their degrees and normalization: csrc/harmonics/harmonics.cuh."""

from __future__ import annotations

from functools import lru_cache
from typing import NamedTuple

import numpy as np
import torch

from eqtp.backends import registry
from eqtp.backends.jit.runtime import DEFAULT_SHARED, Struct
from eqtp.backends.jit.toolchain import GPU, MAX_BLOCKS, STORAGE, Toolchain
from eqtp.backends.tensors import contiguous_rows
from eqtp.math import harmonics
from eqtp.plans.calls import Harmonics, Pass

FILE = "harmonics/harmonics.cuh"
MAX_UNROLLED_DEGREE = 8  # the loops of larger degrees are not unrolled
# The members of HarmonicsArrays in csrc/harmonics/harmonics.cuh
HARMONICS_ARRAYS = np.dtype(
    [("normalize", np.bool_), ("points", np.int64)]
    + [(n, np.uint64) for n in ("xyz", "g", "c")]
    + [(n, np.int64) for n in ("xyz_row", "xyz_col", "g_row", "c_row", "c_col")]
    + [("out", np.uint64), ("gxyz", np.uint64), ("tile", np.int32), ("room", np.int32)],
    align=True,
)
PASSES = {Pass.FWD: "VALUES", Pass.BWD: "GRADIENT", Pass.BWDBWD: "SECOND"}  # their names in C++


@lru_cache(maxsize=256)
def source(degrees: tuple[int, ...], normalization: str) -> str:
    """The text after csrc/harmonics/harmonics.cuh: eqtp::Plan. Kernels: eqtp::harmonics_plan_kernel<T, eqtp::PASS,
    eqtp::Plan>."""
    constants, start, column = harmonics.tables(degrees, normalization)
    rows = ",\n".join("{" + ", ".join(x.hex() for x in row) + "}" for row in constants.tolist())

    def integers(values):
        return ", ".join(map(str, values)) or "0"

    lmax = max(degrees, default=0)
    return f"""namespace eqtp {{
__device__ constexpr double HARMONICS_CONSTANTS[][4] = {{{rows}}};
__device__ constexpr int HARMONICS_START[] = {{{integers(start)}}}, HARMONICS_COLUMN[] = {{{integers(column)}}};
struct Plan {{
  static constexpr int DEGREE = {lmax}, WIDTH = {len(column)};
  static constexpr bool UNROLL = {str(lmax <= MAX_UNROLLED_DEGREE).lower()};
  static __device__ constexpr double constant(int n, int i) {{ return HARMONICS_CONSTANTS[n][i]; }}
  static __device__ constexpr int start(int k) {{ return HARMONICS_START[k]; }}
  static __device__ constexpr int column(int j) {{ return HARMONICS_COLUMN[j]; }}
}};
}}  // namespace eqtp
"""


class LaunchShape(NamedTuple):
    """How points are distributed over warps. tile: points of a warp (0: not even one row fits); warps: of a block;
    room: numbers of a warp in shared memory; itemsize: bytes of a number there."""

    tile: int
    warps: int
    room: int
    itemsize: int

    def launch(self, points: int) -> tuple[int, int, int]:
        """Blocks, threads of a block, bytes of shared memory."""
        return (
            min(-(-points // (self.tile * self.warps)), MAX_BLOCKS),
            32 * self.warps,
            self.warps * self.room * self.itemsize,
        )


def launch_shape(degrees: tuple[int, ...], which: str, dtype: torch.dtype, unrolled: bool | None = None) -> LaunchShape:
    """The shape for a pass in C++ (values of PASSES). unrolled: whether the kernel unrolls its loops (None: as `source`
    writes them)."""
    lmax, columns = max(degrees, default=0), sum(2 * l + 1 for l in degrees)
    itemsize = 8 if dtype == torch.float64 else 4
    unrolled = lmax <= MAX_UNROLLED_DEGREE if unrolled is None else unrolled
    numbers, stride = DEFAULT_SHARED // itemsize, max(3, columns | 1)
    line = 0 if unrolled or which == "VALUES" else 32 * (lmax + 1) * (2 if which == "SECOND" else 1)

    def room(tile):
        return -(-tile * stride // 4) * 4 + line

    tile = next((t for t in (32, 16, 8, 4, 2, 1) if room(t) <= numbers), 0)
    return LaunchShape(tile, min(4, numbers // room(tile)) if tile else 0, room(tile), itemsize)


def kernel(toolchain: Toolchain) -> registry.Kernel:
    """The kernels, built and launched by a toolchain."""

    def run(what: Harmonics, pass_: Pass, inputs, outputs) -> None:
        """Inputs and outputs as for `eqtp.backends.native.harmonics.run`."""
        xyz, g, c = inputs
        out, gxyz = outputs
        if not xyz.shape[0] or (out is None and gxyz is None):
            return
        in_cpp, degrees = PASSES[pass_], what.degrees
        shape = launch_shape(degrees, in_cpp, xyz.dtype)
        if not shape.tile:
            columns = sum(2 * l + 1 for l in degrees)
            raise RuntimeError(f"spherical_harmonics: {columns} columns do not fit the shared memory of a GPU")
        name = f"eqtp::harmonics_plan_kernel<{STORAGE[xyz.dtype]}, eqtp::{in_cpp}, eqtp::Plan>"
        function = toolchain.build(FILE, source(degrees, what.normalization), (name,), xyz.device)[name]

        def strides(t, count):
            return [np.int64(0 if t is None else t.stride(k)) for k in range(count)]

        g = contiguous_rows(g)
        members = [np.bool_(what.normalize), np.int64(xyz.shape[0]), xyz, g, c]
        members += [*strides(xyz, 2), *strides(g, 1), *strides(c, 2), out, gxyz]
        members += [np.int32(shape.tile), np.int32(shape.room)]
        blocks, threads, shared = shape.launch(xyz.shape[0])
        toolchain.launch(function, (blocks,), (threads,), shared, Struct(HARMONICS_ARRAYS, tuple(members)))

    return registry.Kernel(
        engine="harmonics",
        family=toolchain.family,
        devices=toolchain.devices,
        why_not=lambda plan, device, dtype: toolchain.why_not(device, dtype),
        run=run,
        sources=(f"csrc/{FILE}",),
    )


registry.register(kernel(GPU))

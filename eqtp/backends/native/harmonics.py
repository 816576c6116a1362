"""Spherical harmonics: csrc/harmonics."""

from __future__ import annotations

from functools import lru_cache

import numpy as np
import torch

from eqtp.backends import registry
from eqtp.backends.native import library
from eqtp.backends.tensors import address, compute_dtype, contiguous_rows
from eqtp.math import harmonics
from eqtp.plans.calls import Harmonics, Pass


def _why_not(plan: None, device: torch.device, dtype: torch.dtype) -> str | None:
    return library.why_not("spherical_harmonics", device, dtype)


@lru_cache(maxsize=256)
def _harmonics(degrees: tuple[int, ...], normalization: str):
    """Constants of the kernel (csrc/harmonics/harmonics.h)."""
    (sizes, columns), constants = harmonics.table_columns(degrees, normalization)
    return library._native.Harmonics(*sizes, columns, constants.tolist())


@lru_cache(maxsize=256)
def _harmonics_cuda(degrees: tuple[int, ...], normalization: str, device: torch.device, compute: torch.dtype):
    """Constants for csrc/harmonics/harmonics.cu: on the host (None unless the columns are all degrees in order), and
    the run-time tables on the device."""
    constants, start, column = harmonics.tables(degrees, normalization)
    fixed = None if harmonics.columns(degrees) else np.ascontiguousarray(constants)
    integers = [torch.tensor(t or [0], dtype=torch.int32, device=device) for t in (start, column)]
    return fixed, [torch.from_numpy(constants).to(compute).to(device), *integers]


def run(what: Harmonics, pass_: Pass, inputs, outputs) -> None:
    """A pass for points xyz [n, 3]. Outputs are contiguous, or None if not wanted.

    FWD: inputs (xyz, None, None), outputs (out, None). BWD: (xyz, g, None), (None, gxyz). BWDBWD: (xyz, g, c), (gg,
    gxyz).
    """
    xyz, g, c = inputs
    out, gxyz = outputs
    g = contiguous_rows(g)
    degrees, normalization = what.degrees, what.normalization

    def strides(t):
        return (0, 0) if t is None else t.stride()

    tensors = address(g), strides(g)[0], address(c), *strides(c), address(out), address(gxyz)
    points = what.normalize, xyz.shape[0], xyz.data_ptr(), *xyz.stride(), *tensors
    if not xyz.is_cuda:
        table, f64 = _harmonics(degrees, normalization), xyz.dtype == torch.float64
        library._native.spherical_harmonics(table, *points, f64, torch.get_num_threads())
        return
    fixed, tables = _harmonics_cuda(degrees, normalization, xyz.device, compute_dtype(xyz.dtype))
    shape = max(degrees, default=0), sum(2 * l + 1 for l in degrees)
    host = 0 if fixed is None else fixed.ctypes.data
    end = library.dtype_code(xyz.dtype), *library.device_and_stream(xyz.device)
    library._native.spherical_harmonics_cuda(*shape, host, *map(address, tables), *points, *end)


registry.register(
    registry.Kernel(
        engine="harmonics",
        family="native",
        devices=("cpu", "cuda"),
        why_not=_why_not,
        run=run,
        sources=("csrc/harmonics/harmonics.cpp", "csrc/harmonics/harmonics.cu"),
    )
)

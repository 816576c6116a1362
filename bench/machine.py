"""What this machine can do, measured: the denominators of every fraction that the benchmarks report."""

from __future__ import annotations

import platform
import time
from collections.abc import Callable
from typing import NamedTuple

import torch

BUFFER_BYTES = 1 << 28  # each; several times the last-level cache


class Machine(NamedTuple):
    """Rates at one thread count and one dtype."""

    cpu: str
    threads: int
    read_gb_s: float  # the better of a sum over one array and a dot product of two
    copy_gb_s: float  # read + write, into memory that is already mapped
    gflop_s: float  # matrix product; a multiply-add counts 2

    def __str__(self) -> str:
        rates = f"read {self.read_gb_s:.1f} GB/s, copy {self.copy_gb_s:.1f} GB/s, {self.gflop_s:.0f} GFLOP/s"
        return f"{self.cpu}, {self.threads} thread{'s' if self.threads > 1 else ''}: {rates}"


def _best_seconds(call: Callable[[], object], repeats: int) -> float:
    call()
    best = float("inf")
    for _ in range(repeats):
        start = time.perf_counter()
        call()
        best = min(best, time.perf_counter() - start)
    return best


def cpu_name() -> str:
    try:
        with open("/proc/cpuinfo") as lines:
            return next(line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


def measure(dtype: torch.dtype, repeats: int = 7) -> Machine:
    """Measure bandwidth and peak with the threads that torch uses now; takes a second or two."""
    count = BUFFER_BYTES // dtype.itemsize
    a, b = torch.rand(count, dtype=dtype), torch.rand(count, dtype=dtype)
    read = min(_best_seconds(a.sum, repeats), _best_seconds(lambda: torch.dot(a, b), repeats) / 2)
    copy = _best_seconds(lambda: a.copy_(b), repeats)
    n = 1536
    m = torch.rand(n, n, dtype=dtype)
    out = torch.empty_like(m)
    product = _best_seconds(lambda: torch.mm(m, m, out=out), repeats)
    return Machine(
        cpu=cpu_name(),
        threads=torch.get_num_threads(),
        read_gb_s=BUFFER_BYTES / read / 1e9,
        copy_gb_s=2 * BUFFER_BYTES / copy / 1e9,
        gflop_s=2 * n**3 / product / 1e9,
    )

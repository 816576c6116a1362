"""What this machine can do, measured: the denominators of every fraction that the benchmarks report."""

from __future__ import annotations

import contextlib
import platform
import subprocess
import time
from collections.abc import Callable
from typing import NamedTuple

import torch

from eqtp.__main__ import cuda_of_driver

BUFFER_BYTES = 1 << 28  # each, on a CPU; several times the last-level cache


class Machine(NamedTuple):
    """Rates at one thread count, or of one GPU, and one dtype."""

    cpu: str
    threads: int | None  # None: of a GPU
    read_gb_s: float  # the better of a sum over one array and a dot product of two
    copy_gb_s: float  # read + write, into memory that is already mapped
    gflop_s: float  # matrix product; a multiply-add counts 2
    gpu: str = ""
    driver: str = ""

    @property
    def bandwidth(self) -> tuple[str, float]:
        """What the floor of a kernel is: bytes over the bandwidth of reading on a CPU (outputs are small), of copying
        on a GPU."""
        return ("copy", self.copy_gb_s) if self.gpu else ("read", self.read_gb_s)

    def row(self) -> dict:
        """As results have it: without what this machine has not."""
        return {name: value for name, value in self._asdict().items() if value != ""}

    def __str__(self) -> str:
        rates = f"read {self.read_gb_s:.1f} GB/s, copy {self.copy_gb_s:.1f} GB/s, {self.gflop_s:.0f} GFLOP/s"
        if self.gpu:
            return f"{self.gpu}, driver {self.driver}: {rates}"
        return f"{self.cpu}, {self.threads} thread{'s' if self.threads > 1 else ''}: {rates}"


def _best_seconds(call: Callable[[], object], repeats: int, device: torch.device) -> float:
    call()
    best = float("inf")
    for _ in range(repeats):
        if device.type == "cuda":
            start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            start.record()
            call()
            end.record()
            torch.cuda.synchronize()
            best = min(best, start.elapsed_time(end) / 1e3)
        else:
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


def driver_version() -> str:
    """Version of NVIDIA's driver, as nvidia-smi says it; else the CUDA version that it supports, or "unknown"."""
    with contextlib.suppress(OSError, subprocess.SubprocessError):
        command = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
        return subprocess.run(command, capture_output=True, text=True, timeout=20, check=True).stdout.split()[0]
    return f"for CUDA {cuda_of_driver()}"


def measure(dtype: torch.dtype, repeats: int = 7, device: torch.device | str = "cpu") -> Machine:
    """Measure bandwidth and peak of a GPU, or of the CPU with the threads that torch uses now; takes a second or
    two."""
    device = torch.device(device)
    gpu = device.type == "cuda"
    size = BUFFER_BYTES << (3 if gpu else 0)
    a, b = (torch.rand(size // dtype.itemsize, dtype=dtype, device=device) for _ in range(2))
    read = _best_seconds(a.sum, repeats, device)
    if not gpu:
        read = min(read, _best_seconds(lambda: torch.dot(a, b), repeats, device) / 2)
    copy = _best_seconds(lambda: a.copy_(b), repeats, device)
    n = 8192 if gpu else 1536
    m = torch.rand(n, n, dtype=dtype, device=device)
    out = torch.empty_like(m)
    product = _best_seconds(lambda: torch.mm(m, m, out=out), repeats, device)
    return Machine(
        cpu=cpu_name(),
        threads=None if gpu else torch.get_num_threads(),
        read_gb_s=size / read / 1e9,
        copy_gb_s=2 * size / copy / 1e9,
        gflop_s=2 * n**3 / product / 1e9,
        gpu=torch.cuda.get_device_name(device) if gpu else "",
        driver=driver_version() if gpu else "",
    )

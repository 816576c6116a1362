"""How specialised kernels are built and launched: on a GPU by NVRTC and CuPy. Tests give the engines a C++ compiler
instead, so that the same code runs without a GPU."""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from typing import NamedTuple

import torch

from eqtp.backends.jit import runtime
from eqtp.backends.tensors import why_not_dtype

# Bytes of shared memory that a block may have, by compute capability; elsewhere OTHERS
SHARED = {
    version: kib << 10 for version, kib in (((8, 0), 163), ((8, 7), 163), ((9, 0), 227), ((10, 0), 227), ((10, 3), 227))
}
OTHERS = 99 << 10
MAX_BLOCKS = 2**31 - 1  # of one launch
# The C++ names of dtypes
STORAGE = {torch.float32: "float", torch.float64: "double", torch.float16: "eqtp::f16", torch.bfloat16: "eqtp::bf16"}


class Toolchain(NamedTuple):
    """build(file, tables, names, device) -> {name: kernel}: kernels, written as in C++, of a file of csrc/ followed by
    the text `tables`; cached. launch(kernel, grid, block, shared, *arguments): arguments are tensors, None, numpy
    scalars of the parameters' types or `eqtp.backends.jit.runtime.Struct`. unavailable(device) -> None, or the reason
    why nothing can be built or launched for this device. shared(device): bytes of shared memory that a block may have.
    """

    build: Callable
    launch: Callable
    unavailable: Callable
    family: str = "jit"
    devices: tuple[str, ...] = ("cuda",)
    shared: Callable = lambda device: SHARED[9, 0]

    def why_not(self, device: torch.device, dtype: torch.dtype) -> str | None:
        """None if kernels can be built for this device and know the dtype, else the reason as a sentence."""
        return why_not_dtype("specialised", dtype, tuple(STORAGE)) or self.unavailable(device)


def _build(file: str, text: str, names: tuple[str, ...], device: torch.device) -> dict:
    return runtime.kernels(source(file) + text, names, device)


def _unavailable(device: torch.device) -> str | None:
    if device.type != "cuda":
        return f"the specialised kernels run on NVIDIA GPUs, the tensors are on {device.type}"
    return runtime.why_not()


@lru_cache
def _shared(device: torch.device) -> int:
    return SHARED.get(torch.cuda.get_device_capability(device), OTHERS)


@lru_cache
def source(file: str) -> str:
    """Text of a file of csrc/ with what it includes."""
    return runtime.source(file)


GPU = Toolchain(_build, runtime.launch, _unavailable, shared=_shared)

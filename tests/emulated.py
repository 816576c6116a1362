"""The family "emulated": the kernels of the family "jit", compiled by a C++ compiler and run on CPU tensors (tests/emulation.py). For tests only."""

import re

import emulation
import torch

from eqtp import backend, cuda

_kernels = {}
_ROWS = ["T*"] * 6 + ["eqtp::Index"] * 6
# Parameters of each kernel; T is its storage type, R the type it calculates in
TYPES = {
    "conv_fwd_kernel": [*_ROWS, *["const eqtp::Index*"] * 3, "T*", "eqtp::Index"],
    "conv_bwd_kernel": ["T*", *_ROWS, "eqtp::Index", *["const eqtp::Index*"] * 3, "T*", "R*", "T*", "eqtp::Index"],
    "planar_kernel": ["T*", "eqtp::Index", "T*", "eqtp::Index"],
    "sum_units_kernel": ["R*", "T*", "eqtp::Index"],
}


def types_of(name: str) -> list[str]:
    """C++ types of the parameters of a kernel, from its name: eqtp::kernel<.., float, ..>."""
    storage = re.search(r"\b(float|double|eqtp::f16|eqtp::bf16)\b", name)[1]
    real = "double" if storage == "double" else "float"
    return [t.replace("T*", f"{storage}*").replace("R*", f"{real}*") for t in TYPES[re.search(r"::(\w+)<", name)[1]]]


def build(file, text, names, device):
    key = (file, text, names)
    if key not in _kernels:
        _kernels[key] = emulation.build(f'#include "{file}"\n{text}', {name: types_of(name) for name in names})
    return _kernels[key]


def launch(kernel, grid, block, shared, *arguments):
    flat = [a.as_strided((1,), (1,)) if isinstance(a, torch.Tensor) and a.numel() else a for a in arguments]  # its address; strides go apart
    kernel(grid, block, shared, *(a if isinstance(a, torch.Tensor) or a is None else a.item() for a in flat))


def unavailable(device):
    return None if device.type == "cpu" else "the emulated kernels run on CPU tensors"


backend._others["emulated"] = cuda.Kernels(build, launch, unavailable)

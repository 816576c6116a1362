"""The family "emulated": the kernels of the family "jit", compiled by a C++ compiler and run on CPU tensors
(tests/emulation.py). For tests only."""

import re

import calls
import emulation
import torch

from eqtp.backends import registry
from eqtp.backends.jit import channelwise, couplings, harmonics, matrices, signals
from eqtp.backends.jit.runtime import Struct
from eqtp.backends.jit.toolchain import Toolchain
from eqtp.plans.calls import Pass

ENGINES = channelwise, harmonics, signals, couplings, matrices

# Parameters of each kernel; T is its storage type, R the type it calculates in
TYPES = {
    "conv_fwd_kernel": ["eqtp::ConvParams<T>"],
    "conv_bwd_kernel": ["eqtp::ConvParams<T>"],
    "conv_bwd_by_destination_kernel": ["eqtp::ConvParams<T>"],
    "sum_sources_kernel": ["R*", "const eqtp::Index*", "const eqtp::Index*", "const eqtp::Index*", "T*", "eqtp::Index"],
    "harmonics_plan_kernel": ["eqtp::HarmonicsArrays<T>"],
    "planar_kernel": ["T*", "eqtp::Index", "const eqtp::Index*", "T*", "eqtp::Index", "eqtp::Index"],
    "sum_units_kernel": ["R*", "T*", "eqtp::Index"],
}


def types_of(name: str, text: str) -> list[str]:
    """C++ types of the parameters of a kernel: of a template from its name, eqtp::kernel<.., float, ..>, else from its
    text."""
    if "<" not in name:
        parameters = re.search(rf"\b{name.removeprefix('eqtp::')}\((.*)\)", text)[1].split(", ")
        return [parameter.rsplit(" ", 1)[0].replace("Index", "eqtp::Index") for parameter in parameters]
    storage = re.search(r"\b(float|double|eqtp::f16|eqtp::bf16)\b", name)[1]
    real = "double" if storage == "double" else "float"
    kinds = TYPES[re.search(r"::(\w+)<", name)[1]]
    return [re.sub(r"\bT\b", storage, re.sub(r"\bR\b", real, kind)) for kind in kinds]


def together(names: tuple[str, ...]) -> list[str]:
    """The kernels that are built with these: of a convolution the pass in all modes, as another kernel costs a tenth of
    another program."""
    if "conv" not in names[0] or "by_destination" in names[0]:
        return list(names)
    plan, storage, mode, tangent = names[0].split(", ")
    if mode == "eqtp::GRAPH":
        return list(names)
    modes = ["ROWS", "EDGES"][: 2 if storage in ("float", "double") else 1]
    return [
        *(f"{plan}, {storage}, eqtp::{mode}, {tangent}" for mode in modes),
        f"eqtp::planar_kernel<{storage}>",
        *(name for name in names if "sum_units" in name),
    ]


class Family:
    """The kernels of csrc/, or of `source` in their place, under a sanitizer ("address", "thread") or none."""

    def __init__(self, sanitize: str | None = None, source: str | None = None):
        built = {}

        def build(file, text, names, device):
            key = (text, *together(names))
            if key not in built:
                kinds = {name: types_of(name, text) for name in key[1:]}
                built[key] = emulation.build((source or f'#include "{file}"\n') + text, kinds, sanitize)
            return built[key]

        toolchain = Toolchain(build, launch, unavailable, "emulated", ("cpu",))
        self.kernels = {module.FILE.partition("/")[0]: module.kernel(toolchain) for module in ENGINES}

    def convolve(self, key, graph, inputs, outputs):
        calls.convolve(self.kernels["channelwise"], key, graph, inputs, outputs)

    def run(self, engine, descriptor, inputs, outputs):
        self.kernels[engine].run(descriptor, Pass.FWD, inputs, outputs)


def family(sanitize: str | None = None, source: str | None = None) -> Family:
    """The kernels, built anew."""
    return Family(sanitize, source)


def launch(kernel, grid, block, shared, *arguments):
    kernel(grid, block, shared, *map(_passed, arguments))


def _passed(value):
    """An argument of `eqtp.backends.jit.runtime.launch` as one of tests/emulation.py."""
    if isinstance(value, Struct):
        return Struct(value.layout, tuple(flat(v) if isinstance(v, torch.Tensor) else v for v in value.values))
    return flat(value) if isinstance(value, torch.Tensor) else value if value is None else value.item()


def flat(t: torch.Tensor) -> torch.Tensor:
    """The memory between a tensor's first and last number: strides are arguments of their own."""
    return (
        t.as_strided((sum((n - 1) * s for n, s in zip(t.shape, t.stride(), strict=True)) + 1,), (1,))
        if t.numel()
        else t
    )


def unavailable(device):
    return emulation.why_not(None) if device.type == "cpu" else "the emulated kernels run on CPU tensors"


for _kernel in family().kernels.values():
    registry.register(_kernel)

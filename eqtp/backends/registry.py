"""Which kernels there are, and which of them run.

An *engine* is a kind of kernel (channelwise, signals, couplings, matrices, harmonics, segments); a *family* is a way to
have kernels (jit, native, triton). The kernels of a family for an engine are the file

    eqtp/backends/<family>/<engine>.py

which registers a `Kernel`; an op names its engine by `register_op`. Nothing else lists either of them: `explain`, the
sanitizers, the benchmarks and the tables of docs/ ask here.
"""

from __future__ import annotations

import importlib
import os
import pkgutil
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import lru_cache

import torch

# "reference" is the op's own formula in plain torch
FAMILIES = ("jit", "native", "triton", "reference")
# The order in which auto tries them on a device, for an engine. On GPUs that of the channelwise products is measured
# (docs/benchmarks.md): native has the plan in tables, and takes two to five times as long as Triton.
ORDER = {"cpu": ("native", "reference"), ("cuda", "channelwise"): ("jit", "triton", "native", "reference")}
_default: str | None = None


@dataclass(frozen=True)
class Kernel:
    """The kernels of one family for one engine.

    why_not(descriptor, device, dtype) -> None, or a sentence why they cannot run it. The descriptor is the computation:
    a plan, a program of signals, a table of couplings ..; None stands for the engine in general.
    run(descriptor, pass_, inputs, outputs) fills the outputs in place; its tensors have been checked. Each engine
    defines its inputs and outputs, the channelwise one in `eqtp.plans.calls`.
    """

    engine: str
    family: str
    devices: tuple[str, ...]  # types of torch devices
    why_not: Callable
    run: Callable
    sources: tuple[str, ...]  # the files that are compiled, from the top of the source tree
    # channelwise kernels:
    transposes: tuple[str, ...] = ()  # device types on which gradients walk the transposed graph
    atomics: tuple[torch.dtype, ...] = ()  # dtypes for which a graph may stay unsorted, its sums being atomic
    prepare: Callable | None = None  # (plans, device, dtype): compiles what they will need


_kernels: dict[tuple[str, str], Kernel] = {}
_failed: dict[tuple[str, str], str] = {}  # kernels that cannot be imported, and the error
_ops: dict[str, str | None] = {}


def register(kernel: Kernel) -> Kernel:
    """Registers kernels, in place of any others of the same family and engine."""
    _kernels[kernel.family, kernel.engine] = kernel
    _resolve.cache_clear()
    return kernel


def register_op(name: str, engine: str | None) -> None:
    """Says which engine an op runs on; None: it is plain torch."""
    _ops[name] = engine


def load() -> None:
    """Imports the files in which the families register their kernels; importing eqtp calls it. They import neither a
    compiler nor Triton nor CuPy. If a file cannot be imported, its family lacks these kernels and `why_not` gives the
    error."""
    for family in FAMILIES[:-1]:
        package = importlib.import_module(f"eqtp.backends.{family}")
        for module in pkgutil.iter_modules(package.__path__):
            try:
                importlib.import_module(f"eqtp.backends.{family}.{module.name}")
            except ImportError as error:
                _failed[family, module.name] = str(error)


def kernel(family: str, engine: str) -> Kernel | None:
    """The kernels of a family for an engine, None if there are none."""
    return _kernels.get((family, engine))


def kernels() -> list[Kernel]:
    """All kernels of eqtp's families, by engine and family."""
    found = [k for k in _kernels.values() if k.family in FAMILIES]
    return sorted(found, key=lambda k: (k.engine, FAMILIES.index(k.family)))


def ops() -> dict[str, str | None]:
    """Op -> its engine, by name; None for one in plain torch."""
    return dict(sorted(_ops.items()))


def engine_of(op: str) -> str | None:
    """The engine of an op. Raises ValueError for an unknown name."""
    if op not in _ops:
        raise ValueError(f"op must be one of {', '.join(ops())}, got {op!r}")
    return _ops[op]


def backends() -> tuple[str, ...]:
    """Names that `backend=` takes besides "auto"."""
    return FAMILIES


def set_backend(name: str | None) -> None:
    """Family for every call that says backend="auto" (overrides EQTP_BACKEND; None: back to it)."""
    global _default
    if name is not None:
        _known(name)
    _default = name


def _known(name: str) -> str:
    if name != "auto" and name not in FAMILIES and name not in {family for family, _ in _kernels}:
        raise ValueError(f"backend must be one of auto, {', '.join(FAMILIES)}, got {name!r}")
    return name


def candidates(device: torch.device, engine: str | None) -> tuple[str, ...]:
    """Families that `auto` tries for an engine on this device, in order."""
    return ORDER.get((device.type, engine)) or ORDER.get(device.type, FAMILIES)


def why_not(family: str, op: str, plan, device: torch.device, dtype: torch.dtype) -> str | None:
    """None if the family runs this op with this plan (None: an op without one) on this device and dtype, else why
    not."""
    if family == "reference":
        return None
    engine = engine_of(op)
    found = _kernels.get((family, engine))
    if found is not None:
        return found.why_not(plan, device, dtype)
    if (family, engine) in _failed:
        return f"its kernels cannot be imported: {_failed[family, engine]}"
    return f"there are no {family} kernels for {op}"


@lru_cache(maxsize=4096)
def _resolve(name: str, op: str, plan, device: str, dtype: torch.dtype) -> str:
    if name != "auto":
        reason = why_not(name, op, plan, torch.device(device), dtype)
        if reason:
            raise RuntimeError(f"backend {name!r} cannot run this: {reason}")
        return name
    order = candidates(torch.device(device), engine_of(op))
    return next(f for f in order if why_not(f, op, plan, torch.device(device), dtype) is None)


def resolve(backend: str, op: str, plan, device: torch.device, dtype: torch.dtype) -> str:
    """The family that runs. A family named by the user, here or in EQTP_BACKEND, that cannot run raises RuntimeError;
    only "auto" moves on. Raises ValueError for an unknown name."""
    if backend == "auto":
        backend = _default or os.environ.get("EQTP_BACKEND", "auto")
    # Dynamo warns of caches, and has its own
    cached = _resolve.__wrapped__ if torch.compiler.is_compiling() else _resolve
    return cached(_known(backend), op, plan, device.type, dtype)


def prepare(plans: Iterable, device: torch.device, dtypes: Iterable[torch.dtype]) -> None:
    """Compiles the kernels that convolutions of these plans need, several at a time. Does not touch the plans where no
    kernel is compiled at run time."""
    if device.type != "cuda":
        return
    plans = list(plans)
    for dtype in dtypes:
        by_family: dict[str, list] = {}
        for plan in plans:
            by_family.setdefault(resolve("auto", "tensor_product_conv", plan, device, dtype), []).append(plan)
        for family, chosen in by_family.items():
            found = None if family == "reference" else kernel(family, "channelwise")
            if found is not None and found.prepare is not None:
                found.prepare(chosen, device, dtype)


def explain(plan=None, device="cpu", dtype: torch.dtype = torch.float32, op: str = "tensor_product_conv") -> str:
    """One line per family: yes, or why not; and which one `auto` takes. Raises ValueError for an unknown op."""
    device = torch.device(device)
    reasons = {f: why_not(f, op, plan, device, dtype) for f in FAMILIES}
    lines = [f"{f:<10} {'yes' if r is None else 'no: ' + r}" for f, r in reasons.items()]
    return "\n".join([*lines, f"auto       {resolve('auto', op, plan, device, dtype)}"])

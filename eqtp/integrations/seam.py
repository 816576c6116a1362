"""How a class of another library is replaced: a `Seam`, found by library and class name.

A file of this folder that says `LIBRARY` (the package) and `SEAMS` (class name -> `Seam`) is a model library that eqtp
knows; nothing else lists it. `ADAPTERS` may stand there, too (`eqtp.integrations.adapter`).
"""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Callable
from functools import lru_cache
from typing import NamedTuple

import torch

import eqtp.integrations


class Seam(NamedTuple):
    """How one class of another library is replaced."""

    op: str | None  # the op of eqtp that takes over, whose kernels are asked for; None: plain torch
    reason: Callable  # (module) -> None, or why this one cannot be replaced, as a phrase
    plan: Callable  # (module) -> TensorProductPlan, or None for an op without one
    convert: Callable  # (module, backend) -> replacement that holds the same parameters and buffers
    probe: Callable  # (module, generator) -> list of random float inputs of any size, for the self-check
    call: Callable  # (module or replacement, inputs) -> output tensor


def own_forward(module) -> str | None:
    """Why a module whose instance has a forward of its own is kept, as a phrase; None if it has none."""
    return "this instance has a forward of its own" if "forward" in vars(module) else None


def has_hooks(module) -> bool:
    """Whether something is called when this module runs, forward or backward."""
    return any(value for name, value in vars(module).items() if "ward_" in name and name.endswith("_hooks"))


@lru_cache
def library_files() -> list:
    """The modules of this folder that stand for a model library. Imports eqtp's own files only."""
    names = sorted(found.name for found in pkgutil.iter_modules(eqtp.integrations.__path__))
    modules = [importlib.import_module(f"eqtp.integrations.{name}") for name in names]
    return [module for module in modules if hasattr(module, "LIBRARY")]


@lru_cache
def seams() -> dict[tuple[str, str], Seam]:
    """(library, class) -> its seam. Imports eqtp's own files only."""
    return {(m.LIBRARY, cls): seam for m in library_files() for cls, seam in getattr(m, "SEAMS", {}).items()}


def seam_of(module) -> Seam | None:
    """The seam of this module, or None if it is of no class that eqtp knows; subclasses are included."""
    known = ((cls.__module__.split(".")[0], cls.__name__) for cls in type(module).__mro__)
    return next((seams()[name] for name in known if name in seams()), None)


def replace_parts(model: torch.nn.Module, library: str) -> None:
    """Replaces, in place, every module of this library inside a model that eqtp can replace; the parameters stay the
    same objects."""
    for parent in list(model.modules()):
        for name, module in parent.named_children():
            seam = seam_of(module) if type(module).__module__.split(".")[0] == library else None
            if seam is not None and seam.reason(module) is None:
                setattr(parent, name, seam.convert(module, "auto"))

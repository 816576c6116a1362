"""Where eqtp takes over inside models of other libraries; each is imported when one of its modules is met."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import NamedTuple

# (library, class) -> the module of eqtp whose SEAMS[class] says how it is replaced; subclasses are included
KNOWN = {
    ("e3nn", "TensorProduct"): "eqtp.e3nn",
    ("e3nn", "SphericalHarmonics"): "eqtp.e3nn",
    ("sevenn", "IrrepsConvolution"): "eqtp.integrations.sevennet",
}
# class names by which such a module is recognised after scripting, when its Python class is gone
SCRIPTED = frozenset(name for _, name in KNOWN) | {
    "FullyConnectedTensorProduct", "FullTensorProduct", "ElementwiseTensorProduct", "TensorSquare",
}  # fmt: skip


class Seam(NamedTuple):
    """How one class of another library is replaced."""

    reason: Callable  # (module) -> None, or why this one cannot be replaced, as a phrase
    plan: Callable  # (module) -> TensorProductPlan, or None for an op without one
    convert: Callable  # (module, backend) -> replacement that holds the same parameters and buffers
    probe: Callable  # (module, generator) -> list of random float inputs of any size, for the self-check
    call: Callable  # (module or replacement, inputs) -> output tensor


def seam_of(module) -> Seam | None:
    """The seam of this module, or None if it is of no class that eqtp knows."""
    for cls in type(module).__mro__:
        home = KNOWN.get((cls.__module__.split(".")[0], cls.__name__))
        if home:
            return importlib.import_module(home).SEAMS[cls.__name__]
    return None

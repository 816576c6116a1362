"""How a model of another library is compiled: an `Adapter`, found by library and class name.

A file of this folder that says `LIBRARY` and `ADAPTERS` (class name -> `Adapter`) has them; nothing else lists it.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from typing import NamedTuple

from eqtp.integrations.seam import library_files


class Tolerance(NamedTuple):
    """Largest difference between a compiled and an eager output, in the output's unit."""

    float32: float
    per: str | None = None  # the size that it is multiplied by: "atoms", for an energy of all atoms


class Adapter(NamedTuple):
    """A model that is called with a mapping from names to tensors, as a function of tensors.

    In `inputs`, a dimension that has a name may have any size, and has the same size wherever the name stands; of
    None the size is that of the example.
    """

    inputs: Callable  # (model) -> {key that the model reads: its dimensions, e.g. ("edges", None)}
    outputs: Callable  # (model) -> {key that the model writes: Tolerance}
    prepare: Callable  # (model) -> copy that reads no value on the host; raises ValueError with what is not supported
    call: Callable  # (copy, {key: tensor}) -> mapping with the outputs
    small: Callable  # ({key: tensor}) -> list of inputs with sizes 0 and 1, which tracing alone does not cover


@lru_cache
def adapters() -> dict[tuple[str, str], Adapter]:
    """(library, class) -> its adapter. Imports eqtp's own files only."""
    files = library_files()
    return {(m.LIBRARY, cls): found for m in files for cls, found in getattr(m, "ADAPTERS", {}).items()}


def adapter_of(model) -> Adapter | None:
    """The adapter of this model, or None if it is of no class that eqtp knows; subclasses are included."""
    known = ((cls.__module__.split(".")[0], cls.__name__) for cls in type(model).__mro__)
    return next((adapters()[name] for name in known if name in adapters()), None)

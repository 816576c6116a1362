"""How a model of another library is compiled: an `Adapter`, found by library and class name.

A file of this folder that says `LIBRARY` and `ADAPTERS` (class name -> `Adapter`) has them; nothing else lists it.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from typing import NamedTuple

import torch

from eqtp.integrations.seam import library_files


class Tolerance(NamedTuple):
    """An output: the largest difference between compiled and eager, in the output's unit, and what its rows are."""

    float32: float
    per: str | None = None  # the size that it is multiplied by: "atoms", for an energy of all atoms
    rows: str | None = None  # "atoms": a row for each; padding is cut off


class Padding(NamedTuple):
    """Which rows of padded inputs count, and where edges that do not may go."""

    atoms: torch.Tensor  # [n] bool
    edges: torch.Tensor  # [e] bool
    ends: torch.Tensor  # [e] int64: an atom that does not count for each edge, in turn


class Adapter(NamedTuple):
    """A model that is called with a mapping from names to tensors, as a function of tensors.

    In `inputs`, a dimension that has a name may have any size, and has the same size wherever the name stands; of
    None the size is that of the example. "atoms" and "edges" are those that are padded.
    """

    inputs: Callable  # (model) -> {key that the model reads: its dimensions, e.g. ("edges", None)}
    outputs: Callable  # (model) -> {key that the model writes: Tolerance}
    # (model, training) -> copy that reads no value on the host, with the same parameters if for training; raises
    # ValueError with what is not supported
    prepare: Callable
    call: Callable  # (copy, {key: tensor}) -> mapping with the outputs
    small: Callable  # ({key: tensor}) -> list of inputs with sizes 0 and 1, which tracing alone does not cover
    # (copy, {key: tensor}, counts [2]) -> as call, of the first counts[0] atoms and counts[1] edges alone: whatever
    # stands behind them, NaN too, is replaced; in outputs, structures are those of the input, atoms still padded
    padded: Callable
    options: Callable = lambda training: {}  # keyword arguments with which the model itself is called
    reshape: dict[str, tuple] = {}  # noqa: RUF012  {key: the shape to which it is brought, where it is of another}
    writes: bool = True  # whether the model writes outputs into the mapping; False: it returns another one


def padding(counts: torch.Tensor, n: int, e: int) -> Padding:
    """counts [2] int64: atoms and edges that count, of n and e."""
    atoms, edges = counts.unbind()
    where = torch.arange(e, device=counts.device)  # [e]
    ends = atoms + where % (n - atoms).clamp(min=1)
    return Padding(torch.arange(n, device=counts.device) < atoms, where < edges, ends)


@lru_cache
def adapters() -> dict[tuple[str, str], Adapter]:
    """(library, class) -> its adapter. Imports eqtp's own files only."""
    files = library_files()
    return {(m.LIBRARY, cls): found for m in files for cls, found in getattr(m, "ADAPTERS", {}).items()}


def adapter_of(model) -> Adapter | None:
    """The adapter of this model, or None if it is of no class that eqtp knows; subclasses are included."""
    known = ((cls.__module__.split(".")[0], cls.__name__) for cls in type(model).__mro__)
    return next((adapters()[name] for name in known if name in adapters()), None)

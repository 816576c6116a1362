"""What is compiled: a model of a library that eqtp knows, or any callable, as a function of tensors."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Container, Mapping, Sequence
from typing import NamedTuple

import torch
from torch.utils import _pytree

from eqtp.integrations.adapter import Adapter, Tolerance, adapter_of


class Case(NamedTuple):
    """A model and its example, taken apart."""

    names: list[str]  # of the tensors that it takes
    tensors: list[torch.Tensor]  # of the example
    dims: list[tuple]  # for each tensor, a name for each free dimension, None for each fixed one
    labels: list[tuple]  # the same, with names of fixed dimensions, too
    strict: Container  # names of the free dimensions that are known to be free
    function: Callable  # (*tensors) -> tuple of tensors, for tracing
    expected: list[torch.Tensor]  # what the model returns for the example
    outputs: dict[str, Tolerance | None]  # names of these; None: relative to scale
    tree: str | None  # how outputs are put together; None: they are written into the mapping that was given
    small: list[list[torch.Tensor]]  # further inputs, of sizes 0 and 1
    padded: Callable | None = None  # (counts [2], *tensors) -> as function, of the first atoms and edges only
    adapter: Adapter | None = None  # of a model that is called with a mapping
    prepared: torch.nn.Module | None = None  # such a model as it is traced


def case_of(model, example, dynamic, buckets: bool = False) -> Case:
    """The model as a function of tensors, run once on the example. buckets: with padding.

    Raises TypeError for a model or an example of a wrong kind, ValueError for what is missing or not supported.
    """
    if not callable(model):
        raise TypeError(f"compile: model must be callable, got {type(model).__name__}")
    adapter = adapter_of(model)
    return _callable(model, example, dynamic) if adapter is None else _known(model, example, dynamic, adapter, buckets)


def names_in(dims: Sequence[tuple]) -> set[str]:
    """The names of free dimensions."""
    return {name for of in dims for name in of if name is not None}


# ------------------------------------------------------------------------ models that are called with a mapping
def read(data, names: Sequence[str], who: str, reshape: Mapping) -> list[torch.Tensor]:
    """The tensors of a mapping, some of them reshaped. Raises TypeError if it is none, ValueError if one is missing."""
    if not hasattr(data, "__getitem__") or isinstance(data, (torch.Tensor, list, tuple)):
        raise TypeError(f"{who} must be a mapping with {', '.join(names)}, got {type(data).__name__}")
    found = []
    for name in names:
        try:
            found.append(data[name])
        except KeyError:
            raise ValueError(f"{who} has no {name!r}; needed are {', '.join(names)}") from None
    return [t.reshape(reshape[name]) if name in reshape else t for name, t in zip(names, found, strict=True)]


class Parts(NamedTuple):
    """A model of a library, ready to be traced, and its input."""

    prepared: torch.nn.Module
    names: list[str]  # of the tensors that it reads
    tensors: list[torch.Tensor]
    labels: list[tuple]  # names of their dimensions
    dims: list[tuple]  # of those that are free
    outputs: dict[str, Tolerance]
    small: list[list[torch.Tensor]]  # further inputs, of sizes 0 and 1


def parts_of(model, data, adapter: Adapter, dynamic, training: bool, who: str) -> Parts:
    """Raises TypeError for an input of a wrong kind, ValueError for what is missing or not supported."""
    try:
        prepared = adapter.prepare(model, training)
    except ValueError as error:
        raise ValueError(f"compile: {type(model).__name__}: {error}") from None
    fields = adapter.inputs(model)
    found = read(data, list(fields), who, adapter.reshape)
    tensors = {name: copied(name, t) for name, t in zip(fields, found, strict=True)}
    labels = list(fields.values())
    dims = labels if dynamic else [(None,) * len(label) for label in labels]
    small = [[given[name] for name in fields] for given in adapter.small(tensors)] if dynamic else []
    return Parts(prepared, list(fields), list(tensors.values()), labels, dims, adapter.outputs(model), small)


def _known(model, example, dynamic, adapter: Adapter, buckets: bool) -> Case:
    if not isinstance(dynamic, bool):
        raise TypeError(f"compile: dynamic must be True or False for a {type(model).__name__}, got {dynamic!r}")
    if buckets and not dynamic:
        raise ValueError("compile: buckets need dynamic=True")
    parts = parts_of(model, example, adapter, dynamic, False, "compile: example")
    prepared, names, tensors, labels, dims, outputs, small = parts

    def function(*given) -> tuple:
        out = adapter.call(prepared, dict(zip(names, given, strict=True)))
        return tuple(out[name].detach() for name in outputs)

    def padded(counts, *given) -> tuple:
        out = adapter.padded(to_pad, dict(zip(names, given, strict=True)), counts)
        return tuple(out[name].detach() for name in outputs)

    to_pad = adapter.prepare(model, False) if buckets else None
    with torch.enable_grad():
        out = model(copied_mapping(example), **adapter.options(False))
        expected = [out[name].detach() for name in outputs]
    padded = padded if buckets else None
    strict = names_in(dims)
    return Case(
        names, tensors, dims, labels, strict, function, expected, outputs, None, small, padded, adapter, prepared
    )


def copied_mapping(data):
    """The mapping with tensors of its own."""
    if not isinstance(data, dict):
        return data.clone()  # torch_geometric's
    return {name: t.detach().clone() if isinstance(t, torch.Tensor) else t for name, t in data.items()}


def copied(name: str, t) -> torch.Tensor:
    """A copy. Raises TypeError if it is no tensor."""
    if not isinstance(t, torch.Tensor):
        raise TypeError(f"compile: {name} of the example must be a tensor, got {type(t).__name__}")
    return t.detach().clone(memory_format=torch.contiguous_format).requires_grad_(t.requires_grad)


# ------------------------------------------------------------------------ any callable
def _callable(model, example, dynamic) -> Case:
    example = example if isinstance(example, tuple) else (example,)
    names = argument_names(model, len(example))
    tensors = [copied(name, t) for name, t in zip(names, example, strict=True)]
    dims = free_dims(dynamic, names, tensors)
    versions = [t._version for t in tensors]
    with torch.enable_grad():
        leaves, tree = _pytree.tree_flatten(model(*tensors))
    for t in leaves:
        if not isinstance(t, torch.Tensor):
            raise TypeError(f"compile: the model must return tensors, got {type(t).__name__}")
    if not leaves:
        raise TypeError("compile: the model returned no tensor for the example")
    for name, t, version in zip(names, tensors, versions, strict=True):
        if t._version != version:
            raise ValueError(f"compile: the model writes to its input {name}; let it write to a copy")

    def function(*given) -> tuple:
        given = [t.detach().requires_grad_(like.requires_grad) for t, like in zip(given, tensors, strict=True)]
        return tuple(t.detach() for t in _pytree.tree_leaves(model(*given)))

    outputs = dict.fromkeys(_paths(leaves, tree))
    expected = [t.detach().clone() for t in leaves]
    tree = _pytree.treespec_dumps(tree)
    strict = () if dynamic is True else names_in(dims)
    return Case(names, tensors, dims, dims, strict, function, expected, outputs, tree, [])


def argument_names(model, count: int) -> list[str]:
    """Names of the first arguments, where they have names."""
    try:
        call = model.forward if isinstance(model, torch.nn.Module) else model
        found = [p.name for p in inspect.signature(call).parameters.values() if p.kind <= p.POSITIONAL_OR_KEYWORD]
    except (TypeError, ValueError):
        found = []
    return found[:count] + [f"argument {n}" for n in range(len(found[:count]), count)]


def _paths(leaves, tree) -> list[str]:
    paths, _ = _pytree.tree_flatten_with_path(_pytree.tree_unflatten(leaves, tree))
    return [f"output{_pytree.keystr(path)}" for path, _ in paths]


def free_dims(dynamic, names: list[str], tensors: list[torch.Tensor]) -> list[tuple]:
    """Names for the free dimensions of each tensor. Of True: the first one, and the last one of integers, from size 2
    on; of names, those of the caller."""
    if dynamic is False:
        return [(None,) * t.ndim for t in tensors]
    if dynamic is not True:
        if not isinstance(dynamic, (list, tuple)) or len(dynamic) != len(tensors):
            raise TypeError(
                f"compile: dynamic must be True, False or a tuple of {len(tensors)} tuples, one for each tensor, with "
                f"a name for each free dimension and None for each fixed one, got {dynamic!r}"
            )
        for name, dims, t in zip(names, dynamic, tensors, strict=True):
            right = isinstance(dims, (list, tuple)) and len(dims) == t.ndim
            if not right or not all(d is None or (isinstance(d, str) and d.isidentifier()) for d in dims):
                raise ValueError(f"compile: dynamic of {name} must have {t.ndim} names or None, got {dims!r}")
        return [tuple(dims) for dims in dynamic]
    found = []
    for name, t in zip(names, tensors, strict=True):
        free = {0, t.ndim - 1} if not t.is_floating_point() else {0}
        name = name.replace(" ", "")
        found.append(tuple(f"{name}_{d}" if d in free and t.shape[d] >= 2 else None for d in range(t.ndim)))
    return found

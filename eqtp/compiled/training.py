"""A step of training as one compiled program: a loss of energies and forces, and its gradient by every parameter.

Parameters are inputs of the program, not constants: it stays the same while they are trained.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch.utils import _pytree

from eqtp.compiled.case import Case, argument_names, copied, copied_mapping, free_dims, names_in, parts_of, read
from eqtp.compiled.signature import Signature
from eqtp.integrations.adapter import adapter_of


class _Given(NamedTuple):
    """Tensors of the example, with names and free dimensions."""

    names: list[str]
    tensors: list[torch.Tensor]
    dims: list[tuple]


class _Model(NamedTuple):
    """A model in training: its input, how it is called, and on what the caller's own is run."""

    given: _Given
    prepared: torch.nn.Module
    call: Callable  # (prepared, *tensors) -> outputs, as the loss sees them
    outputs: Callable  # () -> outputs of the caller's model for the example
    strict: set[str]  # names of dimensions that must stay free
    small: list[list[torch.Tensor]]


class _Call(torch.nn.Module):
    def __init__(self, model: _Model):
        super().__init__()
        self.prepared, self._model = model.prepared, model

    def forward(self, *tensors):
        return self._model.call(self.prepared, *tensors)


def training_case(model, example, loss, dynamic) -> tuple[Case, list[str], int]:
    """(parameters, input, targets) -> loss, gradients; names of the parameters; number of tensors of the input. Run
    once on the example.

    Raises TypeError or ValueError for arguments of a wrong kind.
    """
    if not isinstance(model, torch.nn.Module) or not callable(loss):
        raise TypeError(f"compile: loss= needs a torch.nn.Module and a function, got {type(model).__name__}, {loss!r}")
    if not isinstance(example, tuple) or len(example) != 2:
        got = f"tuple of {len(example)}" if isinstance(example, tuple) else type(example).__name__
        raise TypeError(f"compile: with loss= the example must be (input, targets), got {got}")
    trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
    if not trained:
        raise ValueError("compile: loss= needs a model with parameters that require gradients")
    found = _known(model, example[0], dynamic) or _module(model, example[0], dynamic)
    targets, tree = _targets(example[1], dynamic)
    with torch.enable_grad():
        value = loss(found.outputs(), example[1])
        if not isinstance(value, torch.Tensor) or value.ndim or not value.requires_grad:
            raise TypeError("compile: loss must return one number, a tensor [] that depends on the parameters")
        gradients = torch.autograd.grad(value, list(trained.values()), allow_unused=True)
    expected = {name: g for name, g in zip(trained, gradients, strict=True) if g is not None}
    names, inputs = list(expected), len(found.given.names)

    def function(*given) -> tuple:
        values = [t.detach().requires_grad_() for t in given[: len(names)]]
        data, aims = given[len(names) :][:inputs], given[len(names) + inputs :]
        parameters = {f"prepared.{name}": t for name, t in zip(names, values, strict=True)}
        out = torch.func.functional_call(_Call(found), parameters, tuple(data))
        value = loss(out, _pytree.tree_unflatten(aims, tree))
        return value.detach(), *(g.detach() for g in torch.autograd.grad(value, values))

    weights = [trained[name].detach() for name in names]
    small = [[*weights, *data, *map(_first_row, targets.tensors, targets.dims)] for data in found.small]
    weights = _Given(names, weights, [(None,) * t.ndim for t in weights])
    parts = [[*a, *b, *c] for a, b, c in zip(weights, found.given, targets, strict=True)]
    outputs = dict.fromkeys(["the loss", *(f"the gradient of {name}" for name in names)])
    expected = [value.detach(), *expected.values()]
    return Case(*parts, parts[2], found.strict, function, expected, outputs, None, small), names, inputs


def _known(model, data, dynamic) -> _Model | None:
    adapter = adapter_of(model)
    if adapter is None:
        return None
    parts = parts_of(model, data, adapter, dynamic, True, "compile: the input")
    prepared, names, tensors, _, dims, wanted, small = parts

    def call(prepared, *tensors) -> dict:
        out = adapter.call(prepared, dict(zip(names, tensors, strict=True)))
        return {name: out[name] for name in wanted}

    def outputs() -> dict:
        out = model(copied_mapping(data), **adapter.options(True))
        return {name: out[name] for name in wanted}

    return _Model(_Given(names, tensors, dims), prepared, call, outputs, names_in(dims), small)


def _module(model, data, dynamic) -> _Model:
    data = data if isinstance(data, tuple) else (data,)
    names = argument_names(model, len(data))
    tensors = [copied(name, t) for name, t in zip(names, data, strict=True)]
    dims = free_dims(dynamic, names, tensors)
    strict = set() if dynamic is True else names_in(dims)
    call = lambda prepared, *tensors: prepared(*tensors)  # noqa: E731
    return _Model(_Given(names, tensors, dims), model, call, lambda: model(*tensors), strict, [])


def _targets(targets, dynamic) -> tuple[_Given, object]:
    """Numbers of rows are free, as far as loss and outputs leave them so."""
    leaves, tree = _pytree.tree_flatten_with_path(targets)
    names = [f"targets{_pytree.keystr(path)}" for path, _ in leaves]
    tensors = [copied(name, t) for name, (_, t) in zip(names, leaves, strict=True)]
    rows = [f"rows{n}" if dynamic and t.ndim and t.shape[0] >= 2 else None for n, t in enumerate(tensors)]
    dims = [(row, *[None] * (t.ndim - 1)) if t.ndim else () for row, t in zip(rows, tensors, strict=True)]
    return _Given(names, tensors, dims), tree


def _first_row(t: torch.Tensor, dims: tuple) -> torch.Tensor:
    return t[:1] if dims and dims[0] else t


class TrainingStep:
    """A compiled step of training: ``step(input, targets)`` returns the loss [] and adds to the gradients of the model.

    The loss has no graph behind it: its gradients are in the ``.grad`` of the parameters, as ``loss.backward()`` would
    leave them, and an optimizer takes it from there. Parameters are read at each call, so no step compiles anything.
    Errors as for `CompiledModel`.
    """

    def __init__(self, model: torch.nn.Module, names: list[str], inputs: int, run: Callable, signature, report):
        self.signature: Signature = signature
        self.report = report
        self._model, self._names, self._inputs, self._run = model, names, inputs, run
        self._adapter = adapter_of(model)

    def __call__(self, data, targets) -> torch.Tensor:
        parameters = [self._model.get_parameter(name) for name in self._names]
        names = [given.name for given in self.signature.inputs[len(parameters) :]]
        names, aims = names[: self._inputs], names[self._inputs :]
        inputs = data if isinstance(data, tuple) else (data,)
        if self._adapter is not None:
            inputs = read(data, names, "step: the input", self._adapter.reshape)
        given = {f"targets{_pytree.keystr(path)}": t for path, t in _pytree.tree_flatten_with_path(targets)[0]}
        if len(inputs) != len(names) or given.keys() != set(aims):
            expected = f"{len(names)} inputs ({', '.join(names)}) and {', '.join(aims)}"
            raise TypeError(f"step: {expected} expected, got {len(inputs)} and {', '.join(given)}")
        tensors = self.signature.check([*parameters, *inputs, *(given[name] for name in aims)])
        with torch.no_grad():
            value, *gradients = self._run(*tensors)
        for p, gradient in zip(parameters, gradients, strict=True):
            p.grad = gradient if p.grad is None else p.grad.add_(gradient)
        return value

    def __repr__(self) -> str:
        given = ", ".join(map(str, self.signature.inputs[len(self._names) :]))
        return f"TrainingStep({given} -> loss, gradients of {len(self._names)} parameters)"

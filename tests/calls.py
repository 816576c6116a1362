"""Kernels called directly, past the ops."""

import dataclasses
import functools

import torch

from eqtp.backends import registry
from eqtp.backends.native import operators
from eqtp.ops import autograd
from eqtp.plans.calls import ROWS, EdgeKind, Edges, Operands, Outputs, Pass

PASSES = {3: Pass.FWD, 4: Pass.BWD, 7: Pass.BWDBWD}  # by the number of operands


def edges_of(graph) -> Edges:
    """graph: (src, dst, ptr, order, tptr, torder), or () for the product of rows; without order the sums are atomic."""
    if not graph:
        return ROWS
    unsorted = graph[0].numel() and not graph[3].numel()
    return Edges(*graph, EdgeKind.UNSORTED if unsorted else EdgeKind.SORTED)


def convolve(kernel: registry.Kernel | str, key: str, graph, inputs, outputs) -> None:
    """A pass of a channelwise kernel, or of a family's.

    inputs: x, y, w [, g [, cx, cy, cw]]; outputs: out, gx, gy, gw."""
    kernel = registry.kernel(kernel, "channelwise") if isinstance(kernel, str) else kernel
    operands = Operands(*inputs, edges=edges_of(graph))
    kernel.run(key, PASSES[len(inputs)], operands, Outputs(*outputs))


def run(family: str, engine: str, descriptor, inputs, outputs) -> None:
    """A program of signals or matrices, or a table of couplings, which say what they compute."""
    registry.kernel(family, engine).run(descriptor, Pass.FWD, inputs, outputs)


def wrap(monkeypatch, engine: str, wrapper, family: str = "native") -> None:
    """Puts wrapper(run, descriptor, pass_, inputs, outputs) in the place of the kernels' run, for one test."""
    kernel = registry.kernel(family, engine)
    wrapped = dataclasses.replace(kernel, run=functools.partial(wrapper, kernel.run))
    monkeypatch.setitem(registry._kernels, (family, engine), wrapped)
    monkeypatch.setitem(globals(), "python", python_ops())


python = None  # registrations last as long as their library


def python_ops() -> torch.library.Library | None:
    """On the CPU, ops run their kernels in Python while this lives, also where C++ has the op."""
    if not operators.loaded():
        return None
    library = torch.library.Library("eqtp", "IMPL")
    for name, kernel in autograd.IN_CPP.items():
        library.impl(name, kernel, "CPU", allow_override=True)
    return library


def count_calls(monkeypatch, engine: str, family: str = "native") -> list:
    """The (op, pass) of each plain call of ops that run on these kernels, from now on."""
    calls, call = [], autograd._below_autograd

    def counted(op, args):
        name, _, pass_ = op.name().removeprefix("eqtp::").partition("_bwd")
        if registry.ops().get(name) == engine and args[-1] == family:
            calls.append((name, f"bwd{pass_}" if op.name().count("_bwd") else "fwd"))
        return call(op, args)

    monkeypatch.setattr(autograd, "_below_autograd", counted)
    return calls

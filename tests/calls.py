"""Kernels called directly, past the ops."""

import dataclasses
import functools

from eqtp.backends import registry
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


def count_calls(monkeypatch, engine: str, family: str = "native") -> list:
    """The (descriptor, pass) of each call of the kernels from now on."""
    calls = []

    def counted(run, descriptor, pass_, inputs, outputs):
        calls.append((descriptor, pass_))
        run(descriptor, pass_, inputs, outputs)

    wrap(monkeypatch, engine, counted, family)
    return calls

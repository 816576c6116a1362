"""torch.export and torch.jit.trace of every op and module: one program for any number of rows."""

import warnings

import pytest
import torch
from every_call import GRAPH_OPS, OPS, edges, joined, modules, tensors
from sweeps import sweep
from torch.export import Dim

import eqtp
from eqtp import testing

EVERY_RUN = [name for name in OPS if not name.endswith("reference")] + ["gaunt_tensor_product grid reference"]


class Calls(torch.nn.Module):
    """A function, or another module."""

    def __init__(self, function):
        super().__init__()
        self.function = joined(function)
        self.module = function if isinstance(function, torch.nn.Module) else None

    def forward(self, *arguments):
        return self.function(*arguments)


def assert_same(program, function, inputs):
    actual, expected = program(*inputs), joined(function)(*inputs)
    assert actual.dtype == expected.dtype
    testing.assert_close(actual, expected)


def exported(function, example, dims):
    """dims: for each input, its dimensions that are free."""
    program = torch.export.export(Calls(function), tuple(example), dynamic_shapes=(tuple(dims),), strict=False)
    return program.module()


@sweep("name", OPS, EVERY_RUN)
def test_export_of_an_op(name):
    """Batch and channels are free."""
    function, shapes = OPS[name]
    example = tensors(shapes, 5)
    dims = [{k: Dim.DYNAMIC for k in range(t.ndim - 1) if t.shape[k] > 1} for t in example]
    program = exported(function, example, dims)
    for n in (7, 1, 0):
        assert_same(program, function, tensors(shapes, n))
    wider = [(2 * shape[0], *shape[1:]) if len(shape) > 1 and shape[0] > 1 else shape for shape in shapes]
    assert_same(program, function, tensors(wider, 4))


@sweep("name", GRAPH_OPS, [name for name in GRAPH_OPS if not name.endswith("reference")])
def test_export_of_an_op_of_edges(name):
    op, of_nodes, of_edges = GRAPH_OPS[name]

    def function(src, dst, nodes, *rows):
        n = nodes.shape[0]
        return op(eqtp.Graph(src, dst, n, n), *rows)

    def inputs(e, n):
        return [*edges(e, n), torch.zeros(n), *tensors(of_nodes, n), *tensors(of_edges, e)]

    num_edges, num_nodes = {0: Dim("edges")}, {0: Dim("nodes")}
    dims = [num_edges] * 2 + [num_nodes] * (1 + len(of_nodes)) + [num_edges] * len(of_edges)
    program = exported(function, inputs(5, 3), dims)
    for e, n in ((7, 4), (1, 1), (0, 3), (0, 0)):
        assert_same(program, function, inputs(e, n))


@pytest.mark.parametrize("name", modules())
def test_export_of_a_module(name):
    module, inputs = modules()[name]
    program = exported(module.double(), inputs(5), [{0: Dim("batch")} for _ in inputs(5)])
    for n in (7, 1, 0):
        assert_same(program, module, inputs(n))


def traced(function, example):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # degrees become constants
        return torch.jit.trace(Calls(function), tuple(example), check_trace=False)


@sweep("name", OPS, EVERY_RUN)
def test_trace_of_an_op(name):
    function, shapes = OPS[name]
    program = traced(function, tensors(shapes, 5))
    for n in (7, 1, 0):
        assert_same(program, function, tensors(shapes, n))


@pytest.mark.parametrize("name", [name for name in modules() if "Conv" not in name])
def test_trace_of_a_module(name):
    module, inputs = modules()[name]
    program = traced(module.double(), inputs(5))
    for n in (7, 1, 0):
        assert_same(program, module, inputs(n))

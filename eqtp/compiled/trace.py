"""A function of tensors, with the derivatives that it takes, as one graph of ops for any number of atoms and edges."""

from __future__ import annotations

import operator
from collections.abc import Callable, Container, Sequence
from contextlib import contextmanager
from typing import NamedTuple

import torch

from eqtp.compiled.signature import Input, Signature


class Traced(NamedTuple):
    """A graph of ops and what it takes; `constants` (weights, tables) are attributes of the module."""

    module: torch.fx.GraphModule
    signature: Signature


def trace(
    function: Callable, names: Sequence[str], tensors: Sequence[torch.Tensor], dims: Sequence[tuple], strict: Container
) -> Traced:
    """The graph of function(*tensors) -> tuple of tensors, traced with fake tensors by make_fx.

    dims: for each tensor its dimensions, a name where the size is free, None where it is that of the example; equal
    names are equal sizes. strict: the names of which it is an error if the size turns out to be fixed.

    Sizes are symbols of their own, so that none is confused with another or with a constant of the model that is equal
    in the example (`check_example`). Raises ValueError for a size that the function does not leave free; RuntimeError
    for a function that reads values on the host.
    """
    from torch._subclasses.fake_tensor import FakeTensorMode
    from torch.fx.experimental.proxy_tensor import make_fx
    from torch.fx.experimental.symbolic_shapes import ShapeEnv

    shapes = ShapeEnv(duck_shape=False, specialize_zero_one=False)
    mode = FakeTensorMode(shape_env=shapes, allow_non_fake_inputs=True)
    fakes = [_fake(mode, *given) for given in zip(names, tensors, dims, strict=True)]
    _equate(fakes, dims)
    try:
        with torch.enable_grad():
            module = make_fx(function, tracing_mode="symbolic", _allow_non_fake_inputs=True)(*fakes)
    except Exception as error:
        raise RuntimeError(f"compile: the model could not be traced: {type(error).__name__}: {error}") from error
    share_graphs(module.graph)
    module.recompile()
    return Traced(module, _signature(shapes, names, tensors, fakes, dims, strict))


@contextmanager
def without_stack_traces():
    """torch would note for each op, each time that it traces, from which line it comes."""
    config = torch.fx.config
    before = getattr(config, "do_not_emit_stack_traces", None)  # None: a version of torch without this
    if before is not None:
        config.do_not_emit_stack_traces = True
    try:
        yield
    finally:
        if before is not None:
            config.do_not_emit_stack_traces = before


def check_example(names, tensors, dims) -> None:
    """Raises ValueError for sizes below 2, of which torch could make constants, and for equal names of sizes that are
    not equal."""
    sizes: dict[str, tuple] = {}
    for name, t, named in zip(names, tensors, dims, strict=True):
        if len(named) != t.ndim:
            raise ValueError(f"compile: {name} of the example must have {len(named)} dimensions, got {list(t.shape)}")
        for size, dim in zip(t.shape, named, strict=True):
            if dim is not None and size < 2:
                raise ValueError(f"compile: the example must have at least 2 {dim}, got {size} in {name}")
            if dim is not None and sizes.setdefault(dim, (size, name))[0] != size:
                n, other = sizes[dim]
                raise ValueError(f"compile: {name} of the example has {size} {dim}, {other} has {n}")


def _fake(mode, name: str, t: torch.Tensor, dims: tuple):
    from torch._dynamo.source import ConstantSource
    from torch.fx.experimental.symbolic_shapes import DimDynamic, StatelessSymbolicContext

    sizes = [DimDynamic.STATIC if dim is None else DimDynamic.DYNAMIC for dim in dims]
    context = StatelessSymbolicContext(dynamic_sizes=sizes)
    return mode.from_tensor(t, symbolic_context=context, source=ConstantSource(name.replace(" ", "_")))


def _equate(fakes, dims) -> None:
    """Sizes of one name become one symbol."""
    first = {}
    for t, named in zip(fakes, dims, strict=True):
        for size, dim in zip(t.shape, named, strict=True):
            if dim is not None:
                torch._check(first.setdefault(dim, size) == size)


# ------------------------------------------------------------------------ sizes
def _signature(shapes, names, tensors, fakes, dims, strict: Container) -> Signature:
    """The sizes that are free after tracing, by name, and the conditions that tracing found."""
    free: dict = {}  # symbol -> name
    found = []
    for name, fake, named in zip(names, fakes, dims, strict=True):
        found.append([size if isinstance(size, int) else shapes.replace(size.node.expr) for size in fake.shape])
        for size, dim in zip(found[-1], named, strict=True):
            if dim is not None and dim in strict and not getattr(size, "free_symbols", None):
                raise ValueError(
                    f"compile: the model does not leave the number of {dim} free (it made {size} of it, in {name}); "
                    "give an example of another size"
                )
            if getattr(size, "is_Symbol", False):
                free.setdefault(size, dim)
    symbols = {symbol: _symbol(symbol, name) for symbol, name in free.items()}

    def shape(sizes) -> tuple:
        numbers = (s if isinstance(s, int) else s.xreplace(symbols) for s in sizes)
        return tuple(int(s) if isinstance(s, int) or s.is_number else _text(s) for s in numbers)

    inputs = tuple(
        Input(name, str(t.dtype).removeprefix("torch."), str(t.device), shape(sizes))
        for name, t, sizes in zip(names, tensors, found, strict=True)
    )
    return Signature(inputs, 2, tuple(_conditions(shapes, symbols)))


def _symbol(like, name: str):
    """A sympy symbol, 0 or more."""
    return type(like)(name, integer=True, nonnegative=True)


def _conditions(shapes, symbols: dict) -> list[str]:
    """The guards of the trace, but for those that hold for all sizes from 2 on."""
    larger = {symbol: _symbol(symbol, f"{symbol}_") + 2 for symbol in symbols}
    conditions = []
    for guard in shapes.guards:
        expression = shapes.replace(guard.expr)
        if str(expression.xreplace(larger)) != "True":
            conditions.append(_text(expression.xreplace(symbols)))
    return list(dict.fromkeys(conditions))


def _text(expression) -> str:
    from torch.utils._sympy.printers import PythonPrinter

    return PythonPrinter().doprint(expression)


# ------------------------------------------------------------------------ one graph for all layers
def _is_pure(node: torch.fx.Node, integers_change: bool) -> bool:
    """Whether a call with the same arguments returns the same, and nothing writes to it: sizes, views, and the ops that
    make a graph of an edge index."""
    if node.target in (operator.getitem, torch.ops.aten.sym_size.int):
        return True
    if integers_change or node.op != "call_function":
        return False
    value = node.meta.get("val")
    if node.target is torch.ops.aten.new_empty.default:  # only a number of nodes
        return value.numel() == 0 and not value.dtype.is_floating_point
    ops = (torch.ops.eqtp.graph_edges.default, torch.ops.eqtp.graph_csr.default)
    views = (torch.ops.aten.select.int, torch.ops.aten.detach.default)
    return node.target in ops or (node.target in views and not value.dtype.is_floating_point)


def _writes_integers(node: torch.fx.Node) -> bool:
    schema = getattr(node.target, "_schema", None)
    written = node.args[0].meta.get("val") if schema is not None and schema.is_mutable else None
    return isinstance(written, torch.Tensor) and not written.dtype.is_floating_point


def share_graphs(graph: torch.fx.Graph) -> None:
    """Layers that see one edge index share its sorted columns, as in an eager call: equal calls become one."""
    integers_change = any(_writes_integers(node) for node in graph.nodes if node.op == "call_function")
    known: dict[tuple, torch.fx.Node] = {}
    for node in list(graph.nodes):
        if node.op != "call_function" or not _is_pure(node, integers_change):
            continue
        arguments, value = node.args, node.meta.get("val")
        if node.target is torch.ops.aten.new_empty.default:  # whatever it is made from, wherever the size is from
            arguments = (value.dtype, value.device, value.shape)
        same = known.setdefault((node.target, str(arguments), str(node.kwargs)), node)
        if same is not node:
            node.replace_all_uses_with(same)
            graph.erase_node(node)

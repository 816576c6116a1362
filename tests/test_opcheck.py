"""The registered ops themselves: torch's own check of each, and which gradients they are asked for."""

import re
from pathlib import Path

import pytest
import torch
from test_autograd import GRAPH, PLAN, operands

import eqtp
from eqtp import testing
from eqtp.ops import autograd
from eqtp.plans.channelwise import record

ALL = [True, True, True]
SOME = [False, True, False]


def op_cases():
    """(op, arguments) of the registered ops that no other file checks."""
    ops = torch.ops.eqtp
    x, y, w = (t.requires_grad_() for t in operands("rows"))
    xs = operands("conv")[0].requires_grad_()
    g = testing.random(5, PLAN.dim_out, seed=5).requires_grad_()
    gn = testing.random(4, PLAN.dim_out, seed=6).requires_grad_()
    none = GRAPH.src.new_empty(0)
    plan = record(PLAN.key)
    index = (GRAPH.src, GRAPH.dst, GRAPH.ptr, GRAPH.order, none, none, False, plan, "native")
    segments = (GRAPH.dst, GRAPH.ptr, GRAPH.order, False, "native")
    c = [t.detach() for t in (x, y, w)]
    yield ops.tensor_product, (x, y, w, plan, "native")
    for wanted in (ALL, SOME):
        yield ops.tensor_product_bwd, (g, x, y, w, wanted, plan, "native")
        yield ops.tensor_product_conv_bwd, (gn, xs, y, w, wanted, *index)
        fused = [False, *wanted]
        yield ops.tensor_product_bwdbwd, (g.detach(), *c, *operands("rows", 7), fused, plan, "native")
        conv_c = (xs.detach(), *c[1:])
        yield ops.tensor_product_conv_bwdbwd, (gn.detach(), *conv_c, *operands("conv", 7), fused, *index)
    yield ops.tensor_product_conv, (xs, y, w, *index)
    yield ops.segment_sum, (g, *segments)
    yield ops.segment_gather, (gn, *segments)
    yield ops.gaunt_table, (x.detach(), "octant", 0, [2, 6, 8])
    yield from signal_cases()
    ends = torch.tensor([0, 2, 1]), torch.tensor([1, 1, 0])
    for valid in (None, ends[0] < 2):
        yield ops.graph_edges, (*ends, valid, torch.empty(3, 0), torch.empty(2, 0), "now")
    yield ops.graph_csr, (ends[1], torch.empty(2, 0))


def signal_cases():
    """Of the products of functions on the sphere: x1 of degree 1, x2 of degree 2, what comes out of degree 2."""
    ops = torch.ops.eqtp

    def random(*shape, seed):
        return testing.random(2, 3, *shape, seed=seed).requires_grad_()

    x1, x2, g, c1, c2 = (
        random(1, 4, seed=1),
        random(1, 9, seed=2),
        random(2, 9, seed=3),
        random(1, 4, seed=4),
        random(1, 9, seed=5),
    )
    for method in ("sparse", "grid"):
        constants = (2, "odd", method, "native")
        yield ops.gaunt_tensor_product, (x1, x2, *constants)
        yield ops.gaunt_tensor_product_bwd, (g, x1, x2, [True, False], *constants)
        second = tuple(t.detach() for t in (g, x1, x2, c1, c2))
        yield ops.gaunt_tensor_product_bwdbwd, (*second, [True, False, True], *constants)
    x, along, powers = random(4, seed=6), random(1, 4, seed=7), random(3, 9, seed=8)
    yield ops.gaunt_many_body, (x, along, 2, 3, "native")
    yield ops.gaunt_many_body_bwd, (x, along, powers, "native")


@pytest.mark.parametrize(("op", "arguments"), list(op_cases()), ids=lambda a: getattr(a, "__name__", ""))
def test_opcheck(op, arguments):
    """R9: schema, fake tensors, autograd registration, and the same numbers through AOT dispatch."""
    torch.library.opcheck(op.default, arguments)


def test_every_registered_op_is_checked():
    """Here, or by `opcheck(torch.ops.eqtp.<name>.default, ..)` in a test of its own."""
    files = "".join(path.read_text() for path in Path(__file__).parent.glob("test_*.py"))
    checked = {op.__name__ for op, _ in op_cases()} | set(
        re.findall(r"opcheck\(\s*(?:torch\.ops\.eqtp|ops)\.(\w+)\.default", files)
    )
    found = {n for n in dir(torch.ops.eqtp) if isinstance(getattr(torch.ops.eqtp, n), torch._ops.OpOverloadPacket)}
    # without those that test_registry adds
    assert {n for n in found if not n.startswith(("python_", "toy"))} == checked


@pytest.mark.parametrize("create_graph", [False, True])
def test_gradients_that_nobody_asks_for_are_not_computed(monkeypatch, create_graph):
    """Weights of a model have gradients; forces do not need them."""
    asked, call = [], autograd._below_autograd

    def recorded(op, args):
        asked.extend(a for a in args if type(a) is list)
        return call(op, args)

    monkeypatch.setattr(autograd, "_below_autograd", recorded)
    one = torch.ones((), requires_grad=True)
    embedding, y, w = (t.requires_grad_() * one for t in operands("conv"))  # no leaves, as in a model
    for inputs, wanted in (
        ((y,), [False, True, False]),
        ((y, w), [False, True, True]),
        ((embedding,), [True, False, False]),
    ):
        asked.clear()
        out = eqtp.tensor_product_conv(embedding, y, w, PLAN, GRAPH).square().sum()
        torch.autograd.grad(out, inputs, create_graph=create_graph)
        assert asked == [wanted]
    asked.clear()
    eqtp.tensor_product_conv(embedding, y, w, PLAN, GRAPH).sum().backward()
    assert asked == [[True, True, True]]


def test_bwd_and_bwdbwd_at_the_boundary():
    """Unwanted gradients are empty, not garbage."""
    x, y, w = operands("rows")
    g = testing.random(5, PLAN.dim_out)
    gx, gy, gw = torch.ops.eqtp.tensor_product_bwd(g, x, y, w, [False, True, False], record(PLAN.key), "native")
    assert gx.shape == gw.shape == (0,) and gy.shape == y.shape

"""Sums of many rows in float32: a node with a million edges, into it or out of it, keeps its digits.

The sums are of positive numbers, so that errors are relative to the sum. Added one after another they are wrong by
1e-5 and more.
"""

import os
import subprocess
import sys

import emulated  # noqa: F401
import emulation
import pytest
import torch
from sweeps import sweep
from test_tensor_product_conv_cuda_native import emulated as table_driven  # noqa: F401

import eqtp
from eqtp import testing
from eqtp.ops import segment_softmax, tensor_product_conv
from eqtp.plans.plan import TensorProductPlan

TOLERANCE = 1e-6
FAMILIES = ["native", "reference"]
SCALARS = ("2x0e", "0e", "2x0e", [(0, 0, 0, "uvu", True)])
VECTORS = ("3x0e+2x1o", "0e+1o", "3x0e+2x1o", [(0, 0, 0, "uvu", True), (1, 0, 1, "uvu", True)])


def positive(*shape, seed=0):
    """Random numbers between 1 and 2, float64 that float32 holds."""
    return (1 + testing.random(*shape, seed=seed).abs() % 1).float().double()


def constant(*shape, seed=0):
    """The same number everywhere: roundings add up."""
    return torch.full(shape, 1.1).double()


def star(edges, into):
    """All edges into (or out of) one of four nodes, but for one edge of each other; the other ends are nodes 0 .. 6."""
    one, other = torch.full((edges,), 2), torch.arange(edges) % 7
    one[:3] = torch.tensor([0, 1, 3])
    return eqtp.Graph(other, one, 7, 4) if into else eqtp.Graph(one, other, 4, 7)


def error(actual, expected):
    """Largest error of a component, relative to it."""
    assert actual.dtype == torch.float32 and actual.shape == expected.shape
    return ((actual.double() - expected).abs() / expected.abs()).max().item()


def summed(x, graph):
    return torch.zeros(graph.num_dst, x.shape[1], dtype=torch.float64).index_add(0, graph.dst, x.double())


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("columns", [1, 40])
def test_a_million_rows(family, columns):
    """1e6 times 0.1 are 1e5."""
    graph, x = star(1_000_000, into=True), torch.full((1_000_000, 1), 0.1).expand(-1, columns)
    expected = summed(x, graph)
    assert error(eqtp.segment_sum(x, graph, family), expected) < TOLERANCE
    assert error(eqtp.segment_mean(x, graph, family), expected / graph.ptr.diff()[:, None]) < TOLERANCE
    assert (
        error(eqtp.segment_sum(positive(len(x), 1).float(), graph, family), summed(positive(len(x), 1), graph)) < 1e-6
    )


@pytest.mark.parametrize("family", FAMILIES)
def test_counting_past_the_mantissa(family):
    """2^24 + 2000 ones; one after another they stop at 2^24."""
    edges = 2**24 + 2003
    graph = star(edges, into=True)
    total = eqtp.segment_sum(torch.ones(1, 1).expand(edges, 1), graph, family)
    assert total.flatten().tolist() == [1, 1, 2**24 + 2000, 1]


@pytest.mark.parametrize("family", FAMILIES)
def test_ones_after_a_large_number(family):
    """The same by fewer rows: none of the ones is lost that comes after the block of the large one."""
    graph = star(5003, into=True)
    x = torch.ones(5003, 70)
    x[3] = 2.0**24
    total = eqtp.segment_sum(x, graph, family)[2]
    assert ((total - (2**24 + 4999)).abs() <= 32).all()


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("value", [torch.inf, -torch.inf, torch.nan])
def test_what_is_not_finite(family, value):
    x = torch.ones(203, 5)
    x[[50, 150], 2] = value
    for n, edges in ((0, 1), (2, 200)):
        total = eqtp.segment_sum(x, star(203, into=True), family)[n]
        expected = torch.full((5,), float(edges))
        expected[2] = value if n else 1.0
        torch.testing.assert_close(total, expected, equal_nan=True)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("columns", [1, 20])
def test_softmax(family, columns):
    """Normaliser and backward."""
    graph, x = star(100_000, into=True), positive(100_000, columns, seed=1)
    g = positive(100_000, columns, seed=2)
    found = {}
    for dtype in (torch.float32, torch.float64):
        leaf = x.to(dtype).requires_grad_()
        y = eqtp.segment_softmax(leaf, graph, family)
        # the gradient's sum, y g, is what is left of g where y (g - sum) is divided by y
        (gx,) = torch.autograd.grad(y, leaf, g.to(dtype))
        found[dtype] = y.detach(), g - gx.double() / y.detach().double()
    actual, expected = found.values()
    assert error(actual[0], expected[0]) < TOLERANCE
    mean = actual[1][3:].mean(0)  # of the giant's rows, each with an error of its own
    assert ((mean - expected[1][3:].mean(0)) / expected[1][3:].mean(0)).abs().max() < TOLERANCE


def orders(op, operands, dtype):
    """Output, gradients and second-order gradients of a convolution whose values are all positive."""
    x, y, w = leaves = [t.to(dtype).requires_grad_() for t in operands]
    out = op(x, y, w)
    g = torch.ones_like(out).requires_grad_()
    gradients = torch.autograd.grad(out, leaves, g, create_graph=True)
    second = torch.autograd.grad(sum(t.sum() for t in gradients), [*leaves, g])
    names = "out", "gx", "gy", "gw", "ggx", "ggy", "ggw", "ggg"
    return dict(zip(names, (out, *gradients, *second), strict=True))


def inputs(plan, graph, number):
    """x, y and w of a convolution."""
    shapes = (graph.num_src, plan.dim_in1), (graph.num_edges, plan.dim_in2), (graph.num_edges, plan.weight_numel)
    return [number(*shape, seed=n) for n, shape in enumerate(shapes)]


def check_conv(family, arguments, graph, number=positive):
    plan = TensorProductPlan(*arguments)
    operands = inputs(plan, graph, number)
    actual = orders(lambda *t: eqtp.tensor_product_conv(*t, plan, graph, family), operands, torch.float32)
    expected = orders(lambda *t: tensor_product_conv.reference(*t, plan, graph), operands, torch.float64)
    used = {name: t != 0 for name, t in expected.items()}  # what no path reaches is 0
    errors = {name: error(actual[name][used[name]], t[used[name]]) for name, t in expected.items()}
    assert all(e < TOLERANCE for e in errors.values()), errors
    assert all((actual[name][~used[name]] == 0).all() for name in used)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("into", [True, False], ids=["giant destination", "giant source"])
@pytest.mark.parametrize("arguments", [SCALARS, VECTORS], ids=["scalars", "vectors"])
def test_convolution(family, arguments, into):
    """First and second order."""
    check_conv(family, arguments, star(100_000, into))


# channels for the lanes of several warps, or of an eighth of one: 4 or 32 threads share the edges
GPU_PLANS = {
    "scalars": ("33x0e", "0e", "33x0e", [(0, 0, 0, "uvu", True)]),
    "vectors": VECTORS,
    "many components": ("2x5o", "0e", "2x5o", [(0, 0, 0, "uvu", True)]),
}


@pytest.mark.parametrize("family", ["emulated", "table_driven"])
@pytest.mark.parametrize("into", [True, False], ids=["giant destination", "giant source"])
@sweep("plan", GPU_PLANS, ["scalars"])
def test_cuda_convolution(family, plan, into, request):
    """The specialised kernels and those that tables drive, on the CPU."""
    if emulation.why_not(None):
        pytest.skip(emulation.why_not(None))
    family = request.getfixturevalue(family) if family == "table_driven" else family
    graph = star(50_000 if plan == "scalars" else 200_000, into)
    check_conv(family, GPU_PLANS[plan], graph, constant)


def test_cuda_half_precision():
    """Half precision is for storage: 2^24 and 600,000 ones, of which a thread in four would lose all."""
    if emulation.why_not(None):
        pytest.skip(emulation.why_not(None))
    plan = TensorProductPlan("32x0e", "0e", "32x0e", [(0, 0, 0, "uvu", False)])
    for into in (True, False):
        graph = star(1_200_000, into)
        x, y = torch.ones(graph.num_src, 32, dtype=torch.bfloat16), torch.ones(1_200_000, 1, dtype=torch.bfloat16)
        y[3] = 2.0**24
        out = eqtp.tensor_product_conv(x.requires_grad_(), y, None, plan, graph, "emulated")
        (gx,) = torch.autograd.grad(out.sum(), x)
        total = (out if into else gx)[2].double()
        assert ((total - (2**24 + 1_199_996)).abs() <= total * 2**-9).all()


@pytest.mark.parametrize("threads", [2, 3])
def test_convolution_by_several_threads(threads):
    torch.set_num_threads(threads)
    for into in (True, False):
        check_conv("native", VECTORS, star(100_000, into))


@pytest.mark.parametrize("family", FAMILIES)
def test_a_million_edges_out_of_a_source(family):
    """the gradient of x, 1e6 times 0.1."""
    plan, graph = TensorProductPlan("1x0e", "0e", "1x0e", [(0, 0, 0, "uvu", False)]), star(1_000_003, into=False)
    x, y = torch.ones(4, 1).requires_grad_(), torch.full((1_000_003, 1), 0.1)
    (gx,) = torch.autograd.grad(eqtp.tensor_product_conv(x, y, None, plan, graph, family).sum(), x)
    assert error(gx[2], y[:1, 0].double() * 1_000_000) < TOLERANCE


@pytest.mark.parametrize("degree", [1, 31, 32, 33, 39, 40, 41, 63, 64, 65, 96, 97, 129])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("into", [True, False])
def test_every_length(degree, dtype, into):
    """Around the lengths at which a sum begins another block: every row counts, and once."""
    one, other = torch.arange(degree * 3) % 3, torch.arange(degree * 3) // 3 * 2 % 6
    graph = eqtp.Graph(other, one, 6, 3) if into else eqtp.Graph(one, other, 3, 6)
    x = testing.random(graph.num_edges, 21).to(dtype)
    testing.assert_close(eqtp.segment_sum(x, graph, "native"), summed(x, graph))
    testing.assert_close(eqtp.segment_softmax(x, graph, "native"), segment_softmax.reference(x.double(), graph))
    plan = TensorProductPlan(*VECTORS)
    operands = inputs(plan, graph, testing.random)
    actual = orders(lambda *t: eqtp.tensor_product_conv(*t, plan, graph, "native"), operands, dtype)
    expected = orders(lambda *t: tensor_product_conv.reference(*t, plan, graph), operands, torch.float64)
    for name, t in actual.items():
        testing.assert_close(t, expected[name], name)


@pytest.mark.parametrize("level", ["1", "3"])
def test_other_instruction_sets(level):
    """No optimiser takes the errors of the sums for zeros: the same tests at the other SIMD levels."""
    if os.environ.get("EQTP_SIMD"):
        pytest.skip("this is one of them")
    command = [
        sys.executable,
        "-m",
        "pytest",
        __file__,
        "-q",
        "-k",
        "native or several or length",
        "-p",
        "no:cacheprovider",
    ]
    done = subprocess.run(command, env=os.environ | {"EQTP_SIMD": level}, capture_output=True, text=True, timeout=280)
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-2000:]

"""segment_max against its definition: values, ties, NaN, empty segments, derivatives of any order, torch.func and
torch.compile."""

import calls
import pytest
import torch

import eqtp
from eqtp import testing
from eqtp.ops import segment_max as module
from eqtp.ops.segment_max import segment_max

FAMILIES = ["native", "reference"]
SHAPES = [(), (1,), (0,), (5,), (8,), (71,), (2, 3), (4, 0, 2)]
DTYPES = [torch.float64, torch.float32]


def largest(x, graph):
    """The definition, edge by edge: values, and the first edge of each (num_edges where there is none)."""
    out = torch.zeros(graph.num_dst, *x.shape[1:], dtype=x.dtype)
    arg = torch.full(out.shape, graph.num_edges)
    for e, n in enumerate(graph.dst.tolist()):
        more = (arg[n] == graph.num_edges) | (x[e] > out[n]) | (x[e].isnan() & ~out[n].isnan())
        out[n], arg[n] = torch.where(more, x[e], out[n]), torch.where(more, e, arg[n])
    return out, arg


def scattered(g, arg, num_edges):
    """Gradient of x [e, ...] from that of the output: g at arg."""
    return g.new_zeros(num_edges + 1, *g.shape[1:]).scatter(0, arg, g)[:num_edges]


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_values_and_gradients_of_any_trailing_shape(random_graph, shape, dtype, family):
    graph = random_graph(3, 9, 33)
    x = testing.random(33, *shape).to(dtype).requires_grad_()
    expected, arg = largest(x.detach(), graph)
    with testing.poisoned():
        out = segment_max(x, graph, backend=family)
        g = testing.random(*out.shape, seed=1).to(dtype)
        (gx,) = torch.autograd.grad(out, x, g)
    assert torch.equal(out, expected) and out.dtype == dtype
    assert torch.equal(gx, scattered(g, arg, 33))


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("columns", [1, 3, 8, 40])
def test_equal_values_and_nan(random_graph, family, columns):
    """The first edge has it; NaN is larger than everything, minus infinity is a number like others."""
    graph = random_graph(4, 7, 60)
    x = testing.random(60, columns).round()
    x[::9], x[4::13], x[graph.order[graph.ptr[3] : graph.ptr[4]]] = float("nan"), float("inf"), -float("inf")
    expected, arg = largest(x, graph)
    assert expected.isnan().any() and (expected == -torch.inf).any()
    x.requires_grad_()
    out = segment_max(x, graph, backend=family)
    assert torch.equal(out.nan_to_num(nan=1e9), expected.nan_to_num(nan=1e9))
    g = testing.random(7, columns, seed=1)
    assert torch.equal(torch.autograd.grad(out, x, g)[0], scattered(g, arg, 60))


@pytest.mark.parametrize("nodes", [0, 1, 31])
@pytest.mark.parametrize("edges", [0, 1, 33])
def test_sizes(random_graph, nodes, edges):
    """R19: no nodes, no edges, with the autograd graph kept."""
    if edges and not nodes:
        return
    graph = random_graph(1, nodes, edges)
    x = testing.random(edges, 6).requires_grad_()
    with testing.poisoned():
        out = segment_max(x, graph)
        (g,) = torch.autograd.grad(out.sin().sum(), x, create_graph=True)
        (h,) = torch.autograd.grad(g.sin().sum(), x)
    expected, arg = largest(x.detach(), graph)
    assert torch.equal(out, expected)
    testing.assert_close(g, scattered(expected.cos(), arg, edges))
    testing.assert_close(h, scattered(-expected.cos().cos() * expected.sin(), arg, edges))


def test_destinations_without_edges_are_zero_also_below_zero():
    graph = eqtp.Graph(torch.zeros(3, dtype=torch.int64), torch.tensor([4, 1, 4]), 1, 6)
    for family in FAMILIES:
        out = segment_max(-torch.ones(3, 2), graph, backend=family)
        assert torch.equal(out[:, 0], torch.tensor([0.0, -1, 0, 0, -1, 0]))


def test_slices_of_larger_tensors(random_graph):
    graph, x = random_graph(4, 7, 33), testing.random(33, 10)
    for view in (x[:, 3:8], x.t().contiguous().t(), x[:, ::2], x[:1].expand(33, 10), x[:1, :1].expand(33, 10)):
        assert torch.equal(segment_max(view, graph, backend="native"), largest(view, graph)[0])


def test_derivatives(random_graph):
    graph, x = random_graph(4, 7, 12), testing.random(12, 2, 3).requires_grad_()
    assert torch.autograd.gradcheck(lambda x: segment_max(x, graph), x, check_forward_ad=True)
    assert torch.autograd.gradgradcheck(lambda x: segment_max(x, graph).sin(), x)
    third = []
    for family in FAMILIES:
        t = x
        for _ in range(3):
            (t,) = torch.autograd.grad(
                segment_max(t, graph, backend=family).sin().sum() + t.pow(3).sum(), t, create_graph=True
            )
        third.append(t)
    testing.assert_close(*third)


def test_transforms(random_graph):
    graph, x, t = random_graph(4, 7, 12), testing.random(12, 3), testing.random(12, 3, seed=1)

    def f(x, family):
        return segment_max(x, graph, backend=family).pow(3).sum(dim=0)

    for transform in (
        torch.func.jacrev,
        torch.func.jacfwd,
        torch.func.hessian,
        lambda f: torch.func.jacrev(torch.func.jacrev(f)),
    ):
        ours, theirs = (transform(lambda x, family=family: f(x, family))(x) for family in FAMILIES)
        testing.assert_close(ours, theirs)
    _, tangent = torch.func.jvp(lambda x: segment_max(x, graph), (x,), (t,))
    assert torch.equal(tangent, torch.cat([t, t.new_zeros(1, 3)]).gather(0, largest(x, graph)[1]))
    batch = torch.stack([x, t], dim=1)
    assert torch.equal(torch.func.vmap(lambda x: segment_max(x, graph), in_dims=1)(batch)[1], segment_max(t, graph))
    grads = torch.func.vmap(torch.func.grad(lambda x: segment_max(x, graph).sin().sum()), 1)(batch)
    testing.assert_close(grads[0], torch.func.grad(lambda x: segment_max(x, graph).sin().sum())(x))


def test_compile(random_graph):
    graph, x = random_graph(4, 7, 12), testing.random(12, 3).requires_grad_()

    def f(x):
        return segment_max(x.sin(), graph).square().sum()

    with testing.poisoned():
        (g,) = torch.autograd.grad(torch.compile(f, fullgraph=True, backend="aot_eager")(x), x)
    testing.assert_close(g, torch.autograd.grad(f(x), x)[0])


def test_opcheck(random_graph):
    graph, x = random_graph(4, 7, 12), testing.random(12, 3).requires_grad_()
    arg = module.max_rows(x, graph.ptr, graph.order, "native")[1]
    torch.library.opcheck(torch.ops.eqtp.segment_max.default, (x, graph.ptr, graph.order, "native"))
    torch.library.opcheck(torch.ops.eqtp.segment_max_gather.default, (x, arg))
    torch.library.opcheck(torch.ops.eqtp.segment_max_scatter.default, (testing.random(7, 3).requires_grad_(), arg, 12))


def test_threads_and_kernel(monkeypatch, random_graph):
    graph, x = random_graph(4, 7, 300), testing.random(300, 40).float()
    expected = largest(x, graph)[0]
    made = calls.count_calls(monkeypatch, "segments")
    for threads in (1, 2, 3):
        torch.set_num_threads(threads)
        assert torch.equal(segment_max(x, graph), expected)
    assert made == [("segment_max", "fwd")] * 3

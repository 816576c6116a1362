"""segment_sum and segment_mean against index_add: values, derivatives of any order, empty segments, determinism."""

import calls
import pytest
import torch

import eqtp
from eqtp import testing

SHAPES = [(), (1,), (0,), (5,), (8,), (71,), (300,), (2, 3), (4, 0, 2), (2, 3, 4)]
DTYPES = [torch.float64, torch.float32]


def summed(x, graph):
    """The definition, in float64."""
    out = torch.zeros(graph.num_dst, *x.shape[1:], dtype=torch.float64)
    return out.index_add(0, graph.dst, x.detach().double())


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_sum_and_mean_of_any_trailing_shape(random_graph, shape, dtype):
    graph = random_graph(3, 9, 33)
    x = testing.random(33, *shape).to(dtype)
    with testing.poisoned():
        total, mean = eqtp.segment_sum(x, graph, backend="native"), eqtp.segment_mean(x, graph)
    assert total.dtype == mean.dtype == dtype
    testing.assert_close(total, summed(x, graph))
    count = torch.bincount(graph.dst, minlength=9).clamp(min=1).reshape(9, *[1] * len(shape))
    testing.assert_close(mean, summed(x, graph) / count)
    testing.assert_close(eqtp.segment_sum(x, graph, backend="reference"), summed(x, graph))


@pytest.mark.parametrize("nodes", [0, 1, 31, 33])
@pytest.mark.parametrize("edges", [0, 1, 31, 33])
def test_sizes(random_graph, nodes, edges):
    """R19: no nodes, no edges, with the autograd graph kept."""
    if edges and not nodes:
        return
    graph = random_graph(1, nodes, edges)
    x = testing.random(edges, 6).requires_grad_()
    for op in (eqtp.segment_sum, eqtp.segment_mean):
        with testing.poisoned():
            out = op(x, graph)
            (g,) = torch.autograd.grad(out.sum(), x)
        assert out.requires_grad and out.shape == (nodes, 6) and g.shape == x.shape
    testing.assert_close(eqtp.segment_sum(x, graph), summed(x, graph))


def test_destinations_without_edges_are_zero():
    graph = eqtp.Graph(torch.zeros(3, dtype=torch.int64), torch.tensor([4, 1, 4]), 1, 6)
    x = testing.random(3, 2)
    for op, divisor in ((eqtp.segment_sum, 1), (eqtp.segment_mean, 2)):
        with testing.poisoned():
            out = op(x, graph)
        assert (out[[0, 2, 3, 5]] == 0).all()
        testing.assert_close(out[4], (x[0] + x[2]) / divisor)
        testing.assert_close(out[1], x[1])


def test_int32(random_graph):
    x = testing.random(33, 5)
    assert torch.equal(
        eqtp.segment_sum(x, random_graph(4, 7, 33)),
        eqtp.segment_sum(x, random_graph(4, 7, 33, dtype=torch.int32)),
    )


@pytest.mark.parametrize(
    "layout",
    [
        lambda t: torch.cat([t, t], dim=1)[:, 5:10],
        lambda t: t.repeat_interleave(2, dim=0)[1::2],
        lambda t: t.t().contiguous().t(),
        lambda t: t.repeat_interleave(2, dim=1)[:, ::2],
        lambda t: t[:1].expand_as(t),
        lambda t: t[:1, :1].expand_as(t),
    ],
    ids=["column_slice", "every_other_row", "transposed", "every_other_column", "expanded_rows", "expanded_all"],
)
def test_slices_of_larger_tensors(random_graph, layout):
    graph, x = random_graph(4, 7, 33), layout(testing.random(33, 5)).requires_grad_()
    out = eqtp.segment_sum(x, graph)
    testing.assert_close(out, summed(x, graph))
    g = layout(testing.random(33, 5, seed=1))[:7]
    testing.assert_close(torch.autograd.grad(out, x, g)[0], g[graph.dst])


@pytest.mark.parametrize("op", [eqtp.segment_sum, eqtp.segment_mean], ids=["sum", "mean"])
def test_derivatives(random_graph, op):
    graph = random_graph(4, 7, 12)
    x = testing.random(12, 2, 3).requires_grad_()
    assert torch.autograd.gradcheck(lambda x: op(x, graph), x, check_forward_ad=True)
    assert torch.autograd.gradgradcheck(lambda x: op(x, graph).sin(), x)
    (g,) = torch.autograd.grad(op(x, graph).sin().sum(), x, create_graph=True)
    (gg,) = torch.autograd.grad(g.cos().sum(), x, create_graph=True)
    expected = op(x, graph, backend="reference")
    (h,) = torch.autograd.grad(expected.sin().sum(), x, create_graph=True)
    (hh,) = torch.autograd.grad(h.cos().sum(), x, create_graph=True)
    testing.assert_close(g, h)
    testing.assert_close(gg, hh)
    third = [torch.autograd.grad(t.exp().sum(), x)[0] for t in (gg, hh)]
    testing.assert_close(*third)


@pytest.mark.parametrize("op", [eqtp.segment_sum, eqtp.segment_mean], ids=["sum", "mean"])
def test_forward_mode_is_the_op_of_the_tangent(random_graph, op):
    graph = random_graph(4, 7, 12)
    x, t = testing.random(12, 3), testing.random(12, 3, seed=1)
    out, tangent = torch.func.jvp(lambda x: op(x, graph).square(), (x,), (t,))
    testing.assert_close(out, op(x, graph) ** 2)
    testing.assert_close(tangent, 2 * op(x, graph) * op(t, graph))
    assert tangent.abs().max() > 0.1


@pytest.mark.parametrize("dim", [0, 1, 2])
def test_vmap(random_graph, dim):
    graph, x = random_graph(4, 7, 12), testing.random(12, 3, 5)
    batch = x.movedim(2, dim)
    out = torch.func.vmap(lambda x: eqtp.segment_sum(x, graph), in_dims=dim)(batch)
    testing.assert_close(out, summed(x, graph).movedim(2, 0))
    grads = torch.func.vmap(torch.func.grad(lambda x: eqtp.segment_sum(x, graph).pow(2).sum()), dim)(batch)
    testing.assert_close(grads, 2 * summed(x, graph)[graph.dst].movedim(2, 0))


def in_order(rows):
    """Their sum, float32, as the docstring of segment_sum says: up to 32 one after another, more in blocks."""
    total, error = torch.zeros(2, rows.shape[1])
    for block in rows.split(32):
        part = torch.zeros(rows.shape[1])
        for row in block:
            part += row
        grown = total + part
        added = grown - total
        error += (total - (grown - added)) + (part - added)
        total = grown
    return total + error


@pytest.mark.parametrize("edges", [200, 1000])
@pytest.mark.parametrize("columns", [1, 7, 40, 70])
def test_sums_run_in_the_order_of_the_edges(random_graph, columns, edges):
    """The same bits as a plain loop, every time and for every number of threads."""
    graph, x = random_graph(4, 10, edges), testing.random(edges, columns).float()
    assert (graph.ptr.diff().min() > 32) == (edges == 1000)
    expected = torch.stack([in_order(x[graph.dst == n]) for n in range(10)])
    for threads in (1, 2, 3):
        torch.set_num_threads(threads)
        for _ in range(20):
            assert torch.equal(eqtp.segment_sum(x, graph, backend="native"), expected)


def test_the_kernel_runs(monkeypatch, random_graph):
    made = calls.count_calls(monkeypatch, "segments")
    eqtp.segment_sum(testing.random(33, 5), random_graph(4, 7, 33))
    assert made == [("segment_sum", "fwd")]

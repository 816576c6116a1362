"""Graph: the CSR by destination, its transpose, index types, ranges, CSR given, padding, ghost rows.
tests/test_graph_state.py: what is kept between calls."""

import calls
import numpy as np
import pytest
import torch

import eqtp
from eqtp import testing
from eqtp.backends.native import library
from eqtp.plans.plan import TensorProductPlan


def assert_is_csr(graph):
    assert graph.ptr.dtype == graph.order.dtype == graph.src.dtype == graph.dst.dtype == torch.int64
    assert graph.ptr.tolist()[0] == 0 and graph.ptr.tolist()[-1] == graph.num_edges
    for n in range(graph.num_dst):
        into = graph.order[graph.ptr[n] : graph.ptr[n + 1]].tolist()
        assert into == torch.nonzero(graph.dst == n).flatten().tolist()  # in the order they were given


def pretend(monkeypatch):
    """Graphs are made as on other devices, in plain torch."""
    monkeypatch.setattr(library, "why_not", lambda *a: "pretend")
    monkeypatch.setattr(calls, "python", calls.python_ops())


@pytest.mark.parametrize("dtype", [torch.int32, torch.int64], ids=str)
@pytest.mark.parametrize("sizes", [(4, 7, 33), (7, 4, 33), (1, 1, 5), (3, 50, 6), (5, 3, 0), (0, 0, 0), (0, 4, 0)])
def test_csr(random_graph, sizes, dtype):
    with testing.poisoned():
        graph = random_graph(*sizes, dtype=dtype)
    assert (graph.num_src, graph.num_dst, graph.num_edges) == sizes
    assert_is_csr(graph)


@pytest.mark.parametrize("sizes", [(4, 7, 33), (7, 4, 33), (5, 3, 0)])
def test_transpose(random_graph, sizes):
    graph = random_graph(*sizes)
    back = graph.transpose()
    assert (back.num_src, back.num_dst) == (graph.num_dst, graph.num_src)
    assert torch.equal(back.src, graph.dst) and torch.equal(back.dst, graph.src)
    assert_is_csr(back)
    assert graph.transpose().ptr is back.ptr  # sorted once
    there_and_back = back.transpose()
    assert torch.equal(there_and_back.ptr, graph.ptr) and torch.equal(there_and_back.order, graph.order)


def test_a_graph_keeps_its_own_indices():
    src, dst = torch.tensor([0, 1, 2]), torch.tensor([1, 1, 0])
    graph = eqtp.Graph(src, dst, 3, 2)
    src.zero_()
    dst.zero_()
    assert graph.src.tolist() == [0, 1, 2] and graph.dst.tolist() == [1, 1, 0]


def test_without_the_kernels(monkeypatch, random_graph):
    """The plain torch route for other devices gives the same CSR."""
    expected = random_graph(4, 7, 33)
    pretend(monkeypatch)
    ours = random_graph(4, 7, 33)
    assert torch.equal(ours.ptr, expected.ptr) and torch.equal(ours.order, expected.order)
    for bad in (7, -1):
        with pytest.raises(ValueError, match=rf"Graph: dst must be in \[0, 7\), got {bad}"):
            eqtp.Graph(torch.tensor([0, 1]), torch.tensor([0, bad]), 4, 7)


def test_repr(random_graph):
    assert repr(random_graph(4, 7, 33)) == "Graph(33 edges, 4 -> 7 nodes, cpu)"


def test_meta_tensors_give_shapes():
    graph = eqtp.Graph(*torch.zeros(2, 5, dtype=torch.int32, device="meta"), 3, 4)
    assert [t.shape[0] for t in (graph.src, graph.dst, graph.ptr, graph.order)] == [5, 5, 5, 5]
    assert graph.ptr.dtype == torch.int64 and graph.ptr.is_meta


def test_to_another_device(random_graph):
    graph = random_graph(6, 5, 40)
    assert graph.to("cpu") is graph
    there = graph.to("meta")
    assert there.ptr.device.type == there.src.device.type == "meta" and there.num_dst == 5
    assert there.transpose().order.is_meta and not graph.ptr.is_meta


def test_numbers_of_any_kind():
    """K: what NumPy counts with."""
    src, dst = torch.tensor([0, 1]), torch.tensor([1, 0])
    graph = eqtp.Graph(src, dst, np.int64(2), np.int32(3))
    assert (graph.num_src, graph.num_dst) == (2, 3) and type(graph.num_src) is int


def test_sorted_edges_keep_their_order():
    graph = eqtp.Graph(torch.tensor([3, 0, 1, 2]), torch.tensor([0, 0, 2, 2]), 4, 3)
    assert graph.order.tolist() == [0, 1, 2, 3] and graph.ptr.tolist() == [0, 2, 2, 4]


# ------------------------------------------------------------------------ edges given as CSR
@pytest.mark.parametrize("dtype", [torch.int32, torch.int64], ids=str)
def test_from_csr(random_graph, dtype):
    graph = random_graph(4, 7, 33)
    ours = eqtp.Graph.from_csr(graph.ptr.to(dtype), graph.src[graph.order].to(dtype), 4)
    assert torch.equal(ours.dst, graph.dst[graph.order]) and torch.equal(ours.src, graph.src[graph.order])
    assert_is_csr(ours)
    assert not ours.padded and torch.equal(ours.transpose().ptr, graph.transpose().ptr)
    square = eqtp.Graph.from_csr(torch.tensor([0, 1, 2]), torch.tensor([1, 0]))
    assert (square.num_src, square.num_dst, square.num_edges) == (2, 2, 2)


def test_from_csr_with_padding():
    ptr, src = torch.tensor([0, 2, 3]), torch.tensor([0, 1, 1, -7, 99])
    graph = eqtp.Graph.from_csr(ptr, src, padded=True)
    assert graph.valid.tolist() == [True, True, True, False, False]
    assert graph.src.tolist() == [0, 1, 1, 0, 0] and graph.dst.tolist() == [0, 0, 1, 2, 2]


@pytest.mark.parametrize(
    "ptr, src, message",
    [
        ([1, 2, 3], [0, 1, 0], "ptr must begin with 0"),
        ([0, 2, 1, 3], [0, 1, 0], "must not decrease"),
        ([0, 1, 2], [0, 1, 0], "end with 3"),
        ([0, 1, 4], [0, 1, 0], "end with 3"),
        ([], [0], r"ptr must be \[num_dst \+ 1\]"),
        ([0, 1, 3], [0, 2, 0], r"src must be in \[0, 2\), got 2 at edge 1"),
    ],
)
def test_from_csr_refuses(ptr, src, message):
    with pytest.raises(ValueError, match=message):
        eqtp.Graph.from_csr(torch.tensor(ptr, dtype=torch.int64), torch.tensor(src))


# ------------------------------------------------------------------------ checks
@pytest.mark.parametrize("check", [True, "async", False])
def test_a_cpu_always_checks(check):
    with pytest.raises(ValueError, match=r"Graph: dst must be in \[0, 2\), got 5 at edge 1"):
        eqtp.Graph(torch.tensor([0, 1]), torch.tensor([0, 5]), 2, 2, check=check)


def test_checks_of_other_devices(monkeypatch):
    """The plain torch route: True raises, "async" asserts (on a CPU at once), False trusts."""
    pretend(monkeypatch)
    ends = torch.tensor([0, 4]), torch.tensor([0, 1])
    with pytest.raises(ValueError, match=r"Graph: src must be in \[0, 2\), got 4 at edge 1"):
        eqtp.Graph(*ends, 2, 2)
    with pytest.raises(RuntimeError, match=r"Graph: src must be in \[0, 2\), dst in \[0, 2\)"):
        eqtp.Graph(*ends, 2, 2, check="async")
    assert eqtp.Graph(*ends, 2, 2, check=False).src.tolist() == [0, 4]
    with pytest.raises(ValueError, match="check must be True, False or 'async', got 'later'"):
        eqtp.Graph(*ends, 2, 2, check="later")


# ------------------------------------------------------------------------ padding, ghosts
PLAN = TensorProductPlan(
    "5x0e+3x1o", "0e+1o", "5x1o+3x0e+3x1e", [(0, 1, 0, "uvu", True), (1, 1, 1, "uvu", True), (1, 1, 2, "uvu", False)]
)
FAMILIES = ["native", "reference"]


def everything(op, graph, inputs):
    """Value, first and second order of op(*inputs, graph)."""
    inputs = [t.detach().requires_grad_() for t in inputs]
    out = op(*inputs, graph)
    first = torch.autograd.grad(out.sin().sum(), inputs, create_graph=True)
    return [out, *first, *torch.autograd.grad(sum(t.cos().sum() for t in first), inputs)]


OPS = {
    "conv": lambda family: lambda x, y, w, g: eqtp.tensor_product_conv(x, y, w, PLAN, g, family),
    "sum": lambda family: lambda x, y, w, g: eqtp.segment_sum(y * y, g, family) + 0 * (x.sum() + w[:1].sum()),
    "mean": lambda family: lambda x, y, w, g: eqtp.segment_mean(y * y, g, family) + 0 * (x.sum() + w[:1].sum()),
    "max": lambda family: lambda x, y, w, g: eqtp.segment_max(y * y, g, family) + 0 * (x.sum() + w[:1].sum()),
    "softmax": lambda family: lambda x, y, w, g: eqtp.segment_softmax(y * y, g, family) + 0 * (x.sum() + w[:1].sum()),
}


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("how", ["mask", "int", "tensor", "csr"])
@pytest.mark.parametrize("op", OPS)
def test_padding_changes_nothing(random_graph, op, how, family):
    """What counts is as without the other edges, whatever these hold; their own outputs and gradients are zero."""
    graph = random_graph(6, 5, 20)
    if how == "csr":
        graph = eqtp.Graph.from_csr(graph.ptr, graph.src[graph.order], 6)
    rows = 27
    keep = torch.zeros(rows, dtype=torch.bool)
    keep[torch.randperm(rows, generator=torch.Generator().manual_seed(1))[:20] if how == "mask" else slice(20)] = True

    def spread(t, fill):
        return t.new_full((rows, *t.shape[1:]), fill).masked_scatter_(keep.reshape(-1, *[1] * (t.ndim - 1)), t)

    src, dst = spread(graph.src, 10**6), spread(graph.dst, -3)
    padded = {
        "mask": lambda: eqtp.Graph(src, dst, 6, 5, mask=keep),
        "int": lambda: eqtp.Graph(src, dst, 6, 5, num_edges=20),
        "tensor": lambda: eqtp.Graph(src, dst, 6, 5, num_edges=torch.tensor([20])),
        "csr": lambda: eqtp.Graph.from_csr(graph.ptr, src, 6, padded=True),
    }[how]()
    assert padded.padded and padded.num_edges == rows and "padded" in repr(padded)
    x, y, w = (testing.random(n, d, seed=d) for n, d in ((6, PLAN.dim_in1), (20, 4), (20, PLAN.weight_numel)))
    f = OPS[op](family)
    with testing.poisoned():
        expected = everything(f, graph, (x, y, w))
        if op == "conv":  # nothing of an edge that does not count is used, not even a NaN
            y_there, w_there = spread(y, torch.nan), spread(w, torch.nan)
        else:
            y_there, w_there = spread(y, 7.0), spread(w, 7.0)
        actual = everything(f, padded, (x, y_there, w_there))
    for a, b in zip(actual, expected, strict=True):
        if a.shape[0] == rows:
            assert (a[~keep] == 0).all()
            a = a[keep]
        testing.assert_close(a, b)


def test_padding_costs_no_work(random_graph):
    """Kernels walk the CSR, in which edges that do not count are no part."""
    graph = random_graph(6, 5, 20)
    padded = eqtp.Graph(*(torch.cat([t, t]) for t in (graph.src, graph.dst)), 6, 5, num_edges=20)
    assert torch.equal(padded.ptr, graph.ptr) and torch.equal(padded.order[:20], graph.order)
    back = padded.transpose()
    assert torch.equal(back.ptr, graph.transpose().ptr) and back.dst[20:].tolist() == [6] * 20


@pytest.mark.parametrize("family", FAMILIES)
def test_nothing_but_padding(family):
    for num_src, num_dst in ((0, 0), (0, 3), (4, 0), (4, 3)):
        graph = eqtp.Graph(*torch.full((2, 6), 9), num_src, num_dst, num_edges=0)
        shapes = (num_src, PLAN.dim_in1), (6, 4), (6, PLAN.weight_numel)
        out, *gradients = everything(OPS["conv"](family), graph, [testing.random(*s) for s in shapes])
        assert out.shape == (num_dst, PLAN.dim_out) and not any(t.any() for t in (out, *gradients))


@pytest.mark.parametrize(
    "arguments, error, message",
    [
        ({"num_edges": 5}, ValueError, "num_edges must be at most 4, got 5"),
        ({"num_edges": -1}, ValueError, "num_edges must not be negative, got -1"),
        ({"num_edges": 2.0}, TypeError, "num_edges must be an int, got float"),
        ({"num_edges": torch.tensor([1, 2])}, TypeError, r"num_edges must be one integer, got torch.int64 \[2\]"),
        ({"num_edges": torch.tensor(1, device="meta")}, ValueError, "num_edges must be on cpu, got meta"),
        ({"mask": torch.ones(4)}, TypeError, "mask must be a bool tensor, got torch.float32"),
        ({"mask": torch.ones(3, dtype=torch.bool)}, ValueError, r"mask must be \[4\] on cpu, got \[3\] on cpu"),
        ({"mask": torch.ones(4, dtype=torch.bool), "num_edges": 3}, ValueError, "give num_edges or mask, not both"),
    ],
)
def test_padding_refuses(arguments, error, message):
    with pytest.raises(error, match=f"Graph: {message}"):
        eqtp.Graph(*torch.zeros(2, 4, dtype=torch.int64), 1, 1, **arguments)


@pytest.mark.parametrize("family", FAMILIES)
def test_ghost_rows(random_graph, family):
    """R28: the owned atoms come first; the others send and receive nothing."""
    square = random_graph(9, 5, 40)
    ghosts, whole = (eqtp.Graph(square.src, square.dst, 9, n) for n in (5, 9))
    inputs = [testing.random(n, d, seed=d) for n, d in ((9, PLAN.dim_in1), (40, 4), (40, PLAN.weight_numel))]
    actual, expected = (everything(OPS["conv"](family), g, inputs) for g in (ghosts, whole))
    for a, b in zip(actual, [expected[0][:5], *expected[1:]], strict=True):
        testing.assert_close(a, b)

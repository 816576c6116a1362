"""What graphs keep between calls (R40, R44): the same edges are found by identity, nothing is kept while a program is
traced, and a model's call does not wait for a device."""

import copy
import gc
import pickle
import threading
import weakref

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx.experimental.proxy_tensor import make_fx
from waits import Waits

import eqtp
from eqtp import testing
from eqtp.backends import registry
from eqtp.ops import graph as graphs
from eqtp.ops import remembered
from eqtp.plans.plan import TensorProductPlan

SCALAR = ("0e", "0e", "0e", [(0, 0, 0, "uvu", False)])


def edges(seed, count=9):
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(5, (2, count), generator=generator)


class Two(torch.nn.Module):
    """Two layers over the same edges, as in a model."""

    def __init__(self):
        super().__init__()
        self.a, self.b = (eqtp.nn.TensorProductConv(*SCALAR) for _ in range(2))

    def forward(self, x, y, edge_index):
        for layer in (self.a, self.b):
            x = layer(x, y, None, edge_index[0], edge_index[1])
        return x


def expected_two(x, y, edge_index):
    for _ in range(2):
        x = torch.zeros_like(x).index_add(0, edge_index[1], x[edge_index[0]] * y)
    return x


def inputs(seed, nodes=5, count=9):
    return testing.random(nodes, 1, seed=seed), testing.random(count, 1, seed=seed + 1), edges(seed, count)


def assert_right(f, *seeds):
    """Value and gradients, of edges that are new to f, and of the same again."""
    for seed in seeds:
        x, y, index = inputs(seed)
        x, y = x.requires_grad_(), y.requires_grad_()
        for _ in range(2):
            out, expected = f(x, y, index), expected_two(x, y, index)
            testing.assert_close(out, expected)
            for a, b in zip(*(torch.autograd.grad(t.sin().sum(), (x, y)) for t in (out, expected)), strict=True):
                testing.assert_close(a, b)


# ------------------------------------------------------------------------ what is found again
def test_graphs_are_shared_by_identity():
    index = edges(0)
    first = graphs.shared(index[0], index[1], 5, 5)
    assert graphs.shared(index[0], index[1], 5, 5) is first  # other views, in the same place
    assert graphs.shared(*index.unbind(), 5, 5) is first
    assert graphs.shared(index[1], index[0], 5, 5) is not first
    assert graphs.shared(index[0], index[1], 5, 6) is not first and graphs.shared(index[0], index[1], 6, 5) is not first
    assert graphs.shared(*index.clone(), 5, 5) is not first  # values are never compared
    assert graphs.shared(index[0, :8], index[1, :8], 5, 5) is not first
    src, dst = index[0].clone(), index[1].clone()
    assert graphs.shared(src, dst, 5, 5) is graphs.shared(src, dst, 5, 5)
    assert graphs.shared(src, dst.clone(), 5, 5) is not graphs.shared(src, dst.clone(), 5, 5)


def test_a_neighbour_list_that_changed_in_place_is_another_graph():
    index = edges(1)
    first = graphs.shared(index[0], index[1], 5, 5)
    before = first.dst.clone()
    index[1, 3] = (index[1, 3] + 1) % 5
    second = graphs.shared(index[0], index[1], 5, 5)
    assert second is not first and torch.equal(second.dst, index[1]) and torch.equal(first.dst, before)


def test_a_graph_lives_as_long_as_its_edges():
    index = edges(2)
    graph = weakref.ref(graphs.shared(index[0], index[1], 5, 5))
    gc.collect()
    assert graph() is not None
    kept = len(remembered._kept)
    del index
    gc.collect()
    assert graph() is None and len(remembered._kept) < kept


def test_many_threads():
    index, wrong = [edges(seed) for seed in range(6)], []

    def work(offset):
        for n in range(60):
            src, dst = index[(offset + n) % 6]
            graph = graphs.shared(src, dst, 5, 5)
            if not (torch.equal(graph.src, src) and torch.equal(graph.dst, dst)):
                wrong.append((offset, n))

    threads = [threading.Thread(target=work, args=(n,)) for n in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=60)
        assert not thread.is_alive()
    assert not wrong


def test_the_transpose_is_sorted_once_and_only_for_a_backward(monkeypatch, random_graph):
    sorts, csr = [], graphs._csr_op
    monkeypatch.setattr(graphs, "_csr_op", lambda index, nodes: sorts.append(len(nodes)) or csr(index, nodes))
    native = registry.kernel("native", "channelwise")
    monkeypatch.setattr(registry, "_kernels", dict(registry._kernels))
    object_with_transposes = type(native)(**(vars(native) | {"transposes": ("cpu",)}))
    monkeypatch.setitem(registry._kernels, ("native", "channelwise"), object_with_transposes)
    plan = TensorProductPlan(*SCALAR)
    graph = random_graph(6, 5, 20)
    assert sorts == [5]
    x, y = testing.random(6, 1).requires_grad_(), testing.random(20, 1, seed=1).requires_grad_()
    out = eqtp.tensor_product_conv(x, y, None, plan, graph)
    assert sorts == [5]
    first = torch.autograd.grad(out.sin().sum(), (x, y), create_graph=True)
    assert sorts == [5, 6]
    torch.autograd.grad(sum(t.sin().sum() for t in first), (x, y))
    eqtp.tensor_product_conv(x, y, None, plan, graph).sum().backward()
    assert sorts == [5, 6]


def test_copies_of_a_graph(random_graph):
    for graph in (random_graph(6, 5, 20), eqtp.Graph(*edges(3), 5, 5, sort=False, num_edges=4)):
        graph.transpose()
        for other in (copy.deepcopy(graph), pickle.loads(pickle.dumps(graph))):
            assert all(torch.equal(getattr(other, n), getattr(graph, n)) for n in ("src", "dst", "ptr", "order"))
            assert (other.num_src, other.num_dst, other.padded) == (graph.num_src, graph.num_dst, graph.padded)


# ------------------------------------------------------------------------ nothing kept while a program is traced
def test_a_trace_does_not_keep_the_edges():
    """An eager call, a trace with the same edges, then the trace with others."""
    module = eqtp.nn.TensorProductConv(*SCALAR)
    x, y = torch.tensor([[1.0], [10.0]]), torch.ones(1, 1)
    forward, back = torch.tensor([[0], [1]]), torch.tensor([[1], [0]])
    eager = module(x, y, None, *forward)
    assert eager.tolist() == [[0], [1]]
    with_edges = torch.jit.trace(lambda x, y, index: module(x, y, None, index[0], index[1]), (x, y, forward))
    assert with_edges(x, y, forward).tolist() == [[0], [1]]
    assert with_edges(x, y, back).tolist() == [[10], [0]]
    assert module(x, y, None, *back).tolist() == [[10], [0]]


def test_a_trace_takes_other_sizes():
    traced = torch.jit.trace(Two(), inputs(0))
    for nodes, count in ((5, 9), (3, 4), (8, 30)):
        x, y, _ = inputs(1, nodes, count)
        index = torch.randint(nodes, (2, count), generator=torch.Generator().manual_seed(count))
        testing.assert_close(traced(x, y, index), expected_two(x, y, index))


@pytest.mark.parametrize("mode", ["real", "fake", "symbolic"])
def test_make_fx_between_eager_calls(mode):
    model = Two()
    assert_right(model, 0)
    traced = make_fx(model, tracing_mode=mode)(*inputs(0))
    for seed in (0, 1):
        testing.assert_close(traced(*inputs(seed)), expected_two(*inputs(seed)))
    assert_right(model, 0, 2)


def test_fake_tensors_between_eager_calls():
    model = Two()
    example = inputs(0)
    with FakeTensorMode(allow_non_fake_inputs=True) as mode:
        assert model(*map(mode.from_tensor, example)).shape == (5, 1)
        assert model(*example).shape == (5, 1)
    for t in (model(*example), *vars(graphs.shared(*example[2], 5, 5)).values()):
        assert not isinstance(t, torch.Tensor) or type(t) is torch.Tensor
    assert_right(model, 0, 1)


def test_an_unsorted_graph_keeps_nothing_of_an_export():
    """sort=False: ptr and order are found when they are needed, which may be while a program is exported."""
    src, dst = edges(4)
    graph, plan = eqtp.Graph(src, dst, 5, 5, sort=False), TensorProductPlan(*SCALAR)

    class Layer(torch.nn.Module):
        def forward(self, x, y):
            return eqtp.tensor_product_conv(x, y, None, plan, graph)

    x, y, _ = inputs(5)
    torch.export.export(Layer(), (x, y))
    with FakeTensorMode(allow_non_fake_inputs=True):
        eqtp.tensor_product_conv(x, y, None, plan, graph)
    expected = torch.zeros_like(x).index_add(0, dst, x[src] * y)
    testing.assert_close(eqtp.tensor_product_conv(x, y, None, plan, graph), expected)
    assert type(graph.ptr) is torch.Tensor


def test_inference_mode_then_training():
    model, example = Two(), inputs(6)
    with torch.inference_mode():
        first = model(*example)
        graph = eqtp.Graph(*example[2], 5, 5)  # made there, used here
        index = edges(7)  # an inference tensor
    testing.assert_close(first, expected_two(*example))
    assert_right(model, 6)
    x = example[0].requires_grad_()
    plan = TensorProductPlan(*SCALAR)
    for g in (graph, eqtp.Graph(*index, 5, 5)):
        out = eqtp.tensor_product_conv(x, example[1], None, plan, g)
        (gradient,) = torch.autograd.grad(out.sin().sum(), x)
        expected = torch.zeros_like(x).index_add(0, g.dst, x[g.src] * example[1])
        testing.assert_close(gradient, torch.autograd.grad(expected.sin().sum(), x)[0])


@pytest.mark.parametrize("transform", ["grad", "vmap", "jvp", "functionalize"])
def test_transforms_between_eager_calls(transform):
    model, (x, y, index) = Two(), inputs(8)

    def energy(x):
        return model(x, y, index).sin().sum()

    def call():
        return {
            "grad": lambda: torch.func.grad(energy)(x),
            "vmap": lambda: torch.func.vmap(energy)(torch.stack([x, 2 * x])),
            "jvp": lambda: torch.func.jvp(energy, (x,), (x,))[1],
            "functionalize": lambda: torch.func.functionalize(energy)(x),
        }[transform]()

    first = call()
    assert_right(model, 8, 9)
    assert torch.equal(call(), first)


# ------------------------------------------------------------------------ waits
def test_a_call_does_not_wait():
    """From the edges to the gradients, without a graph of an earlier call."""
    model, (x, y, index) = Two(), inputs(10)
    x = x.requires_grad_()
    with Waits() as waits:
        out = model(x, y, index)
        graph = eqtp.Graph(index[0], index[1], 5, 5, num_edges=torch.tensor(6), check="async")
        out = out + eqtp.segment_sum(y, graph) + eqtp.segment_mean(y, graph) + eqtp.segment_max(y, graph)
        out = out + eqtp.segment_sum(eqtp.segment_softmax(y, graph), graph)
        out = out + eqtp.segment_sum(y, eqtp.Graph.from_csr(graph.ptr, graph.src, padded=True, check="async"))
        (first,) = torch.autograd.grad(out.sin().sum(), x, create_graph=True)
        torch.autograd.grad(first.sin().sum(), x)
    assert waits.found == []


def test_the_plain_torch_route_does_not_wait(monkeypatch):
    """What other devices run: with check="async" nothing waits, with True one question is asked."""
    monkeypatch.setattr(graphs.library, "why_not", lambda *a: "pretend")
    found = {}
    for check in (True, "async", False):
        with Waits() as waits:  # inside the op, where modes do not look
            columns = graphs._edges(*edges(11), None, 5, 5, graphs._check_name(check))
            graphs._csr(columns[1], 5)
        found[check] = len(waits.found)
    assert found[True] in (1, 2) and found["async"] <= 1 and found[False] == 0


@pytest.mark.gpu
def test_a_call_on_a_gpu_does_not_wait():
    if not torch.cuda.is_available():
        pytest.skip("no GPU")
    model, (x, y, index) = Two().cuda(), (t.cuda() for t in inputs(12))
    x, y = x.float().requires_grad_(), y.float()
    model(x, y, index).sum().backward()  # kernels are compiled, tables are copied
    index = index.clone()
    torch.cuda.set_sync_debug_mode("error")
    try:
        model(x, y, index).sin().sum().backward()
    finally:
        torch.cuda.set_sync_debug_mode("default")

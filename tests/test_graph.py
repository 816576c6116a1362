"""Graph: the CSR by destination, its transpose, index types, ranges, and graphs shared by the layers of a model."""

import threading

import pytest
import torch

import eqtp
from eqtp import testing
from eqtp.backends.native import library
from eqtp.ops import graph as graphs


def assert_is_csr(graph):
    assert graph.ptr.dtype == graph.order.dtype == graph.src.dtype == graph.dst.dtype == torch.int64
    assert graph.ptr.tolist()[0] == 0 and graph.ptr.tolist()[-1] == graph.num_edges
    for n in range(graph.num_dst):
        into = graph.order[graph.ptr[n] : graph.ptr[n + 1]].tolist()
        assert into == torch.nonzero(graph.dst == n).flatten().tolist()  # in the order they were given


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
    assert graph.transpose() is back and back.transpose() is graph


def test_a_graph_keeps_its_own_indices():
    src, dst = torch.tensor([0, 1, 2]), torch.tensor([1, 1, 0])
    graph = eqtp.Graph(src, dst, 3, 2)
    src.zero_()
    dst.zero_()
    assert graph.src.tolist() == [0, 1, 2] and graph.dst.tolist() == [1, 1, 0]


def test_without_the_kernels(monkeypatch, random_graph):
    """The plain torch route for other devices gives the same CSR."""
    expected = random_graph(4, 7, 33)
    monkeypatch.setattr(library, "why_not", lambda *a: "pretend")
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


def edges(seed, count=9):
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(5, (2, count), generator=generator)


def test_shared_graphs_are_found_by_value():
    src, dst = edges(0)
    first = graphs.shared(src, dst, 5, 5)
    assert graphs.shared(src.clone(), dst.clone(), 5, 5) is first
    assert graphs.shared(src.int(), dst.int(), 5, 5) is first
    assert graphs.shared(src, dst, 5, 6) is not first and graphs.shared(src, dst, 6, 5) is not first
    assert graphs.shared(dst, src, 5, 5) is not first


def test_a_neighbour_list_that_changed_in_place_is_another_graph():
    src, dst = edges(1)
    first = graphs.shared(src, dst, 5, 5)
    before = first.dst.clone()
    dst[3] = (dst[3] + 1) % 5
    second = graphs.shared(src, dst, 5, 5)
    assert second is not first and torch.equal(second.dst, dst) and torch.equal(first.dst, before)
    assert_is_csr(second)


def test_only_a_few_graphs_are_cached():
    first = graphs.shared(*edges(0), 5, 5)
    for seed in range(10, 13):
        graphs.shared(*edges(seed), 5, 5)
    assert graphs.shared(*edges(0), 5, 5) is first  # moves to the front
    for seed in range(20, 24):
        graphs.shared(*edges(seed), 5, 5)
    assert graphs.shared(*edges(0), 5, 5) is not first
    assert len(graphs._recent) <= 4


def test_shared_graphs_in_many_threads():
    wrong = []

    def work(seed):
        for n in range(60):
            src, dst = edges(seed + n % 6)
            graph = graphs.shared(src, dst, 5, 5)
            if not (torch.equal(graph.src, src) and torch.equal(graph.dst, dst)):
                wrong.append((seed, n))

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=60)
        assert not thread.is_alive()
    assert not wrong


def test_to_another_device(random_graph):
    graph = random_graph(6, 5, 40)
    assert graph.to("cpu") is graph
    alone = graph.to("meta")
    assert alone.ptr.device.type == alone.src.device.type == "meta" and alone.num_dst == 5 and alone._transpose is None
    transpose = graph.transpose()
    pair = graph.to("meta")
    assert pair.transpose().order.is_meta and pair.transpose().transpose() is pair and pair.transpose().num_dst == 6
    assert graph.transpose() is transpose and not graph.ptr.is_meta

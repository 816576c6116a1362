"""The CUDA kernels of the segment ops, run on the CPU (tests/emulation.py), against the reference in float64."""

import emulation
import pytest
import torch

import eqtp
from eqtp import testing
from eqtp.ops import segment_max as max_op
from eqtp.ops import segment_softmax as softmax_op
from eqtp.ops import segment_sum as sum_op

TYPES = {"float": torch.float32, "double": torch.float64, "eqtp::f16": torch.float16, "eqtp::bf16": torch.bfloat16}
# half precision: one rounding of the result
TOLERANCE = testing.TOLERANCE | {
    torch.float16: 1e-3,
    torch.bfloat16: 8e-3,
}
CASES = [(t, vec) for t, dtype in TYPES.items() for vec in (1, 16 // dtype.itemsize)]
KERNELS = {  # kernel -> types of its parameters
    "sum": "const T*; Index; const Index*; const Index*; Index; Index; int; int; Index; T*",
    "max": "const T*; Index; const Index*; const Index*; Index; Index; Index; int; int; Index; T*; Index*",
    "softmax": "const T*; Index; const Index*; const Index*; Index; Index; int; int; Index; T*",
    "softmax_bwd": "const T*; Index; const T*; Index; const Index*; const Index*; Index; Index; int; int; Index; T*",
}
TEAMS = [(1, 1), (1, 32), (2, 4), (4, 8), (8, 1), (32, 1)]  # lanes, parts
BLOCKS = 3  # fewer than there is work for


@pytest.fixture(scope="module")
def kernels():
    entries = {}
    for name, text in KERNELS.items():
        for t, vec in CASES:
            types = text.replace("T*", f"{t}*").replace("Index", "eqtp::Index").split("; ")
            entries[f"eqtp::segment_{name}_kernel<{t}, {vec}>"] = types
    built = emulation.build('#include "segments/max.cuh"\n#include "segments/softmax.cuh"\n', entries)
    return lambda name, case, *arguments: built[f"eqtp::segment_{name}_kernel<{case[0]}, {case[1]}>"](
        BLOCKS, 256, 0, *arguments
    )


def the_graph(degrees, seed=0):
    """Edges in random order; destination n has degrees[n] of them."""
    dst = torch.repeat_interleave(torch.arange(len(degrees)), torch.tensor(degrees))
    dst = dst[torch.randperm(len(dst), generator=torch.Generator().manual_seed(seed))]
    return eqtp.Graph(torch.zeros_like(dst), dst, 1, len(degrees))


# some without edges, one longer than what a team holds
GRAPH = the_graph([0, 3, 1, 0, 40, 7, 300, 2, 1, 1, 9, 0, 5, 64, 2, 0])


def columns(case):
    """Rows of less than one tile, and of more than one whose last is not full."""
    return (3, 37) if case[1] == 1 else (case[1], 5 * case[1])


def rows(dtype, columns, seed=0):
    """[e, columns] whose rows are columns + 16 apart: a slice of a larger tensor; and the larger tensor."""
    whole = (testing.random(GRAPH.num_edges, columns + 16, seed=seed) * 3).to(dtype)
    return whole[:, :columns], whole


def poisoned(*shape, dtype):
    return torch.full(shape, -77 if dtype == torch.int64 else float("nan"), dtype=dtype)


@pytest.mark.parametrize("case", CASES, ids=str)
@pytest.mark.parametrize("team", TEAMS, ids=str)
def test_sum(kernels, case, team):
    dtype = TYPES[case[0]]
    for c in columns(case):
        x, whole = rows(dtype, c)
        results = []
        for limit in (1 << 40, 20, 20):  # long segments: by a team, by a block
            out = poisoned(GRAPH.num_dst, c, dtype=dtype)
            kernels("sum", case, whole, c + 16, GRAPH.ptr, GRAPH.order, GRAPH.num_dst, c, *team, limit, out)
            testing.assert_close(out, sum_op.reference(x.double(), GRAPH), tolerance=TOLERANCE[dtype])
            results.append(out)
        assert torch.equal(*results[1:])


# 40,000 and 3 edges
LONG = eqtp.Graph(torch.zeros(40_003, dtype=torch.int64), (torch.arange(40_003) < 3).long(), 1, 2)


@pytest.mark.parametrize("case", [("float", 1), ("float", 4)], ids=str)
@pytest.mark.parametrize("team", [(1, 1), (2, 4)], ids=str)
def test_long_sums(kernels, case, team):
    """Many positive numbers, to 1e-6 of each sum: added one after another by a team they are wrong by more."""
    c = 2 * case[1]
    x, g = (1 + testing.random(LONG.num_edges, c, seed=n).abs().float() % 1 for n in (0, 1))

    def run(name, limit, out, *inputs):
        kernels(name, case, *(v for t in inputs for v in (t, c)), LONG.ptr, LONG.order, 2, c, *team, limit, out)
        return out.double()

    def largest_error(actual, expected):
        return ((actual - expected).abs() / expected.abs()).max()

    total = sum_op.reference(x.double(), LONG)
    gx = x.double() * (g.double() - sum_op.reference(x.double() * g.double(), LONG)[LONG.dst])  # large
    for limit in (1 << 40, 20):  # by a team, by a block
        assert largest_error(run("sum", limit, poisoned(2, c, dtype=x.dtype), x), total) < 1e-6
        y = run("softmax", limit, poisoned(*x.shape, dtype=x.dtype), x)
        assert largest_error(y, softmax_op.reference(x.double(), LONG)) < 1e-6
        assert largest_error(run("softmax_bwd", limit, poisoned(*x.shape, dtype=x.dtype), g, x)[3:], gx[3:]) < 1e-6


@pytest.mark.parametrize("case", CASES, ids=str)
@pytest.mark.parametrize("team", TEAMS, ids=str)
def test_max(kernels, case, team):
    dtype = TYPES[case[0]]
    for c in columns(case):
        x, whole = rows(dtype, c)
        whole.round_()  # many are equal
        whole[GRAPH.order[GRAPH.ptr[4] + 5 :][:9]] = float("nan")
        whole[GRAPH.order[GRAPH.ptr[8]]] = -float("inf")
        leaf = x.double().requires_grad_()
        expected = max_op.reference(leaf, GRAPH)
        (g,) = torch.autograd.grad(expected.sum(), leaf)  # 1 where the result comes from
        for limit in (1 << 40, 20):
            out, arg = poisoned(GRAPH.num_dst, c, dtype=dtype), poisoned(GRAPH.num_dst, c, dtype=torch.int64)
            kernels(
                "max",
                case,
                whole,
                c + 16,
                GRAPH.ptr,
                GRAPH.order,
                GRAPH.num_edges,
                GRAPH.num_dst,
                c,
                *team,
                limit,
                out,
                arg,
            )
            assert torch.equal(out.double().nan_to_num(nan=1e9), expected.nan_to_num(nan=1e9))
            assert torch.equal(torch.zeros(GRAPH.num_edges + 1, c, dtype=g.dtype).scatter(0, arg, 1.0)[:-1], g)
            assert (arg[GRAPH.ptr.diff() == 0] == GRAPH.num_edges).all()


@pytest.mark.parametrize("case", CASES, ids=str)
@pytest.mark.parametrize("team", TEAMS, ids=str)
def test_softmax(kernels, case, team):
    dtype = TYPES[case[0]]
    for c in columns(case):
        x, whole = rows(dtype, c)
        whole[::7] = -float("inf")
        whole[GRAPH.order[GRAPH.ptr[4] : GRAPH.ptr[5]]] = -float("inf")  # all are masked
        whole[:, 0] *= 3000
        for limit in (1 << 40, 20):
            out = poisoned(*x.shape, dtype=dtype)
            kernels("softmax", case, whole, c + 16, GRAPH.ptr, GRAPH.order, GRAPH.num_dst, c, *team, limit, out)
            testing.assert_close(out, softmax_op.reference(x.double(), GRAPH), tolerance=TOLERANCE[dtype])
        whole[GRAPH.order[GRAPH.ptr[1]], 0] = float("nan")
        kernels("softmax", case, whole, c + 16, GRAPH.ptr, GRAPH.order, GRAPH.num_dst, c, *team, 20, out)
        assert torch.equal(out.isnan(), softmax_op.reference(x.double(), GRAPH).isnan()) and out.isnan().sum() == 3


@pytest.mark.parametrize("case", CASES, ids=str)
@pytest.mark.parametrize("team", TEAMS, ids=str)
def test_softmax_backward(kernels, case, team):
    dtype = TYPES[case[0]]
    for c in columns(case):
        (g, whole_g), (y, whole_y) = rows(dtype, c), rows(dtype, c, seed=1)
        expected = y.double() * (g.double() - sum_op.reference(y.double() * g.double(), GRAPH)[GRAPH.dst])
        for limit in (1 << 40, 20):
            gx = poisoned(GRAPH.num_edges, c, dtype=dtype)
            kernels(
                "softmax_bwd",
                case,
                whole_g,
                c + 16,
                whole_y,
                c + 16,
                GRAPH.ptr,
                GRAPH.order,
                GRAPH.num_dst,
                c,
                *team,
                limit,
                gx,
            )
            testing.assert_close(gx, expected, tolerance=TOLERANCE[dtype])


@pytest.mark.parametrize("order", ["reverse", "random"])
def test_results_do_not_depend_on_the_order_of_threads(kernels, monkeypatch, order):
    case, results = ("float", 4), []
    _, whole = rows(torch.float32, 8)
    for o in ("forward", order):
        monkeypatch.setenv("EQTP_CPU_ORDER", o)
        out, p = poisoned(GRAPH.num_dst, 8, dtype=torch.float32), poisoned(GRAPH.num_edges, 8, dtype=torch.float32)
        kernels("sum", case, whole, 24, GRAPH.ptr, GRAPH.order, GRAPH.num_dst, 8, 2, 4, 20, out)
        kernels("softmax", case, whole, 24, GRAPH.ptr, GRAPH.order, GRAPH.num_dst, 8, 2, 4, 20, p)
        results.append(torch.cat([out, p]))
    assert torch.equal(*results)


def test_shapes_of_teams():
    """Within a warp, no lane idle that a narrower team would not need, all work covered by the blocks."""
    sizes = [
        (e, n, v, b, p)
        for e in (1, 50, 10**4, 10**7)
        for n in (1, 40, 10**4, 10**6)
        for v in (1, 2, 3, 33)
        for b in (2, 16)
        for p in (1, 4, 32)
    ]
    calls = "".join(f"show({e}LL, {n}, {v}, {b}, {p});" for e, n, v, b, p in sizes)
    show = """#include <cstdio>
    #include "segments/sum.cuh"
    void show(long long e, long long n, long long v, int b, int p) {
      const eqtp::Teams t = eqtp::teams(e, n, v, b, p);
      std::printf("%d %d %lld %u\\n", t.lanes, t.parts, t.limit, t.blocks);
    }"""
    lines = emulation.run_program(f"{show}\nint main() {{ {calls} }}").splitlines()
    for (e, n, v, b, p), line in zip(sizes, lines, strict=True):
        lanes, parts, limit, blocks = map(int, line.split())
        assert (
            lanes in (1, 2, 4, 8, 16, 32)
            and parts in (1, 2, 4, 8, 16, 32)
            and lanes * parts <= 32
            and limit == 256 * parts
        )
        assert lanes < 2 * v and (lanes >= min(v, 32) or lanes * b >= 32)
        assert p > 1 or parts == 1 or 2 * parts * n <= e
        assert (blocks - 1) * 256 < n * -(-v // lanes) * lanes * parts <= blocks * 256

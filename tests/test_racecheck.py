"""The specialised kernels under the race checker and the memory checker, on the CPU (tests/emulation.py): `make
racecheck`.

Every CUDA thread is a thread to the race checker, ordered by barriers alone; blocks run on two threads of the
machine."""

import emulated
import emulation
import pytest
import torch
from sweeps import sweep

from eqtp import testing
from eqtp.backends.jit import couplings as jit_couplings
from eqtp.backends.jit import matrices as jit_matrices
from eqtp.backends.jit import nvrtc, samples
from eqtp.backends.jit import signals as jit_signals
from eqtp.backends.jit.channelwise_tables import KERNEL_PASSES, ROWS, chosen_tuning, thread_mapping, units
from eqtp.plans import couplings, matrices, signals
from eqtp.plans.plan import TensorProductPlan

WIDE = TensorProductPlan(
    "6x1o+130x0e", "0e+1o", "6x0e+6x1o+130x1o", [(0, 1, 0, "uvu", True), (0, 0, 1, "uvu", True), (1, 1, 2, "uvu", True)]
)
NARROW = TensorProductPlan("5x1o", "0e+1o", "5x0e+5x1o", [(0, 1, 0, "uvu", True), (0, 0, 1, "uvu", False)])
# Its gradients walk destinations
LONG = TensorProductPlan("8x0e", "0e+1o+2e+3o", "8x1o+8x2e+8x3o", [(0, n, n - 1, "uvu", True) for n in (1, 2, 3)])
FILE = "channelwise/channelwise.cuh"


def rows_of(wide, n, dim, seed):
    """Random rows [n, dim]; wide: as columns of a larger tensor whose rows begin where vectors may, else at any
    place."""
    t = testing.random(n, dim, seed=seed).float()
    if wide is None:
        return t
    larger = torch.zeros(n, dim + (16 - dim % 16 if wide else 3))
    view = larger[:, :dim] if wide else larger[:, 1 : dim + 1]
    return view.copy_(t)


def passes(family, plan, graph, wide=None, only=""):
    """All kernels: forward, backward, both along a direction; or one of the first two. A bipartite graph of 9 edges or
    as many rows. Outputs start as NaN."""
    num_src, num_dst, edges = (3, 2, 9) if graph else (9, 9, 9)
    shapes = {
        "x": (num_src, plan.dim_in1),
        "y": (edges, plan.dim_in2),
        "w": (edges, plan.weight_numel),
        "g": (num_dst, plan.dim_out),
    }
    x, y, w, g, cx, cy, cw = (rows_of(wide, *shapes[n], seed) for seed, n in enumerate("xywgxyw"))
    outputs, both = [], (((x, y, w), "g"), ((x, y, w, g), "xyw"))
    for inputs, wanted in {"fwd": both[:1], "bwd": both[1:]}.get(only, (*both, ((x, y, w, g, cx, cy, cw), "gxyw"))):
        results = [torch.full(shapes[n], torch.nan) if n in wanted else None for n in "gxyw"]
        family.convolve(plan.key, graph, inputs, results)
        outputs += [t for t in results if t is not None]
    return outputs


@pytest.fixture
def graph(random_graph):
    g = random_graph(3, 2, 9)
    t = g.transpose()
    return g.src, g.dst, g.ptr, g.order, t.ptr, t.order


def sanitized(kind, source=None):
    if emulation.why_not(kind):
        pytest.skip(emulation.why_not(kind))
    return emulated.family(kind, source)


def test_the_plan_covers_what_it_should():
    """A unit narrower than a warp, one with several channels per thread and with threads that have none, several blocks
    of threads per row; both ways of a backward pass."""
    for pass_ in KERNEL_PASSES:
        for tuning in (ROWS, chosen_tuning(WIDE.key, pass_, torch.float32, 227 << 10)):
            wide, narrow = (thread_mapping(WIDE, u, pass_, torch.float32, tuning) for u in units(WIDE))
            assert narrow.lanes < 32 and wide.channels == 2 and wide.chunks == 3
    ways = {chosen_tuning(p.key, "bwd", torch.float32, 227 << 10).by_destination for p in (WIDE, LONG)}
    assert ways == {True, False}


LAYOUTS = [("thread", "graph", None), ("thread", "rows", None)]
LAYOUTS += [("address", "graph", True), ("address", "graph", False), ("address", "rows", True)]


@sweep("kind, over, wide", LAYOUTS, [LAYOUTS[0], LAYOUTS[3]])
def test_the_kernels_are_clean(graph, monkeypatch, kind, over, wide):
    """No race, no access out of bounds or at a wrong alignment; the same bits as without a checker. Also with rows at
    any distance."""
    family = sanitized(kind)
    monkeypatch.setenv("EQTP_CPU_THREADS", "2")
    monkeypatch.setenv("EQTP_CPU_ORDER", "random")
    columns = graph if over == "graph" else ()
    for plan in (WIDE, LONG) if columns else (WIDE,):
        plain = passes(emulated.family(), plan, columns, wide)
        assert all(t.isfinite().all() for t in plain)
        assert all(torch.equal(a, b) for a, b in zip(passes(family, plan, columns, wide), plain, strict=True))


@pytest.mark.parametrize("kind", ["thread", pytest.param("address", marks=pytest.mark.long)])
def test_the_atomic_kernels_are_clean(graph, kind):
    family = sanitized(kind)
    unsorted = (*graph[:2], *[graph[3][:0]] * 4)  # atomic additions, in no order
    for a, b in zip(passes(family, WIDE, unsorted), passes(emulated.family(), WIDE, graph), strict=True):
        testing.assert_close(a, b.double())


# file -> barrier -> what each of its places in the file guards: the plan, whether there is a graph, and the pass
BARRIERS = {
    "channelwise/unit.cuh": {
        "__syncthreads();": [(NARROW, True, "fwd")] * 2,
        "__syncwarp();": [(NARROW, False, "fwd")] * 2,
    },
    "channelwise/ring.cuh": {"__syncwarp();": [(NARROW, True, "fwd")]},
    "channelwise/channelwise.cuh": {"__syncthreads();": [(LONG, True, "bwd")]},
}
PLACES = [
    (file, barrier, n, *case)
    for file, barriers in BARRIERS.items()
    for barrier, cases in barriers.items()
    for n, case in enumerate(cases)
]


@sweep("place", PLACES, [PLACES[0], PLACES[4], PLACES[5]], ids=lambda p: f"{p[0].split('/')[1]}-{p[1][2:-3]}-{p[2]}")
def test_a_missing_barrier_is_a_race(graph, place):
    """The real kernels without one of their barriers. (The last one of a row, in ring.cuh and channelwise.cuh, guards
    what the next row of the same block of threads does.)"""
    file, barrier, n, plan, with_graph, pass_ = place
    text = nvrtc.source(FILE)
    begin = text.rindex(f'"{file}"')  # behind what the file includes
    parts = text[begin:].split(barrier)
    family = sanitized("thread", text[:begin] + barrier.join(parts[: n + 1]) + barrier.join(parts[n + 1 :]))
    with pytest.raises(RuntimeError, match="data race"):
        passes(family, plan, graph if with_graph else (), only=pass_)


def test_an_overrun_is_found(graph):
    """One row too few in a tensor is one access out of bounds."""
    family = sanitized("address")
    x, y, w, out = (
        testing.random(n, d).float()
        for n, d in ((3, WIDE.dim_in1), (8, WIDE.dim_in2), (9, WIDE.weight_numel), (2, WIDE.dim_out))
    )
    with pytest.raises(RuntimeError, match="heap-buffer-overflow"):
        family.convolve(WIDE.key, graph, (x, y, w), (out, None, None, None))


# -------------------------------------------------------------- products of functions on the sphere
def products(family):
    """Two programs, of one row for each worker and of several, couplings, and matrices; more samples than a tile has;
    inputs shared and with gaps."""
    outputs = []
    for p in (signals.product("odd", 1, 1, 2, "fwd", (True,)), signals.product("product", 5, 5, 10, "fwd", (True,))):
        x1, x2 = (
            testing.random(5, 1, (p.lmax_in[0] + 1) ** 2).float(),
            testing.random(5, 9, (p.lmax_in[1] + 1) ** 2 + 2).float(),
        )
        results = [torch.full((5, 9, (l + 1) ** 2), torch.nan) for l in p.lmax_out]
        family.run("signals", p, [x1.expand(5, 9, -1), x2[..., 1:-1]], results)
        outputs += results
    c = couplings.gaunt("product", 1, 1, 2, "fwd", (True,))
    results = [torch.full((5, 60, 9), torch.nan)]
    family.run(
        "couplings",
        c,
        [testing.random(5, 1, 4).float().expand(5, 60, -1), testing.random(5, 60, 6).float()[..., 1:-1]],
        results,
    )
    p = matrices.product(6, 1, 2, True, "bwdbwd", (True,) * 3)
    x1, *others = (testing.random(5, 9, (l + 1) ** 2).float() for l in p.lmax_in)
    outputs += [torch.full((5, 9, (l + 1) ** 2), torch.nan) for l in p.lmax_out]
    family.run("matrices", p, [x1[:, :1].expand(5, 9, -1), *others], outputs[-len(p.lmax_out) :])
    return outputs + results


@pytest.mark.parametrize("kind", ["thread", "address"])
def test_products_are_clean(monkeypatch, kind):
    family = sanitized(kind)
    monkeypatch.setattr(samples, "MAX_THREADS", 64)  # 2 workers
    monkeypatch.setenv("EQTP_CPU_THREADS", "2")
    monkeypatch.setenv("EQTP_CPU_ORDER", "random")
    for memory in [module.specialise for module in (jit_signals, jit_couplings, jit_matrices)]:
        memory.cache_clear()
    several = jit_signals.specialise(signals.product("product", 5, 5, 10, "fwd", (True,)), torch.float32)
    assert several.threads == 2 * several.samples < 90  # 6 rows in 3 rounds; 45 samples in 2 tiles
    plain = products(emulated.family())
    checked = products(family)
    for memory in [module.specialise for module in (jit_signals, jit_couplings, jit_matrices)]:
        memory.cache_clear()
    assert all(t.isfinite().all() for t in plain)
    assert all(torch.equal(a, b) for a, b in zip(checked, plain, strict=True))


@sweep("missing", range(3), [0])
def test_a_missing_barrier_of_signals_is_a_race(missing):
    """The real kernel without one of the barriers between rows, sums and outputs."""
    source = nvrtc.source("signals/signals.cuh")
    parts = source.split("__syncthreads();")
    assert len(parts) == 7  # load_tiles, store_tiles, and two of the kernel
    at = {0: 1, 1: 2, 2: 4}[missing]  # inputs written, outputs written, sums written
    parts[at : at + 2] = [parts[at] + ";" + parts[at + 1]]
    family = sanitized("thread", "__syncthreads();".join(parts))
    p = signals.product("product", 1, 1, 2, "fwd", (True,))
    with pytest.raises(RuntimeError, match="data race"):
        family.run("signals", p, [testing.random(5, 8, 4).float() for _ in range(2)], [torch.empty(5, 8, 9)])


@sweep("missing", [1, 4, 5, 6], [1], ids=["inputs", "matrices", "sums", "parts"])
def test_a_missing_barrier_of_matrices_is_a_race(missing):
    """The real kernel without one of the barriers between its steps."""
    parts = nvrtc.source("matrices/matrices.cuh").split("__syncthreads();")
    assert len(parts) == 8  # 2 of load_tiles, 2 of store_tiles, and three of the kernel
    parts[missing : missing + 2] = [parts[missing] + ";" + parts[missing + 1]]
    family = sanitized("thread", "__syncthreads();".join(parts))
    p = matrices.product(6, 1, 2, False, "fwd", (True,))
    kernel = jit_matrices.specialise(p, torch.float32)
    assert kernel.threads > kernel.samples
    with pytest.raises(RuntimeError, match="data race"):
        family.run(
            "matrices", p, [testing.random(5, 8, (l + 1) ** 2).float() for l in p.lmax_in], [torch.empty(5, 8, 9)]
        )

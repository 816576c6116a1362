"""The specialised kernels of the convolution and of the product (csrc/channelwise/channelwise.cuh) against the float64
reference, per path and operand, to second order: compiled as C++ and run on CPU tensors; where there is a GPU, on it,
and the table-driven kernels too."""

import emulated  # noqa: F401 (registers the family)
import emulation
import pytest
import torch
from sweeps import sweep
from test_tensor_product_conv import EMPTY, LAYOUTS, all_orders, all_tensors

import eqtp
from eqtp import testing
from eqtp.backends.jit import channelwise as jit
from eqtp.backends.jit import channelwise_tables as tables
from eqtp.ops import tensor_product as rows_op
from eqtp.ops import tensor_product_conv as conv_op
from eqtp.plans.plan import TensorProductPlan
from eqtp.testing import problems

DTYPES = [torch.float64, torch.float32]
MAIN = ["mace-medium", "sevennet-0", "nequip-l"]
OTHERS = [
    problem.id for problem in problems.TENSOR_PRODUCTS.values() if problem.mode == "uvu" and problem.id not in MAIN
]
# neither the fourth block of x nor the last two slots have a path; a unit without weights
SMALL = TensorProductPlan(
    "17x0e+3x1o+2x2e+5x1o",
    "0e+1o+2e",
    "3x1o+17x1o+2x2e+3x0e+4x0e+3x2e",
    [
        (1, 0, 0, "uvu", True),
        (1, 2, 0, "uvu", False),  # a slot of two paths
        (0, 1, 1, "uvu", True),
        (2, 2, 2, "uvu", False),
        (1, 1, 3, "uvu", True),
    ],
)
ONE = [1, 2, 3, 5, 8, 17, 33, 89]  # multiplicities of units with one channel per thread: rows of odd length
TWO = [2, 8, 16, 48, 64, 128, 130]  # of units with one or two


def ladder(muls) -> TensorProductPlan:
    """A unit for each multiplicity, its x of l = 0 or 1."""
    x = [(mul, ("0e", "1o")[n % 2]) for n, mul in enumerate(muls)]
    out = [(mul, ("1o", "0e")[n % 2]) for n, mul in enumerate(muls)]
    paths = [(n, 1, n, "uvu", True) for n in range(len(muls))]
    return TensorProductPlan(
        *("+".join(f"{mul}x{ir}" for mul, ir in side) for side in (x, ((1, "0e"), (1, "1o")), out)), paths
    )


PLANS = {
    "small": SMALL,
    "one": ladder(ONE),
    "two": ladder(TWO),
    "unweighted": TensorProductPlan(
        "4x0e+3x1o", "0e+1o", "3x1o+4x1o", [(1, 0, 0, "uvu", False), (0, 1, 1, "uvu", False)]
    ),
    "degree 6": TensorProductPlan(
        "5x6e+2x3o", "3o+6e", "5x6e+2x5o+5x3o", [(0, 1, 0, "uvu", True), (1, 1, 1, "uvu", True), (0, 0, 2, "uvu", True)]
    ),
}


@pytest.fixture(
    params=[("emulated", "cpu"), *(pytest.param((f, "cuda"), marks=pytest.mark.gpu) for f in ("jit", "native"))],
    ids=lambda t: "-".join(t),
)
def target(request):
    """(family, device)."""
    if request.param[0] == "emulated" and emulation.why_not(None):
        pytest.skip(emulation.why_not(None))
    return request.param


def on(graph, device):
    return (
        graph
        if device == "cpu"
        else eqtp.Graph(graph.src.to(device), graph.dst.to(device), graph.num_src, graph.num_dst)
    )


def check(plan, target, **options):
    """`testing.check_tensor_product_conv` and `testing.check_tensor_product` with operands moved to the target's
    device."""
    family, device = target
    case, graph = testing.conv_case(plan)
    there = on(graph, device)

    def to(*operands):
        return [t.to(device) for t in operands] + [None] * (3 - len(operands))

    def conv(*operands):
        return eqtp.tensor_product_conv(*to(*operands), plan, there, family).cpu()

    testing.check_op(conv, lambda x, y, w=None: conv_op.reference(x, y, w, plan, graph), case, **options)

    def rows(*operands):
        return eqtp.tensor_product(*to(*operands), plan, family).cpu()

    testing.check_op(rows, lambda x, y, w=None: rows_op.reference(x, y, w, plan), testing.rows_case(plan), **options)


def ours(target, tensors, graph, plan=SMALL, create_graph=False):
    """Output, first and second order; tensors: x, y, w, g, cotangents on the target's device."""
    there = on(graph, target[1])

    def conv(x, y, w, plan, _):
        return eqtp.tensor_product_conv(x, y, w, plan, there, target[0])

    with testing.poisoned():
        return [t.cpu() for t in all_orders(conv, [t.detach() for t in tensors], graph, plan, create_graph)]


def assert_all_orders(target, graph, dtype=torch.float64, plan=SMALL):
    tensors = all_tensors(graph, dtype, plan)
    expected = all_orders(conv_op.reference, [t.double() for t in tensors], graph, plan)
    for create_graph in (False, True):
        actual = ours(target, [t.to(target[1]) for t in tensors], graph, plan, create_graph)
        for a, b in zip(actual, expected, strict=True):
            assert a.dtype == dtype
            testing.assert_close(a, b)


# ------------------------------------------------------------------------ plans
CASES = [(d, n) for n in (*MAIN, *PLANS) for d in DTYPES if d == torch.float32 or n not in ("unweighted", "degree 6")]
# In every run the plans made to find what is wrong with a unit; workloads, and high degrees, in the long sweep
EVERY_RUN = [(d, n) for d, n in CASES if n in ("small", "two", "unweighted") or (d == torch.float32 and n == "one")]


@sweep("dtype, name", CASES, EVERY_RUN)
def test_against_the_reference(target, name, dtype):
    """R1, R2, R5, R22: first and second order of the convolution and of the product, with poisoned memory."""
    check(PLANS[name] if name in PLANS else problems.plan(name), target, dtypes=(dtype,))


@sweep("name", OTHERS, [n for n in OTHERS if problems.TENSOR_PRODUCTS[n].cg_nonzeros <= 10])
def test_every_problem(target, name):
    """R2: the other named workloads, output and gradients in float32 (on a GPU all)."""
    options = {"dtypes": (torch.float32,), "second": False} if target[1] == "cpu" else {}
    check(problems.plan(name), target, **options)


@sweep("seed", [19, 21], [21])
def test_random_products(target, random_channelwise, seed):
    """Uneven multiplicities, weighted and unweighted paths, several or none into a slot."""
    check(TensorProductPlan(*random_channelwise(seed)), target, dtypes=(torch.float32,))


def mappings(plan, tuning):
    return [tables.thread_mapping(plan, u, "fwd", torch.float32, tuning) for u in tables.units(plan)]


def test_the_plans_cover_what_they_should(random_channelwise):
    """Widths of units, channels per thread, threads without channels, slots that paths share or leave alone, backward
    passes by source and by destination."""
    every = (*PLANS.values(), *map(problems.plan, MAIN))
    spread = [m for p in every for tuning in (tables.FORWARD[0], tables.ROWS) for m in mappings(p, tuning)]
    assert {m.lanes for m in spread} == {4, 8, 16, 32} and {m.channels for m in spread} == {1, 2, 4}
    assert {tables.chosen_tuning(p.key, "bwd", torch.float32, 227 << 10).by_destination for p in every} == {True, False}
    for channels, plan, muls in ((1, PLANS["one"], ONE), (2, PLANS["two"], TWO)):
        units = tables.units(plan)
        assert sorted(u.mul for u in units) == muls
        partial = [
            m.chunks
            for u, m in zip(units, mappings(plan, tables.ROWS), strict=True)
            if u.mul % (m.lanes * m.channels) and m.channels == channels
        ]
        assert max(partial) > 2
    drawn = [TensorProductPlan(*random_channelwise(seed)) for seed in (19, 21)]
    assert any(len({p.io for p in plan.paths}) < len(plan.paths) for plan in drawn)
    assert any(
        {io for io, (mul, _) in enumerate(plan.irreps_out) if mul} > {p.io for p in plan.paths} for plan in drawn
    )
    assert any(len({p.has_weight for p in plan.paths}) == 2 for plan in drawn)


# ------------------------------------------------------------------------ graphs, rows, layouts
@pytest.mark.parametrize("nodes, edges", [(0, 0), (1, 0), (1, 1), (1, 33), (31, 1), (31, 33), (33, 0), (33, 31)])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_sizes(target, random_graph, nodes, edges, dtype):
    """R19: any number of nodes and edges."""
    assert_all_orders(target, random_graph(nodes, nodes, edges), dtype)


@pytest.mark.parametrize("count", [0, 1, 31, 33])
def test_rows(target, count):
    """R19: any number of rows of the product."""
    family, device = target
    tensors = [
        testing.random(count, n, seed=n)
        for n in [*(SMALL.dim_in1, SMALL.dim_in2, SMALL.weight_numel)] * 2 + [SMALL.dim_out]
    ]
    expected = all_orders(
        lambda x, y, w, plan, _: rows_op.reference(x, y, w, plan),
        [*tensors[:3], tensors[6], *tensors[3:6]],
        None,
        SMALL,
    )
    there = [t.detach().to(device) for t in (*tensors[:3], tensors[6], *tensors[3:6])]
    with testing.poisoned():
        actual = all_orders(lambda x, y, w, plan, _: eqtp.tensor_product(x, y, w, plan, family), there, None, SMALL)
    for a, b in zip(actual, expected, strict=True):
        testing.assert_close(a.cpu(), b)


@pytest.mark.parametrize("sizes", [(3, 50, 20), (50, 3, 20), (1, 7, 40), (7, 1, 40), (0, 5, 0), (5, 0, 0)])
def test_bipartite(target, random_graph, sizes):
    """R28: as many sources and destinations as one likes."""
    assert_all_orders(target, random_graph(*sizes))


def test_idle_blocks_are_zero(target, random_graph):
    graph = random_graph(6, 5, 40)
    out, gx, *_ = ours(target, [t.to(target[1]) for t in all_tensors(graph, torch.float64, SMALL)], graph)
    for t, blocks, idle in ((out, SMALL.offsets[2], (4, 5)), (gx, SMALL.offsets[0], (3,))):
        assert all((t[:, s] == 0).all() == (n in idle) for n, s in enumerate(blocks))
    assert (out[graph.ptr.diff() == 0] == 0).all()


def test_edges_in_any_order(target, random_graph):
    """R21: sorting the edges changes nothing but rounding; the edges' gradients follow them."""
    graph = random_graph(6, 5, 40)
    tensors = [t.to(target[1]) for t in all_tensors(graph, torch.float64, SMALL)]
    expected = ours(target, tensors, graph)
    for order in (torch.argsort(graph.dst, stable=True), torch.arange(39, -1, -1)):
        moved = [t[order.to(target[1])] if n in (1, 2, 5, 6) else t for n, t in enumerate(tensors)]
        actual = ours(target, moved, eqtp.Graph(graph.src[order], graph.dst[order], 6, 5))
        for k, (a, b) in enumerate(zip(actual, expected, strict=True)):
            testing.assert_close(a, b[order] if k in (2, 3, 6, 7) else b)


def misaligned(t):
    """A tensor whose first element is not where a vector may begin."""
    moved = torch.empty(t.numel() + 1, dtype=t.dtype, device=t.device)[1:].view(t.shape)
    assert moved.storage_offset() == 1
    return moved.copy_(t)


def wide(t):
    """Columns of a tensor whose rows begin at multiples of 16 bytes, which is read where it lies."""
    rows = torch.full((t.shape[0], -(-t.shape[1] // 16) * 16 + 16), torch.nan, dtype=t.dtype, device=t.device)
    rows[:, : t.shape[1]] = t
    return rows[:, : t.shape[1]]


@pytest.mark.parametrize("layout", [*LAYOUTS.values(), misaligned, wide], ids=[*LAYOUTS, "misaligned", "wide"])
def test_slices_of_larger_tensors(target, random_graph, layout):
    """Operands and cotangents of any layout, one after the other and all at once; two channels of a thread are read in
    one access."""
    for name, dtype in (("small", torch.float64), ("two", torch.float32)):
        plan, graph = PLANS[name], random_graph(6, 5, 20)
        tensors = all_tensors(graph, dtype, plan)
        for which in [*([n] for n in range(7)), range(7)] if name == "small" else [range(7)]:
            changed = [layout(t.to(target[1])) if n in which else t.to(target[1]) for n, t in enumerate(tensors)]
            expected = all_orders(conv_op.reference, [t.detach().cpu().double() for t in changed], graph, plan)
            for a, b in zip(ours(target, changed, graph, plan), expected, strict=True):
                testing.assert_close(a, b)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_shared_weights(target, random_graph, dtype):
    """w [numel]: the same weights on every edge; its gradients are sums over the edges."""
    graph = random_graph(6, 5, 40)
    tensors = all_tensors(graph, dtype, SMALL)
    tensors[2], tensors[6] = tensors[2][0], tensors[6][0]
    expected = all_orders(conv_op.reference, [t.double() for t in tensors], graph, SMALL)
    for a, b in zip(ours(target, [t.to(target[1]) for t in tensors], graph), expected, strict=True):
        testing.assert_close(a, b)


@pytest.mark.parametrize("arguments", EMPTY, ids=lambda a: " x ".join(map(str, a[:2])))
@pytest.mark.parametrize("edges", [0, 4])
def test_empty_products(target, random_graph, arguments, edges):
    """R19: no paths, weights, channels or components."""
    plan, graph = TensorProductPlan(*arguments), random_graph(3, 2, edges)
    inputs = [t.to(target[1]).requires_grad_() for t in all_tensors(graph, torch.float64, plan)[:3]]
    with testing.poisoned():
        out = eqtp.tensor_product_conv(*inputs, plan, on(graph, target[1]), target[0])
        first = torch.autograd.grad(out.sum(), inputs, create_graph=True)
        second = torch.autograd.grad(sum(t.sum() for t in first), inputs, materialize_grads=True)
    testing.assert_close(out.cpu(), conv_op.reference(*(t.cpu() for t in inputs), plan, graph))
    for t, a, b in zip(inputs, first, second, strict=True):
        assert a.shape == b.shape == t.shape and a.isfinite().all() and b.isfinite().all()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_half_precision(target, dtype):
    """Halves in memory, float32 in registers: each result is rounded once, and is off by that and by the rounding of a
    sum in float32."""
    case, graph = testing.conv_case(SMALL)

    def half(d):
        return {n: t.to(dtype).double() for n, t in d.items()}

    case = case._replace(operands=half(case.operands), g=case.g.to(dtype).double(), cotangents=half(case.cotangents))
    there = on(graph, target[1])

    def conv(*operands):
        return eqtp.tensor_product_conv(*(t.to(target[1]) for t in operands), SMALL, there, target[0]).cpu()

    expected = testing.derivatives(lambda x, y, w: conv_op.reference(x, y, w, SMALL, graph), case, torch.float64)
    terms = 17 * 9 * 2  # edges or channels, coefficients, paths: more than any sum has
    tolerance = torch.finfo(dtype).eps / 2 + terms * 2**-24
    with testing.poisoned():
        actual = testing.derivatives(conv, case, dtype)
    for name, t in actual.items():
        assert t.dtype == dtype
        testing.assert_close(t, expected[name], name, tolerance)


# ------------------------------------------------------------------------ determinism
@pytest.mark.parametrize("name", ["small", "two"])
def test_repeats(target, random_graph, name):
    """The same bits every time."""
    graph = random_graph(6, 5, 40)
    tensors = [t.to(target[1]) for t in all_tensors(graph, torch.float32, PLANS[name])]
    runs = [ours(target, tensors, graph, PLANS[name]) for _ in range(2 if target[1] == "cpu" else 20)]
    assert all(torch.equal(a, b) for run in runs for a, b in zip(runs[0], run, strict=True))


@pytest.mark.parametrize("order, threads", [("reverse", 1), ("random", 1), ("random", 2), ("forward", 3)])
def test_any_order_of_threads(random_graph, monkeypatch, order, threads):
    """The same bits whichever thread and block runs first, which a missing barrier would change."""
    if emulation.why_not(None):
        pytest.skip(emulation.why_not(None))
    graph = random_graph(6, 5, 40)

    def run(name):
        return ours(("emulated", "cpu"), all_tensors(graph, torch.float32, PLANS[name]), graph, PLANS[name])

    for name in ("small", "two"):
        first = run(name)
        with monkeypatch.context() as environment:
            environment.setenv("EQTP_CPU_ORDER", order)
            environment.setenv("EQTP_CPU_THREADS", str(threads))
            assert all(torch.equal(a, b) for a, b in zip(run(name), first, strict=True))


# ------------------------------------------------------------------------ atomics
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_unsorted_graphs(target, random_graph, dtype):
    """sort=False: the specialised kernels add with atomics, the others sort; both to second order, in any order of
    blocks and threads."""
    graph = on(random_graph(6, 5, 40), target[1])
    unsorted = eqtp.Graph(graph.src, graph.dst, 6, 5, sort=False)
    tensors = [t.to(target[1]) for t in all_tensors(graph, dtype, SMALL)]

    def conv(x, y, w, plan, g):
        return eqtp.tensor_product_conv(x, y, w, plan, g, target[0])

    expected = all_orders(conv, [t.detach() for t in tensors], graph, SMALL)
    actual = all_orders(conv, [t.detach() for t in tensors], unsorted, SMALL)
    assert unsorted.is_sorted == (target[0] == "native")
    for a, b in zip(actual, expected, strict=True):
        testing.assert_close(a, b)
    torch.use_deterministic_algorithms(True)
    try:
        again = all_orders(conv, [t.detach() for t in tensors], unsorted, SMALL)
    finally:
        torch.use_deterministic_algorithms(False)
    assert unsorted.is_sorted and all(torch.equal(a, b) for a, b in zip(again, expected, strict=True))


def test_unsorted_half_precision_is_sorted(target, random_graph):
    """Atomic additions in half precision would round at each of them."""
    graph = on(random_graph(6, 5, 40), target[1])
    unsorted = eqtp.Graph(graph.src, graph.dst, 6, 5, sort=False)
    x, y, w, *_ = (t.to(target[1]) for t in all_tensors(graph, torch.bfloat16, SMALL))
    out = eqtp.tensor_product_conv(x, y, w, SMALL, unsorted, target[0])
    assert unsorted.is_sorted and torch.equal(out, eqtp.tensor_product_conv(x, y, w, SMALL, graph, target[0]))


# Slots of the rings, channels per thread, threads across the channels, and which way gradients walk
TUNINGS = [
    tables.Tuning(2, 4, 3, 4, by_destination=True),
    tables.Tuning(4, 2, 2, 16, by_destination=True),
    tables.Tuning(3, 4, 1, 8),
    tables.Tuning(4, 1, 4, 32),
]


@pytest.mark.parametrize("tuning", TUNINGS, ids=lambda t: "-".join(map(str, t)))
@sweep("name", ["small", "two"], ["small"])
def test_any_tuning(target, monkeypatch, name, tuning):
    """What is chosen for speed changes no result."""
    if target[0] == "native":
        pytest.skip("the kernels compiled ahead of time have no tuning")
    chosen = {"fwd": tuning._replace(by_destination=False)}
    monkeypatch.setattr(jit, "chosen_tuning", lambda key, pass_, *_: chosen.get(pass_[:3], tuning))
    check(PLANS[name], target, dtypes=(torch.float32,))

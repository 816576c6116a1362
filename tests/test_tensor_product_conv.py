"""tensor_product_conv: native kernels against the float64 reference and e3nn, per path and operand, to second
order."""

import os
import subprocess
import sys

import numpy as np
import pytest
import torch

import eqtp
from eqtp import testing
from eqtp.backends.native import library
from eqtp.ops.tensor_product_conv import reference
from eqtp.plans.plan import TensorProductPlan
from eqtp.testing import problems

DTYPES = [torch.float64, torch.float32]
SMALL = TensorProductPlan(
    "17x0e+3x1o+2x2e",
    "0e+1o+2e",
    "3x1o+17x1o+2x2e+3x0e",
    [(1, 0, 0, "uvu", True), (0, 1, 1, "uvu", True), (2, 2, 2, "uvu", False), (1, 1, 3, "uvu", True)],
)


@pytest.mark.parametrize("problem", problems.TENSOR_PRODUCTS.values(), ids=lambda problem: problem.id)
def test_every_problem(problem):
    """R1, R2, R35: output and gradients of x, y, w, first and second order, per path."""
    plan = problems.plan(problem.id)
    if problem.mode == "uvu":
        testing.check_tensor_product_conv(plan, "native")
        return
    testing.check_tensor_product_conv(plan, "auto")
    with pytest.raises(RuntimeError, match=r"backend 'native' cannot run this: path 0 .* has mode uvw"):
        testing.check_tensor_product_conv(plan, "native")


def operands(graph, dtype=torch.float64, seed=0, plan=SMALL):
    """x, y, w."""
    shapes = (
        (graph.num_src, plan.dim_in1),
        (graph.num_edges, plan.dim_in2),
        (graph.num_edges, plan.weight_numel),
    )
    return [testing.random(*shape, seed=seed + k).to(dtype) for k, shape in enumerate(shapes)]


def all_orders(conv, tensors, graph, plan=SMALL, create_graph=False):
    """out, gradients of x, y, w, and their gradients with respect to g, x, y, w; tensors: x, y, w, g,
    cotangents."""
    x, y, w, g, *cotangents = tensors
    inputs = [t.requires_grad_() for t in (g, x, y, w)]
    out = conv(x, y, w, plan, graph)
    unweighted = plan.weight_numel == 0
    first = torch.autograd.grad(out, inputs[1:], g, create_graph=True, materialize_grads=unweighted)
    second = torch.autograd.grad(first, inputs, cotangents, create_graph=create_graph, materialize_grads=True)
    return [t.detach() for t in (out, *first, *second)]


def all_tensors(graph, dtype=torch.float64, plan=SMALL):
    g = testing.random(graph.num_dst, plan.dim_out, seed=9).to(dtype)
    return [*operands(graph, dtype, 0, plan), g, *operands(graph, dtype, 20, plan)]


def assert_all_orders(graph, dtype=torch.float64, plan=SMALL, conv=eqtp.tensor_product_conv):
    expected = all_orders(reference, [t.double() for t in all_tensors(graph, dtype, plan)], graph, plan)
    for create_graph in (False, True):
        with testing.poisoned():
            ours = all_orders(conv, all_tensors(graph, dtype, plan), graph, plan, create_graph)
        for a, b in zip(ours, expected, strict=True):
            assert a.dtype == dtype
            testing.assert_close(a, b)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("nodes", [0, 1, 31, 33])
@pytest.mark.parametrize("edges", [0, 1, 31, 33])
def test_sizes(random_graph, nodes, edges, dtype):
    """R19: any number of nodes and edges."""
    if nodes or not edges:
        assert_all_orders(random_graph(nodes, nodes, edges), dtype)


@pytest.mark.parametrize("sizes", [(3, 50, 20), (50, 3, 20), (1, 7, 40), (7, 1, 40), (0, 5, 0), (5, 0, 0)])
def test_bipartite(random_graph, sizes):
    """R28: as many sources and destinations as one likes; destinations without edges get zeros."""
    graph = random_graph(*sizes)
    assert_all_orders(graph)
    out = eqtp.tensor_product_conv(*operands(graph), SMALL, graph)
    alone = graph.ptr.diff() == 0
    assert out.shape == (sizes[1], SMALL.dim_out) and (out[alone] == 0).all()
    if graph.num_edges and graph.num_dst < 50:
        assert (out[~alone] != 0).any(dim=1).all()


def test_edges_in_any_order_and_both_index_types(random_graph):
    """R21: int32 and int64; sorting the edges changes nothing but rounding; the edges' gradients follow
    them."""
    graph = random_graph(6, 5, 40)
    x, y, w, g, *cotangents = all_tensors(graph)
    expected = all_orders(eqtp.tensor_product_conv, [t.clone() for t in (x, y, w, g, *cotangents)], graph)
    same = random_graph(6, 5, 40, dtype=torch.int32)
    assert same.src.dtype == torch.int64
    ours = all_orders(eqtp.tensor_product_conv, [t.clone() for t in (x, y, w, g, *cotangents)], same)
    assert all(torch.equal(a, b) for a, b in zip(ours, expected, strict=True))
    for order in (torch.argsort(graph.dst, stable=True), torch.argsort(graph.src), torch.arange(39, -1, -1)):
        other = eqtp.Graph(graph.src[order], graph.dst[order], 6, 5)
        cx, cy, cw = cotangents
        moved = [x, y[order], w[order], g, cx, cy[order], cw[order]]
        ours = all_orders(eqtp.tensor_product_conv, [t.detach().clone() for t in moved], other)
        for k, (a, b) in enumerate(zip(ours, expected, strict=True)):
            testing.assert_close(a, b[order] if k in (2, 3, 6, 7) else b)  # gradients of y and w, twice


def column_slice(t):
    wide = torch.full((t.shape[0], t.shape[1] + 5), float("nan"), dtype=t.dtype, device=t.device)
    wide[:, 3 : 3 + t.shape[1]] = t
    return wide[:, 3 : 3 + t.shape[1]]


LAYOUTS = {
    "column_slice": column_slice,
    "every_other_row": lambda t: t.repeat_interleave(2, dim=0)[1::2],
    "transposed": lambda t: t.t().contiguous().t(),
    "every_other_column": lambda t: t.repeat_interleave(2, dim=1)[:, ::2],
    "expanded_rows": lambda t: t[:1].expand_as(t),
    "expanded_all": lambda t: t[:1, :1].expand_as(t),
}


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("which", range(7), ids=["x", "y", "w", "g", "cx", "cy", "cw"])
def test_slices_of_larger_tensors(random_graph, layout, which):
    """Operands and cotangents of any layout: row strides, offsets, inner strides, stride 0."""
    graph = random_graph(6, 5, 40)
    tensors = all_tensors(graph)
    tensors[which] = LAYOUTS[layout](tensors[which])
    ours = all_orders(eqtp.tensor_product_conv, [t.detach() for t in tensors], graph)  # detach keeps strides
    expected = all_orders(reference, [t.detach().clone() for t in tensors], graph)
    for a, b in zip(ours, expected, strict=True):
        testing.assert_close(a, b)


def test_slices_of_larger_indices():
    ends = torch.tensor([[0, 1, 2, 0, 1], [1, 1, 0, 0, 2]]).t().contiguous()  # [e, 2]: rows of stride 2
    graph, dense = eqtp.Graph(ends[:, 0], ends[:, 1], 3, 3), eqtp.Graph(*ends.t().contiguous(), 3, 3)
    inputs = operands(dense)
    assert torch.equal(eqtp.tensor_product_conv(*inputs, SMALL, graph), eqtp.tensor_product_conv(*inputs, SMALL, dense))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_shared_weights(random_graph, dtype):
    """w [numel]: equal to the same weights on every edge; its gradients are sums over the edges."""
    graph = random_graph(6, 5, 40)
    tensors = all_tensors(graph, dtype)
    tensors[2], tensors[6] = tensors[2][0], tensors[6][0]
    ours = all_orders(eqtp.tensor_product_conv, [t.clone() for t in tensors], graph)
    expected = all_orders(reference, [t.double() for t in tensors], graph)
    for a, b in zip(ours, expected, strict=True):
        testing.assert_close(a, b)


@pytest.mark.parametrize("muls", [(1, 1, 1), (2, 7, 17), (48, 17, 1), (128, 64, 32), (129, 31, 0)])
@pytest.mark.parametrize("weighted", [True, False])
def test_uneven_multiplicities(muls, weighted):
    """R5: multiplicities that fill vectors or not, or are zero."""
    a, b, c = muls
    instructions = [
        (0, 0, 0, "uvu", True),
        (1, 1, 1, "uvu", weighted),
        (1, 2, 2, "uvu", True),
        (2, 1, 3, "uvu", weighted),
    ]
    plan = TensorProductPlan(f"{a}x0e+{b}x1o+{c}x2e", "0e+1o+2e", f"{a}x0e+{b}x0e+{b}x3o+{c}x1o", instructions)
    testing.check_tensor_product_conv(plan, "native")


@pytest.mark.parametrize("seed", range(6))
def test_high_degrees(random_channelwise, seed):
    """Degrees to 6, beyond the specialised kernels; unweighted paths, shared slots."""
    testing.check_tensor_product_conv(TensorProductPlan(*random_channelwise(seed, 6, (1, 3, 16))), "native")


EMPTY = [
    ("4x0e", "0e", "", []),
    ("", "", "", []),
    ("2x1o", "1o", "3x0e+2x1e", []),
    ("0x1o+2x0e", "1o", "0x0e+2x1o", [(0, 0, 0, "uvu", True), (1, 0, 1, "uvu", True)]),
    ("0x1o", "1o", "0x0e", [(0, 0, 0, "uvu", True)]),
    ("2x1o", "1o", "2x0e", [(0, 0, 0, "uvu", False)]),
]


@pytest.mark.parametrize("arguments", EMPTY, ids=lambda a: " x ".join(map(str, a[:2])))
@pytest.mark.parametrize("edges", [0, 4])
def test_empty_products(random_graph, arguments, edges):
    """R19: no paths, weights, channels or components, with and without edges; the autograd graph is kept."""
    plan, graph = TensorProductPlan(*arguments), random_graph(3, 2, edges)
    inputs = [t.requires_grad_() for t in operands(graph, plan=plan)]
    with testing.poisoned():
        out = eqtp.tensor_product_conv(*inputs, plan, graph, backend="native")
        assert out.requires_grad
        first = torch.autograd.grad(out.sum(), inputs, create_graph=True)
        second = torch.autograd.grad(sum(t.sum() for t in first), inputs, materialize_grads=True)
    testing.assert_close(out, reference(*inputs, plan, graph))
    for t, a, b in zip(inputs, first, second, strict=True):
        assert a.shape == b.shape == t.shape and a.isfinite().all() and b.isfinite().all()


@pytest.mark.parametrize("seed", range(48))
def test_equal_to_e3nn(e3nn64, random_channelwise, random_graph, seed):
    """A second oracle: e3nn's product with e3nn's own weights, gathered and summed; and the module on e3nn's
    state_dict."""
    arguments, shared = random_channelwise(seed + 1000), seed % 2 == 0
    o3 = pytest.importorskip("e3nn.o3")
    theirs = o3.TensorProduct(*arguments, shared_weights=shared, internal_weights=shared)
    module = eqtp.nn.TensorProduct(*arguments, shared_weights=shared, internal_weights=shared)
    module.load_state_dict(theirs.state_dict(), strict=True)
    assert set(module.state_dict()) == set(theirs.state_dict())
    plan, graph = module.plan, random_graph(7, 5, 33, seed)
    x, y, w, g, *cotangents = all_tensors(graph, plan=plan)
    if shared:
        w, cotangents[2] = theirs.weight.detach().clone(), cotangents[2][0]
    tensors = [x, y, w, g, *cotangents]

    def e3nn_conv(x, y, w, plan, graph):
        messages = theirs(x[graph.src], y, w if plan.weight_numel else None)
        return x.new_zeros(graph.num_dst, plan.dim_out).index_add(0, graph.dst, messages)

    ours = all_orders(eqtp.tensor_product_conv, [t.clone() for t in tensors], graph, plan)
    expected = all_orders(e3nn_conv, [t.clone() for t in tensors], graph, plan)
    for a, b in zip(ours, expected, strict=True):
        testing.assert_close(a, b)
    weights = () if shared else (w,)
    testing.assert_close(module(x[graph.src], y, *weights), theirs(x[graph.src], y, *weights))


def test_the_e3nn_cases_cover_what_they_should(random_channelwise):
    plans = [TensorProductPlan(*random_channelwise(seed + 1000)) for seed in range(48)]
    assert any(len({p.has_weight for p in plan.paths}) == 2 for plan in plans)
    assert any(len({p.io for p in plan.paths}) < len(plan.paths) for plan in plans)
    assert any(len(set(plan.irreps_in1)) > 3 for plan in plans)
    assert {p.mul1 % 8 == 0 for plan in plans for p in plan.paths} == {True, False}
    assert {(p.l1, p.l2, p.l3) for plan in plans for p in plan.paths} > {(0, 1, 1), (1, 0, 1), (1, 1, 0)}


@pytest.mark.parametrize("seed", range(6))
def test_equivariance(random_channelwise, random_graph, seed):
    """O(3), with inversion."""
    plan, graph = TensorProductPlan(*random_channelwise(seed)), random_graph(4, 5, 20)
    x, y, w = operands(graph, plan=plan)

    def conv(x, y):
        return eqtp.tensor_product_conv(x, y, w, plan, graph, backend="native")

    testing.assert_equivariant(conv, [(x, plan.irreps_in1), (y, plan.irreps_in2)], plan.irreps_out)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_repeats_and_threads(random_graph, dtype):
    """20 repeats are equal bit by bit, with one thread and with two; the number of threads changes only
    rounding."""
    graph = random_graph(40, 37, 400)
    by_threads = {}
    for threads in (1, 2, 3):
        torch.set_num_threads(threads)
        runs = [all_orders(eqtp.tensor_product_conv, all_tensors(graph, dtype), graph) for _ in range(20)]
        assert all(torch.equal(a, b) for run in runs for a, b in zip(runs[0], run, strict=True))
        by_threads[threads] = runs[0]
    for threads in (2, 3):
        for a, b in zip(by_threads[threads], by_threads[1], strict=True):
            testing.assert_close(a, b.double())


def test_more_threads_than_destinations(random_graph):
    torch.set_num_threads(8)
    for sizes in ((3, 2, 30), (3, 1, 5), (2, 0, 0), (0, 2, 0)):
        assert_all_orders(random_graph(*sizes))


def run(script, *arguments, timeout=120, **environment):
    """Standard output of a Python script in a fresh process."""
    done = subprocess.run(
        [sys.executable, "-c", script, *arguments],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        timeout=timeout,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout


LEVELS = """
import sys, numpy as np, torch, eqtp
from eqtp import _native, testing
from eqtp.plans.plan import TensorProductPlan
results = {}
for n, key in enumerate(sys.argv[2:]):
    plan = TensorProductPlan.from_key(key)
    case, graph = testing.conv_case(plan)
    for dtype in (torch.float64, torch.float32):
        op = lambda x, y, w: eqtp.tensor_product_conv(x, y, w, plan, graph, backend="native")
        for name, t in testing.derivatives(op, case, dtype).items():
            results[f"{n} {name} {dtype}"] = t
        rows = lambda x, y, w: eqtp.tensor_product(x, y, w, plan, backend="native")
        for name, t in testing.derivatives(rows, testing.rows_case(plan), dtype).items():
            results[f"{n} rows {name} {dtype}"] = t
        results[f"{n} sum {dtype}"] = eqtp.segment_sum(case.operands["w"].to(dtype), graph)
np.savez(sys.argv[1], **{k: t.numpy() for k, t in results.items()})
print(_native.simd_level())
"""


def test_simd_levels_agree(tmp_path, random_channelwise):
    """The plain, AVX2 and AVX-512 kernels give the same numbers, to rounding."""
    plans = [problems.plan("nequip-water"), problems.plan("mace-l1"), SMALL]
    plans += [TensorProductPlan(*random_channelwise(seed, 6, (1, 3, 16))) for seed in (0, 3)]
    numbers = {}
    for cap in (1, 3, 4):
        path = tmp_path / f"{cap}.npz"
        level = int(run(LEVELS, str(path), *(plan.key for plan in plans), EQTP_SIMD=str(cap)))
        assert level <= cap
        numbers[level] = np.load(path)
    assert 1 in numbers and max(numbers) == library._native.simd_level()
    names = list(numbers[1])
    assert len(names) == len(plans) * 2 * 17
    for level in numbers:
        for name in names:
            a, b = (torch.from_numpy(numbers[k][name]) for k in (level, 1))
            testing.assert_close(a, b.double(), f"level {level}, {name}")


FORK = """
import os, signal, torch, eqtp
from eqtp.testing import problems
from eqtp import testing
torch.set_num_threads(2)
plan = problems.plan("nequip-water")
graph = eqtp.Graph(torch.arange(40) % 7, torch.arange(40) % 5, 7, 5)
shapes = (7, plan.dim_in1), (40, plan.dim_in2), (40, plan.weight_numel)
inputs = [testing.random(*shape).requires_grad_() for shape in shapes]
def everything():
    out = eqtp.tensor_product_conv(*inputs, plan, graph)
    return [out, *torch.autograd.grad(out, inputs, torch.ones_like(out))]
before, gathered = everything(), inputs[0].detach()[graph.src]
messages = eqtp.tensor_product(gathered, *inputs[1:], plan).detach()
child = os.fork()
if child == 0:
    signal.alarm(30)
    with torch.no_grad():  # torch's own kernels hang in the child
        out = eqtp.tensor_product_conv(*inputs, plan, graph)
        y = eqtp.tensor_product(gathered, *inputs[1:], plan)
        s = eqtp.segment_sum(messages, graph)
    difference = max(abs(a - b) for a, b in zip(s.flatten().tolist(), out.flatten().tolist()))
    if not (torch.equal(out, before[0]) and torch.equal(y, messages) and difference < 1e-12):
        os._exit(1)
    os._exit(0)
_, status = os.waitpid(child, 0)
assert status == 0, status
assert all(torch.equal(a, b) for a, b in zip(everything(), before))
print("done")
"""


def test_forked_child_returns():
    """R6: a forked child (a data loader) has no thread pool any more; the kernels return all the same."""
    assert run(FORK, timeout=60) == "done\n"


def test_lazy_tensors(random_graph):
    """Views that torch negates or leaves zero only when they are read."""
    graph = random_graph(6, 5, 40)
    x, y, w = operands(graph)
    negated = torch.complex(torch.zeros_like(x), -x).conj().imag
    assert negated.is_neg() and torch.equal(negated, x)
    testing.assert_close(eqtp.tensor_product_conv(negated, y, w, SMALL, graph), reference(x, y, w, SMALL, graph))
    zero = torch._efficientzerotensor(x.shape, dtype=x.dtype)
    assert (eqtp.tensor_product_conv(zero, y, w, SMALL, graph) == 0).all()


def test_default_device_is_not_that_of_the_tensors(random_graph):
    """Outputs live where the operands live, whatever torch.set_default_device says."""
    graph = random_graph(6, 5, 40)
    with torch.device("meta"):
        same = eqtp.Graph(graph.src, graph.dst, 6, 5)
    inputs = [t.requires_grad_() for t in operands(graph)]
    with torch.device("meta"):
        out = eqtp.tensor_product_conv(*inputs, SMALL, same)
        grads = torch.autograd.grad(out.sum(), inputs, create_graph=True)
        again = torch.autograd.grad(sum(t.sum() for t in grads), inputs)
    assert all(t.device.type == "cpu" for t in (out, *grads, *again))
    testing.assert_close(out, reference(*inputs, SMALL, graph))

"""segment_softmax against torch.softmax of each segment: values, masks, large logits, derivatives of any order,
attention made of it."""

import calls
import pytest
import torch

import eqtp
from eqtp import testing
from eqtp.ops.segment_softmax import segment_softmax

FAMILIES = ["native", "reference"]
SHAPES = [(), (1,), (0,), (5,), (8,), (71,), (2, 3), (4, 0, 2)]
DTYPES = [torch.float64, torch.float32]


def softmax(x, graph):
    """The definition, in float64; differentiable."""
    edges = [graph.order[a:b] for a, b in zip(graph.ptr[:-1].tolist(), graph.ptr[1:].tolist(), strict=True)]
    parts = torch.cat([x[:0].double(), *(x[e].double().softmax(0) for e in edges)])
    return parts[torch.argsort(graph.order)]


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_values_and_gradients_of_any_trailing_shape(random_graph, shape, dtype, family):
    graph = random_graph(3, 9, 33)
    x = (testing.random(33, *shape) * 4).to(dtype).requires_grad_()
    g = testing.random(33, *shape, seed=1).to(dtype)
    with testing.poisoned():
        out = segment_softmax(x, graph, backend=family)
        (gx,) = torch.autograd.grad(out, x, g)
    expected = softmax(x, graph)
    assert out.dtype == dtype
    testing.assert_close(out, expected)
    testing.assert_close(gx, torch.autograd.grad(expected, x, g.double())[0])


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("columns", [1, 3, 8, 40])
def test_logits_of_any_size(random_graph, family, dtype, columns):
    """Each value to its own precision, from 1 down to where the exponential underflows; differences of the logits are
    exact."""
    graph = random_graph(4, 7, 60)
    steps = 2.0 * torch.arange(60, dtype=torch.float64)[:, None] + (testing.random(60, columns) * 8).round() / 8
    for x in (steps, -steps, steps + 1e4, -steps - 1e4, testing.random(60, columns) * 1e4):
        x = x.to(dtype)
        out, expected = segment_softmax(x, graph, backend=family).double(), softmax(x, graph)
        seen = expected > torch.finfo(dtype).tiny * 8
        assert ((out - expected).abs() <= 30 * torch.finfo(dtype).eps * expected)[seen].all()
        assert (out[~seen] <= torch.finfo(dtype).tiny * 16).all()


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("columns", [1, 3, 8])
def test_masks_and_nan(random_graph, family, columns):
    """-inf is 0 with no gradient, also where it is everywhere; NaN and +inf stay in their destination."""
    graph = random_graph(4, 7, 60)
    edges = [graph.order[a:b] for a, b in zip(graph.ptr[:-1].tolist(), graph.ptr[1:].tolist(), strict=True)]
    x = testing.random(60, columns)
    x[::3] = -float("inf")
    x[edges[2]] = -float("inf")
    kept = x.isfinite()
    x.requires_grad_()
    g = testing.random(60, columns, seed=1)
    out = segment_softmax(x, graph, backend=family)
    (gx,) = torch.autograd.grad((out.sin() * g).sum(), x, create_graph=True)
    (gg,) = torch.autograd.grad(gx.square().sum(), x)
    for t in (out, gx, gg):
        assert t.isfinite().all() and (t[~kept] == 0).all() and not (t[kept] == 0).all()
    expected = softmax(torch.where(kept, x.detach(), -1e30), graph)
    expected[edges[2]] = 0
    testing.assert_close(out, expected)
    for bad in (float("nan"), float("inf")):
        y = testing.random(60, columns)
        y[edges[5][1], 0] = bad
        wrong = segment_softmax(y, graph, backend=family).isnan()
        assert wrong[edges[5][1], 0] and not wrong[:, 1:].any() and not wrong[graph.dst != 5].any()
        if bad != bad:
            assert wrong[edges[5], 0].all()


@pytest.mark.parametrize("nodes", [0, 1, 31])
@pytest.mark.parametrize("edges", [0, 1, 33])
def test_sizes(random_graph, nodes, edges):
    """R19: no nodes, no edges, with the autograd graph kept."""
    if edges and not nodes:
        return
    graph = random_graph(1, nodes, edges)
    x = testing.random(edges, 6).requires_grad_()
    results = []
    for op in (segment_softmax, softmax):
        with testing.poisoned():
            out = op(x, graph)
            (g,) = torch.autograd.grad(out.sin().sum(), x, create_graph=True)
            (h,) = torch.autograd.grad(g.sin().sum(), x)
        results.append((out, g, h))
    for ours, theirs in zip(*results, strict=True):
        assert (ours - theirs).abs().sum() <= 1e-12  # of one edge alone all derivatives are 0


def test_slices_of_larger_tensors(random_graph):
    graph, x, g = random_graph(4, 7, 33), testing.random(33, 10), testing.random(33, 10, seed=1)
    layouts = [
        lambda t: t[:, 3:8],
        lambda t: t.t().contiguous().t(),
        lambda t: t[:, ::2],
        lambda t: t[:1].expand(33, 10),
        lambda t: t[:1, :1].expand(33, 10),
    ]
    for layout in layouts:
        leaf = layout(x).requires_grad_()
        out, expected = segment_softmax(leaf, graph, backend="native"), softmax(leaf, graph)
        testing.assert_close(out, expected)
        gx, wanted = (torch.autograd.grad(t, leaf, layout(g))[0] for t in (out, expected))
        assert (gx - wanted).abs().max() < 1e-14  # 0 for the last layout


def test_derivatives(random_graph):
    graph, x = random_graph(4, 7, 12), testing.random(12, 2, 3).requires_grad_()
    assert torch.autograd.gradcheck(lambda x: segment_softmax(x, graph), x, check_forward_ad=True)
    assert torch.autograd.gradgradcheck(lambda x: segment_softmax(x, graph).sin(), x)
    results = []
    for op in (segment_softmax, softmax):
        t = x
        for _ in range(4):
            (t,) = torch.autograd.grad((op(t, graph).exp() * t).sum(), t, create_graph=True)
        results.append(t)
    testing.assert_close(*results)


def test_transforms(random_graph):
    graph, x, t = random_graph(4, 7, 12), testing.random(12, 3), testing.random(12, 3, seed=1)

    def f(x, op):
        return op(x, graph).pow(3).sum(dim=0)

    twice = [lambda f: torch.func.jacrev(torch.func.jacrev(f)), lambda f: torch.func.jacrev(torch.func.jacfwd(f))]
    for transform in (torch.func.jacrev, torch.func.jacfwd, torch.func.hessian, *twice):
        testing.assert_close(*(transform(lambda x, op=op: f(x, op))(x) for op in (segment_softmax, softmax)))
    results = [
        torch.func.jvp(torch.func.grad(lambda x, op=op: f(x, op).sum()), (x,), (t,))[1]
        for op in (segment_softmax, softmax)
    ]
    testing.assert_close(*results)
    batch = torch.stack([x, t], dim=1)
    testing.assert_close(
        torch.func.vmap(lambda x: segment_softmax(x, graph), in_dims=1)(batch),
        torch.stack([softmax(x, graph), softmax(t, graph)]),
    )


def test_compile(random_graph):
    graph, x = random_graph(4, 7, 12), testing.random(12, 3).requires_grad_()

    def f(x):
        return segment_softmax(x.sin(), graph).square().sum()

    with testing.poisoned():
        (g,) = torch.autograd.grad(torch.compile(f, fullgraph=True, backend="aot_eager")(x), x)
    testing.assert_close(g, torch.autograd.grad(f(x), x)[0])


def test_opcheck(random_graph):
    graph, x, g = (
        random_graph(4, 7, 12),
        testing.random(12, 3).requires_grad_(),
        testing.random(12, 3, seed=1).requires_grad_(),
    )
    segments = (graph.dst, graph.ptr, graph.order, False, "native")
    torch.library.opcheck(torch.ops.eqtp.segment_softmax.default, (x, *segments))
    torch.library.opcheck(torch.ops.eqtp.segment_softmax_bwd.default, (g, x, *segments))


def test_threads_and_kernels(monkeypatch, random_graph):
    graph, x = random_graph(4, 7, 300), testing.random(300, 40).float().requires_grad_()
    made, results = calls.count_calls(monkeypatch, "segments"), []
    for threads in (1, 2, 3):
        torch.set_num_threads(threads)
        out = segment_softmax(x, graph)
        results.append(torch.cat([out, *torch.autograd.grad(out.square().sum(), x)]))
    assert torch.equal(results[0], results[1]) and torch.equal(results[0], results[2])
    assert made == [("segment_softmax", "fwd"), ("segment_softmax", "bwd")] * 3


@pytest.mark.parametrize("scale", [1.0, 1e4])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_attention_over_neighbours(random_graph, scale, dtype):
    """sum over e into n of softmax(logits)[e, h] v[e, h, k] (EQGAT) is what a loop over the nodes gives, with its
    gradients."""
    graph = random_graph(5, 12, 40)
    assert (graph.ptr.diff() == 0).any()
    logits, v = testing.random(40, 4) * scale, testing.random(40, 4, 3, seed=1)
    g = testing.random(12, 4, 3, seed=2)

    def composed(logits, v):
        return eqtp.segment_sum(segment_softmax(logits, graph)[..., None] * v, graph)

    def loop(logits, v):
        edges = [graph.order[a:b] for a, b in zip(graph.ptr[:-1].tolist(), graph.ptr[1:].tolist(), strict=True)]
        return torch.stack([(logits[e].softmax(0)[..., None] * v[e]).sum(0) for e in edges])

    results = []
    for f, kind in ((composed, dtype), (loop, torch.float64)):
        operands = [t.to(kind).detach().requires_grad_() for t in (logits.to(dtype), v)]
        out = f(*operands)
        first = torch.autograd.grad(out, operands, g.to(kind), create_graph=True)
        second = torch.autograd.grad([t.square().sum() for t in first], operands)
        results.append([out, *first, *second])
    for ours, theirs in zip(
        *results, strict=True
    ):  # gradients of the logits are differences of numbers of the size of v and g
        assert (ours - theirs).abs().max() <= testing.TOLERANCE[dtype] * max(1.0, theirs.abs().max())

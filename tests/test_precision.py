"""R26, R41: half precision is for storage, whatever stands between input and output is float32; autocast gives
float32."""

import pytest
import torch
from every_call import GRAPH_OPS, OPS, edges, tensors

import eqtp
from eqtp import testing

HALVES = [torch.bfloat16, torch.float16]
NODES, EDGES = 4, 11


def call(name):
    """Function and float32 inputs of an op."""
    if name in OPS:
        f, shapes = OPS[name]
        return f, [t.float() for t in tensors(shapes, 5)]
    f, of_nodes, of_edges = GRAPH_OPS[name]
    graph = eqtp.Graph(*edges(EDGES, NODES), NODES, NODES)
    inputs = [t.float() for t in tensors(of_nodes, NODES) + tensors(of_edges, EDGES)]
    return lambda *t: f(graph, *t), inputs


def gradients(out, inputs):
    """Gradients of <cotangent, output>, a cotangent that half precision has."""
    cotangent = testing.random(*out.shape, seed=9).bfloat16().half().to(out.dtype)
    return torch.autograd.grad(out, inputs, cotangent)


def with_gradients(f, inputs):
    inputs = [t.detach().requires_grad_() for t in inputs]
    out = f(*inputs)
    return [out.detach(), *gradients(out, inputs)]


every_op = pytest.mark.parametrize("name", [*OPS, *GRAPH_OPS])


@every_op
@pytest.mark.parametrize("dtype", HALVES, ids=str)
def test_half_precision_is_rounded_once(name, dtype):
    """Output and gradients are those of float32, rounded."""
    f, inputs = call(name)
    stored = [t.to(dtype) for t in inputs]
    expected = with_gradients(f, [t.float() for t in stored])
    for a, b in zip(with_gradients(f, stored), expected, strict=True):
        assert a.dtype == dtype and torch.equal(a, b.to(dtype))


@every_op
@pytest.mark.parametrize("dtype", HALVES, ids=str)
def test_autocast_gives_float32(name, dtype):
    """Under autocast inputs of any precision below float64 are taken as float32; dtypes may differ, as they do behind a
    linear layer. Gradients are those of float32, of kernels inside autocast too."""
    f, inputs = call(name)
    stored = [inputs[0].to(dtype), *inputs[1:]]
    expected = with_gradients(f, [stored[0].float(), *inputs[1:]])
    stored = [t.requires_grad_() for t in stored]
    with torch.autocast("cpu", dtype=dtype):
        out = f(*stored)
        found = gradients(out, stored) if "native" in name else None
    assert out.dtype == torch.float32 and torch.equal(out, expected[0])
    first, *others = found or gradients(out, stored)
    assert torch.equal(first, expected[1].to(dtype)) and all(map(torch.equal, others, expected[2:]))


def test_autocast_keeps_float64():
    f, inputs = call("tensor_product native")
    inputs = [t.double() for t in inputs]
    with torch.autocast("cpu"):
        assert torch.equal(f(*inputs), f(*inputs).double())


def test_second_order_under_autocast():
    """Forces and their loss inside autocast: composed derivatives are not lowered."""
    for name in ("spherical_harmonics native", "tensor_product native", "tensor_product_conv native"):
        f, inputs = call(name)

        def loss(f=f, inputs=inputs):
            leaves = [t.detach().requires_grad_() for t in inputs]
            first = torch.autograd.grad(f(*leaves).sin().sum(), leaves, create_graph=True)
            return torch.autograd.grad(sum(t.sin().sum() for t in first), leaves, create_graph=True)

        expected = loss()
        with torch.autocast("cpu"):
            found = loss()
        assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))


def test_means_beyond_the_range_of_float16():
    def mean(value, rows):
        graph = eqtp.Graph(torch.zeros(rows, dtype=torch.int64), torch.zeros(rows, dtype=torch.int64), 1, 1)
        x = torch.full((rows, 1), value, dtype=torch.float16, requires_grad=True)
        out = eqtp.segment_mean(x, graph)
        (gradient,) = torch.autograd.grad(out, x, torch.full_like(out, 60_000.0))
        return out.item(), gradient[0].item()

    assert mean(100.0, 1_000) == (100.0, 60.0)
    assert mean(0.5, 70_000) == (0.5, torch.tensor(60_000 / 70_000).half().item())


def test_a_layer_whose_sums_leave_the_range_of_float16():
    """10,000 neighbours, by whose square root GauntConvolution divides: before it adds."""
    torch.manual_seed(0)
    layer = eqtp.nn.GauntConvolution(0, 0, 0, 1, num_neighbors=10_000)
    src, dst = torch.arange(10_000), torch.zeros(10_000, dtype=torch.int64)
    x, r, h = torch.full((10_000, 1, 1), 30.0), torch.ones(10_000, 3), torch.ones(10_000, 1, 1)
    graph = eqtp.Graph(src, dst, 10_000, 1)
    expected, found = layer(x, r, h, graph), layer.half()(x.half(), r.half(), h.half(), graph)
    assert found.isfinite().all() and (found - expected).abs() < 0.005 * expected.abs()

"""What docs/autograd.md and docs/drop_in.md promise of every op and module under torch's transforms."""

import copy
import io
import pickle

import pytest
import torch

import eqtp
from eqtp import testing

PLAN = eqtp.TensorProductPlan("4x0e+4x1o", "0e+1o", "4x0e+4x1o", [(0, 0, 0, "uvu", True), (1, 0, 1, "uvu", True)])
PATHS = [path[:5] for path in PLAN.paths]
SRC, DST = torch.tensor([0, 2, 1, 0, 2, 3]), torch.tensor([1, 0, 1, 1, 3, 0])
EDGES, NODES = 6, 4
GRAPH = eqtp.Graph(SRC, DST, NODES, NODES)
W = testing.random(EDGES, PLAN.weight_numel, seed=9)
W2 = testing.random(19, seed=8)  # of an SO(2) convolution from degree 2 to degree 2

# op -> (function of float64 tensors, shapes of the tensors)
OPS = {
    "tensor_product": (lambda x, y, w: eqtp.tensor_product(x, y, w, PLAN), [(6, 16), (6, 4), (6, PLAN.weight_numel)]),
    "tensor_product_conv": (lambda x, y: eqtp.tensor_product_conv(x, y, W, PLAN, GRAPH), [(NODES, 16), (EDGES, 4)]),
    "spherical_harmonics": (lambda r: eqtp.spherical_harmonics([0, 1, 2], r, True), [(6, 3)]),
    "segment_sum": (lambda x: eqtp.segment_sum(x, GRAPH), [(EDGES, 5)]),
    "segment_mean": (lambda x: eqtp.segment_mean(x, GRAPH), [(EDGES, 5)]),
    "segment_max": (lambda x: eqtp.segment_max(x, GRAPH), [(EDGES, 5)]),
    "segment_softmax": (lambda x: eqtp.segment_softmax(x, GRAPH), [(EDGES, 5)]),
    "gaunt_tensor_product": (lambda a, b: eqtp.gaunt_tensor_product(a, b, 2), [(6, 9), (6, 9)]),
    "gaunt_many_body": (lambda a: eqtp.gaunt_many_body(a, 2, 3), [(6, 9)]),
    "gaunt_convolution": (lambda a, r: eqtp.gaunt_convolution(a, r, 2), [(6, 9), (6, 3)]),
    "so2_convolution": (
        lambda a, r: eqtp.so2_convolution(a, r, W2, 2),
        [(6, 9), (6, 3)],
    ),
    "vector_signal_tensor_product": (lambda a, b: eqtp.vector_signal_tensor_product(a, b, 2), [(6, 9), (6, 9)]),
    "cg_tensor_product": (lambda a, b: eqtp.cg_tensor_product(a, b, 2), [(6, 9), (6, 9)]),
    "matrix_tensor_product": (lambda a, b: eqtp.matrix_tensor_product(a, b, 2), [(6, 9), (6, 9)]),
}
every_op = pytest.mark.parametrize("name", OPS)


def operands(name):
    return [testing.random(*shape, seed=n) for n, shape in enumerate(OPS[name][1])]


def gradients(f, inputs):
    inputs = [t.clone().requires_grad_() for t in inputs]
    return torch.autograd.grad(f(*inputs).sin().sum(), inputs)


def assert_same(found, expected):
    for a, b in zip(found, expected, strict=True):
        testing.assert_close(a, b)


def test_every_op_is_here():
    """The functions that take tensors."""
    others = ["accelerate", "backends", "cg_paths", "explain", "expressivity", "interactability", "rank_weights"]
    others += ["compile", "load", "set_backend", "so2_path_weights", "so2_paths", "so2_weights"]
    named = {name for name in eqtp.__all__ if callable(getattr(eqtp, name)) and name[0].islower()}
    assert named - set(others) == set(OPS)


@every_op
def test_compiles_as_one_graph(name):
    f, inputs = OPS[name][0], operands(name)
    compiled = torch.compile(f, fullgraph=True, backend="aot_eager")
    testing.assert_close(compiled(*inputs), f(*inputs))
    assert_same(gradients(compiled, inputs), gradients(f, inputs))


@every_op
def test_is_exported_saved_and_loaded(name):
    f, inputs = OPS[name][0], operands(name)

    class Call(torch.nn.Module):
        def forward(self, *inputs):
            return f(*inputs)

    buffer = io.BytesIO()
    torch.export.save(torch.export.export(Call(), tuple(inputs)), buffer)
    buffer.seek(0)
    loaded = torch.export.load(buffer).module()
    testing.assert_close(loaded(*inputs), f(*inputs))
    assert_same(gradients(loaded, inputs), gradients(f, inputs))


@every_op
def test_torch_func(name):
    """grad, vmap, forward mode and the two combined; derivatives in two modes."""
    f, inputs = OPS[name][0], operands(name)
    each = tuple(range(len(inputs)))
    assert_same(torch.func.grad(lambda *a: f(*a).sin().sum(), each)(*inputs), gradients(f, inputs))
    batches = [torch.stack([t, t.flip(0) + 1]) for t in inputs]
    rows = [[t[n] for t in batches] for n in range(2)]
    testing.assert_close(torch.vmap(f)(*batches), torch.stack([f(*r) for r in rows]))
    along = [testing.random(*t.shape, seed=5 + n) for n, t in enumerate(inputs)]
    _, tangent = torch.func.jvp(lambda *a: f(*a).sin().sum(), tuple(inputs), tuple(along))
    expected = sum((g * t).sum() for g, t in zip(gradients(f, inputs), along, strict=True))
    testing.assert_close(tangent.reshape(1), expected.reshape(1))


MODULES = {
    "TensorProduct": (
        lambda: eqtp.nn.TensorProduct(PLAN.irreps_in1, PLAN.irreps_in2, PLAN.irreps_out, PATHS),
        [(6, 16), (6, 4)],
    ),
    "TensorProductConv": (
        lambda: eqtp.nn.TensorProductConv(PLAN.irreps_in1, PLAN.irreps_in2, PLAN.irreps_out, PATHS),
        [(NODES, 16), (EDGES, 4), (EDGES, PLAN.weight_numel)],
    ),
    "SphericalHarmonics": (lambda: eqtp.nn.SphericalHarmonics([0, 1, 2], True), [(6, 3)]),
    "right": (
        lambda: Right(PLAN.irreps_in1, PLAN.irreps_in2, PLAN.irreps_out, PATHS, compile_right=True),
        [(6, 4)],
    ),
}


class Right(eqtp.nn.TensorProduct):
    """The matrices of a product, as a module."""

    def forward(self, y):
        return self.right(y)


@pytest.mark.parametrize("name", MODULES)
def test_modules(name):
    """Compiled as one graph, exported, copied and pickled."""
    make, shapes = MODULES[name]
    module = make().double()
    inputs = [testing.random(*shape, seed=n) for n, shape in enumerate(shapes)]
    inputs += [SRC, DST] if name == "TensorProductConv" else []
    expected = module(*inputs)
    buffer = io.BytesIO()
    torch.save(module, buffer)
    buffer.seek(0)
    others = [
        torch.compile(module, fullgraph=True, backend="aot_eager"),
        torch.export.export(module, tuple(inputs)).module(),
        copy.deepcopy(module),
        pickle.loads(pickle.dumps(module)),
        torch.load(buffer, weights_only=False),
    ]
    for other in others:
        testing.assert_close(other(*inputs), expected)
        if module.state_dict():
            assert list(other.parameters()) or not list(module.parameters())

"""torch.compile, make_fx and torch.export: values, requires_grad and gradients; what is not supported raises
(R7-R10, R31, R32)."""

import io
import os
import subprocess
import sys

import pytest
import torch
from torch.autograd import forward_ad
from torch.fx.experimental.proxy_tensor import make_fx

import eqtp
from eqtp import testing
from eqtp.ops.tensor_product_conv import reference
from eqtp.plans.plan import TensorProductPlan

PLAN = TensorProductPlan(
    "5x0e+3x1o",
    "0e+1o",
    "5x0e+5x1o+3x0e+3x1e",
    [(0, 0, 0, "uvu", True), (0, 1, 1, "uvu", False), (1, 1, 2, "uvu", True), (1, 1, 3, "uvu", True)],
)

SIZE = (7, 5, 13)  # sources, destinations, edges; none equal to a dimension of PLAN: equal sizes would get one symbol


@pytest.fixture(autouse=True)
def fresh_compiler():
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


def operands(num_src, num_edges, seed=0):
    shapes = (num_src, PLAN.dim_in1), (num_edges, PLAN.dim_in2), (num_edges, PLAN.weight_numel)
    return [testing.random(*shape, seed=seed + k).requires_grad_() for k, shape in enumerate(shapes)]


def ends(num_src, num_dst, num_edges, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return [torch.randint(max(n, 1), (num_edges,), generator=generator) for n in (num_src, num_dst)]


class Conv(torch.nn.Module):
    """Builds the graph, convolves, and reads out: what a model's layer does."""

    def forward(self, x, y, w, src, dst, nodes):
        graph = eqtp.Graph(src, dst, x.shape[0], nodes.shape[0])
        out = eqtp.tensor_product_conv(x, y, w, PLAN, graph, backend="native")
        return out + eqtp.segment_mean(y, graph).sum(dim=1, keepdim=True) + nodes


def expected_conv(x, y, w, src, dst, nodes):
    graph = eqtp.Graph(src, dst, x.shape[0], nodes.shape[0])
    count = graph.ptr.diff().clamp(min=1)[:, None]
    mean = y.new_zeros(nodes.shape[0], y.shape[1]).index_add(0, dst, y) / count
    return reference(x, y, w, PLAN, graph) + mean.sum(dim=1, keepdim=True) + nodes


def arguments(num_src, num_dst, num_edges):
    return [
        *operands(num_src, num_edges),
        *ends(num_src, num_dst, num_edges),
        testing.random(num_dst, 1, seed=5),
    ]


def assert_right(f, size):
    """Value, requires_grad and gradients of f at this size are those of the reference."""
    a = arguments(*size)
    out, expected = f(*a), expected_conv(*a)
    assert out.requires_grad
    testing.assert_close(out, expected)
    ours, theirs = (torch.autograd.grad(t.sin().sum(), a[:3]) for t in (out, expected))
    for g, h in zip(ours, theirs, strict=True):
        testing.assert_close(g, h)
    no_grad = [t.detach() for t in a]
    assert not f(*no_grad).requires_grad


def test_compile_fullgraph():
    assert_right(torch.compile(Conv(), fullgraph=True, backend="aot_eager"), SIZE)


def test_compile_rows():
    def product(x, y, w):
        return eqtp.tensor_product(x, y, w, PLAN).sin()

    compiled = torch.compile(product, fullgraph=True, backend="aot_eager")
    for inputs in (operands(7, 7), operands(9, 9)):
        ours, theirs = compiled(*inputs), product(*inputs)
        testing.assert_close(ours, theirs)
        for g, h in zip(*(torch.autograd.grad(t.sum(), inputs) for t in (ours, theirs)), strict=True):
            testing.assert_close(g, h)


def test_compile_dynamic_shapes():
    """One graph for every number of nodes and edges."""
    counter = torch._dynamo.testing.CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(Conv(), fullgraph=True, dynamic=True, backend=counter)
    for size in (SIZE, (9, 3, 23), (13, 17, 29)):
        assert_right(compiled, size)
    assert counter.frame_count <= 2  # with and without gradients


def test_compile_of_the_module():
    module = eqtp.nn.TensorProductConv(
        PLAN.irreps_in1, PLAN.irreps_in2, PLAN.irreps_out, [p[:5] for p in PLAN.paths]
    ).double()
    compiled = torch.compile(module, fullgraph=True, dynamic=True, backend="aot_eager")
    for size in ((7, 7, 13), (9, 9, 23)):
        x, y, w, src, dst, _ = arguments(*size)
        ours, theirs = compiled(x, y, w, src, dst), module(x, y, w, src, dst)
        testing.assert_close(ours, theirs)
        for g, h in zip(*(torch.autograd.grad(t.sin().sum(), (x, y, w)) for t in (ours, theirs)), strict=True):
            testing.assert_close(g, h)


def test_compile_inductor():
    assert_right(torch.compile(Conv(), fullgraph=True, dynamic=True), SIZE)


def test_one_tensor_as_two_operands_compiled():
    plan = TensorProductPlan("1o", "1o", "1e+0e", [(0, 0, 1, "uvu", True), (0, 0, 0, "uvu", True)])

    def product(x, w):
        return eqtp.tensor_product(x, x, w, plan)

    compiled = torch.compile(product, fullgraph=True, backend="aot_eager")
    x, w = testing.random(4, 3).requires_grad_(), testing.random(4, 2, seed=1)
    ours, theirs = (torch.autograd.grad(f(x, w).sin().sum(), x)[0] for f in (compiled, product))
    testing.assert_close(ours, theirs)
    assert ours.abs().max() > 0.1


# forces: a gradient inside the compiled region, trained by a gradient outside


def energy_and_forces(conv, x, y, w, src, dst, nodes):
    energy = conv(x, y, w, src, dst, nodes).sin().sum()
    return energy, -torch.autograd.grad(energy, y, create_graph=True)[0]


def training_gradients(f, a):
    energy, forces = f(*a)
    grads = torch.autograd.grad(energy + forces.pow(2).sum(), (a[0], a[2]))
    return [energy, forces, *grads]


def EXPECTED(a):
    return training_gradients(lambda *b: energy_and_forces(expected_conv, *b), a)


def test_forces_inside_the_compiled_region():
    """R7: the gradient is taken inside, the loss is differentiated outside."""
    model = Conv()
    with torch._dynamo.config.patch(trace_autograd_ops=True):
        compiled = torch.compile(
            lambda *a: energy_and_forces(model, *a), fullgraph=True, dynamic=True, backend="aot_eager"
        )
        for size in (SIZE, (9, 3, 23)):
            a = arguments(*size)
            for ours, theirs in zip(training_gradients(compiled, a), EXPECTED(a), strict=True):
                testing.assert_close(ours, theirs)


def test_forces_through_make_fx():
    """The other route: trace energy and forces into one graph of ops, then compile that."""
    model, a = Conv(), arguments(*SIZE)
    detached = [t.detach() for t in a]

    def forces(x, y, w, src, dst, nodes):
        y = y.detach().requires_grad_()
        return energy_and_forces(model, x, y, w, src, dst, nodes)[1]

    traced = make_fx(forces, tracing_mode="symbolic", _allow_non_fake_inputs=True)(*detached)
    targets = {str(node.target) for node in traced.graph.nodes}
    assert {"eqtp.tensor_product_conv.default", "eqtp.tensor_product_conv_bwd.default"} <= targets
    compiled = torch.compile(traced, fullgraph=True, backend="aot_eager")
    for size in (SIZE, (9, 2, 23)):
        b = arguments(*size)
        expected = energy_and_forces(expected_conv, *b)[1]
        for f in (traced, compiled):
            testing.assert_close(f(*[t.detach() for t in b]), expected)


def test_double_backward_of_a_compiled_region_raises():
    """torch does not support it: an error, never a wrong number."""
    compiled = torch.compile(Conv(), fullgraph=True, backend="aot_eager")
    a = arguments(*SIZE)
    (g,) = torch.autograd.grad(compiled(*a).sin().sum(), a[0], create_graph=True)
    with pytest.raises(RuntimeError, match="double backward"):
        torch.autograd.grad(g.pow(2).sum(), a[2])


# the routes that are silently wrong with custom ops: an error or the right number


def test_forward_mode_inside_compile_raises():
    x, y, w = (t.detach() for t in operands(5, 5))

    def product(x):
        return eqtp.tensor_product(x, y, w, PLAN)

    tangent = testing.random(*x.shape, seed=9)

    def dual(x):
        with forward_ad.dual_level():
            return forward_ad.unpack_dual(product(forward_ad.make_dual(x, tangent))).tangent

    for f in (dual, lambda x: torch.func.jvp(product, (x,), (tangent,))[1]):
        testing.assert_close(f(x), product(tangent) - product(torch.zeros_like(x)))
        with pytest.raises(Exception, match=r"eqtp::tensor_product: forward-mode differentiation inside"):
            torch.compile(f, fullgraph=True, backend="aot_eager")(x)


def test_compiled_function_in_forward_mode_is_not_silently_zero():
    """A dual level around a compiled region: the right tangent or an error."""
    x, y, w = (t.detach() for t in operands(5, 5))

    def product(x):
        return eqtp.tensor_product(x, y, w, PLAN)

    compiled = torch.compile(product, fullgraph=True, backend="aot_eager")
    tangent = testing.random(*x.shape, seed=9)
    with forward_ad.dual_level():
        try:
            got = forward_ad.unpack_dual(compiled(forward_ad.make_dual(x, tangent))).tangent
        except Exception as error:
            assert "forward" in str(error)
            return
    testing.assert_close(got, product(tangent))


@pytest.mark.parametrize("transform", ["grad", "vjp", "vmap", "vmap_grad"])
def test_torch_func_inside_compile_is_right_or_raises(transform):
    x, y, w = (t.detach() for t in operands(5, 5))

    def energy(x):
        return eqtp.tensor_product(x, y, w, PLAN).sin().sum()

    f = {
        "grad": torch.func.grad(energy),
        "vjp": lambda x: torch.func.vjp(energy, x)[1](torch.ones((), dtype=x.dtype))[0],
        "vmap": lambda x: torch.func.vmap(energy)(torch.stack([x, 2 * x])),
        "vmap_grad": lambda x: torch.func.vmap(torch.func.grad(energy))(torch.stack([x, 2 * x])),
    }[transform]
    expected = f(x)
    try:
        got = torch.compile(f, fullgraph=True, backend="aot_eager")(x)
    except Exception as error:
        assert transform != "vmap" and "eqtp.tensor_product.default" in str(error)
        return
    testing.assert_close(got, expected)


# export


def exported(size):
    edges, src_nodes, dst_nodes = (torch.export.Dim(n, min=2, max=10**6) for n in ("edges", "sources", "nodes"))
    dynamic = ({0: src_nodes}, {0: edges}, {0: edges}, {0: edges}, {0: edges}, {0: dst_nodes})
    a = [t.detach() for t in arguments(*size)]
    return torch.export.export(Conv(), tuple(a), dynamic_shapes=dynamic)


def saved(program):
    buffer = io.BytesIO()
    torch.export.save(program, buffer)
    return buffer.getvalue()


def test_export_round_trip():
    """R10: exported with the graph built inside, saved, loaded, run at other sizes, and differentiated."""
    program = torch.export.load(io.BytesIO(saved(exported(SIZE))))
    for size in (SIZE, (9, 3, 23), (13, 17, 29)):
        assert_right(program.module(), size)


LOAD = """
import sys, torch, eqtp
a, expected = torch.load(sys.argv[2])
out = torch.export.load(sys.argv[1]).module()(*a)
assert (out - expected).abs().max() <= 1e-12 * expected.abs().max()
print("same")
"""


def test_exported_program_runs_in_another_process(tmp_path):
    """R11."""
    a = [t.detach() for t in arguments(9, 3, 23)]
    program, data = tmp_path / "program.pt2", tmp_path / "data.pt"
    program.write_bytes(saved(exported(SIZE)))
    torch.save((a, expected_conv(*a)), data)
    command = [sys.executable, "-c", LOAD, str(program), str(data)]
    done = subprocess.run(command, env=os.environ, capture_output=True, text=True, timeout=120)
    assert done.stdout == "same\n", done.stderr[-2000:]


@pytest.mark.parametrize("size", [(4, 5, 0), (0, 3, 0), (4, 1, 1)])
def test_compile_of_empty_graphs(size):
    """R19 under compile: no edges, no sources, one of each."""
    assert_right(torch.compile(Conv(), fullgraph=True, backend="aot_eager"), size)


def test_products_of_signals_with_sizes_that_change():
    """One graph for every number of rows, and an exported layer that takes any."""

    def f(a, b):
        bracket = eqtp.gaunt_tensor_product(a, b, 3, odd=True)[1]
        powers = eqtp.gaunt_many_body(a, 3, 3)[..., 2, :]
        return (
            bracket
            + powers
            + eqtp.matrix_tensor_product(a, b, 3)
            + eqtp.cg_tensor_product(a, b, 3)
            + eqtp.vector_signal_tensor_product(a, b, 3)
        )

    graphs = []

    def count(module, example_inputs):
        graphs.append(module)
        return module.forward

    compiled = torch.compile(f, backend=count, fullgraph=True, dynamic=True)
    for n in (5, 7, 11):
        a, b = testing.random(n, 4, 16, seed=n), testing.random(n, 1, 16, seed=n + 1)
        testing.assert_close(compiled(a, b), f(a, b))
    assert len(graphs) == 1

    class Layers(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.product = eqtp.nn.GauntTensorProduct(2, 2, 2, 4, odd=True, rank=2)
            self.powers = eqtp.nn.GauntManyBody(2, 2, 4, 3, 2)

        def forward(self, x, element):
            product, bracket = self.product(x, x)
            return self.powers(product, element) + bracket

    layers, rows = Layers().double(), torch.export.Dim("rows")
    example = testing.random(6, 4, 9), torch.arange(6) % 2
    exported = torch.export.export(layers, example, dynamic_shapes=({0: rows}, {0: rows})).module()
    x, element = testing.random(9, 4, 9, seed=3), torch.arange(9) % 2
    testing.assert_close(exported(x, element), layers(x, element))

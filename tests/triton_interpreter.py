"""The Triton kernels run as NumPy (TRITON_INTERPRET=1) against the references, on a few edges: an operation takes 50 us
there.

Not collected by itself: tests/test_triton.py runs it in a process of its own, as Triton interprets or compiles for the
life of a process.
"""

import os

import numpy as np
import pytest
import torch
import triton.runtime.interpreter as interpreter
from sweeps import sweep

import eqtp
from eqtp import testing
from eqtp.kernels import channelwise as conv
from eqtp.kernels import channelwise_text as rows
from eqtp.ops import segment_max, segment_softmax, segment_sum, spherical_harmonics, tensor_product, tensor_product_conv
from eqtp.plans.plan import TensorProductPlan
from eqtp.testing import problems

assert os.environ.get("TRITON_INTERPRET") == "1", "run this through tests/test_triton.py"

HALF = [torch.bfloat16, torch.float16]
FULL = [torch.float64, torch.float32]
WORKLOADS = [
    "mace-l1",
    "mace-medium",
    "mace-large",
    "nequip-lips",
    "nequip-l",
    "nequix-first",
    "sevennet-0-last",
    "sevennet-l3i5",
]
_patch = interpreter._patch_lang_tensor


def _patched(tensor, *arguments, **options):
    """triton 3.6 calls int() on an array of one element in range(), which NumPy 2.4 refuses."""
    result = _patch(tensor, *arguments, **options)
    tensor.__index__ = lambda self: int(self.handle.data.reshape(-1)[0])
    return result


if tuple(map(int, np.__version__.split(".")[:2])) >= (2, 4):
    interpreter._patch_lang_tensor = _patched


def plan(weight=1.0):
    """Uneven multiplicities, slots without a path, paths with and without weights, two inputs and two paths into one
    slot."""
    instructions = [
        (1, 1, 0, "uvu", True),
        (0, 1, 1, "uvu", True, weight),
        (1, 2, 1, "uvu", False),
        (3, 0, 1, "uvu", True),
        (1, 1, 3, "uvu", True),
        (1, 1, 3, "uvu", False),
        (4, 0, 4, "uvu", True),
    ]
    return TensorProductPlan("3x0e+3x1o+2x1e+3x1o+0x0e", "0e+1o+0e", "3x1e+3x1o+2x2e+3x0e+0x0e", instructions)


def graph(num_src=4, num_dst=3, num_edges=5):
    ends = np.random.default_rng(0)
    src, dst = (
        torch.from_numpy(ends.integers(n, size=num_edges) if num_edges else np.zeros(0, int))
        for n in (num_src, num_dst)
    )
    return eqtp.Graph(src, dst, num_src, num_dst)


def case(plan, edges, shared=False):
    """Inputs of a convolution, that every dtype holds exactly."""
    shapes = {
        "x": (edges.num_src, plan.dim_in1),
        "y": (edges.num_edges, plan.dim_in2),
        "w": (edges.num_edges, plan.weight_numel),
    }
    shapes["w"] = shapes["w"][shared:]

    def number(shape, seed):
        return testing.random(*shape, seed=seed).bfloat16().double()

    operands = {n: number(shape, k) for k, (n, shape) in enumerate(shapes.items())}
    cotangents = {n: number(shape, k + 10) for k, (n, shape) in enumerate(shapes.items())}
    return testing.Case(operands, number((edges.num_dst, plan.dim_out), 20), cotangents, {})


def tolerance(dtype):
    """One rounding of the result, where the type is for storage only; the interpreter cuts bfloat16 off, a GPU rounds
    it to the nearest."""
    return testing.TOLERANCE.get(dtype) or torch.finfo(dtype).eps * (1.01 if dtype == torch.bfloat16 else 0.505)


def assert_all_orders(plan, edges, dtype, shared=False, layout=lambda t: t):
    values = case(plan, edges, shared)

    def op(x, y, w):
        return eqtp.tensor_product_conv(*map(layout, (x, y, w)), plan, edges, "triton")

    expected = testing.derivatives(lambda *t: tensor_product_conv.reference(*t, plan, edges), values, torch.float64)
    with testing.poisoned():
        actual = testing.derivatives(op, values, dtype)
    for name, t in actual.items():
        assert t.dtype == dtype
        testing.assert_close(t, expected[name], name, tolerance(dtype))


def test_conv():
    """Each path by itself, first and second order, the second also without its fused kernel."""
    testing.check_tensor_product_conv(plan(), "triton", dtypes=[torch.float64])


def test_rows():
    small = TensorProductPlan(
        "3x0e+2x1o",
        "0e+1o",
        "2x1o+3x1o+2x0e",
        [(1, 0, 0, "uvu", True), (0, 1, 1, "uvu", True), (1, 1, 2, "uvu", False)],
    )
    testing.check_tensor_product(small, "triton")


@sweep("workload", WORKLOADS, ["mace-l1", "mace-medium", "nequix-first", "sevennet-0-last"])
def test_workloads(workload):
    """All paths of a named workload, with one or two channels."""
    full = problems.plan(workload)

    def cut(irreps):
        return [(1 + n % 2 if len(irreps) < 12 else 1, ir) for n, (_, ir) in enumerate(irreps)]

    in1 = cut(full.irreps_in1)
    out = [(mul, ir) for mul, (_, ir) in zip(_channels(full, in1), full.irreps_out, strict=True)]
    small = TensorProductPlan(in1, full.irreps_in2, out, [(p.i1, p.i2, p.io, p.mode, p.has_weight) for p in full.paths])
    assert_all_orders(small, graph(3, 2, 3), torch.float32)


def _channels(full, in1):
    """Multiplicity of each output slot of a plan, for other multiplicities of its input."""
    of = {p.io: in1[p.i1][0] for p in full.paths}
    return [of.get(io, 1) for io in range(len(full.irreps_out))]


@pytest.mark.parametrize("dtype", HALF, ids=str)
def test_half_precision_is_for_storage(dtype):
    """One rounding, of the result."""
    assert_all_orders(plan(), graph(), dtype)


@pytest.mark.parametrize("sizes", [(3, 2, 0), (0, 3, 0), (3, 0, 0), (1, 5, 4), (5, 1, 4)])
def test_sizes(sizes):
    """Empty and bipartite graphs; destinations without edges get zeros."""
    assert_all_orders(plan(), graph(*sizes), torch.float32)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_gradients_in_several_kernels(monkeypatch, dtype):
    """The units of an input slot add to one gradient, in full precision."""
    monkeypatch.setattr(rows, "MAX_TERMS", 3)
    other = plan(weight=2.0)  # no other test has compiled it
    assert [unit.adds for unit in rows.backward_units(other)].count(True) == 3
    conv.source.cache_clear()
    conv._kernels.cache_clear()
    assert_all_orders(other, graph(), dtype)


def test_channels_in_several_blocks():
    """More channels than a program takes, and no multiple of a block."""
    wide = TensorProductPlan("131x1o", "1o", "131x0e+131x1e", [(0, 0, 0, "uvu", True), (0, 0, 1, "uvu", True)])
    assert rows.backward_units(wide)[0].mul == 131 and conv.blocks(rows.backward_units(wide)[0]) == 3
    assert_all_orders(wide, graph(), torch.float64)


def test_shared_weights():
    assert_all_orders(plan(), graph(), torch.float64, shared=True)


def test_slices():
    """Rows with a stride, and columns with one."""

    def sliced(t):
        return torch.cat([t, t], 1)[:, : t.shape[1]]

    def spread(t):
        return t.repeat_interleave(2, 1)[:, ::2]

    for layout in (sliced, spread):
        assert_all_orders(plan(), graph(), torch.float64, layout=layout)


@pytest.mark.parametrize(
    "arguments", [("4x0e", "0e", "", []), ("", "", "", []), ("2x1o", "1o", "3x0e", []), ("2x1o", "1o", "2x0e", None)]
)
def test_empty_products(arguments):
    """No paths, components or weights."""
    *irreps, instructions = arguments
    empty = TensorProductPlan(*irreps, [(0, 0, 0, "uvu", False)] if instructions is None else instructions)
    edges = graph()
    x, y, w = (t.requires_grad_() for t in case(empty, edges).operands.values())
    with testing.poisoned():
        out = eqtp.tensor_product_conv(x, y, w, empty, edges, "triton")
        gradients = torch.autograd.grad(out.sum(), (x, y, w))
    testing.assert_close(out, tensor_product_conv.reference(x, y, w, empty, edges))
    testing.assert_close(
        eqtp.tensor_product(x[edges.src], y, w, empty, "triton"), tensor_product.reference(x[edges.src], y, w, empty)
    )
    assert all(t.isfinite().all() for t in gradients)


def points():
    xyz = testing.random(6, 3, seed=1).bfloat16().double()
    xyz[2] = 0.0
    xyz[3] *= 2.0**-40
    return xyz


def assert_harmonics(degrees, normalize, normalization="integral", dtype=torch.float64):
    def orders(backend, dtype):
        xyz = points().to(dtype).requires_grad_()
        out = eqtp.spherical_harmonics(degrees, xyz, normalize, normalization, backend)
        g, c = (testing.random(*shape, seed=n).bfloat16().to(dtype) for n, shape in ((2, out.shape), (3, xyz.shape)))
        if max(degrees) == 0 and backend == "reference":  # a constant
            return [out, torch.zeros_like(xyz), torch.zeros_like(g), torch.zeros_like(xyz)]
        (gradient,) = torch.autograd.grad(out, xyz, g.requires_grad_(), create_graph=True)
        return [out, gradient, *torch.autograd.grad(gradient, (g, xyz), c, materialize_grads=True)]

    with testing.poisoned():
        actual = orders("triton", dtype)
    for n, (a, b) in enumerate(zip(actual, orders("reference", torch.float64), strict=True)):
        for i in range(len(points())):  # the gradients at a short vector are larger
            testing.assert_close(a[i], b[i], f"order {n}, point {i}", tolerance(dtype))


@sweep("lmax", range(7), range(4))
@pytest.mark.parametrize("normalize", [True, False])
def test_harmonics(lmax, normalize):
    for dtype in FULL:
        assert_harmonics(list(range(lmax + 1)), normalize, dtype=dtype)


@pytest.mark.parametrize("normalization", ["component", "norm"])
@pytest.mark.parametrize("degrees", [[2, 0, 2], [3], [4, 1]], ids=str)
def test_harmonics_of_some_degrees(degrees, normalization):
    assert_harmonics(degrees, True, normalization)


@pytest.mark.parametrize("dtype", HALF, ids=str)
def test_harmonics_in_half_precision(dtype):
    xyz = points().to(dtype)
    for normalize in (True, False):
        out = eqtp.spherical_harmonics([0, 1, 2, 3], xyz, normalize, backend="triton")
        expected = spherical_harmonics.reference([0, 1, 2, 3], xyz.double(), normalize, "integral")
        keep = xyz.abs().sum(1) >= torch.finfo(dtype).tiny  # others count as zero
        testing.assert_close(out[keep], expected[keep], tolerance=tolerance(dtype))


def test_harmonics_of_extreme_vectors():
    """Short, long, infinite; all but Y_0 are NaN where the vector is not finite."""
    for dtype in FULL:
        info = torch.finfo(dtype)
        lengths = torch.tensor([info.tiny, 1e-30, 1e30, info.max / 4, torch.inf, torch.nan], dtype=dtype)
        xyz = (
            testing.random(1, 3, seed=5).sign().to(dtype)
            * torch.tensor([0.6, 0.5, 1.0], dtype=dtype)
            * lengths[:, None]
        )
        out = eqtp.spherical_harmonics([0, 1, 2, 3], xyz, True, backend="triton")
        expected = spherical_harmonics.reference([0, 1, 2, 3], xyz, True, "integral")
        torch.testing.assert_close(out, expected, equal_nan=True)
        assert out[-2:, 1:].isnan().all() and not out[:-2].isnan().any() and not out[:, 0].isnan().any()


REFERENCES = {
    "segment_sum": segment_sum.reference,
    "segment_max": segment_max.reference,
    "segment_softmax": segment_softmax.reference,
}


def segment_orders(op, x, edges, g):
    x, g = x.clone().requires_grad_(), g.clone().requires_grad_()
    out = op(x, edges)
    (gradient,) = torch.autograd.grad(out, x, g, create_graph=True)
    return [out, gradient, *torch.autograd.grad(gradient.square().sum(), (x, g), materialize_grads=True)]


@pytest.mark.parametrize("op", REFERENCES)
@pytest.mark.parametrize("dtype", [*FULL, *HALF], ids=str)
@pytest.mark.parametrize("columns", [1, 5, 130])
def test_segments(op, dtype, columns):
    edges = graph(3, 6, 11)

    def ours(x, edges):
        return getattr(eqtp, op)(x, edges, backend="triton")

    x = testing.random(11, columns, seed=1).bfloat16().to(dtype)
    x[4] = x[7]  # equal values
    g = testing.random(*REFERENCES[op](x, edges).shape, seed=2).bfloat16().to(dtype)
    half = dtype in HALF
    with testing.poisoned():
        actual = [ours(x, edges)] if half else segment_orders(ours, x, edges, g)
    expected = (
        [REFERENCES[op](x.double(), edges)] if half else segment_orders(REFERENCES[op], x.double(), edges, g.double())
    )
    for a, b in zip(actual, expected, strict=True):
        assert a.dtype == dtype
        testing.assert_close(a, b, tolerance=tolerance(dtype))


@pytest.mark.parametrize("op", ["segment_max", "segment_softmax"])
def test_segments_that_are_masked_or_not_numbers(op):
    edges = eqtp.Graph(torch.zeros(8, dtype=torch.int64), torch.tensor([0, 0, 1, 1, 2, 2, 3, 3]), 1, 5)
    x = testing.random(8, 2)
    x[0], x[2], x[3], x[4], x[6] = -torch.inf, -torch.inf, -torch.inf, torch.nan, torch.inf
    ours = getattr(eqtp, op)(x, edges, backend="triton")
    torch.testing.assert_close(ours, REFERENCES[op](x, edges), equal_nan=True)
    assert ours.isnan().any()


def test_segments_without_edges_or_columns():
    for sizes, columns in (((3, 4, 0), 2), ((3, 0, 0), 2), ((3, 4, 5), 0)):
        edges = graph(*sizes)
        for op, reference in REFERENCES.items():
            x = testing.random(sizes[2], columns)
            with testing.poisoned():
                assert torch.equal(getattr(eqtp, op)(x, edges, backend="triton"), reference(x, edges))


def test_reasons():
    """A family that is named and cannot run says why."""
    edges, product = graph(), problems.plan("diffdock-l1")
    with pytest.raises(RuntimeError, match="has mode uvw"):
        eqtp.tensor_product_conv(*case(product, edges).operands.values(), product, edges, "triton")
    with pytest.raises(RuntimeError, match="float32, float64, float16 and bfloat16, not float8"):
        eqtp.segment_sum(torch.zeros(5, 1).to(torch.float8_e4m3fn), edges, backend="triton")

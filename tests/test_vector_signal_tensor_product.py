"""vector_signal_tensor_product: its coefficients are 9j symbols; which paths its legs couple; parity, derivatives,
weights, errors."""

import itertools
import math
import re

import pytest
import torch
from programs import check_weights_and_broadcasting
from sympy.physics.wigner import wigner_9j

from eqtp import testing
from eqtp.math import sphere as tables
from eqtp.math import vector_signals as vectors
from eqtp.math.so3 import gaunt, wigner_3j
from eqtp.ops.vector_signal_tensor_product import signals, vector_signal_tensor_product

ALL_LEGS = list(itertools.product(vectors.LEGS, repeat=3))


def coefficients(*shape_and_lmax, seed=0):
    *shape, lmax = shape_and_lmax
    return testing.random(*shape, (lmax + 1) ** 2, seed=seed)


def path_coefficients(lmax1, lmax2, lmax_out, legs, **options):
    """(j1, j2, j3) -> c of each path; fails unless the product is c w3j(j1, j2, j3)."""
    eyes = [torch.eye((l + 1) ** 2, dtype=torch.float64) for l in (lmax1, lmax2)]
    out = vector_signal_tensor_product(eyes[0][:, None], eyes[1], lmax_out, legs=legs, **options).numpy()
    found = {}
    for j1, j2, j3 in itertools.product(range(lmax1 + 1), range(lmax2 + 1), range(lmax_out + 1)):
        block = out[j1 * j1 : (j1 + 1) ** 2, j2 * j2 : (j2 + 1) ** 2, j3 * j3 : (j3 + 1) ** 2]
        if abs(j1 - j2) <= j3 <= j1 + j2:
            w = wigner_3j(j1, j2, j3)
            found[j1, j2, j3] = (block * w).sum()
            assert abs(block - found[j1, j2, j3] * w).max() < 1e-13
        else:
            assert abs(block).max() < 1e-13
    return found


def formula(degrees, legs):
    """sqrt(6 (2 j1 + 1)(2 j2 + 1)(2 j3 + 1)) g {9j}, to the sign."""
    l = [vectors.degree(j, leg) for j, leg in zip(degrees, legs, strict=True)]
    if None in l or not abs(l[0] - l[1]) <= l[2] <= l[0] + l[1] or sum(l) % 2:
        return 0.0
    g = (gaunt(*l) * wigner_3j(*l)).sum()
    return math.sqrt(6 * math.prod(2 * j + 1 for j in degrees)) * g * abs(float(wigner_9j(*l, 1, 1, 1, *degrees)))


@pytest.mark.parametrize("legs", ALL_LEGS, ids=str)
def test_coefficients_are_9j_symbols(legs):
    for degrees, c in path_coefficients(4, 4, 4, legs).items():
        if tuple(sorted(degrees)) == degrees or degrees[0] > degrees[2]:  # half of them: the symbols take long
            assert abs(c) == pytest.approx(formula(degrees, legs), rel=1e-12, abs=1e-13)
        assert c == pytest.approx((vectors.coupling(degrees, legs) * wigner_3j(*degrees)).sum(), rel=1e-12, abs=1e-13)


def test_which_paths_the_legs_couple():
    coupled = {legs: {p for p, c in path_coefficients(3, 3, 4, legs).items() if abs(c) > 1e-10} for legs in ALL_LEGS}
    paths = [p for p in itertools.product(range(4), range(4), range(5)) if abs(p[0] - p[1]) <= p[2] <= p[0] + p[1]]
    assert all(sum(p) % 2 == sum(legs) % 2 for legs in ALL_LEGS for p in coupled[legs])
    assert coupled[-1, -1, -1] == {p for p in paths if sum(p) % 2}
    assert set().union(*coupled.values()) == set(paths) - {(0, 0, 0)}


@pytest.mark.parametrize("degrees", [(0, 0, 0), (1, 3, 2), (4, 2, 7), (2, 2, 0)], ids=str)
def test_degrees_that_differ(degrees):
    for legs in [(-1, -1, -1), (1, 0, -1)]:
        for path, c in path_coefficients(*degrees, legs).items():
            assert c == pytest.approx((vectors.coupling(path, legs) * wigner_3j(*path)).sum(), rel=1e-12, abs=1e-13)


def test_cross_product():
    x1, x2 = (coefficients(5, 1, seed=seed) for seed in (1, 2))
    expected = torch.linalg.cross(x1[:, 1:], x2[:, 1:]) / math.sqrt(4 * math.pi)
    testing.assert_close(vector_signal_tensor_product(x1, x2, 1), torch.nn.functional.pad(expected, (1, 0)))


@pytest.mark.parametrize("legs", [(-1, -1, -1), (1, -1, 0), (0, 1, 1)], ids=str)
def test_values_on_a_grid(legs):
    """The definition itself: values of both vector functions, their cross product, integrals with the third."""
    lmax, lmax_out = (3, 2), 4
    points = tables.grid(*tables.minimal_size(3 + 2 + 4 + 3))

    def table(l):
        return torch.tensor(tables.synthesis(l, points)).flatten(1)

    def values(f):
        return f @ table(round(f.shape[-1] ** 0.5) - 1)

    x1, x2 = coefficients(6, lmax[0], seed=1), coefficients(6, lmax[1], seed=2)
    f1, f2 = (values(signals(x, leg)) for x, leg in zip((x1, x2), legs, strict=False))
    v = values(signals(torch.eye((lmax_out + 1) ** 2, dtype=torch.float64), legs[2]))  # [25, 3, points]
    weight = torch.tensor(points.weight).repeat_interleave(len(points.alpha))
    testing.assert_close(
        torch.einsum("kap,p,map->mk", v, weight, v), torch.eye(25).double() * (torch.arange(25) >= (legs[2] == 0))
    )
    expected = torch.einsum("zap,kap->zk", torch.linalg.cross(f1, f2, dim=1) * weight, v)
    testing.assert_close(vector_signal_tensor_product(x1, x2, lmax_out, legs=legs), expected)


@pytest.mark.parametrize("legs", [(-1, -1, -1), (0, -1, 1), (1, 0, -1), (1, 1, 0)], ids=str)
@pytest.mark.parametrize("p, q", [(1, 1), (1, -1)])
def test_parity(legs, p, q):
    x1, x2 = coefficients(6, 3, seed=1), coefficients(6, 2, seed=2)

    def irreps(lmax, p):
        return [(1, (l, p * (-1) ** l)) for l in range(lmax + 1)]

    def f(a, b):
        return vector_signal_tensor_product(a, b, 4, legs=legs)

    parity = p * q * (-1) ** sum(legs)
    testing.assert_equivariant(f, [(x1, irreps(3, p)), (x2, irreps(2, q))], irreps(4, parity))
    with pytest.raises(AssertionError, match="equivariance under rotation with inversion"):
        testing.assert_equivariant(f, [(x1, irreps(3, p)), (x2, irreps(2, q))], irreps(4, -parity))


@pytest.mark.parametrize("legs", [(-1, -1, -1), (1, 0, 1)], ids=str)
def test_derivatives(legs):
    inputs = (
        coefficients(2, 1, 2, seed=1),
        coefficients(2, 1, seed=2),
        *(testing.random(2, l + 1, seed=l) for l in (2, 1, 3)),
    )
    inputs = tuple(t.requires_grad_() for t in inputs)

    def f(a, b, u, v, w):
        return vector_signal_tensor_product(a, b, 3, legs=legs, w1=u, w2=v, w3=w)

    assert torch.autograd.gradcheck(f, inputs, check_forward_ad=True)
    assert torch.autograd.gradgradcheck(f, inputs)


def test_transforms():
    x = coefficients(4, 2).requires_grad_()

    def f(x):
        return vector_signal_tensor_product(x, x.flip(0), 3)

    results = [
        (out, *torch.autograd.grad(out.sin().sum(), x))
        for out in (torch.compile(f, backend="aot_eager", fullgraph=True)(x), f(x))
    ]
    for a, b in zip(*results, strict=True):
        testing.assert_close(a, b)
    y = coefficients(4, 2, seed=1)

    def g(x):
        return vector_signal_tensor_product(x, y, 3)

    testing.assert_close(
        torch.func.vmap(g, in_dims=1, out_dims=1)(x.detach()[:, None].expand(4, 2, 9)),
        g(x).detach()[:, None].expand(4, 2, 16),
    )
    jacobian = torch.func.jacrev(lambda x: vector_signal_tensor_product(x, y[0], 3))(x[0].detach())
    testing.assert_close(jacobian @ x[0].detach(), vector_signal_tensor_product(x[0], y[0], 3).detach())


def test_opcheck():
    torch.library.opcheck(torch.ops.eqtp.vector_signals.default, (coefficients(2, 3, 2).requires_grad_(), 2, -1, False))
    torch.library.opcheck(torch.ops.eqtp.vector_signals.default, (coefficients(2, 3, 1).requires_grad_(), 2, -1, True))


def test_weights_and_broadcasting():
    check_weights_and_broadcasting(vector_signal_tensor_product)


@pytest.mark.parametrize("lmax", [1, 4, 8, 10])
def test_float32(lmax):
    x1, x2 = coefficients(16, lmax, seed=1), coefficients(16, lmax, seed=2)
    expected = vector_signal_tensor_product(x1, x2, lmax)
    testing.assert_close(vector_signal_tensor_product(x1.float(), x2.float(), lmax), expected, tolerance=1e-6)


@pytest.mark.parametrize("backend", ["native", "reference"])
@pytest.mark.parametrize("method", ["sparse", "grid"])
def test_methods_and_backends(method, backend):
    """With their derivatives, against the third method."""
    case = testing.Case({"x1": coefficients(4, 3, 3, seed=1), "x2": coefficients(4, 1, 2, seed=2)},
                        coefficients(4, 3, 4, seed=3),
                        {"x1": coefficients(4, 3, 3, seed=4), "x2": coefficients(4, 1, 2, seed=5)}, {})  # fmt: skip

    def f(**options):
        return lambda x1, x2: vector_signal_tensor_product(x1, x2, 4, legs=(1, 0, -1), **options)

    testing.check_op(f(method=method, backend=backend), f(method="fourier"), case)


def test_half_precision_is_for_storage():
    x, y = (coefficients(4, 3, seed=seed).bfloat16() for seed in (1, 2))
    assert torch.equal(
        vector_signal_tensor_product(x, y, 3), vector_signal_tensor_product(x.float(), y.float(), 3).bfloat16()
    )


def test_errors():
    x = torch.zeros(2, 9)
    for arguments, options, error, message in (
        ((x[:, :3], x, 2), {}, ValueError, "x1 must be [..., (lmax+1)^2], got [2, 3]"),
        ((x, x.double(), 2), {}, TypeError, "x2 must have the dtype of x1, torch.float32, got torch.float64"),
        ((x, x, -2), {}, ValueError, "lmax_out must be at least 0, got -2"),
        ((x, x, 3), {"w3": torch.ones(3)}, ValueError, "w3 must be [..., 4], got [3]"),
        ((x, x, 3), {"legs": (0, 0, 2)}, ValueError, "legs must be three of -1, 0 and 1, got (0, 0, 2)"),
        ((x, x, 3), {"legs": 1}, ValueError, "legs must be three of -1, 0 and 1, got 1"),
        (
            (x, x, 3),
            {"method": "lebedev"},
            ValueError,
            "method must be one of auto, sparse, grid, fourier, got 'lebedev'",
        ),
    ):
        with pytest.raises(error, match=re.escape(f"vector_signal_tensor_product: {message}")):
            vector_signal_tensor_product(*arguments, **options)

"""gaunt_tensor_product: every route against the others and against functions on the sphere; derivatives, symmetry,
weights, errors."""

import math

import pytest
import torch
from e3nn import o3

import eqtp
from eqtp import testing
from eqtp.math import sphere as tables
from eqtp.math.so3 import gaunt
from eqtp.ops import constants, gaunt_fourier
from eqtp.ops import gaunt_tensor_product as module
from eqtp.ops.gaunt_tensor_product import METHODS, gaunt_tensor_product
from eqtp.plans import signals

DEGREES = [(l, l, 2 * l) for l in (*range(9), 10)] + [(l, l, l) for l in range(1, 11)]
DEGREES += [
    (1, 2, 2),
    (3, 1, 4),
    (2, 5, 3),
    (0, 4, 4),
    (5, 0, 2),
    (4, 6, 9),
    (7, 3, 5),
    (6, 9, 1),
    (10, 8, 13),
    (3, 10, 0),
]


def coefficients(*shape_and_lmax, seed=0, dtype=torch.float64):
    *shape, lmax = shape_and_lmax
    return testing.random(*shape, (lmax + 1) ** 2, seed=seed).to(dtype)


def harmonics(lmax, points=50):
    """Y [points, (lmax+1)^2] at random directions, by e3nn."""
    xyz = testing.random(points, 3, seed=9)
    return o3.spherical_harmonics(list(range(lmax + 1)), xyz, True, "integral")


@pytest.fixture(params=[*METHODS, "fourier, direct", "fourier, FFT", "sparse, native", "grid, native"])
def method(request, monkeypatch):
    """Each route in plain torch, and the kernels of those that have some."""
    name, _, how = request.param.partition(", ")
    if how in ("direct", "FFT"):
        monkeypatch.setattr(gaunt_fourier, "DIRECT_TERMS", math.inf if how == "direct" else 0)
    eqtp.set_backend("native" if how == "native" else "reference")
    yield name
    eqtp.set_backend(None)


@pytest.mark.parametrize("degrees", DEGREES, ids=str)
def test_all_routes_are_equal(degrees):
    lmax1, lmax2, lmax_out = degrees
    x1, x2 = coefficients(3, lmax1, seed=1), coefficients(3, lmax2, seed=2)
    product, bracket = gaunt_tensor_product(x1, x2, lmax_out, method="sparse", odd=True, backend="reference")
    nothing = lmax_out == 0 or not (lmax1 and lmax2)  # the integral of a bracket is zero
    assert nothing != bool(bracket.any())
    kernels = [(method, backend) for method in ("sparse", "grid", "auto") for backend in ("native", "auto")]
    for method, backend in (("grid", "reference"), ("fourier", "reference"), *kernels):
        even, odd = gaunt_tensor_product(x1, x2, lmax_out, method=method, odd=True, backend=backend)
        testing.assert_close(even, product, method, 1e-12)
        testing.assert_close(
            odd + product if nothing else odd, product if nothing else bracket, f"bracket by {method}", 1e-12
        )
        testing.assert_close(
            gaunt_tensor_product(x1, x2, lmax_out, method=method, backend=backend), product, method, 1e-12
        )


def test_couplings_are_those_of_so3(method):
    lmax = 3
    eye = torch.eye((lmax + 1) ** 2, dtype=torch.float64)
    product, bracket = gaunt_tensor_product(eye[:, None], eye, 2 * lmax, method=method, odd=True)
    at = [slice(l * l, (l + 1) ** 2) for l in range(2 * lmax + 1)]
    for l1 in range(lmax + 1):
        for l2 in range(lmax + 1):
            for l3 in range(2 * lmax + 1):
                there = abs(l1 - l2) <= l3 <= l1 + l2
                for out, coupling in ((product, gaunt), (bracket, tables.bracket)):
                    expected = torch.tensor(coupling(l1, l2, l3)) if there else torch.zeros((), dtype=torch.float64)
                    torch.testing.assert_close(
                        out[at[l1], at[l2], at[l3]],
                        expected.expand(2 * l1 + 1, 2 * l2 + 1, 2 * l3 + 1),
                        rtol=0,
                        atol=1e-13,
                    )


@pytest.mark.parametrize("degrees", [(2, 2), (4, 3), (1, 6)])
def test_it_is_the_product_of_the_functions(method, degrees):
    lmax1, lmax2 = degrees
    x1, x2 = coefficients(lmax1, seed=1), coefficients(lmax2, seed=2)
    out = gaunt_tensor_product(x1, x2, lmax1 + lmax2, method=method)
    expected = (harmonics(lmax1) @ x1) * (harmonics(lmax2) @ x2)
    testing.assert_close(harmonics(lmax1 + lmax2) @ out, expected, method, 1e-12)


def test_one_times_one_to_one_is_the_cross_product(method):
    x1, x2 = testing.random(8, 3, seed=1), testing.random(8, 3, seed=2)

    def pad(v):
        return torch.nn.functional.pad(v, (1, 0))

    product, bracket = gaunt_tensor_product(pad(x1), pad(x2), 1, method=method, odd=True)
    cross = math.sqrt(3 / (4 * math.pi)) * torch.linalg.cross(x1, x2)
    torch.testing.assert_close(bracket[:, 1:], cross, rtol=0, atol=4e-15)
    assert product[:, 1:].abs().max() < 4e-15 and bracket[:, 0].abs().max() < 4e-15


@pytest.mark.parametrize("degrees", [(2, 2, 4), (3, 3, 3), (4, 4, 8)])
@pytest.mark.parametrize("fewer", [(2, 0), (0, 4)], ids=["rows", "columns"])
@pytest.mark.parametrize("backend", ["native", "reference"])
def test_a_smaller_grid_is_wrong(monkeypatch, degrees, fewer, backend):
    """A folded grid loses two rows or four columns at a time."""
    lmax1, lmax2, lmax_out = degrees
    x1, x2 = coefficients(lmax1, seed=1), coefficients(lmax2, seed=2)
    expected = gaunt_tensor_product(x1, x2, lmax_out, method="sparse")
    rows, columns = tables.folded_size(sum(degrees))
    monkeypatch.setattr(tables, "folded_size", lambda degree: (rows - fewer[0], columns - fewer[1]))
    monkeypatch.setattr(signals, "product", signals.product.__wrapped__)  # which caches programs
    assert (
        testing.relative_error(gaunt_tensor_product(x1, x2, lmax_out, method="grid", backend=backend), expected) > 0.01
    )


@pytest.mark.parametrize("parities", [(1, 1), (1, -1), (-1, -1)])
def test_equivariance(method, parities):
    p, q = parities

    def irreps(lmax, p):
        return [(1, (l, p * (-1) ** l)) for l in range(lmax + 1)]

    inputs = [(coefficients(5, 3, seed=1), irreps(3, p)), (coefficients(5, 2, seed=2), irreps(2, q))]

    def f(a, b):
        return torch.cat(gaunt_tensor_product(a, b, 4, method=method, odd=True), -1)

    testing.assert_equivariant(f, inputs, irreps(4, p * q) + irreps(4, -p * q))


@pytest.mark.parametrize("lmax", [1, 2, 4, 6, 8, 10])
def test_float32(method, lmax):
    x1, x2 = coefficients(4, lmax, seed=1), coefficients(4, lmax, seed=2)
    expected = gaunt_tensor_product(x1, x2, 2 * lmax, method="sparse", odd=True)
    found = gaunt_tensor_product(x1.float(), x2.float(), 2 * lmax, method=method, odd=True)
    for a, b in zip(found, expected, strict=True):
        assert a.dtype == torch.float32
        testing.assert_close(a, b, f"lmax {lmax}", 1e-6)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_for_storage(dtype):
    x1, x2 = coefficients(4, 3, dtype=dtype), coefficients(4, 3, seed=1, dtype=dtype)
    for a, b in zip(
        *(gaunt_tensor_product(x, y, 4, odd=True) for x, y in ((x1, x2), (x1.float(), x2.float()))), strict=True
    ):
        assert a.dtype == dtype and torch.equal(a, b.to(dtype))


def test_derivatives(method):
    x1, x2 = coefficients(2, 1, 2, seed=1), coefficients(2, 1, seed=2)
    w1, w2, w3 = testing.random(3, seed=3), testing.random(2, 2, seed=4), testing.random(1, 4, seed=5)
    inputs = tuple(t.requires_grad_() for t in (x1, x2, w1, w2, w3))

    def f(a, b, u, v, w):
        return torch.cat(gaunt_tensor_product(a, b, 3, method=method, w1=u, w2=v, w3=w, odd=True), -1)

    assert torch.autograd.gradcheck(f, inputs, check_forward_ad=True)
    assert torch.autograd.gradgradcheck(f, inputs)


def test_third_derivative_and_vmap(method):
    x = coefficients(3, 2, seed=1)

    def f(x):
        return (gaunt_tensor_product(x, x, 2, method=method) ** 2).sum()

    def third(f):
        return torch.func.vmap(torch.func.jacrev(torch.func.jacrev(torch.func.grad(f))))(x)

    dense = torch.tensor(tables.coupling(2, 2, 2))
    expected = third(lambda x: (torch.einsum("i,j,ijk->k", x, x, dense) ** 2).sum())
    testing.assert_close(third(f), expected, method, 1e-12)


def test_weights_scale_each_degree(method):
    x1, x2 = coefficients(4, 5, 3, seed=1), coefficients(4, 5, 2, seed=2)
    w1, w2, w3 = testing.random(5, 4, seed=3), testing.random(3, seed=4), testing.random(4, 1, 5, seed=5)

    def spread(w):
        return torch.cat([w[..., l : l + 1].expand(*w.shape[:-1], 2 * l + 1) for l in range(w.shape[-1])], -1)

    found = gaunt_tensor_product(x1, x2, 4, method=method, w1=w1, w2=w2, w3=w3, odd=True)
    plain = gaunt_tensor_product(x1 * spread(w1), x2 * spread(w2), 4, method=method, odd=True)
    for a, b in zip(found, plain, strict=True):
        testing.assert_close(a, b * spread(w3), method)


@pytest.mark.parametrize(
    "shapes", [((), ()), ((4,), ()), ((), (4,)), ((7, 1), (3,)), ((2, 1, 3), (5, 1)), ((0, 3), (3,))], ids=str
)
def test_leading_dimensions_broadcast(method, shapes):
    x1, x2 = coefficients(*shapes[0], 2, seed=1), coefficients(*shapes[1], 3, seed=2)
    shape = torch.broadcast_shapes(*shapes)
    full = gaunt_tensor_product(x1.expand(*shape, 9).contiguous(), x2.expand(*shape, 16).contiguous(), 4, method=method)
    found = gaunt_tensor_product(x1, x2, 4, method=method)
    assert found.shape == (*shape, 25)
    testing.assert_close(found, full, method)


def test_degrees_that_cannot_be_reached_are_zero(method):
    x1, x2 = coefficients(2, 2, seed=1), coefficients(2, 1, seed=2)
    for wide, narrow in zip(
        *(gaunt_tensor_product(x1, x2, lmax, method=method, odd=True) for lmax in (5, 3)), strict=True
    ):
        assert torch.equal(wide[:, :16], narrow) and wide.shape == (2, 36) and not wide[:, 16:].any()


def test_tables_made_in_inference_mode_serve_training(method):
    constants._table.cache_clear()
    x = coefficients(2, 2)
    with torch.inference_mode():
        gaunt_tensor_product(x, x, 2, method=method, odd=True)
    a = x.clone().requires_grad_()
    torch.cat(gaunt_tensor_product(a, a, 2, method=method, odd=True)).sum().backward()
    assert a.grad.abs().sum() > 0


def test_compiles_in_one_graph(method):
    x1, x2 = (coefficients(4, lmax, seed=lmax).requires_grad_() for lmax in (2, 3))

    def f(a, b):
        return torch.cat(gaunt_tensor_product(a, b, 3, method=method, odd=True), -1)

    compiled = torch.compile(f, backend="aot_eager", fullgraph=True)
    results = [(out, *torch.autograd.grad(out.sin().sum(), (x1, x2))) for out in (compiled(x1, x2), f(x1, x2))]
    for a, b in zip(*results, strict=True):
        testing.assert_close(a, b, method)


def test_auto_takes_the_rule(monkeypatch):
    taken = []

    def record(name, route):
        return lambda *a: taken.append(name) or route(*a)

    monkeypatch.setattr(module, "ROUTES", {name: record(name, route) for name, route in module.ROUTES.items()})
    for lmax1, lmax2 in ((2, 2), (2, 3), (3, 0), (8, 8)):
        gaunt_tensor_product(coefficients(lmax1), coefficients(lmax2), 2, backend="reference")
    assert taken == ["sparse", "grid", "sparse", "grid"]
    x = torch.zeros(1)

    def rule(*degrees):
        return module.choose("gaunt_tensor_product", "auto", "native", degrees, x)

    assert [rule(3, 3), rule(4, 1), rule(4, 2)] == [("sparse", "native"), ("sparse", "native"), ("grid", "native")]


X = torch.zeros(2, 9)


@pytest.mark.parametrize(
    ("arguments", "options", "error", "message"),
    [
        ((None, X, 2), {}, TypeError, "x1 must be a tensor, got NoneType"),
        ((X.long(), X, 2), {}, TypeError, "x1 must be floating point, got torch.int64"),
        ((X, X[:, :8], 2), {}, ValueError, r"x2 must be \[..., \(lmax\+1\)\^2\], got \[2, 8\]"),
        ((X, X[0, 0], 2), {}, ValueError, r"x2 must be \[..., \(lmax\+1\)\^2\], got \[\]"),
        ((X, X.double(), 2), {}, TypeError, "x2 must have the dtype of x1, torch.float32, got torch.float64"),
        ((X, X.to("meta"), 2), {}, ValueError, "x2 must be on the device of x1, cpu, got meta"),
        (
            (X, X.expand(3, 1, 2, 9)[..., :1, :].expand(3, 1, 3, 9), 2),
            {},
            ValueError,
            r"leading dimensions do not broadcast: x1 \[2, 9\], x2",
        ),
        ((X, X, 2.0), {}, TypeError, "lmax_out must be an integer, got float"),
        ((X, X, True), {}, TypeError, "lmax_out must be an integer, got bool"),
        ((X, X, -1), {}, ValueError, "lmax_out must be at least 0, got -1"),
        ((X, X, 2), {"method": "fft"}, ValueError, "method must be one of auto, sparse, grid, fourier, got 'fft'"),
        ((X, X, 2), {"w1": 2.0}, TypeError, "w1 must be a tensor or None, got float"),
        ((X, X, 3), {"w3": torch.ones(3)}, ValueError, r"w3 must be \[..., 4\], got \[3\]"),
        ((X, X, 3), {"w2": torch.ones(3).double()}, TypeError, "w2 must have the dtype of x1"),
        ((X, X, 3), {"w2": torch.ones(3, 3)}, ValueError, "leading dimensions do not broadcast"),
    ],
)
def test_errors(arguments, options, error, message):
    with pytest.raises(error, match=rf"^gaunt_tensor_product: .*{message}"):
        gaunt_tensor_product(*arguments, **options)


def test_backends():
    expected = gaunt_tensor_product(X, X, 2)
    assert torch.equal(gaunt_tensor_product(X, X, 2, backend="native"), expected)
    for name in ("jit", "triton"):
        with pytest.raises(RuntimeError, match=f"backend '{name}' cannot run this: .* the tensors are on cpu"):
            gaunt_tensor_product(X, X, 2, backend=name)
    with pytest.raises(RuntimeError, match="there are no kernels for the method 'fourier'"):
        gaunt_tensor_product(X, X, 2, method="fourier", backend="native")
    with pytest.raises(ValueError, match=r"backend must be one of auto, .*, got 'cuda'"):
        gaunt_tensor_product(X, X, 2, backend="cuda")

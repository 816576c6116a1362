"""gaunt_convolution and so2_convolution: the two routes, e3nn's convolution, derivatives along the axes and between the
charts, errors."""

import pytest
import torch
from e3nn import o3

import eqtp
from eqtp import testing
from eqtp.math import so2
from eqtp.ops.gaunt_convolution import (
    frame,
    gaunt_convolution,
    so2_convolution,
    so2_path_weights,
    so2_paths,
    so2_weights,
    wigner,
)
from eqtp.ops.gaunt_tensor_product import gaunt_tensor_product

AXES = [
    [0, 1, 0],
    [0, -1, 0],
    [1, 0, 0],
    [-1, 0, 0],
    [0, 0, 1],
    [0, 0, -1],
    [0.6, 0, 0.8],
    [1, 1e-9, 0],
    [1, -1e-9, 0],
    [1e-9, -1, 0],
    [3, -4, 5],
]
# lmax, lmax_filter, lmax_out
DEGREES = [
    (2, 2, 2),
    (3, 4, 2),
    (2, 5, 4),
    (0, 2, 2),
    (3, 2, 0),
    (4, 8, 4),
    (2, 1, 3),
    (8, 8, 8),
]


def edges(random=6):
    """[e, 1, 3]: along all axes, on both sides of the boundary of the charts, and anywhere."""
    return torch.cat([torch.tensor(AXES, dtype=torch.float64), testing.random(random, 3, seed=7)])[:, None]


def features(*shape_and_lmax, seed=0):
    *shape, lmax = shape_and_lmax
    return testing.random(*shape, (lmax + 1) ** 2, seed=seed)


def natural(lmax, p=1):
    return [(1, (l, p * (-1) ** l)) for l in range(lmax + 1)]


def harmonics(lmax, r, normalization):
    """Of edges [e, 1, 3] by e3nn, [e, (lmax+1)^2]."""
    return o3.spherical_harmonics(list(range(lmax + 1)), r[:, 0], True, normalization)


@pytest.mark.parametrize("degrees", DEGREES, ids=str)
@pytest.mark.parametrize("method", ["product", "rotated", "auto"])
def test_it_is_the_product_with_the_harmonics(degrees, method):
    lmax, lmax_filter, lmax_out = degrees
    r = edges()
    x, h = features(len(r), 2, lmax), testing.random(len(r), 2, lmax_filter + 1, seed=1)
    y = harmonics(lmax_filter, r, "integral")[:, None]
    for weights in (h, None):
        expected = gaunt_tensor_product(x, y, lmax_out, method="sparse", w2=weights, odd=True)
        found = gaunt_convolution(x, r, lmax_out, lmax_filter=lmax_filter, h=weights, method=method, odd=True)
        plain = gaunt_convolution(x, r, lmax_out, lmax_filter=lmax_filter, h=weights, method=method)
        testing.assert_close(plain, expected[0], method, 1e-12)
        testing.assert_close(found[0], expected[0], method, 1e-12)
        if lmax and lmax_out:
            testing.assert_close(found[1], expected[1], f"bracket by {method}", 1e-12)
        else:  # of a constant, or its mean
            assert not expected[1].any() and found[1].abs().max() < 1e-13


def test_the_filter_has_all_degrees_that_matter_by_default():
    r, x = edges(), features(1, 2, 2)
    wide = gaunt_convolution(x, r, 3, lmax_filter=9)
    for method in ("product", "rotated"):
        testing.assert_close(gaunt_convolution(x, r, 3, method=method), wide, method, 1e-12)
    assert testing.relative_error(gaunt_convolution(x, r, 3, lmax_filter=4), wide) > 0.01


@pytest.mark.parametrize("degrees", DEGREES, ids=str)
def test_so2_is_the_convolution_of_e3nn(e3nn64, degrees):
    """Channelwise (uvu), a weight for each path, edge and channel, odd paths included."""
    lmax, lmax_filter, lmax_out = degrees
    if lmax > 6:
        lmax, lmax_filter, lmax_out = 6, 12, 6
    paths, channels, r = so2_paths(lmax, lmax_out, lmax_filter), 2, edges(2)

    def irreps(mul, l):
        return [(mul, (n, 1)) for n in range(l + 1)]

    product = o3.TensorProduct(
        irreps(channels, lmax), irreps(1, lmax_filter), irreps(channels, lmax_out),
        [(*path, "uvu", True) for path in paths],
        irrep_normalization="component", path_normalization="none", shared_weights=False,
    )  # fmt: skip
    x, w = features(len(r), channels, lmax), testing.random(len(r), channels, len(paths), seed=1)

    def by_degree(t):
        return torch.cat([t[..., l * l : (l + 1) ** 2].flatten(1) for l in range(round(t.shape[-1] ** 0.5))], -1)

    expected = product(by_degree(x), harmonics(lmax_filter, r, "component"), w.mT.flatten(1))
    out = so2_convolution(x, r, so2_weights(w, lmax, lmax_out, lmax_filter), lmax_out)
    testing.assert_close(by_degree(out), expected, "", 1e-12)


@pytest.mark.parametrize("lmax, lmax_out", [(0, 0), (1, 1), (2, 2), (6, 6), (3, 1), (0, 4), (4, 0), (2, 5)])
def test_weights_of_paths_and_of_orders_are_the_same_in_two_forms(lmax, lmax_out):
    paths = so2_paths(lmax, lmax_out)
    assert set(paths) == {p for p in eqtp.interactability("cg", lmax + lmax_out, lmax_out) if p[0] <= lmax}
    w, v = testing.random(4, len(paths)), testing.random(3, len(paths), seed=1)
    assert so2_weights(w, lmax, lmax_out).shape == w.shape  # a bijection: as many, and back
    testing.assert_close(so2_path_weights(so2_weights(w, lmax, lmax_out), lmax, lmax_out), w)
    testing.assert_close(so2_weights(so2_path_weights(v, lmax, lmax_out), lmax, lmax_out), v)


def test_fewer_filters_are_a_part_of_the_weights():
    lmax, lmax_out, lmax_filter = 3, 2, 2
    every = so2_paths(lmax, lmax_out)
    inside = [n for n, path in enumerate(every) if path[1] <= lmax_filter]
    w = torch.zeros(len(every), dtype=torch.float64)
    w[inside] = testing.random(len(inside))
    assert [every[n] for n in inside] == so2_paths(lmax, lmax_out, lmax_filter)
    narrow = so2_weights(w[inside], lmax, lmax_out, lmax_filter)
    testing.assert_close(narrow, so2_weights(w, lmax, lmax_out))
    testing.assert_close(so2_path_weights(narrow, lmax, lmax_out, lmax_filter), w[inside])


def test_wigner_matrices():
    """They turn harmonics as the rotation turns vectors, in both charts."""
    r = edges()[:, 0]
    rotation = frame(torch.nn.functional.normalize(r, dim=-1))
    eye = torch.eye(3, dtype=torch.float64).expand_as(rotation)
    torch.testing.assert_close(rotation @ rotation.mT, eye, rtol=0, atol=1e-15)
    assert torch.linalg.det(rotation).min() > 0.99
    torch.testing.assert_close(
        (rotation @ r[..., None])[..., 0], r.norm(dim=-1, keepdim=True) * eye[:, 1], rtol=0, atol=2e-15
    )
    v = testing.random(25, 3, seed=2)  # more than the 21 that fix the largest
    for l, d in enumerate(wigner(rotation, 10)):

        def rows(v, l=l):
            return o3.spherical_harmonics(l, v, True, "norm")

        torch.testing.assert_close(rows(v @ rotation.mT), rows(v) @ d.mT, rtol=0, atol=1e-13)


def derivatives(f, r):
    """Value, gradient and second derivative [e, 3, 3] by r of a function that adds over edges."""
    r = r.clone().requires_grad_()
    value = f(r)
    (gradient,) = torch.autograd.grad(value.sum(), r, create_graph=True)
    second = [torch.autograd.grad(gradient[..., i].sum(), r, retain_graph=True)[0] for i in range(3)]
    return value.detach(), gradient.detach(), torch.stack(second, -1)


@pytest.mark.parametrize("degrees", [(2, 3, 2), (3, 6, 3), (1, 2, 4)], ids=str)
def test_derivatives_by_the_edge_are_right_in_every_direction(degrees):
    """Of the rotated forms against those of the product, for every component, up to the second order: the frame leaves
    no trace."""
    lmax, lmax_filter, lmax_out = degrees
    r = torch.cat([edges(), torch.zeros(1, 1, 3)]) * 1.3
    x, h, g = (
        features(len(r), 2, lmax),
        testing.random(len(r), 2, lmax_filter + 1, seed=1),
        features(len(r), 2, lmax_out, seed=2),
    )

    def run(method):
        return lambda r: sum(
            (t * g).sum((-2, -1)) for t in gaunt_convolution(x, r, lmax_out, h=h, method=method, odd=True)
        )

    for found, expected, what in zip(
        derivatives(run("rotated"), r), derivatives(run("product"), r), ("value", "first", "second"), strict=True
    ):
        testing.assert_close(found, expected, what, 1e-11)
        assert what == "value" or not found[-1].any()  # r = 0
    w, eye = (
        testing.random(len(so2_paths(lmax, lmax_out, lmax_filter)), seed=3),
        torch.eye((lmax + 1) ** 2, dtype=torch.float64),
    )
    turned = so2_weights(w, lmax, lmax_out, lmax_filter)
    # of each component, for checks of size
    dense = so2_convolution(eye, torch.tensor([[[0.0, 1, 0]]], dtype=torch.float64), turned, lmax_out)
    assert dense.abs().max() > 0.1
    table = torch.zeros((lmax + 1) ** 2, (lmax_filter + 1) ** 2, (lmax_out + 1) ** 2, dtype=torch.float64)
    for (l1, l2, l3), weight in zip(so2_paths(lmax, lmax_out, lmax_filter), w, strict=True):
        at = [slice(l * l, (l + 1) ** 2) for l in (l1, l2, l3)]
        table[at[0], at[1], at[2]] = weight * (2 * l3 + 1) ** 0.5 * torch.tensor(eqtp.so3.wigner_3j(l1, l2, l3))
    degrees = list(range(lmax_filter + 1))

    def by_table(r):
        return torch.einsum("eci,ezj,ijk,eck->e", x, eqtp.spherical_harmonics(degrees, r, True, "component"), table, g)

    def by_order(r):
        return (so2_convolution(x, r, turned, lmax_out) * g).sum((-2, -1))

    for found, expected, what in zip(
        derivatives(by_order, r), derivatives(by_table, r), ("value", "first", "second"), strict=True
    ):
        testing.assert_close(found, expected, what, 1e-11)


@pytest.mark.parametrize("axis", [[0.0, 1, 0], [0, -1, 0], [1, 0, 0], [0, 0, -1], [0.3, -0.2, 0.5]], ids=str)
def test_gradcheck(axis):
    x, r = features(1, 2, 1).requires_grad_(), torch.tensor([[axis]], dtype=torch.float64, requires_grad=True)
    h, w = (
        testing.random(1, 2, 3, seed=1).requires_grad_(),
        testing.random(2, len(so2_paths(1, 2)), seed=2).requires_grad_(),
    )

    def rotated(x, r, h):
        return torch.cat(gaunt_convolution(x, r, 2, h=h, method="rotated", odd=True), -1)

    for f, inputs in ((rotated, (x, r, h)), (lambda x, r, w: so2_convolution(x, r, w, 2), (x, r, w))):
        assert torch.autograd.gradcheck(f, inputs)
        assert torch.autograd.gradgradcheck(f, inputs)


def test_no_jump_between_the_charts():
    x, h = features(2, 3), testing.random(2, 4, seed=1)
    step = 1e-8
    above, below = (
        gaunt_convolution(x, torch.tensor([[0.6, s * step, 0.8]]).double(), 3, h=h, method="rotated", odd=True)
        for s in (1, -1)
    )
    for a, b in zip(above, below, strict=True):
        assert (a - b).abs().max() < 100 * step


@pytest.mark.parametrize("method", ["product", "rotated"])
def test_equivariance(method):
    x, r, h = features(5, 2), testing.random(5, 3, seed=1), testing.random(5, 4, seed=2)

    def f(x, r):
        return torch.cat(gaunt_convolution(x, r, 3, h=h, method=method, odd=True), -1)

    testing.assert_equivariant(f, [(x, natural(2)), (r, "1o")], natural(3) + natural(3, -1))


def test_so2_equivariance():
    """Each half of the paths under O(3), both together under rotations."""
    x, r, w = features(5, 2), testing.random(5, 3, seed=1), testing.random(len(so2_paths(2, 3)), seed=2)
    odd = torch.tensor([sum(path) % 2 == 1 for path in so2_paths(2, 3)])
    for half, parity in ((odd, -1), (~odd, 1)):
        weights = so2_weights(w * half, 2, 3)
        testing.assert_equivariant(
            lambda x, r, v=weights: so2_convolution(x, r, v, 3), [(x, natural(2)), (r, "1o")], natural(3, parity)
        )


def test_zero_edge():
    """As the harmonics there: only Y_0 is left."""
    zero, x = torch.zeros(1, 1, 3, dtype=torch.float64), features(1, 2, 2)
    h, w = testing.random(2, 4, seed=1), testing.random(len(so2_paths(2, 3)), seed=2)
    for method in ("product", "rotated"):
        even, odd = gaunt_convolution(x, zero, 3, h=h, method=method, odd=True)
        testing.assert_close(even[..., :9], x * h[..., :1] / (4 * torch.pi))
        assert even[..., 9:].abs().max() < 1e-15 and odd.abs().max() < 1e-15
    only = so2_convolution(x, zero, so2_weights(w, 2, 3), 3)
    scale = torch.stack([w[so2_paths(2, 3).index((l, 0, l))] for l in (0, 1, 1, 1, 2, 2, 2, 2, 2)])
    testing.assert_close(only[..., :9], x * scale)
    assert not only[..., 9:].any()
    assert so2.mean(2, 3).shape == (len(so2_paths(2, 3)), 3)


def test_float32_and_half():
    r, x, h = edges(), features(17, 2, 4), testing.random(2, 5, seed=1)
    w = testing.random(len(so2_paths(4, 4)), seed=2)
    runs = [lambda x, r, t=m: gaunt_convolution(x, r, 4, h=h.to(x.dtype), method=t) for m in ("product", "rotated")]
    for f in [*runs, lambda x, r: so2_convolution(x, r, w.to(x.dtype), 4)]:
        expected = f(x, r)
        testing.assert_close(f(x.float(), r.float()), expected, "float32", 2e-6)
        for dtype in (torch.float16, torch.bfloat16):
            assert f(x.to(dtype), r.to(dtype)).dtype == dtype


def test_compile_and_vmap():
    r, x, h = edges(), features(17, 2, 2), testing.random(2, 3, seed=1)
    w = testing.random(len(so2_paths(2, 2)), seed=2)
    for f in (
        lambda x, r: gaunt_convolution(x, r, 2, h=h, method="rotated", odd=True)[1],
        lambda x, r: so2_convolution(x, r, w, 2),
    ):
        testing.assert_close(torch.compile(f, backend="aot_eager", fullgraph=True)(x, r), f(x, r))
        testing.assert_close(torch.func.vmap(f)(x, r), f(x, r))


def test_nothing_is_a_valid_number_of_edges():
    for method in ("product", "rotated"):
        assert gaunt_convolution(torch.zeros(0, 2, 9), torch.zeros(0, 1, 3), 3, method=method).shape == (0, 2, 16)
    assert so2_convolution(torch.zeros(0, 2, 9), torch.zeros(0, 1, 3), torch.zeros(len(so2_paths(2, 3))), 3).shape == (
        0,
        2,
        16,
    )


X, R = torch.zeros(4, 9), torch.ones(4, 3)
W = torch.zeros(len(so2_paths(2, 2)))


@pytest.mark.parametrize(
    "call, error, message",
    [
        (lambda: gaunt_convolution([1.0], R, 2), TypeError, "gaunt_convolution: x must be a tensor, got list"),
        (lambda: gaunt_convolution(X[:, :8], R, 2),
         ValueError, r"gaunt_convolution: x must be \[..., \(lmax\+1\)\^2\], got \[4, 8\]"),
        (lambda: gaunt_convolution(X, R[:, :2], 2),
         ValueError, r"gaunt_convolution: r must be \[..., 3\], got \[4, 2\]"),
        (lambda: gaunt_convolution(X, R.double(), 2),
         TypeError, "gaunt_convolution: r must be floating point, of the dtype of x"),
        (lambda: gaunt_convolution(X, R[:3], 2),
         ValueError, r"gaunt_convolution: the leading dimensions do not broadcast: x \[4, 9\], r \[3, 3\]"),
        (lambda: gaunt_convolution(X, R, 2.0), TypeError, "gaunt_convolution: lmax_out must be an integer, got float"),
        (lambda: gaunt_convolution(X, R, 2, lmax_filter=-1),
         ValueError, "gaunt_convolution: lmax_filter must be at least 0, got -1"),
        (lambda: gaunt_convolution(X, R, 2, lmax_filter=2, h=torch.zeros(2)),
         ValueError, r"gaunt_convolution: h must be \[..., 3\], got \[2\]"),
        (lambda: gaunt_convolution(X, R, 2, h=torch.zeros(())), ValueError, "gaunt_convolution: h must be"),
        (lambda: gaunt_convolution(X, R, 2, method="fourier"),
         ValueError, "gaunt_convolution: method must be one of auto, product, rotated"),
        (lambda: gaunt_convolution(X, R, 2, method="rotated", backend="native"),
         RuntimeError, "no native kernels for gaunt_convolution"),
        (lambda: so2_convolution(X, R, W, 2, backend="native"), RuntimeError, "no native kernels for so2_convolution"),
        (lambda: so2_convolution(X, R, W[1:], 2), ValueError, r"so2_convolution: w must be \[..., 19\], got \[18\]"),
        (lambda: so2_convolution(X, R, None, 2), TypeError, "so2_convolution: w must be a tensor, got NoneType"),
        (lambda: so2_weights(W[1:], 2, 2), ValueError, r"so2_weights: w must be \[..., 19\], got \[18\]"),
        (lambda: so2_path_weights([1.0], 2, 2),
         TypeError, "so2_path_weights: w must be a floating point tensor, got list"),
        (lambda: so2_paths(2, -1), ValueError, "so2_paths: lmax_out must be at least 0, got -1"),
    ],
)  # fmt: skip
def test_errors(call, error, message):
    with pytest.raises(error, match=message):
        call()

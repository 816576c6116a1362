"""Layers of Gaunt products: their formulas, unit variance at first, what rank adds, symmetry, derivatives, errors."""

import copy
import io

import numpy as np
import pytest
import torch
from torch.func import functional_call, jacrev

import eqtp
from eqtp import testing
from eqtp.math.variance import convolution_scale, power_moment, powers_scale, product_scale, product_variance


@pytest.fixture(autouse=True)
def float64():
    torch.set_default_dtype(torch.float64)
    torch.manual_seed(0)
    yield
    torch.set_default_dtype(torch.float32)


def natural(lmax, channels, p=1):
    return [(1, (l, p * (-1) ** l)) for _ in range(channels) for l in range(lmax + 1)]


def shuffled(layer):
    """The layer with other weights than its first."""
    for p in layer.parameters():
        torch.nn.init.normal_(p)
    return layer


def spread(w):
    """A weight for each component, [..., lmax+1] -> [..., (lmax+1)^2]"""
    return torch.cat([w[..., l : l + 1].expand(*w.shape[:-1], 2 * l + 1) for l in range(w.shape[-1])], -1)


def mean_squares(x):
    """Of each degree."""
    return np.array(
        [x[..., l * l : (l + 1) ** 2].detach().square().mean().item() for l in range(round(x.shape[-1] ** 0.5))]
    )


# ---- GauntTensorProduct


@pytest.mark.parametrize("rank", [1, 3])
def test_product_is_a_sum_of_weighted_products(rank):
    layer = shuffled(eqtp.nn.GauntTensorProduct(2, 3, 4, 5, odd=True, rank=rank))
    x1, x2 = torch.randn(7, 5, 9), torch.randn(7, 5, 16)
    expected = [0, 0]
    scales = [torch.tensor(product_scale(2, 3, 4, odd, rank)) for odd in (False, True)]
    for r in range(rank):
        out = eqtp.gaunt_tensor_product(x1 * spread(layer.w1[r]), x2 * spread(layer.w2[r]), 4, odd=True)
        for n, (t, w, s) in enumerate(zip(out, (layer.w3, layer.w3_odd), scales, strict=True)):
            expected[n] = expected[n] + t * spread(w[r] * s)
    for a, b in zip(layer(x1, x2), expected, strict=True):
        testing.assert_close(a, b)
    plain = eqtp.nn.GauntTensorProduct(2, 3, 4, 5, rank=rank)
    plain.load_state_dict({n: t for n, t in layer.state_dict().items() if n != "w3_odd"}, strict=True)
    testing.assert_close(plain(x1, x2), expected[0])


@pytest.mark.parametrize("odd", [False, True])
@pytest.mark.parametrize("lmax", [2, 3])
def test_rank_is_the_dial_between_gaunt_and_clebsch_gordan(lmax, odd):
    """Degrees of freedom: the rank of the derivative of the output by the weights."""
    x1, x2 = torch.randn(2, 6, 1, (lmax + 1) ** 2)  # at lmax 1 there is nothing to add

    def freedom(rank):
        layer = shuffled(eqtp.nn.GauntTensorProduct(lmax, lmax, 2 * lmax, 1, odd=odd, rank=rank))

        def out(p):
            return torch.cat([t.flatten() for t in (lambda y: y if odd else (y,))(functional_call(layer, p, (x1, x2)))])

        jacobian = jacrev(out)(dict(layer.named_parameters()))
        return int(torch.linalg.matrix_rank(torch.cat([t.flatten(1) for t in jacobian.values()], 1), rtol=1e-10))

    every = eqtp.interactability("gaunt+odd" if odd else "gaunt", lmax)
    assert freedom(1) == eqtp.expressivity("gaunt+odd" if odd else "gaunt", lmax)
    assert freedom(1) < freedom(2) <= freedom(len(every)) == len(every)


@pytest.mark.parametrize("lmaxes", [(1, 1, 2), (2, 3, 6), (3, 2, 2)], ids=str)
def test_product_has_unit_variance(lmaxes):
    l1, l2, l3 = lmaxes
    layer = eqtp.nn.GauntTensorProduct(*lmaxes, 8, odd=True)
    product, bracket = layer(torch.randn(4000, 8, (l1 + 1) ** 2), torch.randn(4000, 8, (l2 + 1) ** 2))
    reached = np.arange(l3 + 1) <= l1 + l2
    np.testing.assert_allclose(mean_squares(product), reached, atol=0.06)
    # {f, g} has neither a mean nor the highest degree
    reached = (np.arange(l3 + 1) < l1 + l2) & (np.arange(l3 + 1) > 0)
    np.testing.assert_allclose(mean_squares(bracket), reached, atol=0.06)


def test_sums_of_products_have_unit_variance():
    layer = eqtp.nn.GauntTensorProduct(2, 2, 2, 2000, rank=4)
    np.testing.assert_allclose(mean_squares(layer(torch.randn(20, 2000, 9), torch.randn(20, 2000, 9))), 1, atol=0.1)


def test_variance_is_that_of_the_table():
    dense = eqtp.gaunt_tensor_product(torch.eye(9)[:, None], torch.eye(16), 4)  # [9, 16, 25]
    np.testing.assert_allclose(
        product_variance(2, 3, 4, False), [dense[..., l * l].square().sum() for l in range(5)], rtol=1e-12
    )


# ---- GauntManyBody


def test_many_body_is_a_weighted_sum_of_powers():
    layer = eqtp.nn.GauntManyBody(2, 3, 4, 3, 2)
    x, element = torch.randn(6, 4, 9), torch.tensor([0, 1, 1, 0, 0, 1])
    powers = eqtp.gaunt_many_body(x, 3, 3)
    scale = torch.tensor(powers_scale(2, 3, 3))
    expected = sum(powers[:, :, n] * spread(layer.weight[element][:, :, n] * scale[n]) for n in range(3))
    testing.assert_close(layer(x, element), expected)
    testing.assert_close(layer(x.view(2, 3, 4, 9), element.view(2, 3).int()), expected.view(2, 3, 4, 16))


def test_moments_of_powers():
    """Against products, degree by degree: f^2 has the couplings' mean squares, and those of f^3 come by sampling."""
    c = eqtp.gaunt_tensor_product(torch.eye(9)[:, None], torch.eye(9), 4)  # [9, 9, 25]
    square = 2 * c.square().sum((0, 1)) + torch.einsum("iik->k", c).square()  # E x_i x_j x_m x_n has three pairings
    moment = power_moment(2, 4, 3)
    np.testing.assert_allclose(moment[0], [1, 1, 1, 0, 0], atol=1e-13)
    np.testing.assert_allclose(moment[1], mean_squares(square.sqrt()), rtol=1e-12)
    cube = eqtp.gaunt_many_body(torch.randn(100_000, 9), 4, 3)[:, 2]
    np.testing.assert_allclose(moment[2], mean_squares(cube), rtol=0.1)


def test_many_body_has_unit_variance():
    layer = eqtp.nn.GauntManyBody(2, 7, 500, 3, 2)
    out = layer(torch.randn(200, 500, 9), torch.arange(200) % 2)
    np.testing.assert_allclose(mean_squares(out), [1, 1, 1, 1, 1, 1, 1, 0], atol=0.15)


# ---- GauntConvolution


def convolution_inputs(e=30, channels=3):
    graph = eqtp.Graph(torch.randint(5, (e,)), torch.randint(4, (e,)), 5, 6)  # two nodes without edges
    return torch.randn(5, channels, 9), torch.randn(e, 3), torch.randn(e, channels, 4), graph


def test_convolution_is_a_sum_over_edges():
    layer = shuffled(eqtp.nn.GauntConvolution(2, 3, 4, 3, odd=True, num_neighbors=7))
    x, r, h, graph = convolution_inputs()
    y = eqtp.spherical_harmonics([0, 1, 2, 3], r, True)[:, None]
    edges = eqtp.gaunt_tensor_product((x * spread(layer.w1))[graph.src], y * spread(h), 4, odd=True)
    out = layer(x, r, h, graph)
    scales = [torch.tensor(convolution_scale(2, 3, 4, odd)) / 7**0.5 for odd in (False, True)]
    for a, b, w, s in zip(out, edges, (layer.w3, layer.w3_odd), scales, strict=True):
        expected = torch.stack([(b[graph.dst == n] * spread(w * s)).sum(0) for n in range(6)])
        testing.assert_close(a, expected)
        assert not a[4:].any()
    plain = eqtp.nn.GauntConvolution(2, 3, 4, 3, num_neighbors=7)
    plain.load_state_dict({n: t for n, t in layer.state_dict().items() if n != "w3_odd"}, strict=True)
    testing.assert_close(plain(x, r, h, graph), out[0])
    testing.assert_close(plain(x, r, h[:, :1], graph), plain(x, r, h[:, :1].expand_as(h), graph))


def test_convolution_has_unit_variance():
    e, n = 20_000, 1000
    graph = eqtp.Graph(torch.randint(400, (e,)), torch.arange(e) % n, 400, n)
    layer = eqtp.nn.GauntConvolution(2, 3, 3, 8, odd=True, num_neighbors=e / n)
    product, bracket = layer(torch.randn(400, 8, 9), torch.randn(e, 3), torch.randn(e, 8, 4), graph)
    np.testing.assert_allclose(mean_squares(product), 1, atol=0.1)
    np.testing.assert_allclose(mean_squares(bracket), [0, 1, 1, 1], atol=0.1)


def test_convolution_derivatives_by_the_edges():
    layer = shuffled(eqtp.nn.GauntConvolution(1, 2, 1, 2, odd=True))
    graph = eqtp.Graph(torch.tensor([0, 1, 1]), torch.tensor([1, 0, 1]), 2, 2)
    x, r, h = torch.randn(2, 2, 4), torch.tensor([[0.0, 1, 0], [0.3, -0.5, 1], [0, 0, -2]]), torch.randn(3, 2, 3)

    def f(x, r, h):
        return torch.cat(layer(x, r, h, graph), -1)

    inputs = [t.requires_grad_() for t in (x, r, h)]
    assert torch.autograd.gradcheck(f, inputs) and torch.autograd.gradgradcheck(f, inputs)


# ---- all


def test_equivariance():
    product = shuffled(eqtp.nn.GauntTensorProduct(2, 2, 3, 2, odd=True, rank=2))
    x = torch.randn(5, 36)

    def f(a, b):
        return torch.cat([t.flatten(1) for t in product(a.view(-1, 2, 9), b.view(-1, 2, 9))], 1)

    testing.assert_equivariant(
        f, [(x[:, :18], natural(2, 2)), (x[:, 18:], natural(2, 2, -1))], natural(3, 2, -1) + natural(3, 2)
    )
    many = eqtp.nn.GauntManyBody(2, 3, 2, 3, 1)
    element = torch.zeros(5, dtype=torch.int64)
    testing.assert_equivariant(
        lambda a: many(a.view(5, 2, 9), element).flatten(1), [(x[:, :18], natural(2, 2))], natural(3, 2)
    )
    conv = shuffled(eqtp.nn.GauntConvolution(2, 3, 3, 2, odd=True))
    graph = eqtp.Graph(torch.arange(5), torch.arange(5).roll(1), 5, 5)
    h = torch.randn(5, 2, 4)

    def g(a, r):
        return torch.cat([t.flatten(1) for t in conv(a.view(-1, 2, 9), r, h, graph)], 1)

    testing.assert_equivariant(
        g, [(x[:, :18], natural(2, 2)), (torch.randn(5, 3), "1o")], natural(3, 2) + natural(3, 2, -1)
    )


@pytest.mark.parametrize(
    "make",
    [
        lambda: eqtp.nn.GauntTensorProduct(1, 1, 2, 2, odd=True, rank=2),
        lambda: eqtp.nn.GauntManyBody(1, 2, 2, 2, 3),
        lambda: eqtp.nn.GauntConvolution(1, 1, 2, 2, odd=True),
    ],
)
def test_state(make):
    """Only weights are in a state_dict; copies and files are the same layer; float32 by .float()."""
    layer = shuffled(make())
    assert set(layer.state_dict()) == {n for n, _ in layer.named_parameters()}
    file = io.BytesIO()
    torch.save(layer, file)
    file.seek(0)
    for other in (copy.deepcopy(layer), torch.load(file, weights_only=False)):
        assert repr(other) == repr(layer) and not list(other.buffers())
        assert all(torch.equal(a, b) for a, b in zip(layer.parameters(), other.parameters(), strict=True))
    assert {t.dtype for t in layer.float().parameters()} == {torch.float32}
    assert "2 channels" in repr(layer)


@pytest.mark.parametrize(
    "call, error, message",
    [
        (
            lambda: eqtp.nn.GauntTensorProduct(1, 1, -1, 2),
            ValueError,
            "GauntTensorProduct: lmax_out must be at least 0, got -1",
        ),
        (
            lambda: eqtp.nn.GauntTensorProduct(1, 1.0, 1, 2),
            TypeError,
            "GauntTensorProduct: lmax2 must be an integer, got float",
        ),
        (
            lambda: eqtp.nn.GauntTensorProduct(1, 1, 1, 2, rank=0),
            ValueError,
            "GauntTensorProduct: rank must be at least 1, got 0",
        ),
        (
            lambda: eqtp.nn.GauntTensorProduct(1, 1, 1, 2)(torch.ones(2, 9), torch.ones(2, 4)),
            ValueError,
            r"GauntTensorProduct: x1 must be \[..., 2, 4\], got \[2, 9\]",
        ),
        (
            lambda: eqtp.nn.GauntTensorProduct(1, 1, 1, 2)(torch.ones(2, 4), [1]),
            TypeError,
            "GauntTensorProduct: x2 must be a floating point tensor, got list",
        ),
        (lambda: eqtp.nn.GauntManyBody(1, 1, 2, 0, 1), ValueError, "GauntManyBody: degree must be at least 1, got 0"),
        (
            lambda: eqtp.nn.GauntManyBody(1, 1, 2, 2, 1)(torch.ones(3, 2, 4), torch.zeros(3)),
            TypeError,
            "GauntManyBody: element must be int32 or int64, got torch.float",
        ),
        (
            lambda: eqtp.nn.GauntManyBody(1, 1, 2, 2, 1)(torch.ones(3, 2, 4), torch.zeros(2).long()),
            ValueError,
            r"GauntManyBody: element must be \[3\], got \[2\]",
        ),
        (
            lambda: eqtp.nn.GauntConvolution(1, 1, 1, 2, num_neighbors=0),
            ValueError,
            "GauntConvolution: num_neighbors must be positive, got 0",
        ),
        (
            lambda: eqtp.nn.GauntConvolution(2, 3, 2, 3)(*convolution_inputs()[:3], None),
            TypeError,
            "GauntConvolution: graph must be an eqtp.Graph, got NoneType",
        ),
        (
            lambda: eqtp.nn.GauntConvolution(2, 2, 2, 3)(*convolution_inputs()),
            ValueError,
            r"GauntConvolution: h must be \[..., 30, 3, 3\], got \[30, 3, 4\]",
        ),
        (
            lambda: eqtp.nn.GauntConvolution(1, 3, 2, 3)(*convolution_inputs()),
            ValueError,
            r"GauntConvolution: x must be \[..., 5, 3, 4\], got \[5, 3, 9\]",
        ),
    ],
)
def test_errors(call, error, message):
    with pytest.raises(error, match=message):
        call()


def test_compile():
    product, many = eqtp.nn.GauntTensorProduct(2, 2, 2, 4, odd=True, rank=2), eqtp.nn.GauntManyBody(2, 2, 4, 3, 2)
    conv, graph = (
        eqtp.nn.GauntConvolution(2, 2, 2, 4, odd=True),
        eqtp.Graph(torch.randint(5, (7,)), torch.randint(5, (7,)), 5, 5),
    )
    x, y = torch.randn(2, 5, 4, 9)
    element, r, h = torch.randint(2, (5,)), torch.randn(7, 3), torch.randn(7, 4, 3)
    for f, inputs in (
        (lambda *a: product(*a)[1], (x, y)),
        (many, (x, element)),
        (lambda *a: conv(*a, graph)[1], (x, r, h)),
    ):
        testing.assert_close(torch.compile(f, backend="aot_eager", fullgraph=True)(*inputs), f(*inputs))

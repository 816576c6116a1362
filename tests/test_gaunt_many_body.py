"""gaunt_many_body: powers against products, derivatives, symmetry, errors; reference and native kernels."""

import pytest
import torch

from eqtp import testing
from eqtp.ops.gaunt_many_body import gaunt_many_body
from eqtp.ops.gaunt_tensor_product import gaunt_tensor_product

X = torch.zeros(2, 9)


def coefficients(*shape_and_lmax, seed=0):
    *shape, lmax = shape_and_lmax
    return testing.random(*shape, (lmax + 1) ** 2, seed=seed)


@pytest.mark.parametrize("lmax, lmax_out, degree", [(3, 2, 3), (1, 1, 1), (2, 7, 4), (4, 4, 2), (0, 2, 3)])
@pytest.mark.parametrize("backend", ["native", "reference"])
def test_is_the_product_again_and_again(lmax, lmax_out, degree, backend):
    x = coefficients(2, 3, lmax)
    found = gaunt_many_body(x, lmax_out, degree, backend=backend)
    assert found.shape == (2, 3, degree, (lmax_out + 1) ** 2)
    power, n = x, (lmax_out + 1) ** 2
    for d in range(degree):
        if d:
            power = gaunt_tensor_product(power, x, (d + 1) * lmax, method="sparse")
        testing.assert_close(found[..., d, :], torch.nn.functional.pad(power, (0, n))[..., :n], f"power {d + 1}")


@pytest.mark.parametrize("backend", ["native", "reference"])
def test_derivatives(backend):
    x = coefficients(2, 2).requires_grad_()

    def f(x):
        return gaunt_many_body(x, 2, 3, backend=backend)

    assert torch.autograd.gradcheck(f, x, check_forward_ad=True)
    assert torch.autograd.gradgradcheck(f, x, check_fwd_over_rev=True)


def test_third_derivative_and_vmap():
    x = coefficients(3, 1)

    def third(backend):
        return torch.func.vmap(
            torch.func.jacrev(
                torch.func.jacrev(torch.func.grad(lambda x: gaunt_many_body(x, 2, 3, backend=backend).sin().sum()))
            )
        )(x)

    testing.assert_close(third("native"), third("reference"), "third derivative", 1e-12)


def test_errors():
    for arguments, error, message in (
        ((X[:, :3], 2, 2), ValueError, r"x must be \[..., \(lmax\+1\)\^2\]"),
        ((X, -1, 2), ValueError, "lmax_out must be at least 0"),
        ((X, 2, 0), ValueError, "degree must be at least 1, got 0"),
        ((X, 2, "3"), TypeError, "degree must be an integer, got str"),
    ):
        with pytest.raises(error, match=f"^gaunt_many_body: {message}"):
            gaunt_many_body(*arguments)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_for_storage(dtype):
    x = coefficients(4, 3).to(dtype)
    assert torch.equal(gaunt_many_body(x, 3, 2), gaunt_many_body(x.float(), 3, 2).to(dtype))


@pytest.mark.parametrize("lmax", [1, 2, 3, 4])
def test_float32(lmax):
    x = coefficients(5, lmax)
    testing.assert_close(gaunt_many_body(x.float(), lmax, 4), gaunt_many_body(x, lmax, 4), f"lmax {lmax}", 1e-6)


@pytest.mark.parametrize("backend", ["native", "reference"])
def test_equivariance(backend):
    irreps = [(1, (l, (-1) ** l)) for l in range(3)]

    def f(x):
        return gaunt_many_body(x, 2, 3, backend=backend).flatten(-2)

    testing.assert_equivariant(f, [(coefficients(4, 2), irreps)], irreps * 3)


@pytest.mark.parametrize("backend", ["native", "reference"])
def test_compiles_in_one_graph(backend):
    x = coefficients(4, 2).requires_grad_()

    def f(x):
        return gaunt_many_body(x, 3, 2, backend=backend)

    compiled = torch.compile(f, backend="aot_eager", fullgraph=True)
    for out in (compiled(x), f(x)):
        (gradient,) = torch.autograd.grad(out.sin().sum(), x)
        testing.assert_close(gradient, torch.autograd.grad(f(x).sin().sum(), x)[0], backend)

"""expressivity and interactability: the counts of the literature, and ranks of the maps that the ops themselves compute."""

import numpy as np
import pytest
import torch

from eqtp.expressivity import PRODUCTS, expressivity, interactability
from eqtp.ops.gaunt_tensor_product import gaunt_tensor_product
from eqtp.ops.matrix_tensor_product import matrix_tensor_product


def test_clebsch_gordan():
    assert [expressivity("cg", lmax) for lmax in range(1, 7)] == [6, 19, 44, 85, 146, 231]


@pytest.mark.parametrize("product", ["gaunt", "matrix"])
def test_one_product_has_few_degrees_of_freedom(product):
    assert [expressivity(product, lmax) for lmax in range(7)] == [4 * lmax + 1 for lmax in range(7)]


def test_the_bracket_adds_some():
    assert [expressivity("gaunt+odd", lmax) for lmax in range(1, 7)] == [6 * lmax for lmax in range(1, 7)]


@pytest.mark.parametrize(("lmax", "even", "odd"), [(1, 5, 1), (2, 14, 5), (3, 30, 14)])
def test_which_degrees_meet(lmax, even, odd):
    paths = interactability("cg", lmax)
    assert {p for p in paths if sum(p) % 2 == 0} == interactability("gaunt", lmax) and len(interactability("gaunt", lmax)) == even
    assert len(paths) == even + odd and paths == interactability("gaunt+odd", lmax) == interactability("matrix", lmax)


def test_zeros_of_the_matrix_product():
    assert interactability("cg", 6, 6) - interactability("matrix", 6, 6) == {(3, 5, 5), (5, 3, 5), (5, 5, 3)}
    assert interactability("cg", 4, 4) == interactability("matrix", 4, 4)


def products(x1, x2, lmax_out, w, name):
    if name == "matrix":
        return matrix_tensor_product(x1, x2, lmax_out, w1=w[0], w2=w[1], w3=w[2])
    if name == "gaunt":
        return gaunt_tensor_product(x1, x2, lmax_out, w1=w[0], w2=w[1], w3=w[2])
    even, odd = gaunt_tensor_product(x1, x2, lmax_out, w1=w[0], w2=w[1], odd=True)
    degree = torch.arange(lmax_out + 1).repeat_interleave(2 * torch.arange(lmax_out + 1) + 1)
    return even * w[2][degree] + odd * w[3][degree]


@pytest.mark.parametrize("lmax_out", [1, 2, 4])
@pytest.mark.parametrize("name", ["gaunt", "gaunt+odd", "matrix"])
def test_rank_of_the_op_itself(name, lmax_out):
    """Singular values of the derivative of the whole bilinear map by the weights, at random weights."""
    lmax, rng = 2, torch.Generator().manual_seed(0)
    eye = torch.eye((lmax + 1) ** 2, dtype=torch.float64)
    sizes = [lmax + 1, lmax + 1, lmax_out + 1, lmax_out + 1]
    weights = torch.rand(sum(sizes), generator=rng, dtype=torch.float64) + 0.5
    f = lambda w: products(eye[:, None], eye, lmax_out, w.split(sizes), name).flatten()  # noqa: E731
    singular = np.linalg.svd(torch.autograd.functional.jacobian(f, weights).numpy(), compute_uv=False)
    rank = int((singular > 1e-10 * singular[0]).sum())
    assert rank == expressivity(name, lmax, lmax_out)


def test_errors():
    for function in (expressivity, interactability):
        name = function.__name__
        with pytest.raises(ValueError, match=rf"^{name}: product must be one of {', '.join(PRODUCTS).replace('+', '.')}, got 'CG'"):
            function("CG", 2)
        with pytest.raises(ValueError, match=f"^{name}: lmax and lmax_out must not be negative, got -1 and -2"):
            function("cg", -1)
        with pytest.raises(TypeError, match=f"^{name}: lmax and lmax_out must be integers, got 1.5 and None"):
            function("cg", 1.5)

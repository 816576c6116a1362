"""expressivity and interactability: the counts of the literature, and ranks of the maps that the ops themselves
compute."""

import numpy as np
import pytest
import torch

from eqtp.math.expressivity import PRODUCTS, expressivity, interactability
from eqtp.ops.cg_tensor_product import cg_paths, cg_tensor_product
from eqtp.ops.gaunt_tensor_product import gaunt_tensor_product
from eqtp.ops.matrix_tensor_product import matrix_tensor_product
from eqtp.ops.vector_signal_tensor_product import vector_signal_tensor_product


def test_clebsch_gordan():
    assert [expressivity("cg", lmax) for lmax in range(1, 7)] == [6, 19, 44, 85, 146, 231]


@pytest.mark.parametrize("product", ["gaunt", "matrix"])
def test_one_product_has_few_degrees_of_freedom(product):
    assert [expressivity(product, lmax) for lmax in range(7)] == [4 * lmax + 1 for lmax in range(7)]


def test_the_bracket_adds_some():
    assert [expressivity("gaunt+odd", lmax) for lmax in range(1, 7)] == [6 * lmax for lmax in range(1, 7)]


def test_the_vector_product_complements_gaunt():
    assert [expressivity("vector", lmax) for lmax in range(1, 7)] == [1, *(4 * lmax - 3 for lmax in range(2, 7))]
    for lmax, lmax_out in ((1, None), (3, None), (4, 3)):
        degrees = lmax, lmax_out
        assert interactability("vector", *degrees) == interactability("cg", *degrees) - interactability(
            "gaunt", *degrees
        )


@pytest.mark.parametrize("l", [1, 2, 3])
@pytest.mark.parametrize(
    ("product", "outputs"), [("cg", [0, 1]), ("gaunt", [0]), ("gaunt+odd", [0, 1]), ("matrix", [0, 1]), ("vector", [1])]
)
def test_one_degree_with_itself(product, outputs, l):
    """To one degree there is one path or none; to all, one for each degree of the parity that the product has."""
    found = {l3 for l1, l2, l3 in interactability(product, l) if l1 == l2 == l}
    assert found == {l3 for l3 in range(2 * l + 1) if l3 % 2 in outputs}


@pytest.mark.parametrize(("lmax", "even", "odd"), [(1, 5, 1), (2, 14, 5), (3, 30, 14)])
def test_which_degrees_meet(lmax, even, odd):
    paths = interactability("cg", lmax)
    assert {p for p in paths if sum(p) % 2 == 0} == interactability("gaunt", lmax) and len(
        interactability("gaunt", lmax)
    ) == even
    assert len(paths) == even + odd and paths == interactability("gaunt+odd", lmax) == interactability("matrix", lmax)


def test_zeros_of_the_matrix_product():
    assert interactability("cg", 6, 6) - interactability("matrix", 6, 6) == {(3, 5, 5), (5, 3, 5), (5, 5, 3)}
    assert interactability("cg", 4, 4) == interactability("matrix", 4, 4)


def products(x1, x2, lmax_out, w, name):
    if name != "gaunt+odd":
        product = {
            "matrix": matrix_tensor_product,
            "gaunt": gaunt_tensor_product,
            "vector": vector_signal_tensor_product,
        }[name]
        return product(x1, x2, lmax_out, w1=w[0], w2=w[1], w3=w[2])
    even, odd = gaunt_tensor_product(x1, x2, lmax_out, w1=w[0], w2=w[1], odd=True)
    degree = torch.arange(lmax_out + 1).repeat_interleave(2 * torch.arange(lmax_out + 1) + 1)
    return even * w[2][degree] + odd * w[3][degree]


def test_rank_of_the_weighted_product():
    n = len(cg_paths(2, 2, 2))
    eye = torch.eye(9, dtype=torch.float64)
    jacobian = torch.autograd.functional.jacobian(
        lambda w: cg_tensor_product(eye[:, None], eye, 2, w).flatten(), torch.ones(n, dtype=torch.float64)
    )
    assert np.linalg.matrix_rank(jacobian.numpy()) == n == expressivity("cg", 2, 2)


@pytest.mark.parametrize("lmax_out", [1, 2, 4])
@pytest.mark.parametrize("name", ["gaunt", "gaunt+odd", "matrix", "vector"])
def test_rank_of_the_op_itself(name, lmax_out):
    """Singular values of the derivative of the whole bilinear map by the weights, at random weights."""
    lmax, rng = 2, torch.Generator().manual_seed(0)
    eye = torch.eye((lmax + 1) ** 2, dtype=torch.float64)
    sizes = [lmax + 1, lmax + 1, lmax_out + 1, lmax_out + 1]
    weights = torch.rand(sum(sizes), generator=rng, dtype=torch.float64) + 0.5

    def f(w):
        return products(eye[:, None], eye, lmax_out, w.split(sizes), name).flatten()

    singular = np.linalg.svd(torch.autograd.functional.jacobian(f, weights).numpy(), compute_uv=False)
    rank = int((singular > 1e-10 * singular[0]).sum())
    assert rank == expressivity(name, lmax, lmax_out)


def test_errors():
    for function in (expressivity, interactability):
        name = function.__name__
        with pytest.raises(
            ValueError, match=rf"^{name}: product must be one of {', '.join(PRODUCTS).replace('+', '.')}, got 'CG'"
        ):
            function("CG", 2)
        with pytest.raises(ValueError, match=f"^{name}: lmax and lmax_out must not be negative, got -1 and -2"):
            function("cg", -1)
        with pytest.raises(TypeError, match=f"^{name}: lmax and lmax_out must be integers, got 1.5 and None"):
            function("cg", 1.5)

"""The baselines of `python -m bench products`: published products and contractions calculate what they should."""

import sys
from pathlib import Path

import pytest
import torch

sys.path.append(str(Path(__file__).parents[1]))  # bench is not part of the installed package

import eqtp
from bench import harness, price_of_freedom, product_targets, published
from bench import product_methods as methods
from bench import symmetric_contraction as mace
from eqtp.testing import assert_close, random

pytestmark = pytest.mark.usefixtures("threads", "frozen_heap")
DEGREES = [(1, 1, 2), (2, 3, 4), (3, 2, 5), (4, 4, 8), (3, 3, 3), (0, 0, 0), (2, 1, 0), (6, 6, 6)]


@pytest.mark.parametrize("degrees", DEGREES, ids=str)
@pytest.mark.parametrize("name", published.NAMES)
def test_published_products_are_gaunt_products(name, degrees):
    l1, l2, l3 = degrees
    x1, x2 = (random(3, 2, (l + 1) ** 2, seed=l).requires_grad_() for l in (l1, l2))
    p = published.product(name, *degrees, torch.float64)
    out = p.unpack(p.call(p.pack1(x1), p.pack2(x2)))
    expected = eqtp.gaunt_tensor_product(x1, x2, l3, backend="reference")
    assert_close(out, expected, name, 1e-12)
    g = torch.randn_like(expected)
    for got, want in zip(
        torch.autograd.grad(out, (x1, x2), g), torch.autograd.grad(expected, (x1, x2), g), strict=True
    ):
        assert_close(got, want, f"gradient of {name}", 1e-12)


def test_published_tables_are_made_once_and_sizes_are_those_of_the_papers():
    assert published.product("published-fft", 2, 2, 4, torch.float32) is published.product(
        "published-fft", 2, 2, 4, torch.float32
    )
    assert published.series(4).shape == (5, 9, 9, 2)  # dense: l, m, u, both signs of m
    # (2 L + 1) x (4 L + 2) points
    assert published.product("published-grid", 4, 4, 8, torch.float32).bytes == 4 * 9 * 18
    assert published.product("dense-grid", 4, 4, 8, torch.float32).bytes == 4 * 9 * 17
    assert published.product("dense-grid", 6, 6, 6, torch.float32).bytes == 4 * 10 * 19
    with pytest.raises(ValueError, match="lmax_out must be 0 to 4, got 5"):
        published.product("dense-grid", 2, 2, 5, torch.float32)
    with pytest.raises(ValueError, match="unknown published product 'fft'"):
        published.product("fft", 2, 2, 4, torch.float32)


@pytest.mark.parametrize("lmax, lmax_out, degree", [(1, 1, 2), (2, 1, 3), (3, 1, 3), (2, 2, 3), (1, 0, 4)])
def test_symmetric_contraction_is_the_weighted_powers(lmax, lmax_out, degree):
    contraction = mace.Contraction(lmax, lmax_out, degree, elements=3, channels=2, dtype=torch.float64)
    x, z = random(5, 2, (lmax + 1) ** 2), contraction.z(5)
    expected = mace.powers(x, product_targets.of_nodes(contraction.w, z), lmax_out, degree, "reference")
    assert_close(contraction.contract(x, z, *contraction.operands()), expected, "contraction", 1e-12)


def test_symmetric_contraction_has_the_paths_of_mace():
    """1, 4 and 23 couplings of degrees to 3 to a scalar: the weights that MACE has for them."""
    assert [mace.paths(3, nu, 0)[0].shape[-1] for nu in (1, 2, 3)] == [1, 4, 23]


def test_symmetric_contraction_in_chunks(monkeypatch):
    monkeypatch.setattr(mace, "CHUNK", 2)
    contraction = mace.Contraction(2, 1, 3, 3, 4, torch.float64)
    x, g, z = random(5, 4, 9, seed=1), random(5, 4, 4, seed=2), contraction.z(5)
    whole = x.clone().requires_grad_()
    out = contraction.contract(whole, z, *contraction.operands())
    assert_close(torch.cat(contraction.timed(x, g, "fwd")()), out, "forward", 1e-13)
    assert_close(torch.cat(contraction.timed(x, g, "bwd")()), torch.autograd.grad(out, whole, g)[0], "gradient", 1e-13)


def test_price_of_freedom_says_what_is_missing(monkeypatch, tmp_path):
    price_of_freedom.load.cache_clear()
    problem = methods.Problem("mimo", 1)
    with pytest.raises(harness.Missing, match="--pof PATH"):
        methods.method("pof-grid", problem, torch.float32)
    with pytest.raises(harness.Missing, match="is no checkout of PriceofFreedom"):
        methods.method("pof-grid", problem, torch.float32, pof=str(tmp_path))
    (tmp_path / "freedom" / "tensor_products").mkdir(parents=True)
    (tmp_path / "freedom" / "tensor_products" / "functional.py").write_text("raise ImportError('its own reason')")
    monkeypatch.setitem(sys.modules, "jax", None)
    price_of_freedom.load.cache_clear()
    with pytest.raises(harness.Missing, match="pip install jax e3nn-jax flax"):
        methods.method("pof-grid", problem, torch.float32, pof=str(tmp_path))
    price_of_freedom.load.cache_clear()

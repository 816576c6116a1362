"""Grids, folded transforms, Fourier series and couplings of the Gaunt product, each against something built another
way."""

import itertools
import math

import numpy as np
import pytest
import torch
from e3nn import o3

import eqtp
from eqtp.math import fourier
from eqtp.math import sphere as g
from eqtp.math.so3 import wigner_3j

LMAX = 10
# Tolerances are absolute: the numbers are of order 1 to 10, float64 has eps = 2e-16, and up to some hundred terms are
# summed (1e-13; 1e-12 where signals of 121 coefficients are compared); gradients are up to LMAX times larger, and torch
# divides by the sine near the poles (2e-12).


def directions(beta, alpha):
    """[..., 3] from tensors of angles."""
    return torch.stack((beta.sin() * alpha.sin(), beta.cos() + 0 * alpha, beta.sin() * alpha.cos()), -1)


def angles(points):
    return torch.from_numpy(np.arccos(points.cosine))[:, None], torch.from_numpy(points.alpha)


def test_synthesis_is_e3nn():
    points = g.grid(7, 9, 0.3)
    # [rows, columns, n]
    expected = o3.spherical_harmonics(list(range(LMAX + 1)), directions(*angles(points)), True, "integral")
    np.testing.assert_allclose(g.synthesis(LMAX, points), expected.permute(2, 0, 1), rtol=0, atol=2e-14)


def test_gradients_of_the_synthesis():
    points = g.grid(6, 5, 0.2)
    beta, alpha = (t.expand(6, 5).clone() for t in angles(points))

    def y(b, a):
        return eqtp.spherical_harmonics(list(range(LMAX + 1)), directions(b, a), True, backend="reference")

    one = torch.ones_like(beta)
    down = torch.func.jvp(lambda b: y(b, alpha), (beta,), (one,))[1]  # [rows, columns, n]
    east = torch.func.jvp(lambda a: y(beta, a), (alpha,), (one,))[1] / beta.sin()[..., None]
    for actual, expected in zip(g.synthesis_gradient(LMAX, points), (down, east), strict=True):
        np.testing.assert_allclose(actual, expected.permute(2, 0, 1), rtol=0, atol=2e-12)


@pytest.mark.parametrize("lmax", [0, 1, 5, 20])
def test_harmonics_are_orthonormal(lmax):
    points = g.grid(*g.minimal_size(2 * lmax))
    y = g.synthesis(lmax, points)
    gram = np.einsum("irc,jrc->ij", y * points.weight[:, None], y, optimize=True)
    np.testing.assert_allclose(gram, np.eye(len(y)), rtol=0, atol=1e-13)


def triple(size, l1, l2, l3):
    """Integrals of the harmonics of three degrees on a grid of this size."""
    points = g.grid(*size)
    y = g.synthesis(max(l1, l2, l3), points)
    a, b, c = (y[l * l : (l + 1) ** 2] for l in (l1, l2, l3))
    return np.einsum("irc,jrc,krc->ijk", a, b, c * points.weight[:, None], optimize=True)


@pytest.mark.parametrize("degrees", [(1, 1, 2), (2, 2, 2), (2, 3, 5), (4, 4, 4), (6, 4, 10), (10, 10, 10)])
def test_the_minimal_grid_is_exact_and_minimal(degrees):
    rows, columns = g.minimal_size(sum(degrees))
    expected = g.gaunt(*degrees)
    np.testing.assert_allclose(triple((rows, columns), *degrees), expected, rtol=0, atol=1e-13)
    for fewer in ((rows - 1, columns), (rows, columns - 1)):
        assert np.abs(triple(fewer, *degrees) - expected).max() > 0.01 * np.abs(expected).max()


def test_sizes():
    assert g.minimal_size(16) == (9, 17) and g.folded_size(16) == (10, 20)
    for degree in range(40):
        minimal, folded = g.minimal_size(degree), g.folded_size(degree)
        assert folded[0] % 2 == 0 and 0 <= folded[0] - minimal[0] < 2
        assert folded[1] % 4 == 0 and 0 <= folded[1] - minimal[1] < 4


@pytest.mark.parametrize("lmax", [0, 1, 2, 5, 8])
def test_blocks_hold_every_component_once(lmax):
    take, place = g.blocks(lmax)
    n = (lmax + 1) ** 2
    assert sorted(take[take < n]) == list(range(n)) and np.array_equal(take.flat[place], np.arange(n))
    v = np.random.default_rng(0).normal(size=(1, 3))

    def harmonics(v):
        return o3.spherical_harmonics(list(range(lmax + 1)), torch.from_numpy(v), True, "integral")[0].numpy()

    x, m, y, _ = np.unravel_index(place, take.shape)
    for axis, odd in enumerate((x, y, x ^ (m & 1))):  # under reflections of x, y, z
        np.testing.assert_allclose(
            harmonics(v * np.where(np.arange(3) == axis, -1, 1)), (-1.0) ** odd * harmonics(v), rtol=0, atol=1e-13
        )


def folded_values(lmax, rows, columns, f, kind="legendre"):
    """Values at all images, by the formula in `Fold`: [2, 2, 2, R, Q]."""
    fold = g.fold(lmax, rows, columns)
    take = g.blocks(lmax).take
    x = np.append(f, 0)[take]  # [2, M, 2, K]
    azimuth = fold.turned if kind == "steep" else fold.azimuth
    part = np.zeros((2, 2, 2, rows // 2, columns // 4))
    for m in range(take.shape[1]):
        part[:, m % 2] += np.einsum("xc,ykr,xyk->xyrc", azimuth[:, m], getattr(fold, kind)[m], x[:, m])
    part = {"legendre": part, "slope": part[:, :, ::-1], "steep": part[::-1]}[kind]
    h = np.array([[1, 1], [1, -1]])
    return np.einsum("ax,bp,dy,xpyrc->abdrc", h, h, h, part)


@pytest.mark.parametrize("lmax", [0, 1, 2, 3, 6])
@pytest.mark.parametrize("kind", ["legendre", "slope", "steep"])
def test_folded_synthesis_is_the_dense_one(lmax, kind):
    rows, columns = 8, 12
    points = g.grid(rows, columns, 0.5)
    dense = (g.synthesis(lmax, points), *g.synthesis_gradient(lmax, points))[("legendre", "slope", "steep").index(kind)]
    f = np.random.default_rng(lmax).normal(size=(lmax + 1) ** 2)
    values = folded_values(lmax, rows, columns, f, kind)
    expected = np.einsum("i,irc->rc", f, dense)
    r, c = np.arange(4), np.arange(3)
    for a, b, d in itertools.product(
        range(2), repeat=3
    ):  # a: x -> -x; p stands for z and x at once: b: z -> -z, of which x -> -x is undone
        flips = a ^ b
        column = c if not b else columns // 2 - 1 - c  # alpha -> pi - alpha
        column = column if not flips else -1 - column  # alpha -> -alpha
        row = 4 + r if not d else 3 - r
        np.testing.assert_allclose(
            values[a, b, d], expected[np.ix_(row, column % columns)], rtol=0, atol=1e-12, err_msg=f"{a, b, d}"
        )


@pytest.mark.parametrize("lmax", [0, 1, 2, 3, 6])
def test_octant_matrices_are_the_folded_transforms(lmax):
    rows, columns, n = 8, 16, (lmax + 1) ** 2
    t = g.octant(lmax, rows, columns)
    assert sorted(t.take[t.take < n]) == list(range(n)) and np.array_equal(t.take.flat[t.place], np.arange(n))
    f = np.random.default_rng(lmax).normal(size=n)
    for kind, matrices, flip in (("legendre", t.values, 0), ("slope", t.down, 1), ("steep", t.east, 4)):
        part = np.einsum("spn,sn->sp", matrices, np.append(f, 0)[t.take[np.arange(8) ^ flip]])
        expected = folded_values(lmax, rows, columns, f, kind)
        np.testing.assert_allclose((g.hadamard() @ part).reshape(expected.shape), expected, rtol=0, atol=1e-12)
        if kind == "legendre":  # and back
            back = np.einsum("snp,sp->sn", t.projection, g.hadamard() @ expected.reshape(8, -1))
            np.testing.assert_allclose(back.flat[t.place], f, rtol=0, atol=1e-13)


def test_a_grid_that_does_not_fold():
    for rows, columns in ((7, 12), (8, 10)):
        with pytest.raises(
            ValueError, match=f"a folded grid has even rows and columns in fours, got {rows} x {columns}"
        ):
            g.fold(2, rows, columns)


@pytest.mark.parametrize("lmax", [0, 1, 4, 10])
def test_fourier_series_of_legendre(lmax):
    beta = np.linspace(0.01, 3.1, 11)
    p, series = g.legendre(lmax, np.cos(beta)), fourier.to_fourier(lmax)
    for l in range(lmax + 1):
        for m in range(l + 1):
            wave = np.sin if m % 2 else np.cos
            u = 2 * np.arange(series.shape[-1]) + l % 2
            value = series[m, (l - m) % 2, (l - m) // 2] @ wave(u[:, None] * beta)
            np.testing.assert_allclose(value, p[l, m], rtol=0, atol=1e-13)


@pytest.mark.parametrize("bracket", [False, True])
def test_integrals_of_the_series(bracket):
    lmax, umax = 6, 11
    x, w = np.polynomial.legendre.leggauss(60)
    beta, w = (x + 1) * math.pi / 2, w * math.pi / 2
    p, table = g.legendre(lmax, np.cos(beta)), fourier.from_fourier(lmax, umax, bracket)
    for l in range(lmax + 1):
        for m in range(l + 1):
            u = 2 * np.arange(table.shape[-1]) + (l + bracket) % 2
            wave = np.sin(u[:, None] * beta) if (m + bracket) % 2 else np.cos(u[:, None] * beta)
            expected = np.where(u <= umax, 2 * math.pi * wave @ (w * p[l, m] * (1 if bracket else np.sin(beta))), 0)
            np.testing.assert_allclose(table[m, (l - m) % 2, (l - m) // 2], expected, rtol=0, atol=1e-13)


def test_bracket_is_the_integral():
    """r . (grad f1 x grad f2) from the gradients in space: of harmonics made constant along r, which are tangential."""
    lmax = 4
    points = g.grid(*g.minimal_size(3 * lmax))
    xyz = directions(*angles(points)).reshape(-1, 3)  # [n, 3]

    def harmonics(v):
        return eqtp.spherical_harmonics(list(range(lmax + 1)), v, True, backend="reference")

    grad = torch.func.vmap(torch.func.jacrev(lambda v: harmonics(v[None])[0]))(xyz)  # [n, (lmax+1)^2, 3]
    crossed = torch.linalg.cross(grad[:, :, None], grad[:, None])  # [n, i, j, 3]
    weight = torch.from_numpy(points.weight).repeat_interleave(len(points.alpha))
    integral = torch.einsum("n,na,nija,nk->ijk", weight, xyz, crossed, harmonics(xyz)).numpy()
    at = [slice(l * l, (l + 1) ** 2) for l in range(lmax + 1)]
    for l1, l2, l3 in itertools.product(range(lmax + 1), repeat=3):
        if abs(l1 - l2) <= l3 <= l1 + l2:
            np.testing.assert_allclose(g.bracket(l1, l2, l3), integral[at[l1], at[l2], at[l3]], rtol=0, atol=1e-12)
    # w3j: cross product / sqrt(6)
    np.testing.assert_allclose(g.bracket(1, 1, 1), math.sqrt(18 / (4 * math.pi)) * wigner_3j(1, 1, 1), rtol=1e-15)


@pytest.mark.parametrize(("lmax", "even", "odd"), [(1, 21, 6), (2, 162, 82), (3, 708, 424), (4, 2229, 1512)])
def test_tables_hold_every_coupling(lmax, even, odd):
    for count, half, integral in ((even, False, g.gaunt), (odd, True, g.bracket)):
        t = g.table(lmax, lmax, 2 * lmax, half)
        assert len(t.c) == count and np.all(np.diff(t.k) >= 0)
        dense = g.coupling(lmax, lmax, 2 * lmax, half)
        assert dense.shape == ((lmax + 1) ** 2, (lmax + 1) ** 2, (2 * lmax + 1) ** 2) and np.array_equal(
            dense[t.i, t.j, t.k], t.c
        )
        for l1, l2, l3 in itertools.product(range(lmax + 1), range(lmax + 1), range(2 * lmax + 1)):
            block = dense[l1 * l1 : (l1 + 1) ** 2, l2 * l2 : (l2 + 1) ** 2, l3 * l3 : (l3 + 1) ** 2]
            assert np.array_equal(block, integral(l1, l2, l3)) if abs(l1 - l2) <= l3 <= l1 + l2 else not block.any()


def test_flops_of_the_folded_transforms():
    """From the places of the tables that are not empty."""

    def transform(lmax, rows, columns):
        n, (r, q) = (lmax + 1) ** 2, (rows // 2, columns // 4)
        kinds = (g.blocks(lmax).take < n).any(-1).sum()
        return 2 * n * r + 2 * kinds * r * q + 3 * 8 * r * q

    for degrees in ((4, 4, 8), (8, 8, 16), (6, 6, 6), (0, 3, 3)):
        size = g.folded_size(sum(degrees))
        octant = size[0] * size[1] // 8
        assert g.folded_flops(*degrees) == sum(transform(l, *size) for l in degrees) + 8 * octant
        more = 2 * transform(degrees[0], *size) + 2 * transform(degrees[1], *size) + transform(degrees[2], *size)
        assert g.folded_flops(*degrees, odd=True) == g.folded_flops(*degrees) + more + 24 * octant

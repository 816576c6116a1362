"""wigner_3j and gaunt against e3nn, against quadrature, and against representations built another way."""

import itertools
import math
import subprocess
import sys

import numpy as np
import pytest
import torch
from e3nn import o3
from numpy.polynomial.legendre import leggauss

from eqtp.math.so3 import gaunt, wigner_3j


def triples(lmax, l3max=None):
    for l1, l2 in itertools.product(range(lmax + 1), repeat=2):
        for l3 in range(abs(l1 - l2), min(l1 + l2, lmax if l3max is None else l3max) + 1):
            yield l1, l2, l3


def real_harmonics(lmax, xyz):
    """Orthonormal real spherical harmonics of unit vectors, by Legendre recurrence: list of [n, 2l+1].

    Shares nothing with the code under test.
    """
    x, y, z = xyz.T
    sine, alpha = np.hypot(x, z), np.arctan2(x, z)
    legendre = {(0, 0): np.full(len(xyz), math.sqrt(1 / (4 * math.pi)))}  # normalised P_l^m(cos beta): [n]
    for m in range(lmax + 1):
        if m:
            legendre[m, m] = math.sqrt((2 * m + 1) / (2 * m)) * sine * legendre[m - 1, m - 1]
        for l in range(m + 1, lmax + 1):
            a = math.sqrt((4 * l * l - 1) / (l * l - m * m))
            b = math.sqrt(((l - 1) ** 2 - m * m) / (4 * (l - 1) ** 2 - 1)) if l > m + 1 else 0.0
            legendre[l, m] = a * (y * legendre[l - 1, m] - b * legendre.get((l - 2, m), 0.0))
    out = []
    for l in range(lmax + 1):
        columns = [math.sqrt(2) * np.sin(-m * alpha) * legendre[l, -m] for m in range(-l, 0)]
        columns += [legendre[l, 0]]
        columns += [math.sqrt(2) * np.cos(m * alpha) * legendre[l, m] for m in range(1, l + 1)]
        out.append(np.stack(columns, axis=1))
    return out


def sphere_grid(degree):
    """Product grid exact for polynomials of a degree: unit vectors [n, 3] and weights [n]."""
    cosines, weights = leggauss(degree // 2 + 1)
    angles = 2 * np.pi * np.arange(degree + 1) / (degree + 1)
    sine = np.sqrt(1 - cosines**2)[:, None]
    xyz = np.stack(
        [
            sine * np.sin(angles),
            np.broadcast_to(cosines[:, None], (len(cosines), len(angles))),
            sine * np.cos(angles),
        ],
        axis=-1,
    )
    return xyz.reshape(-1, 3), np.repeat(weights, len(angles)) * 2 * np.pi / len(angles)


def representations(lmax, rotation):
    """D^l with Y(R r) = D Y(r), from the values of the harmonics at turned points: list of [2l+1, 2l+1]."""
    xyz, weights = sphere_grid(2 * lmax)
    turned, plain = real_harmonics(lmax, xyz @ rotation.T), real_harmonics(lmax, xyz)
    return [(a * weights[:, None]).T @ b for a, b in zip(turned, plain, strict=True)]


def random_rotation(seed):
    q, r = np.linalg.qr(np.random.default_rng(seed).standard_normal((3, 3)))
    q = q * np.sign(np.diag(r))
    return q * np.linalg.det(q)


def test_harmonics_of_this_file_are_those_of_e3nn():
    xyz = np.random.default_rng(0).standard_normal((50, 3))
    xyz /= np.linalg.norm(xyz, axis=1, keepdims=True)
    theirs = o3.spherical_harmonics(list(range(9)), torch.from_numpy(xyz), False, "integral").numpy()
    np.testing.assert_allclose(np.concatenate(real_harmonics(8, xyz), axis=1), theirs, rtol=0, atol=1e-12)


def test_equal_to_e3nn():
    """Every triple to l = 6, and a random half of those to l = 11 (e3nn is right to 11)."""
    rng = np.random.default_rng(1)
    chosen = [t for t in triples(11) if max(t) <= 6 or rng.random() < 0.5]
    assert len(chosen) > 400
    for l1, l2, l3 in chosen:
        theirs = o3.wigner_3j(l1, l2, l3, dtype=torch.float64).numpy()
        np.testing.assert_allclose(wigner_3j(l1, l2, l3), theirs, rtol=0, atol=1e-12, err_msg=f"{l1, l2, l3}")


@pytest.mark.parametrize("seed", [0, 1])
def test_invariant_under_rotations_built_from_harmonics(seed):
    lmax = 13
    d = representations(lmax, random_rotation(seed))
    for l in range(lmax + 1):
        np.testing.assert_allclose(d[l] @ d[l].T, np.eye(2 * l + 1), rtol=0, atol=1e-12)
    rng = np.random.default_rng(seed)
    chosen = [t for t in triples(lmax) if max(t) <= 4 or (max(t) >= 12 and rng.random() < 0.3)]
    assert len(chosen) > 100
    for l1, l2, l3 in chosen:
        c = wigner_3j(l1, l2, l3)
        turned = np.tensordot(d[l1], np.tensordot(d[l2], c @ d[l3].T, (1, 1)), (1, 1))
        np.testing.assert_allclose(turned, c, rtol=0, atol=1e-12, err_msg=f"{l1, l2, l3}")


@pytest.mark.parametrize("l1,l2", [(0, 3), (1, 1), (2, 5), (4, 4), (7, 12), (12, 12), (16, 15)])
def test_orthogonal_and_complete(l1, l2):
    """The tensors of all l3, scaled by sqrt(2 l3 + 1), are one orthogonal matrix."""
    blocks = [
        math.sqrt(2 * l3 + 1) * wigner_3j(l1, l2, l3).reshape(-1, 2 * l3 + 1) for l3 in range(abs(l1 - l2), l1 + l2 + 1)
    ]
    q = np.concatenate(blocks, axis=1)
    assert q.shape[0] == q.shape[1]
    np.testing.assert_allclose(q.T @ q, np.eye(len(q)), rtol=0, atol=1e-13)
    np.testing.assert_allclose(q @ q.T, np.eye(len(q)), rtol=0, atol=1e-13)


@pytest.mark.parametrize("degrees", [(12, 12, 12), (12, 7, 9), (20, 20, 20), (30, 25, 17), (40, 40, 40)])
def test_large_degrees_have_norm_one_and_exact_zeros(degrees):
    c = wigner_3j(*degrees)
    assert abs(np.sum(c * c) - 1) < 1e-13
    m1, m2, m3 = np.ogrid[tuple(slice(-l, l + 1) for l in degrees)]
    rule = (abs(m3) == abs(m1) + abs(m2)) | (abs(m3) == abs(abs(m1) - abs(m2)))
    assert np.all(c[~rule] == 0)


def test_zeros_are_exact():
    """Nothing between 0 and 1e-9 to l = 8: counting non-zeros and counting |c| > 1e-9 agree."""
    for degrees in triples(8):
        c = np.abs(wigner_3j(*degrees))
        assert np.count_nonzero(c) == np.count_nonzero(c > 1e-9), degrees


def test_signs_and_small_cases():
    cross = np.zeros((3, 3, 3))
    for i, j, k in [(0, 1, 2), (1, 2, 0), (2, 0, 1)]:
        cross[i, j, k], cross[j, i, k] = 1, -1
    np.testing.assert_allclose(wigner_3j(1, 1, 1), cross / math.sqrt(6), rtol=0, atol=1e-15)
    for l in range(6):
        delta = np.eye(2 * l + 1) / math.sqrt(2 * l + 1)
        np.testing.assert_allclose(wigner_3j(l, l, 0)[:, :, 0], delta, rtol=0, atol=1e-15)
        np.testing.assert_allclose(wigner_3j(l, 0, l)[:, 0, :], delta, rtol=0, atol=1e-15)
        np.testing.assert_allclose(wigner_3j(0, l, l)[0], delta, rtol=0, atol=1e-15)


def test_symmetric_under_permutation_of_the_legs():
    for l1, l2, l3 in triples(5):
        c, sign = wigner_3j(l1, l2, l3), (-1) ** (l1 + l2 + l3)
        np.testing.assert_allclose(wigner_3j(l2, l1, l3), sign * c.transpose(1, 0, 2), rtol=0, atol=1e-15)
        np.testing.assert_allclose(wigner_3j(l3, l1, l2), c.transpose(2, 0, 1), rtol=0, atol=1e-15)


def test_gaunt_is_the_integral():
    lmax, l3max = 8, 8
    xyz, weights = sphere_grid(2 * lmax + l3max)
    y = real_harmonics(lmax, xyz)  # [n, 2l+1] each
    for l1, l2, l3 in triples(lmax, l3max):
        pairs = (y[l1][:, :, None] * y[l2][:, None, :]).reshape(len(xyz), -1)
        integral = (pairs.T @ (weights[:, None] * y[l3])).reshape(gaunt(l1, l2, l3).shape)
        np.testing.assert_allclose(gaunt(l1, l2, l3), integral, rtol=0, atol=1e-13, err_msg=f"{l1, l2, l3}")


def test_gaunt_of_degree_twelve_and_zero_for_odd_sums():
    xyz, weights = sphere_grid(36)
    y = real_harmonics(12, xyz)
    integral = np.einsum("n,ni,nj,nk->ijk", weights, y[12], y[10], y[12], optimize=True)
    np.testing.assert_allclose(gaunt(12, 10, 12), integral, rtol=0, atol=1e-13)
    assert np.all(gaunt(3, 4, 6) == 0) and np.all(gaunt(12, 12, 11) == 0)


@pytest.mark.parametrize("function", [wigner_3j, gaunt])
def test_arguments(function):
    assert function(1, 2, 3) is function(1, 2, np.int64(3))  # cached
    with pytest.raises(ValueError):
        function(1, 2, 3)[0, 0, 0] = 1.0  # read-only
    for bad in [(1, 2, 4), (3, 1, 1), (-1, 1, 1), (0, 0, 1)]:
        with pytest.raises(ValueError, match=rf"^{function.__name__}: degrees must satisfy"):
            function(*bad)
    with pytest.raises(ValueError, match=rf"^{function.__name__}: the degrees must be integers"):
        function(1.0, 1, 1)


def test_quick_from_cold_and_light():
    """All triples to l = 4 under 50 ms, l = 12 under 100 ms; no heavy import."""
    code = """
import sys, time
import eqtp.so3 as so3
import eqtp.plans.plan, eqtp.math.irreps
def seconds(degrees):
    start = time.process_time()
    for d in degrees:
        so3.wigner_3j(*d)
    return time.process_time() - start
low = [(a, b, c) for a in range(5) for b in range(5) for c in range(abs(a - b), min(4, a + b) + 1)]
print(seconds(low), seconds([(12, 12, 12)]), *(m for m in ("scipy", "sympy", "e3nn") if m in sys.modules))
"""
    low, high, *heavy = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    ).stdout.split()
    assert float(low) < 0.05 and float(high) < 0.1
    assert heavy == []

"""Harmonics of high degree: right near the poles, where polynomials are large and (z + i x)^m is tiny."""

import numpy as np
import pytest
import torch

import eqtp
from eqtp import testing
from eqtp.ops.spherical_harmonics import LMAX_FLOAT32


def tolerance(l: int, dtype: torch.dtype) -> float:
    """What the docstring promises."""
    return 1e-5 if dtype == torch.float32 else max(1e-12, 1e-16 * l * l)


def vectors() -> torch.Tensor:
    """[205, 3] of any length, a third of them within 1e-3 of the polar axis, some on it; exact in float32."""
    xyz = testing.random(200, 3, seed=1)
    xyz[:66] *= torch.tensor([1e-3, 1.0, 1e-3])
    xyz[66:130] *= torch.tensor([1e-1, 1.0, 1e-1])
    axes = torch.tensor([[0, 1, 0], [0, -1, 0], [1, 0, 0], [0, 0, 1], [1e-20, 1, 0]], dtype=torch.float64)
    return torch.cat([xyz, axes]).float().double()


def by_angles(l: int, xyz: torch.Tensor) -> np.ndarray:
    """[n, 2 l + 1] in extended precision, "norm": the recursion of the fully normalised Legendre functions, in which
    nothing over- or underflows before its value does."""
    x, y, z = xyz.numpy().astype(np.longdouble).T
    r = np.sqrt(x * x + y * y + z * z)
    t, u, phi = y / r, np.sqrt(x * x + z * z) / r, np.arctan2(x, z)
    out = np.zeros((len(x), 2 * l + 1), np.longdouble)
    top = np.ones_like(t)  # |Y_mm| without its phase, over sqrt(2 m + 1)
    for m in range(l + 1):
        if m:
            top = top * u * np.sqrt(np.longdouble(2 * m - 1) / (2 * m))
        before, now = np.zeros_like(t), top
        for n in range(m + 1, l + 1):
            a, b = np.sqrt(np.longdouble(n * n - m * m)), np.sqrt(np.longdouble((n - 1) ** 2 - m * m))
            before, now = now, ((2 * n - 1) * t * now - b * before) / a
        if m == 0:
            out[:, l] = now
        else:
            out[:, l + m], out[:, l - m] = (np.sqrt(np.longdouble(2)) * now * f(m * phi) for f in (np.cos, np.sin))
    return out


@pytest.mark.parametrize("family", ["native", "reference"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("l", [3, LMAX_FLOAT32, LMAX_FLOAT32 + 1, 60, 188])
def test_values(l, dtype, family):
    if family == "reference" and l > 60:
        pytest.skip("35,721 polynomials in plain torch")
    xyz = vectors()
    out = eqtp.spherical_harmonics(l, xyz.to(dtype), True, "norm", family)
    expected = torch.tensor(by_angles(l, xyz).astype(float))
    assert out.dtype == dtype and out.isfinite().all()
    assert (out.double() - expected).abs().max() <= tolerance(l, dtype) * expected.abs().max()


@pytest.mark.parametrize("l", [LMAX_FLOAT32, LMAX_FLOAT32 + 1, 100, 188])
def test_derivatives(l):
    """float32 against float64: gradient and second order."""

    def orders(dtype):
        xyz = vectors()[:204].to(dtype).requires_grad_()
        out = eqtp.spherical_harmonics(l, xyz, True, "component")
        (first,) = torch.autograd.grad(out, xyz, testing.random(*out.shape, seed=2).to(dtype), create_graph=True)
        (second,) = torch.autograd.grad(first, xyz, testing.random(*first.shape, seed=3).to(dtype))
        return out, first, second

    for a, b in zip(orders(torch.float32), orders(torch.float64), strict=True):
        assert a.dtype == torch.float32
        testing.assert_close(a, b)


def test_solid_harmonics_overflow_only_where_they_are_too_large():
    xyz = torch.tensor([[0.0, 1.5, 0.0], [0.0, 2.0, 0.0], [0.1, 0.2, 0.3]])
    out = eqtp.spherical_harmonics(188, xyz, False, "norm")[:, 188]
    assert out[0].item() == pytest.approx(1.5**188, rel=1e-6) and out[1].isinf() and out[2].abs() < 1e-30

"""Spherical harmonics in memory: shapes, strides, ends of arrays, the same bits on any number of threads, vector
instructions."""

import os
import subprocess
import sys

import pytest
import torch
from test_spherical_harmonics import DTYPES, assert_all_close, by_normalize, harmonics, plain, vectors

from eqtp import testing
from eqtp.backends.native import library
from eqtp.ops.spherical_harmonics import parse_degrees

LEVELS = [1, 3, 4]


@pytest.mark.parametrize("shape", [(0, 3), (1, 3), (31, 3), (33, 3), (3,), (2, 3, 3), (2, 0, 3), (1, 2, 3, 3)], ids=str)
@pytest.mark.parametrize("l", [0, 1, [2, 0, 1], [0, 1, 2, 3], []], ids=str)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_shapes(shape, l, dtype):
    x = testing.random(*shape).to(dtype).requires_grad_()
    with testing.poisoned():
        out = harmonics(l)(x)
        (g,) = torch.autograd.grad(out.sum(), x, create_graph=True)
        (gg,) = torch.autograd.grad(g.sum(), x)
    assert out.requires_grad and out.dtype == g.dtype == gg.dtype == dtype and g.shape == gg.shape == shape
    assert out.shape == (*shape[:-1], sum(2 * d + 1 for d in parse_degrees(l)))
    if not x.numel() or not out.numel():
        return
    y = x.detach().double().requires_grad_()
    expected = plain(l)(y)
    testing.assert_close(out, expected)
    if l == 0:
        assert (g == 0).all() and (gg == 0).all()
        return
    (h,) = torch.autograd.grad(expected.sum(), y, create_graph=True)
    (hh,) = torch.autograd.grad(h.sum(), y)
    testing.assert_close(g, h)
    testing.assert_close(gg, hh)


LAYOUTS = {
    "columns": lambda t: torch.cat([t[:, :1], t, t], dim=1)[:, 1 : 1 + t.shape[1]],
    "every_other_row": lambda t: t.repeat_interleave(2, dim=0)[::2],
    "transposed": lambda t: t.t().contiguous().t(),
    "every_other_column": lambda t: t.repeat_interleave(2, dim=1)[:, ::2],
    "expanded": lambda t: t[:1].expand_as(t),
}


@by_normalize
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("l", [[0, 1], [3, 1]], ids=str)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_strides(l, layout, normalize, dtype):
    """Points, cotangents and the cotangents of the gradient as slices of larger tensors, for all three kernels."""
    columns = sum(2 * d + 1 for d in l)
    inputs = [
        LAYOUTS[layout](t.to(dtype))
        for t in (vectors(21), testing.random(21, columns, seed=1), testing.random(21, 3, seed=2))
    ]

    def results(f, xyz, g, c):
        x, g = xyz.detach().requires_grad_(), g.detach().requires_grad_()
        out = f(l, normalize)(x)
        (gx,) = torch.autograd.grad(out, x, g, create_graph=True)
        return [out, gx, *torch.autograd.grad(gx, (g, x), c)]

    assert not inputs[0].is_contiguous()
    with testing.poisoned():
        ours = results(harmonics, *inputs)
    assert_all_close(ours, results(plain, *(t.double() for t in inputs)))


def test_no_vector_is_read_or_written_beyond_the_last():
    """Rows between NaN: a row more, read or written, would show."""
    for n in (1, 2, 5, 9, 17, 33):
        frame = torch.full((n + 2, 3), float("nan"), dtype=torch.float32)
        frame[1:-1] = vectors(n)
        assert harmonics([0, 1])(frame[1:-1]).isfinite().all() and harmonics([1, 5])(frame[1:-1]).isfinite().all()
        assert frame[[0, -1]].isnan().all()


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_same_bits_for_any_number_of_threads(dtype):
    x = testing.random(5000, 3).to(dtype).requires_grad_()
    g = testing.random(5000, 64, seed=1).to(dtype).requires_grad_()
    first = None
    for threads, repeats in ((1, 1), (2, 20)):
        torch.set_num_threads(threads)
        for _ in range(repeats):
            out = harmonics(list(range(8)))(x)
            (gx,) = torch.autograd.grad(out, x, g, create_graph=True)
            results = [out, gx, *torch.autograd.grad(gx.sum(), (g, x))]
            first = first or results
            assert all(torch.equal(a, b) for a, b in zip(first, results, strict=True))


LEVEL = """
import sys, torch, eqtp
from eqtp import _native
results = []
for l, normalize, dtype, xyz, g, c in torch.load(sys.argv[1]):
    x, g = xyz.to(dtype).requires_grad_(), g.to(dtype).requires_grad_()
    out = eqtp.spherical_harmonics(l, x, normalize, "component", backend="native")
    (gx,) = torch.autograd.grad(out, x, g, create_graph=True)
    results.append([t.detach() for t in (out, gx, *torch.autograd.grad(gx, (g, x), c.to(dtype)))])
torch.save(results, sys.argv[2])
print(_native.simd_level())
"""


def test_simd_levels(tmp_path):
    """Plain C++, AVX2 and AVX-512 agree with the reference, for sizes around those of the tiles."""
    inputs = []
    for l in ([1], [0, 1, 2, 3], [3, 1, 1], [9, 0]):
        for n in (1, 7, 33):
            g, c = testing.random(n, sum(2 * d + 1 for d in l), seed=1), testing.random(n, 3, seed=2)
            inputs += [(l, normalize, dtype, vectors(n), g, c) for normalize in (True, False) for dtype in DTYPES]
    torch.save(inputs, tmp_path / "inputs")
    seen = set()
    for level in LEVELS:
        command = [sys.executable, "-c", LEVEL, str(tmp_path / "inputs"), str(tmp_path / "out")]
        environment = {**os.environ, "EQTP_SIMD": str(level)}
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120)
        assert done.returncode == 0, done.stderr[-2000:]
        seen.add(int(done.stdout))
        assert int(done.stdout) <= level
        for (l, normalize, dtype, xyz, g, c), results in zip(inputs, torch.load(tmp_path / "out"), strict=True):
            case = testing.Case({"x": xyz}, g, {"x": c}, {})
            assert_all_close(results, testing.derivatives(plain(l, normalize), case, torch.float64).values())
            assert all(t.dtype == dtype for t in results)
    assert 1 in seen and max(seen) == library._native.simd_level()

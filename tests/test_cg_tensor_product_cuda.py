"""Specialised kernels of couplings (csrc/couplings/couplings.cuh) against a sum over their entries (tests/programs.py),
in float64: compiled as C++ and run on CPU tensors; where there is a GPU, on it."""

import emulated  # noqa: F401 (the family)
import numpy as np
import programs
import pytest
import torch
from sweeps import sweep

from eqtp import testing
from eqtp.backends.jit import couplings as jit
from eqtp.backends.jit import samples
from eqtp.plans import couplings

OUTPUTS = {"fwd": 1, "bwd": 2, "bwdbwd": 3}
TOLERANCE = {torch.float64: 1e-12, torch.float32: 1e-6, torch.float16: 1e-3, torch.bfloat16: 8e-3}


def gaunt(kind, degrees, pass_):
    return couplings.gaunt(kind, *degrees, pass_, (True,) * OUTPUTS[pass_])


def scaled():
    """Groups with and without a scale; outputs without an entry; the second input is not used; components come more
    than once."""
    rng = np.random.default_rng(0)
    components = np.array([0, 1, 2, *range(9, 20)])  # of the first and the third input
    entries = np.stack([rng.integers(6, size=90) * 2, *rng.choice(components, (3, 90))], 1)
    entries[::3, 1] = -1
    return couplings.CouplingTable([3, 6, 11], [5, 8], entries, rng.normal(size=90))


def operands(p, batch, channels, dtype):
    return programs.operands(p.inputs, batch, channels, dtype)


def ours(p, inputs, target):
    return programs.run("couplings", p, inputs, p.outputs, target)


def check(p, inputs, target):
    programs.check(ours(p, inputs, target), programs.couple, p, inputs, TOLERANCE[inputs[0].dtype])


@pytest.mark.parametrize("pass_", OUTPUTS)
@pytest.mark.parametrize("kind", ["product", "odd", "cross"])
@sweep("degrees", [(0, 0, 0), (0, 2, 1), (2, 0, 3), (1, 2, 2)], [(1, 2, 2)], ids=str)
def test_gaunt(target, kind, pass_, degrees):
    c = gaunt(kind, degrees, pass_)
    check(c, operands(c, 5, 7, torch.float64), target)


@pytest.mark.parametrize("degrees, loops", [((2, 2, 2), False), ((4, 3, 5), True), ((6, 6, 6), True)], ids=str)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
def test_long_tables_are_data(target, degrees, loops, dtype):
    c = gaunt("odd", degrees, "fwd")
    assert ("UNROLL = 0" in jit.specialise(c, dtype).text) == loops
    check(c, operands(c, 3, 12, dtype), target)


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
def test_scaled(target, dtype):
    c = scaled()
    assert jit.specialise(c, dtype).inputs == (0, 2)
    check(c, operands(c, 9, 4, dtype), target)


def test_scaled_as_data(target, monkeypatch):
    monkeypatch.setattr(jit, "MAX_UNROLLED_ENTRIES", 0)
    c = scaled()
    assert "UNROLL = 0" in jit.specialise(c, torch.float64).text
    check(c, operands(c, 9, 4, torch.float64), target)


def test_shared_and_strided_inputs(target):
    c = scaled()
    rows = operands(c, 6, 11, torch.float64)
    check(c, [rows[0][:, :1], rows[1], torch.cat([rows[2], rows[2]], -1)[..., :11]], target)
    check(c, [testing.random(11, 6, 4).transpose(0, 1)[..., 1:], rows[1][:1, :1], rows[2][:1]], target)


def test_no_entries(target):
    c = couplings.CouplingTable([2], [3, 1], np.zeros((0, 4), int), np.zeros(0))
    assert all(not t.any() for t in ours(c, operands(c, 5, 7, torch.float64), target))


@pytest.mark.parametrize("shape", [(0, 3), (3, 0), (1, 1), (1, 31), (33, 1), (5, 64)], ids=str)
def test_sizes(target, shape):
    c = scaled()
    check(c, operands(c, *shape, torch.float64), target) if 0 not in shape else ours(
        c, operands(c, *shape, torch.float64), target
    )


def test_blocks_take_several_tiles(target, monkeypatch):
    monkeypatch.setattr(samples, "MAX_BLOCKS", 2)
    c = scaled()
    check(c, operands(c, 30, 10, torch.float64), target)


def test_too_large():
    """The shared memory of a GPU is the limit."""
    c = couplings.CouplingTable([30_000], [1], np.array([[0, -1, 0, 29_999]]), np.ones(1))
    with pytest.raises(RuntimeError, match=r"couple: .* do not fit"):
        jit.specialise(c, torch.float32)

"""Specialised kernels of programs (csrc/signals/signals.cuh) against dense tables at all points of the grid
(tests/programs.py), in float64: compiled as C++ and run on CPU tensors; where there is a GPU, on it."""

import emulated  # noqa: F401 (the family)
import emulation
import programs
import pytest
import torch
from sweeps import sweep

from eqtp import testing
from eqtp.backends.jit import samples
from eqtp.backends.jit import signals as jit
from eqtp.plans import signals

KINDS = ["product", "odd", "cross"]
OUTPUTS = {"fwd": 1, "bwd": 2, "bwdbwd": 3}
TOLERANCE = {torch.float64: 1e-12, torch.float32: 1e-6, torch.float16: 1e-3, torch.bfloat16: 8e-3}
DEGREES = [(0, 0, 0), (0, 2, 1), (2, 0, 3), (1, 3, 2), (3, 1, 5)]


def program(kind, degrees, pass_):
    return signals.product(kind, *degrees, pass_, (True,) * OUTPUTS[pass_])


def operands(p, batch, channels, dtype):
    return programs.operands(programs.squares(p.lmax_in), batch, channels, dtype)


def ours(p, inputs, target):
    return programs.run("signals", p, inputs, programs.squares(p.lmax_out), target)


def check(p, inputs, target):
    programs.check(ours(p, inputs, target), programs.evaluate, p, inputs, TOLERANCE[inputs[0].dtype])


@pytest.mark.parametrize("pass_", OUTPUTS)
@pytest.mark.parametrize("kind", KINDS)
@sweep("degrees", DEGREES, [(1, 3, 2)], ids=str)
def test_products(target, kind, pass_, degrees):
    p = program(kind, degrees, pass_)
    check(p, operands(p, 5, 7, torch.float64), target)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
def test_lower_precision(target, kind, dtype):
    p = program(kind, (2, 3, 3), "fwd")
    check(p, operands(p, 9, 4, dtype), target)


@pytest.mark.parametrize(
    "degrees, kind, pass_",
    [((4, 4, 8), "product", "fwd"), ((6, 6, 6), "odd", "fwd"), ((4, 4, 4), "odd", "bwdbwd")],
    ids=str,
)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
def test_higher_degrees(target, degrees, kind, pass_, dtype):
    p = program(kind, degrees, pass_)
    check(p, operands(p, 3, 12, dtype), target)


@pytest.mark.parametrize(
    "kind, pass_, dtype",
    [("product", "fwd", torch.float32), ("odd", "fwd", torch.float64), ("cross", "bwd", torch.float64)],
)
def test_more_rows_than_workers(target, kind, pass_, dtype):
    """Degrees up to 20: few samples in a tile, rows in several rounds, columns in a loop, long tables."""
    p = program(kind, (10, 10, 20), pass_)
    check(p, operands(p, 1, 3, dtype), target)


@pytest.mark.parametrize("tangents", [0, 1, 2])
def test_powers(target, tangents):
    """Up to 2 tangents: of the powers below, which have no second derivative, there are zeros."""
    for p in (signals.powers(2, 3, 3, tangents), signals.powers_adjoint(2, 3, 3, tangents)):
        check(p, operands(p, 5, 7, torch.float64), target)


def test_a_sum_of_nothing(target):
    p = signals.powers(1, 1, 2, 3)
    assert all(not t.any() for t in ours(p, operands(p, 5, 7, torch.float64), target))


@pytest.mark.parametrize("wanted, used", [((True, False), (1, 2, 3)), ((False, True), (0, 2, 3))], ids=str)
def test_one_gradient(target, wanted, used):
    """The operand itself is not read."""
    p = signals.product("odd", 2, 1, 3, "bwd", wanted)
    assert jit.specialise(p, torch.float64).inputs == used
    check(p, operands(p, 5, 7, torch.float64), target)


def test_shared_and_strided_inputs(target):
    """A row for all channels, for all of the batch, for everything; rows at any distance; also with the last dimension
    of a size of 1."""
    p = program("product", (2, 1, 3), "bwdbwd")
    rows = operands(p, 6, 11, torch.float64)
    wide = testing.random(11, 6, 10).transpose(0, 1)[..., 1:]
    inputs = [rows[0][:, :1], rows[1][:1], torch.cat([rows[2], rows[2]], -1)[..., :16], wide, rows[4][:1, :1]]
    assert inputs[2].stride(1) == 32 and wide.stride(0) == 10
    check(p, inputs, target)


@pytest.mark.parametrize("shape", [(0, 3), (3, 0), (1, 1), (1, 31), (33, 1), (5, 64)], ids=str)
def test_sizes(target, shape):
    p = program("product", (1, 1, 2), "fwd")
    check(p, operands(p, *shape, torch.float64), target) if 0 not in shape else ours(
        p, operands(p, *shape, torch.float64), target
    )


def test_blocks_take_several_tiles(target, monkeypatch):
    monkeypatch.setattr(samples, "MAX_BLOCKS", 2)
    p = program("product", (1, 1, 2), "fwd")
    check(p, operands(p, 30, 10, torch.float64), target)


@pytest.mark.parametrize("order", ["reverse", "random"])
def test_the_order_of_threads_does_not_matter(order, monkeypatch):
    if emulation.why_not(None):
        pytest.skip(emulation.why_not(None))
    p = program("odd", (3, 1, 5), "bwd")
    inputs = operands(p, 5, 7, torch.float64)
    before = ours(p, inputs, ("emulated", "cpu"))
    monkeypatch.setenv("EQTP_CPU_ORDER", order)
    assert all(torch.equal(a, b) for a, b in zip(ours(p, inputs, ("emulated", "cpu")), before, strict=True))


def test_too_large():
    """The shared memory of a GPU is the limit."""
    with pytest.raises(RuntimeError, match=r"signals: .* do not fit"):
        jit.specialise(signals.product("cross", 60, 60, 60, "bwdbwd", (True,) * 3), torch.float64)

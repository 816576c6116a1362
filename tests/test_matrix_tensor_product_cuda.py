"""Specialised kernels of programs of matrices (csrc/matrices/matrices.cuh) against dense matrices, in float64: compiled
as C++ and run on CPU tensors; where there is a GPU, on it."""

from math import pi

import emulated  # noqa: F401 (the family)
import emulation
import programs
import pytest
import torch
from sweeps import sweep

from eqtp import testing
from eqtp.backends.jit import matrices as jit
from eqtp.backends.jit import samples
from eqtp.math import sphere
from eqtp.ops.matrix_tensor_product import matrix_tensor_product
from eqtp.plans import matrices

OUTPUTS = {"fwd": 1, "bwd": 2, "bwdbwd": 3}
TOLERANCE = {torch.float64: 1e-12, torch.float32: 1e-6, torch.float16: 1e-3, torch.bfloat16: 8e-3}
DEGREES = [(0, 0, 0), (1, 1, 2), (1, 3, 1), (2, 3, 4), (6, 1, 2)]  # matrices of 1, 3, 5, 5 and 7 rows


def program(degrees, split, pass_):
    return matrices.product(*degrees, split, pass_, (True,) * OUTPUTS[pass_])


def operands(p, batch, channels, dtype):
    return programs.operands(programs.squares(p.lmax_in), batch, channels, dtype)


def evaluate(p, inputs):
    """The program as its docstring has it, with the dense matrices of all components."""

    def dense(lmax):
        return torch.from_numpy(sphere.matrices(lmax, p.size // 2))

    def paired(tensors, first):
        a, b = tensors[first : first + 2]
        return [*tensors[:first], (a + b) / 2, (a - b) / 2, *tensors[first + 2 :]]

    inputs = paired(inputs, p.pair_in) if p.pair_in >= 0 else inputs
    m = [torch.einsum("...i,iab->...ab", x, dense(lmax)) for x, lmax in zip(inputs, p.lmax_in, strict=True)]
    results = []
    for lmax, terms in zip(p.lmax_out, p.terms, strict=True):
        total = sum(
            (m[left].mT if turned else m[left]) @ (m[right].mT if back else m[right])
            for left, turned, right, back in terms
        )
        results.append(torch.einsum("...ab,iab->...i", total, 4 * pi / p.size * dense(lmax)))
    return paired(results, p.pair_out) if p.pair_out >= 0 else results


def ours(p, inputs, target):
    return programs.run("matrices", p, inputs, programs.squares(p.lmax_out), target)


def check(p, inputs, target):
    programs.check(ours(p, inputs, target), evaluate, p, inputs, TOLERANCE[inputs[0].dtype])


@pytest.mark.parametrize("pass_", OUTPUTS)
@pytest.mark.parametrize("split", [False, True])
@sweep("degrees", DEGREES, [(6, 1, 2)], ids=str)
def test_products(target, degrees, split, pass_):
    p = program(degrees, split, pass_)
    check(p, operands(p, 5, 7, torch.float64), target)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
def test_lower_precision(target, dtype):
    p = program((2, 3, 3), True, "fwd")
    check(p, operands(p, 9, 4, dtype), target)


@sweep(
    "lmax, split, pass_",
    [(8, True, "fwd"), (8, False, "bwd"), (8, True, "bwdbwd"), (9, True, "bwd"), (12, True, "bwdbwd")],
    every_run=[(8, False, "bwd"), (9, True, "bwd")],
)
@sweep("dtype", [torch.float64, torch.float32], [torch.float64], ids=str)
def test_higher_degrees(target, lmax, split, pass_, dtype):
    """Several workers; blocks of a matrix that overlap; tables as data."""
    p = program((lmax, lmax, lmax), split, pass_)
    check(p, operands(p, 2, 18, dtype), target)


@sweep("split, pass_", [(False, "fwd"), (True, "fwd"), (True, "bwdbwd")], [(False, "fwd")])
def test_largest(target, split, pass_):
    """Few samples in a tile."""
    p = program((10, 10, 20), split, pass_)
    check(p, operands(p, 1, 11, torch.float64), target)


@sweep("size", range(1, 24, 2), [1, 3, 9, 23])
def test_every_size(target, size):
    p = program((size - 1, min(size - 1, 1), 0), False, "fwd")
    assert p.size == size
    check(p, operands(p, 1, 5, torch.float64), target)


@pytest.mark.parametrize("split", [False, True])
@pytest.mark.parametrize("wanted, used", [((True, False), (1, 2, 3)), ((False, True), (0, 2, 3))], ids=str)
def test_one_gradient(target, wanted, used, split):
    """The operand itself is not read."""
    p = matrices.product(2, 1, 3, split, "bwd", wanted)
    assert jit.specialise(p, torch.float64).inputs == (used if split else used[:2])
    check(p, operands(p, 5, 7, torch.float64), target)


@pytest.mark.parametrize(
    "wanted", [(True, False, False), (False, True, False), (False, False, True), (False, True, True)], ids=str
)
def test_some_second_derivatives(target, wanted):
    """Without the gradient of g no output is one of a pair, and without the others no input."""
    p = matrices.product(2, 1, 3, True, "bwdbwd", wanted)
    check(p, operands(p, 5, 7, torch.float64), target)


def test_shared_and_strided_inputs(target):
    """A row for all channels, for all of the batch, for everything; rows at any distance; also with the last dimension
    of a size of 1."""
    p = program((2, 1, 3), False, "bwdbwd")
    rows = operands(p, 6, 11, torch.float64)
    wide = testing.random(11, 6, 10).transpose(0, 1)[..., 1:]
    inputs = [rows[0][:, :1], rows[1][:1], torch.cat([rows[2], rows[2]], -1)[..., :16], wide, rows[4][:1, :1]]
    assert inputs[2].stride(1) == 32 and wide.stride(0) == 10
    check(p, inputs, target)


@pytest.mark.parametrize("shape", [(0, 3), (3, 0), (1, 1), (1, 31), (33, 1), (5, 64)], ids=str)
def test_sizes(target, shape):
    p = program((1, 1, 2), True, "fwd")
    check(p, operands(p, *shape, torch.float64), target) if 0 not in shape else ours(
        p, operands(p, *shape, torch.float64), target
    )


def test_blocks_take_several_tiles(target, monkeypatch):
    monkeypatch.setattr(samples, "MAX_BLOCKS", 2)
    p = program((1, 1, 2), False, "fwd")
    check(p, operands(p, 30, 10, torch.float64), target)


@pytest.mark.parametrize("order", ["reverse", "random"])
def test_the_order_of_threads_does_not_matter(order, monkeypatch):
    if emulation.why_not(None):
        pytest.skip(emulation.why_not(None))
    p = program((6, 2, 6), True, "bwdbwd")
    inputs = operands(p, 5, 7, torch.float64)
    before = ours(p, inputs, ("emulated", "cpu"))
    monkeypatch.setenv("EQTP_CPU_ORDER", order)
    assert all(torch.equal(a, b) for a, b in zip(ours(p, inputs, ("emulated", "cpu")), before, strict=True))


@sweep("degrees, split", [((4, 1, 3), False), ((2, 1, 2), True)], [((2, 1, 2), True)], ids=str)
def test_the_op(target, degrees, split):
    """To the second order, as the op calls the kernels."""
    family, device = target
    sizes = [(l + 1) ** 2 for l in degrees]

    def draw(first):
        return {
            "x1": testing.random(5, 7, sizes[0], seed=first),
            "x2": testing.random(5, 1, sizes[1], seed=first + 1),
        }

    case = testing.Case(draw(1), testing.random(5, 7, (1 + split) * sizes[2], seed=3), draw(4), {})

    def product(family, device):
        def f(x1, x2):
            out = matrix_tensor_product(x1.to(device), x2.to(device), degrees[2], split=split, backend=family)
            return (torch.cat(out, -1) if split else out).cpu()

        return f

    testing.check_op(product(family, device), product("reference", "cpu"), case)


def test_too_large():
    """The shared memory of a GPU is the limit."""
    with pytest.raises(RuntimeError, match=r"matrices: .* do not fit"):
        jit.specialise(program((60, 60, 60), True, "bwdbwd"), torch.float64)

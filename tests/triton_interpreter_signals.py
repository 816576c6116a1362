"""The Triton kernels for products of functions on the sphere, run as NumPy, against the slow evaluation of programs and
tables (tests/programs.py).

Not collected by itself: tests/test_triton.py runs it, as it does tests/triton_interpreter.py.
"""

import calls
import numpy as np
import pytest
import torch
from programs import couple, evaluate
from triton_interpreter import FULL, HALF, tolerance

from eqtp import testing
from eqtp.kernels import couplings as cg_tensor_product
from eqtp.kernels import matrices as matrix_tensor_product
from eqtp.kernels import signals as kernel
from eqtp.plans import couplings, matrices, signals

PASSES = {"fwd": 1, "bwd": 2, "bwdbwd": 3}  # and how many outputs they have
DEGREES = (2, 1, 3)


def operands(sizes, batch=2, channels=3, dtype=torch.float64):
    """Numbers that every dtype holds."""
    return [testing.random(batch, channels, n, seed=k).bfloat16().to(dtype) for k, n in enumerate(sizes)]


def assert_runs(engine, expected_of, data, sizes_in, sizes_out, dtype=torch.float64, layout=lambda t: t, **shape):
    """A call of a family writes all its outputs, which are slices of one tensor, next to each other or with a gap."""
    inputs = [layout(t) for t in operands(sizes_in, dtype=dtype, **shape)]
    with testing.poisoned():
        outputs = torch.empty(*inputs[0].shape[:2], sum(sizes_out) + 1, dtype=dtype).split([*sizes_out, 1], -1)[:-1]
        calls.run("triton", engine, data, inputs, outputs)
    for n, (a, b) in enumerate(zip(outputs, expected_of(data, [t.double() for t in inputs]), strict=True)):
        testing.assert_close(a, b, f"output {n}", tolerance(dtype))


def sizes(program):
    return ([(l + 1) ** 2 for l in lmax] for lmax in (program.lmax_in, program.lmax_out))


def assert_program(program, **options):
    assert_runs("signals", evaluate, program, *sizes(program), **options)


def assert_couplings(table, **options):
    assert_runs("couplings", couple, table, table.inputs, table.outputs, **options)


def multiply(program, inputs):
    """By the kernels for CPUs, which tests/test_matrix_tensor_product.py holds against the reference."""
    outputs = [inputs[0].new_empty(*inputs[0].shape[:2], (l + 1) ** 2) for l in program.lmax_out]
    calls.run("native", "matrices", program, inputs, outputs)
    return outputs


def assert_matrices(program, **options):
    assert_runs("matrices", multiply, program, *sizes(program), **options)


@pytest.mark.parametrize("pass_", PASSES)
@pytest.mark.parametrize("kind", signals.KINDS)
def test_products(kind, pass_):
    """All passes, by the grid and by the table."""
    arguments = kind, *((1, 1, 1) if kind == "cross" else DEGREES), pass_, (True,) * PASSES[pass_]
    assert_program(signals.product(*arguments))
    assert_couplings(couplings.gaunt(*arguments))


@pytest.mark.parametrize("degrees", [(0, 0, 0), (3, 0, 2), (1, 2, 0)], ids=str)
def test_degrees(degrees):
    """Kinds of components that there are none of, and degrees that are cut off."""
    assert_program(signals.product("product", *degrees, "fwd", (True,)))


@pytest.mark.parametrize("tangents", range(3))
def test_powers(tangents):
    """Powers up to the third, of which some derivatives are zero, and an input that no term uses."""
    assert_program(signals.powers(1, 2, 3, tangents))
    assert_program(signals.powers_adjoint(1, 2, 3, tangents))


@pytest.mark.parametrize("dtype", [torch.float32, *HALF], ids=str)
def test_in_several_kernels(monkeypatch, dtype):
    """Terms and orders apart, with sums in full precision; types that are not float64."""
    monkeypatch.setattr(kernel, "MAX_LIVE_NUMBERS", {"float32": 50})
    for cached in (kernel.parts, kernel.source, kernel._compiled):
        cached.cache_clear()
    program = signals.product("odd", 1, 1, 2, "bwdbwd", (True, False, True))
    parts = kernel.parts(program, "float32")
    assert (
        len(parts) > 5
        and any(s.adds for part in parts for s in part)
        and any(len(s.orders) < 3 for part in parts for s in part)
    )
    assert_program(program, dtype=dtype)
    assert_program(signals.powers(1, 1, 2, 0), dtype=dtype)
    assert_couplings(couplings.gaunt("product", 1, 1, 2, "fwd", (True,)), dtype=dtype)


@pytest.mark.parametrize("dtype", [*FULL, torch.bfloat16], ids=str)
def test_long_tables(monkeypatch, dtype):
    """Tables that are data, by the same numbers."""
    monkeypatch.setattr(cg_tensor_product, "MAX_TEXT_ENTRIES", 10)
    table = couplings.gaunt("odd", 1, 1, 1, "fwd", (True,))
    assert not cg_tensor_product.is_text(table, "float64")
    assert_couplings(table, dtype=dtype)
    assert_couplings(scaled(), dtype=dtype)


def scaled():
    """Groups with a scale, one and two in a component; a component without entries; an input that is not used."""
    entries = [
        [0, 3, 0, 1],
        [0, 3, 1, 2],
        [0, -1, 2, 2],
        [2, 4, 0, 0],
        [3, 3, 1, 1],
        [3, 4, 1, 0],
        *([4, -1, i % 3, i % 5] for i in range(15)),
    ]
    return couplings.CouplingTable((3, 2, 1), (4, 1), np.array(entries), np.linspace(-1, 1, len(entries)))


def test_scales():
    assert_couplings(scaled())


@pytest.mark.parametrize("shape", [(0, 3), (2, 0), (1, 1), (3, 23)], ids=str)
def test_sizes(shape):
    """No samples, one, and more than one program of them has."""
    batch, channels = shape
    for data, check in (
        (signals.product("product", 1, 1, 1, "fwd", (True,)), assert_program),
        (scaled(), assert_couplings),
    ):
        check(data, batch=batch, channels=channels)


LAYOUTS = (
    lambda t: t[:1, :1].expand_as(t),
    lambda t: t[:, :1].expand_as(t),
    lambda t: t[:1].expand_as(t),
    lambda t: torch.cat([t, t], -1)[..., : t.shape[-1]],
    lambda t: t.transpose(0, 1).contiguous().transpose(0, 1),
)


def test_shared_inputs():
    """Inputs that all samples, all channels or all batches share, and slices."""
    for layout in LAYOUTS:
        assert_program(signals.product("product", 1, 1, 1, "fwd", (True,)), layout=layout)
        assert_couplings(scaled(), layout=layout)


@pytest.fixture(params=["text", "loops"])
def by(request, monkeypatch):
    """Small matrices as text, and as larger ones are multiplied: by blocks of which some reach over the end, in one
    program for all samples."""
    if request.param == "loops":
        for name, value in {"MAX_TEXT_SIZE": 1, "MAX_BLOCK": 2, "MAX_PROGRAMS": 1}.items():
            monkeypatch.setattr(matrix_tensor_product, name, value)
    else:
        # the second order in several kernels
        monkeypatch.setattr(matrix_tensor_product, "MAX_LIVE_NUMBERS", {"float32": 50, "float64": 50})
    cached = matrix_tensor_product.parts, matrix_tensor_product.source, matrix_tensor_product._compiled
    for cache in cached:
        cache.cache_clear()
    yield request.param
    for cache in cached:
        cache.cache_clear()


@pytest.mark.parametrize("split", [False, True])
@pytest.mark.parametrize("pass_", PASSES)
def test_matrices(pass_, split, by):
    program = matrices.product(2, 1, 2, split, pass_, (True,) * PASSES[pass_])
    assert (len(matrix_tensor_product.source(program, "float64")) > 1) == (by == "text" and pass_ == "bwdbwd")
    assert_matrices(program)


@pytest.mark.parametrize("wanted", [(True, False, False), (False, True, False), (False, False, True)], ids=str)
def test_matrices_of_one_output(wanted, by):
    """Inputs that no term uses, pairs that are not wanted."""
    for split in (False, True):
        assert_matrices(matrices.product(1, 1, 2, split, "bwdbwd", wanted))


@pytest.mark.parametrize("dtype", [torch.float32, *HALF], ids=str)
def test_matrices_of_other_types(dtype, by):
    assert_matrices(matrices.product(1, 2, 2, True, "fwd", (True,)), dtype=dtype)


@pytest.mark.parametrize("degrees", [(0, 0, 0), (3, 2, 4), (2, 5, 1)], ids=str)
def test_sizes_of_matrices(degrees):
    """One row, and the sizes on either side of the limit of text."""
    program = matrices.product(*degrees, False, "fwd", (True,))
    assert (program.size > matrix_tensor_product.MAX_TEXT_SIZE) == (degrees == (2, 5, 1))
    assert_matrices(program)


def test_layouts_of_matrices(by):
    """No samples, one, more than one program of them has, shared ones."""
    program = matrices.product(1, 1, 1, False, "fwd", (True,))
    for batch, channels in ((0, 3), (2, 0), (1, 1), (3, 23)):
        assert_matrices(program, batch=batch, channels=channels)
    for layout in LAYOUTS:
        assert_matrices(program, layout=layout)

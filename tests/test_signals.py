"""Programs and tables of couplings: the compiled CPU kernels against values at the points of the grid
(tests/programs.py)."""

import functools
import os
import subprocess
import sys

import calls
import pytest
import torch
from programs import couple, evaluate, squares

from eqtp import testing
from eqtp.plans import couplings, signals

TOLERANCE = {torch.float64: 1e-12, torch.float32: 1e-6}
DEGREES = [(0, 2, 2), (1, 1, 1), (2, 2, 4), (1, 3, 2), (3, 0, 3), (4, 4, 8), (6, 6, 6), (7, 9, 5)]
PASSES = [
    ("fwd", (True,)),
    ("bwd", (True, True)),
    ("bwd", (False, True)),
    ("bwdbwd", (True, True, True)),
    ("bwdbwd", (True, False, True)),
]
POWERS = [
    signals.powers(3, 2, 3, 0),
    signals.powers(2, 4, 4, 2),
    signals.powers_adjoint(3, 2, 3, 0),
    signals.powers_adjoint(2, 2, 4, 2),
]

SIGNALS = functools.partial(calls.run, "native", "signals")
COUPLINGS = functools.partial(calls.run, "native", "couplings")


def coefficients(sizes, b, c, dtype, seed):
    return [testing.random(b, c, n, seed=seed + i).to(dtype) for i, n in enumerate(sizes)]


def check(run, slowly, what, inputs, outputs, dtype, b=3, c=7):
    """inputs, outputs: numbers of components"""
    x = coefficients(inputs, b, c, dtype, 1)
    found = [torch.full((b, c, n), torch.nan, dtype=dtype) for n in outputs]
    run(what, x, found)
    for n, (y, expected) in enumerate(zip(found, slowly(what, [t.double() for t in x]), strict=True)):
        if expected.abs().max() < 1e-12:
            assert y.abs().max() < TOLERANCE[dtype]
        else:
            testing.assert_close(y, expected, f"output {n}", TOLERANCE[dtype])


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize("degrees", DEGREES, ids=str)
@pytest.mark.parametrize("kind", signals.SIGNALS)
def test_products(kind, degrees, dtype):
    for pass_, wanted in PASSES:
        program, table = (module(kind, *degrees, pass_, wanted) for module in (signals.product, couplings.gaunt))
        sizes = squares(program.lmax_in), squares(program.lmax_out)
        assert (table.inputs, table.outputs) == tuple(map(tuple, sizes))
        check(SIGNALS, evaluate, program, *sizes, dtype)
        check(COUPLINGS, lambda _, x, program=program: evaluate(program, x), table, *sizes, dtype)


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize(
    "program", POWERS, ids=["powers", "tangents of powers", "gradient of powers", "second gradient of powers"]
)
def test_powers(program, dtype):
    check(SIGNALS, evaluate, program, squares(program.lmax_in), squares(program.lmax_out), dtype)


def test_couplings_with_a_scale():
    """Groups that a component multiplies, groups that none does, an output that nothing reaches."""
    entries = [
        [0, 5, 0, 3],
        [0, 5, 1, 4],
        [0, -1, 2, 2],
        [2, 4, 0, 0],
        [2, 3, 0, 5],
        [2, 3, 1, 5],
        [2, 3, 2, 5],
        [2, 3, 2, 4],
        [2, 3, 0, 3],
    ]
    table = couplings.CouplingTable(
        (3, 3), (2, 1), torch.tensor(entries).numpy(), testing.random(len(entries), seed=3).numpy()
    )
    assert table.scale.tolist() == [-1, 5, 3, 4]
    for dtype in TOLERANCE:
        check(COUPLINGS, couple, table, (3, 3), (2, 1), dtype)


@pytest.mark.parametrize("shape", [(0, 3), (3, 0), (1, 1), (40, 1), (1, 33), (5, 16)], ids=str)
@pytest.mark.parametrize("lmax", [0, 1, 2, 3])
def test_any_number_of_samples(shape, lmax):
    program, table = (
        module("product", lmax, lmax, lmax, "fwd", (True,)) for module in (signals.product, couplings.gaunt)
    )
    for what, run, slowly in ((program, SIGNALS, evaluate), (table, COUPLINGS, couple)):
        sizes = [(lmax + 1) ** 2] * 3
        if 0 in shape:
            run(
                what,
                coefficients(sizes[:2], *shape, torch.float32, 1),
                coefficients(sizes[2:], *shape, torch.float32, 1),
            )
        else:
            check(run, slowly, what, sizes[:2], sizes[2:], torch.float32, *shape)


def test_strides_and_what_is_not_ours():
    """Rows that stand apart, shared ones, outputs inside a larger tensor; nothing beside them is written, nothing
    outside the inputs is read."""
    program = signals.product("product", 2, 1, 3, "fwd", (True,))
    wide = testing.random(5, 4, 3, 9, seed=1)
    x1, x2 = wide[:, ::2, 1], testing.random(5, 1, 4, seed=2).expand(5, 2, 4)  # [5, 2, 9], [5, 2, 4]
    out = torch.full((5, 2, 3, 16), 7.0, dtype=torch.float64)
    calls.run("native", "signals", program, [x1, x2], [out[:, :, 1]])
    testing.assert_close(out[:, :, 1], evaluate(program, [x1, x2])[0], "middle one", 1e-12)
    assert (out[:, :, ::2] == 7).all()


def test_results_do_not_depend_on_threads_or_on_the_batch():
    program = signals.product("odd", 3, 3, 4, "bwd", (True, True))
    x = coefficients(squares(program.lmax_in), 50, 3, torch.float32, 1)

    def run(inputs):
        out = [torch.empty(*inputs[0].shape[:2], (l + 1) ** 2) for l in program.lmax_out]
        calls.run("native", "signals", program, inputs, out)
        return out

    threads, results = torch.get_num_threads(), []
    try:
        for n in (1, 2):
            torch.set_num_threads(n)
            results.append(run(x))
    finally:
        torch.set_num_threads(threads)
    part = run([t[7:9] for t in x])
    for one, two, some in zip(*results, part, strict=True):
        assert torch.equal(one, two) and torch.equal(one[7:9], some)


LEVELS = """
import sys
import pytest
from eqtp import _native
print(_native.simd_level())
some = "powers or scale or strides or test_products and (2-4 or 4-8) and float32"
sys.exit(pytest.main(["-q", "-p", "no:cacheprovider", "-k", some, *sys.argv[1:]]))
"""


@pytest.mark.parametrize("level", [1, 3])
def test_other_simd_levels(level):
    result = subprocess.run(
        [sys.executable, "-c", LEVELS, __file__],
        capture_output=True,
        text=True,
        env={**os.environ, "EQTP_SIMD": str(level)},
        cwd=os.path.dirname(__file__),
    )
    assert result.returncode == 0, result.stdout[-2000:]
    assert int(result.stdout.split()[0]) <= level and " passed" in result.stdout

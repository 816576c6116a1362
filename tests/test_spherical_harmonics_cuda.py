"""CUDA kernels of spherical harmonics, run without a GPU (tests/cuda_cpu.h): with run-time tables, with fixed tables
and specialised."""

import functools

import emulation
import numpy as np
import pytest
import torch

from eqtp import testing
from eqtp.backends.jit import harmonics as jit
from eqtp.backends.jit.runtime import Struct
from eqtp.math import harmonics
from eqtp.ops.spherical_harmonics import reference

NAMES = {torch.float32: "float", torch.float64: "double", torch.float16: "eqtp::f16", torch.bfloat16: "eqtp::bf16"}
HALF = [torch.float16, torch.bfloat16]
SIZES = [0, 1, 31, 129, 1000]
NORMALIZE = pytest.mark.parametrize("normalize", [True, False], ids=["direction", "solid"])

# Kernels of the tables that are arguments; those ahead of time take them in structs
AHEAD = """#include "harmonics/harmonics.cuh"
namespace eqtp {
template <class T, int PASS>
__global__ void given(const Real<T>* constants, const int* start, const int* column, int degree, int width,
                      HarmonicsArrays<T> a) {
  harmonics<T, PASS>(GivenTable<Real<T>>{constants, start, column, degree, width}, a);
}
template <class T, int PASS, int L>
__global__ void fixed(const Real<T>* constants, HarmonicsArrays<T> a) {
  FixedTable<Real<T>, L> table;
  for (int n = 0; n < 4 * harmonics_rows(L); ++n) table.constants[n / 4][n % 4] = constants[n];
  harmonics<T, PASS>(table, a);
}
}
"""


def types(dtype):
    return [f"eqtp::HarmonicsArrays<{NAMES[dtype]}>"]


def real(dtype):
    return torch.float64 if dtype == torch.float64 else torch.float32


@functools.cache
def kernels(kind, degrees, dtype, sanitize=None):
    """Pass -> kernel; kind: "given", "fixed" (ahead of time) or "specialised"; degrees: those that the text depends
    on."""
    T = NAMES[dtype]
    pointer = f"const {NAMES[real(dtype)]}*"
    if kind == "given":
        text, before, name = AHEAD, [pointer, "const int*", "const int*", "int", "int"], f"eqtp::given<{T}, eqtp::%s>"
    elif kind == "fixed":
        text, before, name = AHEAD, [pointer], f"eqtp::fixed<{T}, eqtp::%s, {max(degrees)}>"
    else:
        text, before = '#include "harmonics/harmonics.cuh"\n' + jit.source(*degrees), []
        name = f"eqtp::harmonics_plan_kernel<{T}, eqtp::%s, eqtp::Plan>"
    built = emulation.build(text, {name % p: [*before, *types(dtype)] for p in jit.PASSES.values()}, sanitize)
    return {p: built[name % p] for p in jit.PASSES.values()}


def flat(t):
    """The memory of a tensor from its first element on, as a contiguous tensor."""
    extent = 1 + sum((n - 1) * s for n, s in zip(t.shape, t.stride(), strict=True)) if t.numel() else 0
    return t.as_strided((extent,), (1,))


def framed(shape, dtype, shift):
    """A tensor of NaN and the memory around it: `shift` elements before and 64 behind."""
    memory = torch.full((shift + shape[0] * shape[1] + 64,), float("nan"), dtype=dtype)
    return memory, memory[shift : shift + shape[0] * shape[1]].view(shape)


def run(
    kind,
    degrees,
    normalize,
    normalization,
    xyz,
    g=None,
    c=None,
    wanted=(True, True),
    blocks=None,
    shift=0,
    sanitize=None,
):
    """[out, gxyz], None where not wanted; checks that nothing beside them is written."""
    dtype, n, lmax = xyz.dtype, len(xyz), max(degrees, default=0)
    constants, start, column = harmonics.tables(degrees, normalization)
    columns, which = len(column), "SECOND" if c is not None else "GRADIENT" if g is not None else "VALUES"
    unrolled = kind == "fixed" or (kind == "specialised" and lmax <= 8)
    shape = jit.launch_shape(degrees, which, dtype, unrolled)
    memory, results = zip(*(framed((n, k), dtype, shift) for k in (columns, 3)), strict=True)
    wanted = [w and which in (one, "SECOND") for w, one in zip(wanted, ("VALUES", "GRADIENT"), strict=True)]
    numbers, integers = (
        torch.from_numpy(constants).to(real(dtype)),
        [torch.tensor(t or [0], dtype=torch.int32) for t in (start, column)],
    )
    tables = {"given": [numbers, *integers, lmax, columns], "fixed": [numbers], "specialised": []}[kind]
    key = {"given": (), "fixed": degrees, "specialised": (degrees, normalization)}[kind]
    grid, block, shared = shape.launch(n)

    def strides(t, k):
        return [np.int64(0 if t is None else t.stride(n)) for n in range(k)]

    tensors = [None if t is None else flat(t) for t in (xyz, g, c)]
    outputs = [flat(t) if w else None for t, w in zip(results, wanted, strict=True)]
    members = [np.bool_(normalize), np.int64(n), *tensors, *strides(xyz, 2), *strides(g, 1), *strides(c, 2), *outputs]
    arrays = Struct(jit.HARMONICS_ARRAYS, (*members, np.int32(shape.tile), np.int32(shape.room)))
    arguments = [*tables, arrays]
    kernels(kind, key, dtype, sanitize)[which](blocks or max(grid, 1), block, shared, *arguments)
    for t, all_of_it in zip(results, memory, strict=True):
        assert all_of_it[:shift].isnan().all() and all_of_it[shift + t.numel() :].isnan().all(), (
            "written beside the tensor"
        )
    return [t if w else None for t, w in zip(results, wanted, strict=True)]


def expected(degrees, normalize, normalization, xyz, g=None, c=None):
    """The same by the reference in float64, differentiated by torch: out, gxyz."""
    x = xyz.double().requires_grad_()

    def f(x):
        return reference(degrees, x, normalize, normalization)

    out = f(x)
    if g is None:
        return [out.detach(), None]
    cotangent = g.double().requires_grad_()
    (gxyz,) = torch.autograd.grad((out * cotangent).sum() + 0 * x.sum(), x, create_graph=True)
    if c is None:
        return [None, gxyz.detach()]
    return [
        t.detach()
        for t in torch.autograd.grad((gxyz * c.double()).sum() + 0 * x.sum(), (cotangent, x), materialize_grads=True)
    ]


def vectors(n, dtype=torch.float64, seed=0):
    """[n, 3], not close to zero."""
    xyz = testing.random(n, 3, seed=seed)
    return (xyz + 0.3 * xyz.sign()).to(dtype)


def operands(degrees, n, dtype):
    columns = sum(2 * l + 1 for l in degrees)
    return vectors(n, dtype), testing.random(n, columns, seed=1).to(dtype), testing.random(n, 3, seed=2).to(dtype)


def tolerance(dtype):
    """Half precision is for storage: float32's, and half a unit in the last place for the rounding of the largest
    value."""
    return testing.TOLERANCE[torch.float32] + torch.finfo(dtype).eps / 2 if dtype in HALF else testing.TOLERANCE[dtype]


def check(kind, degrees, normalize, normalization, xyz, g, c, **options):
    """All three passes against the reference."""
    for name, given in (("values", ()), ("gradient", (g,)), ("second order", (g, c))):
        ours = run(kind, degrees, normalize, normalization, xyz, *given, **options)
        for a, b, which in zip(
            ours, expected(degrees, normalize, normalization, xyz, *given), ("out", "gxyz"), strict=True
        ):
            assert (a is None) == (b is None)
            if a is not None:
                testing.assert_close(a, b, f"{name}, {which}", tolerance(xyz.dtype))


LISTS = [(), (0,), (1,), (2, 0), (0, 1, 2, 3), (3, 1, 1, 0, 3), (5, 5), (0, 1, 2, 3, 4, 5, 6, 7), (12,), (12, 0, 9)]


@NORMALIZE
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
@pytest.mark.parametrize("degrees", [*LISTS, *(tuple(range(l + 1)) for l in (1, 2, 9, 12))], ids=str)
def test_any_degrees_at_run_time(degrees, dtype, normalize):
    check("given", degrees, normalize, "component", *operands(degrees, 37, dtype))


@NORMALIZE
@pytest.mark.parametrize(
    ("degrees", "dtype"),
    [
        ((0, 1, 2, 3), torch.float32),
        ((3, 1, 1, 0, 3), torch.float64),
        (tuple(range(7)), torch.float32),
        ((10, 0), torch.float64),
    ],
    ids=str,
)
def test_specialised(degrees, dtype, normalize):
    check("specialised", degrees, normalize, "integral", *operands(degrees, 37, dtype))


@NORMALIZE
@pytest.mark.parametrize("l", [1, 3])
def test_fixed_tables(l, normalize):
    degrees = tuple(range(l + 1))
    check("fixed", degrees, normalize, "norm", *operands(degrees, 37, torch.float32))


@pytest.mark.parametrize("n", SIZES)
@pytest.mark.parametrize("degrees", [(0, 1, 2, 3), (0, 1, 2), (3, 1)], ids=str)
def test_sizes(degrees, n):
    """Whole and broken tiles, odd and even numbers of columns; a grid that is too small walks on."""
    given = operands(degrees, n, torch.float32)
    check("given", degrees, True, "component", *given)
    for which in ((), given[1:2], given[1:]):
        whole, few = (run("given", degrees, True, "component", given[0], *which, blocks=b) for b in (None, 2))
        assert all(a is b or torch.equal(a, b) for a, b in zip(whole, few, strict=True))


@pytest.mark.parametrize("kind", ["given", "specialised"])
@pytest.mark.parametrize("dtype", HALF, ids=str)
def test_half_precision(dtype, kind):
    degrees = (0, 1, 2, 3)
    check(kind, degrees, True, "integral", *operands(degrees, 129, dtype))
    if kind == "given":
        for degrees in ((1,), (0, 1), (0, 1, 2)):  # 3, 4, 9 columns: pieces of 8 numbers cross the rows
            check(kind, degrees, True, "integral", *operands(degrees, 45, dtype))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, *HALF], ids=str)
def test_memory_that_is_not_aligned(dtype):
    for degrees in ((0, 1), (0, 1, 2)):
        xyz, g, c = operands(degrees, 45, dtype)
        shifted = torch.cat([g.new_zeros(1), g.flatten()])[1:].view_as(g)
        assert shifted.data_ptr() % 16
        check("given", degrees, True, "component", xyz, shifted, c, shift=1)


LAYOUTS = {
    "columns": lambda t: torch.cat([t[:, :1], t, t], dim=1)[:, 1 : 1 + t.shape[1]],
    "every_other_row": lambda t: t.repeat_interleave(2, dim=0)[::2],
    "expanded": lambda t: t[:1].expand_as(t),
    "transposed": lambda t: t.t().contiguous().t(),  # of vectors only: rows of g are contiguous
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_strides(layout):
    xyz, g, c = operands((0, 1, 2, 3), 45, torch.float32)
    xyz, c = LAYOUTS[layout](xyz), LAYOUTS[layout](c)
    check("given", (0, 1, 2, 3), True, "component", xyz, g if layout == "transposed" else LAYOUTS[layout](g), c)


def test_only_what_is_wanted():
    """The second order without one of its outputs, or without g, which then counts as 0."""
    xyz, g, c = operands((0, 1, 2), 40, torch.float64)
    both = run("given", (0, 1, 2), True, "component", xyz, g, c)
    for wanted in ((True, False), (False, True)):
        for a, b in zip(run("given", (0, 1, 2), True, "component", xyz, g, c, wanted=wanted), both, strict=True):
            assert a is None or torch.equal(a, b)
    out, gxyz = run("given", (0, 1, 2), True, "component", xyz, None, c)
    assert torch.equal(out, both[0]) and (gxyz == 0).all()


def test_many_columns_have_smaller_tiles():
    """Rows that do not fit 32 times into shared memory."""
    degrees = (3,) * 200
    assert 0 < jit.launch_shape(degrees, "SECOND", torch.float32, False).tile < 32
    check("given", degrees, True, "component", *operands(degrees, 21, torch.float32))
    assert jit.launch_shape((3,) * 1900, "VALUES", torch.float32).tile == 0


# zero vectors, extremes


@pytest.mark.parametrize(
    ("kind", "dtype"), [("given", torch.float64), ("specialised", torch.float32), ("given", torch.float16)], ids=str
)
def test_zero_vector_has_no_direction(kind, dtype):
    """Y_0 as everywhere, the other degrees 0, and all derivatives 0; the other rows as without it."""
    degrees = (0, 1, 2, 3)
    xyz, g, c = operands(degrees, 37, dtype)
    null = torch.arange(37) % 3 == 1
    xyz[null] = 0
    out, _ = run(kind, degrees, True, "integral", xyz)
    assert (out[null, 1:] == 0).all() and torch.equal(out[null, 0], out[~null, 0][:1].expand(int(null.sum())))
    for given in ((g,), (g, c)):
        ours = run(kind, degrees, True, "integral", xyz, *given)
        theirs = expected(degrees, True, "integral", xyz[~null], *(t[~null] for t in given))
        for a, b in zip(ours, theirs, strict=True):
            assert (a is None) == (b is None)
            if a is not None:
                assert (a[null] == 0).all()
                testing.assert_close(a[~null], b, "", tolerance(dtype))
    check(kind, degrees, False, "integral", xyz, g, c)


@pytest.mark.parametrize(
    ("dtype", "scales"),
    [(torch.float32, (1e-30, 1e-37, 1e30, 5e37)), (torch.float64, (1e-200, 1e-307, 1e200, 1e307))],
    ids=str,
)
def test_direction_of_tiny_and_huge_vectors(dtype, scales):
    degrees = (0, 1, 2, 3)
    unit, g, _ = operands(degrees, 33, torch.float64)
    for scale in scales:
        xyz = (unit / 2 * scale).to(dtype)
        exact = xyz.double() / scale
        testing.assert_close(
            run("given", degrees, True, "component", xyz)[0], expected(degrees, True, "component", exact)[0]
        )
        if scale in scales[::2]:
            gxyz = run("given", degrees, True, "component", xyz, g.to(dtype))[1]
            testing.assert_close(gxyz * scale, expected(degrees, True, "component", exact, g.to(dtype))[1])


def test_direction_of_the_smallest_half_precision_vectors():
    """The direction is found in float32, where these are normal numbers."""
    xyz = torch.tensor([[1.0, -2.0, 2.0], [0.0, 3.0, 0.0]]).mul(2.0**-24).half()
    testing.assert_close(
        run("given", (1,), True, "norm", xyz)[0],
        torch.tensor([[1.0, -2.0, 2.0], [0.0, 3.0, 0.0]]).double() / 3,
        "",
        2.0**-11,
    )


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_nan_stays_nan(bad):
    for column in range(3):
        xyz, g, c = operands((1, 2, 3), 33, torch.float32)
        xyz[7, column] = bad
        rest = torch.arange(33) != 7
        for given in ((), (g,), (g, c)):
            for t in run("given", (1, 2, 3), True, "component", xyz, *given):
                assert t is None or (t[7].isnan().all() and t[rest].isfinite().all())


# order of threads, sanitizers


@pytest.mark.parametrize("order", ["reverse", "random"])
def test_order_of_threads(order, monkeypatch):
    xyz, g, c = operands((0, 1), 150, torch.float32)
    forward = [run("given", (0, 1), True, "component", xyz, *given) for given in ((), (g,), (g, c))]
    monkeypatch.setenv("EQTP_CPU_ORDER", order)
    for given, before in zip(((), (g,), (g, c)), forward, strict=True):
        ours = run("given", (0, 1), True, "component", xyz, *given)
        assert all(a is b or torch.equal(a, b) for a, b in zip(ours, before, strict=True))


@pytest.mark.parametrize("sanitize", ["address", "thread"])
def test_sanitizers(sanitize):
    reason = emulation.why_not(sanitize)
    if reason:
        pytest.skip(reason)
    xyz, g, c = operands((0, 1), 70, torch.float32)
    for given in ((), (g,), (g, c)):
        ours = run("given", (0, 1), True, "component", xyz, *given, blocks=2, sanitize=sanitize)
        theirs = run("given", (0, 1), True, "component", xyz, *given, blocks=2)
        assert all(a is b or torch.equal(a, b) for a, b in zip(ours, theirs, strict=True))

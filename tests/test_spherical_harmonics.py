"""Spherical harmonics: e3nn's values, derivatives of any order in every mode, zero and extreme vectors, determinism, errors."""

import io
import os
import subprocess
import sys
from math import pi

import numpy as np
import pytest
import torch
from e3nn import o3
from torch.autograd import forward_ad

import eqtp
from eqtp import native, testing
from eqtp.ops import spherical_harmonics as module
from eqtp.ops.spherical_harmonics import gradient_map, parse_degrees, reference

NORMALIZATIONS = ["integral", "component", "norm"]
DTYPES = [torch.float64, torch.float32]
LEVELS = [1, 3, 4]
by_normalization = pytest.mark.parametrize("normalization", NORMALIZATIONS)
by_normalize = pytest.mark.parametrize("normalize", [True, False], ids=["direction", "solid"])


def harmonics(degrees, normalize=True, normalization="component"):
    return lambda xyz: eqtp.spherical_harmonics(degrees, xyz, normalize, normalization, backend="native")


def plain(degrees, normalize=True, normalization="component"):
    """The recursion in plain torch, differentiated by torch."""
    return lambda xyz: reference(parse_degrees(degrees), xyz.reshape(-1, 3), normalize, normalization).reshape(*xyz.shape[:-1], -1)


def vectors(n=19):
    """[n, 3], not close to zero."""
    xyz = testing.random(n, 3)
    return (xyz + 0.3 * xyz.sign()).float().double()


def case(degrees, xyz):
    """Each degree is compared by itself."""
    ends = np.cumsum([0, *(2 * l + 1 for l in degrees)])
    blocks = [testing.Block(f"l={l}", (slice(None), slice(*ends[n : n + 2]))) for n, l in enumerate(degrees)]
    g, c = testing.random(len(xyz), int(ends[-1]), seed=1), testing.random(len(xyz), 3, seed=2)
    return testing.Case({"xyz": xyz}, g, {"xyz": c}, {"out": blocks})


def third_order(f, xyz, dtype=torch.float64):
    """Value, gradient, second and third order, each of them a function of the one before that is not linear."""
    x = xyz.to(dtype).requires_grad_()
    terms = [f(x)]
    for scalar in (torch.sin, torch.cos, torch.sin):
        terms.append(torch.autograd.grad(scalar(terms[-1]).sum(), x, create_graph=True)[0])
    return [t.detach() for t in terms]


def assert_all_close(ours, theirs):
    for n, (a, b) in enumerate(zip(ours, theirs, strict=True)):
        testing.assert_close(a, b, f"result {n}")


# values and derivatives

DEGREES = [*range(12), [0, 1, 2, 3], [3, 1, 0], [2, 2, 0, 2], [0, 0], list(range(12)), "0e + 1o + 2e", "3o + 2x1o + 0e", "1e + 2e", o3.Irreps("2x2e + 1o")]


@by_normalization
@by_normalize
@pytest.mark.parametrize("l", DEGREES, ids=str)
def test_e3nn(e3nn64, l, normalize, normalization):
    """Values, gradients and the second order, fused and as a closure, of every degree by itself, in poisoned memory."""
    theirs = lambda xyz: o3.spherical_harmonics(l, xyz, normalize, normalization)  # noqa: E731
    testing.check_op(harmonics(l, normalize, normalization), theirs, case(parse_degrees(l), vectors()))


@by_normalize
@pytest.mark.parametrize("l", [[0, 1, 2, 3], [5, 1, 1], 8], ids=str)
def test_third_order_of_e3nn(e3nn64, l, normalize):
    theirs = lambda xyz: o3.spherical_harmonics(l, xyz, normalize, "norm")  # noqa: E731
    assert_all_close(third_order(harmonics(l, normalize, "norm"), vectors(4) / 2), third_order(theirs, vectors(4) / 2))


@by_normalize
@pytest.mark.parametrize("l", [[12], [16], [0, 16, 3], list(range(17))], ids=str)
def test_reference_up_to_l_16(l, normalize):
    testing.check_op(harmonics(l, normalize), plain(l, normalize), case(l, vectors()))


@by_normalize
def test_gradcheck(normalize):
    xyz = vectors(4).requires_grad_()
    op = harmonics([2, 0, 1, 1, 3], normalize)
    assert torch.autograd.gradcheck(op, xyz, check_forward_ad=True)
    assert torch.autograd.gradgradcheck(op, xyz)


@by_normalization
@pytest.mark.parametrize("degrees", [(0,), (1,), (0, 1, 2, 3), (4, 1, 1, 7)], ids=str)
def test_gradient_map(degrees, normalization):
    """d S_c / d x_a = D[a, c, j] S_j, by torch's derivative of the recursion."""
    xyz = vectors(5)
    lower = reference(range(max(*degrees, 1)), xyz, False, "integral")  # [n, lmax^2]
    D = torch.from_numpy(gradient_map(degrees, normalization))
    columns = torch.autograd.functional.jacobian(lambda x: reference(degrees, x, False, normalization).sum(0), xyz)  # [c, n, 3]
    testing.assert_close(torch.einsum("acj,nj->cna", D, lower), columns)


def test_constants():
    """Orthonormal over the sphere ("integral", by quadrature), |Y_l|^2 = 2 l + 1 ("component"), |Y_l| = 1 ("norm"), up to l = 16."""
    y, weights = np.polynomial.legendre.leggauss(17)
    angle = np.arange(34) * pi / 17
    ring = np.sqrt(1 - y**2)[:, None]
    xyz = np.stack(np.broadcast_arrays(ring * np.sin(angle), y[:, None], ring * np.cos(angle)), -1).reshape(-1, 3)  # [17*34, 3]
    weights = torch.from_numpy(np.repeat(weights * pi / 17, 34))
    xyz = torch.from_numpy(xyz)
    values = harmonics(list(range(17)), False, "integral")(xyz)
    testing.assert_close(torch.einsum("n,nc,nd->cd", weights, values, values), torch.eye(17 * 17, dtype=torch.float64))
    for l in range(17):
        for normalization, square in (("component", 2 * l + 1), ("norm", 1)):
            squares = harmonics(l, True, normalization)(3 * xyz).square().sum(-1)
            testing.assert_close(squares, torch.full_like(squares, square))


# zero vectors, axes, extremes

AXES = torch.tensor([[s * (k == a) for k in range(3)] for a in range(3) for s in (1.0, -1.0)], dtype=torch.float64)


@by_normalize
def test_axes_and_planes(e3nn64, normalize):
    xyz = torch.cat([AXES, 2 * AXES[::2] + AXES[[3, 5, 1]]])
    theirs = lambda xyz: o3.spherical_harmonics(list(range(7)), xyz, normalize, "component")  # noqa: E731
    testing.check_op(harmonics(list(range(7)), normalize), theirs, case(range(7), xyz))
    assert_all_close(third_order(harmonics([0, 3, 1], normalize), xyz), third_order(plain([0, 3, 1], normalize), xyz))


@by_normalization
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("backend", eqtp.backends())
def test_zero_vector_has_no_direction(backend, dtype, normalization):
    """Y_0 as everywhere, the other degrees 0, and all derivatives 0; the other rows as without it."""
    op = lambda xyz: eqtp.spherical_harmonics([0, 1, 2, 4], xyz, True, normalization, backend)  # noqa: E731
    xyz, null = vectors(19), torch.arange(19) % 3 == 1
    xyz[null] = 0
    with testing.poisoned():
        results = third_order(op, xyz, dtype)
    assert_all_close([t[~null] for t in results], third_order(plain([0, 1, 2, 4], True, normalization), xyz[~null]))
    value = {"integral": (4 * pi) ** -0.5}.get(normalization, 1.0)
    testing.assert_close(results[0][null, 0], torch.full((6,), value, dtype=torch.float64))
    assert all((t[null] == 0).all() for t in (results[0][:, 1:], *results[1:]))
    _, tangent = torch.func.jvp(op, (xyz.to(dtype),), (torch.ones(19, 3, dtype=dtype),))
    assert (tangent[null] == 0).all() and (tangent[~null, 1:] != 0).any(-1).all()
    x = xyz.to(dtype).requires_grad_()  # the fused second order
    g = torch.ones(19, 34, dtype=dtype).requires_grad_()
    (gx,) = torch.autograd.grad(op(x), x, g, create_graph=True)
    assert all((t[null] == 0).all() and t.isfinite().all() for t in torch.autograd.grad(gx.sum(), (g, x)))


def test_zero_vector_of_the_solid_harmonics():
    """A polynomial like any other point: its derivatives are those of the low degrees."""
    xyz = torch.zeros(3, 3, dtype=torch.float64)
    ours, theirs = (third_order(f([0, 1, 2, 3, 5], False), xyz) for f in (harmonics, plain))
    assert_all_close(ours, theirs)
    assert ours[1].abs().max() > 0.1


@pytest.mark.parametrize(("dtype", "scales"), [(torch.float32, (1e-30, 1e-37, 1e30, 1e38)), (torch.float64, (1e-200, 1e-300, 1e200, 1e307))], ids=str)
@pytest.mark.parametrize("backend", eqtp.backends())
def test_direction_of_tiny_and_huge_vectors(backend, dtype, scales):
    """Right wherever |x| + |y| + |z| is a normal number, though the square of it is not: values, and gradients where these are normal."""
    op = lambda xyz: eqtp.spherical_harmonics([0, 1, 2, 3], xyz, True, "component", backend)  # noqa: E731
    unit = torch.cat([vectors(16) / 2, AXES])
    for scale in scales:
        x = (unit * scale).to(dtype)
        exact = x.double() / scale if dtype == torch.float32 else unit
        expected = third_order(plain([0, 1, 2, 3]), exact)
        testing.assert_close(op(x), expected[0])
        if 1e-37 < scale < 1e37 or dtype == torch.float64 and 1e-300 < scale < 1e300:
            y = x.clone().requires_grad_()
            (g,) = torch.autograd.grad(op(y).sin().sum(), y)
            testing.assert_close(g * scale, expected[1])
            t = torch.ones_like(x)
            along = [torch.func.jvp(f, (at,), (by,))[1] for f, at, by in ((op, x, t), (plain([0, 1, 2, 3]), exact, t.double()))]
            testing.assert_close(along[0] * scale, along[1])


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("backend", eqtp.backends())
def test_nan_stays_nan(backend, dtype, bad):
    """No number comes of a vector that is none; the rows beside it are right. An infinite vector has no direction."""
    op = lambda xyz: eqtp.spherical_harmonics([1, 2, 3], xyz, True, "component", backend)  # noqa: E731
    for column in range(3):
        xyz = vectors(19).to(dtype)
        xyz[7, column] = bad
        x = xyz.clone().requires_grad_()
        out = op(x)
        (g,) = torch.autograd.grad(out.sum(), x)
        rest = torch.arange(19) != 7
        assert out[7].isnan().all() and g[7].isnan().all()
        assert out[rest].isfinite().all() and g[rest].isfinite().all()
        solid = eqtp.spherical_harmonics(1, xyz, False, "norm", backend)
        torch.testing.assert_close(solid, xyz, equal_nan=True, rtol=1e-6, atol=0)


# torch's transforms


def test_opcheck():
    xyz, c = vectors(5).requires_grad_(), testing.random(5, 3, seed=2)
    constants = ([2, 0, 1], True, "component")
    g = testing.random(5, 9, seed=1).requires_grad_()
    ops = torch.ops.eqtp
    torch.library.opcheck(ops.spherical_harmonics.default, (xyz, *constants))
    torch.library.opcheck(ops.spherical_harmonics_bwd.default, (g, xyz, *constants))
    torch.library.opcheck(ops.spherical_harmonics_bwdbwd.default, (g.detach(), xyz.detach(), c, *constants))


def test_every_registered_op_is_checked_here():
    names = {"spherical_harmonics", "spherical_harmonics_bwd", "spherical_harmonics_bwdbwd"}
    assert {n for n in dir(torch.ops.eqtp) if n.startswith("spherical")} == names


@pytest.fixture
def fresh_compiler():
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


class Embedding(torch.nn.Module):
    def forward(self, xyz):
        return eqtp.spherical_harmonics([0, 1, 2], xyz, True, "component", backend="native") + xyz.sum(-1, keepdim=True)


def assert_same_embedding(f, n):
    x, e = vectors(n).requires_grad_(), Embedding()
    out, expected = f(x), plain([0, 1, 2])(x) + x.sum(-1, keepdim=True)
    testing.assert_close(out, expected)
    assert_all_close(*([torch.autograd.grad(t.sin().sum(), x)[0]] for t in (out, expected)))
    assert not f(x.detach()).requires_grad and e(x).requires_grad


def test_compile(fresh_compiler):
    assert_same_embedding(torch.compile(Embedding(), fullgraph=True, backend="aot_eager"), 7)


def test_compile_dynamic_batch(fresh_compiler):
    counter = torch._dynamo.testing.CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(Embedding(), fullgraph=True, dynamic=True, backend=counter)
    for n in (7, 11, 40):
        assert_same_embedding(compiled, n)
    assert counter.frame_count <= 2  # with and without gradients


def test_compile_of_the_forces(fresh_compiler):
    """The gradient is taken inside the compiled region and differentiated outside."""

    def energy_and_forces(x):
        energy = eqtp.spherical_harmonics([0, 1, 2], x, True, "component").sin().sum()
        return energy, torch.autograd.grad(energy, x, create_graph=True)[0]

    x = vectors(7).requires_grad_()
    with torch._dynamo.config.patch(trace_autograd_ops=True):
        _, forces = torch.compile(energy_and_forces, fullgraph=True, backend="aot_eager")(x)
        (g,) = torch.autograd.grad(forces.cos().sum(), x)
    assert_all_close([forces, g], third_order(plain([0, 1, 2]), x.detach())[1:3])


def test_export_round_trip(fresh_compiler):
    dynamic = ({0: torch.export.Dim("points", min=2, max=10**6)},)
    program = torch.export.export(Embedding(), (vectors(7),), dynamic_shapes=dynamic)
    buffer = io.BytesIO()
    torch.export.save(program, buffer)
    buffer.seek(0)
    loaded = torch.export.load(buffer).module()
    for n in (7, 11, 40):
        assert_same_embedding(loaded, n)


def duals(op, t):
    """xyz -> derivative of op along t, by both entries to forward mode."""

    def dual(x):
        with forward_ad.dual_level():
            return forward_ad.unpack_dual(op(forward_ad.make_dual(x, t))).tangent

    return [lambda x: torch.func.jvp(op, (x,), (t,))[1], dual]


@by_normalize
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_forward_mode(normalize, dtype):
    """Of the value and of the gradient, against reverse mode of the reference and, roughly, a difference quotient."""
    xyz, t, g = vectors(7), testing.random(7, 3, seed=1), testing.random(7, 17, seed=2)
    op, ref = harmonics([1, 0, 2, 3, 0], normalize), plain([1, 0, 2, 3, 0], normalize)
    gradient = lambda f: lambda x: torch.func.vjp(f, x)[1](g.to(x))[0]  # noqa: E731
    for ours, theirs in ((op, ref), (gradient(op), gradient(ref))):
        jacobian = torch.func.jacrev(theirs)(xyz)  # [n, c, n, 3]
        expected = torch.einsum("icja,ja->ic", jacobian, t)
        quotient = (theirs(xyz + 1e-5 * t) - theirs(xyz - 1e-5 * t)) / 2e-5
        testing.assert_close(quotient, expected, tolerance=1e-6)
        for f in duals(ours, t.to(dtype)) if ours is op else duals(ours, t.to(dtype))[:1]:
            testing.assert_close(f(xyz.to(dtype)), expected)


def test_forward_mode_of_the_compiled_is_right_or_raises(fresh_compiler):
    """Never a silent zero."""
    xyz, t = vectors(5), testing.random(5, 3, seed=1)
    op = harmonics([0, 1, 2])
    expected = duals(plain([0, 1, 2]), t)[0](xyz)
    for f in duals(op, t):
        testing.assert_close(f(xyz), expected)
        with pytest.raises(Exception, match="eqtp::spherical_harmonics: forward-mode differentiation inside torch.compile"):
            torch.compile(f, fullgraph=True, backend="aot_eager")(xyz)
    compiled = torch.compile(op, fullgraph=True, backend="aot_eager")
    for f in duals(compiled, t):
        try:
            got = f(xyz)
        except Exception as error:
            assert "forward" in str(error) or "functorch" in str(error), error
        else:
            testing.assert_close(got, expected)


def test_forward_mode_in_forward_mode_raises():
    op, x = harmonics(2), vectors(3)
    with pytest.raises(NotImplementedError, match="forward mode inside forward mode is not supported"):
        torch.func.jacfwd(torch.func.jacfwd(op))(x)


@by_normalize
def test_vmap(normalize):
    op, ref, batch = harmonics([2, 1, 0], normalize), plain([2, 1, 0], normalize), testing.random(4, 5, 3)
    energy = lambda f: lambda x: f(x).sin().sum()  # noqa: E731
    for dim in (0, 1, 2):
        x = batch.movedim(0, dim)
        testing.assert_close(torch.func.vmap(op, in_dims=dim)(x) if dim < 2 else torch.func.vmap(op, in_dims=1)(x.movedim(2, 1)), ref(batch))
    testing.assert_close(torch.func.vmap(op)(batch[:0]), ref(batch[:0]))
    testing.assert_close(torch.func.vmap(op)(batch[:, :0]), ref(batch[:, :0]))
    x = batch.clone().requires_grad_()
    (g,) = torch.autograd.grad(energy(ref)(x), x)
    testing.assert_close(torch.func.vmap(torch.func.grad(energy(op)))(batch), g)
    cotangents = testing.random(6, 5, 9)  # one point set, several cotangents: the batch is in g only
    pull = lambda f: torch.func.vmap(lambda c: torch.func.vjp(f, batch[0])[1](c)[0])(cotangents)  # noqa: E731
    testing.assert_close(pull(op), pull(ref))


@by_normalize
@pytest.mark.parametrize("outer", [torch.func.jacrev, torch.func.jacfwd], ids=["jacrev", "jacfwd"])
def test_hessian(normalize, outer):
    x, energy = vectors(2), lambda f: lambda x: f(x).sin().sum()
    ours, theirs = (energy(f([1, 0, 3], normalize)) for f in (harmonics, plain))
    expected = torch.func.jacrev(torch.func.jacrev(theirs))(x)
    testing.assert_close(outer(torch.func.jacrev(ours))(x), expected)
    third = [torch.func.jacrev(outer(torch.func.jacrev(f)))(x) for f in (ours, theirs)]
    testing.assert_close(*third)


# symmetry


@by_normalize
def test_equivariance_under_o3(e3nn64, normalize):
    irreps, xyz = o3.Irreps("0e + 1o + 2e + 3o + 6e + 1o"), vectors(9)
    for n in range(3):
        R = torch.from_numpy(testing.random_rotation(n))
        for element in (R, -R, -torch.eye(3)):
            D = irreps.D_from_matrix(element)
            testing.assert_close(harmonics(str(irreps), normalize)(xyz @ element.T), harmonics(str(irreps), normalize)(xyz) @ D.T)
    testing.assert_equivariant(harmonics(list(range(11)), normalize), [(xyz, "1o")], eqtp.Irreps.spherical_harmonics(10))


@by_normalize
@pytest.mark.parametrize(("irreps", "irreps_in"), [("1e + 2e", "1e"), ("2x1o + 0e", None), ([2, 1], "1e"), ("2x1o + 0e", "1o")])
def test_module(e3nn64, irreps, irreps_in, normalize):
    ours, theirs = (m(irreps, normalize, "norm", irreps_in=irreps_in) for m in (eqtp.nn.SphericalHarmonics, o3.SphericalHarmonics))
    assert str(ours.irreps_out) == str(theirs.irreps_out) and not ours.state_dict() and not list(ours.parameters())
    testing.assert_close(ours(vectors()), theirs(vectors()))


def test_module_of_the_wrong_parity():
    with pytest.raises(ValueError, match=r"a vector of parity 1 has no spherical harmonic 1o"):
        eqtp.nn.SphericalHarmonics("1o", True, irreps_in="1e")


# memory


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
    (h,) = torch.autograd.grad(plain(l)(y).sum(), y, create_graph=True)
    expected = [plain(l)(y), h, torch.autograd.grad(h.sum(), y)[0] if h.requires_grad else torch.zeros_like(y)]
    for ours, theirs in zip((out, g, gg), expected, strict=True):
        scale = max(1.0, float(theirs.detach().abs().max()))
        assert (ours.double() - theirs).abs().max() <= testing.TOLERANCE[dtype] * scale


LAYOUTS = {
    "columns": lambda t: torch.cat([t, t, t], -1)[..., 1 : 1 + t.shape[-1]].copy_(t),
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
    inputs = [LAYOUTS[layout](t.to(dtype)) for t in (vectors(21), testing.random(21, columns, seed=1), testing.random(21, 3, seed=2))]

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
    for l in ([0], [1], [0, 1, 2, 3], [3, 1, 1], [9, 0]):
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
            expected = testing.derivatives(plain(l, normalize), testing.Case({"x": xyz}, g, {"x": c}, {}), torch.float64) if max(l) else None
            if expected is None:
                assert (results[0] == 1).all() and all((t == 0).all() for t in results[1:])
            else:
                assert_all_close(results, expected.values())
            assert results[0].dtype == dtype
    assert 1 in seen and max(seen) == native._native.simd_level()


# which code runs


def test_kernels_run(monkeypatch):
    """One call of the kernel for the value, one for the gradient, one for the second order."""
    calls, kernel = [], native.spherical_harmonics
    monkeypatch.setattr(native, "spherical_harmonics", lambda *a: (calls.append(1), kernel(*a)))
    x = vectors(5).requires_grad_()
    out = eqtp.spherical_harmonics([0, 1, 2], x, True)
    assert len(calls) == 1
    (g,) = torch.autograd.grad(out.sin().sum(), x, create_graph=True)
    assert len(calls) == 2
    torch.autograd.grad(g.sum(), x)
    assert len(calls) == 4  # the second order, and the gradient of the sine's derivative


def test_other_dtypes_use_the_reference():
    xyz = vectors(5)
    out = eqtp.spherical_harmonics([0, 1, 2], xyz.bfloat16(), True, "component")
    assert out.dtype == torch.bfloat16
    testing.assert_close(out, plain([0, 1, 2])(xyz), tolerance=0.02)
    with pytest.raises(RuntimeError, match="the native kernels know float32 and float64, not bfloat16"):
        harmonics(1)(xyz.bfloat16())


XYZ = torch.ones(4, 3)
ERRORS = [
    ((-1, XYZ, True), ValueError, r"^spherical_harmonics: l must not be negative, got -1$"),
    (([0, -2], XYZ, True), ValueError, r"^spherical_harmonics: l must not be negative, got -2$"),
    ((1, torch.ones(3, 4), True), ValueError, r"^spherical_harmonics: xyz must be \[\.\.\., 3\], got \[3, 4\]$"),
    ((1, torch.tensor(1.0), True), ValueError, r"^spherical_harmonics: xyz must be \[\.\.\., 3\], got \[\]$"),
    ((1, torch.ones(4, 3, dtype=torch.int64), True), TypeError, r"^spherical_harmonics: xyz must be a floating point tensor, got torch\.int64$"),
    ((1, [[1.0, 0.0, 0.0]], True), TypeError, r"^spherical_harmonics: xyz must be a floating point tensor, got list$"),
    ((1, XYZ, True, "unit"), ValueError, r"^spherical_harmonics: normalization must be one of integral, component, norm, got 'unit'$"),
    (("1e + 2o", XYZ, True), ValueError, r"^spherical_harmonics: no vector has the harmonics 1x1e\+1x2o; parities must be p\^l$"),
    (("1o + 3e", XYZ, True), ValueError, r"no vector has the harmonics"),
    (("1o + 2o", XYZ, True), ValueError, r"no vector has the harmonics"),
    (("0o", XYZ, True), ValueError, r"no vector has the harmonics"),
    ((1, XYZ, True, "norm", "cuda"), ValueError, r"backend must be one of"),
]


@pytest.mark.parametrize(("arguments", "kind", "message"), ERRORS, ids=[e[2][:60] for e in ERRORS])
def test_errors(arguments, kind, message):
    with pytest.raises(kind, match=message):
        eqtp.spherical_harmonics(*arguments)


@pytest.mark.parametrize("l", [True, [0, True], 1.0, None, [1, "1o"]], ids=str)
def test_what_is_no_degree(monkeypatch, l):
    monkeypatch.setattr(module, "_call", lambda *a: pytest.fail("a kernel ran"))
    with pytest.raises((TypeError, ValueError)):
        eqtp.spherical_harmonics(l, XYZ, True)

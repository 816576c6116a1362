"""Spherical harmonics: e3nn's values and derivatives, zero and extreme vectors, symmetry, errors."""

from math import pi

import numpy as np
import pytest
import torch
from e3nn import o3

import eqtp
from eqtp import testing
from eqtp.math.harmonics import gradient_map
from eqtp.ops import spherical_harmonics as module
from eqtp.ops.spherical_harmonics import parse_degrees, reference

NORMALIZATIONS = ["integral", "component", "norm"]
DTYPES = [torch.float64, torch.float32]
by_normalization = pytest.mark.parametrize("normalization", NORMALIZATIONS)
by_normalize = pytest.mark.parametrize("normalize", [True, False], ids=["direction", "solid"])


def harmonics(degrees, normalize=True, normalization="component"):
    return lambda xyz: eqtp.spherical_harmonics(degrees, xyz, normalize, normalization, backend="native")


def plain(degrees, normalize=True, normalization="component"):
    """The recursion in plain torch, differentiated by torch."""
    return lambda xyz: eqtp.spherical_harmonics(degrees, xyz, normalize, normalization, backend="reference")


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


def energy(t):
    """A function that is not linear and loses no digits."""
    return (t.square() / 2 + t).sum()


def third_order(f, xyz, dtype=torch.float64):
    """Value, gradient, second and third order: each is the gradient of the energy of the one before."""
    x = xyz.to(dtype).requires_grad_()
    terms = [f(x)]
    for _ in range(3):
        terms.append(torch.autograd.grad(energy(terms[-1]), x, create_graph=True)[0])
    return [t.detach() for t in terms]


def assert_all_close(ours, theirs):
    for n, (a, b) in enumerate(zip(ours, theirs, strict=True)):
        testing.assert_close(a, b, f"result {n}")


# values and derivatives

LISTS = [[0, 1, 2, 3], [3, 1, 0], [2, 2, 0, 2], list(range(12))]
IRREPS = [
    "0e + 1o + 2e",
    "3o + 2x1o + 0e",
    "1e + 2e",
    o3.Irreps("2x2e + 1o"),
    eqtp.Irreps("2x2e + 1o"),
    eqtp.Irrep("2e"),
]


@by_normalization
@by_normalize
@pytest.mark.parametrize("l", [*range(1, 12), *LISTS, *IRREPS], ids=str)
def test_e3nn(e3nn64, l, normalize, normalization):
    """Values, gradients and the second order, fused and as a closure, of every degree by itself, in poisoned memory."""
    irreps = o3.Irreps(str(l)) if isinstance(l, (eqtp.Irreps, eqtp.Irrep)) else l

    def theirs(xyz):
        return o3.spherical_harmonics(irreps, xyz, normalize, normalization)

    testing.check_op(harmonics(l, normalize, normalization), theirs, case(parse_degrees(l), vectors()))


@by_normalization
@by_normalize
@pytest.mark.parametrize("l", [0, [0, 0, 0]], ids=str)
def test_degree_0_is_constant(e3nn64, l, normalize, normalization):
    """Of which e3nn has no gradient: here it is 0, to every order."""
    xyz = vectors()
    ours = third_order(harmonics(l, normalize, normalization), xyz)
    testing.assert_close(ours[0], o3.spherical_harmonics(l, xyz, normalize, normalization))
    assert all((t == 0).all() for t in ours[1:])


@by_normalize
@pytest.mark.parametrize("l", [[0, 1, 2, 3], [5, 1, 1], 8], ids=str)
def test_third_order_of_e3nn(e3nn64, l, normalize):
    def theirs(xyz):
        return o3.spherical_harmonics(l, xyz, normalize, "norm")

    assert_all_close(third_order(harmonics(l, normalize, "norm"), vectors(4) / 2), third_order(theirs, vectors(4) / 2))


@by_normalize
@pytest.mark.parametrize("l", [[12], [16], [0, 16, 3], list(range(17))], ids=str)
def test_reference_up_to_l_16(l, normalize):
    testing.check_op(harmonics(l, normalize), plain(l, normalize), case(l, vectors()))


@by_normalization
@pytest.mark.parametrize("degrees", [(0,), (1,), (0, 1, 2, 3), (4, 1, 1, 7)], ids=str)
def test_gradient_map(degrees, normalization):
    """d S_c / d x_a = D[a, c, j] S_j, by torch's derivative of the recursion."""
    xyz = vectors(5)
    lower = reference(range(max(*degrees, 1)), xyz, False, "integral")  # [n, lmax^2]
    D = torch.from_numpy(gradient_map(degrees, normalization))
    # [c, n, 3]
    columns = torch.autograd.functional.jacobian(lambda x: reference(degrees, x, False, normalization).sum(0), xyz)
    testing.assert_close(torch.einsum("acj,nj->cna", D, lower), columns)


def test_constants():
    """Orthonormal over the sphere ("integral", by quadrature), |Y_l|^2 = 2 l + 1 ("component"), |Y_l| = 1 ("norm"), up
    to l = 16."""
    y, weights = np.polynomial.legendre.leggauss(17)
    angle = np.arange(34) * pi / 17
    ring = np.sqrt(1 - y**2)[:, None]
    # [17*34, 3]
    xyz = np.stack(np.broadcast_arrays(ring * np.sin(angle), y[:, None], ring * np.cos(angle)), -1).reshape(-1, 3)
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

    def theirs(xyz):
        return o3.spherical_harmonics(list(range(7)), xyz, normalize, "component")

    testing.check_op(harmonics(list(range(7)), normalize), theirs, case(range(7), xyz))
    assert_all_close(third_order(harmonics([0, 3, 1], normalize), xyz), third_order(plain([0, 3, 1], normalize), xyz))


@by_normalization
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("backend", ["native", "reference"])
def test_zero_vector_has_no_direction(backend, dtype, normalization):
    """Y_0 as everywhere, the other degrees 0, and all derivatives 0; the other rows as without it."""

    def op(xyz):
        return eqtp.spherical_harmonics([0, 1, 2, 4], xyz, True, normalization, backend)

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
    g = torch.ones(19, 18, dtype=dtype).requires_grad_()
    (gx,) = torch.autograd.grad(op(x), x, g, create_graph=True)
    assert all((t[null] == 0).all() and t.isfinite().all() for t in torch.autograd.grad(gx.sum(), (g, x)))


def test_zero_vector_of_the_solid_harmonics():
    """A polynomial like any other point: its derivatives are those of the low degrees."""
    xyz = torch.zeros(3, 3, dtype=torch.float64)
    ours, theirs = (third_order(f([0, 1, 2, 3, 5], False), xyz) for f in (harmonics, plain))
    assert_all_close(ours, theirs)
    assert ours[1].abs().max() > 0.1


@pytest.mark.parametrize(
    ("dtype", "scales"),
    [(torch.float32, (1e-30, 1e-37, 1e30, 5e37)), (torch.float64, (1e-200, 1e-307, 1e200, 1e307))],
    ids=str,
)
@pytest.mark.parametrize("backend", ["native", "reference"])
def test_direction_of_tiny_and_huge_vectors(backend, dtype, scales):
    """Right wherever |x| + |y| + |z| is a normal number, though the square of it is not: values, and gradients where
    these are normal."""

    def op(xyz):
        return eqtp.spherical_harmonics([0, 1, 2, 3], xyz, True, "component", backend)

    unit = torch.cat([vectors(16) / 2, AXES])
    for scale in scales:
        x = (unit * scale).to(dtype)
        exact = x.double() / scale
        expected = third_order(plain([0, 1, 2, 3]), exact)
        testing.assert_close(op(x), expected[0])
        if scale in scales[::2]:
            y = x.clone().requires_grad_()
            (g,) = torch.autograd.grad(energy(op(y)), y)
            testing.assert_close(g * scale, expected[1])
            t = torch.ones_like(x)
            along = [
                torch.func.jvp(f, (at,), (by,))[1]
                for f, at, by in ((op, x, t), (plain([0, 1, 2, 3]), exact, t.double()))
            ]
            testing.assert_close(along[0] * scale, along[1])


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("backend", ["native", "reference"])
def test_nan_stays_nan(backend, dtype, bad):
    """No number comes of a vector that is none; the rows beside it are right. An infinite vector has no direction."""

    def op(xyz):
        return eqtp.spherical_harmonics([1, 2, 3], xyz, True, "component", backend)

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
        assert not solid[7, column].isfinite() and solid[rest].isfinite().all()


# symmetry


@by_normalize
def test_equivariance_under_o3(e3nn64, normalize):
    irreps, xyz = o3.Irreps("0e + 1o + 2e + 3o + 6e + 1o"), vectors(9)
    for n in range(3):
        R = torch.from_numpy(testing.random_rotation(n))
        for element in (R, -R, -torch.eye(3)):
            D = irreps.D_from_matrix(element)
            testing.assert_close(
                harmonics(str(irreps), normalize)(xyz @ element.T), harmonics(str(irreps), normalize)(xyz) @ D.T
            )
    testing.assert_equivariant(
        harmonics(list(range(11)), normalize), [(xyz, "1o")], eqtp.Irreps.spherical_harmonics(10)
    )


@by_normalize
@pytest.mark.parametrize(
    ("irreps", "irreps_in"), [("1e + 2e", "1e"), ("2x1o + 0e", None), ([2, 1], "1e"), ("2x1o + 0e", "1o")]
)
def test_module(e3nn64, irreps, irreps_in, normalize):
    ours, theirs = (
        m(irreps, normalize, "norm", irreps_in=irreps_in) for m in (eqtp.nn.SphericalHarmonics, o3.SphericalHarmonics)
    )
    assert str(ours.irreps_out) == str(theirs.irreps_out) and not ours.state_dict() and not list(ours.parameters())
    testing.assert_close(ours(vectors()), theirs(vectors()))


# what is taken

XYZ = torch.ones(4, 3)
ERRORS = [
    ((-1, XYZ, True), ValueError, r"^spherical_harmonics: l must not be negative, got -1$"),
    (([0, -2], XYZ, True), ValueError, r"^spherical_harmonics: l must not be negative, got -2$"),
    ((1, torch.ones(3, 4), True), ValueError, r"^spherical_harmonics: xyz must be \[\.\.\., 3\], got \[3, 4\]$"),
    ((1, torch.tensor(1.0), True), ValueError, r"^spherical_harmonics: xyz must be \[\.\.\., 3\], got \[\]$"),
    (
        (1, torch.ones(4, 3, dtype=torch.int64), True),
        TypeError,
        r"^spherical_harmonics: xyz must be a floating point tensor, got torch\.int64$",
    ),
    ((1, [[1.0, 0.0, 0.0]], True), TypeError, r"^spherical_harmonics: xyz must be a floating point tensor, got list$"),
    (
        (1, XYZ, True, "unit"),
        ValueError,
        r"^spherical_harmonics: normalization must be one of integral, component, norm, got 'unit'$",
    ),
    (
        ("1e + 2o", XYZ, True),
        ValueError,
        r"^spherical_harmonics: no vector has the harmonics 1x1e\+1x2o; parities must be p\^l$",
    ),
    (("1o + 3e", XYZ, True), ValueError, r"no vector has the harmonics"),
    (("1o + 2o", XYZ, True), ValueError, r"no vector has the harmonics"),
    (("0o", XYZ, True), ValueError, r"no vector has the harmonics"),
    ((1, XYZ, True, "norm", "cuda"), ValueError, r"backend must be one of"),
]


@pytest.mark.parametrize(("arguments", "kind", "message"), ERRORS, ids=[e[2][:60] for e in ERRORS])
def test_errors(arguments, kind, message):
    with pytest.raises(kind, match=message):
        eqtp.spherical_harmonics(*arguments)


@pytest.mark.parametrize("l", [True, [0, True], 1.0, [1, "1o"]], ids=str)
def test_what_is_no_degree(monkeypatch, l):
    monkeypatch.setattr(module, "_call", lambda *a: pytest.fail("a kernel ran"))
    with pytest.raises((TypeError, ValueError)):
        eqtp.spherical_harmonics(l, XYZ, True)

"""matrix_tensor_product: its coefficients are 6j symbols; unit, symmetry, derivatives, weights, errors."""

import math
import re

import pytest
import torch
from programs import check_weights_and_broadcasting
from sympy.physics.wigner import wigner_6j

from eqtp import testing
from eqtp.math import sphere as tables
from eqtp.math.so3 import gaunt, wigner_3j
from eqtp.ops.matrix_tensor_product import matrix_tensor_product


def coefficients(*shape_and_lmax, seed=0):
    *shape, lmax = shape_and_lmax
    return testing.random(*shape, (lmax + 1) ** 2, seed=seed)


def path_coefficients(lmax1, lmax2, lmax_out, odd):
    """(l1, l2, l3) -> c of each path whose sum is odd, or even; fails unless the part of the product is c w3j(l1, l2,
    l3)."""
    eyes = [torch.eye((l + 1) ** 2, dtype=torch.float64) for l in (lmax1, lmax2)]
    out = matrix_tensor_product(eyes[0][:, None], eyes[1], lmax_out, split=True)[odd].numpy()
    found = {}
    for l1 in range(lmax1 + 1):
        for l2 in range(lmax2 + 1):
            for l3 in range(lmax_out + 1):
                block = out[l1 * l1 : (l1 + 1) ** 2, l2 * l2 : (l2 + 1) ** 2, l3 * l3 : (l3 + 1) ** 2]
                if abs(l1 - l2) <= l3 <= l1 + l2 and (l1 + l2 + l3) % 2 == odd:
                    w = wigner_3j(l1, l2, l3)
                    found[l1, l2, l3] = (block * w).sum()
                    assert abs(block - found[l1, l2, l3] * w).max() < 1e-13
                else:
                    assert abs(block).max() < 1e-13
    return found


@pytest.mark.parametrize(
    "degrees", [(1, 1, 1), (2, 2, 2), (2, 1, 3), (3, 3, 3), (4, 4, 4), (1, 2, 6), (3, 5, 5)], ids=str
)
@pytest.mark.parametrize("odd", [False, True])
def test_coefficients_are_6j_symbols(degrees, odd):
    s = math.ceil(max(degrees) / 2)
    for (l1, l2, l3), c in path_coefficients(*degrees, odd).items():
        scale = math.sqrt((2 * s + 1) * (2 * l1 + 1) * (2 * l2 + 1) * (2 * l3 + 1) / (4 * math.pi))
        assert abs(c) == pytest.approx(scale * abs(float(wigner_6j(l1, l2, l3, s, s, s))), rel=1e-12, abs=1e-14)


def test_large_matrices_tend_to_gaunt_and_the_bracket():
    s = 12
    for odd in (False, True):
        for (l1, l2, l3), c in path_coefficients(2, 2, 2 * s, odd).items():
            if l3 > 4:
                continue
            w = wigner_3j(l1, l2, l3)
            if odd:
                expected = (
                    (tables.bracket(l1, l2, l3) * w).sum()
                    / (2 * math.sqrt(s * (s + 1)))
                    * (1 if l1 % 2 or l2 % 2 else -1)
                )
            else:
                expected = (gaunt(l1, l2, l3) * w).sum() * (-1 if l1 % 2 and l2 % 2 else 1)
            assert c == pytest.approx(expected, rel=0.03)


@pytest.mark.parametrize("lmax", [0, 1, 3, 4])
def test_one_is_the_unit(lmax):
    x = coefficients(5, lmax)
    one = torch.zeros((lmax + 1) ** 2, dtype=torch.float64)
    one[0] = math.sqrt(4 * math.pi)
    testing.assert_close(matrix_tensor_product(x, one, lmax), x)
    testing.assert_close(matrix_tensor_product(one[:1], x, lmax), x)


def test_split_parts_add_up_and_have_parity():
    x1, x2 = coefficients(6, 3, seed=1), coefficients(6, 2, seed=2)
    even, odd = matrix_tensor_product(x1, x2, 4, split=True)
    testing.assert_close(even + odd, matrix_tensor_product(x1, x2, 4))

    def irreps(lmax, p):
        return [(1, (l, p * (-1) ** l)) for l in range(lmax + 1)]

    for p, q in ((1, 1), (1, -1)):

        def f(a, b):
            return torch.cat(matrix_tensor_product(a, b, 4, split=True), -1)

        testing.assert_equivariant(f, [(x1, irreps(3, p)), (x2, irreps(2, q))], irreps(4, p * q) + irreps(4, -p * q))

    def same(lmax, p):
        return [(1, (l, p)) for l in range(lmax + 1)]

    testing.assert_equivariant(
        lambda a, b: matrix_tensor_product(a, b, 4), [(x1, same(3, -1)), (x2, same(2, 1))], same(4, -1)
    )
    with pytest.raises(AssertionError, match="equivariance under rotation with inversion"):
        testing.assert_equivariant(
            lambda a, b: matrix_tensor_product(a, b, 4), [(x1, irreps(3, 1)), (x2, irreps(2, 1))], irreps(4, 1)
        )


def test_derivatives():
    inputs = (
        coefficients(2, 1, 2, seed=1),
        coefficients(2, 1, seed=2),
        *(testing.random(2, l + 1, seed=l) for l in (2, 1, 3)),
    )
    inputs = tuple(t.requires_grad_() for t in inputs)

    def f(a, b, u, v, w):
        return matrix_tensor_product(a, b, 3, w1=u, w2=v, w3=w)

    assert torch.autograd.gradcheck(f, inputs, check_forward_ad=True)
    assert torch.autograd.gradgradcheck(f, inputs)


KERNELS = ["native"]  # families with kernels for this on the CPU


@pytest.mark.parametrize(
    "degrees", [(0, 0, 0), (1, 0, 2), (2, 2, 2), (3, 2, 4), (4, 1, 6), (2, 5, 8), (10, 4, 3), (1, 2, 13)], ids=str
)
@pytest.mark.parametrize("split", [False, True])
@pytest.mark.parametrize("backend", KERNELS)
def test_kernels(degrees, split, backend):
    """Every size of matrices that has code of its own, and others: rows that fill vectors and rows that do not, to the
    second order."""
    case = testing.Case(
        {"x1": coefficients(5, 7, degrees[0], seed=1), "x2": coefficients(5, 1, degrees[1], seed=2)},
        testing.random(5, 7, (1 + split) * (degrees[2] + 1) ** 2, seed=3),
        {"x1": coefficients(5, 7, degrees[0], seed=4), "x2": coefficients(5, 1, degrees[1], seed=5)},
        {},
    )

    def product(backend):
        def both(out):
            return torch.cat(out, -1) if split else out

        return lambda x1, x2: both(matrix_tensor_product(x1, x2, degrees[2], split=split, backend=backend))

    testing.check_op(product(backend), product("reference"), case)


@pytest.mark.parametrize("backend", KERNELS)
def test_kernels_read_any_layout(backend):
    # [3, 2, n] each
    x1, x2 = (
        coefficients(2, 3, 3, seed=1).transpose(0, 1),
        testing.random(9, 3, 2, seed=2).movedim(0, -1),
    )

    def f(backend, *x):
        return torch.stack(matrix_tensor_product(*x, 2, split=True, backend=backend))

    for operands in ((x1, x2), (x1[:, :1], x2), (x1[0, 0], x2)):
        testing.assert_close(f(backend, *operands), f("reference", *operands))
    wide = coefficients(4, 5, 3, seed=3)[..., ::2][..., :4]
    testing.assert_close(f(backend, wide, wide[0]), f("reference", wide, wide[0]))
    assert f(backend, wide[:0], wide[0]).shape == (2, 0, 5, 9)


@pytest.mark.parametrize("backend", KERNELS)
def test_one_gradient_alone(backend):
    """Kernels leave out what is not wanted."""
    x1, x2 = coefficients(3, 4, seed=1), coefficients(3, 2, seed=2)
    for operand in (0, 1):
        found = []
        for name in (backend, "reference"):
            inputs = [x1.clone(), x2.clone()]
            inputs[operand].requires_grad_()
            even, odd = matrix_tensor_product(*inputs, 3, split=True, backend=name)
            found += torch.autograd.grad((even * odd.cos()).sum(), inputs[operand])
        testing.assert_close(*found)


def test_compiles_in_one_graph():
    x = coefficients(4, 3).requires_grad_()

    def f(x):
        return torch.cat(matrix_tensor_product(x, x, 3, split=True))

    results = [
        (out, *torch.autograd.grad(out.sin().sum(), x))
        for out in (torch.compile(f, backend="aot_eager", fullgraph=True)(x), f(x))
    ]
    for a, b in zip(*results, strict=True):
        testing.assert_close(a, b)


def test_weights_and_broadcasting():
    check_weights_and_broadcasting(matrix_tensor_product)


@pytest.mark.parametrize("lmax", [1, 4, 8, 10])
def test_float32(lmax):
    x1, x2 = coefficients(16, lmax, seed=1), coefficients(16, lmax, seed=2)
    testing.assert_close(
        matrix_tensor_product(x1.float(), x2.float(), lmax), matrix_tensor_product(x1, x2, lmax), tolerance=1e-6
    )


def test_half_precision_is_for_storage():
    x = coefficients(4, 3).bfloat16()
    assert torch.equal(matrix_tensor_product(x, x, 3), matrix_tensor_product(x.float(), x.float(), 3).bfloat16())


def test_opcheck():
    x1, x2 = (coefficients(2, 3, l, seed=l).requires_grad_() for l in (2, 1))
    torch.library.opcheck(torch.ops.eqtp.matrix_tensor_product.default, (x1, x2, 2, True, "native"))
    g = coefficients(2, 3, 2, 2)
    torch.library.opcheck(
        torch.ops.eqtp.matrix_tensor_product_bwd.default, (g, x1, x2, [True, False], 2, True, "native")
    )
    second = (g, x1.detach(), x2.detach(), coefficients(2, 3, 2, seed=4), coefficients(2, 3, 1, seed=5))
    torch.library.opcheck(
        torch.ops.eqtp.matrix_tensor_product_bwdbwd.default, (*second, [True, False, True], 2, True, "native")
    )


@pytest.mark.parametrize("transform", ["vmap", "jacrev", "jvp"])
def test_transforms(transform):
    x1, x2 = coefficients(4, 2, seed=1), coefficients(4, 2, seed=2)

    def f(a, b):
        return matrix_tensor_product(a, b, 2)

    expected = f(x1, x2)
    if transform == "vmap":
        testing.assert_close(torch.func.vmap(f)(x1, x2), expected)
    elif transform == "jacrev":
        testing.assert_close(torch.func.jacrev(f)(x1[0], x2[0]) @ x1[0], expected[0])
    else:
        testing.assert_close(torch.func.jvp(f, (x1, x2), (x1, torch.zeros_like(x2)))[1], expected)


def test_errors():
    x = torch.zeros(2, 9)
    for arguments, options, error, message in (
        ((x[:, :3], x, 2), {}, ValueError, "x1 must be [..., (lmax+1)^2], got [2, 3]"),
        ((x, x.double(), 2), {}, TypeError, "x2 must have the dtype of x1, torch.float32, got torch.float64"),
        ((x, x, -2), {}, ValueError, "lmax_out must be at least 0, got -2"),
        ((x, x, 3), {"w3": torch.ones(3)}, ValueError, "w3 must be [..., 4], got [3]"),
    ):
        with pytest.raises(error, match=re.escape(f"matrix_tensor_product: {message}")):
            matrix_tensor_product(*arguments, **options)

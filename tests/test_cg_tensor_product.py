"""cg_tensor_product: both routes, path by path; weights, ranks of them, derivatives, parity, errors."""

import math
import re

import calls
import numpy as np
import programs
import pytest
import torch

import eqtp
from eqtp import testing
from eqtp.math.so3 import wigner_3j
from eqtp.ops.cg_tensor_product import cg_paths, cg_tensor_product, rank_weights
from eqtp.ops.gaunt_tensor_product import gaunt_tensor_product
from eqtp.plans import couplings

DEGREES = [(0, 0, 0), (1, 1, 1), (2, 1, 3), (1, 3, 2), (3, 3, 3), (2, 2, 5)]
METHODS = ["dense", "sparse"]


def coefficients(*shape_and_lmax, seed=0):
    *shape, lmax = shape_and_lmax
    return testing.random(*shape, (lmax + 1) ** 2, seed=seed)


def formula(x1, x2, w, lmax_out):
    """One path after the other, x [n, ..], w [n, paths]."""
    degrees = [math.isqrt(x.shape[-1]) - 1 for x in (x1, x2)]
    out = torch.zeros(len(x1), (lmax_out + 1) ** 2, dtype=torch.float64)
    for p, (l1, l2, l3) in enumerate(cg_paths(*degrees, lmax_out)):
        c = math.sqrt(2 * l3 + 1) * torch.tensor(wigner_3j(l1, l2, l3))
        part = torch.einsum("zi,zj,ijk->zk", x1[:, l1 * l1 : (l1 + 1) ** 2], x2[:, l2 * l2 : (l2 + 1) ** 2], c)
        out[:, l3 * l3 : (l3 + 1) ** 2] += w[:, p : p + 1] * part
    return out


@pytest.mark.parametrize("degrees", DEGREES, ids=str)
@pytest.mark.parametrize("method", METHODS)
def test_paths(degrees, method):
    """Each with a weight of its own, so that none can stand for another."""
    paths = cg_paths(*degrees)
    assert paths == sorted(paths) and len(set(paths)) == len(paths)
    w = torch.eye(len(paths), dtype=torch.float64)
    x1, x2 = (coefficients(l, seed=l + 1).expand(len(paths), -1) for l in degrees[:2])
    testing.assert_close(cg_tensor_product(x1, x2, degrees[2], w, method=method), formula(x1, x2, w, degrees[2]))
    testing.assert_close(
        cg_tensor_product(x1, x2, degrees[2], method=method), formula(x1, x2, torch.ones_like(w), degrees[2])
    )


def test_number_of_paths():
    assert [len(cg_paths(lmax, lmax, 2 * lmax)) for lmax in range(1, 7)] == [6, 19, 44, 85, 146, 231]


@pytest.mark.parametrize("degrees", [(2, 1, 3), (2, 2, 2)], ids=str)
@pytest.mark.parametrize("method", METHODS)
def test_derivatives_of_both_routes(degrees, method):
    """Against the formula; the first and second order in one kernel each, in float64 and float32."""
    sizes = [(l + 1) ** 2 for l in degrees[:2]] + [len(cg_paths(*degrees))]
    operands, cotangents = (
        {n: testing.random(5, 3, m, seed=seed + m) for n, m in zip(("x1", "x2", "w"), sizes, strict=True)}
        for seed in (0, 99)
    )
    case = testing.Case(operands, testing.random(5, 3, (degrees[2] + 1) ** 2, seed=7), cotangents, {})

    def reference(x1, x2, w):
        return formula(*(t.flatten(0, 1) for t in (x1, x2, w)), degrees[2]).unflatten(0, (5, 3))

    testing.check_op(lambda x1, x2, w: cg_tensor_product(x1, x2, degrees[2], w, method=method), reference, case)


@pytest.mark.parametrize("pass_", ["fwd", "bwd", "bwdbwd"])
def test_tables(pass_):
    """What is wanted does not change what is calculated; an output is what the whole table gives for it."""
    degrees, outputs = (2, 1, 2), {"fwd": 1, "bwd": 3, "bwdbwd": 4}[pass_]
    whole = couplings.cg(*degrees, pass_, (True,) * outputs)
    inputs = [testing.random(2, n, seed=seed) for seed, n in enumerate(whole.inputs)]
    expected = programs.couple(whole, inputs)
    for n in range(outputs):
        part = couplings.cg(*degrees, pass_, tuple(o == n for o in range(outputs)))
        assert part is couplings.cg(*degrees, pass_, tuple(o == n for o in range(outputs)))
        testing.assert_close(*programs.couple(part, inputs), expected[n])
        out = torch.empty(2, 1, *part.outputs, dtype=torch.float64)
        calls.run("native", "couplings", part, [t[:, None] for t in inputs], [out])
        testing.assert_close(out[:, 0], expected[n])


@pytest.mark.parametrize("method", METHODS)
def test_gradcheck(method):
    n = len(cg_paths(1, 2, 2))
    shapes = [(2, 1, 4), (3, 9), (2, 1, n), (2,), (3, 3), (2, 3, 3)]
    inputs = tuple(testing.random(*shape, seed=seed).requires_grad_() for seed, shape in enumerate(shapes))

    def f(a, b, w, w1, w2, w3):
        return cg_tensor_product(a, b, 2, w, w1=w1, w2=w2, w3=w3, method=method)

    assert torch.autograd.gradcheck(f, inputs, check_forward_ad=True)
    assert torch.autograd.gradgradcheck(f, inputs)


@pytest.mark.parametrize("method", METHODS)
def test_layouts(method):
    """Broadcasting, strides and shared operands."""
    n = len(cg_paths(2, 1, 3))
    x1, x2, w = coefficients(4, 1, 2, seed=1), coefficients(3, 1, seed=2), testing.random(n, 4, 3, seed=3)

    def f(x1, x2, w):
        return cg_tensor_product(x1, x2, 3, w, method=method)

    expected = formula(*(t.expand(4, 3, -1).flatten(0, 1) for t in (x1, x2, w.movedim(0, -1))), 3).unflatten(0, (4, 3))
    testing.assert_close(f(x1, x2, w.movedim(0, -1)), expected)
    for z, c in ((0, 1), (3, 2)):
        testing.assert_close(f(x1[z, 0], x2[c], w[:, z, c]), expected[z, c])
    x1, x2 = coefficients(2, 4, 3, 2, seed=4).transpose(0, 2), coefficients(1, seed=5)
    shared = f(x1, x2, w[:, 0, 0])
    testing.assert_close(
        shared.flatten(0, 2), formula(*(t.expand(3, 4, 2, -1).flatten(0, 2) for t in (x1, x2, w[:, 0, 0])), 3)
    )
    assert f(x1[:0], x2, w[:, 0, 0]).shape == (0, 4, 2, 16)


@pytest.mark.parametrize("rank", [1, 3])
@pytest.mark.parametrize("degrees", [(2, 3, 4), (1, 1, 1)], ids=str)
def test_rank_weights(rank, degrees):
    a, b, c = (testing.random(5, rank, l + 1, seed=seed) for seed, l in enumerate(degrees))
    x1, x2 = (coefficients(5, l, seed=l) for l in degrees[:2])
    even, odd = gaunt_tensor_product(x1[:, None], x2[:, None], degrees[2], w1=a, w2=b, w3=c, odd=True)
    testing.assert_close(cg_tensor_product(x1, x2, degrees[2], rank_weights(a, b, c)), even.sum(1))
    testing.assert_close(cg_tensor_product(x1, x2, degrees[2], rank_weights(a, b, c, odd=True)), (even + odd).sum(1))
    w = rank_weights(a, b, c)
    kept = torch.tensor([sum(path) % 2 == 0 for path in cg_paths(*degrees)])
    assert (w[:, kept] != 0).all() and not w[:, ~kept].any()
    for wrong in ((a[:, :1], b[:, :0], c), (a[0, 0], b, c)):
        with pytest.raises(
            ValueError, match=r"^rank_weights: a, b and c must be \[\.\.\., R, lmax\+1\] with one R, got \["
        ):
            rank_weights(*wrong)


def test_ranks_reach_all_even_paths():
    """The dial: degrees of freedom of sums of one, two and three products."""
    kept = [n for n, p in enumerate(cg_paths(2, 2, 4)) if sum(p) % 2 == 0]
    reach = []
    for rank in (1, 2, 3):
        inputs = tuple(testing.random(rank, l + 1, seed=l + 7) for l in (2, 2, 4))
        jacobian = torch.autograd.functional.jacobian(lambda *abc: rank_weights(*abc)[kept], inputs)
        reach.append(np.linalg.matrix_rank(torch.cat([j.flatten(1) for j in jacobian], 1).numpy()))
    assert reach[0] == eqtp.expressivity("gaunt", 2) < reach[1] <= reach[2] == len(kept)


@pytest.mark.parametrize("p, q", [(1, 1), (-1, 1)])
def test_parity(p, q):
    x1, x2, paths = coefficients(6, 3, seed=1), coefficients(6, 2, seed=2), cg_paths(3, 2, 4)

    def irreps(lmax, p):
        return [(1, (l, p * (-1) ** l)) for l in range(lmax + 1)]

    inputs = [(x1, irreps(3, p)), (x2, irreps(2, q))]
    for odd in (0, 1):
        w = testing.random(len(paths), seed=3) * torch.tensor([sum(path) % 2 == odd for path in paths])

        def f(a, b, w=w):
            return cg_tensor_product(a, b, 4, w)

        testing.assert_equivariant(f, inputs, irreps(4, p * q * (-1) ** odd))
        with pytest.raises(AssertionError, match="equivariance under rotation with inversion"):
            testing.assert_equivariant(f, inputs, irreps(4, -p * q * (-1) ** odd))

    def same(lmax, p):
        return [(1, (l, p)) for l in range(lmax + 1)]

    testing.assert_equivariant(
        lambda a, b: cg_tensor_product(a, b, 4), [(x1, same(3, p)), (x2, same(2, q))], same(4, p * q)
    )


@pytest.mark.parametrize("method", METHODS)
def test_transforms(method):
    x, y, w = (
        coefficients(4, 2).requires_grad_(),
        coefficients(4, 1, seed=1),
        testing.random(len(cg_paths(2, 1, 2)), seed=2),
    )

    def f(x):
        return cg_tensor_product(x, y, 2, w, method=method)

    results = [
        (out, *torch.autograd.grad(out.sin().sum(), x))
        for out in (torch.compile(f, backend="aot_eager", fullgraph=True)(x), f(x))
    ]
    for a, b in zip(*results, strict=True):
        testing.assert_close(a, b)
    ranks = tuple(testing.random(3, l + 1, seed=l) for l in (2, 1, 2))
    testing.assert_close(torch.compile(rank_weights, backend="aot_eager", fullgraph=True)(*ranks), rank_weights(*ranks))
    each = torch.func.vmap(lambda w, x, y: cg_tensor_product(x, y, 2, w, method=method), in_dims=(None, 0, 0))
    testing.assert_close(each(w, x.detach(), y), f(x).detach())


def test_opcheck():
    x1, x2, w = (testing.random(2, 3, n, seed=n).requires_grad_() for n in (9, 4, len(cg_paths(2, 1, 2))))
    torch.library.opcheck(torch.ops.eqtp.cg_tensor_product.default, (x1, x2, w, 2, "native"))
    torch.library.opcheck(
        torch.ops.eqtp.cg_tensor_product_bwd.default,
        (testing.random(2, 3, 9), x1, x2, w, [True, False, True], 2, "native"),
    )
    # g, x1, x2, w, and cotangents
    second = tuple(testing.random(2, 3, n, seed=n) for n in (9, 9, 4, w.shape[-1], 9, 4, w.shape[-1]))
    torch.library.opcheck(
        torch.ops.eqtp.cg_tensor_product_bwdbwd.default, (*second, [True, False, True, True], 2, "native")
    )


@pytest.mark.parametrize("lmax", [1, 4, 6])
@pytest.mark.parametrize("method", METHODS)
def test_float32(method, lmax):
    x1, x2, w = (
        coefficients(16, lmax, seed=1),
        coefficients(16, lmax, seed=2),
        testing.random(len(cg_paths(lmax, lmax, lmax)), seed=3),
    )

    def f(*t):
        return cg_tensor_product(t[0], t[1], lmax, t[2], method=method)

    testing.assert_close(f(x1.float(), x2.float(), w.float()), f(x1, x2, w), tolerance=1e-6)


def test_half_precision_is_for_storage():
    x, w = coefficients(4, 2).bfloat16(), testing.random(len(cg_paths(2, 2, 2))).bfloat16()
    assert torch.equal(cg_tensor_product(x, x, 2, w), cg_tensor_product(x.float(), x.float(), 2, w.float()).bfloat16())


def test_errors():
    x, n = torch.zeros(2, 9), len(cg_paths(2, 2, 2))
    for arguments, options, error, message in (
        ((x[:, :3], x, 2), {}, ValueError, "x1 must be [..., (lmax+1)^2], got [2, 3]"),
        ((x, x.double(), 2), {}, TypeError, "x2 must have the dtype of x1, torch.float32, got torch.float64"),
        ((x, x, -2), {}, ValueError, "lmax_out must be at least 0, got -2"),
        ((x, x, 3), {"w3": torch.ones(3)}, ValueError, "w3 must be [..., 4], got [3]"),
        ((x, x, 2, 1.0), {}, TypeError, "w must be a tensor or None, got float"),
        ((x, x, 2, torch.ones(n - 1)), {}, ValueError, f"w must be [..., {n}], got [{n - 1}]"),
        (
            (x, x, 2, torch.ones(n).double()),
            {},
            TypeError,
            "w must have the dtype of x1, torch.float32, got torch.float64",
        ),
        ((x, x, 2, torch.ones(n, device="meta")), {}, ValueError, "w must be on the device of x1, cpu, got meta"),
        (
            (x, x, 2, torch.ones(3, n)),
            {},
            ValueError,
            f"the leading dimensions do not broadcast: x1 [2, 9], x2 [2, 9], w [3, {n}]",
        ),
        ((x, x, 2), {"method": "grid"}, ValueError, "method must be one of auto, dense, sparse, got 'grid'"),
        (
            (x, x, 2),
            {"method": "sparse", "backend": "reference"},
            RuntimeError,
            "method 'sparse' needs kernels, backend 'reference' has none",
        ),
        (
            (x, x, 2),
            {"method": "dense", "backend": "native"},
            RuntimeError,
            "there are no kernels for the method 'dense'; it is plain torch",
        ),
    ):
        with pytest.raises(error, match=re.escape(f"cg_tensor_product: {message}")):
            cg_tensor_product(*arguments, **options)

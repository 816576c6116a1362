"""tensor_product: native kernels against the float64 reference, per path and operand, to second order."""

import calls
import pytest
import torch

import eqtp
from eqtp import testing
from eqtp.ops.tensor_product import reference
from eqtp.plans.plan import TensorProductPlan
from eqtp.testing import problems

DTYPES = [torch.float64, torch.float32]


@pytest.mark.parametrize("problem", problems.TENSOR_PRODUCTS.values(), ids=lambda problem: problem.id)
def test_every_problem(problem):
    """R1, R2, R35: output and gradients of x1, x2, w, first and second order, per path."""
    plan = problems.plan(problem.id)
    if problem.mode == "uvu":
        testing.check_tensor_product(plan, "native")
        return
    explained = eqtp.explain(plan)
    assert f"native     no: path 0 ({plan.irreps_in1[plan.paths[0].i1]} x " in explained
    assert "has mode uvw; the channelwise kernels do uvu" in explained
    assert explained.endswith("auto       reference")
    testing.check_tensor_product(plan, "auto")
    with pytest.raises(RuntimeError, match=r"'native' cannot run this: path 0 .* has mode uvw"):
        testing.check_tensor_product(plan, "native")


def test_channelwise_problems_are_native_by_default():
    for problem in problems.TENSOR_PRODUCTS.values():
        if problem.mode == "uvu":
            explained = eqtp.explain(problems.plan(problem.id), "cpu", torch.float64)
            assert "native     yes" in explained.splitlines() and explained.endswith("auto       native")


@pytest.mark.parametrize("seed", range(40))
def test_random_channelwise_products(random_channelwise, seed):
    """Uneven multiplicities, weighted and unweighted paths, several or none into a slot."""
    testing.check_tensor_product(TensorProductPlan(*random_channelwise(seed)), "native")


@pytest.mark.parametrize("seed", range(4))
def test_high_degrees(random_channelwise, seed):
    """Degrees beyond the specialised kernels."""
    plan = TensorProductPlan(*random_channelwise(seed, lmax=6, muls=(1, 3, 16)))
    assert max(p.l1 for p in plan.paths) > 4 or max(p.l3 for p in plan.paths) > 4
    testing.check_tensor_product(plan, "native")


@pytest.mark.parametrize("degrees", [(5, 1, 6), (6, 6, 6), (0, 6, 6), (6, 0, 6), (6, 6, 0), (10, 2, 9), (16, 1, 16)])
def test_one_path_of_high_degree(degrees):
    l1, l2, l3 = degrees
    plan = TensorProductPlan(f"17x{l1}o", f"{l2}e", f"17x{l3}o", [(0, 0, 0, "uvu", True)])
    testing.check_tensor_product(plan, "native")


def test_degree_above_the_kernels_goes_to_the_reference():
    plan = TensorProductPlan("2x17o", "1e", "2x17o", [(0, 0, 0, "uvu", True)])
    assert "exceeds l = 16, the largest degree of the channelwise kernels" in eqtp.explain(plan)
    testing.check_tensor_product(plan, "auto")


@pytest.mark.parametrize("mul", [1, 2, 7, 15, 16, 17, 31, 33, 48, 64])
@pytest.mark.parametrize("weighted", [True, False])
def test_multiplicities(mul, weighted):
    """Multiplicities that fill vectors or not; the neighbours 3 and 5 shift every offset."""
    instructions = [
        (0, 0, 0, "uvu", True),
        (1, 1, 1, "uvu", weighted),
        (1, 2, 2, "uvu", True),
        (2, 1, 3, "uvu", weighted),
    ]
    plan = TensorProductPlan(f"3x0e+{mul}x1o+5x2e", "0e+1o+2e", f"3x0e+{mul}x0e+{mul}x3o+5x1o", instructions)
    testing.check_tensor_product(plan, "native")


def test_normalisations_and_variances(random_channelwise):
    arguments = random_channelwise(3)
    for irrep in ("component", "norm", "none"):
        for path in ("element", "path", "none"):
            var = [0.5 + k for k in range(len(arguments[0]))]
            testing.check_tensor_product(TensorProductPlan(*arguments, irrep, path, in1_var=var), "native")


SMALL = TensorProductPlan(
    "17x0e+3x1o+2x2e",
    "0e+1o+2e",
    "3x1o+17x1o+2x2e+3x0e",
    [(1, 0, 0, "uvu", True), (0, 1, 1, "uvu", True), (2, 2, 2, "uvu", False), (1, 1, 3, "uvu", True)],
)


def operands(z, dtype=torch.float64, seed=0):
    """x1, x2, w of SMALL."""
    shapes = (SMALL.dim_in1, SMALL.dim_in2, SMALL.weight_numel)
    return [testing.random(z, n, seed=seed + k).to(dtype) for k, n in enumerate(shapes)]


@pytest.mark.parametrize("z", [0, 1, 2, 31, 33])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_sizes(z, dtype):
    """R19: any number of rows, zero included, with the autograd graph kept."""
    inputs = [t.requires_grad_() for t in operands(z, dtype)]
    with testing.poisoned():
        out = eqtp.tensor_product(*inputs, SMALL, backend="native")
        grads = torch.autograd.grad(out.sin().sum(), inputs, create_graph=True)
        seconds = torch.autograd.grad(sum((t**2).sum() for t in grads), inputs)
    assert out.shape == (z, SMALL.dim_out) and out.requires_grad
    expected_inputs = [t.detach().double().requires_grad_() for t in inputs]
    expected = reference(*expected_inputs, SMALL)
    firsts = torch.autograd.grad(expected.sin().sum(), expected_inputs, create_graph=True)
    again = torch.autograd.grad(sum((t**2).sum() for t in firsts), expected_inputs)
    for a, b in zip([out, *grads, *seconds], [expected, *firsts, *again], strict=True):
        testing.assert_close(a, b)


def column_slice(t):
    wide = torch.full((t.shape[0], t.shape[1] + 5), float("nan"), dtype=t.dtype)
    wide[:, 3 : 3 + t.shape[1]] = t
    return wide[:, 3 : 3 + t.shape[1]]


def every_other_row(t):
    return t.repeat_interleave(2, dim=0)[1::2]


def transposed(t):
    return t.t().contiguous().t()


def every_other_column(t):
    return t.repeat_interleave(2, dim=1)[:, ::2]


def expanded_rows(t):
    return t[:1].expand_as(t)


def expanded_all(t):
    return t[:1, :1].expand_as(t)


LAYOUTS = [column_slice, every_other_row, transposed, every_other_column, expanded_rows, expanded_all]


@pytest.mark.parametrize("layout", LAYOUTS, ids=lambda f: f.__name__)
@pytest.mark.parametrize("which", range(7), ids=["x1", "x2", "w", "g", "cx1", "cx2", "cw"])
def test_slices_of_larger_tensors(layout, which):
    """Operands and cotangents of any layout: row strides, offsets, inner strides, stride 0."""
    z = 9
    tensors = [*operands(z), testing.random(z, SMALL.dim_out, seed=7), *operands(z, seed=20)]
    tensors[which] = layout(tensors[which])

    def orders(product, tensors):
        x1, x2, w, g, *cotangents = tensors
        inputs = [t.requires_grad_() for t in (x1, x2, w, g)]
        out = product(x1, x2, w, SMALL)
        first = torch.autograd.grad(out, inputs[:3], g, create_graph=True)
        return [out, *first, *torch.autograd.grad(first, inputs, cotangents)]

    with testing.poisoned():
        ours = orders(eqtp.tensor_product, [t.detach() for t in tensors])  # detach keeps the strides
    for a, b in zip(ours, orders(reference, [t.detach().clone() for t in tensors]), strict=True):
        testing.assert_close(a, b)


def test_inputs_are_not_written():
    tensors = operands(5)
    copies = [t.clone() for t in tensors]
    out = eqtp.tensor_product(*(t.requires_grad_() for t in tensors), SMALL)
    torch.autograd.grad(out.sum(), tensors)
    assert all(torch.equal(a, b) for a, b in zip(tensors, copies, strict=True))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_shared_weights(dtype):
    """w [numel]: equal to the same weights in every row; its gradient is the sum over the rows."""
    x1, x2, w = operands(6, dtype)
    shared = w[0].clone().requires_grad_()
    rows = w[:1].double().expand_as(w).clone().requires_grad_()
    ours = eqtp.tensor_product(x1, x2, shared, SMALL, backend="native")
    theirs = reference(x1.double(), x2.double(), rows, SMALL)
    testing.assert_close(ours, theirs)
    (g,) = torch.autograd.grad(ours.sin().sum(), shared)
    testing.assert_close(g, torch.autograd.grad(theirs.sin().sum(), rows)[0].sum(0))


NOTHING = [
    ("4x0e", "0e", "", []),
    ("", "", "", []),
    ("", "0e", "2x1o", []),
    ("2x1o", "1o", "3x0e+2x1e", []),
    ("0x1o+2x0e", "1o", "0x0e+2x1o", [(0, 0, 0, "uvu", True), (1, 0, 1, "uvu", True)]),
    ("0x1o", "1o", "0x0e", [(0, 0, 0, "uvu", True)]),
    ("2x1o", "1o", "2x0e", [(0, 0, 0, "uvu", False)]),
    ("2x1o", "1o", "2x0e", [(0, 0, 0, "uvu", True, 0.0)]),
]


@pytest.mark.parametrize("arguments", NOTHING, ids=lambda a: " x ".join(map(str, a[:2])))
@pytest.mark.parametrize("z", [0, 3])
def test_empty_products(arguments, z):
    """R19: no paths, no weights, no channels, no components: zeros, and a backward that runs."""
    plan = TensorProductPlan(*arguments)
    x1, x2, w = (testing.random(z, n).requires_grad_() for n in (plan.dim_in1, plan.dim_in2, plan.weight_numel))
    with testing.poisoned():
        out = eqtp.tensor_product(x1, x2, w, plan, backend="native")
        assert out.shape == (z, plan.dim_out) and out.requires_grad
        grads = torch.autograd.grad(out.sum(), (x1, x2, w), create_graph=True)
        seconds = torch.autograd.grad(sum(t.sum() for t in grads), (x1, x2, w), materialize_grads=True)
    expected = reference(x1, x2, w, plan)
    testing.assert_close(out, expected)
    for t, a, b in zip((x1, x2, w), grads, seconds, strict=True):
        assert a.shape == b.shape == t.shape and a.isfinite().all() and b.isfinite().all()
    if plan.weight_numel == 0:
        assert torch.equal(eqtp.tensor_product(x1, x2, None, plan, backend="native"), out)


def test_repeats_and_threads():
    """20 repeats are equal bit by bit, with one thread and with two."""
    x1, x2, w = operands(37, torch.float32)

    def everything():
        inputs = [t.clone().requires_grad_() for t in (x1, x2, w)]
        out = eqtp.tensor_product(*inputs, SMALL, backend="native")
        first = torch.autograd.grad(out.sin().sum(), inputs, create_graph=True)
        return [out, *first, *torch.autograd.grad(sum((t**2).sum() for t in first), inputs)]

    for threads in (1, 2):
        torch.set_num_threads(threads)
        once = everything()
        for _ in range(20):
            assert all(torch.equal(a, b) for a, b in zip(once, everything(), strict=True))
        if threads == 1:
            single = once
    for a, b in zip(once, single, strict=True):
        testing.assert_close(a, b.double())


@pytest.mark.parametrize("seed", range(6))
def test_equivariance(random_channelwise, seed):
    plan = TensorProductPlan(*random_channelwise(seed))
    x1, x2 = testing.random(4, plan.dim_in1, seed=1), testing.random(4, plan.dim_in2, seed=2)
    w = testing.random(4, plan.weight_numel, seed=3)

    def product(x1, x2):
        return eqtp.tensor_product(x1, x2, w, plan, backend="native")

    testing.assert_equivariant(product, [(x1, plan.irreps_in1), (x2, plan.irreps_in2)], plan.irreps_out)


def test_named_backend_is_the_one_that_runs(monkeypatch):
    inputs, made = operands(3), calls.count_calls(monkeypatch, "channelwise")
    for backend, count in (("reference", 0), ("native", 1), ("auto", 2)):
        eqtp.tensor_product(*inputs, SMALL, backend=backend)
        assert len(made) == count

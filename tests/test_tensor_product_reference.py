"""The reference against e3nn: seeded fuzz over modes, normalisations, weights, variances; with gradients."""

import e3nn
import numpy as np
import pytest
import torch
from e3nn import o3

from eqtp.ops.tensor_product import reference
from eqtp.plans.plan import MODES, TensorProductPlan

CASES = 320
TIED = ("uuw", "uuu", "uvu<v", "u<vw")  # modes that need equal multiplicities


@pytest.fixture(autouse=True)
def float64_and_eager_e3nn():
    """e3nn's tables have the default dtype; its compilers are slow and not under test."""
    dtype, settings = torch.get_default_dtype(), e3nn.get_optimization_defaults()
    torch.set_default_dtype(torch.float64)
    e3nn.set_optimization_defaults(jit_mode="eager", optimize_einsums=False)
    yield
    torch.set_default_dtype(dtype)
    e3nn.set_optimization_defaults(jit_mode=settings["jit_mode"], optimize_einsums=settings["optimize_einsums"])


def random_block(rng):
    return int(rng.integers(0, 6)), (int(rng.integers(0, 5)), int(rng.choice([1, -1])))


def random_instruction(rng, in1, in2, out):
    """Appends the output block if it needs a new one."""
    mode = str(rng.choice(list(MODES)))
    # the last block of in2 has the multiplicity of the first of in1
    i, j = (0, len(in2) - 1) if mode in TIED else (int(rng.integers(len(in1))), int(rng.integers(len(in2))))
    (mul1, (l1, p1)), (mul2, (l2, p2)) = in1[i], in2[j]
    weighted = mode in ("uvw", "u<vw") or bool(rng.random() < 0.7)
    free = int(rng.integers(1, 4)) if weighted else 1
    pairs = mul1 * (mul1 - 1) // 2
    mul3 = {"uvw": free, "uvu": mul1, "uvv": mul2, "uuw": free, "uuu": mul1, "uvuv": mul1 * mul2}
    mul3 |= {"uvu<v": pairs, "u<vw": free}
    block = (mul3[mode], (int(rng.integers(abs(l1 - l2), min(l1 + l2, 5) + 1)), p1 * p2))
    if block not in out or rng.random() < 0.3:
        out.append(block)
    k = max(n for n, other in enumerate(out) if other == block)
    instruction = (i, j, k, mode, weighted, float(rng.choice([0.0, 1.0, 3 * rng.random(), 3 * rng.random()])))
    return instruction if rng.random() < 0.7 else instruction[:5]


def random_variances(rng, blocks):
    return [float(value) for value in rng.random(len(blocks)) + 0.1] if rng.random() < 0.3 else None


def case(seed):
    """(arguments, options, shared weights?) of a tensor product."""
    rng = np.random.default_rng(seed)
    in1, in2 = ([random_block(rng) for _ in range(rng.integers(1, 4))] for _ in range(2))
    in2.append((in1[0][0], in2[0][1]))
    out = [(2, (1, 1))] if rng.random() < 0.3 else []  # perhaps a block that no path reaches
    instructions = [random_instruction(rng, in1, in2, out) for _ in range(rng.integers(0, 7))]
    options = {
        "irrep_normalization": str(rng.choice(["component", "norm", "none"])),
        "path_normalization": str(rng.choice(["element", "path", "none"])),
        "in1_var": random_variances(rng, in1),
        "in2_var": random_variances(rng, in2),
        "out_var": random_variances(rng, out),
    }
    return (in1, in2, out, instructions), options, bool(rng.random() < 0.5)


def assert_close(ours, theirs, tolerance=1e-12):
    """Largest difference against the largest value."""
    assert ours.shape == theirs.shape and ours.dtype == theirs.dtype
    if theirs.numel():
        assert (ours - theirs).abs().max() <= tolerance * theirs.abs().max()


def gradients(y, inputs, gy, create_graph=False):
    if not y.requires_grad:
        return [torch.zeros_like(x) for x in inputs]
    return torch.autograd.grad(y, inputs, gy, create_graph=create_graph, materialize_grads=True)


def test_the_cases_cover_everything():
    seen, normalisations, shared, numbers = set(), set(), set(), set()
    for seed in range(CASES):
        (in1, _, out, instructions), options, is_shared = case(seed)
        normalisations.add((options["irrep_normalization"], options["path_normalization"]))
        shared.add((is_shared, any(i[4] for i in instructions)))
        seen |= {(i[3], i[4]) for i in instructions}
        numbers.add(len(instructions))
        seen.add(("zero multiplicity", any(mul == 0 for mul, _ in in1)))
        seen.add(("block without path", len({i[2] for i in instructions}) < len(out)))
        seen.add(("several modes", len({i[3] for i in instructions}) > 2))
        seen.add(("several paths into one block", len({i[2] for i in instructions}) < len(instructions)))
    weighted = {(mode, True) for mode in MODES}
    assert seen >= weighted | {(mode, False) for mode in MODES if mode not in ("uvw", "u<vw")}
    assert len(normalisations) == 9 and len(shared) == 4 and numbers == set(range(7))
    assert sum(flag for name, flag in seen if " " in name) == 4


@pytest.mark.parametrize("seed", range(CASES))
def test_equal_to_e3nn(seed):
    """Same plan, weights, output, first and second derivatives, with e3nn's own weights where it has them."""
    arguments, options, shared = case(seed)
    plan = TensorProductPlan(*arguments, **options)
    theirs = o3.TensorProduct(*arguments, **options, shared_weights=shared)
    assert plan.weight_numel == theirs.weight_numel
    assert [path.scale for path in plan.paths] == [i.path_weight for i in theirs.instructions]
    np.testing.assert_array_equal(plan.output_mask, theirs.output_mask)

    generator = torch.Generator().manual_seed(seed)
    rows = seed % 5 + 1
    x1, x2, hx1, hx2 = (torch.randn(rows, n, generator=generator) for n in (plan.dim_in1, plan.dim_in2) * 2)
    internal = theirs.weight.detach().clone() if theirs.internal_weights else None
    w = internal if shared else torch.randn(rows, plan.weight_numel, generator=generator)
    w = torch.zeros(0) if w is None else w
    gy = torch.randn(rows, plan.dim_out, generator=generator)
    inputs = [x.requires_grad_() for x in (x1, x2, w, gy)]
    results = []
    for function in (lambda *a: reference(*a, plan), theirs):
        y = function(x1, x2, w)
        first = gradients(y, inputs[:3], gy, create_graph=True)
        second = gradients((first[0] * hx1).sum() + (first[1] * hx2).sum(), inputs, None)
        results.append([y, *first, *second])
    for ours, expected in zip(*results, strict=True):
        assert_close(ours, expected)


MIXED = TensorProductPlan(
    "3x0e+3x1o+2x2e",
    "2x1o+3x2e",
    "3x1o+3x2o+4x1o+6x1e+3x3o",
    [
        (0, 0, 0, "uvu", True), (1, 1, 1, "uuu", True, 0.5), (1, 1, 2, "uuw", True), (2, 0, 2, "uvw", True),
        (1, 0, 3, "uvuv", False), (1, 1, 4, "uvv", True), (1, 1, 0, "uuu", False),
    ],
)  # fmt: skip


def random_inputs(plan, rows, shared=False):
    generator = torch.Generator().manual_seed(rows)
    lead = () if shared else (rows,)
    return [
        torch.randn(shape, generator=generator, requires_grad=True)
        for shape in ((rows, plan.dim_in1), (rows, plan.dim_in2), (*lead, plan.weight_numel))
    ]


def test_plan_of_an_existing_e3nn_module():
    """Its instructions hold the final coefficients: squared and not normalised again, they give its plan."""
    given = [(p.i1, p.i2, p.io, p.mode, p.has_weight, p.path_weight) for p in MIXED.paths]
    irreps = (str(MIXED.irreps_in1), str(MIXED.irreps_in2), str(MIXED.irreps_out))
    theirs = o3.TensorProduct(*irreps, given, path_normalization="path", out_var=[1, 2, 3, 4, 5])
    squared = [(*instruction[:5], instruction.path_weight**2) for instruction in theirs.instructions]
    plan = TensorProductPlan(theirs.irreps_in1, theirs.irreps_in2, theirs.irreps_out, squared, "none", "none")
    x1, x2, _ = random_inputs(plan, 4)
    assert_close(reference(x1, x2, theirs.weight, plan), theirs(x1, x2))


@pytest.mark.parametrize("inversion", [False, True])
def test_equivariant(inversion):
    rotation = o3.rand_matrix() * (-1 if inversion else 1)
    d1, d2, d3 = (
        o3.Irreps(str(irreps)).D_from_matrix(rotation)
        for irreps in (MIXED.irreps_in1, MIXED.irreps_in2, MIXED.irreps_out)
    )
    x1, x2, w = random_inputs(MIXED, 5)
    assert_close(reference(x1 @ d1.T, x2 @ d2.T, w, MIXED), reference(x1, x2, w, MIXED) @ d3.T)


@pytest.mark.parametrize("shared", [False, True])
def test_derivatives_by_finite_differences(shared):
    inputs = random_inputs(MIXED, 2, shared)

    def function(*a):
        return reference(*a, MIXED)

    assert torch.autograd.gradcheck(function, inputs, fast_mode=True)
    assert torch.autograd.gradgradcheck(function, inputs, fast_mode=True)


def test_float32_stays_float32_and_is_close():
    inputs = random_inputs(MIXED, 33)
    ours = reference(*(x.detach().float() for x in inputs), MIXED)
    assert_close(ours, reference(*inputs, MIXED).float(), tolerance=1e-5)


@pytest.mark.parametrize("shared", [False, True])
def test_no_rows(shared):
    inputs = random_inputs(MIXED, 0, shared)
    y = reference(*inputs, MIXED)
    assert y.shape == (0, MIXED.dim_out) and y.requires_grad
    for x, g in zip(inputs, torch.autograd.grad(y.sum(), inputs), strict=True):
        assert g.shape == x.shape and not g.any()


def test_slices_of_larger_tensors():
    x1, x2, w = random_inputs(MIXED, 4)
    inside = [torch.nn.functional.pad(x, (3, 2))[:, 3:-2] for x in (x1, x2, w)]
    assert not inside[0].is_contiguous()
    torch.testing.assert_close(reference(*inside, MIXED), reference(x1, x2, w, MIXED), rtol=0, atol=0)


def test_without_weights_and_without_paths():
    plain = TensorProductPlan("4x1o", "4x1o", "4x1e", [(0, 0, 0, "uuu", False)], irrep_normalization="none")
    x1, x2 = torch.randn(3, 12), torch.randn(3, 12)
    cross = torch.linalg.cross(x1.view(3, 4, 3), x2.view(3, 4, 3)).reshape(3, 12) / 6**0.5
    assert_close(reference(x1, x2, None, plain), cross)
    for out, width in (("2x0e", 2), ("", 0)):
        y = reference(x1, x2, None, TensorProductPlan("4x1o", "4x1o", out, []))
        assert y.shape == (3, width) and not y.any()
    nothing = TensorProductPlan("", "", "", [])
    assert reference(torch.zeros(3, 0), torch.zeros(3, 0), None, nothing).shape == (3, 0)

"""TensorProductPlan: value semantics, key, coefficients, counts, and a sentence for what is not a plan."""

import copy
import pickle

import numpy as np
import pytest
from e3nn import o3

from eqtp.math.irreps import Irreps
from eqtp.math.so3 import wigner_3j
from eqtp.plans.plan import MODES, TensorProductPlan

INSTRUCTIONS = [
    (0, 0, 0, "uvu", True),
    (1, 1, 1, "uvu", True, 0.3),
    (1, 1, 2, "uvw", True),
    (1, 0, 3, "uvv", False),
]
ARGUMENTS = ("8x0e+4x1o", "2x0e+2x1o", "8x0e+4x1e+5x0e+2x1o", INSTRUCTIONS)


def make(**options):
    return TensorProductPlan(*ARGUMENTS, **options)


VARIANTS = [
    {"irrep_normalization": "norm"},
    {"irrep_normalization": "none"},
    {"path_normalization": "path"},
    {"path_normalization": "none"},
    {"in1_var": [1.0, 0.1]},
    {"in2_var": [1 / 3, 2.0]},
    {"out_var": [1.0, 1.0, 1.0, 1e-7]},
]


@pytest.mark.parametrize("options", [{}, *VARIANTS])
def test_value_semantics_and_key(options):
    plan = make(**options)
    assert plan == make(**options) and hash(plan) == hash(make(**options))
    again = TensorProductPlan.from_key(plan.key)
    assert again == plan and again.key == plan.key and again.paths == plan.paths
    assert TensorProductPlan.from_key(plan.key) is again
    for other in (pickle.loads(pickle.dumps(plan)), copy.copy(plan), copy.deepcopy(plan)):
        assert other == plan and other.paths == plan.paths
    assert [plan == make(**other) for other in [{}, *VARIANTS]].count(True) == 1
    assert plan != plan.key


def test_values_written_out_are_the_defaults():
    written = make(
        irrep_normalization="component", path_normalization="element", layout="mul_ir",
        in1_var=[1, 1], in2_var=np.ones(2), out_var=(1.0,) * 4,
    )  # fmt: skip
    assert written == make() and written.key == make().key
    other_forms = TensorProductPlan(
        Irreps("8x0e+4x1o"), o3.Irreps("2x0e+2x1o"), [(8, "0e"), (4, "1e"), (5, (0, 1)), (2, "1o")],
        [list(instruction) for instruction in INSTRUCTIONS],
    )  # fmt: skip
    assert other_forms == make()


def test_frozen():
    plan = make()
    with pytest.raises(AttributeError, match="frozen"):
        plan.paths = ()
    with pytest.raises(AttributeError, match="frozen"):
        del plan.paths


def test_paths_and_coefficients():
    plan = make()
    assert [path.weight_shape for path in plan.paths] == [(8, 2), (4, 2), (4, 2, 5), ()]
    assert [path.weight_offset for path in plan.paths] == [0, 16, 24, -1]
    assert plan.weight_numel == 64
    assert (plan.dim_in1, plan.dim_in2, plan.dim_out) == (20, 8, 31)
    assert plan.offsets[2] == [slice(0, 8), slice(8, 20), slice(20, 25), slice(25, 31)]
    for path in plan.paths:
        expected = path.scale * wigner_3j(path.l1, path.l2, path.l3)
        assert plan.coefficients(path).dtype == np.float64
        np.testing.assert_array_equal(plan.coefficients(path), expected)


def test_table_holds_every_coefficient_once():
    plan = make()
    assert len(plan.table.c) == plan.cg_nonzeros == 1 + 6 + 3 + 3
    dense = [np.zeros_like(plan.coefficients(path)) for path in plan.paths]
    for n, i, j, k, c in zip(*plan.table, strict=True):
        assert dense[n][i, j, k] == 0
        dense[n][i, j, k] = c
    for path, block in zip(plan.paths, dense, strict=True):
        np.testing.assert_array_equal(block, plan.coefficients(path))


def test_print_shows_every_path_and_the_totals():
    text = str(make())
    assert "8x0e+4x1o  x  2x0e+2x1o  ->  8x0e+4x1e+5x0e+2x1o" in text
    lines = text.splitlines()
    assert len(lines) == 3 + 4 + 2
    assert lines[5].split() == "2 4x1o x 2x1o -> 5x0e uvw 4x2x5 24 0.353553 3".split()
    assert lines[6].split() == "3 4x1o x 2x0e -> 2x1o uvv - - 0.866025 3".split()
    assert lines[7] == "  total: 4 paths, 13 coefficients, 64 weights, 20 x 8 -> 31 components"
    assert "fwd" in lines[8] and "flop" in lines[8] and "bytes" in lines[8]
    assert repr(make()) == ("TensorProductPlan(8x0e+4x1o x 2x0e+2x1o -> 8x0e+4x1e+5x0e+2x1o | 4 paths | 64 weights)")


def test_empty_plans():
    for arguments in [
        ("", "", "", []),
        ("2x0e", "1x0e", "", []),
        ("2x0e", "1x0e", "3x1o", []),
        ("0x0e", "0e", "0x0e", [(0, 0, 0, "uvu", True)]),
    ]:
        plan = TensorProductPlan(*arguments)
        assert plan.weight_numel == 0 and plan.dim_out == Irreps(arguments[2]).dim
        assert TensorProductPlan.from_key(plan.key) == plan
        assert plan.flops() == 0 and not plan.output_mask.any()
        assert "total" in str(plan)


def test_flops_counted_by_hand():
    """1o x 1o -> 0e, 10 channels, one y: M is 3 products, x.M 3 multiply-adds and one weight per channel."""
    plan = TensorProductPlan("10x1o", "1o", "10x0e", [(0, 0, 0, "uvu", True)])
    assert plan.flops() == 2 * 3 + 10 * (2 * 3 + 1)
    assert plan.flops("bwd") == 2 * (2 * 3) + 10 * (2 * 2 * 3 + 4)
    assert plan.bytes() == 4 * (30 + 3 + 10 + 10)
    assert plan.bytes("bwd") == 4 * (2 * (30 + 3 + 10) + 10)
    assert plan.bytes("bwdbwd", itemsize=8) == 8 * (3 * (30 + 3 + 10) + 2 * 10)
    assert plan.bytes(shared_weights=True) == 4 * (30 + 3 + 10)
    mixing = TensorProductPlan("10x1o", "2x1o", "7x0e", [(0, 0, 0, "uvw", True)])
    assert mixing.flops() == 2 * 3 * 2 + 20 * (2 * 3 + 2 * 7)
    with pytest.raises(ValueError, match="pass_ must be"):
        plan.flops("forward")
    with pytest.raises(ValueError, match="pass_ must be"):
        plan.bytes("forward")


def error(*arguments, **options) -> str:
    with pytest.raises(ValueError) as caught:
        TensorProductPlan(*arguments, **options)
    text = str(caught.value)
    assert "\n" not in text
    return text


KNOWN = "mode must be one of uvw, uvu, uvv, uuw, uuu, uvuv, uvu<v, u<vw, got"
UNDER_ROOT = "path_weight must be finite and not negative (it enters under a square root)"


def outside(index, count, name, irreps):
    return f'index {index} is out of range for the {count} blocks of {name} "{irreps}"'


def multiplicity(mode, expected):
    return f"mode {mode} with input multiplicities 8 and 2 needs output multiplicity {expected}, got 5"


@pytest.mark.parametrize(
    "instruction,sentence",
    [
        ((0, 0, 0, "uvx", True), f"{KNOWN} 'uvx'"),
        ((0, 0, 0, ["uvu"], True), f"{KNOWN} ['uvu']"),
        ((2, 0, 0, "uvu", True), outside(2, 2, "irreps_in1", "8x0e+4x1o")),
        ((0, -1, 0, "uvu", True), outside(-1, 2, "irreps_in2", "2x0e+2x1o")),
        ((0, 0, 9, "uvu", True), outside(9, 4, "irreps_out", "8x0e+4x1e+5x0e+2x1o")),
        ((0, "0", 0, "uvu", True), "the index into irreps_in2 must be an integer, got '0'"),
        ((0, 0, 1, "uvu", True), "1e does not occur in 0e x 0e = 0e"),
        ((1, 1, 3, "uvu", True), "1o does not occur in 1o x 1o = 0e + 1e + 2e"),
        ((0, 0, 2, "uvu", True), multiplicity("uvu", 8)),
        ((0, 0, 2, "uvv", True), multiplicity("uvv", 2)),
        ((0, 0, 2, "uvuv", True), multiplicity("uvuv", 16)),
        ((0, 0, 0, "uuu", True), "mode uuu needs equal multiplicities of both inputs, got 8 and 2"),
        ((0, 0, 0, "uuw", True), "mode uuw needs equal multiplicities of both inputs, got 8 and 2"),
        ((0, 0, 0, "uvw", False), "mode uvw needs weights"),
        ((0, 0, 0, "uvu", True, -1.0), UNDER_ROOT),
        ((0, 0, 0, "uvu", True, float("nan")), UNDER_ROOT),
        ((0, 0, 0, "uvu", True, "a"), "path_weight must be a number, got 'a'"),
    ],
)
def test_bad_instructions(instruction, sentence):
    text = error(*ARGUMENTS[:3], [INSTRUCTIONS[0], instruction])
    assert text == f"TensorProductPlan: instruction 1 {instruction!r}: {sentence}"


def test_other_errors():
    form = "(i_in1, i_in2, i_out, mode, has_weight[, path_weight])"
    for item in [(0, 0, 0, "uvu"), (0, 0, 0, "uvu", True, 1.0, (8, 2)), "uvu", 3]:
        assert error(*ARGUMENTS[:3], [item]) == f"TensorProductPlan: instruction 0 must be {form}, got {item!r}"
    same = "TensorProductPlan: instruction 0 (0, 0, 0, 'uuw', False): mode uuw without weights"
    assert error("3x0e", "3x0e", "2x0e", [(0, 0, 0, "uuw", False)]) == (
        f"{same} with input multiplicities 3 and 3 needs output multiplicity 1, got 2"
    )
    assert "mode uvu<v with input multiplicities 4 and 4 needs output multiplicity 6, got 5" in error(
        "4x1o", "4x1o", "5x1e", [(0, 0, 0, "uvu<v", True)]
    )
    assert error(*ARGUMENTS, irrep_normalization="components") == (
        "TensorProductPlan: irrep_normalization must be one of 'component', 'norm', 'none', got 'components'"
    )
    assert error(*ARGUMENTS, path_normalization=None) == (
        "TensorProductPlan: path_normalization must be one of 'element', 'path', 'none', got None"
    )
    assert error(*ARGUMENTS, layout="ir_mul") == "TensorProductPlan: layout must be one of 'mul_ir', got 'ir_mul'"
    assert error(*ARGUMENTS, in2_var=[1.0]) == "TensorProductPlan: in2_var must have one value per block (2), got 1"
    assert "out_var must be finite and not negative" in error(*ARGUMENTS, out_var=[1, 1, -1, 1])
    assert "in1_var must be a list of numbers" in error(*ARGUMENTS, in1_var=3)
    assert error("8x0", "0e", "0e", []).startswith('Irreps: cannot read "8x0"')
    for key in ("", "[]", "{}", "nonsense", None):
        with pytest.raises(ValueError, match=r"^TensorProductPlan: not the key of a plan"):
            TensorProductPlan.from_key(key)


def test_modes_are_those_of_e3nn():
    """e3nn's table of weight shapes, for multiplicities 5, 5 -> whatever the mode asks for."""
    for mode, letters in MODES.items():
        mul3 = {"w": 3, "u": 5, "v": 5, "uv": 25, "q": 10}[letters.out]
        arguments = ("5x1o", "5x1o", f"{mul3}x1e", [(0, 0, 0, mode, True)])
        ours, theirs = TensorProductPlan(*arguments), o3.TensorProduct(*arguments, compile_left_right=False)
        assert ours.paths[0].weight_shape == theirs.instructions[0].path_shape
        assert ours.paths[0].scale == theirs.instructions[0].path_weight


def test_many_paths_are_planned_quickly():
    """1,000 paths: quadratic work would show as seconds."""
    import time

    irreps = Irreps([(2, (l, p)) for l in range(5) for p in (1, -1)])
    instructions = [
        (i, j, k, "uvw", True)
        for i, (_, a) in enumerate(irreps)
        for j, (_, b) in enumerate(irreps)
        for k, (_, c) in enumerate(irreps)
        if c in a * b
    ] * 4
    assert len(instructions) > 1000
    start = time.process_time()
    TensorProductPlan(irreps, irreps, irreps, instructions)
    assert time.process_time() - start < 1.0

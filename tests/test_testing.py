"""The checks can fail: a kernel with one wrong coefficient, in one pass, in one path, is caught."""

import calls
import e3nn.o3
import numpy as np
import pytest
import torch

import eqtp
from eqtp import testing
from eqtp.ops import tensor_product as rows_op
from eqtp.plans.channelwise import record
from eqtp.plans.plan import TensorProductPlan
from eqtp.testing import problems

PLAN = problems.plan("nequip-water")


def wrong_scale(number):
    """The kernels' copy of PLAN with one path off by 1 %."""
    path = PLAN.paths[number]
    instructions = [(p.i1, p.i2, p.io, p.mode, p.has_weight, p.scale**2) for p in PLAN.paths]
    instructions[number] = (*instructions[number][:5], (path.scale * 1.01) ** 2)
    plan = TensorProductPlan(PLAN.irreps_in1, PLAN.irreps_in2, PLAN.irreps_out, instructions, "none", "none")
    return record(plan.key)


@pytest.mark.parametrize("number", range(len(PLAN.paths)))
@pytest.mark.parametrize("check", [testing.check_tensor_product, testing.check_tensor_product_conv])
def test_one_wrong_path_is_caught(monkeypatch, check, number):
    wrong = wrong_scale(number)
    monkeypatch.setattr(rows_op, "record", lambda key: wrong)
    with pytest.raises(AssertionError, match=rf"slot {PLAN.paths[number].io} .*path {number}\b"):
        check(PLAN)


KERNEL_OUTPUTS = [
    ("bwd", "gx"),
    ("bwd", "gy"),
    ("bwd", "gw"),
    *(("bwdbwd", n) for n in ("out", "gx", "gy", "gw")),
]


@pytest.mark.parametrize(("kernel", "name"), KERNEL_OUTPUTS)
def test_one_wrong_gradient_is_caught(monkeypatch, kernel, name):
    """R1: one block of one operand's gradient wrong by 3 %, in one kernel."""
    path, output = PLAN.paths[5], ("out", "gx", "gy", "gw").index(name)
    in1, in2, out = PLAN.offsets
    weight = slice(path.weight_offset, path.weight_offset + path.weight_numel)
    block = [out[path.io], in1[path.i1], in2[path.i2], weight][output]

    def wrong(run, key, pass_, inputs, outputs):
        run(key, pass_, inputs, outputs)
        if pass_ == kernel and outputs[output] is not None:
            outputs[output][:, block] *= 1.03

    calls.wrap(monkeypatch, "channelwise", wrong)
    with pytest.raises(AssertionError, match="1e-12"):
        testing.check_tensor_product_conv(PLAN)


def test_an_element_that_is_not_written_is_caught(monkeypatch):
    def lazy(run, key, pass_, inputs, outputs):
        if pass_ != "fwd":
            return run(key, pass_, inputs, outputs)
        full = torch.empty_like(outputs[0])
        run(key, pass_, inputs, outputs._replace(out=full))
        outputs[0][:-1] = full[:-1]

    calls.wrap(monkeypatch, "channelwise", lazy)
    with pytest.raises(AssertionError, match=r"out, all.*nan"):
        testing.check_tensor_product_conv(PLAN)


def softmax_of_one_of_two():
    """[2]: of an op that is told of a segment of one row, and writes no other."""
    dst, ptr, order = torch.tensor([0, 0]), torch.tensor([0, 1]), torch.tensor([0, 1])
    return torch.ops.eqtp.segment_softmax(torch.ones(2, 1), dst, ptr, order, False, "native")[:, 0]


def test_poison_reaches_every_allocation_and_ends():
    like = torch.zeros(3)
    with testing.poisoned():
        for t in (
            torch.empty(3),
            like.new_empty(3),
            torch.empty_like(like),
            torch.empty(2, dtype=torch.float64),
        ):
            assert t.isnan().all()
        with pytest.raises(KeyError), testing.poisoned():
            raise KeyError
        assert torch.empty(3).isnan().all()
        assert softmax_of_one_of_two()[1].isnan()
    assert softmax_of_one_of_two()[0] == 1
    assert not torch.are_deterministic_algorithms_enabled()


def test_relative_error():
    expected = torch.tensor([2.0, -4.0, 0.0], dtype=torch.float64)
    assert testing.relative_error(expected.clone(), expected) == 0
    assert testing.relative_error(expected + torch.tensor([0, 0, 1e-3]), expected) == pytest.approx(2.5e-4)
    assert testing.relative_error(torch.zeros(2), torch.zeros(2).double()) == 0
    assert testing.relative_error(torch.full((2,), 1e-30), torch.zeros(2).double()) == float("inf")
    with pytest.raises(AssertionError, match="relative error nan"):
        testing.assert_close(torch.tensor([1.0, float("nan")]), torch.ones(2).double())
    with pytest.raises(AssertionError, match=r"shape \[2\], expected \[3\]"):
        testing.assert_close(torch.ones(2), torch.ones(3).double())


@pytest.mark.parametrize("seed", range(4))
def test_representation_is_that_of_e3nn(e3nn64, seed):
    irreps = "2x0e+0o+3x1o+1e+2o+2e+3o+4e+5o+2x8e"
    for sign in (1, -1):
        rotation = sign * testing.random_rotation(seed)
        theirs = e3nn.o3.Irreps(irreps).D_from_matrix(torch.from_numpy(rotation)).numpy()
        np.testing.assert_allclose(testing.representation(irreps, rotation), theirs, rtol=0, atol=1e-12)
        np.testing.assert_allclose(np.linalg.det(rotation), sign, rtol=0, atol=1e-14)


def test_broken_equivariance_is_caught():
    x = testing.random(5, 4)
    testing.assert_equivariant(lambda x: 2 * x, [(x, "0e+1o")], "0e+1o")
    with pytest.raises(AssertionError, match="equivariance under rotation 0"):
        testing.assert_equivariant(lambda x: x.roll(1, dims=1), [(x, "0e+1o")], "0e+1o")
    with pytest.raises(AssertionError, match="equivariance under rotation with inversion 1"):
        testing.assert_equivariant(lambda x: x, [(x, "0e+1o")], "0e+1e")
    with pytest.raises(AssertionError, match="equivariance under rotation with inversion 1"):
        testing.assert_equivariant(lambda x: x**2, [(x[:, :1], "0o")], "0o")


def test_second_order_runs_the_fused_kernel_and_the_closure(monkeypatch):
    """check_op's two second orders take the two routes they are meant to take."""
    case, made = testing.rows_case(PLAN), calls.count_calls(monkeypatch, "channelwise")

    def op(x, y, w):
        return eqtp.tensor_product(x, y, w, PLAN)

    testing.derivatives(op, case, torch.float64, create_graph=False)
    assert [pass_ for _, pass_ in made] == ["fwd", "bwd", "bwdbwd"]
    made.clear()
    testing.derivatives(op, case, torch.float64, create_graph=True)
    passes = [pass_ for _, pass_ in made]
    assert passes[:2] == ["fwd", "bwd"] and "bwdbwd" not in passes and len(passes) > 3

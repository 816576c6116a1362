"""`eqtp.accelerate` on module trees with e3nn modules: same state, same numbers, undo (R3, R24, R25)."""

import copy
import io

import pytest
import torch
from e3nn_models import TOLERANCE, Message, exact, o3, relative, uvu_product

import eqtp.nn
from eqtp.integrations.accelerate import accelerate
from eqtp.integrations.e3nn import exact_tables


def test_replaces_and_agrees(model, example):
    expected = model(*example)
    report = accelerate(model, example)
    assert [entry.name for entry in report.replaced] == ["harmonics", "product"]
    assert isinstance(model.product, eqtp.nn.TensorProduct) and isinstance(model.harmonics, eqtp.nn.SphericalHarmonics)
    got = model(*example)
    for key, value in expected.items():
        assert relative(got[key], value) < TOLERANCE[torch.float32]
    assert report.max["float64"] < 1e-12 and 0 < report.max["float32"] < 1e-5
    assert set(report.model_difference) == {"output['nodes']", "output['norm']"}


def test_report_says_what_was_kept_and_why(model):
    report = accelerate(model)
    kept = {entry.name: entry for entry in report.kept}
    assert list(kept) == ["mix"]
    assert kept["mix"].kind == "FullyConnectedTensorProduct" and "mode uvw" in kept["mix"].reason
    text = str(report)
    assert "2 modules replaced, 1 kept" in text
    assert all(name in text for name in ("harmonics", "product", "mix", "mode uvw", "self-check"))


def test_state_dict_is_unchanged(model):
    before = model.state_dict(keep_vars=True)
    assert any("_w3j_" in key for key in before), "this e3nn keeps its coefficients in the state_dict"
    accelerate(model)
    after = model.state_dict(keep_vars=True)
    assert list(after) == list(before)
    assert all(after[key] is before[key] for key in before)


def test_state_dict_travels_both_ways(model):
    torch.manual_seed(5)
    other = Message()
    accelerate(other)
    other.load_state_dict(model.state_dict(), strict=True)
    model.load_state_dict(other.state_dict(), strict=True)
    assert torch.equal(other.radial.weight, model.radial.weight)
    state = model.state_dict()
    state["product._compiled_main_left_right._w3j_1_1_1"] = -state["product._compiled_main_left_right._w3j_1_1_1"]
    with pytest.raises(RuntimeError, match="trained with other signs"):
        other.load_state_dict(state)


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize(
    "options", [{}, {"internal_weights": False, "shared_weights": True}, {"shared_weights": False}]
)
def test_weights_inside_and_outside(options, dtype):
    """Same Parameter object; output and all first and second derivatives as e3nn's, leading dimensions
    too."""
    torch.manual_seed(2)
    tree = torch.nn.Sequential(uvu_product(**options)).to(dtype)
    exact_tables(tree)
    reference = copy.deepcopy(tree)
    accelerate(tree)
    old, new = reference[0], tree[0]
    leaves = [torch.randn(2, 3, width, dtype=dtype) for width in (14, 9)]
    if not old.internal_weights:
        lead = () if old.shared_weights else (2, 3)
        leaves.append(torch.randn(*lead, old.weight_numel, dtype=dtype))
    results = []
    for module in (old, new):
        inputs = [t.clone().requires_grad_() for t in leaves]
        wanted = [*inputs, *module.parameters()]
        out = module(*inputs)
        first = torch.autograd.grad(out.square().sum(), wanted, create_graph=True)
        second = torch.autograd.grad(sum(g.square().sum() for g in first), wanted)
        results.append([out, *first, *second])
    for a, b in zip(*results, strict=True):
        assert a.shape == b.shape and relative(a, b) < TOLERANCE[dtype] * 4


def test_undo_is_bitwise(model, example):
    original = dict(model.named_modules())
    expected = model(*example)
    report = accelerate(model)
    assert dict(model.named_modules()) != original
    report.undo()
    assert dict(model.named_modules()) == original
    got = model(*example)
    assert all(torch.equal(got[key], expected[key]) for key in expected)
    report.undo()  # does nothing


def test_undo_keeps_later_changes(model, example):
    """Cast, train and load after accelerate, then undo: the originals have the present parameters and
    buffers."""
    report = accelerate(model)
    model.double().eval()
    with torch.no_grad():
        model.radial.weight.mul_(2)
    double = tuple(t.double() if t.is_floating_point() else t for t in example)
    expected = model(*double)
    report.undo()
    assert type(model.product) is o3.TensorProduct and not model.product.training
    assert all(t.dtype == torch.float64 for t in model.state_dict().values())
    got = model(*double)
    assert all(relative(got[key], expected[key]) < 1e-6 for key in expected)  # e3nn's coefficients went through float32


def test_example_leaves_no_trace(example):
    """Buffers, random numbers and the example are as before the check."""
    torch.manual_seed(0)
    model = Message()
    norm, drop = torch.nn.BatchNorm1d(10), torch.nn.Dropout(0.5)
    model.mix.norm, model.mix.drop = norm, drop
    model.mix.register_forward_hook(lambda module, args, out: drop(norm(out)))
    state, kept = copy.deepcopy(model.state_dict()), [t.clone() for t in example]
    random = torch.get_rng_state()
    accelerate(model, example)
    assert torch.equal(torch.get_rng_state(), random)
    assert all(torch.equal(a, b) for a, b in zip(example, kept, strict=True))
    assert all(torch.equal(value, state[key]) for key, value in model.state_dict().items())


class First(torch.nn.Module):
    def forward(self, x, y):
        return x


def test_float64_model_with_rounded_coefficients(model, example):
    """A float32 model cast to float64 has coefficients with an error of 6e-8 (R35); eqtp has the exact
    ones."""
    model.mix = First()  # in place of a product that is kept, with its rounded coefficients
    model.double()
    double = tuple(t.double() if t.is_floating_point() else t for t in example)
    rounded, expected = model(*double)["nodes"], exact(copy.deepcopy(model))(*double)["nodes"]
    report = accelerate(model, double)
    assert relative(rounded, expected) > 1e-9
    assert relative(model(*double)["nodes"], expected) < 1e-12
    assert report.max["float64"] < 1e-12


class Pair(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.product = uvu_product()

    def forward(self, x, y):
        return self.product(x, y)


def test_scripted_parts_are_listed(model):
    model.scripted = torch.jit.script(Pair())
    report = accelerate(model)
    kept = {entry.name: entry.reason for entry in report.kept}
    assert "scripted" in kept["scripted.product"] and len(report.replaced) == 2


def test_a_shared_module_stays_shared():
    product = uvu_product()
    tree = torch.nn.ModuleList([product, torch.nn.Sequential(product)])
    report = accelerate(tree)
    assert tree[0] is tree[1][0] and isinstance(tree[0], eqtp.nn.TensorProduct) and len(report.replaced) == 1
    report.undo()
    assert tree[0] is product and tree[1][0] is product


def test_attributes_hooks_and_mode_stay(model):
    calls = []
    model.product.register_forward_hook(lambda module, args, out: calls.append(type(module)))
    old = model.product.eval()
    accelerate(model)
    new = model.product
    for name in (
        "irreps_in1",
        "irreps_in2",
        "irreps_out",
        "instructions",
        "weight_numel",
        "shared_weights",
        "internal_weights",
    ):
        assert getattr(new, name) == getattr(old, name)
    assert isinstance(new.irreps_out, o3.Irreps) and not new.training
    new(torch.randn(2, 14), torch.randn(2, 9), torch.randn(2, new.weight_numel))
    assert calls == [eqtp.nn.TensorProduct]


def test_copies_and_pickles(model, example):
    accelerate(model)
    expected = model(*example)["nodes"]
    file = io.BytesIO()
    torch.save(model, file)
    file.seek(0)
    for other in (copy.deepcopy(model), torch.load(file, weights_only=False)):
        assert torch.equal(other(*example)["nodes"], expected)


class Stress(Message):
    """With an output that is NaN or infinite in places, as the stress of a molecule without a cell."""

    places = (0.0, 1.0, 0.0, -1.0)

    def forward(self, *inputs):
        out = super().forward(*inputs)
        return {**out, "stress": out["norm"] / out["norm"].new_tensor(self.places), "none": out["norm"] * float("nan")}


def test_example_with_an_output_that_is_not_finite(example):
    """In the same places before and after it is the same; the finite entries are compared."""
    model = Stress()
    report = accelerate(model, example)
    assert 0 <= report.model_difference["output['stress']"] < 1e-5 and report.model_difference["output['none']"] == 0
    assert "whole model on the example" in str(report) and "nan" not in str(report)

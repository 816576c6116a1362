"""What `eqtp.accelerate` refuses, and what it says: mismatches, gradients that are off, nothing to replace (R1, R3, R4,
R24)."""

import copy

import calls
import pytest
import torch
from e3nn_models import Message, o3, uvu_product

import eqtp.nn
from eqtp.integrations.accelerate import accelerate


def test_undo_refuses_when_something_else_sits_there(model):
    report = accelerate(model)
    model.product = torch.nn.Identity()
    with pytest.raises(RuntimeError, match="undo: module 'product' of a Message was replaced since"):
        report.undo()
    assert isinstance(model.harmonics, eqtp.nn.SphericalHarmonics)


def flip_sign(product):
    """Coefficients of e3nn < 0.5 (R24): the sign of an odd coupling."""
    dict(product.named_buffers())["_compiled_main_left_right._w3j_1_1_1"].neg_()


def scale_path(product):
    """A module whose instructions do not tell what its code computes."""
    product.instructions = [ins._replace(path_weight=ins.path_weight * 1.02) for ins in product.instructions]


@pytest.mark.parametrize("damage", [flip_sign, scale_path])
def test_refuses_a_mismatch(model, example, damage):
    damage(model.product)
    modules, expected = dict(model.named_modules()), model(*example)
    with pytest.raises(
        RuntimeError, match=r"product \(TensorProduct\) does not agree with its replacement: .* differs by"
    ):
        accelerate(model)
    assert dict(model.named_modules()) == modules
    got = model(*example)
    assert all(torch.equal(got[key], expected[key]) for key in expected)
    assert len(accelerate(model, verify=False).replaced) == 2


@pytest.mark.parametrize("operand", ["x", "y", "weight"])
def test_refuses_a_wrong_gradient(model, monkeypatch, operand):
    """Right values, a gradient that is 1 % off in one operand (R1)."""
    original = eqtp.nn.TensorProduct.forward

    def forward(self, x, y, weight=None):
        given = {"x": x, "y": y, "weight": weight}
        t = given[operand]
        given[operand] = 1.01 * t - 0.01 * t.detach()
        return original(self, **given)

    monkeypatch.setattr(eqtp.nn.TensorProduct, "forward", forward)
    number = ["x", "y", "weight"].index(operand)
    with pytest.raises(
        RuntimeError, match=f"gradient of input {number}, .* differs by 1.*e-02 of its scale in float64"
    ):
        accelerate(model)
    assert type(model.product) is o3.TensorProduct


class Suspicious(Message):
    """Does something else when its product is not e3nn's."""

    def forward(self, *inputs):
        out = super().forward(*inputs)
        return out if isinstance(self.product, o3.TensorProduct) else {**out, "norm": out["norm"] * 1.001}


def test_example_refuses_a_whole_model_mismatch(example):
    model = Suspicious()
    accelerate(copy.deepcopy(model))  # module by module all is well
    with pytest.raises(
        RuntimeError, match=r"output output\['norm'\] of the whole model changed by .* everything was undone"
    ):
        accelerate(model, example)
    assert type(model.product) is o3.TensorProduct and type(model.harmonics) is o3.SphericalHarmonics


class Broken(Message):
    """Loses or finds a finite number, or changes a finite one beside NaN, when its product is not e3nn's."""

    def __init__(self, before, after):
        super().__init__()
        self.before, self.after = before, after

    def forward(self, *inputs):
        factors = self.before if isinstance(self.product, o3.TensorProduct) else self.after
        norm = super().forward(*inputs)["norm"]
        return norm * norm.new_tensor(factors)


@pytest.mark.parametrize(
    ("before", "after", "message"),
    [
        (
            [1.0, 2.0],
            [float("nan"), 2.0],
            "became NaN or infinite at 1 entries, and finite at 0",
        ),
        (
            [float("inf"), 2.0],
            [1.0, 2.0],
            "became NaN or infinite at 0 entries, and finite at 1",
        ),
        ([float("nan"), 2.0], [float("nan"), 2.1], "of the whole model changed by"),
    ],
)
def test_example_refuses_other_finite_entries(example, before, after, message):
    model = Broken(before, after)
    with pytest.raises(RuntimeError, match=f"accelerate: output output .*{message}.*; everything was undone"):
        accelerate(model, example)
    assert type(model.product) is o3.TensorProduct


def test_example_without_a_finite_output(example):
    model = Broken([float("nan")], [float("nan")])
    with pytest.raises(ValueError, match="all outputs of the model are NaN or infinite for this example"):
        accelerate(model, example)
    assert type(model.product) is o3.TensorProduct


@pytest.mark.parametrize(
    ("tree", "reason"),
    [
        (lambda: o3.FullyConnectedTensorProduct("2x0e + 1o", "0e + 1o", "2x0e + 1o"), "mode uvw"),
        (lambda: o3.FullTensorProduct("2x0e + 1o", "0e + 1o"), "mode uvuv"),
        (lambda: o3.ElementwiseTensorProduct("2x0e + 1o", "2x0e + 1o"), "mode uuu"),
        (lambda: o3.TensorSquare("0e + 1o"), "mode uuu"),
        (
            lambda: o3.TensorProduct("4x0e", "2x0e", "4x0e", [(0, 0, 0, "uvu", True)]),
            "2 channels in irreps_in2",
        ),
        (
            lambda: torch.nn.utils.parametrizations.weight_norm(uvu_product()),
            "something of its own: parametrizations",
        ),
        (lambda: uvu_product(compile_left_right=False), "compile_left_right=False and has no forward"),
        (lambda: Own("4x0e", "0e", "4x0e", [(0, 0, 0, "uvu", True)]), "class Own has its own forward"),
        (lambda: Method("4x0e", "0e", "4x0e", [(0, 0, 0, "uvu", True)]), "class Method has its own strength"),
        (lambda: with_own_forward(), "this instance has a forward of its own"),
        (lambda: uvu_product().half(), "float16"),
        (lambda: torch.jit.script(uvu_product()), "scripted"),
    ],
)
def test_zero_replaced_is_an_error_that_says_why(tree, reason):
    tree = torch.nn.ModuleDict({"inner": torch.nn.Sequential(tree())})
    modules = dict(tree.named_modules())
    with pytest.raises(ValueError, match=rf"^accelerate: nothing to replace in ModuleDict: inner\.0 .*{reason}"):
        accelerate(tree)
    assert dict(tree.named_modules()) == modules


def with_own_forward():
    product = uvu_product()
    product.forward = lambda *inputs: 2 * type(product).forward(product, *inputs)
    return product


class Method(o3.TensorProduct):
    """Offers what e3nn's product, and its replacement, does not."""

    def strength(self):
        return self.weight.square().mean()


class Own(o3.TensorProduct):
    def forward(self, x, y, weight=None):
        return 2 * super().forward(x, y, weight)


@pytest.mark.parametrize("output", ["out", "gw"])
def test_one_wrong_path_is_found_by_itself(monkeypatch, output):
    """R1: an error of a tenth in a path that a small weight makes a thousandth of the others. In the whole tensor it
    would be within the tolerance of float32."""
    paths = [(0, 0, 0, "uvu", True), (0, 1, 1, "uvu", True, 1e-10)]  # the second: 1e-5 of the first
    product = o3.TensorProduct("4x0e", "0e + 1o", "4x0e + 4x1o", paths, path_normalization="none")
    tree = torch.nn.ModuleDict({"inner": product})

    def wrong(run, key, pass_, inputs, outputs):
        run(key, pass_, inputs, outputs)
        filled = getattr(outputs, output)
        if filled is not None and inputs.x.dtype == torch.float32:
            filled[:, 4:] *= 1.1

    calls.wrap(monkeypatch, "channelwise", wrong)
    where = r"output, slot 1 \(4x1o\)" if output == "out" else "gradient of weight, path 1"
    with pytest.raises(RuntimeError, match=f"accelerate: inner .*: {where} differs by .* in float32"):
        accelerate(tree)
    assert tree["inner"] is product


def test_zero_replaced_in_other_models():
    with pytest.raises(
        ValueError,
        match=r"nothing to replace in Linear: it contains no module that eqtp knows \(e3nn\.TensorProduct",
    ):
        accelerate(torch.nn.Linear(2, 2))
    with pytest.raises(ValueError, match=r"TensorProduct: it is the model itself .* eqtp\.e3nn\.from_e3nn"):
        accelerate(uvu_product())
    with pytest.raises(ValueError, match="scripted"):
        accelerate(torch.jit.script(torch.nn.Sequential(uvu_product(internal_weights=True), torch.nn.Identity())[0]))


def test_a_second_time_is_an_error(model):
    accelerate(model)
    with pytest.raises(ValueError, match=r"harmonics .* it is eqtp's already"):
        accelerate(model)


def test_backend_asked_for_by_name(model):
    eqtp.set_backend("reference")
    try:
        with pytest.raises(ValueError, match="reference"):
            accelerate(model)
    finally:
        eqtp.set_backend(None)


def test_arguments():
    class Calculator:
        model = torch.nn.Linear(1, 1)

    with pytest.raises(
        TypeError, match=r"accelerate: model must be a torch.nn.Module, got Calculator; pass its \.model"
    ):
        accelerate(Calculator())
    with pytest.raises(TypeError, match=r"got str$"):
        accelerate("7net-0")

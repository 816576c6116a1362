"""`eqtp.accelerate` on module trees with e3nn modules: same state, same numbers, refusal where they are not
(R3, R4, R24, R25)."""

import copy
import io

import calls
import pytest
import torch

import eqtp.nn
from eqtp.integrations.accelerate import accelerate
from eqtp.integrations.e3nn import exact_tables

o3 = pytest.importorskip("e3nn.o3", reason="e3nn is not installed")

TOLERANCE = {torch.float64: 1e-12, torch.float32: 1e-5}
UVU = [
    (0, 0, 0, "uvu", True),
    (1, 1, 0, "uvu", True),
    (0, 1, 1, "uvu", True),
    (1, 1, 1, "uvu", True, 2.0),
    (1, 2, 1, "uvu", True),
]


def uvu_product(**options):
    irreps = "5x0e + 3x1e"
    instructions = [(*ins[:2], n, *ins[3:]) for n, ins in enumerate(UVU)]
    return o3.TensorProduct(irreps, "0e + 1e + 2e", "5x0e + 3x0e + 5x1e + 3x1e + 3x1e", instructions, **options)


class Message(torch.nn.Module):
    """A convolution as it is written with e3nn: harmonics, radial weights, product, sum over edges."""

    def __init__(self):
        super().__init__()
        self.harmonics = o3.SphericalHarmonics("0e + 1e + 2e", True, "component", irreps_in="1e")
        self.product = uvu_product(shared_weights=False, internal_weights=False)
        self.radial = torch.nn.Linear(2, self.product.weight_numel)
        self.mix = o3.FullyConnectedTensorProduct(self.product.irreps_out, "0e + 1e", "4x0e + 2x1e")

    def forward(self, x, vectors, radial, edges):
        y = self.harmonics(vectors)
        messages = self.product(x[edges[0]], y, self.radial(radial))
        nodes = x.new_zeros(len(x), messages.shape[1]).index_add(0, edges[1], messages)
        return {"nodes": self.mix(nodes, y.new_ones(len(x), 4)), "norm": nodes.square().sum()}


@pytest.fixture
def model():
    torch.manual_seed(0)
    return Message()


@pytest.fixture
def example():
    torch.manual_seed(1)
    return torch.randn(4, 14), torch.randn(9, 3), torch.randn(9, 2), torch.randint(0, 4, (2, 9))


def exact(module):
    """The module in float64, with coefficients that did not go through float32."""
    module.double()
    assert exact_tables(module) == []
    return module


def relative(a, b):
    return ((a - b).abs().max() / b.abs().max()).item()


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
        (lambda: uvu_product(compile_right=True), r"\.right"),
        (lambda: Own("4x0e", "0e", "4x0e", [(0, 0, 0, "uvu", True)]), "class Own has its own forward"),
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


def test_arguments():
    class Calculator:
        model = torch.nn.Linear(1, 1)

    with pytest.raises(
        TypeError, match=r"accelerate: model must be a torch.nn.Module, got Calculator; pass its \.model"
    ):
        accelerate(Calculator())
    with pytest.raises(TypeError, match=r"got str$"):
        accelerate("7net-0")


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

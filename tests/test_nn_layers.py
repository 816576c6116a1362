"""Linear layers, gates, activations, norms and radial networks: e3nn's arguments, numbers, state and derivatives."""

import copy
import inspect

import pytest
import torch
from e3nn import nn as theirs_nn
from e3nn import o3
from e3nn.math import normalize2mom
from torch.fx.experimental.proxy_tensor import make_fx

import eqtp.nn
from eqtp import testing

silu, tanh, sigmoid = torch.nn.functional.silu, torch.tanh, torch.sigmoid
MANY = "4x0e+3x0e+2x1o+0x2e+3x0e+1x1o+2x2e"  # several slots of one irrep, side by side and apart, and an empty one
LINEARS = {
    "plain": ("4x0e+3x1o+2x2e", "2x0e+5x1o+3x2e", {}),
    "biases": ("4x0e+3x1o", "2x0e+5x1o+3x0e", {"biases": True}),
    "one bias": (MANY, "2x0e+1x0e+5x1o+2x0o", {"biases": [False, True, False, False]}),
    "only a bias": ("4x1o", "2x0e+3x1o", {"biases": True}),
    "many slots": (MANY, "2x0e+1x0e+5x1o+2x2e+1x2e", {}),
    "path": (MANY, "2x0e+1x0e+5x1o+2x2e", {"path_normalization": "path"}),
    "some instructions": (MANY, "4x0e+3x0e+2x1o", {"instructions": [(0, 0), (1, 1), (4, 1), (5, 2)]}),
    "twice": ("4x0e+2x1o", "3x0e+2x1o", {"instructions": [(0, 0), (0, 0), (1, 1)], "path_normalization": "path"}),
    "unreached": ("4x0e+2x1o", "3x0e+2x1e+2x1o", {}),
    "nothing in common": ("4x0e", "3x1o", {}),
    "no input": ("", "3x1o", {}),
    "no output": ("3x1o", "", {}),
    "empty slots": ("0x0e+2x1o", "3x0e+0x1o", {}),
}
GATES = {
    "even": ("4x0e", [silu], "3x0e+2x0e", [silu, silu], "3x1o+2x2e"),
    "several": ("4x0e+2x0o+1x0e", [silu, tanh, sigmoid], "3x0e+2x0o", [sigmoid, tanh], "2x1o+3x2e"),
    "cut": ("2x0e", [None], "2x0e+3x0o", [silu, torch.abs], "4x1e+1x1o"),
    "gated scalars": ("2x0e", [silu], "3x0e", [sigmoid], "1x0e+2x0o"),
    "same": ("2x0o", [tanh], "5x0o", [tanh], "5x1e"),
    "only scalars": ("2x0e+3x0e", [silu, tanh], "", [], ""),
    "only gated": ("", [], "2x0e", [silu], "2x1o"),
    "nothing": ("", [], "", [], ""),
}
ACTS = {
    "one": ("4x0e", [silu]),
    "same": ("4x0e+2x0e+3x1o", [silu, silu, None]),
    "odd": ("4x0o+2x0o+3x0e", [torch.abs, tanh, None]),
    "none": ("4x0o+2x1o", [None, None]),
    "nothing": ("", []),
}
NORMS = {
    "plain": ("4x0e+3x1o+2x2e", sigmoid, {}),
    "bias": ("3x1o+2x1o", sigmoid, {"bias": True}),
    "large epsilon": ("3x1o+1x2e", silu, {"epsilon": 1.5}),
}
NETS = [{}, {"variance_in": 3, "variance_out": 4, "out_act": True}, {"variance_out": 2}]
EXTRACTS = [("4x0e+3x1o+2x2e", ["3x1o", "2x2e+4x0e"], [(1,), (2, 0)]), ("2x0e+3x1o", ["2x0e+3x1o"], [(0, 1)])]


def linear(name, **options):
    irreps_in, irreps_out, arguments = LINEARS[name]
    return [cls(irreps_in, irreps_out, **arguments, **options) for cls in (o3.Linear, eqtp.nn.Linear)]


def pairs():
    """Name -> function that makes (e3nn's module, ours)."""
    found = {f"linear, {name}": lambda name=name: linear(name) for name in LINEARS}
    for kind, cases in (("Gate", GATES), ("Activation", ACTS)):
        for name, case in cases.items():
            classes = getattr(theirs_nn, kind), getattr(eqtp.nn, kind)
            found[f"{kind}, {name}"] = lambda case=case, classes=classes: [cls(*case) for cls in classes]
    for name, (irreps, f, options) in NORMS.items():
        classes = theirs_nn.NormActivation, eqtp.nn.NormActivation
        found[f"norms, {name}"] = lambda irreps=irreps, f=f, options=options, classes=classes: [
            cls(o3.Irreps(irreps), f, **options) for cls in classes
        ]
    for squared in (True, False):
        found[f"Norm, {squared}"] = lambda squared=squared: [
            cls("3x0e+2x1o+4x1o", squared) for cls in (o3.Norm, eqtp.nn.Norm)
        ]
    for n, options in enumerate(NETS):
        classes = theirs_nn.FullyConnectedNet, eqtp.nn.FullyConnectedNet
        found[f"net, {n}"] = lambda options=options, classes=classes: [
            cls([3, 5, 4, 2], silu, **options) for cls in classes
        ]
    return found


PAIRS = pairs()
every_pair = pytest.mark.parametrize("name", PAIRS)


def loaded(name):
    """(e3nn's module, ours) with the same random parameters, biases too."""
    torch.manual_seed(3)
    theirs, ours = PAIRS[name]()
    with torch.no_grad():
        for p in theirs.parameters():
            p.copy_(torch.randn_like(p))
    ours.load_state_dict(theirs.state_dict(), strict=True)
    return theirs, ours


def width(module):
    return module.hs[0] if hasattr(module, "hs") else o3.Irreps(str(module.irreps_in)).dim


def assert_same(a, b):
    assert a.shape == b.shape and a.dtype == b.dtype
    if b.numel():
        testing.assert_close(a, b)


@every_pair
@pytest.mark.parametrize("lead", [(5,), (2, 3), (0,), (1,)], ids=str)
def test_output_and_both_derivatives_are_those_of_e3nn(e3nn64, name, lead):
    """To 1e-12, with any leading dimensions, rows in a slice of a wider tensor; of parameters too."""
    if name == "linear, only a bias" and lead != (1,):
        pytest.skip("e3nn fails there: the bias has one row, the rest as many as x")
    results = []
    for module in loaded(name):
        wide = testing.random(*lead, width(module) + 3).requires_grad_()
        leaves = [wide, *(p for p in module.parameters() if p.numel())]
        out = module(wide[..., 2:-1])
        if not out.requires_grad:
            results.append([out])
            continue
        cotangent = testing.random(*out.shape, seed=5)
        first = torch.autograd.grad(out, leaves, cotangent, create_graph=True, materialize_grads=True)
        second = torch.autograd.grad(
            sum((g * testing.random(*g.shape, seed=6)).sum() for g in first), leaves, materialize_grads=True
        ) if any(g.requires_grad for g in first) else ()  # fmt: skip
        results.append([out, *first, *second])
    for ours, theirs in zip(results[1][: len(results[0])], results[0], strict=True):  # e3nn's may have no gradient
        assert_same(ours.detach(), theirs.detach())


def test_a_bias_alone_is_in_every_row():
    """What e3nn cannot do."""
    module = eqtp.nn.Linear("4x1o", "2x0e", biases=True)
    torch.nn.init.normal_(module.bias)
    assert torch.equal(module(torch.randn(3, 12)), module.bias.expand(3, 2))


@every_pair
def test_gradcheck(e3nn64, name):
    _, module = loaded(name)
    x = (testing.random(2, width(module)) + 0.1).requires_grad_()
    leaves = (x, *(p for p in module.parameters() if p.numel()))
    names = [n for n, p in module.named_parameters() if p.numel()]

    def f(x, *parameters):
        return torch.func.functional_call(module, dict(zip(names, parameters, strict=True)), (x,))

    if f(*leaves).requires_grad and f(*leaves).numel():
        assert torch.autograd.gradcheck(f, leaves, check_forward_ad=True)
        assert torch.autograd.gradgradcheck(f, leaves)


@every_pair
def test_state_and_attributes_are_those_of_e3nn(e3nn64, name):
    theirs, ours = PAIRS[name]()
    state = theirs.state_dict()
    assert {n: t.shape for n, t in ours.state_dict().items()} == {n: t.shape for n, t in state.items()}
    assert [n for n, _ in ours.named_parameters()] == [n for n, _ in theirs.named_parameters()]
    theirs.load_state_dict(ours.state_dict(), strict=True)
    for key, mask in ours.state_dict().items():
        assert not key.endswith("output_mask") or torch.equal(mask, state[key])
    assert "norms" in name or repr(ours) == repr(theirs)
    for what in ("irreps_in", "irreps_out", "irreps_gates", "irreps_gated", "irreps_scalars"):
        assert not hasattr(theirs, what) or str(getattr(ours, what)) == str(getattr(theirs, what))
    for what in ("weight_numel", "bias_numel", "weight_index_slices", "epsilon", "normalize", "squared", "hs"):
        assert not hasattr(theirs, what) or getattr(ours, what) == getattr(theirs, what)


@pytest.mark.parametrize("name", LINEARS)
def test_instructions_and_views_are_those_of_e3nn(e3nn64, name):
    theirs, ours = linear(name)
    assert [tuple(ins) for ins in ours.instructions] == [tuple(ins) for ins in theirs.instructions]
    assert all(a._fields == b._fields for a, b in zip(ours.instructions, theirs.instructions, strict=True))
    weight = testing.random(ours.weight_numel)
    found = list(ours.weight_views(weight, yield_instruction=True))
    assert len(found) == sum(ins.i_in >= 0 for ins in ours.instructions)
    for n, ins, view in found:
        assert torch.equal(view, theirs.weight_view_for_instruction(n, weight)) and view.shape == ins.path_shape
        assert torch.equal(ours.weight_view_for_instruction(n, weight), view)


CONSTRUCTORS = [
    (o3.Linear, eqtp.nn.Linear),
    (o3.Linear.forward, eqtp.nn.Linear.forward),
    (o3.Linear.weight_views, eqtp.nn.Linear.weight_views),
    (o3.Linear.weight_view_for_instruction, eqtp.nn.Linear.weight_view_for_instruction),
    (o3.Norm, eqtp.nn.Norm),
    *((getattr(theirs_nn, n), getattr(eqtp.nn, n)) for n in ("Gate", "Activation", "NormActivation", "Extract")),
    (theirs_nn.ExtractIr, eqtp.nn.ExtractIr),
    (theirs_nn.Activation.forward, eqtp.nn.Activation.forward),
    (theirs_nn.FullyConnectedNet, eqtp.nn.FullyConnectedNet),
]


@pytest.mark.parametrize(("theirs", "ours"), CONSTRUCTORS, ids=lambda f: f.__qualname__)
def test_same_arguments_in_the_same_order_with_the_same_defaults(theirs, ours):
    expected, found = (
        [(p.name, p.default, p.kind) for p in inspect.signature(f).parameters.values()] for f in (theirs, ours)
    )
    assert found == expected


@pytest.mark.parametrize("shared", [True, False])
@pytest.mark.parametrize("name", ["biases", "one bias", "many slots", "some instructions", "twice"])
def test_weights_from_outside(e3nn64, name, shared):
    theirs, ours = linear(name, internal_weights=False, shared_weights=shared)
    assert not list(ours.parameters())
    lead = () if shared else (2, 3)
    x = testing.random(2, 3, width(ours)).requires_grad_()
    w = testing.random(*lead, ours.weight_numel, seed=1).requires_grad_()
    b = testing.random(ours.bias_numel, seed=2).requires_grad_()
    results = []
    for module in (theirs, ours):
        out = module(x, w, b)
        gradients = torch.autograd.grad(out.square().sum(), (x, w, b), materialize_grads=True)
        results.append([out, *gradients])
    for a, e in zip(results[1], results[0], strict=True):
        assert_same(a.detach(), e.detach())
    with pytest.raises(ValueError, match=r"Linear: weight must be given, \[\.\.\., \d+\]; the module has none"):
        ours(x)
    if ours.bias_numel:
        with pytest.raises(ValueError, match="Linear: bias must be given"):
            ours(x, w)
    with pytest.raises(ValueError, match="Linear: weight must be"):
        ours(x, w[..., 1:], b)


@pytest.mark.parametrize("f", [silu, tanh, sigmoid, torch.abs, torch.relu, torch.nn.Softplus(), lambda x: x])
def test_second_moments_are_those_of_e3nn_to_the_last_digit(f):
    theirs, ours = normalize2mom(f), eqtp.nn.activation.Normalized(f)
    assert ours.cst == theirs.cst and (ours.factor == 1) == theirs._is_id
    x = testing.random(50)
    assert torch.equal(ours(x), theirs(x))


@pytest.mark.parametrize("case", EXTRACTS, ids=str)
def test_extract(case):
    theirs, ours = theirs_nn.Extract(*case), eqtp.nn.Extract(*case)
    x = testing.random(2, 3, theirs.irreps_in.dim)
    for a, b in zip(ours(x), theirs(x), strict=True):
        assert torch.equal(a, b) and a.data_ptr() != x.data_ptr()
    for ir in ("1o", "0e", "5e"):
        theirs, ours = theirs_nn.ExtractIr(case[0], ir), eqtp.nn.ExtractIr(case[0], ir)
        assert str(ours.irreps_out) == str(theirs.irreps_out) and torch.equal(ours(x), theirs(x))


def test_activation_along_another_dimension():
    theirs, ours = (cls(*ACTS["odd"]) for cls in (theirs_nn.Activation, eqtp.nn.Activation))
    x = testing.random(2, 9, 3)
    assert_same(ours(x, 1), theirs(x, 1))


def test_norms_at_zero_have_derivatives():
    """R39: zero, in three orders, beside a vector that is not zero."""
    norm = eqtp.nn.Norm("2x1o").double()
    x = torch.cat([torch.zeros(1, 3), torch.ones(1, 3)], 1).double().requires_grad_()
    derivative = norm(x).sum()
    for order in range(3):
        (gx,) = torch.autograd.grad(derivative, x, create_graph=True)
        assert (gx[:, :3] == 0).all() and gx.isfinite().all() and (gx[:, 3:] != 0).any()
        derivative = (gx * testing.random(1, 6, seed=order)).sum()


def test_norm_activation_without_normalisation():
    """Which e3nn has, and cannot build: f(|x|) x."""
    module = eqtp.nn.NormActivation("2x0e+1x1o", tanh, normalize=False).double()
    x = testing.random(4, 5)
    norms = torch.stack([x[:, 0].abs(), x[:, 1].abs(), *[x[:, 2:].norm(dim=1)] * 3], 1)
    testing.assert_close(module(x), norms.tanh() * x)


# ------------------------------------------------------------------------ transforms, precision
TRANSFORMED = ["linear, plain", "linear, one bias", "Gate, several", "norms, plain", "net, 1", "Activation, same"]
transformed = pytest.mark.parametrize("name", TRANSFORMED)


@transformed
def test_compile_export_and_traces(e3nn64, name):
    """For other numbers of rows than that of the example; make_fx with the gradient inside."""
    _, module = loaded(name)
    x, other = testing.random(5, width(module)), testing.random(8, width(module), seed=1)
    expected = module(other).detach()

    def gradient(x):
        x = x.detach().requires_grad_()
        return torch.autograd.grad(module(x).square().sum(), x)[0]

    rows = torch.export.Dim("rows", min=2)
    graph = make_fx(gradient, tracing_mode="symbolic", _allow_non_fake_inputs=True)(x)
    found = [
        torch.compile(module, fullgraph=True, dynamic=True, backend="aot_eager")(other),
        torch.export.export(module, (x,), dynamic_shapes=({0: rows},)).module()(other),
        torch.jit.trace(module, x)(other),
    ]
    for out in found:
        assert_same(out.detach(), expected)
    assert_same(graph(other), gradient(other))
    many = testing.random(3, 5, width(module))
    assert_same(torch.vmap(module)(many).detach(), module(many).detach())


@transformed
def test_copies(e3nn64, name):
    _, module = loaded(name)
    x = testing.random(4, width(module))
    assert torch.equal(copy.deepcopy(module)(x), module(x))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_linear_under_autocast_gives_float32(dtype):
    module = eqtp.nn.Linear("8x0e+4x1o", "6x0e+5x1o", biases=True)
    x = testing.random(3, 20).to(dtype)
    with torch.autocast("cpu", dtype=dtype):
        out = module(x)
    assert out.dtype == torch.float32 and torch.equal(out, module(x.float()))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@transformed
def test_half_precision_is_stored_and_taken(name, dtype):
    """A module cast to half precision: right to what that can hold."""
    _, module = loaded(name)
    x = testing.random(6, width(module)).to(dtype)
    module = module.to(dtype)
    expected = copy.deepcopy(module).double()(x.double())
    out = module(x)
    assert out.dtype == dtype
    assert (out.double() - expected).abs().max() < 8 * torch.finfo(dtype).eps * expected.abs().max()


# ------------------------------------------------------------------------ errors
ERRORS = [
    (lambda: eqtp.nn.Linear("2x0e", "2x0e", f_in=2, f_out=3), ValueError, "f_in and f_out are not supported"),
    (lambda: eqtp.nn.Linear("2x0e", "2x0e", instructions=[(0, 1)]), IndexError, "1 is not a slot of irreps_out, 2x0e"),
    (lambda: eqtp.nn.Linear("2x0e", "2x0e", instructions=[(-1, 0)]), IndexError, "-1 is not a slot of irreps_in"),
    (lambda: eqtp.nn.Linear("2x0e", "2x1o", instructions=[(0, 0)]), ValueError, "are not of the same irrep"),
    (lambda: eqtp.nn.Linear("2x0e", "2x1o", biases=[True]), ValueError, "True only for 0e"),
    (lambda: eqtp.nn.Linear("2x0e", "2x0e", path_normalization="no"), ValueError, "must be 'element' or 'path'"),
    (
        lambda: eqtp.nn.Linear("2x0e", "2x0e", internal_weights=True, shared_weights=False),
        ValueError,
        "shared by all rows",
    ),
    (lambda: eqtp.nn.Linear("2x0e", "2x0e")(torch.ones(1, 3)), ValueError, r"must be \[\.\.\., 2\], got \[1, 3\]"),
    (lambda: eqtp.nn.Activation("2x1o", [silu]), ValueError, "no scalar"),
    (lambda: eqtp.nn.Activation("2x0o", [silu]), ValueError, "parity is violated"),
    (lambda: eqtp.nn.Activation("2x0o", []), ValueError, "1 slots in 2x0o, 0 functions"),
    (lambda: eqtp.nn.Gate("2x1o", [silu], "", [], ""), ValueError, "irreps_scalars must be scalars"),
    (lambda: eqtp.nn.Gate("", [], "2x0e", [silu], "3x1o"), ValueError, "3x1o has 3 irreps to gate, 2x0e 2 scalars"),
    (lambda: eqtp.nn.Extract("2x0e", ["2x0e"], [(0, 0)]), ValueError, "do not fit"),
    (lambda: eqtp.nn.NormActivation("2x0e", silu, epsilon=0.0), ValueError, "epsilon must be positive"),
    (lambda: eqtp.nn.NormActivation("2x0e", silu, False, 0.1), ValueError, "needs normalize=True"),
]


@pytest.mark.parametrize(("make", "kind", "message"), ERRORS, ids=[message for *_, message in ERRORS])
def test_errors_say_what_was_wrong(make, kind, message):
    with pytest.raises(kind, match=message):
        make()

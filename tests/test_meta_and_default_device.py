"""Constants belong to no module and to no call: modules built on the meta device or cast, torch's default device, what
is cached while modes and transforms of torch are active, copies from the host."""

import contextlib
import copy
import io

import calls
import pytest
import torch
from every_call import GRAPH_OPS, PLAN, all_calls, edges, joined, tensors
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx.experimental.proxy_tensor import make_fx
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

import eqtp
from eqtp import testing
from eqtp.ops import constants, vector_signal_tensor_product

CALLS = all_calls()
# layers of 2 channels
LAYERS = {
    "GauntTensorProduct": lambda: eqtp.nn.GauntTensorProduct(2, 1, 3, 2, odd=True),
    "GauntTensorProduct rank 2": lambda: eqtp.nn.GauntTensorProduct(2, 1, 3, 2, rank=2),
    "GauntManyBody": lambda: eqtp.nn.GauntManyBody(2, 3, 2, 3, 2),
    "GauntConvolution": lambda: eqtp.nn.GauntConvolution(2, 1, 3, 2, odd=True, num_neighbors=7),
    "TensorProduct": lambda: eqtp.nn.TensorProduct(
        PLAN.irreps_in1, PLAN.irreps_in2, PLAN.irreps_out, [p[:5] for p in PLAN.paths]
    ),
}


def inputs_of(name):
    if name == "TensorProduct":
        return tensors([(PLAN.dim_in1,), (PLAN.dim_in2,)], 5)
    x, y = tensors([(2, 9), (2, 4)], 5)
    if name == "GauntManyBody":
        return x, torch.arange(5) % 2
    if name == "GauntConvolution":
        return x, *tensors([(3,), (2, 2)], 5), eqtp.Graph(*edges(5, 5), 5, 5)
    return x, y


def forget():
    """As a fresh process: no table has been made."""
    constants._table.cache_clear()
    vector_signal_tensor_product._harmonics.cache_clear()


def is_float(t):
    return isinstance(t, torch.Tensor) and t.is_floating_point()


def derivatives(call, inputs):
    """Output, gradients and gradients of these."""
    inputs = [t.detach().clone().requires_grad_() if is_float(t) else t for t in inputs]
    leaves, out = [t for t in inputs if is_float(t)], call(*inputs)
    first = torch.autograd.grad(out.sin().sum(), leaves, create_graph=True)
    value = sum(g.sin().sum() for g in first)
    return [out, *first, *torch.autograd.grad(value, leaves, create_graph=True, materialize_grads=True)]


def assert_same(actual, expected):
    for a, b in zip(actual, expected, strict=True):
        testing.assert_close(a, b)


# ---- modules


@pytest.fixture
def layer(request):
    torch.manual_seed(0)
    torch.set_default_dtype(torch.float64)
    made = LAYERS[request.param]()
    torch.set_default_dtype(torch.float32)
    for p in made.parameters():
        torch.nn.init.normal_(p)
    return request.param, made


each_layer = pytest.mark.parametrize("layer", LAYERS, indirect=True)


@each_layer
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_layer_built_on_meta(layer, dtype):
    """No memory until it is loaded, and right then."""
    name, made = layer
    with torch.device("meta"):
        empty = LAYERS[name]().to(dtype)
    assert all(t.is_meta for t in empty.state_dict().values())
    empty = empty.to_empty(device="cpu").double()
    with torch.no_grad():
        for t in (*empty.parameters(), *empty.buffers()):
            t.fill_(torch.nan)  # memory that nobody has written
    assert str(empty.load_state_dict(made.state_dict(), strict=True)) == "<All keys matched successfully>"
    inputs = inputs_of(name)
    assert_same(*(derivatives(joined(m), inputs) for m in (empty, made)))


@each_layer
def test_layer_cast_after_it_was_built(layer):
    """Built in float32, the default, or cast to it and back: constants are not rounded."""
    name, made = layer
    inputs = inputs_of(name)
    expected = joined(made)(*inputs)
    for other in (LAYERS[name]().double(), copy.deepcopy(made).half().float().double()):
        assert set(other.state_dict()) == set(made.state_dict())
        other.load_state_dict(made.state_dict(), strict=True)
        testing.assert_close(joined(other)(*inputs), expected)


@each_layer
def test_copies_of_a_layer(layer):
    name, made = layer
    inputs = inputs_of(name)
    expected, file = joined(made)(*inputs), io.BytesIO()
    torch.save(made, file)
    file.seek(0)
    for other in (copy.deepcopy(made), torch.load(file, weights_only=False)):
        testing.assert_close(joined(other)(*inputs), expected)
        assert {n for n, _ in other.named_buffers()} <= {"weight", "output_mask"}


@each_layer
def test_inference_before_training(layer):
    name, made = layer
    inputs, expected = inputs_of(name), None
    forget()
    with torch.inference_mode():
        expected = joined(made)(*inputs)
    out = joined(made)(*inputs)
    testing.assert_close(out, expected)
    made.zero_grad()
    out.square().sum().backward()
    assert all(p.grad.abs().max() > 0 for p in made.parameters())


# ---- torch's default device


@pytest.mark.parametrize("name", CALLS)
def test_default_device(name):
    """Every tensor is made where the operands are."""
    call, inputs = CALLS[name]
    expected = derivatives(call, inputs)
    forget()
    with torch.device("meta"):
        actual = derivatives(call, inputs)
    assert_same(actual, expected)
    assert_same(derivatives(call, inputs), expected)  # with what is cached


@pytest.mark.parametrize("name", GRAPH_OPS)
def test_default_device_with_a_graph_built_there(name):
    op, of_nodes, of_edges = GRAPH_OPS[name]
    rows = [*tensors(of_nodes, 4), *tensors(of_edges, 5)]

    def call(*rows):
        return op(eqtp.Graph(*edges(5, 4), 4, 4, num_edges=4), *rows)

    expected = derivatives(call, rows)
    with torch.device("meta"):
        actual = derivatives(call, rows)
    assert_same(actual, expected)


def test_set_default_device():
    torch.set_default_device("meta")
    try:
        test_default_device("so2_convolution")
    finally:
        torch.set_default_device(None)


def test_checks_and_accelerate_under_a_default_device():
    """What eqtp.testing and the self-check of accelerate draw is on the CPU."""
    o3 = pytest.importorskip("e3nn.o3")
    model = torch.nn.Sequential(o3.SphericalHarmonics([0, 1, 2], True))
    r = torch.randn(5, 3)
    expected = model(r)
    with torch.device("meta"):
        assert testing.random(3).device.type == "cpu"
        assert all(rows.device.type == "cpu" for _, rows in testing.checks._slot_rows(PLAN))
        with testing.poisoned():
            pass
        assert len(eqtp.accelerate(model, (r,)).replaced) == 1
    testing.assert_close(model(r), expected, tolerance=1e-6)


# ---- copies from the host


@pytest.fixture
def made_on_host(monkeypatch):
    """Names of torch's functions that were called, of those that make tensors of Python's or NumPy's numbers. On a GPU
    that is a copy that the host waits for, and an error while a CUDA graph is captured."""
    found = []

    def recorded(name, function):
        def call(*arguments, **options):
            found.append(name)
            return function(*arguments, **options)

        return call

    for name in ("tensor", "as_tensor", "asarray", "from_numpy", "scalar_tensor"):
        monkeypatch.setattr(torch, name, recorded(name, getattr(torch, name)))
    return found


@pytest.mark.parametrize("name", CALLS)
def test_second_call_copies_nothing_from_the_host(name, made_on_host):
    call, inputs = CALLS[name]
    derivatives(call, inputs)
    made_on_host.clear()
    derivatives(call, inputs)
    assert not made_on_host


@pytest.mark.parametrize("layer", [name for name in LAYERS if name != "TensorProduct"], indirect=True)
def test_second_call_of_a_layer_copies_nothing_from_the_host(layer, made_on_host):
    name, made = layer
    inputs = inputs_of(name)
    derivatives(joined(made), inputs)
    made_on_host.clear()
    derivatives(joined(made), inputs)
    assert not made_on_host


def test_second_call_of_an_exported_layer_copies_nothing_from_the_host(made_on_host):
    """Its tables are those of all calls."""
    layer = eqtp.nn.GauntTensorProduct(2, 1, 3, 2, backend="reference").double()
    inputs = inputs_of("GauntTensorProduct")
    program = torch.export.export(layer, tuple(inputs), strict=False).module()
    first = program(*inputs)
    made_on_host.clear()
    again = program(*inputs)
    assert not made_on_host
    assert_same(again, first)


# ---- what is cached while a mode or a transform is active


class Marked(torch.Tensor):
    """What a mode makes of new tensors."""


class MarkNewTensors(TorchFunctionMode):
    def __torch_function__(self, function, types, arguments=(), options=None):
        out = function(*arguments, **(options or {}))
        return out.as_subclass(Marked) if function in (torch.tensor, torch.empty) else out


class PassOn(TorchDispatchMode):
    """As a profiler: sees every call."""

    def __torch_dispatch__(self, function, types, arguments=(), options=None):
        return function(*arguments, **(options or {}))


def slopes(call, inputs):
    inputs = [t.detach().requires_grad_() for t in inputs]
    return torch.autograd.grad(call(*inputs).sin().sum(), inputs)


def _under(mode):
    def run(call, inputs):
        with mode():
            slopes(call, inputs)

    return run


def _fake(call, inputs):
    with FakeTensorMode(allow_non_fake_inputs=True) as mode:
        slopes(call, [mode.from_tensor(t) for t in inputs])


def _traced(mode):
    return lambda call, inputs: make_fx(lambda *a: slopes(call, a), tracing_mode=mode, _allow_non_fake_inputs=True)(
        *inputs
    )


def _transformed(transform):
    def run(call, inputs):
        every = tuple(range(len(inputs)))
        slope = torch.func.grad(lambda *a: call(*a).sin().sum(), every)
        if transform == "vmap":
            torch.func.vmap(slope)(*(torch.stack([t, t]) for t in inputs))
        elif transform == "jvp":
            torch.func.jvp(slope, tuple(inputs), tuple(inputs))
        else:
            slope(*inputs)

    return run


CONTEXTS = {
    "fake tensors": _fake,
    "make_fx real": _traced("real"),
    "make_fx fake": _traced("fake"),
    "make_fx symbolic": _traced("symbolic"),
    "grad": _transformed("grad"),
    "jvp": _transformed("jvp"),
    "vmap": _transformed("vmap"),
    "inference mode": lambda call, inputs: torch.inference_mode()(call)(*inputs),
    "dispatch mode": _under(PassOn),
    "function mode": _under(MarkNewTensors),
}


@pytest.mark.parametrize("context", CONTEXTS)
def test_nothing_leaks_into_later_calls(context):
    """Of the tables that calls read in plain torch: one call for each file that has some."""
    names = ["gaunt_tensor_product sparse reference", "cg_tensor_product dense", "tensor_product reference"]
    names += ["spherical_harmonics native", "vector_signal_tensor_product sparse native", "rank_weights"]
    if context != "make_fx symbolic":  # which is slow
        names += ["gaunt_tensor_product fourier", "gaunt_many_body reference", "so2_convolution"]
    for name in names:
        call, inputs = CALLS[name]
        expected = derivatives(call, inputs)
        forget()
        with contextlib.suppress(NotImplementedError):  # forward mode of plain torch
            CONTEXTS[context](call, inputs)
        actual = derivatives(call, inputs)
        assert {type(t) for t in actual} == {torch.Tensor}, name
        assert_same(actual, expected)


@pytest.mark.parametrize("context", [name for name in CONTEXTS if name not in ("make_fx fake", "make_fx symbolic")])
def test_kernels_run_outside_of_modes_and_transforms(context, monkeypatch):
    """So what a family caches there is a tensor that any later call may use (in inference mode: by its address)."""
    ran = []

    def check(run, descriptor, pass_, inputs, outputs):
        assert not torch._C._functorch.is_functorch_wrapped_tensor(torch.zeros(1))
        assert not torch._C._are_functorch_transforms_active() and not torch._C._len_torch_dispatch_stack()
        ran.append(pass_)
        run(descriptor, pass_, inputs, outputs)

    for engine in ("channelwise", "couplings", "matrices", "signals", "harmonics", "segments"):
        calls.wrap(monkeypatch, engine, check)
    for call, inputs in (CALLS[name] for name in CALLS if name.endswith(" native")):
        CONTEXTS[context](call, inputs)
    assert bool(ran) == (context != "fake tensors")

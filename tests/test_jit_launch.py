"""Kernels loaded and launched, with a stand-in for CuPy and the GPU."""

import sys
import types
import warnings
from contextlib import contextmanager

import numpy as np
import pytest
import torch
from test_jit import NAMES, TEXT

from eqtp.backends.jit import runtime

pytestmark = pytest.mark.usefixtures("jit_cache")


class Function:
    """What CuPy's Function does with its arguments, written down instead of done."""

    def __init__(self, symbol):
        self.symbol, self.ptr, self.calls = symbol, id(self), []

    def __call__(self, grid, block, args, shared_mem=0, stream=None, enable_cooperative_groups=False):
        assert type(grid) is type(block) is tuple
        self.calls.append((grid, block, list(args), shared_mem, stream.ptr))


@pytest.fixture
def gpu(monkeypatch):
    """A stand-in for torch.cuda and CuPy whose tensors are on the CPU: what was loaded, the current stream, the devices
    entered."""
    state = types.SimpleNamespace(loaded=[], stream=7, capturing=False, entered=[], attributes=[], wrapped=0)

    class Module:
        def load(self, cubin):
            assert type(cubin) is bytes
            state.loaded.append(cubin)

        def get_function(self, name):
            return Function(name)

    class Stream:
        @classmethod
        def from_external(cls, ours):
            state.wrapped += 1
            return types.SimpleNamespace(ptr=ours.__cuda_stream__()[1])

    driver = types.SimpleNamespace(
        CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES=8,
        funcSetAttribute=lambda function, what, value: state.attributes.append((what, value)),
    )
    cupy = types.ModuleType("cupy")
    cupy.cuda = types.ModuleType("cupy.cuda")
    cupy.cuda.function = types.ModuleType("cupy.cuda.function")
    cupy.cuda.function.Module, cupy.cuda.Stream, cupy.cuda.driver = Module, Stream, driver
    for name, module in {"cupy": cupy, "cupy.cuda": cupy.cuda, "cupy.cuda.function": cupy.cuda.function}.items():
        monkeypatch.setitem(sys.modules, name, module)

    @contextmanager
    def device(d):
        state.entered.append(d)
        yield

    def stream(d):
        return types.SimpleNamespace(cuda_stream=state.stream, __cuda_stream__=lambda s=state.stream: (0, s))

    for name, value in {
        "device": device,
        "current_stream": stream,
        "is_current_stream_capturing": lambda: state.capturing,
    }.items():
        monkeypatch.setattr(torch.cuda, name, value)
    monkeypatch.setattr(runtime, "architecture", lambda d: "90")
    state.device = torch.device("cpu", 0)
    return state


@pytest.fixture
def kernel(gpu):
    return runtime.Kernel("scale<float>", Function("_Zscale"), torch.device("cpu"))


def test_arguments(gpu, kernel):
    x = torch.arange(6.0, dtype=torch.float64, requires_grad=True)
    runtime.launch(kernel, (5, 2), (128,), 0, x, x[2:], None, np.int64(2**40), np.float32(0.5), np.int32(-1))
    ((grid, block, args, shared, stream),) = kernel.function.calls
    assert (grid, block, shared, stream) == ((5, 2), (128,), 0, 7)
    assert args == [x.data_ptr(), x.data_ptr() + 16, 0, 2**40, 0.5, -1]
    # the sizes that the kernel reads
    assert [type(a) for a in args] == [
        np.uint64,
        np.uint64,
        np.uint64,
        np.int64,
        np.float32,
        np.int32,
    ]
    assert gpu.entered == [kernel.device]


def test_struct(gpu, kernel):
    """Its bytes as C++ has them: aligned members, addresses of tensors, 0 for None."""
    layout = np.dtype([("flag", np.bool_), ("x", np.uint64), ("y", np.uint64), ("n", np.int32)], align=True)
    x = torch.zeros(3)
    runtime.launch(kernel, (1,), (1,), 0, runtime.Struct(layout, (np.bool_(True), x, None, np.int32(-5))))
    ((_, _, (packed,), _, _),) = kernel.function.calls
    assert packed.shape == () and packed.dtype == layout and packed.nbytes == 32
    assert packed.item() == (True, x.data_ptr(), 0, -5)
    with pytest.raises(TypeError, match="member n must be int32, got int64"):
        runtime.launch(kernel, (1,), (1,), 0, runtime.Struct(layout, (np.bool_(True), x, None, np.int64(5))))
    with pytest.raises(TypeError, match="argument 0 must be a tensor, None or a NumPy scalar"):
        runtime.launch(kernel, (1,), (1,), 0, runtime.Struct(layout, (True, x, None, np.int32(5))))
    with pytest.raises(ValueError, match="argument 0 must be on cpu, got a tensor on meta"):
        away = torch.zeros(1, device="meta")
        runtime.launch(kernel, (1,), (1,), 0, runtime.Struct(layout, (np.bool_(True), away, None, np.int32(5))))


@pytest.mark.parametrize("bad", [3, 0.5, True, "x", [1], np.zeros(1)], ids=repr)
def test_argument_of_unknown_size(kernel, bad):
    with pytest.raises(
        TypeError,
        match=r"scale<float>: argument 1 must be a tensor, None or a NumPy scalar of the parameter's type, got \w+",
    ):
        runtime.launch(kernel, (1,), (1,), 0, torch.zeros(1), bad)
    assert kernel.function.calls == []


def test_tensor_on_another_device(kernel):
    with pytest.raises(ValueError, match=r"scale<float>: argument 0 must be on cpu, got a tensor on meta"):
        runtime.launch(kernel, (1,), (1,), 0, torch.zeros(1, device="meta"))
    assert kernel.function.calls == []


def test_grid(kernel):
    runtime.launch(kernel, (0,), (128,), 0)
    runtime.launch(kernel, (4, 0), (128,), 0)
    assert kernel.function.calls == []  # CuPy would run one block
    for grid in ((2**31,), (1, 65536), (1, 1, 65536)):
        with pytest.raises(ValueError, match=r"scale<float>: grid must be at most \(2147483647, 65535, 65535\), got"):
            runtime.launch(kernel, grid, (1,), 0)
    runtime.launch(kernel, (2**31 - 1, 65535, 65535), (1,), 0)
    assert len(kernel.function.calls) == 1


def test_large_shared_memory_is_asked_for_once(gpu, kernel):
    for size in (1024, 48 * 1024, 100_000, 100_000, 60_000, 120_000):
        runtime.launch(kernel, (1,), (1,), size)
    # more of it than before; from the first byte on, as static shared memory counts for what may be had unasked
    assert gpu.attributes == [(8, 1024), (8, 48 * 1024), (8, 100_000), (8, 120_000)]
    assert [call[3] for call in kernel.function.calls] == [1024, 48 * 1024, 100_000, 100_000, 60_000, 120_000]


def test_current_stream(gpu, kernel):
    for gpu.stream in (7, 7, 9, 7, 0):
        runtime.launch(kernel, (1,), (1,), 0)
    assert [call[4] for call in kernel.function.calls] == [7, 7, 9, 7, 0]
    assert gpu.wrapped == 3  # one object per stream


def test_older_cupy(gpu, kernel, monkeypatch):
    cuda = sys.modules["cupy.cuda"]
    monkeypatch.setattr(cuda, "Stream", type("Stream", (), {}))
    monkeypatch.setattr(cuda, "ExternalStream", lambda ptr, device_id: types.SimpleNamespace(ptr=ptr), raising=False)
    runtime.launch(kernel, (1,), (1,), 0)
    assert kernel.function.calls[0][4] == 7


def test_kernels_are_loaded_once(gpu, compiles):
    found = runtime.kernels(TEXT, NAMES, gpu.device)
    assert {name: k.function.symbol for name, k in found.items()} == {name: f"_Z{name}" for name in NAMES}
    assert runtime.kernels(TEXT, NAMES, gpu.device) is found
    other = runtime.kernels(TEXT, NAMES, torch.device("cpu", 1))  # another device: loaded again, not compiled again
    assert other is not found and len(compiles) == 1 and gpu.loaded == [runtime.cached(TEXT, NAMES, "90").cubin] * 2
    assert gpu.entered[-1] == torch.device("cpu", 1) == other[NAMES[0]].device


def test_device_without_a_number(gpu, compiles, monkeypatch):
    """ "cuda" is whichever GPU is current at the time."""
    number = 0
    monkeypatch.setattr(torch.cuda, "current_device", lambda: number)
    for number in (0, 1, 0):
        found = runtime.kernels(TEXT, NAMES, torch.device("cpu"))
        assert found is runtime.kernels(TEXT, NAMES, torch.device("cpu", number))
    assert len(gpu.loaded) == 2


def test_capture_needs_a_warm_up(gpu, compiles):
    gpu.capturing = True
    with pytest.raises(
        RuntimeError,
        match=r"scale<float>, scale<double> cannot be loaded during CUDA graph capture: run the same call once before",
    ):
        runtime.kernels(TEXT, NAMES, gpu.device)
    assert compiles == [] and gpu.loaded == []
    gpu.capturing = False
    found = runtime.kernels(TEXT, NAMES, gpu.device)
    gpu.capturing = True
    kernel = runtime.kernels(TEXT, NAMES, gpu.device)["scale<float>"]
    assert kernel is found["scale<float>"]
    kernel.device = torch.device("cpu")
    runtime.launch(kernel, (1,), (1,), 0, torch.zeros(1), np.float32(2), np.int64(1))
    assert len(kernel.function.calls) == 1


@pytest.mark.gpu
def test_on_a_gpu():
    """The real thing: results, the current stream, and a captured graph that is played again."""
    if runtime.why_not():
        pytest.skip(runtime.why_not())
    x = torch.arange(1000.0, device="cuda")
    kernel = runtime.kernels(TEXT, NAMES, x.device)["scale<float>"]

    def call():
        return runtime.launch(kernel, (8,), (128,), 0, x, np.float32(2), np.int64(len(x)))

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        call()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        call()
    graph.replay()
    graph.replay()
    assert torch.equal(x.cpu(), 8 * torch.arange(1000.0))


@pytest.mark.parametrize("family", ["jit", "native", "triton"])
def test_reasons_are_asked_inside_torch_compile(family):
    """R8: auto on a GPU inside a compiled function: Dynamo must not look into libraries."""
    from eqtp.backends import registry

    def can():
        return registry.why_not(family, "tensor_product", None, torch.device("cuda"), torch.float32) is None

    torch._dynamo.reset()
    assert torch.compile(lambda x: x + can(), fullgraph=True, backend="eager")(torch.zeros(1)).item() == can()

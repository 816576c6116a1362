"""What all tests share: global state is put back after each test, and small random graphs and products."""

import gc

import emulation
import numpy as np
import pytest
import torch

import eqtp
from eqtp.backends.jit import nvrtc, runtime


def pytest_collection_modifyitems(items):
    if not torch.cuda.is_available():
        for item in items:
            if "gpu" in item.keywords:
                item.add_marker(pytest.mark.skip(reason="no GPU"))


@pytest.fixture(autouse=True)
def global_state():
    """One thread unless a test asks for more; torch's and eqtp's global settings are put back after each test."""
    threads, dtype = torch.get_num_threads(), torch.get_default_dtype()
    torch.set_num_threads(1)  # the tests are small; more threads only wait for each other
    yield
    torch.set_num_threads(threads)
    torch.set_default_dtype(dtype)
    eqtp.set_backend(None)


@pytest.fixture(
    params=[("emulated", "cpu"), pytest.param(("jit", "cuda"), marks=pytest.mark.gpu)], ids=lambda t: "-".join(t)
)
def target(request):
    """(family, device): the specialised kernels, emulated and on a GPU."""
    if request.param[0] == "emulated" and emulation.why_not(None):
        pytest.skip(emulation.why_not(None))
    return request.param


@pytest.fixture(scope="module")
def own_cache(tmp_path_factory):
    """An empty cache of compiled models, for all tests of a file."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("EQTP_CACHE_DIR", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture
def no_compiler(monkeypatch):
    """Compiling, tracing included, is an error from here on."""

    def refuse(*_, **__):
        raise AssertionError("something was compiled")

    monkeypatch.setattr(torch._inductor, "aoti_compile_and_package", refuse)
    monkeypatch.setattr(torch.export, "export", refuse)
    monkeypatch.setattr(torch._dynamo, "optimize", refuse)


@pytest.fixture
def model():
    """A small model with modules of e3nn."""
    from e3nn_models import message

    return message()


@pytest.fixture
def example():
    """Inputs of `model`."""
    from e3nn_models import message_inputs

    return message_inputs()


@pytest.fixture
def e3nn64():
    """e3nn with float64 tables (they have the default dtype) and without its compilers, which are slow."""
    import e3nn

    settings = e3nn.get_optimization_defaults()
    torch.set_default_dtype(torch.float64)
    e3nn.set_optimization_defaults(jit_mode="eager", jit_script_fx=False, optimize_einsums=False)
    yield e3nn
    e3nn.set_optimization_defaults(**settings)


def _random_graph(num_src, num_dst, num_edges, seed=0, dtype=torch.int64):
    rng = np.random.default_rng(seed)
    ends = [rng.integers(n, size=num_edges) if num_edges else np.zeros(0, int) for n in (num_src, num_dst)]
    src, dst = (torch.from_numpy(t).to(dtype) for t in ends)
    return eqtp.Graph(src, dst, num_src, num_dst)


@pytest.fixture
def random_graph():
    """random_graph(num_src, num_dst, num_edges, seed=0, dtype=int64): edges in random order, some
    destinations without edges, some edges more than once."""
    return _random_graph


def _random_channelwise(seed, lmax=3, muls=(1, 2, 3, 5, 8, 16, 17)):
    rng = np.random.default_rng(seed)

    def block(mul):
        return (mul, (int(rng.integers(lmax + 1)), int(rng.choice([-1, 1]))))

    in1 = [block(int(rng.choice(muls))) for _ in range(rng.integers(1, 5))]
    in2 = [block(1) for _ in range(rng.integers(1, 5))]
    out, instructions = [block(3)], []  # a slot that perhaps no path reaches
    for _ in range(rng.integers(1, 10)):
        i, j = int(rng.integers(len(in1))), int(rng.integers(len(in2)))
        (mul, (l1, p1)), (_, (l2, p2)) = in1[i], in2[j]
        slot = (mul, (int(rng.integers(abs(l1 - l2), min(l1 + l2, lmax) + 1)), p1 * p2))
        if slot not in out or rng.random() < 0.4:
            out.append(slot)
        k = int(rng.choice([n for n, other in enumerate(out) if other == slot]))
        instructions.append((i, j, k, "uvu", bool(rng.random() < 0.7), float(rng.random() + 0.1)))
    return in1, in2, out, instructions


@pytest.fixture
def random_channelwise():
    """random_channelwise(seed, lmax=3, muls=...): arguments of a random uvu product with one channel in in2.

    Uneven multiplicities, several paths into one slot, slots without a path, paths with and without weights.
    """
    return _random_channelwise


# ------------------------------------------------------------------------ compiling at run time
@pytest.fixture
def compiler():
    """Skips where there is no NVRTC."""
    try:
        nvrtc.library()
    except RuntimeError as error:
        pytest.skip(str(error))


def forget():
    """As a fresh process: nothing compiled, nothing loaded, no warning given."""
    for memory in (runtime._compiled, runtime._key_locks, runtime._loaded, runtime._streams):
        memory.clear()
    runtime._warn_no_cache.cache_clear()


@pytest.fixture
def jit_cache(tmp_path, monkeypatch):
    """An empty cache, and nothing in memory before or after."""
    forget()
    monkeypatch.setenv("EQTP_CACHE_DIR", str(tmp_path / "cache"))
    for name in ("EQTP_LOCK_SECONDS", "EQTP_QUIET"):
        monkeypatch.delenv(name, raising=False)
    yield tmp_path / "cache"
    forget()


@pytest.fixture
def compiles(monkeypatch):
    """The calls of the compiler, which is pretended: what it makes depends on the text."""
    calls = []

    def pretend(text, names, arch, options=()):
        calls.append(text)
        return runtime.Compiled(
            b"cubin\n\0" + text.encode() + arch.encode(), {name: f"_Z{name}" for name in names}, "log"
        )

    monkeypatch.setattr(runtime, "compile", pretend)
    monkeypatch.setattr(runtime, "version", lambda: (13, 0))
    return calls


@pytest.fixture(scope="module")
def frozen_heap():
    """The benchmarks collect garbage before each measurement of memory: not among all that was imported before."""
    gc.collect()
    gc.freeze()
    yield
    gc.unfreeze()


@pytest.fixture
def threads():
    """Puts back the number of threads, which the command of the benchmarks sets."""
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)

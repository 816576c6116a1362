"""Run-time compilation (R13 to R16): NVRTC without a GPU, the cache on disk, its locks, its messages; launching with a stand-in for CuPy."""

import fcntl
import os
import subprocess
import sys
import threading
import time
import types
import warnings
from contextlib import contextmanager

import numpy as np
import pytest
import torch

from eqtp import jit, nvrtc

TEXT = """
template <class T> __global__ void scale(T* x, T a, long long n) {
  const long long i = blockIdx.x * (long long)blockDim.x + threadIdx.x;
  if (i < n) x[i] *= a;
}
"""
NAMES = ("scale<float>", "scale<double>")
# 64 registers hold 32 doubles and nothing else: 64 doubles at once must spill
SPILLS = """
extern "C" __global__ void __launch_bounds__(1024, 1) greedy(double* x, int n) {
  double s[64];
  #pragma unroll
  for (int i = 0; i < 64; ++i) s[i] = x[i * 1024 + threadIdx.x];
  for (int r = 0; r < n; ++r) {
    #pragma unroll
    for (int i = 0; i < 64; ++i) s[i] = s[i] * s[(i * 7 + 3) % 64] + 1;
  }
  #pragma unroll
  for (int i = 0; i < 64; ++i) x[i * 1024 + threadIdx.x] = s[i];
}
"""


@pytest.fixture
def compiler():
    try:
        nvrtc.library()
    except RuntimeError as error:
        pytest.skip(str(error))


def forget():
    """As a fresh process: nothing compiled, nothing loaded, no warning given."""
    for memory in (jit._compiled, jit._busy, jit._loaded, jit._streams):
        memory.clear()
    jit._no_cache.cache_clear()


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
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
        return jit.Compiled(b"cubin\n\0" + text.encode() + arch.encode(), {name: f"_Z{name}" for name in names}, "log")

    monkeypatch.setattr(jit, "compile", pretend)
    monkeypatch.setattr(jit, "version", lambda: (13, 0))
    return calls


def entries(folder):
    return sorted(folder.glob("*"))


# ------------------------------------------------------------------------------------------------ the compiler
@pytest.mark.parametrize("arch", ["80", "90", "100", "120"])
def test_compiles_without_a_gpu(compiler, arch):
    made = jit.compile(TEXT, NAMES, arch)
    assert made.cubin.startswith(b"\x7fELF")
    found = {u.kernel: u for u in jit.usage(made.log)}
    assert set(made.lowered) == set(NAMES) and set(found) == set(made.lowered.values())
    for u in found.values():
        assert 0 < u.registers < 64 and u.spill_stores == u.spill_loads == u.stack == 0


def test_spills_are_seen(compiler):
    (u,) = jit.usage(jit.compile(SPILLS, ("greedy",), "90").log)
    assert u.kernel == "greedy" and u.registers <= 64 and min(u.stack, u.spill_stores, u.spill_loads) > 0


def test_arithmetic_is_exact(compiler):
    """Small numbers are not flushed to zero, division is rounded as IEEE says: the code is what these options give, not what their opposites do."""
    text = 'extern "C" __global__ void f(float* x) { x[0] = x[1] / x[2]; }'
    ours = jit.compile(text, ("f",), "90").cubin
    assert jit.compile(text, ("f",), "90", ("-ftz=false", "-prec-div=true")).cubin == ours
    for option in ("-ftz=true", "-prec-div=false"):
        assert jit.compile(text, ("f",), "90", (option,)).cubin != ours


@pytest.mark.parametrize(
    "text, names, arch, match",
    [
        (
            TEXT.replace("*= a", "*= b"),
            NAMES,
            "90",
            r'scale<float>, scale<double> for sm_90:\neqtp.cu\(4\): error: identifier "b" is undefined',
        ),
        (TEXT, ("scales<float>",), "90", "scales"),
        (TEXT, NAMES, "91", "invalid value for --gpu-architecture"),
    ],
)
def test_compile_errors(compiler, cache, text, names, arch, match):
    for _ in range(2):  # a failure is not kept
        with pytest.raises(RuntimeError, match=match):
            jit.cached(text, names, arch)
    assert entries(cache) == []


def test_source(compiler, tmp_path, monkeypatch):
    files = {
        "device.cuh": "#pragma once\nusing Index = long long;\n",
        "left.cuh": '#pragma once\n#include "device.cuh"\nstruct Left { Index i; };\n',
        "op.cuh": '#include "left.cuh"\n  # include "device.cuh"\n__global__ void op(Left* x) { x->i = broken; }\n',
    }
    for name, text in files.items():
        (tmp_path / name).write_text(text)
    monkeypatch.setattr(nvrtc, "folder", lambda: tmp_path)
    text = jit.source("op.cuh", "left.cuh")
    assert text.count("struct Left") == text.count("using Index") == 1
    assert "pragma once" not in text and "include" not in text and str(tmp_path) not in text
    with pytest.raises(RuntimeError, match=r'op.cuh\(3\): error: identifier "broken"'):
        jit.compile(text, (), "90")
    with pytest.raises(RuntimeError, match=r'eqtp.cu\(1\): error: identifier "own"'):
        jit.compile(text.replace("broken", "0") + "int own_text = own;", (), "90")
    jit.compile(text.replace("broken", "0"), ("op",), "90")
    (tmp_path / "device.cuh").unlink()
    with pytest.raises(FileNotFoundError, match=r"device.cuh, wanted by left.cuh"):
        jit.source("op.cuh")


def test_the_sources_of_the_package_compile(compiler):
    text = jit.source("device.cuh") + "template <class T> __global__ void copy(T* x, const T* y) { eqtp::write(x, eqtp::read(*y)); }"
    made = jit.compile(text, [f"copy<{t}>" for t in ("float", "double", "eqtp::f16", "eqtp::bf16")], "90")
    assert len(jit.usage(made.log)) == 4


@pytest.mark.parametrize("inside", [True, False], ids=["wheel", "source tree"])
def test_folder_of_the_sources(tmp_path, monkeypatch, inside):
    package = tmp_path / "site" / "eqtp"
    package.mkdir(parents=True)
    monkeypatch.setattr(nvrtc, "__file__", str(package / "nvrtc.py"))
    with pytest.raises(FileNotFoundError, match=r"csrc/\*.cuh\) are missing"):
        nvrtc.folder()
    folder = (package if inside else package.parent) / "csrc"
    folder.mkdir()
    (folder / "device.cuh").touch()
    assert nvrtc.folder() == folder


@pytest.mark.parametrize("capability, arch", [((9, 0), "90"), ((8, 9), "89"), ((12, 9), "121"), ((10, 2), "100")])
def test_architecture(compiler, monkeypatch, capability, arch):
    if capability == (12, 9) and nvrtc.version()[0] < 13:
        pytest.skip("sm_121 came with CUDA 13")
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    assert jit.architecture(torch.device("cuda", 0)) == arch


def test_architecture_that_nvrtc_does_not_know(compiler, monkeypatch):
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (99, 0))
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "Future GPU")
    with pytest.raises(RuntimeError, match=r"NVRTC \d+.\d+ knows no code for Future GPU \(sm_990\)"):
        jit.architecture(torch.device("cuda", 0))


# ------------------------------------------------------------------------------------------------ the cache
def test_compiled_once(compiles, cache):
    first = jit.cached(TEXT, NAMES, "90")
    assert jit.cached(TEXT, list(NAMES), "90") is first  # from memory
    forget()
    assert jit.cached(TEXT, NAMES, "90") == first  # from disk, every byte
    assert len(compiles) == 1
    assert [path.suffix for path in entries(cache)] == [".cubin"]  # no lock and no temporary file is left


def test_real_code_from_disk(compiler, cache):
    first = jit.cached(TEXT, NAMES, "90")
    forget()
    assert jit.cached(TEXT, NAMES, "90") == first and len(jit.usage(first.log)) == 2


@pytest.mark.parametrize("what", ["text", "names", "arch", "options", "NVRTC", "format"])
def test_other_key_other_entry(compiles, cache, monkeypatch, what):
    jit.cached(TEXT, NAMES, "90")
    forget()
    if what == "NVRTC":
        monkeypatch.setattr(jit, "version", lambda: (13, 1))
    if what == "format":
        monkeypatch.setattr(jit, "FORMAT", jit.FORMAT + 1)
    changed = {
        "text": (TEXT + "\n", NAMES, "90"),
        "names": (TEXT, NAMES[:1], "90"),
        "arch": (TEXT, NAMES, "100"),
        "options": (TEXT, NAMES, "90", ("-G",)),
    }
    jit.cached(*changed.get(what, (TEXT, NAMES, "90")))
    assert len(compiles) == len(entries(cache)) == 2


def flip(data, at):
    return data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :]


DAMAGE = {
    "empty": lambda data: b"",
    "truncated": lambda data: data[:-5],
    "checksum only": lambda data: data[:65],
    "bit in the checksum": lambda data: flip(data, 3),
    "bit in the header": lambda data: flip(data, 80),
    "bit in the code": lambda data: flip(data, len(data) - 10),
    "something else": lambda data: b"\x7fELF" + bytes(1000),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_damaged_entry_is_made_again(compiles, cache, capfd, damage):
    first = jit.cached(TEXT, NAMES, "90")
    (path,) = entries(cache)
    good = path.read_bytes()
    path.write_bytes(DAMAGE[damage](good))
    forget()
    assert jit.cached(TEXT, NAMES, "90") == first
    assert len(compiles) == 2 and entries(cache) == [path] and path.read_bytes() == good
    assert f"eqtp: {path} is damaged" in capfd.readouterr().err


def test_entry_of_another_program(compiles, cache):
    """A file under the name of another one is whole, and still not taken."""
    jit.cached(TEXT, NAMES, "90")
    (path,) = entries(cache)
    jit.cached(TEXT, NAMES, "100")
    (other,) = set(entries(cache)) - {path}
    other.replace(path)
    forget()
    assert jit.cached(TEXT, NAMES, "90").cubin.endswith(b"90") and len(compiles) == 3


@pytest.mark.parametrize(
    "environment, folder",
    [
        ({"EQTP_CACHE_DIR": "/a", "XDG_CACHE_HOME": "/b"}, "/a"),
        ({"XDG_CACHE_HOME": "/b"}, "/b/eqtp"),
        ({"HOME": "/c"}, "/c/.cache/eqtp"),
        ({"HOME": "/c", "EQTP_CACHE_DIR": "~/d"}, "/c/d"),
    ],
)
def test_cache_folder(monkeypatch, environment, folder):
    for name in ("EQTP_CACHE_DIR", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert str(jit.cache_folder()) == folder


def test_folder_that_cannot_be_used(compiles, tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    monkeypatch.setenv("EQTP_CACHE_DIR", str(tmp_path / "file" / "cache"))
    with pytest.warns(RuntimeWarning, match=r"cannot keep compiled kernels in .*file/cache \(Not a directory\).*EQTP_CACHE_DIR") as caught:
        for arch in ("80", "90", "90"):
            jit.cached(TEXT, NAMES, arch)
    assert len(caught) == 1 and len(compiles) == 2


def test_entry_that_cannot_be_written(compiles, cache, monkeypatch):
    def full(source, target):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "replace", full)
    with pytest.warns(RuntimeWarning, match=r"No space left on device"):
        made = jit.cached(TEXT, NAMES, "90")
    assert made.cubin and len(compiles) == 1  # not compiled a second time for it
    assert entries(cache) == []


# ------------------------------------------------------------------------------------------------ many at once
@pytest.mark.filterwarnings("ignore:eqtp cannot keep compiled kernels")
@pytest.mark.parametrize("usable", [True, False])
def test_threads_compile_once(compiles, cache, monkeypatch, usable):
    """With the cache's lock and without it."""
    if not usable:
        cache.touch()  # a file where the folder should be
    pretend = jit.compile
    monkeypatch.setattr(jit, "compile", lambda *a: (time.sleep(0.1), pretend(*a))[1])
    threads = [threading.Thread(target=jit.cached, args=(TEXT, NAMES, "90")) for _ in range(8)]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    assert len(compiles) == 1


def test_compile_all(compiles, monkeypatch):
    """In the order they were given, and at the same time."""
    monkeypatch.setattr(os, "cpu_count", lambda: 4)
    pretend, together = jit.compile, threading.Barrier(4, timeout=20)
    monkeypatch.setattr(jit, "compile", lambda *a: (together.wait(), pretend(*a))[1])
    programs = [(f"{TEXT}// {n}", NAMES) for n in range(4)]
    made = jit.compile_all(programs, "90")
    assert [m.cubin for m in made] == [b"cubin\n\0" + text.encode() + b"90" for text, _ in programs]
    assert jit.compile_all(programs, "90") == made and len(compiles) == 4


PROCESS = """
import sys, time
from eqtp import jit
calls, seconds = [], float(sys.argv[1])
def pretend(text, names, arch, options=()):
    calls.append(text)
    time.sleep(seconds)
    return jit.Compiled(b"code", {}, "")
jit.compile, jit.version = pretend, lambda: (13, 0)
print("ready", flush=True)
sys.stdin.readline()
made = jit.cached("text", (), "90")
print(len(calls), made.cubin.decode())
"""


def start(seconds):
    """A process that compiles "text", in so many seconds, as soon as it is told to."""
    pipe = subprocess.PIPE
    process = subprocess.Popen([sys.executable, "-c", PROCESS, str(seconds)], stdin=pipe, stdout=pipe, stderr=pipe, text=True)
    assert process.stdout.readline() == "ready\n"
    return process


def test_processes_compile_once(cache):
    processes = [start(1.5), start(1.5)]
    for process in processes:
        process.stdin.write("\n")
        process.stdin.flush()
    results = [process.communicate(timeout=60) for process in processes]
    assert sorted(out for out, _ in results) == ["0 code\n", "1 code\n"]
    said = "".join(error for _, error in results)  # after a second both say why they stand still
    assert f"eqtp: compiling kernels for sm_90 (kept in {cache})" in said and "eqtp: waiting for another process" in said
    assert [path.suffix for path in entries(cache)] == [".cubin"]


def test_lock_of_a_dead_process(compiles, cache):
    process = start(1000)
    process.stdin.write("\n")
    process.stdin.flush()
    deadline = time.monotonic() + 20
    while not list(cache.glob("*.lock")) and time.monotonic() < deadline:
        time.sleep(0.02)
    process.kill()
    process.communicate()
    assert [path.suffix for path in entries(cache)] == [".lock"]
    begin = time.monotonic()
    jit.cached("text", (), "90")
    assert time.monotonic() - begin < 1 and len(compiles) == 1
    assert [path.suffix for path in entries(cache)] == [".cubin"]


@contextmanager
def held(path):
    """The lock of an entry in the hands of someone who never finishes."""
    path.parent.mkdir(exist_ok=True)
    with open(path, "w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def test_time_limit_of_a_lock(compiles, cache, monkeypatch, capfd):
    jit.cached(TEXT, NAMES, "90")
    (path,) = entries(cache)
    path.unlink()
    forget()
    monkeypatch.setenv("EQTP_LOCK_SECONDS", "0.3")
    lock = path.with_suffix(".lock")
    with held(lock):
        begin = time.monotonic()
        jit.cached(TEXT, NAMES, "90")
        assert 0.3 <= time.monotonic() - begin < 2 and len(compiles) == 2
        assert lock.exists()  # it is not ours
    assert f"eqtp: another process holds {lock} for more than 0.3 s (EQTP_LOCK_SECONDS)" in capfd.readouterr().err
    monkeypatch.setenv("EQTP_LOCK_SECONDS", "soon")
    path.unlink()
    forget()
    with pytest.raises(ValueError, match="EQTP_LOCK_SECONDS must be a number of seconds, got 'soon'"):
        jit.cached(TEXT, NAMES, "90")


@pytest.mark.parametrize("seconds, quiet, said", [(0.3, "0", True), (0.0, "0", False), (0.3, "1", False)])
def test_message_while_compiling(compiles, cache, monkeypatch, capfd, caplog, seconds, quiet, said):
    monkeypatch.setattr(jit, "PATIENCE", 0.1)
    monkeypatch.setenv("EQTP_QUIET", quiet)
    caplog.set_level("INFO", logger="eqtp")
    pretend = jit.compile
    monkeypatch.setattr(jit, "compile", lambda *a: (time.sleep(seconds), pretend(*a))[1])
    jit.cached(TEXT, NAMES, "90")
    message = f"compiling scale<float> and 1 more for sm_90 (kept in {cache})"
    assert capfd.readouterr().err == (f"eqtp: {message}\n" if said else "")
    assert (message in caplog.messages) == (seconds > 0)


# ------------------------------------------------------------------------------------------------ what is missing
@pytest.fixture
def machine(monkeypatch):
    """A machine that has everything, as far as torch and the imports can tell."""
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(nvrtc, "library", lambda: None)
    found = {"cupy": True}
    real = nvrtc.importlib.util.find_spec
    monkeypatch.setattr(nvrtc.importlib.util, "find_spec", lambda name: found["cupy"] if name == "cupy" else real(name))
    for name in ("cupy", "cupy.cuda", "cupy.cuda.function"):
        monkeypatch.setitem(sys.modules, name, types.ModuleType(name))
    return found


def test_nothing_is_missing(machine):
    assert jit.why_not() is None


@pytest.mark.parametrize("version, package", [("13.0", "cupy-cuda13x"), ("12.8", "cupy-cuda12x")])
def test_no_cupy(machine, monkeypatch, version, package):
    monkeypatch.setattr(torch.version, "cuda", version)
    machine["cupy"] = None
    assert jit.why_not() == f"CuPy, which launches the kernels, is missing: pip install {package}"


def test_broken_cupy(machine, monkeypatch):
    monkeypatch.setitem(sys.modules, "cupy.cuda.function", None)
    assert "CuPy is installed but cannot be imported" in jit.why_not() and "pip install cupy-cuda13x" in jit.why_not()


@pytest.mark.parametrize("version, package", [("14.2", "'nvidia-cuda-nvrtc==14.*'"), ("12.8", "nvidia-cuda-nvrtc-cu12")])
def test_no_nvrtc(monkeypatch, version, package):
    monkeypatch.setattr(torch.version, "cuda", version)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(nvrtc, "_folders", lambda major: [])
    monkeypatch.setattr(nvrtc, "library", nvrtc.library.__wrapped__)  # not the one that is open
    monkeypatch.setattr(nvrtc.C, "CDLL", lambda name: open(f"/no/such/{name}"))
    said = jit.why_not()
    assert said.startswith("NVRTC, the run-time compiler of CUDA, is missing (") and said.endswith(f": pip install {package}")


def test_no_gpu(machine, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert "torch finds no NVIDIA GPU" in jit.why_not()
    monkeypatch.setattr(torch.version, "cuda", None)
    assert "this torch is built without CUDA" in jit.why_not()


def test_no_sources(machine, monkeypatch):
    monkeypatch.setattr(nvrtc, "__file__", "/no/such/place/eqtp/nvrtc.py")
    assert "kernel sources (csrc/*.cuh) are missing" in jit.why_not()


def test_where_nvrtc_is_looked_for(tmp_path, monkeypatch):
    """The wheels' folder before CUDA_HOME before the system; NVRTC's builtins first, because NVRTC itself asks for them by bare name."""
    home, wheel = tmp_path / "toolkit" / "lib64", tmp_path / "site" / "nvidia" / "cu13" / "lib"
    for folder in (home, wheel):
        folder.mkdir(parents=True)
    (home / "libnvrtc.so.13").touch()
    monkeypatch.setenv("CUDA_HOME", str(tmp_path / "toolkit"))
    namespace = types.SimpleNamespace(submodule_search_locations=[str(tmp_path / "site" / "nvidia")])
    monkeypatch.setattr(nvrtc.importlib.util, "find_spec", lambda name: namespace)
    opened = []
    monkeypatch.setattr(nvrtc.C, "CDLL", lambda name: opened.append(name) or name)
    assert nvrtc._open("13") == str(home / "libnvrtc.so.13")
    for name in ("libnvrtc.so.13", "libnvrtc-builtins.so.13.0", "libnvrtc-builtins.alt.so.13.0"):
        (wheel / name).touch()
    opened.clear()
    nvrtc._open("13")
    assert opened == [str(wheel / "libnvrtc-builtins.so.13.0"), str(wheel / "libnvrtc.so.13")]
    monkeypatch.setattr(nvrtc, "_folders", lambda major: [tmp_path])
    assert nvrtc._open("12") == "libnvrtc.so.12"  # whatever the system's loader finds


PROBE = """
import sys, eqtp, torch
before = set(sys.modules)
import eqtp.jit
libraries = {line.split()[-1] for line in open("/proc/self/maps") if "nvrtc" in line}
print(sorted(name for name in sys.modules if name.split(".")[0] in ("cupy", "cupy_backends", "nvidia")), libraries, torch.cuda.is_initialized())
"""


@pytest.mark.skipif(not os.path.exists("/proc/self/maps"), reason="no /proc: cannot see which libraries are open")
def test_importing_costs_nothing():
    result = subprocess.run([sys.executable, "-c", PROBE], capture_output=True, text=True, check=True)
    assert result.stdout == "[] set() False\n"


# ------------------------------------------------------------------------------------------------ launching
class Function:
    """What CuPy's Function does with its arguments, written down instead of done."""

    def __init__(self, symbol):
        self.symbol, self.ptr, self.calls = symbol, id(self), []

    def __call__(self, grid, block, args, shared_mem=0, stream=None, enable_cooperative_groups=False):
        assert type(grid) is type(block) is tuple
        self.calls.append((grid, block, list(args), shared_mem, stream.ptr))


@pytest.fixture
def gpu(monkeypatch):
    """A stand-in for torch.cuda and CuPy whose tensors are on the CPU: what was loaded, the current stream, the devices entered."""
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
        CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES=8, funcSetAttribute=lambda function, what, value: state.attributes.append((what, value))
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

    stream = lambda d: types.SimpleNamespace(cuda_stream=state.stream, __cuda_stream__=lambda s=state.stream: (0, s))  # noqa: E731
    for name, value in {"device": device, "current_stream": stream, "is_current_stream_capturing": lambda: state.capturing}.items():
        monkeypatch.setattr(torch.cuda, name, value)
    monkeypatch.setattr(jit, "architecture", lambda d: "90")
    state.device = torch.device("cpu", 0)
    return state


@pytest.fixture
def kernel(gpu):
    return jit.Kernel("scale<float>", Function("_Zscale"), torch.device("cpu"))


def test_arguments(gpu, kernel):
    x = torch.arange(6.0, dtype=torch.float64, requires_grad=True)
    jit.launch(kernel, (5, 2), (128,), 0, x, x[2:], None, np.int64(2**40), np.float32(0.5), np.int32(-1))
    ((grid, block, args, shared, stream),) = kernel.function.calls
    assert (grid, block, shared, stream) == ((5, 2), (128,), 0, 7)
    assert args == [x.data_ptr(), x.data_ptr() + 16, 0, 2**40, 0.5, -1]
    assert [type(a) for a in args] == [np.uint64, np.uint64, np.uint64, np.int64, np.float32, np.int32]  # the sizes that the kernel reads
    assert gpu.entered == [kernel.device]


@pytest.mark.parametrize("bad", [3, 0.5, True, "x", [1], np.zeros(1)], ids=repr)
def test_argument_of_unknown_size(kernel, bad):
    with pytest.raises(TypeError, match=r"scale<float>: argument 1 must be a tensor, None or a NumPy scalar of the parameter's type, got \w+"):
        jit.launch(kernel, (1,), (1,), 0, torch.zeros(1), bad)
    assert kernel.function.calls == []


def test_tensor_on_another_device(kernel):
    with pytest.raises(ValueError, match=r"scale<float>: argument 0 must be on cpu, got a tensor on meta"):
        jit.launch(kernel, (1,), (1,), 0, torch.zeros(1, device="meta"))
    assert kernel.function.calls == []


def test_grid(kernel):
    jit.launch(kernel, (0,), (128,), 0)
    jit.launch(kernel, (4, 0), (128,), 0)
    assert kernel.function.calls == []  # CuPy would run one block
    for grid in ((2**31,), (1, 65536), (1, 1, 65536)):
        with pytest.raises(ValueError, match=r"scale<float>: grid must be at most \(2147483647, 65535, 65535\), got"):
            jit.launch(kernel, grid, (1,), 0)
    jit.launch(kernel, (2**31 - 1, 65535, 65535), (1,), 0)
    assert len(kernel.function.calls) == 1


def test_large_shared_memory_is_asked_for_once(gpu, kernel):
    for size in (1024, 48 * 1024, 100_000, 100_000, 60_000, 120_000):
        jit.launch(kernel, (1,), (1,), size)
    assert gpu.attributes == [(8, 100_000), (8, 120_000)]
    assert [call[3] for call in kernel.function.calls] == [1024, 48 * 1024, 100_000, 100_000, 60_000, 120_000]


def test_current_stream(gpu, kernel):
    for gpu.stream in (7, 7, 9, 7, 0):
        jit.launch(kernel, (1,), (1,), 0)
    assert [call[4] for call in kernel.function.calls] == [7, 7, 9, 7, 0]
    assert gpu.wrapped == 3  # one object per stream


def test_older_cupy(gpu, kernel, monkeypatch):
    cuda = sys.modules["cupy.cuda"]
    monkeypatch.setattr(cuda, "Stream", type("Stream", (), {}))
    monkeypatch.setattr(cuda, "ExternalStream", lambda ptr, device_id: types.SimpleNamespace(ptr=ptr), raising=False)
    jit.launch(kernel, (1,), (1,), 0)
    assert kernel.function.calls[0][4] == 7


def test_kernels_are_loaded_once(gpu, compiles):
    found = jit.kernels(TEXT, NAMES, gpu.device)
    assert {name: k.function.symbol for name, k in found.items()} == {name: f"_Z{name}" for name in NAMES}
    assert jit.kernels(TEXT, NAMES, gpu.device) is found
    other = jit.kernels(TEXT, NAMES, torch.device("cpu", 1))  # another device: loaded again, not compiled again
    assert other is not found and len(compiles) == 1 and gpu.loaded == [jit.cached(TEXT, NAMES, "90").cubin] * 2
    assert gpu.entered[-1] == torch.device("cpu", 1) == other[NAMES[0]].device


def test_device_without_a_number(gpu, compiles, monkeypatch):
    """ "cuda" is whichever GPU is current at the time."""
    number = 0
    monkeypatch.setattr(torch.cuda, "current_device", lambda: number)
    for number in (0, 1, 0):
        found = jit.kernels(TEXT, NAMES, torch.device("cpu"))
        assert found is jit.kernels(TEXT, NAMES, torch.device("cpu", number))
    assert len(gpu.loaded) == 2


def test_capture_needs_a_warm_up(gpu, compiles):
    gpu.capturing = True
    with pytest.raises(RuntimeError, match=r"scale<float>, scale<double> cannot be loaded during CUDA graph capture: run the same call once before"):
        jit.kernels(TEXT, NAMES, gpu.device)
    assert compiles == [] and gpu.loaded == []
    gpu.capturing = False
    found = jit.kernels(TEXT, NAMES, gpu.device)
    gpu.capturing = True
    kernel = jit.kernels(TEXT, NAMES, gpu.device)["scale<float>"]
    assert kernel is found["scale<float>"]
    kernel.device = torch.device("cpu")
    jit.launch(kernel, (1,), (1,), 0, torch.zeros(1), np.float32(2), np.int64(1))
    assert len(kernel.function.calls) == 1


@pytest.mark.gpu
def test_on_a_gpu():
    """The real thing: results, the current stream, and a captured graph that is played again."""
    if jit.why_not():
        pytest.skip(jit.why_not())
    x = torch.arange(1000.0, device="cuda")
    kernel = jit.kernels(TEXT, NAMES, x.device)["scale<float>"]
    call = lambda: jit.launch(kernel, (8,), (128,), 0, x, np.float32(2), np.int64(len(x)))  # noqa: E731
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
    from eqtp import backend

    can = lambda: backend.why_not(family, "tensor_product", None, torch.device("cuda"), torch.float32) is None  # noqa: E731
    torch._dynamo.reset()
    assert torch.compile(lambda x: x + can(), fullgraph=True, backend="eager")(torch.zeros(1)).item() == can()

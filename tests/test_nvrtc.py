"""The run-time compiler without a GPU, and what is said of the parts that are missing (R13, R14)."""

import os
import subprocess
import sys
import types

import pytest
import torch
from test_jit import NAMES, TEXT, entries

from eqtp.backends.jit import nvrtc, runtime

pytestmark = pytest.mark.usefixtures("jit_cache")
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


@pytest.mark.parametrize("arch", ["80", "90", "100", "120"])
def test_compiles_without_a_gpu(compiler, arch):
    made = runtime.compile(TEXT, NAMES, arch)
    assert made.cubin.startswith(b"\x7fELF")
    found = {u.kernel: u for u in runtime.usage(made.log)}
    assert set(made.lowered) == set(NAMES) and set(found) == set(made.lowered.values())
    for u in found.values():
        assert 0 < u.registers < 64 and u.spill_stores == u.spill_loads == u.stack == 0


def test_spills_are_seen(compiler):
    (u,) = runtime.usage(runtime.compile(SPILLS, ("greedy",), "90").log)
    assert u.kernel == "greedy" and u.registers <= 64 and min(u.stack, u.spill_stores, u.spill_loads) > 0


def test_arithmetic_is_exact(compiler):
    """Small numbers are not flushed to zero, division is rounded as IEEE says: the code is what these options give, not
    what their opposites do."""
    text = 'extern "C" __global__ void f(float* x) { x[0] = x[1] / x[2]; }'
    ours = runtime.compile(text, ("f",), "90").cubin
    assert runtime.compile(text, ("f",), "90", ("-ftz=false", "-prec-div=true")).cubin == ours
    for option in ("-ftz=true", "-prec-div=false"):
        assert runtime.compile(text, ("f",), "90", (option,)).cubin != ours


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
def test_compile_errors(compiler, jit_cache, text, names, arch, match):
    for _ in range(2):  # a failure is not kept
        with pytest.raises(RuntimeError, match=match):
            runtime.cached(text, names, arch)
    assert entries(jit_cache) == []


def test_source(compiler, tmp_path, monkeypatch):
    files = {
        "common/device.cuh": "#pragma once\nusing Index = long long;\n",
        "left.cuh": '#pragma once\n#include "common/device.cuh"\nstruct Left { Index i; };\n',
        "op.cuh": '#include "left.cuh"\n  # include "common/device.cuh"\n'
        "__global__ void op(Left* x) { x->i = broken; }\n",
    }
    (tmp_path / "common").mkdir()
    for name, text in files.items():
        (tmp_path / name).write_text(text)
    monkeypatch.setattr(nvrtc, "folder", lambda: tmp_path)
    text = runtime.source("op.cuh", "left.cuh")
    assert text.count("struct Left") == text.count("using Index") == 1
    assert "pragma once" not in text and "include" not in text and str(tmp_path) not in text
    with pytest.raises(RuntimeError, match=r'op.cuh\(3\): error: identifier "broken"'):
        runtime.compile(text, (), "90")
    with pytest.raises(RuntimeError, match=r'eqtp.cu\(1\): error: identifier "own"'):
        runtime.compile(text.replace("broken", "0") + "int own_text = own;", (), "90")
    runtime.compile(text.replace("broken", "0"), ("op",), "90")
    (tmp_path / "common/device.cuh").unlink()
    with pytest.raises(FileNotFoundError, match=r"device.cuh, wanted by left.cuh"):
        runtime.source("op.cuh")


def test_the_sources_of_the_package_compile(compiler):
    text = (
        runtime.source("common/device.cuh")
        + "template <class T> __global__ void copy(T* x, const T* y) { eqtp::write(x, eqtp::read(*y)); }"
    )
    made = runtime.compile(text, [f"copy<{t}>" for t in ("float", "double", "eqtp::f16", "eqtp::bf16")], "90")
    assert len(runtime.usage(made.log)) == 4


@pytest.mark.parametrize("inside", [True, False], ids=["wheel", "source tree"])
def test_folder_of_the_sources(tmp_path, monkeypatch, inside):
    package = tmp_path / "site" / "eqtp"
    package.mkdir(parents=True)
    monkeypatch.setattr(nvrtc, "__file__", str(package / "backends" / "jit" / "nvrtc.py"))
    with pytest.raises(FileNotFoundError, match=r"csrc/\*.cuh\) are missing"):
        nvrtc.folder()
    folder = (package if inside else package.parent) / "csrc"
    folder.mkdir()
    (folder / "common").mkdir()
    (folder / "common/device.cuh").touch()
    assert nvrtc.folder() == folder


@pytest.mark.parametrize("capability, arch", [((9, 0), "90"), ((8, 9), "89"), ((12, 9), "121"), ((10, 2), "100")])
def test_architecture(compiler, monkeypatch, capability, arch):
    if capability == (12, 9) and nvrtc.version()[0] < 13:
        pytest.skip("sm_121 came with CUDA 13")
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    assert runtime.architecture(torch.device("cuda", 0)) == arch


def test_architecture_that_nvrtc_does_not_know(compiler, monkeypatch):
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (99, 0))
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "Future GPU")
    with pytest.raises(RuntimeError, match=r"NVRTC \d+.\d+ knows no code for Future GPU \(sm_990\)"):
        runtime.architecture(torch.device("cuda", 0))


# ------------------------------------------------------------------------ what is missing
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
    assert runtime.why_not() is None


@pytest.mark.parametrize("version, package", [("13.0", "cupy-cuda13x"), ("12.8", "cupy-cuda12x")])
def test_no_cupy(machine, monkeypatch, version, package):
    monkeypatch.setattr(torch.version, "cuda", version)
    machine["cupy"] = None
    assert runtime.why_not() == f"CuPy, which launches the kernels, is missing: pip install {package}"


def test_broken_cupy(machine, monkeypatch):
    monkeypatch.setitem(sys.modules, "cupy.cuda.function", None)
    assert (
        "CuPy is installed but cannot be imported" in runtime.why_not()
        and "pip install cupy-cuda13x" in runtime.why_not()
    )


@pytest.mark.parametrize(
    "version, package", [("14.2", "'nvidia-cuda-nvrtc==14.*'"), ("12.8", "nvidia-cuda-nvrtc-cu12")]
)
def test_no_nvrtc(monkeypatch, version, package):
    monkeypatch.setattr(torch.version, "cuda", version)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(nvrtc, "_folders", lambda major: [])
    monkeypatch.setattr(nvrtc, "library", nvrtc.library.__wrapped__)  # not the one that is open
    monkeypatch.setattr(nvrtc.C, "CDLL", lambda name: open(f"/no/such/{name}"))
    said = runtime.why_not()
    assert said.startswith("NVRTC, the run-time compiler of CUDA, is missing (") and said.endswith(
        f": pip install {package}"
    )


def test_no_gpu(machine, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert "torch finds no NVIDIA GPU" in runtime.why_not()
    monkeypatch.setattr(torch.version, "cuda", None)
    assert "this torch is built without CUDA" in runtime.why_not()


def test_no_sources(machine, monkeypatch):
    monkeypatch.setattr(nvrtc, "__file__", "/no/such/place/eqtp/backends/jit/nvrtc.py")
    assert "kernel sources (csrc/*.cuh) are missing" in runtime.why_not()


def test_where_nvrtc_is_looked_for(tmp_path, monkeypatch):
    """The wheels' folder before CUDA_HOME before the system; NVRTC's builtins first, because NVRTC itself asks for them
    by bare name."""
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
import eqtp.backends.jit.runtime
libraries = {line.split()[-1] for line in open("/proc/self/maps") if "nvrtc" in line}
names = sorted(name for name in sys.modules if name.split(".")[0] in ("cupy", "cupy_backends", "nvidia"))
print(names, libraries, torch.cuda.is_initialized())
"""


@pytest.mark.skipif(not os.path.exists("/proc/self/maps"), reason="no /proc: cannot see which libraries are open")
def test_importing_costs_nothing():
    result = subprocess.run([sys.executable, "-c", PROBE], capture_output=True, text=True, check=True)
    assert result.stdout == "[] set() False\n"

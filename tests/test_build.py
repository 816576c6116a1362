"""The build: CUDA kernels where there is a working nvcc, CPU kernels alone where not; nothing of CUDA happens at
import."""

import ctypes
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from eqtp.backends.native import library

ROOT = Path(__file__).parents[1]
_native = pytest.importorskip("eqtp._native", reason=library._missing)


def configure(folder: Path, cuda: str, nvcc: str | None, *arguments: str) -> subprocess.CompletedProcess:
    """Runs CMake's first step only. nvcc: text of a shell script that stands for it, or None where there is none."""
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    if not shutil.which("cmake", path=path):
        pytest.skip("cmake is not installed")
    pybind11 = pytest.importorskip("pybind11", reason="pybind11 is not installed")
    script = folder / "nvcc"
    if nvcc is not None:
        script.write_text(f"#!/bin/sh\n{nvcc}\n")
        script.chmod(0o755)
    command = [
        "cmake",
        "-S",
        ROOT,
        "-B",
        folder / "build",
        f"-DEQTP_CUDA={cuda}",
        f"-DPython_EXECUTABLE={sys.executable}",
    ]
    command += [f"-Dpybind11_DIR={pybind11.get_cmake_dir()}", *arguments]
    environment = os.environ | {"PATH": path, "CUDACXX": str(script)}
    return subprocess.run(command, capture_output=True, text=True, env=environment)


@pytest.mark.parametrize(
    "nvcc, reason",
    [(None, "does not work"), ("echo unsupported compiler >&2; exit 1", "unsupported compiler")],
    ids=["absent", "broken"],
)
def test_without_a_working_nvcc(tmp_path, nvcc, reason):
    """R18: AUTO builds for the CPU and says why; ON stops."""
    result = configure(tmp_path, "AUTO", nvcc)
    assert result.returncode == 0, result.stderr
    assert "eqtp: CPU kernels only:" in result.stdout and reason in result.stdout
    result = configure(tmp_path, "ON", nvcc)
    error = " ".join(result.stderr.split())  # CMake breaks lines
    assert result.returncode != 0 and "eqtp: EQTP_CUDA=1, but" in error and reason in error


@pytest.mark.parametrize(
    "known, asked, expected",
    [
        ("75 80 86 90 100 110 120 121", "", "80-real;90-real;100-real;120"),
        ("50 75 80 86 89 90", "", "80-real;90"),
        ("75 80 86 90 100 110 120 121", "80;90", "80-real;90"),
        ("75 80 86 90 100 110 120 121", "90-real", "90-real"),
        ("75 80 86 90 100 110 120 121", "90a-real;100a", "90a-real;100a"),
    ],
)
def test_architectures(tmp_path, known, asked, expected):
    """R18: cubins of what nvcc knows, PTX of the newest."""
    lines = " ".join(f"compute_{arch}" for arch in known.split())
    nvcc = f'test "$1" = --list-gpu-arch && printf "%s\\n" {lines}; exit 0'  # good enough to be asked, not to compile
    assert (
        f"eqtp: CUDA kernels for {expected} by"
        in configure(tmp_path, "AUTO", nvcc, f"-DEQTP_CUDA_ARCHS={asked}").stdout
    )


def test_setup_names_its_choices():
    environment = os.environ | {"EQTP_CUDA": "yes"}
    command = [sys.executable, "setup.py", "-q", "build_ext", "--inplace"]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, env=environment)
    assert result.returncode != 0 and "EQTP_CUDA must be auto, 0 or 1, got 'yes'" in result.stderr


def test_what_was_built():
    count, reason = _native.cuda_device_count()
    assert (count > 0) == (reason is None)
    assert _native.has_cuda == bool(_native.cuda_architectures)
    if not _native.has_cuda:
        assert reason == "built without CUDA"
    else:
        assert all(arch[:2].isdigit() for arch in _native.cuda_architectures.split())


LOAD = """
import importlib.util, sys
spec = importlib.util.spec_from_file_location("eqtp._native", sys.argv[1])
importlib.util.module_from_spec(spec)
print([line for line in open("/proc/self/maps") if "libcuda" in line or "libnvidia" in line])
"""


@pytest.mark.skipif(not Path("/proc/self/maps").exists(), reason="no /proc")
def test_import_loads_no_driver():
    """R14: neither the driver nor a CUDA runtime of the system."""
    assert (
        subprocess.run(
            [sys.executable, "-c", LOAD, _native.__file__], capture_output=True, text=True, check=True
        ).stdout.strip()
        == "[]"
    )


def test_the_cuda_runtime_is_hidden():
    """torch brings another one."""
    library = ctypes.CDLL(_native.__file__)
    assert hasattr(library, "PyInit__native") and not hasattr(library, "cudaGetDeviceCount")

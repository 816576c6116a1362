"""Every file of csrc/ says what it includes: launchers through nvcc, headers alone through a C++ compiler."""

import re
import shutil
import subprocess
import sysconfig
from pathlib import Path

import pytest

TESTS = Path(__file__).parent
CSRC = TESTS.parent / "csrc"
LAUNCHERS = sorted(CSRC.glob("*/*.cu"))
# with the level that a header of the CPU kernels is compiled for, or none: for a binding
HEADERS = [(path, level) for path in sorted(CSRC.glob("*/*.h")) for level in (None, "base")]
DEVICE = sorted(CSRC.glob("*/*.cuh"))
FILES = sorted(path for path in CSRC.glob("*/*") if path.suffix in (".h", ".cpp", ".cu", ".cuh"))
# What another version of the standard library may no longer bring along
DECLARED_IN = {
    r"\bu?int(\d+|ptr)_t\b": "cstdint",
    r"\bstd::(string|to_string)\b": "string",
    r"\bstd::(runtime_error|invalid_argument)\b": "stdexcept",
    r"\bstd::vector\b": "vector",
    r"\bstd::(max|min|find|sort)\b": "algorithm",
    r"\bstd::(move|pair|integer_sequence)\b": "utility",
    r"\bstd::tuple\b": "tuple",
    r"\bstd::array\b": "array",
    r"\bstd::initializer_list\b": "initializer_list",
    r"\bstd::(shared|unique)_ptr\b": "memory",
    r"\bstd::iota\b": "numeric",
    r"\bstd::abs\b": "cmath",
    r"\bstd::bad_alloc\b": "new",
    r"\bstd::(memset|memcpy|strcmp)\b": "cstring",
    r"\bstd::(getenv|atoi|free|aligned_alloc)\b": "cstdlib",
}


def relative(value) -> str:
    return value.relative_to(CSRC).as_posix() if isinstance(value, Path) else str(value)


def includes() -> list[str]:
    """Folders of the headers of csrc/, Python and pybind11."""
    pybind11 = pytest.importorskip("pybind11", reason="pybind11 is not installed")
    return [f"-I{folder}" for folder in (CSRC, sysconfig.get_path("include"), pybind11.get_include())]


def included(path: Path) -> set[str]:
    """Headers of the system that a file includes, itself or through files of csrc/."""
    text = path.read_text()
    found = set(re.findall(r"#\s*include\s*<([^>]+)>", text))
    return found.union(*(included(CSRC / name) for name in re.findall(r'#\s*include\s*"([^"]+)"', text)))


@pytest.mark.parametrize("path", FILES, ids=relative)
def test_what_is_used_is_included(path):
    """The standard headers by name, whichever compiler is here: a newer one may need what this one does not."""
    code = re.sub(r"//[^\n]*", "", path.read_text())
    missing = {header for name, header in DECLARED_IN.items() if re.search(name, code)} - included(path)
    assert not missing


def check_alone(header: Path, *flags: str) -> None:
    """A text that includes nothing but this header is C++."""
    if not shutil.which("g++"):
        pytest.skip("g++ is not installed")
    command = ["g++", "-std=c++20", "-fsyntax-only", "-w", *includes(), *flags, "-x", "c++", "-"]
    text = f'#include "{relative(header)}"\n#include "{relative(header)}"\n'
    done = subprocess.run(command, input=text, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-4000:]


@pytest.mark.parametrize("path", LAUNCHERS, ids=relative)
def test_launchers_compile(path, tmp_path):
    """For one architecture, to PTX only: the assembler has no say in what a file lacks."""
    if not shutil.which("nvcc"):
        pytest.skip("nvcc is not installed")
    target = ["-gencode", "arch=compute_90,code=compute_90", "-O0", "-Xcicc", "-O0"]
    command = ["nvcc", "-std=c++20", *target, *includes(), "-c", path, "-o", tmp_path / "launcher.o"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-4000:]


@pytest.mark.parametrize("path, level", HEADERS, ids=relative)
def test_headers_stand_alone(path, level):
    """For a binding, and for a level. What launchers share needs the words of CUDA, which the emulation has."""
    words = ["-include", str(TESTS / "cuda_cpu.h"), "-DcudaError_t=int"] if path.name == "cuda.h" else []
    check_alone(path, *words, *([f"-DEQTP_SIMD={level}", "-DEQTP_SIMD_BYTES=16"] if level else []))


@pytest.mark.parametrize("path", DEVICE, ids=relative)
def test_device_code_stands_alone(path):
    check_alone(path, "-include", str(TESTS / "cuda_cpu.h"))

"""What CMake is told, by setup.py and by `make gpu`. Only the standard library: an isolated build has nothing else."""

import importlib.util
import os
import shutil
import sys
import sysconfig
from pathlib import Path


def missing(path: str | None = None) -> str | None:
    """What the build needs and pip cannot bring, as a sentence, or None. path: where compilers are looked for."""
    if not os.environ.get("CXX") and not any(shutil.which(name, path=path) for name in ("c++", "g++", "clang++")):
        return "no C++ compiler found; install one with C++17 (on Debian and Ubuntu: g++), or name yours in CXX"
    header = Path(sysconfig.get_path("include"), "Python.h")
    if not header.exists():
        return f"{header} is missing; install Python's development files (on Debian and Ubuntu: python3-dev)"
    return None


def pybind11() -> str:
    """Where CMake finds pybind11: its own package, or (on a machine without it) the headers inside torch."""
    try:
        import pybind11

        return f"-Dpybind11_DIR={pybind11.get_cmake_dir()}"
    except ImportError:
        spec = importlib.util.find_spec("torch")
        include = Path(spec.origin).parent / "include" if spec and spec.origin else None
        if include is None or not (include / "pybind11" / "pybind11.h").exists():
            raise RuntimeError("eqtp needs pybind11 to build: pip install pybind11") from None
        return f"-DEQTP_PYBIND11_INCLUDE={include}"


def arguments(out: Path, cuda: str, architectures: str, build_type: str = "Release") -> list[str]:
    """Arguments of the first call of CMake. out: folder of the module; cuda: AUTO, ON or OFF; architectures: compute
    capabilities, as in 80;90, or nothing for those that nvcc knows."""
    return [
        f"-DCMAKE_BUILD_TYPE={build_type}",
        f"-DPython_EXECUTABLE={sys.executable}",
        f"-DEQTP_EXT_SUFFIX={sysconfig.get_config_var('EXT_SUFFIX')}",
        f"-DCMAKE_LIBRARY_OUTPUT_DIRECTORY={out}",
        pybind11(),
        f"-DEQTP_CUDA={cuda}",
        f"-DEQTP_CUDA_ARCHS={architectures}",
    ]

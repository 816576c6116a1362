"""Builds eqtp._native with CMake. Needs a C++20 compiler, and nvcc for the CUDA kernels; torch is not needed to
build."""

import importlib.util
import os
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext
from setuptools.command.build_py import build_py

ROOT = Path(__file__).resolve().parent


def require_compiler() -> None:
    """Stops with one sentence if something is missing that pip cannot bring."""
    if not os.environ.get("CXX") and not any(map(shutil.which, ("c++", "g++", "clang++"))):
        sys.exit(
            "eqtp: no C++ compiler found; install one with C++20 (on Debian and Ubuntu: g++), or name yours in CXX"
        )
    header = Path(sysconfig.get_path("include"), "Python.h")
    if not header.exists():
        sys.exit(f"eqtp: {header} is missing; install Python's development files (on Debian and Ubuntu: python3-dev)")


def pybind11_argument() -> str:
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


def cuda_arguments() -> list[str]:
    """EQTP_CUDA: auto (if there is a working nvcc), 0 (no), 1 (it must be). EQTP_CUDA_ARCHS: compute capabilities, as
    in 80;90."""
    values = {"auto": "AUTO", "0": "OFF", "1": "ON"}
    value = os.environ.get("EQTP_CUDA") or "auto"
    if value not in values:
        sys.exit(f"eqtp: EQTP_CUDA must be auto, 0 or 1, got {value!r}")
    return [
        f"-DEQTP_CUDA={values[value]}",
        f"-DEQTP_CUDA_ARCHS={os.environ.get('EQTP_CUDA_ARCHS', '').replace(',', ';')}",
    ]


def jobs() -> str:
    """How many compilers run at a time: one per core, and no more than have 2 GiB of memory each."""
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") >> 31
    named = os.environ.get("CMAKE_BUILD_PARALLEL_LEVEL") or os.environ.get("MAX_JOBS")
    return named or str(max(1, min(os.cpu_count() or 1, memory, 16)))


class CMakeBuild(build_ext):
    def build_extension(self, ext):
        require_compiler()
        out = Path(self.get_ext_fullpath(ext.name)).resolve().parent
        # one folder for all kinds of install (setuptools gives an editable one a temporary folder), so that only what
        # changed is compiled
        suffix = sysconfig.get_config_var("EXT_SUFFIX")
        build = ROOT / "build" / f"cmake{suffix.removesuffix('.so')}"
        build.mkdir(parents=True, exist_ok=True)
        arguments = [
            f"-DCMAKE_BUILD_TYPE={os.environ.get('EQTP_BUILD_TYPE', 'Release')}",
            f"-DPython_EXECUTABLE={sys.executable}",
            f"-DEQTP_EXT_SUFFIX={suffix}",
            f"-DCMAKE_LIBRARY_OUTPUT_DIRECTORY={out}",
            pybind11_argument(),
            *cuda_arguments(),
        ]
        # cmake and ninja of this Python's environment first, which need not be active
        path = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", os.defpath)])
        if shutil.which("cmake", path=path) is None:
            sys.exit("eqtp: cmake is missing: pip install 'cmake>=3.26,<5' ninja")
        ninja, environment = shutil.which("ninja", path=path), os.environ | {"PATH": path}
        if ninja:
            arguments.append("-GNinja")
        cache = build / "CMakeCache.txt"  # an isolated build's ninja lives in a folder that is gone the next time
        if cache.exists() and f"CMAKE_MAKE_PROGRAM:FILEPATH={ninja}" not in cache.read_text():
            cache.unlink()
        subprocess.check_call(["cmake", "-S", str(ROOT), "-B", str(build), *arguments], env=environment)
        subprocess.check_call(["cmake", "--build", str(build), "-j", jobs()], env=environment)


class BuildWithSources(build_py):
    def run(self):
        """Puts what eqtp/backends/jit/runtime.py compiles at run time into the package; an editable install finds it in
        the source tree."""
        super().run()
        if not self.editable_mode:
            for source in ROOT.glob("csrc/*/*.cuh"):
                target = Path(self.build_lib, "eqtp", source.relative_to(ROOT))
                target.parent.mkdir(parents=True, exist_ok=True)
                shutil.copy(source, target)


setup(
    ext_modules=[Extension("eqtp._native", sources=[])],
    cmdclass={"build_ext": CMakeBuild, "build_py": BuildWithSources},
)

"""Builds eqtp._native with CMake. Needs a C++17 compiler; torch is not needed to build."""

import importlib.util
import os
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext

ROOT = Path(__file__).resolve().parent


def require_compiler() -> None:
    """Stops with one sentence if something is missing that pip cannot bring."""
    if not os.environ.get("CXX") and not any(map(shutil.which, ("c++", "g++", "clang++"))):
        sys.exit("eqtp: no C++ compiler found; install one with C++17 (on Debian and Ubuntu: g++), or name yours in CXX")
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


class CMakeBuild(build_ext):
    def build_extension(self, ext):
        require_compiler()
        out = Path(self.get_ext_fullpath(ext.name)).resolve().parent
        # one folder for all kinds of install (setuptools gives an editable one a temporary folder), so that only what changed is compiled
        suffix = sysconfig.get_config_var("EXT_SUFFIX")
        build = ROOT / "build" / f"cmake{suffix.removesuffix('.so')}"
        build.mkdir(parents=True, exist_ok=True)
        arguments = [
            f"-DCMAKE_BUILD_TYPE={os.environ.get('EQTP_BUILD_TYPE', 'Release')}",
            f"-DPython_EXECUTABLE={sys.executable}",
            f"-DEQTP_EXT_SUFFIX={suffix}",
            f"-DCMAKE_LIBRARY_OUTPUT_DIRECTORY={out}",
            pybind11_argument(),
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
        jobs = os.environ.get("CMAKE_BUILD_PARALLEL_LEVEL") or os.environ.get("MAX_JOBS") or str(min(os.cpu_count() or 1, 8))
        subprocess.check_call(["cmake", "-S", str(ROOT), "-B", str(build), *arguments], env=environment)
        subprocess.check_call(["cmake", "--build", str(build), "-j", jobs], env=environment)


setup(ext_modules=[Extension("eqtp._native", sources=[])], cmdclass={"build_ext": CMakeBuild})

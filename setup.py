"""Builds eqtp._native and libeqtp_torch.so with CMake. Needs a C++20 compiler, and nvcc for the CUDA kernels; torch is
not needed to build."""

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
OPS = "libeqtp_torch"  # the ops in C++
sys.path.insert(0, str(ROOT))  # an isolated build does not look next to this file

import cmake_arguments  # noqa: E402


def cuda() -> dict[str, str]:
    """EQTP_CUDA: auto (if there is a working nvcc), 0 (no), 1 (it must be). EQTP_CUDA_ARCHS: compute capabilities, as
    in 80;90."""
    values = {"auto": "AUTO", "0": "OFF", "1": "ON"}
    value = os.environ.get("EQTP_CUDA") or "auto"
    if value not in values:
        sys.exit(f"eqtp: EQTP_CUDA must be auto, 0 or 1, got {value!r}")
    return {"cuda": values[value], "architectures": os.environ.get("EQTP_CUDA_ARCHS", "").replace(",", ";")}


def jobs() -> str:
    """How many compilers run at a time: one per core, and no more than have 2 GiB of memory each."""
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") >> 31
    named = os.environ.get("CMAKE_BUILD_PARALLEL_LEVEL") or os.environ.get("MAX_JOBS")
    return named or str(max(1, min(os.cpu_count() or 1, memory, 16)))


class CMakeBuild(build_ext):
    def get_ext_filename(self, name):
        """libeqtp_torch.so is no module of Python: torch loads it, or a C++ program."""
        return f"eqtp/{OPS}.so" if name.endswith(OPS) else super().get_ext_filename(name)

    def build_extension(self, ext):
        if ext.name.endswith(OPS):
            return  # CMake builds both at once
        if missing := cmake_arguments.missing():
            sys.exit(f"eqtp: {missing}")
        out = Path(self.get_ext_fullpath(ext.name)).resolve().parent
        # one folder for all kinds of install (setuptools gives an editable one a temporary folder), so that only what
        # changed is compiled
        suffix = sysconfig.get_config_var("EXT_SUFFIX")
        build = ROOT / "build" / f"cmake{suffix.removesuffix('.so')}"
        build.mkdir(parents=True, exist_ok=True)
        arguments = cmake_arguments.arguments(out, **cuda(), build_type=os.environ.get("EQTP_BUILD_TYPE", "Release"))
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
    ext_modules=[Extension("eqtp._native", sources=[]), Extension(f"eqtp.{OPS}", sources=[])],
    cmdclass={"build_ext": CMakeBuild, "build_py": BuildWithSources},
)

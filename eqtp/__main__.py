"""`python -m eqtp`: versions, devices, and which kernel families run here, with the reason and the remedy where one
does not."""

from __future__ import annotations

import ctypes
import importlib.util
import os
import platform
import sys
from importlib import metadata
from pathlib import Path

import torch

import eqtp
from eqtp.backends import registry
from eqtp.backends.jit import nvrtc
from eqtp.backends.native import library, operators

SIMD = {1: "plain C++", 3: "AVX2 and FMA", 4: "AVX-512"}
# variable -> what it may say
VARIABLES = {
    "EQTP_BACKEND": f"family for backend='auto': auto, {', '.join(registry.FAMILIES)}",
    "EQTP_SIMD": f"highest SIMD level: {', '.join(f'{level} {name}' for level, name in SIMD.items())}",
    "EQTP_HUGEPAGES": "0: never ask the system for huge pages",
    "EQTP_CACHE_DIR": "folder of the kernels compiled at run time",
    "EQTP_LOCK_SECONDS": "how long to wait for another process that compiles the same kernels: 60",
    "EQTP_CPP_OPS": "0: all ops in Python, as with a torch before 2.10",
    "EQTP_QUIET": "1: no line on stderr while kernels are compiled",
}
# distribution -> what it is for
LIBRARIES = {"e3nn": "eqtp.accelerate on models of e3nn", "sevenn": "eqtp.accelerate on SevenNet, the demo"}


def version(distribution: str) -> str | None:
    """Installed version of a distribution, or None."""
    try:
        return metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return None


def processor() -> str:
    """Name of the processor."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(names, platform.processor() or platform.machine())


def cuda_of_driver() -> str:
    """The CUDA version up to which NVIDIA's driver goes, as 13.0, or "none". Initialises nothing."""
    number = ctypes.c_int()
    try:
        if ctypes.CDLL("libcuda.so.1").cuDriverGetVersion(ctypes.byref(number)) == 0:
            return f"{number.value // 1000}.{number.value % 1000 // 10}"
    except (OSError, AttributeError):
        pass
    return "none"


def versions() -> list[tuple[str, str]]:
    rows = [("eqtp", f"{eqtp.__version__} in {Path(eqtp.__file__).parent}")]
    rows += [
        ("python", platform.python_version()),
        ("torch", torch.__version__),
        ("numpy", version("numpy") or "unknown"),
    ]
    for name, purpose in LIBRARIES.items():
        rows.append((name, version(name) or f"not installed; wanted only for {purpose}: pip install {name}"))
    return rows


def compiled() -> str:
    """What eqtp._native was built for."""
    if library._native is None:
        return "not built: pip install . in eqtp's source tree, with a C++ compiler and Python's headers"
    if not library._native.has_cuda:
        return "for the CPU only; for GPUs too: install nvcc (the CUDA toolkit) and eqtp again with EQTP_CUDA=1"
    return f"for the CPU and for GPUs: sm_{library._native.cuda_architectures.replace(' ', ', sm_')}"


def registered() -> str:
    """Where the ops are registered."""
    reason = operators.why_not()
    return f"in Python: {reason}" if reason else f"on the CPU in C++: {operators.PATH.name}"


def run_time() -> list[tuple[str, str]]:
    """What compiles and launches kernels at run time, or how to get it."""
    try:
        compiler = ".".join(map(str, nvrtc.version()))
    except RuntimeError as error:
        compiler = str(error)
    cupy = [f"{name} {version(name)}" for name in ("cupy-cuda13x", "cupy-cuda12x", "cupy") if version(name)]
    if importlib.util.find_spec("cupy") is None:
        cupy = [f"not installed; launches the kernels of the family jit: {nvrtc.remedy('cupy')}"]
    triton = version("triton") or "not installed; wanted for the family triton: pip install triton"
    return [("NVRTC", compiler), ("CuPy", ", ".join(cupy) or "installed, version unknown"), ("Triton", triton)]


def devices() -> list[tuple[str, str]]:
    rows = [
        ("cpu", f"{processor()}, {os.cpu_count()} cores"),
        ("threads", f"{torch.get_num_threads()} (torch.set_num_threads)"),
    ]
    if library._native is not None:
        rows.append(("SIMD", SIMD[library._native.simd_level()]))
    return rows


def gpus() -> list[tuple[str, str]]:
    """GPUs that torch can use; without any, nothing of CUDA is initialised."""
    driver, wanted = cuda_of_driver(), torch.version.cuda
    rows = [
        (
            "driver",
            "none (libcuda.so.1 is not there): install NVIDIA's driver"
            if driver == "none"
            else f"for CUDA up to {driver}",
        )
    ]
    rows.append(
        (
            "torch",
            f"built for CUDA {wanted}" if wanted else "built without CUDA: https://pytorch.org/get-started/locally",
        )
    )
    count = torch.cuda.device_count() if wanted and driver != "none" else 0
    for n in range(count):
        p = torch.cuda.get_device_properties(n)
        rows.append((f"gpu {n}", f"{p.name}, sm_{p.major}{p.minor}, {p.total_memory / 2**30:.0f} GiB"))
    return rows if count else [*rows, ("gpu", "none that torch can use")]


def families(device: str = "cpu") -> list[tuple[str, str]]:
    """One row per family for float32 on a device, and the one that backend="auto" takes."""
    on, rows = torch.device(device), []
    for name in registry.FAMILIES:
        reason = registry.why_not(name, "tensor_product_conv", None, on, torch.float32)
        rows.append((name, "yes" if reason is None else f"no: {reason}"))
    try:
        taken = registry.resolve("auto", "tensor_product_conv", None, on, torch.float32)
        rows.append(
            (
                "auto",
                f"takes {taken}, where that can run the plan: "
                f"eqtp.explain(plan{'' if device == 'cpu' else f', {device!r}'})",
            )
        )
    except (RuntimeError, ValueError) as error:  # EQTP_BACKEND names one that cannot run, or none
        rows.append(("auto", f"raises an error: {error}"))
    return rows


def environment() -> list[tuple[str, str]]:
    return [(name, f"{os.environ.get(name, 'not set')}   ({meaning})") for name, meaning in VARIABLES.items()]


def main() -> int:
    sections = {
        "versions": versions,
        "devices": devices,
        "gpus": gpus,
        "kernels": lambda: [("native", compiled()), ("ops", registered()), *run_time()],
    }
    sections |= {
        "families on the cpu": families,
        "families on cuda": lambda: families("cuda"),
        "environment": environment,
    }
    for title, section in sections.items():
        try:
            if title.endswith("cuda") and not (torch.version.cuda and torch.cuda.is_available()):
                continue
            rows = section()
        except Exception as error:  # a broken installation of something is what this page is asked about
            rows = [("error", f"{type(error).__name__}: {error}")]
        print(title)
        for name, text in rows:
            print(f"  {name:<17} {text}")
    return 0


if __name__ == "__main__":
    sys.exit(main())

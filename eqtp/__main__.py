"""`python -m eqtp`: versions, devices, and which kernel families run here, with the reason and the remedy where one does not."""

from __future__ import annotations

import os
import platform
import sys
from importlib import metadata
from pathlib import Path

import torch

import eqtp
from eqtp import backend, native

SIMD = {1: "plain C++", 3: "AVX2 and FMA", 4: "AVX-512"}
# variable -> what it may say
VARIABLES = {
    "EQTP_BACKEND": f"family for backend='auto': auto, {', '.join(backend.FAMILIES)}",
    "EQTP_SIMD": f"highest SIMD level: {', '.join(f'{level} {name}' for level, name in SIMD.items())}",
    "EQTP_HUGEPAGES": "0: never ask the system for huge pages",
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


def versions() -> list[tuple[str, str]]:
    rows = [("eqtp", f"{eqtp.__version__} in {Path(eqtp.__file__).parent}")]
    rows += [("python", platform.python_version()), ("torch", torch.__version__), ("numpy", version("numpy") or "unknown")]
    for name, purpose in LIBRARIES.items():
        rows.append((name, version(name) or f"not installed; wanted only for {purpose}: pip install {name}"))
    return rows


def devices() -> list[tuple[str, str]]:
    rows = [("cpu", f"{processor()}, {os.cpu_count()} cores"), ("threads", f"{torch.get_num_threads()} (torch.set_num_threads)")]
    if native._native is not None:
        rows.append(("SIMD", SIMD[native._native.simd_level()]))
    gpus = [torch.cuda.get_device_name(n) for n in range(torch.cuda.device_count())]
    rows.append(("gpu", f"{', '.join(gpus) or 'none that torch can use'}; this version of eqtp has kernels for the CPU only"))
    return rows


def families() -> list[tuple[str, str]]:
    """One row per family for float32 on the CPU, and the one that backend="auto" takes."""
    cpu, rows = torch.device("cpu"), []
    for name in backend.FAMILIES:
        reason = backend.why_not(name, "tensor_product_conv", None, cpu, torch.float32)
        rows.append((name, "yes" if reason is None else f"no: {reason}"))
    try:
        taken = backend.resolve("auto", "tensor_product_conv", None, cpu, torch.float32)
        rows.append(("auto", f"takes {taken}, where that can run the plan: eqtp.explain(plan)"))
    except (RuntimeError, ValueError) as error:  # EQTP_BACKEND names one that cannot run, or none
        rows.append(("auto", f"raises an error: {error}"))
    return rows


def environment() -> list[tuple[str, str]]:
    return [(name, f"{os.environ.get(name, 'not set')}   ({meaning})") for name, meaning in VARIABLES.items()]


def main() -> int:
    for title, rows in (("versions", versions()), ("devices", devices()), ("families", families()), ("environment", environment())):
        print(title)
        for name, text in rows:
            print(f"  {name:<15} {text}")
    return 0


if __name__ == "__main__":
    sys.exit(main())

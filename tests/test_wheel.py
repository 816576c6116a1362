"""What is installed is what is in the tree (R12, R23): a wheel and a source distribution are built, and the wheel runs
by itself."""

import os
import re
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
BUILD = """import os, sys
from setuptools import build_meta
os.chdir(sys.argv[2])
print(getattr(build_meta, "build_" + sys.argv[1])(sys.argv[3]))"""
SMOKE = """
import sys, torch, eqtp
for module in (eqtp, eqtp._native):
    assert module.__file__.startswith(sys.argv[1]), module.__file__
import eqtp.kernels
plan = eqtp.TensorProductPlan("8x0e + 5x1o", "0e + 1o", "8x0e + 5x0e + 8x1o",
                              [(0, 0, 0, "uvu", True), (1, 1, 1, "uvu", True), (0, 1, 2, "uvu", False)])
graph = eqtp.Graph(torch.tensor([0, 1, 2, 0]), torch.tensor([2, 1, 0, 1]), 3, 3)
x = torch.randn(3, plan.dim_in1, dtype=torch.float64, requires_grad=True)
y = eqtp.spherical_harmonics([0, 1], torch.randn(4, 3, dtype=torch.float64), True)
w = torch.randn(4, plan.weight_numel, dtype=torch.float64)
for f in (lambda b: eqtp.tensor_product_conv(x, y, w, plan, graph, b), lambda b: eqtp.segment_sum(y, graph, b)):
    a, b = f("native"), f("reference")
    assert (a - b).abs().max() < 1e-12 * b.abs().max()
    if a.requires_grad:
        (ga,), (gb,) = (torch.autograd.grad(t.square().sum(), x) for t in (a, b))
        assert (ga - gb).abs().max() < 1e-12 * gb.abs().max()
print("the wheel runs")
"""


def cuda() -> str:
    """EQTP_CUDA of the set-up, whose objects are used again. Where there was none, the CPU kernels alone: this is not
    about what nvcc makes."""
    suffix = sysconfig.get_config_var("EXT_SUFFIX").removesuffix(".so")
    cache = ROOT / "build" / f"cmake{suffix}" / "CMakeCache.txt"
    value = re.search(r"^EQTP_CUDA:STRING=(\w+)$", cache.read_text(), re.M) if cache.exists() else None
    return {"AUTO": "auto", "ON": "1", "OFF": "0"}[value[1]] if value else "0"


def build(kind: str, folder: Path) -> Path:
    """Builds a wheel or an sdist without isolation, from the objects that set-up has compiled."""
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    if not shutil.which("cmake", path=path):
        pytest.skip("cmake is not installed")
    pytest.importorskip("pybind11", reason="pybind11 is not installed")
    command = [sys.executable, "-c", BUILD, kind, str(ROOT), str(folder)]
    result = subprocess.run(
        command, capture_output=True, text=True, env=os.environ | {"EQTP_CUDA": cuda(), "PATH": path}
    )
    assert result.returncode == 0, result.stdout + result.stderr
    return folder / result.stdout.split()[-1]


def sources(*patterns: str) -> set[str]:
    return {path.relative_to(ROOT).as_posix() for pattern in patterns for path in ROOT.glob(pattern)}


@pytest.mark.timeout(900)
def test_wheel_is_complete_and_runs(tmp_path):
    wheel = build("wheel", tmp_path)
    with zipfile.ZipFile(wheel) as archive:
        names = {name for name in archive.namelist() if ".dist-info/" not in name}
        licence = [name for name in archive.namelist() if name.endswith("/LICENSE")]
        archive.extractall(tmp_path / "site")
    native = {name for name in names if name.endswith(".so")}
    assert len(native) == 2 and {name.split(".")[0] for name in native} == {"eqtp/_native", "eqtp/libeqtp_torch"}
    kernels = {f"eqtp/{name}" for name in sources("kernels/*.py")}
    device = {f"eqtp/{name}" for name in sources("csrc/*/*.cuh")}
    assert names - native == sources("eqtp/**/*.py", "eqtp/**/*.json") | kernels | device
    assert len(licence) == 1
    command = [sys.executable, "-c", SMOKE, str(tmp_path / "site")]
    environment = os.environ | {"PYTHONPATH": str(tmp_path / "site")}
    result = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, env=environment)
    assert result.returncode == 0 and "the wheel runs" in result.stdout, result.stderr


def test_source_distribution_is_complete(tmp_path):
    with tarfile.open(build("sdist", tmp_path)) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    wanted = sources(
        "eqtp/**/*.py",
        "csrc/*/*.h",
        "csrc/*/*.cpp",
        "csrc/*/*.cu",
        "csrc/*/*.cuh",
        "kernels/*.py",
        "tests/*.py",
        "tests/*.h",
        "tests/cuda/*",
    )
    wanted |= {"setup.py", "pyproject.toml", "CMakeLists.txt", "LICENSE", "README.md", "CHANGELOG.md", "CITATION.cff"}
    assert wanted <= names

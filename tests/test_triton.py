"""The family "triton": its kernels in the interpreter (tests/triton_interpreter.py) and, marked gpu, on a GPU."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import eqtp
from eqtp import backend, problems, testing
from eqtp.ops import spherical_harmonics, tensor_product_conv

INTERPRETED = Path(__file__).with_name("triton_interpreter.py")
PARTS = {"products": "not workloads and not harmonics and not segments", "workloads": "workloads", "harmonics": "harmonics", "segments": "segments"}


@pytest.mark.parametrize("part", PARTS)
def test_in_the_interpreter(part):
    """In a process of its own: whether Triton interprets or compiles is settled when it is imported, here perhaps by torch.compile."""
    pytest.importorskip("triton")
    command = [sys.executable, "-m", "pytest", str(INTERPRETED), "-q", "-k", PARTS[part], "-p", "no:cacheprovider", "--durations=5"]
    done = subprocess.run(command, env=os.environ | {"TRITON_INTERPRET": "1"}, capture_output=True, text=True, timeout=280)
    print(done.stdout)
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-2000:]
    assert " passed" in done.stdout and "skipped" not in done.stdout


def test_reasons(monkeypatch):
    """Why it cannot run; `auto` does not take it on the CPU."""
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    reason = backend.why_not("triton", "segment_sum", None, torch.device("cpu"), torch.float32)
    assert "Triton runs on cuda and xpu, the tensors are on cpu" in reason or "not installed" in reason
    assert backend.resolve("auto", "segment_sum", None, torch.device("cpu"), torch.float32) != "triton"
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert "pip install triton" in backend.why_not("triton", "segment_sum", None, torch.device("cuda"), torch.float32)


def test_import_is_lazy():
    """Neither the package nor the question whether it can run imports Triton."""
    script = "import sys, torch, eqtp.kernels; eqtp.kernels.why_not('', None, torch.device('cuda'), torch.float32); print('triton' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True).stdout == "False\n"


@pytest.mark.gpu
@pytest.mark.parametrize("name", ["mace-medium", "mace-large", "nequip-l", "sevennet-0", "sevennet-l3i5", "nequip-lips"])
def test_conv_on_a_gpu(name):
    plan = problems.plan(name)
    case, graph = testing.conv_case(plan)
    there = eqtp.Graph(graph.src.cuda(), graph.dst.cuda(), graph.num_src, graph.num_dst)
    op = lambda x, y, w: eqtp.tensor_product_conv(x.cuda(), y.cuda(), w.cuda(), plan, there, "triton").cpu()  # noqa: E731
    testing.check_op(op, lambda x, y, w: tensor_product_conv.reference(x, y, w, plan, graph), case)


@pytest.mark.gpu
@pytest.mark.parametrize("lmax", [1, 3, 6])
def test_harmonics_on_a_gpu(lmax):
    degrees = list(range(lmax + 1))
    xyz, c = testing.random(1000, 3), testing.random(1000, 3, seed=1)
    case = testing.Case({"xyz": xyz}, testing.random(1000, (lmax + 1) ** 2, seed=2), {"xyz": c}, {})
    op = lambda xyz: eqtp.spherical_harmonics(degrees, xyz.cuda(), True, backend="triton").cpu()  # noqa: E731
    testing.check_op(op, lambda xyz: spherical_harmonics.reference(degrees, xyz, True, "integral"), case)

"""The family "triton": its kernels in the interpreter (tests/triton_interpreter*.py) and, marked gpu, on a GPU."""

import os
import subprocess
import sys
from pathlib import Path

import calls
import pytest
import torch
from programs import couple, evaluate

import eqtp
from eqtp import testing
from eqtp.backends import registry
from eqtp.ops import matrix_tensor_product, spherical_harmonics, tensor_product_conv
from eqtp.plans import couplings, signals
from eqtp.testing import problems

INTERPRETED = Path(__file__).with_name("triton_interpreter.py")
SIGNALS = INTERPRETED.with_name("triton_interpreter_signals.py")
LONG_SUMS = INTERPRETED.with_name("triton_interpreter_long_sums.py")
PARTS = {
    "products": (INTERPRETED, "not workloads and not harmonics and not segments"),
    "workloads, harmonics, segments": (INTERPRETED, "workloads or harmonics or segments"),
    "signals": (SIGNALS, ""),
    "long sums": (LONG_SUMS, ""),
}


@pytest.mark.parametrize("part", PARTS)
def test_in_the_interpreter(part, request):
    """In a process of its own: whether Triton interprets or compiles is settled when it is imported, here perhaps by
    torch.compile."""
    pytest.importorskip("triton")
    file, names = PARTS[part]
    marks = request.config.getoption("-m")  # long ones where this run has long ones
    command = [sys.executable, "-m", "pytest", str(file), "-q", "-k", names, "-m", marks, "-p", "no:cacheprovider"]
    done = subprocess.run(
        command, env=os.environ | {"TRITON_INTERPRET": "1"}, capture_output=True, text=True, timeout=280
    )
    print(done.stdout)
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-2000:]
    assert " passed" in done.stdout and "skipped" not in done.stdout


def test_reasons(monkeypatch):
    """Why it cannot run; `auto` does not take it on the CPU."""
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    reason = registry.why_not("triton", "segment_sum", None, torch.device("cpu"), torch.float32)
    assert "Triton runs on cuda and xpu, the tensors are on cpu" in reason or "not installed" in reason
    assert registry.resolve("auto", "segment_sum", None, torch.device("cpu"), torch.float32) != "triton"
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert "pip install triton" in registry.why_not("triton", "segment_sum", None, torch.device("cuda"), torch.float32)


def test_import_is_lazy():
    """Neither the package nor the question whether it can run imports Triton."""
    script = "import sys, torch, eqtp; eqtp.explain(device='cuda'); print('triton' in sys.modules)"
    assert (
        subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True).stdout == "False\n"
    )


@pytest.mark.gpu
@pytest.mark.parametrize(
    "name", ["mace-medium", "mace-large", "nequip-l", "sevennet-0", "sevennet-l3i5", "nequip-lips"]
)
def test_conv_on_a_gpu(name):
    plan = problems.plan(name)
    case, graph = testing.conv_case(plan)
    there = eqtp.Graph(graph.src.cuda(), graph.dst.cuda(), graph.num_src, graph.num_dst)

    def op(x, y, w):
        return eqtp.tensor_product_conv(x.cuda(), y.cuda(), w.cuda(), plan, there, "triton").cpu()

    testing.check_op(op, lambda x, y, w: tensor_product_conv.reference(x, y, w, plan, graph), case)


@pytest.mark.gpu
@pytest.mark.parametrize("lmax", [1, 3, 6])
def test_harmonics_on_a_gpu(lmax):
    degrees = list(range(lmax + 1))
    xyz, c = testing.random(1000, 3), testing.random(1000, 3, seed=1)
    case = testing.Case({"xyz": xyz}, testing.random(1000, (lmax + 1) ** 2, seed=2), {"xyz": c}, {})

    def op(xyz):
        return eqtp.spherical_harmonics(degrees, xyz.cuda(), True, backend="triton").cpu()

    testing.check_op(op, lambda xyz: spherical_harmonics.reference(degrees, xyz, True, "integral"), case)


PASSES = {"fwd": 1, "bwd": 2, "bwdbwd": 3}  # and how many outputs they have


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
@pytest.mark.parametrize("pass_", PASSES)
@pytest.mark.parametrize("kind,degrees", [("product", (4, 4, 8)), ("odd", (3, 2, 4)), ("cross", (2, 2, 2))], ids=str)
def test_signals_on_a_gpu(kind, degrees, pass_, dtype):
    """By the grid and, as text or as data, by the table."""
    arguments = kind, *degrees, pass_, (True,) * PASSES[pass_]
    program = signals.product(*arguments)
    for engine, expected_of, data in (
        ("signals", evaluate, program),
        ("couplings", couple, couplings.gaunt(*arguments)),
    ):
        inputs = [testing.random(33, 5, (l + 1) ** 2, seed=n).cuda() for n, l in enumerate(program.lmax_in)]
        outputs = [torch.full((33, 5, (l + 1) ** 2), torch.nan, dtype=dtype, device="cuda") for l in program.lmax_out]
        calls.run("triton", engine, data, [t.to(dtype) for t in inputs], outputs)
        for a, b in zip(outputs, expected_of(data, [t.cpu() for t in inputs]), strict=True):
            testing.assert_close(a.cpu(), b)


@pytest.mark.gpu
@pytest.mark.parametrize("split", [False, True])
@pytest.mark.parametrize("degrees", [(2, 1, 2), (3, 2, 4), (6, 4, 5), (4, 4, 8), (1, 2, 16)], ids=str)
def test_matrices_on_a_gpu(degrees, split):
    """As text and by loops, of one block and of several; more samples than run at once."""
    l1, l2, lmax_out = degrees

    def operand(b, l, seed):
        return testing.random(b, 401, (l + 1) ** 2, seed=seed)

    inputs, tangents = ({"x1": operand(200, l1, seed), "x2": operand(1, l2, seed + 1)} for seed in (0, 2))
    case = testing.Case(inputs, operand(200, lmax_out, 4).repeat(1, 1, 1 + split), tangents, {})

    def product(*x, backend):
        return matrix_tensor_product.matrix_tensor_product(*x, lmax_out, split=split, backend=backend)

    def both(out):
        return torch.cat(out, -1) if split else out

    def op(x1, x2):
        return both(product(x1.cuda(), x2.cuda(), backend="triton")).cpu()

    testing.check_op(op, lambda *x: both(product(*x, backend="reference")), case)

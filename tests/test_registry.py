"""The registry of kernels: an engine and an op come from files of their own, and everything that lists kernels lists
them."""

import sys
from pathlib import Path

import pytest
import torch

sys.path.append(str(Path(__file__).parents[1]))  # bench is not part of the installed package

import bench
import eqtp
from bench import gpu_jobs, sanitize
from bench import registry as bench_registry
from eqtp.backends import native, registry

ROOT = Path(__file__).parents[1]

KERNEL = """
from eqtp.backends import registry
from eqtp.plans.calls import Pass

def run(factor, pass_, inputs, outputs):
    x1, x2, *g = inputs
    products = [x1 * x2] if pass_ == Pass.FWD else [g[0] * x2, g[0] * x1]
    for out, product in zip(outputs, products):
        if out is not None:
            out.copy_(factor * product)

def why_not(descriptor, device, dtype):
    return None if device.type == "cpu" else "the toy runs on the CPU"

registry.register(registry.Kernel("toys", "native", ("cpu",), why_not, run, sources=("csrc/toys/toys.cpp",)))
"""
OP = """
import torch
from eqtp.backends import registry
from eqtp.ops.autograd import passes, register_multilinear

registry.register_op("toy", engine="toys")

def _run(pass_, operands, outputs, factor, family):
    registry.kernel(family, "toys").run(factor, pass_, operands, outputs)

def _fake(x1, x2, factor, family):
    return x1.new_empty(x1.shape)

_op = register_multilinear("toy", ("x1", "x2"), "float factor, str family", *passes(2, _run, _fake), _fake)

def toy(x1, x2, factor, backend="auto"):
    family = registry.resolve(backend, "toy", None, x1.device, x1.dtype)
    return factor * x1 * x2 if family == "reference" else _op(x1, x2, factor, family)
"""
BENCH = """
import torch
from bench.gpu_jobs import Job
from bench.harness import Case, multilinear_bytes, random, require
from toy import toy

PROBLEMS, PASSES, CHECK_SIZE, SMALL = ("threefold",), ("fwd", "bwd"), {"edges": 3}, ("threefold",)
GPU_JOBS = [Job(1, "toy", "toy", PROBLEMS, ())]

def case(problem, dtype, *, edges, device="cpu", **_):
    x = {f"x{n}": random(edges, 2, dtype=dtype, seed=n, device=device) for n in (1, 2)}
    g = random(edges, 2, dtype=dtype, seed=3, device=device, grad=False)

    def ours(backend):
        require(backend, "toy", None, dtype, torch.device(device))
        return lambda x1, x2: toy(x1, x2, 3.0, backend)

    return Case(problem, {"edges": edges}, x, g, ours, None, multilinear_bytes(x, g), {})
"""


@pytest.fixture
def toy(tmp_path, monkeypatch):
    """An engine, an op and a benchmark, in files that nobody else knows of."""
    for folder, name, text in (("native", "toys", KERNEL), ("ops", "toy", OP), ("bench", "bench_toy", BENCH)):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / f"{name}.py").write_text(text)
    for known in (registry._kernels, registry._ops):
        for key in known:  # put back after the test
            monkeypatch.setitem(known, key, known[key])
    monkeypatch.setattr(native, "__path__", [*native.__path__, str(tmp_path / "native")])
    monkeypatch.setattr(bench, "__path__", [*bench.__path__, str(tmp_path / "bench")])
    monkeypatch.syspath_prepend(str(tmp_path / "ops"))
    registry.load()
    import toy as module

    yield module.toy
    del registry._kernels["native", "toys"], registry._ops["toy"]
    for name in ("toy", "eqtp.backends.native.toys", "bench.bench_toy"):
        sys.modules.pop(name, None)


def test_an_engine_comes_from_its_own_files(toy, capsys):
    """Nothing that is shared knows it beforehand; explain, the sanitizers, the benchmarks and the jobs of a GPU all do
    afterwards."""
    shared = [path for folder in ("eqtp", "bench", "kernels") for path in (ROOT / folder).rglob("*.py")]
    assert not [path for path in shared if "toys" in path.read_text()]
    assert ("native", "toys") in {(k.family, k.engine) for k in registry.kernels()}
    said = eqtp.explain(op="toy").splitlines()
    assert said[0] == "jit        no: there are no jit kernels for toy"
    assert said[1] == "native     yes" and said[-1] == "auto       native"
    assert "no: the toy runs on the CPU" in eqtp.explain(op="toy", device="cuda")
    assert "toy" in bench_registry.with_kernels() and "toy" in {job.op for job in gpu_jobs.jobs(False)}
    x1, x2 = (torch.tensor([[float(n), 2.0]], requires_grad=True) for n in (1, 5))
    out = toy(x1, x2, 3.0)
    (gx,) = torch.autograd.grad(out.sum(), x1)
    assert out.tolist() == [[15.0, 12.0]] and gx.tolist() == [[15.0, 6.0]]
    assert sanitize.compare("toy", "threefold", "native", torch.float32, "cpu") is None


def test_every_kernel_has_its_sources():
    """What a kernel says that it is compiled from is there, under the engine's name."""
    for kernel in registry.kernels():
        for source in kernel.sources:
            assert (ROOT / source).is_file(), source
            assert kernel.engine in Path(source).parts or Path(source).stem == kernel.engine


def test_every_op_names_an_engine_that_has_kernels():
    engines = {kernel.engine for kernel in registry.kernels()}
    assert {engine for engine in registry.ops().values() if engine} == engines
    assert set(registry.ops()) == set(bench_registry.benchmarks()) | {"so2_convolution"}  # timed with gaunt_convolution


def test_every_benchmark_says_what_is_watched_and_timed():
    for op, module in bench_registry.benchmarks().items():
        assert module.GPU_JOBS and all(job.op == op for job in module.GPU_JOBS)
        assert bool(module.SMALL) == (registry.ops()[op] is not None)


def test_an_unknown_op_is_named():
    with pytest.raises(ValueError, match=r"op must be one of cg_tensor_product, .*, got 'tensor_produkt'"):
        eqtp.explain(op="tensor_produkt")


def test_kernels_that_cannot_be_imported_are_a_reason(monkeypatch):
    monkeypatch.setitem(registry._failed, ("jit", "segments"), "no module named cuda")
    assert "jit        no: its kernels cannot be imported: no module named cuda" in eqtp.explain(op="segment_sum")

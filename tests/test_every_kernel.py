"""Every op with kernels, as the registry and the benchmarks know them, on its small problems: compiled for a GPU, under
the race checker, in Triton's interpreter. A new engine is here without a line."""

import dataclasses
import os
import subprocess
import sys
from pathlib import Path

import emulated
import emulation
import pytest
import torch

ROOT = Path(__file__).parents[1]
sys.path.append(str(ROOT))  # bench is not part of the installed package

from bench import harness, sanitize  # noqa: E402
from bench.registry import with_kernels  # noqa: E402
from eqtp.backends import registry  # noqa: E402
from eqtp.backends.jit import runtime  # noqa: E402
from eqtp.backends.jit.toolchain import Toolchain, source  # noqa: E402
from eqtp.plans.calls import Operands  # noqa: E402

OPS = [op for op in with_kernels() if registry.kernel("jit", registry.engine_of(op))]


@pytest.fixture
def compiling(compiler, monkeypatch):
    """A family whose kernels are compiled for sm_90 by NVRTC and not run; the kernels that it compiled."""
    compiled = {}

    def build(file, text, names, device):
        if (text, names) not in compiled:
            compiled[text, names] = runtime.usage(runtime.compile(source(file) + text, names, "90").log)
        return dict.fromkeys(names)

    toolchain = Toolchain(build, lambda *_: None, lambda device: None, "compiled", ("cpu",))
    for module in emulated.ENGINES:
        kernel = module.kernel(toolchain)
        monkeypatch.setitem(registry._kernels, (kernel.family, kernel.engine), kernel)
    return compiled


@pytest.mark.parametrize("op", OPS)
def test_it_compiles(compiling, op):
    """Every pass of its small problems, for sm_90. Only the second order backward of the small plan, whose units are
    larger than those of models, does not find room for all it has in registers."""
    for problem in with_kernels()[op].SMALL:
        case = with_kernels()[op].case(problem, torch.float32, **with_kernels()[op].CHECK_SIZE)
        for pass_ in with_kernels()[op].PASSES:
            harness.run_pass(case.ours("compiled"), tuple(case.inputs.values()), case.cotangent, pass_)
    assert compiling and all(u.registers > 0 for usage in compiling.values() for u in usage)
    spilled = {u.kernel for usage in compiling.values() for u in usage if u.spill_stores}
    assert all("conv_bwd_kernel" in name and "ELb1E" in name for name in spilled)


def apart(run):
    """The kernels on outputs that have memory of their own: under a sanitizer every tensor is a copy, and slices of one
    tensor would overwrite each other."""

    def wrapped(descriptor, pass_, inputs, outputs):
        if isinstance(inputs, Operands):  # tensors, not slices of one
            return run(descriptor, pass_, inputs, outputs)
        own = [None if t is None else torch.full(t.shape, torch.nan, dtype=t.dtype) for t in outputs]
        past_autograd = [None if t is None else t.data for t in inputs]  # whose memory is written again
        run(descriptor, pass_, past_autograd, own)
        for t, made in zip(outputs, own, strict=True):
            if t is not None:
                t.data.copy_(made)  # past autograd, as a kernel writes

    return wrapped


@pytest.mark.long
@pytest.mark.parametrize("kind", ["thread", "address"])
@pytest.mark.parametrize("op", OPS)
def test_it_is_clean(monkeypatch, op, kind):
    """Under the sanitizers, on the CPU: no race, no access out of bounds, and the numbers of the reference."""
    if emulation.why_not(kind):
        pytest.skip(emulation.why_not(kind))
    for engine, kernel in emulated.family(kind).kernels.items():
        monkeypatch.setitem(registry._kernels, ("emulated", engine), dataclasses.replace(kernel, run=apart(kernel.run)))
    for problem in with_kernels()[op].SMALL:
        assert sanitize.compare(op, problem, "emulated", torch.float32, "cpu") is None


@pytest.mark.long
@pytest.mark.timeout(1200)
def test_triton_interprets_it():
    pytest.importorskip("triton", reason="Triton is not installed")
    arguments = ["--device", "cpu", "--backend", "triton", "--dtype", "float32"]
    # triton_interpreter mends Triton's interpreter for this NumPy
    script = f"import sys, triton_interpreter; from bench import sanitize; sys.exit(sanitize.main({arguments}))"
    environment = os.environ | {"TRITON_INTERPRET": "1", "PYTHONPATH": f"{ROOT / 'tests'}{os.pathsep}{ROOT}"}
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-2000:]
    assert "not run" not in done.stdout and all(op in done.stdout for op in with_kernels())

"""The ops in C++ (csrc/*/ops.cpp): the same ops as in Python, with the same results to the last bit."""

import os
import subprocess
import sys
from pathlib import Path

import calls
import pytest
import torch

import eqtp
from eqtp import testing
from eqtp.backends.native import operators
from eqtp.ops import autograd
from eqtp.plans.channelwise import record
from eqtp.plans.plan import TensorProductPlan
from eqtp.plans.record import key_of

PLAN = TensorProductPlan(
    "5x0e+3x1o", "0e+1o", "5x1o+3x0e+3x1e", [(0, 1, 0, "uvu", True), (1, 1, 1, "uvu", True), (1, 1, 2, "uvu", False)]
)
needs_cpp = pytest.mark.skipif(not operators.loaded(), reason=f"the ops are in Python: {operators.why_not()}")
SCHEMAS = """
import torch, eqtp
from eqtp.ops import autograd
for name in {names}:
    print(getattr(torch.ops.eqtp, name).default._schema)
"""


@needs_cpp
def test_schemas_are_those_of_python():
    """And with EQTP_CPP_OPS=0 nothing of the library is loaded."""
    names = sorted(autograd.IN_CPP)
    assert {"tensor_product_conv_bwdbwd", "spherical_harmonics", "segment_gather", "graph_csr"} < set(names)
    command = [
        sys.executable,
        "-c",
        SCHEMAS.format(names=names) + f"print({operators.PATH.name!r} in open('/proc/self/maps').read())",
    ]
    run = subprocess.run(command, env=os.environ | {"EQTP_CPP_OPS": "0"}, capture_output=True, text=True, check=True)
    *found, loaded = run.stdout.splitlines()
    assert found == [str(getattr(torch.ops.eqtp, name).default._schema) for name in names] and loaded == "False"


def every_op(dtype, padded):
    """Values and gradients to second order of all ops that have kernels in C++, with rows that are not contiguous."""
    generator = torch.Generator().manual_seed(3)
    src, dst = (torch.randint(n, (40,), generator=generator) for n in (6, 5))
    graph = eqtp.Graph(src[::2], dst[::2].to(torch.int64), 6, 5, num_edges=17 if padded else None)

    def rows(n, columns):
        return torch.randn(columns, n, generator=generator, dtype=dtype).T.requires_grad_()

    x, y, w = rows(6, PLAN.dim_in1), rows(20, PLAN.dim_in2), rows(20, PLAN.weight_numel)
    z, xyz = rows(20, PLAN.dim_in1), rows(20, 3)
    outputs = {
        "conv": (eqtp.tensor_product_conv(x, y, w, PLAN, graph), (x, y, w)),
        "rows": (eqtp.tensor_product(z, y, w, PLAN), (z, y, w)),
        "shared": (eqtp.tensor_product(z, y, w[0], PLAN), (z, y, w)),
        "harmonics": (eqtp.spherical_harmonics([2, 0, 1], xyz, True), (xyz,)),
        "sum": (eqtp.segment_sum(y, graph), (y,)),
        "mean": (eqtp.segment_mean(y, graph), (y,)),
        "max": (eqtp.segment_max(y, graph), (y,)),
        "softmax": (eqtp.segment_softmax(y, graph), (y,)),
    }
    found = {"columns": (graph.src, graph.dst, graph.ptr, graph.order)}
    for name, (out, inputs) in outputs.items():
        first = torch.autograd.grad(out.sin().sum(), inputs, create_graph=True)
        loss = sum(t.cos().sum() for t in first)
        found[name] = [out, *first, *torch.autograd.grad(loss, inputs, materialize_grads=True)]
    return found


@needs_cpp
@pytest.mark.parametrize("padded", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_results_are_those_of_python(monkeypatch, dtype, padded):
    with testing.poisoned():
        ours = every_op(dtype, padded)
        monkeypatch.setattr(calls, "python", calls.python_ops())
        theirs = every_op(dtype, padded)
    assert ours.keys() == theirs.keys()
    for name, tensors in ours.items():
        for n, (a, b) in enumerate(zip(tensors, theirs[name], strict=True)):
            assert torch.equal(a, b), f"{name} {n}"


@needs_cpp
def test_other_families_run_in_python(monkeypatch):
    """What C++ does not know it asks of the op in Python."""
    asked = []

    def run(descriptor, pass_, inputs, outputs):
        asked.append((descriptor, pass_))
        outputs[0].zero_()

    kernel = calls.registry.kernel("native", "segments")
    monkeypatch.setitem(calls.registry._kernels, ("mine", "segments"), calls.dataclasses.replace(kernel, run=run))
    segments = torch.tensor([0]), torch.tensor([0, 1]), torch.tensor([0])
    out = torch.ops.eqtp.segment_sum(torch.ones(1, 2), *segments, False, "mine")
    assert out.tolist() == [[0, 0]] and asked == [("segment_sum", "fwd")]


@needs_cpp
def test_bad_constants():
    x, y, w = torch.ones(2, PLAN.dim_in1), torch.ones(2, PLAN.dim_in2), torch.ones(2, PLAN.weight_numel)
    text = record(PLAN.key)
    assert key_of(text) == PLAN.key
    for wrong, said in ((PLAN.key, "does not describe"), (text[: len(PLAN.key) + 20], "cut short"), ("", "describe")):
        with pytest.raises(RuntimeError, match=said):
            torch.ops.eqtp.tensor_product(x, y, w, wrong, "native")
    with pytest.raises(RuntimeError, match=r"a tensor \[rows, columns\] was expected, got one of 1 dimensions"):
        torch.ops.eqtp.tensor_product(x, y, w[0], text, "native")
    with pytest.raises(RuntimeError, match="the operands do not have the sizes of the plan"):
        torch.ops.eqtp.tensor_product(x[:, 1:], y, w, text, "native")


def test_why_not(monkeypatch):
    def asked():
        operators.why_not.cache_clear()
        return operators.why_not()

    try:
        for version in ("2.9.1+cpu", "2.6.0a0+git1"):
            monkeypatch.setattr(torch, "__version__", version)
            assert asked() == f"torch {version.split('+')[0]} lacks what they need, which came with 2.10"
        monkeypatch.undo()
        monkeypatch.setenv("EQTP_CPP_OPS", "0")
        assert asked() == "EQTP_CPP_OPS is 0"
        monkeypatch.undo()
        monkeypatch.setattr(operators, "PATH", Path("/nowhere/libeqtp_torch.so"))
        assert asked() == "/nowhere/libeqtp_torch.so is not built; run: pip install ."
    finally:
        monkeypatch.undo()
        operators.why_not.cache_clear()

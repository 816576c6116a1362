"""The benchmark harness: its output, its refusal to time a wrong kernel, and that nobody is left out."""

import dataclasses
import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).parents[1]
sys.path.append(str(ROOT))  # bench is not part of the installed package

import eqtp  # noqa: E402
from bench import __main__ as bench  # noqa: E402
from bench import harness, machine, peers  # noqa: E402
from eqtp.backends import registry  # noqa: E402
from eqtp.testing import problems  # noqa: E402

KEYS = {
    "op", "problem", "pass", "backend", "dtype", "threads", "ms", "ms_p20", "ms_p80", "ratio_to",
    "bandwidth_fraction", "flop_fraction", "peak_mb",
}  # fmt: skip
pytestmark = pytest.mark.usefixtures("threads", "frozen_heap")
RATES = machine.Machine("a processor", threads=1, read_gb_s=10.0, copy_gb_s=10.0, gflop_s=100.0)
QUICK = ["--nodes", "10", "--edges", "30", "--points", "20", "--repeat", "2", "--min-time", "0.001"]


@pytest.fixture
def run(monkeypatch, tmp_path, capfd):
    """main() without measuring the machine: exit code, stdout, stderr and the lines of the JSON file."""
    monkeypatch.setattr(machine, "measure", lambda dtype, **_: RATES)

    def call(*arguments: str):
        file = tmp_path / "lines.jsonl"
        code = bench.main([*arguments, *QUICK, "--json", str(file)])
        out, err = capfd.readouterr()
        return code, out, err, [json.loads(line) for line in file.read_text().splitlines()]

    return call


def test_command_line_end_to_end(tmp_path):
    """As a user runs it, against a real peer, with the machine measured."""
    pytest.importorskip("e3nn")
    file = tmp_path / "results" / "conv.jsonl"
    command = "-m bench tensor_product_conv --problem nequip-water --backend reference --nodes 10 --edges 30"
    done = subprocess.run(
        [sys.executable, *command.split(), "--against", "e3nn", "--pass", "fwd,bwd,bwdbwd"]
        + ["--json", str(file), "--min-time", "0.01"],
        cwd=ROOT, capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    lines = [json.loads(line) for line in file.read_text().splitlines()]
    assert [(line["pass"], line["backend"]) for line in lines] == [
        (pass_, who) for pass_ in ("fwd", "bwd", "bwdbwd") for who in ("reference", "e3nn")
    ]
    for ours, peer in zip(lines[::2], lines[1::2], strict=True):
        assert ours["ratio_to"] == {"e3nn": pytest.approx(peer["ms"] / ours["ms"])}
        assert peer["ratio_to"] == {}
    for line in lines:
        assert KEYS <= set(line)
        assert (line["op"], line["problem"], line["dtype"], line["threads"]) == (
            "tensor_product_conv", "nequip-water", "float32", 1,
        )  # fmt: skip
        assert 0 < line["ms_p20"] <= line["ms"] <= line["ms_p80"]
        assert 0 < line["bandwidth_fraction"] < 1 and 0 < line["flop_fraction"] < 1
        assert line["size"] == {"nodes": 10, "edges": 30, "graph": "random"}
        assert line["machine"]["read_gb_s"] > 0.5 and line["machine"]["gflop_s"] > 1
    assert "fwd+bwd" in done.stdout and "e3nn" in done.stdout
    assert "100%" in done.stderr  # the progress bar


def corrupt(plant: str):
    """tensor_product_conv whose "auto" backend is wrong in one place; "reference" stays right."""
    right = eqtp.tensor_product_conv
    plan = problems.plan("nequip-water")
    weights = slice(plan.paths[4].weight_offset, plan.paths[4].weight_offset + plan.paths[4].weight_numel)

    class Wrong(torch.autograd.Function):
        """Identity; the gradient is 1 % off in the columns of one path."""

        @staticmethod
        def forward(ctx, w):
            return w.clone()

        @staticmethod
        def backward(ctx, g):
            factor = torch.ones(g.shape[1], dtype=g.dtype)
            factor[weights] = 1.01
            return g * factor

    class WrongTwice(torch.autograd.Function):
        """Identity with the right gradient, whose own derivative is 1 % off."""

        @staticmethod
        def forward(ctx, w):
            return w.clone()

        @staticmethod
        def backward(ctx, g):
            return Wrong.apply(g)

    def conv(x, y, w, plan, graph, backend):
        if backend == "reference":
            return right(x, y, w, plan, graph, backend="reference")
        if plant == "w":
            w = Wrong.apply(w)
        if plant == "second":
            w = WrongTwice.apply(w)
        out = right(x, y, w, plan, graph, backend="reference")
        if plant == "out":
            out = out * torch.where(torch.arange(out.shape[1]) == 100, 1.001, 1.0).to(out.dtype)
        if plant == "nan":
            out = out + torch.where(torch.arange(out.shape[1]) == 100, torch.nan, 0.0).to(out.dtype)
        return out

    return conv


@pytest.mark.parametrize(
    "plant, message",
    [
        ("out", "fwd: backend auto: output, columns 96:128, is off by"),
        ("nan", "fwd: backend auto: output, columns 96:128, is off by nan"),
        ("w", "fwd+bwd: backend auto: gradient of w, columns 128:160, is off by"),
        ("second", "bwdbwd: backend auto: second-order gradient of x, columns 64:160, is off by"),
    ],
)
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_a_wrong_kernel_is_refused(run, monkeypatch, plant, message, dtype):
    monkeypatch.setattr(eqtp, "tensor_product_conv", corrupt(plant))
    monkeypatch.setattr(harness, "time_together", lambda *_, **__: pytest.fail("it was timed"))
    code, _, err, lines = run("tensor_product_conv", "--problem", "nequip-water", "--backend", "auto", "--dtype", dtype)
    assert code == 1
    assert "refused to time a wrong kernel: nequip-water" in err and message in err
    assert lines == []


def test_a_right_kernel_passes_the_same_gate(run, monkeypatch):
    """The plant of the test above is what it refuses, not the wrapping."""
    monkeypatch.setattr(eqtp, "tensor_product_conv", corrupt("nothing"))
    code, _, _, lines = run("tensor_product_conv", "--problem", "nequip-water", "--backend", "auto")
    assert code == 0 and len(lines) == 3


def test_check_times_nothing_and_names_what_is_wrong(run, monkeypatch):
    monkeypatch.setattr(eqtp, "tensor_product_conv", corrupt("out"))
    monkeypatch.setattr(harness, "time_together", lambda *_, **__: pytest.fail("it was timed"))
    code, out, err, lines = run(
        "tensor_product_conv", "--problem", "nequip-water", "--backend", "auto,reference", "--check", "--keep-going"
    )
    assert (
        code == 1 and "wrong kernels, which were not timed" in err and "nequip-water: auto: wrong: WrongKernel" in err
    )
    assert [(line["backend"], line["check"].partition(":")[0]) for line in lines] == [
        ("auto", "wrong"),
        ("reference", "agrees with the reference"),
    ]
    assert "reference         agrees with the reference" in out


def test_a_wrong_backend_is_left_out_where_that_is_asked_for(run, monkeypatch):
    monkeypatch.setattr(eqtp, "tensor_product_conv", corrupt("w"))
    arguments = ("tensor_product_conv", "--problem", "nequip-water", "--pass", "fwd,bwd")
    code, _, err, lines = run(*arguments, "--backend", "auto,reference", "--keep-going")
    assert code == 1 and "auto: wrong" in err
    assert [(line["backend"], line["pass"], line["missing"]["auto"][:5]) for line in lines] == [
        ("reference", p, "wrong") for p in ("fwd", "bwd")
    ]


def test_passes_by_themselves():
    """grad and gradgrad return what the passes that contain them compute on the way, call after call."""
    case = bench.importlib.import_module("bench.bench_tensor_product_conv").case(
        "nequip-water", torch.float64, nodes=4, edges=9, graph="random"
    )
    f, inputs = case.ours("reference"), tuple(case.inputs.values())
    call = harness.call_of(f, inputs, case.cotangent, "grad")
    _, *want = harness.run_pass(f, inputs, case.cotangent, "bwd")
    for got in (call(), call()):
        assert all(torch.equal(a, b) for a, b in zip(got, want, strict=True))
    torch.manual_seed(0)
    got = harness.call_of(f, inputs, case.cotangent, "gradgrad")()
    gradients = torch.autograd.grad(f(*inputs), inputs, case.cotangent, create_graph=True)
    torch.manual_seed(0)
    want = torch.autograd.grad(gradients, inputs, [torch.randn_like(g) for g in gradients])
    assert all(torch.equal(a, b) for a, b in zip(got, want, strict=True))
    assert {harness.STAGES[alone] for alone in harness.WHOLE} == {("bwd",), ("bwdbwd",)}


def test_backends_meet_the_size_that_is_timed_before_the_check():
    """What a backend tunes at its first call is tuned for the real size; a backend that raises is left to the check."""
    module, seen = bench.importlib.import_module("bench.bench_segment_sum"), []
    case = module.case("nequip-s", torch.float32, nodes=4, edges=9, graph="random")

    def ours(backend):
        if backend == "away":
            raise harness.Missing("away")
        return lambda x: seen.append((backend, len(x), torch.is_grad_enabled())) or case.cotangent * x.sum()

    options = bench.parse(
        ["segment_sum", "--problem", "nequip-s", "--backend", "triton,reference,native", "--pass", "fwd,grad"]
    )
    options.backend[2] = "away"
    bench.call_once(dataclasses.replace(case, ours=ours), options)
    assert seen == [("triton", 9, False), ("triton", 9, True)]


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_gpu_that_is_not_there_is_named(capsys):
    with pytest.raises(SystemExit):
        bench.parse(["segment_sum", "--problem", "mace-l1", "--device", "cuda"])
    assert "--device cuda: torch finds no GPU" in capsys.readouterr().err


def test_fractions_of_a_gpu_are_of_its_copy_bandwidth():
    rates = RATES._replace(read_gb_s=40.0, threads=None, gpu="a GPU", driver="1")
    assert rates.bandwidth == ("copy", 10.0) and RATES.bandwidth == ("read", 10.0)
    assert rates.row()["gpu"] == "a GPU" and "gpu" not in RATES.row()
    assert str(rates).startswith("a GPU, driver 1: read 40.0 GB/s")


@pytest.mark.gpu
def test_clock_and_memory_of_a_gpu():
    a = torch.rand(1 << 24, device="cuda")
    times = harness.clock(a.sum, 5, "cuda")
    assert len(times) == 5 and all(0 < ms < 100 for ms in times)
    assert 63 < harness.peak_mb(lambda: a + 1, "cuda") < 66
    rates = machine.measure(torch.float32, repeats=2, device="cuda")
    assert rates.gpu and 50 < rates.copy_gb_s < 20_000 and rates.threads is None


@pytest.mark.gpu
def test_a_family_is_timed_on_a_gpu(run):
    arguments = ("tensor_product_conv", "--problem", "nequip-water", "--device", "cuda", "--backend", "reference")
    code, _, _, lines = run(*arguments, "--pass", "fwd,grad,gradgrad")
    assert code == 0 and [line["device"] for line in lines] == ["cuda"] * 3


def test_missing_peers_are_named(run, monkeypatch):
    """Not installed, not on a CPU, not its business: each with its reason, in the table and in the file."""
    monkeypatch.setitem(sys.modules, "e3nn", None)
    monkeypatch.setitem(sys.modules, "e3nn.o3", None)
    peers.product.cache_clear()
    code, out, _, lines = run(
        "tensor_product_conv", "--problem", "nequip-water", "--backend", "reference",
        "--against", "e3nn,flashtp,sphericart", "--pass", "fwd",
    )  # fmt: skip
    assert code == 0
    reasons = lines[0]["missing"]
    assert set(reasons) == {"e3nn", "flashtp", "sphericart"} and lines[0]["ratio_to"] == {}
    assert "is not installed" in reasons["e3nn"]
    assert reasons["flashtp"] == "FlashTP does not run on a CPU"
    assert reasons["sphericart"] == "sphericart has no tensor product"
    for who, why in reasons.items():
        assert any(line.split() == [who, "missing:", *why.split()] for line in out.splitlines())


def test_a_peer_that_computes_something_else_is_not_compared(run, monkeypatch):
    monkeypatch.setattr(peers, "product", lambda *a: lambda x1, x2, w: 2 * eqtp.tensor_product(
        x1, x2, w, problems.plan(a[1]), backend="reference"
    ))  # fmt: skip
    _, _, _, lines = run(
        "tensor_product",
        "--problem",
        "nequip-s",
        "--backend",
        "reference",
        "--against",
        "e3nn",
        "--pass",
        "fwd",
    )
    assert len(lines) == 1 and "computes something else" in lines[0]["missing"]["e3nn"]


def test_a_peer_that_fails_while_timed_is_named(run, monkeypatch):
    def product(*_):
        def f(x1, x2, w):
            if x1.requires_grad and torch.is_grad_enabled():
                raise RuntimeError("no backward here\nsecond line")
            return eqtp.tensor_product(x1, x2, w, problems.plan("nequip-s"), backend="reference")

        return f

    monkeypatch.setattr(peers, "product", product)
    _, _, _, lines = run(
        "tensor_product",
        "--problem",
        "nequip-s",
        "--backend",
        "reference",
        "--against",
        "cueq",
        "--pass",
        "bwd",
    )
    assert [line["backend"] for line in lines] == ["reference"]
    assert lines[0]["missing"] == {"cueq": "RuntimeError: no backward here"}


def test_a_backend_that_cannot_run_is_named_and_nothing_timed_is_an_error(run, monkeypatch):
    monkeypatch.setattr(registry, "why_not", lambda *_: "not today")
    code, out, err, lines = run("tensor_product", "--problem", "nequip-s", "--backend", "native", "--pass", "fwd")
    assert code == 1 and "none of our backends could run" in err
    assert "missing: not today" in out and lines == []


@pytest.mark.parametrize(
    "op, problem, against",
    [
        ("tensor_product", "diffdock-l1", "e3nn,cueq"),
        ("tensor_product", "e3tools-transformer", "e3nn,cueq,cueq-irmul"),
        ("tensor_product_conv", "sevennet-0-last", "e3nn,e3nn-script,cueq,cueq-irmul"),
        ("spherical_harmonics", "lmax1", "e3nn,e3nn-script,cueq,sphericart,sphericart-solid"),
        ("spherical_harmonics", "lmax2-solid", "e3nn,sphericart-solid"),
        ("segment_sum", "nequip-water", "torch,pyg"),
    ],
)
def test_every_op_runs_against_its_peers(run, op, problem, against):
    code, _, _, lines = run(op, "--problem", problem, "--backend", "reference", "--against", against)
    assert code == 0
    module = bench.importlib.import_module(f"bench.bench_{op}")
    assert [line["pass"] for line in lines if line["backend"] == "reference"] == list(module.PASSES)
    for line in lines:
        if line["backend"] == "reference":
            absent = {who: why for who, why in line["missing"].items() if "not installed" not in why}
            assert absent == {}
            assert set(line["ratio_to"]) | set(line["missing"]) == set(against.split(","))


def test_peers_that_cannot_go_that_far_say_so(run):
    pytest.importorskip("e3nn")
    _, _, _, lines = run(
        "spherical_harmonics",
        "--problem",
        "lmax15",
        "--backend",
        "reference",
        "--against",
        "e3nn,cueq",
        "--pass",
        "fwd",
    )
    assert "maximum l implemented is 12" in lines[0]["missing"]["e3nn"]
    assert "its CPU path stops at lmax 5" in lines[0]["missing"]["cueq"]
    assert {line["backend"] for line in lines} == {"reference"}


def test_unknown_names_list_the_known_ones(capsys):
    for arguments, message in (
        (["tensor_product", "--problem", "mace-huge"], "unknown problem 'mace-huge'; known: mace-l1"),
        (
            ["spherical_harmonics", "--problem", "lmax3", "--against", "jax"],
            "unknown peer 'jax'; known: e3nn",
        ),
        (
            ["segment_sum", "--problem", "mace-l1", "--pass", "bwdbwd"],
            "unknown pass 'bwdbwd'; known: fwd, bwd",
        ),
        (["tensor_product", "--problem", "mace-l1", "--backend", "cuda"], "unknown backend 'cuda'"),
        (["tensor_product", "--problem", "mace-l1", "--backend", "emulated"], "unknown backend 'emulated'"),
        (
            ["segment_sum", "--problem", "mace-l1", "--pass", "gradgrad"],
            "unknown pass 'gradgrad'; known: fwd, bwd, grad",
        ),
        (["tensor_product", "--problem", "mace-l1", "--repeat", "0"], "--repeat must be at least 1, got 0"),
    ):
        with pytest.raises(SystemExit) as stop:
            bench.parse(arguments)
        assert stop.value.code == 2
        assert message in capsys.readouterr().err


def test_compulsory_bytes_and_operations_by_hand():
    """nequip-water, 10 nodes, 30 edges, float32: x [10, 256], y [30, 4], w [30, 320], out [10, 704]."""
    case = bench.importlib.import_module("bench.bench_tensor_product_conv").case(
        "nequip-water", torch.float32, nodes=10, edges=30, graph="random"
    )
    operands, out, index = 4 * (2560 + 120 + 9600), 4 * 7040, 30 * 16
    assert case.bytes == {
        "fwd": operands + out + index,
        "bwd": 2 * operands + out + index,
        "bwdbwd": 3 * operands + out + index,
    }
    plan = problems.plan("nequip-water")
    assert case.flops["fwd"] == 30 * (plan.flops("fwd") + 704)
    assert plan.flops("bwd") * 30 < case.flops["bwd"] < case.flops["bwdbwd"] < 30 * plan.flops("bwdbwd")

"""`make gpu`, rehearsed without a GPU: its steps, its limits, its reports, and that everything it wants to run
exists."""

import importlib.util
import json
import os
import re
import sys
import sysconfig
import time
from pathlib import Path

import calls
import pytest
import torch

ROOT = Path(__file__).parents[1]
sys.path.append(str(ROOT))  # bench is not part of the installed package

import eqtp.__main__ as page  # noqa: E402
from bench import __main__ as bench  # noqa: E402
from bench import first_call, gpu, gpu_jobs, gpu_run, gpu_steps, models, report, sanitize  # noqa: E402
from bench import registry as bench_registry  # noqa: E402
from eqtp.backends import registry  # noqa: E402
from eqtp.backends.native import library  # noqa: E402
from eqtp.testing import problems  # noqa: E402

needs_native = pytest.mark.skipif(library._native is None, reason="eqtp._native is not built")
if sys.version_info < (3, 11):
    pytest.skip("make gpu needs Python 3.11", allow_module_level=True)


@pytest.fixture
def run(tmp_path):
    return gpu_run.Run(tmp_path, rehearse=True, tests=[])


@needs_native
def test_rehearsal(monkeypatch, tmp_path, capfd):
    """All steps but build, in processes of their own, with the package that the links make."""
    out = tmp_path / "out"
    out.mkdir()
    monkeypatch.setenv("OUT", str(out))
    conv = gpu_jobs.REHEARSAL[0]
    monkeypatch.setattr(gpu_steps, "jobs", lambda rehearse: [conv] if rehearse else pytest.fail("not a rehearsal"))
    steps = ["--steps", "environment,tests,check,benchmarks", "--tests", str(ROOT / "tests" / "test_triton.py")]
    assert gpu.main(["--rehearse", "--folder", str(tmp_path / "gpu"), *steps]) == (
        1 if torch.cuda.is_available() else 0
    )
    said = capfd.readouterr().out
    assert f"{tmp_path / 'gpu' / 'site' / 'eqtp'}\n" in said  # python -m eqtp
    assert re.search(r"tests +ok .* \d+ skipped: no GPU", said) or torch.cuda.is_available()
    assert re.search(r"check +ok .* 1 agree, 0 do not; jit: the specialised kernels run on NVIDIA GPUs", said)
    rows = report.read(tmp_path / "gpu" / "results")
    assert [(row["problem"], row["pass"], row["backend"]) for row in rows] == [
        ("nequip-water", p, "native") for p in conv.options[1].split(",")
    ]
    assert {path.name for path in out.iterdir()} == {"gpu.log", "rehearsal.md", "tensor_product_conv-rehearsal.json"}
    assert "| nequip-water | random, 10 nodes, 30 edges | float32 | forward |" in (out / "rehearsal.md").read_text()
    assert "$ " in (out / "gpu.log").read_text() and "skipped" in (out / "gpu.log").read_text()


def test_a_step_that_fails_does_not_stop_the_next(monkeypatch, tmp_path, capsys):
    def broken(run):
        raise ZeroDivisionError("by zero")

    monkeypatch.setattr(gpu, "STEPS", {"one": (broken, 1), "two": (lambda run: gpu.Outcome("ok", "fine"), 1)})
    assert gpu.main(["--rehearse", "--folder", str(tmp_path)]) == 1
    said = capsys.readouterr().out
    assert re.search(r"one +failed +0 s  ZeroDivisionError: by zero", said) and re.search(r"two +ok +0 s  fine", said)
    assert gpu.main(["--rehearse", "--folder", str(tmp_path), "--steps", "two"]) == 0


def test_unknown_steps_list_the_known_ones(capsys):
    with pytest.raises(SystemExit):
        gpu.main(["--steps", "bild"])
    assert (
        "unknown step bild; known: environment, build, tests, sanitizer, check, benchmarks" in capsys.readouterr().err
    )


def test_a_command_ends_with_its_step_and_so_do_its_children(run):
    run.until = time.monotonic() + 1
    done = run.call("slow", ["sh", "-c", "sleep 60 & echo $!; wait"])
    assert done.code is None and done.seconds < 10 and gpu_run.ended(done) == "its time was over"
    child = Path(f"/proc/{gpu_run.last_line(done.text)}/stat")
    for _ in range(50):
        if not child.exists() or child.read_text().split()[2] == "Z":
            break
        time.sleep(0.1)
    else:
        pytest.fail("the child of the command still runs")
    run.until = time.monotonic() + 60
    assert run.call("none", ["a-command-that-does-not-exist"]).code == 127
    assert "exit code 3: bad" == gpu_run.ended(run.call("bad", ["sh", "-c", "echo bad; exit 3"]))


def test_limits_sum_to_less_than_nine_minutes():
    assert sum(seconds for _, seconds in gpu.STEPS.values()) <= gpu_run.LIMIT < 535


def test_links_make_a_package(tmp_path):
    gpu_run.link(tmp_path, with_native=False)
    names = {path.name for path in (tmp_path / "eqtp").iterdir()}
    assert names >= {"__init__.py", "ops", "kernels", "csrc"} and "__pycache__" not in names
    assert not [name for name in names if name.startswith("_native")]
    assert (tmp_path / "eqtp" / "kernels" / "__init__.py").exists() and (
        tmp_path / "eqtp" / "csrc" / "common/device.cuh"
    ).exists()
    gpu_run.link(tmp_path, with_native=True)
    assert bool(list((tmp_path / "eqtp").glob("_native*.so"))) == bool(list((ROOT / "eqtp").glob("_native*.so")))


def test_build_says_what_is_missing(monkeypatch, run):
    monkeypatch.setattr(sysconfig, "get_path", lambda name: "/nowhere")
    outcome = gpu_steps.build(run)
    assert (
        outcome.status == "skipped"
        and "/nowhere/Python.h is missing" in outcome.note
        and "without the family native" in outcome.note
    )


def test_files_with_tests_for_a_gpu_are_found_and_their_results_added(monkeypatch, run):
    called = []
    ends = {
        "test_triton": gpu_run.Done(0, "3 passed, 2 skipped in 1.0s", 1.0),
        "test_jit_launch": gpu_run.Done(2, "E  ModuleNotFoundError: No module named 'e3nn'\n1 error", 1.0),
    }

    def python(name, *arguments):
        called.append(arguments[-1].stem)
        return ends.get(arguments[-1].stem, gpu_run.Done(5, "7 deselected in 0.1s", 1.0))

    monkeypatch.setattr(run, "python", python)
    outcome = gpu_steps.tests(run)
    assert {"test_jit_launch", "test_triton", "test_bench"} <= set(called) and "test_plan" not in called
    assert (
        outcome.status == "failed"
        and outcome.note.startswith("1 error, 3 passed, 2 skipped")
        and outcome.note.endswith("test_jit_launch.py (No module named 'e3nn')")
    )


@pytest.mark.parametrize(
    "text, code, status, note",
    [
        ("========= ERROR SUMMARY: 0 errors", 0, "ok", "memcheck jit: 0 errors; "),
        ("========= ERROR SUMMARY: 2 errors", 0, "failed", "memcheck jit: 2 errors; "),
        ("========= ERROR SUMMARY: 0 errors\n1 wrong", 1, "failed", "memcheck jit: 0 errors, exit code 1: 1 wrong; "),
        ("========= RACECHECK SUMMARY: 0 hazards displayed (0 errors)", 0, "ok", "memcheck jit: 0 hazards; "),
        ("no such device", 255, "skipped", "memcheck jit: does not work here, exit code 255: no such device; "),
    ],
)
def test_what_compute_sanitizer_says(monkeypatch, run, text, code, status, note):
    run.rehearse = False
    monkeypatch.setattr(gpu_steps.shutil, "which", lambda *_, **__: sys.executable)  # something that exists
    monkeypatch.setattr(run, "call", lambda *_, **__: gpu_run.Done(code, text, 1.0))
    outcome = gpu_steps.sanitizer(run)
    assert outcome.status == status and outcome.note.startswith(note) and outcome.note.count(";") == 5


def test_only_what_is_right_is_timed(monkeypatch, run):
    """Problems are grouped by the families that passed the check; a family that did not is not timed."""
    called = []
    monkeypatch.setattr(run, "python", lambda name, *arguments: called.append(arguments) or gpu_run.Done(0, "", 1.0))
    run.right = {
        ("segment_sum", p, "float32", f) for p, f in [("a", "jit"), ("b", "jit"), ("b", "native"), ("c", "jit")]
    }
    assert (
        gpu_steps.time_job(run, gpu_jobs.Job(1, "sum", "segment_sum", ("a", "b", "c", "d"), ()))
        == "sum: no family for d"
    )
    assert [(args[4:6], args[args.index("--backend") + 1]) for args in called] == [
        (("a", "c"), "jit"),
        (("b", "--backend"), "jit,native"),
    ]


def test_what_broke_is_run_alone(monkeypatch, run):
    """Results from before it broke are kept; the rest goes on family by family."""
    called = []

    def python(name, *arguments):
        problem, backend, file = (
            arguments[4],
            arguments[arguments.index("--backend") + 1],
            arguments[arguments.index("--json") + 1],
        )
        called.append((problem, backend))
        rows = (
            [("a", "fwd"), ("a", "grad"), ("b", "fwd")]
            if len(called) == 1
            else [("b", "fwd"), ("b", "grad")]
            if backend == "jit"
            else []
        )
        file.write_text("".join(json.dumps({"problem": p, "pass": q, "from": name}) + "\n" for p, q in rows))
        return gpu_run.Done(0 if backend == "jit" else 1, "illegal memory access", 1.0)

    monkeypatch.setattr(run, "python", python)
    why = gpu_steps.call_job(run, gpu_jobs.jobs(False)[0], "conv", ["a", "b"], ("jit", "native"))
    assert called == [("a", "jit,native"), ("b", "jit"), ("b", "native")]
    assert why == "conv: exit code 1: illegal memory access; conv-b-native: exit code 1: illegal memory access"
    assert [(row["problem"], row["pass"], row["from"]) for row in report.read(run.raw)] == [
        ("b", "fwd", "conv-b-jit"), ("b", "grad", "conv-b-jit"), ("a", "fwd", "conv"), ("a", "grad", "conv"),
    ]  # fmt: skip


def test_jobs_are_what_the_harness_takes():
    """Every job of a GPU, whose lines no machine without one runs."""
    ops = set()
    for job in [*gpu_jobs.jobs(False), *gpu_jobs.REHEARSAL]:
        ops.add(job.op)
        assert set(job.families) <= {"jit", "native", "triton", "reference"}
        if job.op == "models":
            device = ["--device", "cpu"]
            assert models.parse(["--model", ",".join(job.problems), *device, *job.options]).model == [*job.problems]
        elif job.op != "first_call":
            options = bench.parse(
                [
                    job.op,
                    "--problem",
                    *job.problems,
                    "--dtype",
                    job.dtype,
                    "--backend",
                    ",".join(job.families),
                    *job.options,
                ]
            )
            assert problems.graph(options.graph, 10, 30).num_nodes
        assert {name for name, _ in job.peers} <= set(bench.peers.NAMES)
    assert ops == {*registry.ops(), *gpu_steps.NO_OPS} - {"so2_convolution"}  # which is timed with gaunt_convolution
    assert len({job.name for job in gpu_jobs.jobs(False)}) == len(gpu_jobs.jobs(False))
    assert len(problems.graph("diamond:5").src) == 158_000 and len(problems.graph("flashtp").src) == 32_768


def test_whole_models_are_timed_where_they_are_installed(monkeypatch, run, capsys):
    called, job = [], gpu_jobs.WHOLE_MODELS[0]
    monkeypatch.setattr(run, "python", lambda name, *words: called.append(words) or gpu_run.Done(1, "a\nwrong", 1.0))
    monkeypatch.setattr(gpu_steps.importlib.util, "find_spec", lambda name: None)
    assert gpu_steps.whole_models(run, job) is None and not called
    assert "sevenn is not installed" in capsys.readouterr().out
    monkeypatch.setattr(gpu_steps.importlib.util, "find_spec", lambda name: object())
    assert gpu_steps.whole_models(run, job) == "models: exit code 1: wrong"
    assert called[0][:3] == ("-m", "bench", "models") and models.parse([*map(str, called[0][3:])]).atoms == [864, 4000]


def rows(**changes):
    row = {"op": "tensor_product_conv", "problem": "a", "pass": "fwd", "backend": "jit", "dtype": "float32",
           "device": "cuda", "threads": None, "ms": 2.0, "ratio_to": {"cueq": 3.0}, "bandwidth_fraction": 0.75,
           "peak_mb": 1234.5, "versions": {"torch": "2"},
           "size": {"nodes": 10, "edges": 2000, "graph": "diamond:5"},
           "machine": {"cpu": "a processor", "gpu": "a GPU", "driver": "1.2", "copy_gb_s": 4000.0},
           } | changes  # fmt: skip
    return [row, row | {"backend": "native", "ms": 4.0, "bandwidth_fraction": 0.375, "peak_mb": None, "ratio_to": {}}]


def test_tables(tmp_path):
    found = [
        *rows(),
        *rows(op="first_call", **{"pass": "cold cache"}, bandwidth_fraction=None, size={"graph": "crystal-36k"}),
    ]
    text = report.tables(found)
    assert "a GPU; driver 1.2; copy 4,000 to 4,000 GB/s (read + write); torch 2" in text
    assert "| problem | size | dtype | pass | floor | jit | native |" in text
    assert (
        "| a | diamond:5, 10 nodes, 2,000 edges | float32 | forward | 1.5 ms | 2 ms, 75%, 1,234 MB | 4 ms, 38% |"
        in text
    )
    assert [path.name for path in report.write(found, tmp_path, "cuda-x")] == [
        "cuda-x.md",
        "first_call-cuda-x.json",
        "tensor_product_conv-cuda-x.json",
    ]
    with (tmp_path / "first_call-cuda-x.json").open("a") as file:
        file.write('{"op": "cut o')  # a time limit
    assert sorted(report.read(tmp_path), key=str) == sorted(found, key=str)
    assert [line.split()[-4:] for line in report.summary(rows()).splitlines()] == [["ms,", "75%,", "1,234", "MB"]]


def test_results_of_a_gpu_are_not_in_the_picture_of_the_cpu(tmp_path):
    spec = importlib.util.spec_from_file_location("plot_speedup", ROOT / "docs" / "plot_speedup.py")
    plot = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(plot)
    report.write(rows(), tmp_path, "cuda-x")
    assert plot.read(tmp_path) == []
    report.write(rows(threads=1), tmp_path, "cuda-x")
    assert len(plot.read(tmp_path)) == 1


@needs_native
def test_sanitize_compares(monkeypatch, capsys):
    chosen = {"tensor_product_conv", "spherical_harmonics", "segment_sum"}
    every = bench_registry.with_kernels()
    assert set(every) == {op for op, engine in registry.ops().items() if engine}  # nothing is forgotten
    monkeypatch.setattr(sanitize, "with_kernels", lambda: {op: every[op] for op in chosen})
    arguments = ["--device", "cpu", "--backend", "jit,native", "--dtype", "float32"]
    assert sanitize.main(arguments) == 0
    said = capsys.readouterr().out
    assert "native: ok" in said and "jit: not run: the specialised kernels" in said
    assert all(f"{op} {problem}" in said for op in chosen for problem in every[op].SMALL)

    def wrong(run, op, pass_, inputs, outputs):
        run(op, pass_, inputs, outputs)
        outputs[0].mul_(1.001)

    calls.wrap(monkeypatch, "segments", wrong)
    assert sanitize.main(arguments) == 1
    assert "tetris-2 fwd float32: result 0 is off by 1.0e-03 of its scale" in capsys.readouterr().out


@needs_native
def test_first_call(tmp_path, capsys):
    file = tmp_path / "row.json"
    tiny = ["--graph", "random", "--nodes", "10", "--edges", "30", "--cache", "cold", "--json", str(file)]
    assert first_call.main(["--backend", "native", *tiny]) == 0
    row = json.loads(file.read_text())
    assert (row["op"], row["pass"], row["backend"], row["device"], row["ratio_to"]) == (
        "first_call",
        "cold cache",
        "native",
        "cpu",
        {},
    )
    assert row["step_ms"] > 0
    file.unlink()
    assert first_call.main(["--backend", "jit", *tiny]) == 0 and not file.exists()
    assert "jit missing: the specialised kernels run on NVIDIA GPUs" in capsys.readouterr().out


def test_python_m_eqtp_never_raises(monkeypatch, capsys):
    def broken(*_):
        raise OSError("libnvrtc is broken")

    monkeypatch.setattr(page.nvrtc, "version", broken)
    monkeypatch.setattr(library, "_native", None)
    assert page.main() == 0
    said = capsys.readouterr().out
    assert re.search(r"error +OSError: libnvrtc is broken", said) and re.search(
        r"EQTP_CACHE_DIR +.*\(folder of the kernels compiled at run time\)", said
    )
    assert page.compiled().startswith("not built: pip install .")
    if not os.path.exists("/dev/nvidiactl"):
        assert "none that torch can use" in said and not torch.cuda.is_initialized()

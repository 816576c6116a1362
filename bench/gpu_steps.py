"""The steps of `make gpu`. Each takes the run, and returns its outcome; an exception means that it failed."""

from __future__ import annotations

import importlib.util
import json
import os
import re
import shutil
import sys
import time
from pathlib import Path

import cmake_arguments
from bench import report
from bench.gpu_jobs import FAMILIES, Job, jobs
from bench.gpu_run import ROOT, Done, Outcome, Run, ended, last_line, save

PROBE = """
import json, torch
gpu = torch.cuda.is_available()
major, minor = torch.cuda.get_device_capability() if gpu else (9, 0)
print(json.dumps({"gpu": torch.cuda.get_device_name() if gpu else "", "sm": f"{major}{minor}"}))
"""


def environment(run: Run) -> Outcome:
    """Which GPU, and what there is for it."""
    done, probe = run.python("environment", "-m", "eqtp"), run.python("probe", "-c", PROBE)
    if done.code or probe.code:
        return Outcome("failed", ended(done if done.code else probe))
    found = json.loads(last_line(probe.text))
    run.gpu, run.sm = found["gpu"], found["sm"]
    print(done.text.partition("\n")[2])
    if not run.gpu and not run.rehearse:
        return Outcome("failed", "torch finds no GPU: see the log")
    return Outcome("ok", run.gpu or "no GPU: a rehearsal on the CPU")


def nvcc(path: str) -> Path | str | None:
    """The compiler that CUDACXX names, that of the path, or that of a toolkit where it is usually installed."""
    homes = (os.environ.get("CUDA_HOME"), os.environ.get("CUDA_PATH"), "/usr/local/cuda")
    toolkits = (Path(home, "bin", "nvcc") for home in homes if home)
    return os.environ.get("CUDACXX") or shutil.which("nvcc", path=path) or next(filter(Path.exists, toolkits), None)


def build(run: Run) -> Outcome:
    """eqtp._native by CMake itself, with setup.py's arguments: no pip, no setuptools."""
    path, folder = run.environment["PATH"], run.folder / "cmake"
    missing = cmake_arguments.missing(path) or (
        "cmake is missing" if shutil.which("cmake", path=path) is None else None
    )
    if missing:
        return Outcome("skipped", f"{missing}; going on without the family native")
    compiler = nvcc(path)
    arguments = cmake_arguments.arguments(run.site / "eqtp", "ON" if compiler else "OFF", f"{run.sm}-real")
    if shutil.which("ninja", path=path):
        arguments.append("-GNinja")
    shutil.rmtree(folder, ignore_errors=True)  # of another machine, perhaps
    done = run.call("configure", ["cmake", "-S", ROOT, "-B", folder, *arguments])
    if done.code == 0:
        done = run.call("build", ["cmake", "--build", folder, "-j", os.cpu_count() or 1])
    if done.code != 0:
        return Outcome("failed", ended(done))
    probe = run.python("native", "-c", "from eqtp import _native as n; print('CUDA', n.has_cuda, n.cuda_architectures)")
    if probe.code != 0:
        return Outcome("failed", ended(probe))
    if compiler is None:
        return Outcome("skipped", "nvcc is missing: built for the CPU only")
    return Outcome("ok", last_line(probe.text))


def tests(run: Run) -> Outcome:
    """pytest -m gpu. A process per file, as an error of a kernel may make the GPU useless to the whole process."""
    files = run.tests or [p for p in sorted((ROOT / "tests").glob("test_*.py")) if "mark.gpu" in p.read_text()]

    def test(file: Path) -> tuple[Path, Done]:
        return file, run.python(f"test-{file.stem}", "-m", "pytest", "-q", "-m", "gpu", "-p", "no:cacheprovider", file)

    total, bad = {}, []
    for file, done in run.parallel(test, files, 6):
        line = last_line(done.text)
        for count, what in re.findall(r"(\d+) (passed|failed|skipped|errors?)", line):
            total[what] = total.get(what, 0) + int(count)
        missing = re.search(r"No module named '[\w.]+'", done.text)
        if done.code not in (0, 5):
            why = missing[0] if missing and done.code == 2 else ended(done) if done.code is None else line
            bad.append(f"{file.name} ({why})")
    said = ", ".join(f"{count} {what}" for what, count in total.items()) + (
        ": no GPU" if set(total) == {"skipped"} and not run.gpu else ""
    )
    return Outcome("failed" if bad else "ok", "; ".join([said or "no tests", *bad]))


def sanitizer(run: Run) -> Outcome:
    """compute-sanitizer, where the tool is there and can work; both tools at the same time."""
    places = [shutil.which("compute-sanitizer", path=run.environment["PATH"])]
    places += [
        Path(home, "bin", "compute-sanitizer") for home in (os.environ.get("CUDA_HOME"), "/usr/local/cuda") if home
    ]
    tool = next((place for place in places if place and Path(place).exists()), None)
    if tool is None or run.rehearse:
        plain = run.python("sanitize", "-m", "bench.sanitize", "--device", run.device)
        said = "compute-sanitizer is not available" + ("" if tool is None else " in a rehearsal")
        return Outcome(
            "failed" if plain.code else "skipped", f"{said}; without it: {ended(plain) if plain.code else 'ok'}"
        )

    def watch(task: tuple[str, str]) -> tuple[str, str, Done]:
        kind, family = task
        script = [sys.executable, "-m", "bench.sanitize", "--backend", family, "--dtype", "float32,bfloat16"]
        command = [tool, "--tool", kind, "--target-processes", "application-only", *script]
        return kind, family, run.call(f"sanitizer-{kind}-{family}", command, PYTORCH_NO_CUDA_MEMORY_CACHING="1")

    status, notes = "ok", []
    for kind, family, done in run.parallel(
        watch, [(kind, family) for kind in ("memcheck", "racecheck") for family in FAMILIES], 6
    ):
        summary = re.search(r"(?:ERROR|RACECHECK) SUMMARY: (\d+) (\w+)", done.text)
        if summary is None:
            notes.append(f"{kind} {family}: does not work here, {ended(done)}")
            status = "skipped" if status == "ok" else status
        else:
            notes.append(f"{kind} {family}: {summary[1]} {summary[2]}" + (f", {ended(done)}" if done.code else ""))
            status = "failed" if int(summary[1]) or done.code else status
    return Outcome(status, "; ".join(notes))


def check(run: Run) -> Outcome:
    """Each family and each problem that is to be timed against the reference; several processes, which compile for the
    benchmarks meanwhile."""
    wanted = {}  # (op, problems, dtype, family): plans one by one, as they take long to compile
    for job in jobs(run.rehearse):
        together = job.problems if job.op == "tensor_product_conv" else [" ".join(job.problems)]
        tasks = [
            (job.op, problem, job.dtype, family)
            for problem in together
            for family in job.families
            if family != "reference"
        ]
        wanted |= dict.fromkeys(tasks if job.op not in NO_OPS else [])

    def one(task: tuple[str, str, str, str]) -> list[dict]:
        op, problem, dtype, family = task
        name = f"check-{op}-{problem.partition(' ')[0]}-{dtype}-{family}"
        file = run.folder / "checks" / f"{name}.json"
        file.parent.mkdir(exist_ok=True)
        file.unlink(missing_ok=True)
        options = [
            "--backend",
            family,
            "--dtype",
            dtype,
            "--device",
            run.device,
            "--check",
            "--keep-going",
            "--json",
            file,
        ]
        done = run.python(name, "-m", "bench", op, "--problem", *problem.split(), *options)
        rows = [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []
        seen = {row["problem"] for row in rows}
        return rows + [
            {"op": op, "problem": p, "dtype": dtype, "backend": family, "check": f"wrong: {ended(done)}"}
            for p in problem.split()
            if p not in seen
        ]

    rows = [row for found in run.parallel(one, list(wanted), 12) for row in found]
    run.right = {
        (row["op"], row["problem"], row["dtype"], row["backend"]) for row in rows if row["check"].startswith("agrees")
    }
    wrong = [row for row in rows if row["check"].startswith("wrong")]
    for row in wrong:
        print("  ", row["op"], row["problem"], row["dtype"], row["backend"], row["check"])
    away = sorted(
        {f"{row['backend']}: {row['check']}" for row in rows} - {f"{row['backend']}: {row['check']}" for row in wrong}
    )
    away = [text for text in away if "agrees" not in text]
    return Outcome(
        "failed" if wrong or not run.right else "ok", "; ".join([f"{len(run.right)} agree, {len(wrong)} do not", *away])
    )


def time_job(run: Run, job: Job) -> str | None:
    """Runs a job with the families that are right; problem by problem and family by family if that fails. None, or what
    is missing."""
    groups: dict[tuple, list[str]] = {}
    for problem in job.problems:
        ready = tuple(
            f
            for f in job.families
            if f == "reference" or run.right is None or (job.op, problem, job.dtype, f) in run.right
        )
        groups.setdefault(ready, []).append(problem)
    failed = []
    for n, (families, problems) in enumerate(groups.items()):
        why = (
            call_job(run, job, f"{job.name}-{n}", problems, families)
            if families
            else f"{job.name}: no family for {', '.join(problems)}"
        )
        failed += [why] if why else []
    return "; ".join(failed) or None


def call_job(run: Run, job: Job, name: str, problems: list[str], families: tuple[str, ...]) -> str | None:
    """One process of the harness; None, or how it ended."""
    file = run.raw / f"{name}.json"
    peers = [name for name, module in job.peers if importlib.util.find_spec(module)]
    options = [
        "--backend",
        ",".join(families),
        "--dtype",
        job.dtype,
        "--device",
        run.device,
        "--keep-going",
        "--json",
        file,
        *job.options,
    ]
    options += ["--against", ",".join(peers)] if peers else []
    done = run.python(name, "-m", "bench", job.op, "--problem", *problems, *options)
    if done.code == 0:
        return None
    if done.code is not None and len(problems) * len(families) > 1:  # one may have broken the process for all
        rows = [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []
        # those before the one that broke
        whole = {row["problem"] for row in rows} - {row["problem"] for row in rows[-1:]}
        file.write_text("".join(json.dumps(row) + "\n" for row in rows if row["problem"] in whole))
        alone = [call_job(run, job, f"{name}-{p}-{f}", [p], (f,)) for p in problems if p not in whole for f in families]
        return "; ".join(filter(None, [f"{name}: {ended(done)}", *alone]))
    return f"{name}: {ended(done)}"


def first_call(run: Run, job: Job) -> str | None:
    """A new process with empty caches, and another one after it."""
    failed = []
    for family in job.families:
        cache = run.folder / f"first-{family}"
        shutil.rmtree(cache, ignore_errors=True)
        for state in ("cold", "warm"):
            name = f"first_call-{family}-{state}"
            options = [
                "--device",
                run.device,
                "--backend",
                family,
                "--cache",
                state,
                "--json",
                run.raw / f"{name}.json",
                *job.options,
            ]
            caches = {"EQTP_CACHE_DIR": str(cache / "eqtp"), "TRITON_CACHE_DIR": str(cache / "triton")}
            done = run.python(name, "-m", "bench.first_call", *options, **caches)
            if done.code != 0:
                failed.append(f"{name}: {ended(done)}")
    return "; ".join(failed) or None


def whole_models(run: Run, job: Job) -> str | None:
    """Models and the peers that their libraries can use."""
    if importlib.util.find_spec("sevenn") is None:
        print("  sevenn is not installed: no whole models", flush=True)
        return None
    where = ["--device", run.device, "--json", run.raw / f"{job.name}.json"]
    done = run.python(job.name, "-m", "bench", "models", "--model", ",".join(job.problems), *where, *job.options)
    return None if done.code == 0 else f"{job.name}: {ended(done)}"


def benchmarks(run: Run) -> Outcome:
    """Every job, the most important first."""
    failed, late = [], []
    for job in jobs(run.rehearse):
        if time.monotonic() > run.until - 3:
            late.append(job.name)
            continue
        print(f"  {job.name} ...", flush=True)
        if why := NO_OPS.get(job.op, time_job)(run, job):
            failed.append(why)
        save(run)
    rows = report.read(run.raw)
    notes = [f"{len(rows)} results", *failed, *([f"no time left for {', '.join(late)}"] if late else [])]
    return Outcome("failed" if failed or late or not rows else "ok", "; ".join(notes))


NO_OPS = {"first_call": first_call, "models": whole_models}  # what is timed otherwise

# step -> (what it does, seconds that are kept for it; what earlier ones leave is added)
STEPS = {
    "environment": (environment, 40),
    "build": (build, 130),
    "tests": (tests, 110),
    "sanitizer": (sanitizer, 50),
    "check": (check, 70),
    "benchmarks": (benchmarks, 130),
}

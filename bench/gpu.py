"""All that a GPU machine can say about eqtp, in one command of less than nine minutes: `make gpu`, or `python3 -m
bench.gpu`.

Needs a Python (3.11 or newer) with torch, NumPy and pytest, and for the kernels what `python -m eqtp` names: nvcc,
CMake and a C++ compiler (native), CuPy and NVRTC (jit), Triton. Installs nothing and opens no connection. What is
missing is named, and the rest goes on without it.

    environment   what this machine has
    build         eqtp._native for this GPU, and a package folder that PYTHONPATH finds
    tests         every test that needs a GPU (pytest -m gpu), a process per file
    sanitizer     compute-sanitizer, memcheck and racecheck, over every kernel on small shapes (bench/sanitize.py)
    check         each kernel that is to be timed, against the reference in float64; compiles what the benchmarks need
    benchmarks    convolutions, spherical harmonics and segment ops by family; the first call with cold and warm caches

A step that fails does not stop the next. Logs: build/gpu/logs; results: bench/results. With OUT in the environment,
both are copied there, in at most 8 files. Exit code 1 if a step failed. --rehearse goes through the same lines without
a GPU: on the CPU, at tiny sizes, results in build/gpu.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import sysconfig
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

from bench import report
from bench.gpu_jobs import FAMILIES, Job, jobs

ROOT = Path(__file__).resolve().parents[1]
TOTAL = 530  # seconds
PROBE = """
import json, torch
gpu = torch.cuda.is_available()
major, minor = torch.cuda.get_device_capability() if gpu else (9, 0)
print(json.dumps({"gpu": torch.cuda.get_device_name() if gpu else "", "sm": f"{major}{minor}"}))
"""


class Done(NamedTuple):
    """A command that ended: code is None if its time was over."""

    code: int | None
    text: str
    seconds: float


class Outcome(NamedTuple):
    """What a step says: ok, failed or skipped, and why."""

    status: str
    note: str


class Run:
    """Where this run keeps its things, and how it calls commands."""

    def __init__(self, folder: Path, rehearse: bool, tests: list[Path]):
        self.folder, self.rehearse, self.tests = folder, rehearse, tests
        self.device = "cpu" if rehearse else "cuda"
        self.logs, self.site, self.raw = folder / "logs", folder / "site", folder / "raw"
        for made in (self.logs, self.raw):
            shutil.rmtree(made, ignore_errors=True)
            made.mkdir(parents=True)
        self.until = time.monotonic() + TOTAL  # of the step that is running
        self.gpu, self.sm = "", "90"
        self.right: set[tuple[str, str, str, str]] | None = (
            None  # (op, problem, dtype, family) that agree with the reference; None: not checked
        )
        path = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", os.defpath)])
        self.environment = os.environ | {
            "PYTHONPATH": os.pathsep.join([str(self.site), str(ROOT)]),
            "PYTHONSAFEPATH": "1",  # not the eqtp of the current folder, which has neither kernels nor _native
            "PATH": path,
            "EQTP_CACHE_DIR": str(folder / "cache"),
            "TRITON_CACHE_DIR": str(folder / "triton"),
        }

    def call(self, name: str, command: list, limit: float = 600, **environment) -> Done:
        """Runs a command in the repository root, its output in logs/<name>.log, until it ends or the step's time is
        over."""
        start, file = time.monotonic(), self.logs / f"{name}.log"
        limit = max(0.0, min(limit, self.until - start))
        with file.open("w") as log:
            log.write(f"$ {' '.join(map(str, command))}\n")
            log.flush()
            try:
                child = subprocess.Popen(
                    list(map(str, command)), cwd=ROOT, env=self.environment | environment, stdin=subprocess.DEVNULL, stdout=log, stderr=log,
                    start_new_session=True,
                )  # fmt: skip
            except OSError as error:
                return Done(127, str(error), 0.0)
            try:
                code = child.wait(limit)
            except subprocess.TimeoutExpired:
                code = None
                with suppress(ProcessLookupError):
                    os.killpg(child.pid, signal.SIGKILL)  # the group that this child leads
                child.wait()
        return Done(code, file.read_text(errors="replace"), time.monotonic() - start)

    def python(self, name: str, *arguments, **environment) -> Done:
        return self.call(name, [sys.executable, *arguments], **environment)

    def parallel(self, function, items: list, workers: int) -> list:
        with ThreadPoolExecutor(max(1, min(workers, os.cpu_count() or 1))) as pool:
            return list(pool.map(function, items))


def last_line(text: str) -> str:
    """The last line that says something, short."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return lines[-1][:160] if lines else ""


def ended(done: Done) -> str:
    return "its time was over" if done.code is None else f"exit code {done.code}: {last_line(done.text)}"


def link(site: Path, with_native: bool) -> None:
    """site/eqtp: the package as it is installed, made of links to the source tree."""
    package = site / "eqtp"
    shutil.rmtree(site, ignore_errors=True)
    package.mkdir(parents=True)
    for path in (ROOT / "eqtp").iterdir():
        if path.name != "__pycache__" and (with_native or not path.name.startswith("_native")):
            (package / path.name).symlink_to(path)
    for folder in ("kernels", "csrc"):
        (package / folder).symlink_to(ROOT / folder)


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


def why_no_build(path: str) -> str | None:
    """What is missing to compile eqtp._native, or None."""
    header = Path(sysconfig.get_path("include"), "Python.h")
    if not header.exists():
        return f"{header} is missing (Python's development files)"
    if shutil.which("cmake", path=path) is None:
        return "cmake is missing"
    if not os.environ.get("CXX") and not any(shutil.which(name, path=path) for name in ("c++", "g++", "clang++")):
        return "there is no C++ compiler"
    return None


def build(run: Run) -> Outcome:
    """eqtp._native by CMake itself, with setup.py's options: no pip, no setuptools."""
    path, folder = run.environment["PATH"], run.folder / "cmake"
    if missing := why_no_build(path):
        return Outcome("skipped", f"{missing}; going on without the family native")
    headers = Path(importlib.util.find_spec("torch").origin).parent / "include"
    if (headers / "pybind11" / "pybind11.h").exists():
        pybind11 = f"-DEQTP_PYBIND11_INCLUDE={headers}"
    else:
        import pybind11 as package

        pybind11 = f"-Dpybind11_DIR={package.get_cmake_dir()}"
    toolkits = [
        Path(home, "bin", "nvcc")
        for home in (os.environ.get("CUDA_HOME"), os.environ.get("CUDA_PATH"), "/usr/local/cuda")
        if home
    ]
    nvcc = os.environ.get("CUDACXX") or shutil.which("nvcc", path=path) or next(filter(Path.exists, toolkits), None)
    arguments = [
        "-DCMAKE_BUILD_TYPE=Release",
        f"-DPython_EXECUTABLE={sys.executable}",
        f"-DEQTP_EXT_SUFFIX={sysconfig.get_config_var('EXT_SUFFIX')}",
        f"-DCMAKE_LIBRARY_OUTPUT_DIRECTORY={run.site / 'eqtp'}",
        pybind11,
        f"-DEQTP_CUDA={'ON' if nvcc else 'OFF'}",
        f"-DEQTP_CUDA_ARCHS={run.sm}-real",
        *(["-GNinja"] if shutil.which("ninja", path=path) else []),
    ]
    shutil.rmtree(folder, ignore_errors=True)  # of another machine, perhaps
    done = run.call("configure", ["cmake", "-S", ROOT, "-B", folder, *arguments])
    if done.code == 0:
        done = run.call("build", ["cmake", "--build", folder, "-j", os.cpu_count() or 1])
    if done.code != 0:
        return Outcome("failed", ended(done))
    probe = run.python("native", "-c", "from eqtp import _native as n; print('CUDA', n.has_cuda, n.cuda_architectures)")
    if probe.code != 0:
        return Outcome("failed", ended(probe))
    return (
        Outcome("ok", last_line(probe.text)) if nvcc else Outcome("skipped", "nvcc is missing: built for the CPU only")
    )


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
            bad.append(
                f"{file.name} ({missing[0] if missing and done.code == 2 else ended(done) if done.code is None else line})"
            )
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
        wanted |= dict.fromkeys(tasks if job.op != "first_call" else [])

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
        whole = {row["problem"] for row in rows} - {
            row["problem"] for row in rows[-1:]
        }  # those before the one that broke
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


def benchmarks(run: Run) -> Outcome:
    """Every job, the most important first."""
    failed, late = [], []
    for job in jobs(run.rehearse):
        if time.monotonic() > run.until - 3:
            late.append(job.name)
            continue
        print(f"  {job.name} ...", flush=True)
        if why := (first_call if job.op == "first_call" else time_job)(run, job):
            failed.append(why)
        save(run)
    rows = report.read(run.raw)
    notes = [f"{len(rows)} results", *failed, *([f"no time left for {', '.join(late)}"] if late else [])]
    return Outcome("failed" if failed or late or not rows else "ok", "; ".join(notes))


def save(run: Run) -> None:
    """The results as files, and copies of them and of the logs in OUT: at most 8 files, whatever happens after this."""
    rows, files = report.read(run.raw), []
    if rows:
        machine = "rehearsal" if run.rehearse else "cuda-" + re.sub(r"\W+", "-", run.gpu.lower()).strip("-")
        files = report.write(rows, run.folder / "results" if run.rehearse else ROOT / "bench" / "results", machine)
    whole = run.folder / "gpu.log"
    logs = sorted(run.logs.glob("*.log"), key=lambda path: path.stat().st_mtime)
    whole.write_text("\n".join(path.read_text(errors="replace")[-60_000:] for path in logs))
    if out := os.environ.get("OUT"):
        tables = [path for path in files if path.suffix == ".md"]
        for path in [whole, *tables, *(path for path in files if path not in tables)][:8]:
            shutil.copy(path, out)


# step -> (what it does, seconds that are kept for it; what earlier ones leave is added)
STEPS = {"environment": (environment, 40), "build": (build, 130), "tests": (tests, 110), "sanitizer": (sanitizer, 50),
         "check": (check, 70), "benchmarks": (benchmarks, 130)}  # fmt: skip


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python3 -m bench.gpu", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rehearse", action="store_true", help="without a GPU: on the CPU, tiny sizes")
    parser.add_argument("--folder", type=Path, default=ROOT / "build" / "gpu")
    parser.add_argument(
        "--steps", type=lambda text: text.split(","), default=list(STEPS), help="some of the steps, by comma"
    )
    parser.add_argument(
        "--tests", nargs="+", type=Path, default=[], help="test files (default: all with tests for a GPU)"
    )
    options = parser.parse_args(argv)
    if unknown := set(options.steps) - set(STEPS):
        parser.error(f"unknown step {', '.join(sorted(unknown))}; known: {', '.join(STEPS)}")
    if sys.version_info < (3, 11):
        parser.error(f"needs Python 3.11 or newer, this is {sys.version.split()[0]}")
    start = time.monotonic()
    run = Run(options.folder.resolve(), options.rehearse, options.tests)
    link(run.site, with_native="build" not in options.steps)
    table, names = [], [name for name in STEPS if name in options.steps]
    for n, name in enumerate(names):
        step, began = STEPS[name][0], time.monotonic()
        run.until = start + TOTAL - sum(STEPS[later][1] for later in names[n + 1 :])
        print(f"== {name}", flush=True)
        try:
            outcome = step(run)
        except Exception as error:  # of this program; the other steps do not depend on it
            outcome = Outcome("failed", f"{type(error).__name__}: {error}")
        table.append(f"{name:12} {outcome.status:8} {time.monotonic() - began:5.0f} s  {outcome.note}")
        print(table[-1], flush=True)
        save(run)
    print(
        f"\n{report.summary(report.read(run.raw))}\n\n"
        + "\n".join(table)
        + f"\n{time.monotonic() - start:.0f} s; logs in {run.logs}"
    )
    return int(any(" failed " in line[:24] for line in table))


if __name__ == "__main__":
    sys.exit(main())

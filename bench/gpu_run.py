"""How `make gpu` calls commands, each with a time limit and a log, and where its results go."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

from bench import report

ROOT = Path(__file__).resolve().parents[1]
LIMIT = 530  # seconds, of everything


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
        self.until = time.monotonic() + LIMIT  # the end of the step that is running
        self.gpu, self.sm = "", "90"
        # (op, problem, dtype, family) that agree with the reference; None: not checked
        self.right: set[tuple[str, str, str, str]] | None = None
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
                    list(map(str, command)),
                    cwd=ROOT,
                    env=self.environment | environment,
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=log,
                    start_new_session=True,
                )
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
    beside = ("kernels", "csrc")  # in the source tree next to the package, where it is installed in it
    for path in (ROOT / "eqtp").iterdir():
        if path.name not in ("__pycache__", *beside) and (with_native or not path.name.startswith("_native")):
            (package / path.name).symlink_to(path)
    for folder in beside:
        (package / folder).symlink_to(ROOT / folder)


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

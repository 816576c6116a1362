"""What a GPU machine can say about eqtp in 530 seconds: `make gpu`, or `python3 -m bench.gpu`.

Needs a Python (3.11 or newer) with torch, NumPy and pytest, and for the kernels what `python -m eqtp` names: nvcc,
CMake and a C++ compiler (native), CuPy and NVRTC (jit), Triton. Installs nothing and opens no connection. What is
missing is named, and the rest goes on without it.

    environment   what this machine has
    build         eqtp._native for this GPU, and a package folder that PYTHONPATH finds
    tests         every test that needs a GPU (pytest -m gpu), a process per file
    sanitizer     compute-sanitizer, memcheck and racecheck, over every kernel on small shapes (bench/sanitize.py)
    check         each kernel that is to be timed, against the reference in float64; compiles what the benchmarks need
    benchmarks    convolutions, spherical harmonics and segment ops by family; the first call with cold and warm caches;
                  SevenNet-0 as a whole, where sevenn is installed

Each step has its share of the time and is stopped when that is over. With empty caches the time is too short: on an
H200 with 16 cores, compiling took so long that three test files and the sanitizer were stopped, and the first call was
not timed. Name some of the steps, and they get all of the time: --steps build,tests

A step that fails does not stop the next. Logs: build/gpu/logs; results: bench/results. With OUT in the environment,
both are copied there, in at most 8 files. Exit code 1 if a step failed. --rehearse goes through the same lines without
a GPU: on the CPU, at tiny sizes, results in build/gpu.
"""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path

from bench import report
from bench.gpu_run import LIMIT, ROOT, Outcome, Run, link, save
from bench.gpu_steps import STEPS


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
        run.until = start + LIMIT - sum(STEPS[later][1] for later in names[n + 1 :])
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

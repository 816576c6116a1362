"""The benchmarks that there are: the files bench_<op>.py of this folder, each with

    PROBLEMS, PASSES      what can be timed
    CHECK_SIZE            how large a problem is when it is checked
    case(problem, dtype, device=, **size) -> bench.harness.Case
    SMALL                 problems on which the sanitizers watch every kernel of the op
    GPU_JOBS              what `make gpu` times (bench/gpu_jobs.py)

Nothing else lists them.
"""

from __future__ import annotations

import importlib
import pkgutil
from types import ModuleType

import bench
from eqtp.backends import registry


def benchmarks() -> dict[str, ModuleType]:
    """Op -> its benchmark, by name."""
    names = (found.name for found in pkgutil.iter_modules(bench.__path__))
    ops = sorted(name.removeprefix("bench_") for name in names if name.startswith("bench_"))
    return {op: importlib.import_module(f"bench.bench_{op}") for op in ops}


def with_kernels() -> dict[str, ModuleType]:
    """Those of ops that run on an engine: what sanitizers have something to see of."""
    return {op: module for op, module in benchmarks().items() if registry.ops().get(op) is not None}

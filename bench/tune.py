"""Which tuning of the specialised convolution is fastest on this GPU: `python -m bench.tune --problem sevennet-0 --json
FILE`.

Every candidate of every pass is built, compared with the others and timed: the convolution alone, as a CUDA graph,
after the second-level cache has been emptied, median of 7. --choose writes the fastest ones to
eqtp/backends/jit/channelwise_tunings.json, from which eqtp takes them. --compile builds the kernels for sm_90 into
EQTP_CACHE_DIR and needs no GPU. --backend times another family, without candidates.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
from functools import partial
from pathlib import Path

import torch

from bench import harness, machine, peers
from eqtp.backends import registry
from eqtp.backends.jit import channelwise, runtime
from eqtp.backends.jit import channelwise_tables as tables
from eqtp.backends.jit.channelwise_tables import Tuning
from eqtp.backends.jit.toolchain import GPU, SHARED, source
from eqtp.plans.calls import EdgeKind, Edges, Operands, Outputs, Pass
from eqtp.plans.plan import TensorProductPlan
from eqtp.testing import problems
from eqtp.testing.checks import relative_error

REPEAT = 7  # timed calls
PASSES = {"fwd": Pass.FWD, "bwd": Pass.BWD, "bwdbwd": Pass.BWDBWD}
FORWARD = [Tuning(*t) for t in ((3, 4, 4, 8), (3, 4, 3, 8), (3, 4, 2, 8), (3, 2, 4, 16), (2, 4, 4, 8))]
BY_SOURCE = [Tuning(*t) for t in ((2, 2, 4, 16), (3, 2, 3, 16), (2, 4, 2, 8), (2, 4, 3, 8), (2, 2, 4, 32))]
BY_DESTINATION = [Tuning(*t, by_destination=True) for t in ((3, 4, 3, 32), (3, 4, 2, 8), (3, 2, 4, 32))]
SECOND = [Tuning(*t, by_destination=True) for t in ((2, 4, 3, 8), (3, 2, 2, 16), (2, 2, 4, 16), (3, 2, 3, 16))]
# The second order by two kernels
PAIRS = [
    (Tuning(3, 4, 3, 8), Tuning(2, 4, 2, 8, by_destination=True)),
    (Tuning(3, 4, 3, 8), Tuning(2, 2, 4, 16)),
    (Tuning(3, 4, 2, 8), Tuning(3, 2, 3, 16)),
    (Tuning(3, 2, 4, 16), Tuning(3, 2, 3, 16, by_destination=True)),
    (Tuning(3, 2, 4, 32), Tuning(2, 2, 4, 32)),
    (Tuning(3, 4, 4, 8), Tuning(2, 2, 4, 16, by_destination=True)),
]
Candidate = dict[str, Tuning]  # kernel pass -> tuning


def candidates(plan: TensorProductPlan, dtype: torch.dtype, limit: int, chosen: bool) -> dict[str, list[Candidate]]:
    """By pass, those that are different kernels and fit into `limit` bytes of shared memory; chosen: only what eqtp
    takes now."""
    none = Tuning()  # of "second": two kernels
    if chosen:
        now = {p: tables.chosen_tuning(plan.key, p, dtype, limit) for p in tables.KERNEL_PASSES}
        second = {p: now[p] for p in ("fwd_tangent", "bwd_tangent", "second")}
        return {"fwd": [{"fwd": now["fwd"]}], "bwd": [{"bwd": now["bwd"]}], "bwdbwd": [second]}
    every = {
        "fwd": [{"fwd": t} for t in FORWARD],
        "bwd": [{"bwd": t} for t in BY_SOURCE + BY_DESTINATION],
        "bwdbwd": [{"fwd_tangent": a, "bwd_tangent": b, "second": none} for a, b in PAIRS]
        + [{"second": t} for t in SECOND],
    }

    found = {}
    for name, choices in every.items():
        different = {}
        for c in choices:
            kernels = {p: t for p, t in c.items() if p != "second" or t.by_destination}
            if all(tables.block_bytes(plan, p, dtype, t) <= limit for p, t in kernels.items()):
                made = [channelwise.kernels_of(plan.key, p, dtype, "GRAPH", t) for p, t in kernels.items()]
                different.setdefault(tuple((k.main, k.tables.text) for k in made), c)
        found[name] = list(different.values())
    return found


def compile_all(plans, dtype: torch.dtype, chosen: bool, arch: str, limit: int) -> int:
    """Builds the kernels of all candidates into the cache; how many programs."""
    programs = set()
    for plan in plans:
        for choices in candidates(plan, dtype, limit, chosen).values():
            for p, t in {(p, t) for c in choices for p, t in c.items() if p != "second" or t.by_destination}:
                k = channelwise.kernels_of(plan.key, p, dtype, "GRAPH", t)
                programs.add((source(channelwise.FILE) + k.tables.text, k.names))
    runtime.compile_all(programs, arch)
    return len(programs)


def operands(plan: TensorProductPlan, graph, dtype: torch.dtype) -> dict[str, tuple[Operands, Outputs]]:
    """Random inputs and outputs full of NaN for each pass."""
    transposed = graph.transpose()
    edges = Edges(graph.src, graph.dst, *graph.csr(), *transposed.csr(), EdgeKind.SORTED)

    def number(seed, *shape):
        return harness.random(*shape, dtype=dtype, seed=seed, device=graph.src.device, grad=False)

    shapes = {
        "x": (graph.num_src, plan.dim_in1),
        "y": (graph.num_edges, plan.dim_in2),
        "w": (graph.num_edges, plan.weight_numel),
        "g": (graph.num_dst, plan.dim_out),
    }
    x, y, w, g = (number(seed, *shape) for seed, shape in enumerate(shapes.values(), 1))
    along = [number(seed, *shapes[n]) for seed, n in enumerate("xyw", 5)]

    def outputs(wanted):
        of = {"g": g, "x": x, "y": y, "w": w}
        return Outputs(*(torch.full_like(t, torch.nan) if n in wanted else None for n, t in of.items()))

    none = [None] * 3
    return {
        "fwd": (Operands(x, y, w, None, *none, edges), outputs("g")),
        "bwd": (Operands(x, y, w, g, *none, edges), outputs("xyw")),
        "bwdbwd": (Operands(x, y, w, g, *along, edges), outputs("gxyw")),
    }


def milliseconds(call) -> float:
    """Median of REPEAT replays of a CUDA graph of the call, each with an empty second-level cache."""
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        call()
    return statistics.median(harness.clock(graph.replay, REPEAT + 2, "cuda")[2:])


def time_plan(name: str, graph, dtype: torch.dtype, backend: str, chosen: bool) -> list[dict]:
    """A row for each candidate of each pass."""
    plan, rows = problems.plan(name), []
    made = channelwise.Channelwise(GPU)
    every = candidates(plan, dtype, GPU.shared(graph.src.device), chosen) if backend == "jit" else {}
    for pass_, (inputs, outputs) in operands(plan, graph, dtype).items():
        first = None
        for candidate in every.get(pass_, [{}]):
            made.tuning = lambda key, p, *_, c=candidate: c.get(p, Tuning())
            run = made.run if backend == "jit" else registry.kernel(backend, "channelwise").run
            call = partial(run, plan.key, PASSES[pass_], inputs, outputs)
            call()
            results = [t.clone() for t in outputs if t is not None]
            first = first or results
            error = max(map(relative_error, results, first))
            row = {"problem": name, "pass": pass_, "dtype": str(dtype)[6:], "backend": backend, "error": error}
            row |= {"tuning": {p: list(t) for p, t in candidate.items()}}
            rows.append(row | {"ms": milliseconds(call)})
            words = " ".join(f"{p} {','.join(map(str, map(int, t)))}" for p, t in candidate.items())
            print(f"{name:17} {pass_:7} {rows[-1]['ms']:7.3f} ms  differs by {error:.0e}  {words}", flush=True)
    return rows


def choose(rows: list[dict], file: Path, about: dict) -> None:
    """The fastest candidate of each plan and pass, into `file`, beside what is there of other plans."""
    found = json.loads(file.read_text()) if file.exists() else {"plans": {}}
    best: dict[tuple, dict] = {}
    for row in rows:
        at = (row["problem"], row["pass"])
        if at not in best or row["ms"] < best[at]["ms"]:
            best[at] = row
    for (name, _), row in best.items():
        tunings = found["plans"].setdefault(tables.shape_of(problems.plan(name)), {"problem": name})
        tunings |= row["tuning"]
    file.write_text(json.dumps(found | {"measured": about}, indent=1) + "\n")


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m bench.tune", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--problem", nargs="+", default=["mace-medium", "sevennet-0"])
    parser.add_argument("--graph", default="diamond:5")
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--backend", default="jit")
    parser.add_argument("--chosen", action="store_true", help="only what eqtp takes now")
    parser.add_argument("--compile", action="store_true", help="for sm_90, without a GPU")
    parser.add_argument("--choose", action="store_true", help="keep the fastest")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args(argv)
    dtype, plans = getattr(torch, options.dtype), [problems.plan(name) for name in options.problem]
    if options.compile:
        print(compile_all(plans, dtype, options.chosen, "90", SHARED[9, 0]), "programs")
        return 0
    graph, rows = harness.neighbours(options.graph, 1000, 20_000, "cuda"), []
    about = {"gpu": torch.cuda.get_device_name(), "driver": machine.driver_version(), "graph": options.graph}
    about |= {"nodes": graph.num_dst, "edges": graph.num_edges, "versions": peers.versions("cuda")}
    for name in options.problem:
        rows += time_plan(name, graph, dtype, options.backend, options.chosen)
        if options.json:
            options.json.write_text("".join(json.dumps(row | about) + "\n" for row in rows))
    if options.choose:
        choose(rows, tables.TUNINGS, about)
    return 0


if __name__ == "__main__":
    sys.exit(main())

"""Time one op against its peers, in one run: `python -m bench <op> --problem ID ...` in the repository root.

    python -m bench tensor_product_conv --problem mace-medium sevennet-0 \\
        --against e3nn,e3nn-script,cueq,cueq-irmul --pass fwd,bwd,bwdbwd --json bench/results/conv.jsonl
    python -m bench tensor_product_conv --problem mace-large --graph diamond:5 --backend native,reference
    python -m bench spherical_harmonics --problem lmax3 lmax8 --points 100000 --against e3nn,sphericart,cueq
    python -m bench tensor_product_conv --problem mace-large --graph diamond:5 --device cuda --backend jit,native,triton

`python -m bench products --help`: all products of two features against each other (bench/products.py).
`python -m bench models --help`: whole models, energy, forces and stress (bench/models.py).

Ops are the files bench_<op>.py; problems are those of eqtp/testing/problems.py ("all": every one); peers are
listed in bench/peers.py. Each problem is first checked at a small size: output and gradients of each
pass, for each operand, path by path, against the reference in float64. A kernel that fails is not timed:
the run ends with exit code 1.

Peers take turns with us (harness.time_together). A peer that is not installed, or cannot do the problem,
is named with its reason. A table goes to stdout, a progress bar to stderr. Columns: median, 20 and 80
percentile; compulsory bytes and operations per second, and their fraction of what this machine was just
measured to do; peak memory that one call adds; `ratio`: the time over that of our first backend.

A GPU is timed with CUDA events, its cache emptied before each call (bench/harness.py); `make gpu` does all that
is of interest on one. --check stops after the check, and writes what it found to the JSON file. --keep-going
names a backend that fails the check, goes on without it, and ends with exit code 1.

--json FILE gets one object per line, ours and peers': op, problem, pass, backend (or peer), dtype, device,
threads (null on a GPU), ms, ms_p20, ms_p80, ratio_to (peer: their ms / ours), bandwidth_fraction (of the
read bandwidth; on a GPU of the copy bandwidth, the floor's), flop_fraction, peak_mb (null where the system
cannot tell), gb_s, gflop_s, repeats, missing (peer or backend: why), size, machine, versions. What a pass
is, and what its bytes are: bench/harness.py.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib
import json
import sys
from pathlib import Path

import torch

import eqtp
from bench import harness, machine, peers
from bench.command import command, listed
from bench.harness import STAGES, TITLES, WHOLE, Missing, WrongKernel
from bench.registry import benchmarks

try:
    from tqdm import tqdm
except ImportError:  # a GPU machine has what it has

    class tqdm:
        """No progress bar."""

        def __init__(self, **_):
            pass

        def __enter__(self):
            return self

        def __exit__(self, *_):
            pass

        def update(self, *_):
            pass

        clear = set_description = lambda self, *_, **__: None


OPS = sorted(benchmarks())
DTYPES = {"float32": torch.float32, "float64": torch.float64, "bfloat16": torch.bfloat16}
# how closely a peer with the same values must agree to be compared
SAME_OPERATOR = {
    torch.float64: 1e-10,
    torch.float32: 1e-4,
    torch.bfloat16: 5e-2,
}


WRONG, AGREES = "wrong", "agrees with the reference"  # results of --check; the first is followed by a reason


def parse(argv: list[str] | None) -> argparse.Namespace:
    parser = command("python -m bench", __doc__)
    parser.add_argument("op", choices=OPS)
    parser.add_argument("--problem", nargs="+", required=True, metavar="ID", help='problems of the op, or "all"')
    parser.add_argument(
        "--backend", type=listed, help="our backends, the first is compared (default: native; on a GPU: jit)"
    )
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--against", type=listed, default=[], metavar="PEERS", help=", ".join(peers.NAMES))
    parser.add_argument(
        "--pass", type=listed, dest="passes", metavar="PASSES", help="fwd,bwd,bwdbwd (default: all); grad,gradgrad"
    )
    parser.add_argument("--dtype", choices=DTYPES, default="float32")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--nodes", type=int, default=1000)
    parser.add_argument("--edges", type=int, default=20_000, help="edges, or rows of tensor_product")
    parser.add_argument(
        "--graph", default="random", help="random, sorted, diamond:5, flashtp, ... (eqtp/testing/problems.py)"
    )
    parser.add_argument("--points", type=int, default=100_000, help="vectors of spherical_harmonics")
    parser.add_argument("--repeat", type=int, default=5, help="rounds in which all take turns")
    parser.add_argument("--min-time", type=float, default=1.0, help="seconds for each quick one, over all rounds")
    parser.add_argument("--warmup", type=int, default=2, help="calls before the clock starts")
    parser.add_argument("--check", action="store_true", help="check the backends, time nothing")
    parser.add_argument("--keep-going", action="store_true", help="leave out a backend that is wrong")
    parser.add_argument("--json", type=Path, metavar="FILE")
    options = parser.parse_args(argv)
    module = benchmarks()[options.op]
    options.passes = options.passes or list(module.PASSES)
    options.backend = options.backend or ["jit" if options.device == "cuda" else "native"]
    if options.device == "cuda" and not torch.cuda.is_available():
        parser.error("--device cuda: torch finds no GPU; python -m eqtp says what is missing")
    if options.problem == ["all"]:
        options.problem = list(module.PROBLEMS)
    for what, given, known in (
        ("problem", options.problem, module.PROBLEMS),
        (
            "pass",
            options.passes,
            (*module.PASSES, *(alone for alone, pass_ in WHOLE.items() if pass_ in module.PASSES)),
        ),
        ("peer", options.against, peers.NAMES),
        ("backend", options.backend, (*eqtp.backends(), "auto")),
    ):
        for name in given:
            if name not in known:
                parser.error(f"{options.op}: unknown {what} {name!r}; known: {', '.join(known)}")
    for name in ("nodes", "edges", "points", "repeat", "warmup", "threads"):
        if getattr(options, name) < 1:
            parser.error(f"--{name} must be at least 1, got {getattr(options, name)}")
    return options


def gate(module, problem: str, options: argparse.Namespace) -> tuple[list[str], dict[str, str]]:
    """Check our backends, and that each comparable peer computes the same operator, at a small size.

    Returns the contestants that may be timed and the reason of each that may not. Raises WrongKernel.
    """
    dtype = DTYPES[options.dtype]
    case = module.case(problem, dtype, device=options.device, **module.CHECK_SIZE)
    inputs = tuple(case.inputs.values())
    ready, missing = [], {}
    for backend in options.backend:
        try:
            kernel = case.ours(backend)
        except Missing as reason:
            missing[backend] = str(reason)
            continue
        try:
            harness.check(case, kernel, f"backend {backend}", options.passes)
        except Exception as reason:
            if not options.keep_going:
                raise
            missing[backend] = f"{WRONG}: {harness.reason_of(reason)}"
            continue
        ready.append(backend)
    for peer in options.against:
        try:
            f = case.peer(peer)
            if peer in peers.SAME_VALUES:
                harness.check(case, f, peer, ["fwd"], SAME_OPERATOR[dtype])
            elif (shape := f(*inputs).shape) != case.cotangent.shape:
                raise Missing(f"its output is {list(shape)}, ours is {list(case.cotangent.shape)}")
            ready.append(peer)
        except WrongKernel as reason:
            missing[peer] = f"computes something else: {reason}"
        except Missing as reason:
            missing[peer] = str(reason)
        except Exception as error:  # whatever a peer does, it is named with its reason
            missing[peer] = harness.reason_of(error)
    return ready, missing


def records(case, options, pass_: str, timings: dict, missing: dict, rates: machine.Machine) -> list[dict]:
    """One object per contestant, as the JSON file gets it."""
    total = {kind: sum(getattr(case, kind)[stage] for stage in STAGES[pass_]) for kind in ("bytes", "flops")}
    rows = []
    for who, timing in timings.items():
        ours = who in options.backend
        rows.append({
            "op": options.op,
            "problem": case.problem,
            "pass": pass_,
            "backend": who,
            "dtype": options.dtype,
            "device": options.device,
            "threads": rates.threads and options.threads,
            "ms": timing.ms,
            "ms_p20": timing.quantile(0.2),
            "ms_p80": timing.quantile(0.8),
            "ratio_to": {p: t.ms / timing.ms for p, t in timings.items() if ours and p in options.against},
            "bandwidth_fraction": total["bytes"] / timing.ms / 1e6 / rates.bandwidth[1],
            "flop_fraction": total["flops"] / timing.ms / 1e6 / rates.gflop_s,
            "peak_mb": timing.peak_mb,
            "gb_s": total["bytes"] / timing.ms / 1e6,
            "gflop_s": total["flops"] / timing.ms / 1e6,
            "repeats": len(timing.calls),
            "missing": missing,
            "size": case.size | ({"graph": options.graph} if "nodes" in case.size else {}),
            "machine": rates.row(),
            "versions": {"eqtp": eqtp.__version__, **peers.versions(options.device)},
        })  # fmt: skip
    return rows


def size_text(size: dict) -> str:
    return ", ".join(f"graph {value}" if key == "graph" else f"{value:,} {key}" for key, value in size.items())


def column(who) -> int:
    """How wide a column of these names is."""
    return max(18, *(len(name) + 2 for name in who))


def table(rows: list[dict], missing: dict[str, str], ours: list[str]) -> str:
    """The rows of one problem and pass, and who is missing and why. `ours`: names of our backends."""
    lines, wide = [""], column([*(row["backend"] for row in rows), *missing])
    if rows:
        row = rows[0]
        title = (row["op"], row["problem"], TITLES[row["pass"]], row["dtype"], size_text(row["size"]))
        of = "of copy" if row["device"] == "cuda" else "of read"
        columns = f"{'ms':>10} {'p20 - p80':>19} {'GB/s':>7} {of:>8} {'GFLOP/s':>8} {'of peak':>8}"
        lines += ["  ".join(title), f"  {'':{wide}}{columns} {'peak MB':>8} {'ratio':>8}"]
    base = next((row for row in rows if row["backend"] in ours), None)
    for row in rows:
        who = row["backend"]
        spread = f"{row['ms_p20']:.4g} - {row['ms_p80']:.4g}"
        peak = "-" if row["peak_mb"] is None else f"{row['peak_mb']:.1f}"
        ratio = "" if base in (None, row) else f"{row['ms'] / base['ms']:.1f}x"
        moved = f"{row['gb_s']:7.2f} {row['bandwidth_fraction']:8.1%}"
        computed = f"{row['gflop_s']:8.2f} {row['flop_fraction']:8.1%}"
        line = f"  {who:{wide}}{row['ms']:10.4g} {spread:>19} {moved} {computed} {peak:>8} {ratio:>8}"
        line += f"  {peers.note(who, row['problem'])}"
        lines.append(line.rstrip())
    return "\n".join([*lines, *(f"  {who:{wide}}missing: {why}" for who, why in missing.items())])


def call_once(case: harness.Case, options: argparse.Namespace) -> None:
    """Each backend at the size that is timed: Triton tunes at its first call, which must not be the small one of the
    check."""
    for backend in options.backend:
        for pass_ in options.passes if backend != "reference" else ():
            with contextlib.suppress(Exception):  # what is wrong, the check says
                harness.call_of(case.ours(backend), tuple(case.inputs.values()), case.cotangent, pass_)()


def run_problem(module, problem: str, options, rates, bar: tqdm, write) -> None:
    """Check one problem, then time all its passes. Raises WrongKernel."""
    bar.set_description(f"{problem}: checking")
    sizes = {name: getattr(options, name) for name in ("nodes", "edges", "graph", "points", "device")}
    if not options.check:
        case = module.case(problem, DTYPES[options.dtype], **sizes)
        if options.device == "cuda":
            call_once(case, options)
    ready, missing = gate(module, problem, options)
    options.wrong += [f"{problem}: {who}: {why}" for who, why in missing.items() if why.startswith(WRONG)]
    if options.check:
        said = {who: missing.get(who, AGREES) for who in (*options.backend, *options.against)}
        rows = [
            {"op": options.op, "problem": problem, "dtype": options.dtype, "backend": who, "check": why}
            for who, why in said.items()
        ]
        return write(
            "\n".join(
                [
                    f"{options.op}  {problem}  {options.dtype}",
                    *(f"  {who:{column(said)}}{why}" for who, why in said.items()),
                ]
            ),
            rows,
        )
    inputs = tuple(case.inputs.values())
    functions = {who: case.ours(who) if who in options.backend else case.peer(who) for who in ready}
    for pass_ in options.passes:
        calls = {who: harness.call_of(f, inputs, case.cotangent, pass_) for who, f in functions.items()}

        def step(who: str, pass_: str = pass_) -> None:
            bar.set_description(f"{problem} {TITLES[pass_]}: {who}", refresh=False)
            bar.update()

        times = {"rounds": options.repeat, "min_time": options.min_time, "warmup": options.warmup}
        timings, failed = harness.time_together(calls, **times, step=step, device=options.device)
        # ours may not fail where a peer may, except that the reference may need too much memory
        for backend in options.backend:
            if backend in failed and not (backend == "reference" and "OutOfMemory" in failed[backend]):
                raise WrongKernel(f"{problem}, {TITLES[pass_]}: backend {backend} raised {failed[backend]}")
        away = missing | failed
        rows = records(case, options, pass_, timings, away, rates)
        bar.update(len(missing) * (options.repeat + 1) + len(failed) * options.repeat)
        write(table(rows, away, options.backend), rows)


def main(argv: list[str] | None = None) -> int:
    argv = sys.argv[1:] if argv is None else argv
    if argv[:1] in (["products"], ["models"]):  # other questions, with options of their own
        return importlib.import_module(f"bench.{argv[0]}").main(argv[1:])
    options = parse(argv)
    torch.set_num_threads(options.threads)
    module = benchmarks()[options.op]
    rates = None if options.check else machine.measure(DTYPES[options.dtype], device=options.device)
    versions = ", ".join(f"{name} {version}" for name, version in peers.versions(options.device).items())
    print(f"{rates or options.device}\neqtp {eqtp.__version__}, {versions}", flush=True)
    if options.json:
        options.json.parent.mkdir(parents=True, exist_ok=True)
        options.json.write_text("")
    turns = len(options.problem) * len(options.passes) * (options.repeat + 1)
    timed, options.wrong = set(), []
    with tqdm(total=turns * (len(options.backend) + len(options.against)), file=sys.stderr, mininterval=0.5) as bar:

        def write(text: str, rows: list[dict]) -> None:
            timed.update(row["backend"] for row in rows if row.get("check", AGREES) == AGREES)
            bar.clear()
            print(text, flush=True)
            if options.json:
                with options.json.open("a") as file:
                    file.writelines(json.dumps(line) + "\n" for line in rows)

        try:
            for problem in options.problem:
                run_problem(module, problem, options, rates, bar, write)
        except WrongKernel as error:
            print(f"refused to time a wrong kernel: {error}", file=sys.stderr)
            return 1
    if options.wrong:
        print("wrong kernels, which were not timed:", *options.wrong, sep="\n  ", file=sys.stderr)
        return 1
    if not timed & set(options.backend):
        print("none of our backends could run", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())

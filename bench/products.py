"""Which product is quick, which is expressive, which is exact: `python -m bench products ...` in the repository root.

    python -m bench products --layout siso,mimo --lmax 1..10 --channels 1,32 --json bench/results/products-1.json
    python -m bench products --lmax 4,8 --channels 1 --passes fwd,bwd --against e3nn,published,pof --pof PATH
    python -m bench products --targets    the named comparisons, with what was to be reached:
                                          bench/results/products-targets-<threads>.json
    python -m bench products --rule       sparse against grid, for AUTO of eqtp/ops/gaunt_tensor_product.py

Layouts and products: bench/product_methods.py; passes, the clock and taking turns: bench/harness.py. Each method is
first compared with the reference in float64 at a small size; one of ours that is off by more than 1e-5 (float64: 1e-12)
is not timed and the run ends with exit code 1.

Columns: median; microseconds of a call per degree of freedom; compulsory bytes (each operand once, each result once, of
the degrees that the layout has) per second, and the floor, those bytes at the measured bandwidth of a copy, as a
fraction of the time; for Gaunt products operations of the folded grid per second as a fraction of the measured peak;
largest error against float64, and the largest deviation from equivariance under random rotations, both relative to the
largest value.

A method that would hold a tensor of more than --max-gb, or that took more than --max-seconds for a call at the last
smaller lmax, is left out; the reason is printed. --json FILE gets a line with machine, versions and command, then a
line per method, layout, lmax, channels and pass: names as in `python -m bench --help`, and layout, lmax, channels,
batch, product, dof, us_per_dof, floor_fraction, error, equivariance_error; `missing` (method: why it is not there) is
on the first line of those that took turns.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

import torch

import eqtp
from bench import harness, machine, peers, price_of_freedom, product_targets
from bench import product_methods as methods
from bench.command import command, listed
from bench.harness import TITLES, TOLERANCE, Missing, WrongKernel
from eqtp.math.sphere import folded_flops

DTYPES = {"float32": torch.float32, "float64": torch.float64}
PASSES = ("fwd", "bwd", "bwdbwd")
SAME = {torch.float32: 1e-5, torch.float64: 1e-10}  # how far a peer may be off, else it calculates something else


def integers(text: str) -> list[int]:
    """ "1..3,6" -> [1, 2, 3, 6]. Raises ValueError."""
    found = []
    for part in listed(text):
        first, dots, last = part.partition("..")
        found += range(int(first), int(last) + 1) if dots else [int(first)]
    return found


def parse(argv: list[str]) -> argparse.Namespace:
    parser = command("python -m bench products", __doc__)
    parser.add_argument("--layout", type=listed, default=list(methods.LAYOUTS), help="siso,simo,mimo (default: all)")
    parser.add_argument("--lmax", type=integers, default=list(range(1, 11)), help="such as 1..10 or 1,2,4")
    parser.add_argument("--channels", type=integers, default=[1, 32, 128])
    parser.add_argument("--batch", type=int, default=1000)
    parser.add_argument("--products", type=listed, default=list(methods.OURS), help=", ".join(methods.OURS))
    parser.add_argument("--against", type=listed, default=[], help=", ".join((*methods.PEERS, *methods.GROUPS)))
    parser.add_argument("--passes", type=listed, default=["fwd"], help="fwd,bwd,bwdbwd (default: fwd)")
    parser.add_argument("--backend", default="auto", help="of our kernels (default: auto)")
    parser.add_argument("--pof", metavar="PATH", help="checkout of Price of Freedom")
    parser.add_argument("--dtype", choices=DTYPES, default="float32")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--repeat", type=int, default=5, help="rounds in which all take turns")
    parser.add_argument("--min-time", type=float, default=0.5, help="seconds for each quick one, over all rounds")
    parser.add_argument("--warmup", type=int, default=2)
    parser.add_argument("--max-gb", type=float, default=4.0)
    parser.add_argument("--max-seconds", type=float, default=5.0)
    parser.add_argument("--targets", action="store_true")
    parser.add_argument("--rule", action="store_true")
    parser.add_argument("--json", type=Path, metavar="FILE")
    options = parser.parse_args(argv)
    options.against = list(
        dict.fromkeys(name for given in options.against for name in methods.GROUPS.get(given, (given,)))
    )
    for what, given, known in (
        ("layout", options.layout, methods.LAYOUTS),
        ("product", options.products, methods.OURS),
        ("peer", options.against, (*methods.PEERS, *methods.GROUPS)),
        ("pass", options.passes, PASSES),
        ("backend", [options.backend], (*eqtp.backends(), "auto")),
    ):
        for name in given:
            if name not in known:
                parser.error(f"products: unknown {what} {name!r}; known: {', '.join(known)}")
    for name in ("batch", "threads", "repeat", "warmup"):
        if getattr(options, name) < 1:
            parser.error(f"--{name} must be at least 1, got {getattr(options, name)}")
    for name in ("lmax", "channels"):
        if not getattr(options, name) or min(getattr(options, name)) < 1:
            parser.error(f"--{name} must be whole numbers of at least 1, such as 1..3,6, got {getattr(options, name)}")
    if options.targets and options.rule:
        parser.error("give one of --targets and --rule")
    options.command = " ".join(
        ["python -m bench products", *("PATH" if word == options.pof else word for word in argv)]
    )
    return options


def ready(problem: methods.Problem, channels: int, options, slow: dict) -> tuple[dict, dict, dict]:
    """The methods that can be timed, their errors, and the reasons of the others. Raises WrongKernel."""
    dtype, found, errors, missing = DTYPES[options.dtype], {}, {}, {}
    for name in (*options.products, *options.against):
        try:
            if name in slow:
                raise Missing(slow[name])
            f = methods.method(name, problem, dtype, options.backend, options.pof)
            if (size := f.bytes * options.batch * channels / 1e9) > options.max_gb:
                raise Missing(f"it would hold a tensor of {size:.1f} GB (--max-gb)")
            error, turned = methods.errors(name, problem, f, dtype)
        except Missing as reason:
            missing[name] = str(reason)
            continue
        except Exception as error:  # whatever a method does, it is named with its reason
            missing[name] = harness.reason_of(error)
            continue
        off = [
            e
            for e in (error, turned)
            if e is not None and not e <= (TOLERANCE if name in methods.OURS else SAME)[dtype]
        ]
        if off and name in methods.OURS:
            raise WrongKernel(f"{name}, {problem.layout}, l = {problem.l}: off by {max(off):.1e} of the largest value")
        if off:
            missing[name] = f"it calculates something else: off by {max(off):.1e}"
            continue
        found[name], errors[name] = f, {"error": error, "equivariance_error": turned}
    return found, errors, missing


def compulsory(problem: methods.Problem, product: str, rows: int, pass_: str, itemsize: int) -> int:
    """Bytes of a pass, as the head of bench/harness.py says, of the degrees that the layout has."""
    operands = 2 * len(problem.components(problem.degrees_in))
    result = len(problem.components(problem.degrees_out)) * (
        len(methods.halves(problem)) if product == "gaunt+odd" else 1
    )
    times = {"fwd": (1, 1), "bwd": (3, 2), "bwdbwd": (6, 3)}[pass_]  # sums over the stages of a pass
    return rows * itemsize * (times[0] * operands + times[1] * result)


def records(
    problem, channels: int, pass_: str, timings: dict, errors: dict, missing: dict, options, rates: machine.Machine
) -> list[dict]:
    """A line per method, as the JSON file gets it."""
    rows = []
    for name, timing in timings.items():
        product = methods.OURS.get(name) or methods.PEERS[name]
        dof = methods.degrees_of_freedom(product, problem)
        size = compulsory(problem, product, options.batch * channels, pass_, DTYPES[options.dtype].itemsize)
        flops = None
        if product.startswith("gaunt") and problem.layout == "mimo":
            once = folded_flops(problem.l, problem.l, problem.lmax_out, odd=product == "gaunt+odd")
            done = options.batch * channels * once * {"fwd": 1, "bwd": 3, "bwdbwd": 6}[pass_]
            flops = done / timing.ms / 1e6 / rates.gflop_s
        rows.append({
            "op": "products", "problem": f"{problem.layout}-l{problem.l}-c{channels}", "pass": pass_,
            "backend": name, "product": product, "layout": problem.layout, "lmax": problem.l,
            "channels": channels, "batch": options.batch, "dof": dof,
            "dtype": options.dtype, "device": "cpu", "threads": options.threads,
            "ms": timing.ms, "ms_p20": timing.quantile(0.2), "ms_p80": timing.quantile(0.8),
            "us_per_dof": timing.ms * 1e3 / dof, "gb_s": size / timing.ms / 1e6,
            "floor_fraction": size / timing.ms / 1e6 / rates.copy_gb_s, "flop_fraction": flops,
            **errors[name], "peak_mb": timing.peak_mb, "repeats": len(timing.calls), "ratio_to": {},
            "missing": {} if rows else missing,
        })  # fmt: skip
    return rows


def conditions(options, rates: machine.Machine) -> dict:
    """The first line of the JSON file: what holds for all others."""
    return {
        "op": "conditions",
        "threads": options.threads,
        "dtype": options.dtype,
        "ratio_to": {},
        "family": options.backend,
        "command": options.command,
        "machine": rates.row(),
        "versions": {"eqtp": eqtp.__version__, **peers.versions(), **price_of_freedom.versions()},
    }


def table(rows: list[dict], missing: dict[str, str], title: str) -> str:
    """The lines of one problem and pass, and who is missing and why."""

    def percent(value):
        return f"{'-':>8}" if value is None else f"{value:8.1%}"

    def small(value):
        return f"{'-':>9}" if value is None else f"{value:9.1e}"

    lines = ["", title]
    if rows:
        head = f"  {'':17}{'ms':>10} {'dof':>5} {'us/dof':>9} {'GB/s':>7}"
        lines.append(f"{head} {'of floor':>8} {'of peak':>8} {'error':>9} {'turned':>9}")
    for row in rows:
        line = f"  {row['backend']:17}{row['ms']:10.4g} {row['dof']:5} {row['us_per_dof']:9.3g} {row['gb_s']:7.2f}"
        fractions = f"{percent(row['floor_fraction'])} {percent(row['flop_fraction'])}"
        lines.append(f"{line} {fractions} {small(row['error'])} {small(row['equivariance_error'])}")
    why = {reason: [who for who, its in missing.items() if its == reason] for reason in missing.values()}
    return "\n".join([*lines, *(f"  missing: {', '.join(who)}: {reason}" for reason, who in why.items())])


def sweep(options, rates: machine.Machine, write) -> None:
    """All layouts, channels and degrees. Raises WrongKernel."""
    times = {"rounds": options.repeat, "min_time": options.min_time, "warmup": options.warmup}
    for layout in options.layout:
        for channels in options.channels:
            slow = {pass_: {} for pass_ in options.passes}
            for l in options.lmax:
                problem = methods.Problem(layout, l)
                skip = {name: why for name, why in slow[options.passes[0]].items()}
                found, errors, missing = ready(problem, channels, options, skip)
                x1, x2 = methods.operands(problem, options.batch, channels, DTYPES[options.dtype])
                for pass_ in options.passes:
                    calls, away = {}, dict(missing)
                    for name, f in found.items():
                        if name in slow[pass_]:
                            away[name] = slow[pass_][name]
                            continue
                        try:
                            calls[name] = f.clocked(x1, x2, pass_)
                        except Exception as error:  # named with its reason
                            away[name] = str(error) if isinstance(error, Missing) else harness.reason_of(error)
                    timings, failed = harness.time_together(
                        calls, **times, step=lambda who: print(".", end="", file=sys.stderr, flush=True)
                    )
                    for name, timing in timings.items():
                        if timing.ms > 1e3 * options.max_seconds:
                            slow[pass_][name] = f"it took {timing.ms / 1e3:.1f} s at l = {l} (--max-seconds)"
                    rows = records(problem, channels, pass_, timings, errors, away | failed, options, rates)
                    size = f"{channels} channel{'s' * (channels > 1)}, batch {options.batch:,}"
                    title = f"{layout}, l = {l}, {size}, {TITLES[pass_]}, {options.dtype}"
                    write(table(rows, away | failed, title), rows)


def main(argv: list[str]) -> int:
    options = parse(argv)
    torch.set_num_threads(options.threads)
    rates = machine.measure(DTYPES[options.dtype])
    versions = conditions(options, rates)["versions"]
    print(f"{rates}\n{', '.join(f'{name} {version}' for name, version in versions.items())}", flush=True)
    if options.targets and not options.json:
        options.json = Path("bench") / "results" / f"products-targets-{options.threads}.json"
    if options.json:
        options.json.parent.mkdir(parents=True, exist_ok=True)
        options.json.write_text(json.dumps(conditions(options, rates)) + "\n")
    timed = []

    def write(text: str, rows: list[dict]) -> None:
        timed.extend(rows)
        print(text, flush=True)
        if options.json:
            with options.json.open("a") as file:
                file.writelines(json.dumps(row) + "\n" for row in rows)

    try:
        (product_targets.targets if options.targets else product_targets.rule if options.rule else sweep)(
            options, rates, write
        )
    except WrongKernel as error:
        print(f"refused to time a wrong product: {error}", file=sys.stderr)
        return 1
    if not timed:
        print("nothing could be timed", file=sys.stderr)
        return 1
    return 0

"""Whole models, energy, forces and stress: `python -m bench models ...` in the repository root.

    python -m bench models --model 7net-0 --atoms 64,1000 --against e3nn --json bench/results/sevennet-1.json
    python -m bench models --model 7net-0,7net-l3i5,mace-medium,nequip-l --atoms 64,864,4000 \\
        --against e3nn,openequivariance,cueq --device cuda

Contestants: eqtp (the model after eqtp.accelerate), eqtp-compiled (eqtp.compile of it), and --against: the model as it
comes (e3nn), or through its library's own switch for OpenEquivariance, cuEquivariance or FlashTP. What is not installed
is named and left out. Models, and which have random weights: bench/model_libraries.py.

Structures: copper (fcc, 3.61 A) where that gives the number of atoms exactly, else rock salt (NaCl, 5.64 A) of at least
that many; rattled by 0.05 A. The neighbour list is made before the clock starts; sorting it is in the time.

All results are compared with those of the plain model, at the size that is timed. If ours are off, nothing is timed and
the exit code is 1; a peer that is off is named and left out. Contestants take turns (bench/harness.py). On a GPU a call
is timed from an idle GPU to its end.

Columns: median of a call, 20 and 80 percentile; atoms per second; peak memory that one call adds; start-up: seconds for
loading, accelerating, compiling and the first call, of the first size, while the plain model has run before in this
process; dE and dF: largest difference from the plain model; ratio: the time over that of eqtp. --json FILE gets a line
per contestant, named as in `python -m bench --help`; op: the library; also atoms_s, start_s, from_disk (whether the
compiled program was on disk), de_ev_per_atom, df_ev_per_a.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib.metadata
import importlib.util
import json
import sys
import time
import warnings
from functools import partial
from pathlib import Path
from typing import NamedTuple

import torch

import eqtp
from bench import harness, machine, peers
from bench.command import command, listed
from bench.harness import Missing, WrongKernel
from bench.model_libraries import MODELS, Library

OURS = EAGER, COMPILED = "eqtp", "eqtp-compiled"
PEERS = ("e3nn", "openequivariance", "cueq", "flashtp")
AGREE = {"energy": 2e-6, "forces": 1e-5, "stress": 1e-6}  # eV/atom, eV/A, eV/A^3: float32
PEERS_AGREE = 10  # times as far a peer may be off


class Contestant(NamedTuple):
    """A model that is ready to be timed; from_disk: of a compiled one."""

    model: object
    start_s: float
    from_disk: bool | None = None


def parse(argv: list[str]) -> argparse.Namespace:
    parser = command("python -m bench models", __doc__)
    parser.add_argument("--model", type=listed, default=["7net-0"], help=", ".join(MODELS))
    parser.add_argument("--atoms", type=listed, default=["64", "1000"], help="numbers of atoms (default: 64,1000)")
    parser.add_argument("--against", type=listed, default=["e3nn"], metavar="PEERS", help=", ".join(PEERS))
    parser.add_argument("--without", type=listed, default=[], metavar="OURS", help=f"leave out {EAGER} or {COMPILED}")
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--repeat", type=int, default=5, help="rounds in which all take turns")
    parser.add_argument("--min-time", type=float, default=1.0, help="seconds for each quick one, over all rounds")
    parser.add_argument("--json", type=Path, metavar="FILE")
    options = parser.parse_args(argv)
    known = {"model": MODELS, "against": PEERS, "without": OURS}
    for what, names in known.items():
        for name in getattr(options, what):
            if name not in names:
                parser.error(f"--{what}: unknown name {name!r}; known: {', '.join(names)}")
    if not options.atoms or not all(text.isdecimal() and int(text) for text in options.atoms):
        parser.error(f"--atoms must be whole numbers of at least 1, such as 64,864, got {','.join(options.atoms)}")
    options.atoms = [int(text) for text in options.atoms]
    for name in ("threads", "repeat"):
        if getattr(options, name) < 1:
            parser.error(f"--{name} must be at least 1, got {getattr(options, name)}")
    if options.device == "cuda" and not torch.cuda.is_available():
        parser.error("--device cuda: torch finds no GPU; python -m eqtp says what is missing")
    return options


def crystal(atoms: int):
    """The structure of this many atoms, or of the next larger cube of rock salt."""
    from ase.build import bulk

    n = 1
    while 4 * n**3 < atoms:
        n += 1
    if 4 * n**3 == atoms:
        found = bulk("Cu", "fcc", a=3.61, cubic=True)
    else:
        found, n = bulk("NaCl", "rocksalt", a=5.64, cubic=True), 1
        while 8 * n**3 < atoms:
            n += 1
    found = found.repeat((n, n, n))
    found.rattle(0.05, seed=1)
    return found


def predict(library: Library, model, data) -> dict[str, torch.Tensor]:
    """From an idle GPU to the end of the call."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    out = library.predict(model, data)
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return out


def prepared(library: Library, name: str, who: str, options, data) -> Contestant:
    """A contestant, and the seconds until its first result. Raises Missing for what cannot take part; what else an
    error of ours is, the caller says."""
    start, from_disk = time.perf_counter(), None
    model = library.load(name, options.device, "e3nn" if who in OURS else who)
    try:
        if who in OURS:
            eqtp.accelerate(model)
        if who == COMPILED:
            model = eqtp.compile(model, library.data(model, [crystal(8)] * library.structures, options.device))
            from_disk = model.report.from_disk
    except (ValueError, TypeError, NotImplementedError) as error:  # a model that eqtp does not take
        raise Missing(f"{type(error).__name__}: {error}") from None
    predict(library, model, data)
    return Contestant(model, time.perf_counter() - start, from_disk)


def contestants(library: Library, name: str, options, data) -> tuple[dict[str, Contestant], dict[str, str]]:
    """Those that are ready, and the reason of each that is not. What of ours failed is in options.failed too."""
    found, missing = {}, {}
    for who in [*(who for who in OURS if who not in options.without), *options.against]:
        wait = ": compiles for up to a minute or two, unless that is on disk" if who == COMPILED else ""
        print(f"{name}: {who}{wait}", file=sys.stderr, flush=True)
        try:
            found[who] = prepared(library, name, who, options, data)
        except Missing as reason:
            missing[who] = str(reason)
        except Exception as error:  # a peer may fail in any way; it is named with its reason
            missing[who] = harness.reason_of(error)
            options.failed += [f"{name}: {who}: {missing[who]}"] if who in OURS else []
    return found, missing


def differences(got: dict, expected: dict) -> dict[str, float]:
    """Largest difference by output, of the energy per atom. NaN where a number is none."""
    found = {key: (got[key] - expected[key]).abs().max().item() for key in AGREE}
    return found | {"energy": found["energy"] / len(expected["forces"])}


def gate(library: Library, name: str, found: dict[str, Contestant], data, expected) -> tuple[dict, dict[str, str]]:
    """Differences from the plain model, and peers that are off or fail, with their reason. Raises WrongKernel for
    ours."""
    off, wrong = {}, {}
    for who, contestant in found.items():
        try:
            off[who] = differences(predict(library, contestant.model, data), expected)
            allowed = {what: tolerance * (1 if who in OURS else PEERS_AGREE) for what, tolerance in AGREE.items()}
            for what, limit in allowed.items():
                if not off[who][what] <= limit:
                    raise WrongKernel(f"{what} off by {off[who][what]:.1e} from the plain model, allowed {limit:.0e}")
        except Exception as error:  # of ours too: nothing was compared
            reason = str(error) if isinstance(error, WrongKernel) else harness.reason_of(error)
            if who in OURS:
                raise WrongKernel(f"{name}: {who}: {reason}") from error
            wrong[who] = f"not compared: {reason}"
    return off, wrong


def versions(library: Library, device: str) -> dict[str, str]:
    """Of eqtp, the peers, and the library of the model."""
    found, name = {"eqtp": eqtp.__version__, **peers.versions(device)}, {"mace": "mace-torch"}.get(library.name)
    with contextlib.suppress(importlib.metadata.PackageNotFoundError):
        found[name or library.name] = importlib.metadata.version(name or library.name)
    return found


def records(library: Library, name: str, size: dict, timings, found, off, missing, options, rates) -> list[dict]:
    """One object per contestant, as the JSON file gets it."""
    rows = []
    for who, timing in timings.items():
        ratio = {peer: timings[peer].ms / timing.ms for peer in options.against if who in OURS and peer in timings}
        rows.append({
            "op": {"sevenn": "sevennet"}.get(library.name, library.name), "problem": f"{name}-{size['nodes']}-atoms",
            "pass": "energy+forces", "backend": who, "dtype": "float32", "device": options.device,
            "threads": rates.threads and options.threads,
            "ms": timing.ms, "ms_p20": timing.quantile(0.2), "ms_p80": timing.quantile(0.8), "ratio_to": ratio,
            "bandwidth_fraction": None, "flop_fraction": None, "peak_mb": timing.peak_mb,
            "atoms_s": 1e3 * size["nodes"] / timing.ms,
            "start_s": found[who].start_s, "from_disk": found[who].from_disk,
            "de_ev_per_atom": off[who]["energy"], "df_ev_per_a": off[who]["forces"],
            "repeats": len(timing.calls), "missing": missing, "size": size,
            "machine": rates.row(), "versions": versions(library, options.device),
        })  # fmt: skip
    return rows


def table(name: str, rows: list[dict], missing: dict[str, str]) -> str:
    """One size of one model, and who is missing and why."""
    size, versions = rows[0]["size"], rows[0]["versions"]
    lines = ["", f"{name}  {size['nodes']:,} atoms, {size['edges']:,} edges  energy, forces, stress  float32"]
    lines.append(", ".join(f"{name} {version}" for name, version in versions.items()))
    columns = f"{'ms':>10} {'p20 - p80':>19} {'atoms/s':>9} {'peak MB':>9} {'start-up s':>11}"
    lines.append(f"  {'':18}{columns} {'dE eV/atom':>11} {'dF eV/A':>9} {'ratio':>7}")
    for row in rows:
        spread = f"{row['ms_p20']:.4g} - {row['ms_p80']:.4g}"
        peak = "-" if row["peak_mb"] is None else f"{row['peak_mb']:,.0f}"
        ratio = f"{row['ms'] / rows[0]['ms']:.2f}x" if row is not rows[0] else ""
        line = f"  {row['backend']:18}{row['ms']:10.4g} {spread:>19} {row['atoms_s']:9,.0f} {peak:>9}"
        line += f" {row['start_s']:11.2f} {row['de_ev_per_atom']:11.1e} {row['df_ev_per_a']:9.1e} {ratio:>7}"
        line += {True: "  from disk", False: "  compiled now", None: ""}[row["from_disk"]]
        lines.append(line.rstrip())
    return "\n".join([*lines, *(f"  {who:18}missing: {why}" for who, why in missing.items())])


def time_model(name: str, options, rates: machine.Machine, write) -> None:
    """All sizes of a model. Raises WrongKernel, and Missing if the model cannot be loaded."""
    library = MODELS[name]
    if importlib.util.find_spec(library.name) is None:
        raise Missing(f"the package {library.name} is not installed")
    plain = library.load(name, options.device, "e3nn")
    found = {}
    for count in options.atoms:
        atoms = crystal(count)
        data = library.data(plain, [atoms], options.device)
        try:
            expected = predict(library, plain, data)
        except Exception as error:  # too large for the memory, for one
            raise Missing(f"the plain model of {len(atoms):,} atoms: {harness.reason_of(error)}") from None
        if not found:
            found, absent = contestants(library, name, options, data)
        off, wrong = gate(library, name, found, data, expected)
        ready = [who for who in found if who not in wrong]
        timings, failed = harness.time_together(
            {who: partial(predict, library, found[who].model, data) for who in ready},
            rounds=options.repeat,
            min_time=options.min_time,
            warmup=1,
            device=options.device,
            step=lambda who: print(".", end="", file=sys.stderr, flush=True),
        )
        print(file=sys.stderr)
        options.failed += [f"{name}: {who}: {why}" for who, why in failed.items() if who in OURS]
        size = {"nodes": len(atoms), "edges": data["edge_index"].shape[1]}
        missing = absent | wrong | failed
        rows = records(library, name, size, timings, found, off, missing, options, rates)
        write(table(name, rows, missing) if rows else f"\n{name}: nothing to time: {missing}", rows)


def main(argv: list[str]) -> int:
    options = parse(argv)
    warnings.filterwarnings("ignore")  # of sevenn, mace and e3nn, many
    torch.set_num_threads(options.threads)
    rates = machine.measure(torch.float32, device=options.device)
    print(rates, flush=True)
    if options.json:
        options.json.parent.mkdir(parents=True, exist_ok=True)
        options.json.write_text("")
    timed, options.failed = [], []

    def write(text: str, rows: list[dict]) -> None:
        timed.extend(rows)
        print(text, flush=True)
        if options.json:
            with options.json.open("a") as file:
                file.writelines(json.dumps(row) + "\n" for row in rows)

    for name in options.model:
        try:
            time_model(name, options, rates, write)
        except Missing as reason:
            print(f"\n{name}: left out: {reason}", flush=True)
        except WrongKernel as error:
            print(f"refused to time a wrong model: {error}", file=sys.stderr)
            return 1
    for line in options.failed:
        print(f"failed: {line}", file=sys.stderr)
    if not timed:
        print("no model could be timed", file=sys.stderr)
    return int(bool(options.failed) or not timed)

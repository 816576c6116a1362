"""A whole model: energy, forces and stress of the trained SevenNet, as it is and accelerated, in one run.

    python -m bench.sevennet --atoms 64 1000 --threads 1 --json bench/results/sevennet.jsonl

Rock salt (NaCl, 5.64 A, rattled by 0.05 A) of about the given number of atoms. The neighbour list is built before the
clock starts. Needs the package sevenn, which carries the trained weights. The JSON file has the columns of `python -m
bench`; pass is "energy+forces".
"""

from __future__ import annotations

import argparse
import json
import sys
import warnings
from pathlib import Path

import torch
from tqdm import tqdm

import eqtp
from bench import harness, machine, peers

AGREE = {"energy": 2e-6, "forces": 1e-5}  # eV/atom, eV/A: float32


def cell(atoms: int):
    """A rock-salt supercell of at least this many atoms, as near to a cube as it gets."""
    from ase.build import bulk

    n = 1
    while 8 * n**3 < atoms:
        n += 1
    crystal = bulk("NaCl", "rocksalt", a=5.64, cubic=True).repeat((n, n, n))
    crystal.rattle(0.05, seed=1)
    return crystal


def check(before: dict, after: dict, atoms: int) -> None:
    """Raises WrongKernel if the accelerated model gives other numbers."""
    off = {
        "energy": (before["energy"] - after["energy"]).abs().item() / atoms,
        "forces": (before["forces"] - after["forces"]).abs().max().item(),
    }
    for what, tolerance in AGREE.items():
        if not off[what] <= tolerance:
            raise harness.WrongKernel(f"sevennet: {what} differ by {off[what]:.1e}, allowed {tolerance:.0e}")


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.sevennet", description=__doc__.partition("\n")[0])
    parser.add_argument("--model", default="7net-0", choices=["7net-0", "7net-l3i5"])
    parser.add_argument("--atoms", nargs="+", type=int, default=[64, 1000])
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--repeat", type=int, default=5)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args(argv)
    warnings.filterwarnings("ignore")
    from eqtp.integrations.sevennet import graph_data, load, predict

    torch.set_num_threads(options.threads)
    rates = machine.measure(torch.float32)
    print(
        f"{rates}\neqtp {eqtp.__version__}, " + ", ".join(f"{k} {v}" for k, v in peers.versions().items()), flush=True
    )
    original, accelerated = load(options.model), load(options.model)
    eqtp.accelerate(accelerated)
    rows = []
    for count in options.atoms:
        crystal = cell(count)
        data = graph_data(crystal, float(original.cutoff) if hasattr(original, "cutoff") else 5.0)
        edges = data["edge_index"].shape[1]
        try:
            check(predict(original, data), predict(accelerated, data), len(crystal))
        except harness.WrongKernel as error:
            print(f"refused to time a wrong kernel: {error}", file=sys.stderr)
            return 1
        calls = {"native": lambda d=data: predict(accelerated, d), "e3nn": lambda d=data: predict(original, d)}
        with tqdm(total=2 * (options.repeat + 1), desc=f"{len(crystal)} atoms", file=sys.stderr) as bar:
            timings, failed = harness.time_together(
                calls, rounds=options.repeat, min_time=1.0, warmup=1, step=lambda who, bar=bar: bar.update()
            )
        if failed:
            print(failed, file=sys.stderr)
            return 1
        print(f"\n{options.model}  {len(crystal)} atoms, {edges:,} edges  energy, forces, stress  float32")
        for who, timing in timings.items():
            ratio = {} if who == "e3nn" else {"e3nn": timings["e3nn"].ms / timing.ms}
            spread = f"({timing.quantile(0.2):.1f} - {timing.quantile(0.8):.1f})"
            line = f"  {who:10}{timing.ms:10.1f} ms  {spread}  peak {timing.peak_mb or 0:8.1f} MB"
            print(line + "".join(f"  {p} takes {r:.1f}x" for p, r in ratio.items()))
            rows.append({
                "op": "sevennet", "problem": f"{options.model}-{len(crystal)}-atoms", "pass": "energy+forces",
                "backend": who, "dtype": "float32", "threads": options.threads,
                "ms": timing.ms, "ms_p20": timing.quantile(0.2), "ms_p80": timing.quantile(0.8),
                "ratio_to": ratio, "bandwidth_fraction": None, "flop_fraction": None, "peak_mb": timing.peak_mb,
                "repeats": len(timing.calls), "missing": {}, "size": {"nodes": len(crystal), "edges": edges},
                "machine": rates._asdict(), "versions": {"eqtp": eqtp.__version__, **peers.versions()},
            })  # fmt: skip
    if options.json:
        options.json.parent.mkdir(parents=True, exist_ok=True)
        options.json.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return 0


if __name__ == "__main__":
    sys.exit(main())

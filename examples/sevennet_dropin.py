"""A trained SevenNet on real crystals, before and after ``eqtp.accelerate(model)``: same answers, less time.

    python examples/sevennet_dropin.py [--frames 40] [--threads N] [--model 7net-0|7net-l3i5]
                                       [--dtype float32|float64] [--repeat 3] [--out DIR]

Energy, forces and stress of MPtrj frames (data/README.md) are computed both ways in one process, in turns,
and compared with each other and with the DFT labels. The neighbour list is made once per frame and is in
neither time; sorting the edges for eqtp is in eqtp's time (from five frames on: eqtp remembers the last four
lists). Prints a table, writes sevennet_dropin.png and sevennet_dropin.json. Needs no network.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import time
import warnings
from pathlib import Path

os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # torch's profiler announces itself otherwise

import numpy as np
import torch
from tqdm import tqdm

HERE = Path(__file__).resolve().parent
DTYPES = {"float32": torch.float32, "float64": torch.float64}

# Parts of the run time, by the beginnings of the names of torch's ops; the first match counts
MOVES = (
    "copy_ cat clone slice fill_ zero new_zeros narrow as_strided select empty resize "
    "view reshape _reshape transpose permute expand unsqueeze squeeze t"
)
GROUPS = {
    "tensor products (eqtp)": ("eqtp::tensor_product",),
    "spherical harmonics (eqtp)": ("eqtp::spherical_harmonics",),
    "sorting edges (eqtp)": ("eqtp::",),
    "matrix products": ("aten::mm", "aten::addmm", "aten::bmm", "aten::baddbmm", "aten::dot", "aten::mv"),
    "gather, scatter": ("aten::index", "aten::scatter", "aten::gather", "aten::_index", "aten::embedding"),
    "copies, slices, concatenation": tuple(f"aten::{name}" for name in MOVES.split()),
    "elementwise, sums": ("aten::",),
    "autograd, other": ("",),
}


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--frames", type=int, default=40, help="number of frames, at most 40")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads(), help="threads of torch and of eqtp")
    parser.add_argument(
        "--model",
        choices=["7net-0", "7net-l3i5"],
        default="7net-0",
        help="trained model inside the sevenn package",
    )
    parser.add_argument("--dtype", choices=list(DTYPES), default="float32")
    parser.add_argument("--repeat", type=int, default=3, help="timed runs per frame and way; the median counts")
    parser.add_argument("--out", type=Path, default=HERE / "out", help="folder for the picture and the JSON file")
    args = parser.parse_args()
    if not 1 <= args.frames <= 40:
        parser.error(f"--frames must be from 1 to 40, got {args.frames}")
    return args


def timed(model, data) -> tuple[dict, float]:
    """Energy, forces and stress of one frame, and the seconds it took."""
    from eqtp.integrations.sevennet import predict

    start = time.perf_counter()
    out = predict(model, data)
    return out, time.perf_counter() - start


def run_both(before, after, datas, repeat: int) -> list[dict]:
    """Per frame: results and seconds of both models. All frames in turns; the first turn warms up."""
    runs = [{"before": [], "after": [], "seconds": {"before": [], "after": []}} for _ in datas]
    with tqdm(total=(repeat + 1) * len(datas), desc="before and after, in turns") as bar:
        for turn in range(repeat + 1):
            for data, run in zip(datas, runs, strict=True):
                for way, model in (("before", before), ("after", after)):
                    run[way], elapsed = timed(model, data)
                    if turn:
                        run["seconds"][way].append(elapsed)
                bar.update()
    return runs


def compare_frame(atoms, data, run: dict) -> dict:
    """Differences between the two ways, errors against DFT, median times of one frame."""
    n, old, new = len(atoms), run["before"], run["after"]
    energy, forces = atoms.get_potential_energy(), atoms.get_forces()  # eV, [n, 3] eV/A
    return {
        "formula": atoms.get_chemical_formula(),
        "atoms": n,
        "edges": data["edge_index"].shape[1],
        "de": abs(new["energy"] - old["energy"]).item() / n,
        "df": (new["forces"] - old["forces"]).abs().max().item(),
        "ds": (new["stress"] - old["stress"]).abs().max().item(),
        "energy": (energy / n, old["energy"].item() / n, new["energy"].item() / n),  # DFT, before, after
        "forces": (forces, old["forces"].numpy(), new["forces"].numpy()),  # DFT, before, after
        "e_error": abs(new["energy"].item() - energy) / n,
        "f_errors": np.abs(new["forces"].numpy() - forces).ravel(),  # [3 n]
        "s_error": np.abs(new["stress"].numpy() - full_stress(atoms)).mean(),
        "before": statistics.median(run["seconds"]["before"]),
        "after": statistics.median(run["seconds"]["after"]),
    }


def full_stress(atoms) -> np.ndarray:
    """DFT stress [6], xx yy zz yz xz xy [eV/A^3]."""
    stress = np.asarray(atoms.calc.results["stress"])
    return stress if stress.size == 6 else stress.reshape(9)[[0, 4, 8, 5, 2, 1]]


def where_time_goes(model, datas) -> dict[str, float]:
    """Share of each part of `GROUPS` in the self time of all ops, on a sample of the frames."""
    sample = datas[:: max(1, len(datas) // 6)]
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
        for data in tqdm(sample, desc="profiling", leave=False):
            timed(model, data)
    share = dict.fromkeys(GROUPS, 0.0)
    for event in profile.key_averages():
        group = next(name for name, keys in GROUPS.items() if event.key.startswith(keys))
        share[group] += event.self_cpu_time_total
    total = sum(share.values())
    return {name: value / total for name, value in share.items()}


def print_table(rows: list[dict], summary: dict) -> None:
    """One line per frame and one for all: changes by eqtp, errors against DFT, times."""
    line = "{:>3} {:<20}{:>6}{:>7} |{:>9}{:>9} |{:>9}{:>8} |{:>9}{:>8}{:>7}"
    names = [
        "crystal",
        "atoms",
        "edges",
        "dE/atom",
        "max dF",
        "E error",
        "F error",
        "before",
        "after",
        "ratio",
    ]
    print(line.format("", *names))
    print(line.format("", "", "", "", "ueV", "ueV/A", "meV/atom", "meV/A", "ms", "ms", ""))
    atoms, edges = sum(r["atoms"] for r in rows), sum(r["edges"] for r in rows)
    total = {
        "formula": "", "atoms": atoms, "edges": edges,
        "de": summary["max_de_ev_per_atom"], "df": summary["max_df_ev_per_a"],
        "e_error": summary["energy_mae_mev_per_atom"] / 1e3, "f_errors": summary["force_mae_mev_per_a"] / 1e3,
        "before": summary["seconds_before"], "after": summary["seconds_after"],
    }  # fmt: skip
    for n, r in [*enumerate(rows), ("all", total)]:
        print(
            line.format(
                n, r["formula"], r["atoms"], r["edges"], f"{1e6 * r['de']:.2g}", f"{1e6 * r['df']:.2g}",
                f"{1e3 * r['e_error']:.2f}", f"{1e3 * np.mean(r['f_errors']):.2f}",
                f"{1e3 * r['before']:.1f}", f"{1e3 * r['after']:.1f}", f"{r['before'] / r['after']:.1f}",
            )
        )  # fmt: skip


def summarise(rows: list[dict], report) -> dict:
    """The numbers of sevennet_dropin.json; the errors are those of the accelerated model against DFT."""
    before, after = sum(r["before"] for r in rows), sum(r["after"] for r in rows)
    return {
        "frames": len(rows),
        "energy_mae_mev_per_atom": 1e3 * float(np.mean([r["e_error"] for r in rows])),
        "force_mae_mev_per_a": 1e3 * float(np.concatenate([r["f_errors"] for r in rows]).mean()),
        "max_de_ev_per_atom": max(r["de"] for r in rows),
        "max_df_ev_per_a": max(r["df"] for r in rows),
        "seconds_before": before,
        "seconds_after": after,
        "speedup": before / after,
        "replaced": len(report.replaced),
        "kept": len(report.kept),
    }


def draw(rows: list[dict], shares: dict, summary: dict, title: str, path: Path) -> None:
    """Parity of energies and forces with DFT, time per frame, and where the time goes."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    old, new, grey = "#d1702a", "#1f6f8b", "#9aa0a6"
    plt.rcParams.update(
        {"font.size": 9, "axes.spines.top": False, "axes.spines.right": False, "axes.titleweight": "bold"}
    )
    figure, axes = plt.subplots(2, 2, figsize=(10.5, 8.2), layout="constrained")
    energy = np.array([r["energy"] for r in rows])  # [frames, 3]
    force = [np.concatenate([r["forces"][k].ravel() for r in rows]) for k in range(3)]  # DFT, before, after
    changes = [f"largest change {1e6 * summary[key]:.2g}" for key in ("max_de_ev_per_atom", "max_df_ev_per_a")]
    notes = (
        f"MAE {summary['energy_mae_mev_per_atom']:.2f} meV/atom\n{changes[0]} µeV/atom",
        f"MAE {summary['force_mae_mev_per_a']:.2f} meV/Å\n{changes[1]} µeV/Å",
    )
    for axis, (dft, before, after), what, note in (
        (axes[0, 0], energy.T, "energy [eV/atom]", notes[0]),
        (axes[0, 1], force, "force components [eV/Å]", notes[1]),
    ):
        ends = [min(dft.min(), after.min()), max(dft.max(), after.max())]
        axis.plot(ends, ends, color=grey, lw=0.8, zorder=0)
        axis.scatter(dft, before, s=34, facecolors="none", edgecolors=old, lw=1, label="before")
        axis.scatter(dft, after, s=7, color=new, lw=0, label="after eqtp.accelerate")
        axis.set(xlabel=f"DFT {what}", ylabel=f"model {what}", title=what.split(" [")[0].capitalize())
        axis.text(0.97, 0.04, note, transform=axis.transAxes, ha="right", va="bottom", color="#333333")
        axis.legend(frameon=False, loc="upper left")
    for scale in (axes[0, 1].set_xscale, axes[0, 1].set_yscale):  # most forces are small, a few are large
        scale("symlog", linthresh=0.1, linscale=0.6)
    draw_times(axes[1, 0], rows, summary, old, new)
    draw_shares(axes[1, 1], shares, summary)
    figure.suptitle(title, fontsize=12)
    figure.savefig(path, dpi=160)


def draw_times(axis, rows, summary, old, new) -> None:
    """Both times of each frame over its number of edges."""
    from matplotlib.ticker import LogLocator, NullFormatter, StrMethodFormatter

    edges = [r["edges"] for r in rows]
    for way, colour in (("before", old), ("after", new)):
        axis.scatter(edges, [1e3 * r[way] for r in rows], s=22, color=colour, lw=0, alpha=0.85, label=way)
    axis.set(
        xscale="log",
        yscale="log",
        xlabel="edges of the frame",
        ylabel="energy + forces + stress [ms]",
        title="Time per frame",
    )
    for ax in (axis.xaxis, axis.yaxis):
        ax.set_major_locator(LogLocator(subs=(1, 2, 5)))
        ax.set_major_formatter(StrMethodFormatter("{x:.0f}"))
        ax.set_minor_formatter(NullFormatter())
    text = f"{summary['seconds_before']:.2f} s → {summary['seconds_after']:.2f} s"
    text += f"\n{summary['speedup']:.1f} times faster"
    axis.text(0.97, 0.04, text, transform=axis.transAxes, ha="right", va="bottom", color="#333333")
    axis.legend(frameon=False, loc="upper left")


def draw_shares(axis, shares, summary) -> None:
    """Seconds per part: the measured time, split by the shares of the profile."""
    colours = ["#1f6f8b", "#4fa3b8", "#a5d3dc", "#d1702a", "#e6a672", "#f2d5bb", "#b9bdc2", "#dcdee1"]
    left = {"before": 0.0, "after": 0.0}
    for (group, share), colour in zip(shares["before"].items(), colours, strict=True):
        label = group
        for way in ("before", "after"):
            part = summary[f"seconds_{way}"] * (share if way == "before" else shares["after"][group])
            axis.barh(way, part, left=left[way], color=colour, label=label, height=0.55)
            left[way] += part
            label = None
    axis.invert_yaxis()
    axis.set(xlabel=f"seconds for {summary['frames']} frames", title="Where the time goes", ylim=(2.6, -0.5))
    axis.spines["left"].set_visible(False)
    axis.tick_params(axis="y", length=0)
    axis.legend(frameon=False, fontsize=8, ncols=2, loc="lower center")


def main() -> None:
    args = arguments()
    warnings.filterwarnings("ignore", module="sevenn|e3nn|torch_geometric")
    from ase.io import read

    import eqtp
    from eqtp.integrations.sevennet import graph_data, load

    torch.set_num_threads(args.threads)
    frames = read(HERE / "data" / "mptrj_40.xyz", f":{args.frames}")
    before = load(args.model, DTYPES[args.dtype])
    datas = [graph_data(atoms, before.cutoff, DTYPES[args.dtype]) for atoms in frames]
    after = load(args.model, DTYPES[args.dtype])
    report = eqtp.accelerate(after, example=datas[0])
    print(report, end="\n\n")

    runs = run_both(before, after, datas, args.repeat)
    rows = [compare_frame(*each) for each in zip(frames, datas, runs, strict=True)]
    summary = summarise(rows, report)
    shares = {"before": where_time_goes(before, datas), "after": where_time_goes(after, datas)}
    print_table(rows, summary)
    ds, error = max(r["ds"] for r in rows), 1e3 * np.mean([r["s_error"] for r in rows])
    print(f"\nstress: largest change {ds:.1e} eV/A^3, error against DFT {error:.2f} meV/A^3")
    print(f"\nwhere the time goes [ms for all frames]   {'before':>8} {'after':>8}")
    for group in GROUPS:
        times = [1e3 * summary[f"seconds_{way}"] * shares[way][group] for way in ("before", "after")]
        print(f"  {group:<38} {times[0]:>9.1f} {times[1]:>8.1f}")

    args.out.mkdir(parents=True, exist_ok=True)
    threads = f"{args.threads} thread" + "s" * (args.threads > 1)
    title = f"{args.model} on {len(rows)} MPtrj frames, {args.dtype}, {threads} of a CPU"
    draw(rows, shares, summary, title, args.out / "sevennet_dropin.png")
    (args.out / "sevennet_dropin.json").write_text(json.dumps(summary, indent=1) + "\n")
    print(f"\n{summary['speedup']:.1f} times faster. Picture and numbers: {args.out}/sevennet_dropin.png, .json")


if __name__ == "__main__":
    main()

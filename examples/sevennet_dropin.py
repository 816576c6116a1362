"""A trained SevenNet on real crystals, before and after ``eqtp.accelerate(model)``, and compiled by ``eqtp.compile``:
same answers, less time.

    python examples/sevennet_dropin.py [--frames 40] [--threads N] [--model 7net-0|7net-l3i5]
                                       [--dtype float32|float64] [--repeat 3] [--no-compile] [--out DIR]

Energy, forces and stress of MPtrj frames (data/README.md) are computed all three ways in one process, in turns,
and compared with each other and with the DFT labels. The neighbour list is made once per frame and is in no
time; sorting the edges for eqtp is in eqtp's time (from five frames on: eqtp remembers the last four
lists). Prints a table, writes sevennet_dropin.png and sevennet_dropin.json. Needs no network.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import threading
import time
import warnings
from contextlib import contextmanager
from pathlib import Path

os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # torch's profiler announces itself otherwise

import numpy as np
import torch
from tqdm import tqdm

HERE = Path(__file__).resolve().parent
DTYPES = {"float32": torch.float32, "float64": torch.float64}
COLOURS = {"before": "#d1702a", "after": "#1f6f8b", "compiled": "#5b8c5a"}

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
    parser.add_argument("--no-compile", action="store_true", help="leave out the compiled model")
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


@contextmanager
def waiting(text: str):
    """Says every second for how long this has been going on."""
    start, over = time.perf_counter(), threading.Event()

    def tell():
        while not over.wait(1):
            print(f"\r{text} ... {time.perf_counter() - start:.0f} s", end="", file=sys.stderr, flush=True)

    thread = threading.Thread(target=tell, daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()
        print(f"\r{text}: {time.perf_counter() - start:.0f} s    ", file=sys.stderr, flush=True)


def compiled(model, example):
    """The model compiled; None, with the reason on the screen, where that cannot be done."""
    import eqtp

    print("eqtp.compile: a minute or so the first time; kept on disk, later seconds (--no-compile leaves it out)")
    try:
        with waiting("compiling, or loading from disk"):
            found = eqtp.compile(model, example)
    except RuntimeError as error:  # without a C++ compiler, for one
        print(f"left out: {error}\n")
        return None
    print(found.report, end="\n\n")
    return found


def run_all(models: dict, datas, repeat: int) -> list[dict]:
    """Per frame: results and seconds of all models. All frames in turns; the first turn warms up."""
    runs = [{"seconds": {way: [] for way in models}} for _ in datas]
    with tqdm(total=(repeat + 1) * len(datas), desc=f"{', '.join(models)}, in turns") as bar:
        for turn in range(repeat + 1):
            for data, run in zip(datas, runs, strict=True):
                for way, model in models.items():
                    run[way], elapsed = timed(model, data)
                    if turn:
                        run["seconds"][way].append(elapsed)
                bar.update()
    return runs


def compare_frame(atoms, data, run: dict) -> dict:
    """Differences from the model as it was, errors against DFT, median times of one frame."""
    n, old, new = len(atoms), run["before"], run["after"]
    ways = list(run["seconds"])
    off = {key: {w: (run[w][key] - old[key]).abs().max().item() for w in ways[1:]} for key in old}
    energy, forces = atoms.get_potential_energy(), atoms.get_forces()  # eV, [n, 3] eV/A
    return {
        "formula": atoms.get_chemical_formula(),
        "atoms": n,
        "edges": data["edge_index"].shape[1],
        "de": {way: value / n for way, value in off["energy"].items()},
        "df": off["forces"],
        "ds": max(off["stress"].values()),
        "energy": {"DFT": energy / n, **{way: run[way]["energy"].item() / n for way in ways}},
        "forces": {"DFT": forces, **{way: run[way]["forces"].numpy() for way in ways}},
        "e_error": abs(new["energy"].item() - energy) / n,
        "f_errors": np.abs(new["forces"].numpy() - forces).ravel(),  # [3 n]
        "s_error": np.abs(new["stress"].numpy() - full_stress(atoms)).mean(),
        **{way: statistics.median(seconds) for way, seconds in run["seconds"].items()},
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
    """One line per frame and one for all: changes by eqtp, errors against DFT, times, and how many times faster."""
    ways = summary["ways"]
    changed, times = len(ways) - 1, [word for way in ways[1:] for word in (way, "")]
    line = "{:>2} {:<19}{:>6}{:>6}" + " |{:>7}{:>7}" * changed + " |{:>7}{:>7} |{:>8}"
    line += "".join(f"{{:>{max(8, len(way) + 1)}}}{{:>6}}" for way in ways[1:])
    print("dE, dF: largest change from the model before; E, F: mean error against DFT; x: how many times faster")
    print(" " * 34 + "".join(f" |{way:>14}" for way in [*ways[1:], "DFT"]) + " |")
    print(line.format("", "crystal", "atoms", "edges", *["dE", "dF"] * changed, "E", "F", "before", *times))
    units = [*["ueV/at", "ueV/A"] * changed, "meV/at", "meV/A", "ms", *["ms", ""] * changed]
    print(line.format("", "", "", "", *units))
    total = {
        "formula": "all", "atoms": sum(r["atoms"] for r in rows), "edges": sum(r["edges"] for r in rows),
        "de": summary["max_de_ev_per_atom"], "df": summary["max_df_ev_per_a"],
        "e_error": summary["energy_mae_mev_per_atom"] / 1e3, "f_errors": summary["force_mae_mev_per_a"] / 1e3,
        **{way: summary[f"seconds_{way}"] for way in ways},
    }  # fmt: skip
    for n, r in [*enumerate(rows), ("", total)]:
        changes = [f"{1e6 * r[key][way]:.2g}" for way in ways[1:] for key in ("de", "df")]
        errors = f"{1e3 * r['e_error']:.2f}", f"{1e3 * np.mean(r['f_errors']):.2f}"
        times = [text for w in ways[1:] for text in (f"{1e3 * r[w]:.1f}", f"{r['before'] / r[w]:.1f}x")]
        cells = r["formula"], r["atoms"], r["edges"], *changes, *errors, f"{1e3 * r['before']:.1f}", *times
        print(line.format(n, *cells))


def summarise(rows: list[dict], report, ways: list[str]) -> dict:
    """The numbers of sevennet_dropin.json; the errors are those of the accelerated model against DFT."""
    seconds = {way: sum(r[way] for r in rows) for way in ways}
    return {
        "frames": len(rows),
        "ways": ways,
        "energy_mae_mev_per_atom": 1e3 * float(np.mean([r["e_error"] for r in rows])),
        "force_mae_mev_per_a": 1e3 * float(np.concatenate([r["f_errors"] for r in rows]).mean()),
        "max_de_ev_per_atom": {way: max(r["de"][way] for r in rows) for way in ways[1:]},
        "max_df_ev_per_a": {way: max(r["df"][way] for r in rows) for way in ways[1:]},
        **{f"seconds_{way}": total for way, total in seconds.items()},
        "speedup": {way: seconds["before"] / seconds[way] for way in ways[1:]},
        "replaced": len(report.replaced),
        "kept": len(report.kept),
    }


def draw(rows: list[dict], shares: dict, summary: dict, title: str, path: Path) -> None:
    """Parity of energies and forces with DFT, time per frame, and where the time goes."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    grey, names = "#9aa0a6", {"before": "before", "after": "after eqtp.accelerate", "compiled": "eqtp.compile"}
    plt.rcParams.update(
        {"font.size": 9, "axes.spines.top": False, "axes.spines.right": False, "axes.titleweight": "bold"}
    )
    figure, axes = plt.subplots(2, 2, figsize=(10.5, 8.2), layout="constrained")
    known = ["DFT", *summary["ways"]]
    energy = {way: np.array([r["energy"][way] for r in rows]) for way in known}  # [frames]
    force = {way: np.concatenate([r["forces"][way].ravel() for r in rows]) for way in known}  # [3 atoms]
    de, df = (max(summary[key].values()) for key in ("max_de_ev_per_atom", "max_df_ev_per_a"))
    notes = (
        f"MAE {summary['energy_mae_mev_per_atom']:.2f} meV/atom\nlargest change {1e6 * de:.2g} µeV/atom",
        f"MAE {summary['force_mae_mev_per_a']:.2f} meV/Å\nlargest change {1e6 * df:.2g} µeV/Å",
    )
    for axis, values, what, note in (
        (axes[0, 0], energy, "energy [eV/atom]", notes[0]),
        (axes[0, 1], force, "force components [eV/Å]", notes[1]),
    ):
        dft = values["DFT"]
        ends = [min(dft.min(), values["after"].min()), max(dft.max(), values["after"].max())]
        axis.plot(ends, ends, color=grey, lw=0.8, zorder=0)
        for way, marker, size in zip(summary["ways"], "o.+", (34, 22, 34), strict=False):
            colours = {"facecolors": "none", "edgecolors": COLOURS[way]} if marker == "o" else {"color": COLOURS[way]}
            axis.scatter(dft, values[way], s=size, marker=marker, lw=0.8, label=names[way], **colours)
        axis.set(xlabel=f"DFT {what}", ylabel=f"model {what}", title=what.split(" [")[0].capitalize())
        axis.text(0.97, 0.04, note, transform=axis.transAxes, ha="right", va="bottom", color="#333333")
        axis.legend(frameon=False, loc="upper left")
    for scale in (axes[0, 1].set_xscale, axes[0, 1].set_yscale):  # most forces are small, a few are large
        scale("symlog", linthresh=0.1, linscale=0.6)
    draw_times(axes[1, 0], rows, summary)
    draw_shares(axes[1, 1], shares, summary)
    figure.suptitle(title, fontsize=12)
    figure.savefig(path, dpi=160)


def draw_times(axis, rows, summary) -> None:
    """The times of each frame over its number of edges."""
    from matplotlib.ticker import LogLocator, NullFormatter, StrMethodFormatter

    edges = [r["edges"] for r in rows]
    for way in summary["ways"]:
        axis.scatter(edges, [1e3 * r[way] for r in rows], s=22, color=COLOURS[way], lw=0, alpha=0.85, label=way)
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
    text = " → ".join(f"{summary[f'seconds_{way}']:.2f} s" for way in summary["ways"])
    text += f"\n{' and '.join(f'{times:.1f}' for times in summary['speedup'].values())} times faster"
    axis.text(0.97, 0.04, text, transform=axis.transAxes, ha="right", va="bottom", color="#333333")
    axis.legend(frameon=False, loc="upper left")


def draw_shares(axis, shares, summary) -> None:
    """Seconds per part: the measured time, split by the shares of the profile; a compiled model is one part."""
    colours = ["#1f6f8b", "#4fa3b8", "#a5d3dc", "#d1702a", "#e6a672", "#f2d5bb", "#b9bdc2", "#dcdee1"]
    left = {"before": 0.0, "after": 0.0}
    for (group, share), colour in zip(shares["before"].items(), colours, strict=True):
        label = group
        for way in ("before", "after"):
            part = summary[f"seconds_{way}"] * (share if way == "before" else shares["after"][group])
            axis.barh(way, part, left=left[way], color=colour, label=label, height=0.55)
            left[way] += part
            label = None
    if "compiled" in summary["ways"]:
        label = "one compiled program"
        axis.barh("compiled", summary["seconds_compiled"], color=COLOURS["compiled"], label=label, height=0.55)
    axis.invert_yaxis()
    axis.set(
        xlabel=f"seconds for {summary['frames']} frames",
        title="Where the time goes",
        ylim=(len(summary["ways"]) + 0.6, -0.5),
    )
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

    models = {"before": before, "after": after}
    if not args.no_compile and (program := compiled(after, datas[0])) is not None:
        models["compiled"] = program

    runs = run_all(models, datas, args.repeat)
    rows = [compare_frame(*each) for each in zip(frames, datas, runs, strict=True)]
    summary = summarise(rows, report, list(models))
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
    faster = ", ".join(f"{way} {times:.1f} times as fast" for way, times in summary["speedup"].items())
    print(f"\n{faster}. Picture and numbers: {args.out}/sevennet_dropin.png, .json")


if __name__ == "__main__":
    main()

"""A trained SevenNet on real crystals, as it is and after ``eqtp.accelerate(model)``: same answers, in a fraction of the time.

    python examples/sevennet_dropin.py [--frames 40] [--threads N] [--model 7net-0|7net-l3i5] [--dtype float32|float64] [--out DIR]

Energy, forces and stress of MPtrj frames (data/README.md) are computed both ways in one process, in turns, and compared with each
other and with the DFT labels. The neighbour list is made once per frame and is in neither time; sorting the edges for eqtp is in
eqtp's time. Prints a table, writes sevennet_dropin.png and sevennet_dropin.json. Needs no network.
"""

from __future__ import annotations

import argparse
import copy
import json
import statistics
import time
import warnings
from pathlib import Path

import numpy as np
import torch
from tqdm import tqdm

HERE = Path(__file__).resolve().parent
DTYPES = {"float32": torch.float32, "float64": torch.float64}

# Parts of the run time, by the names of torch's ops; the first match counts
GROUPS = {
    "tensor products (eqtp)": ("eqtp::tensor_product",),
    "spherical harmonics (eqtp)": ("eqtp::spherical_harmonics",),
    "sorting edges (eqtp)": ("eqtp::", "aten::sort", "aten::bincount", "aten::cumsum", "aten::searchsorted"),
    "matrix products": ("aten::mm", "aten::addmm", "aten::bmm", "aten::baddbmm", "aten::dot", "aten::mv"),
    "gather, scatter": ("aten::index", "aten::scatter", "aten::gather", "aten::_index", "aten::embedding"),
    "copies, slices, concatenation": (
        "aten::copy_", "aten::cat", "aten::clone", "aten::slice", "aten::fill_", "aten::zero", "aten::new_zeros",
        "aten::narrow", "aten::as_strided", "aten::select", "aten::empty", "aten::resize", "aten::view", "aten::reshape",
        "aten::transpose", "aten::permute", "aten::expand", "aten::_reshape", "aten::unsqueeze", "aten::squeeze", "aten::t",
    ),
    "elementwise, sums": ("aten::",),
    "autograd, other": ("",),
}  # fmt: skip


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--frames", type=int, default=40, help="number of frames, at most 40")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads(), help="threads of torch and of eqtp")
    parser.add_argument("--model", choices=["7net-0", "7net-l3i5"], default="7net-0", help="trained model inside the sevenn package")
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


def compare_frame(atoms, data, before, after, repeat: int) -> dict:
    """Both models on one frame: differences, errors against DFT, median times."""
    seconds = {"before": [], "after": []}
    for run in range(repeat + 1):  # the first run warms up
        for way, model in (("before", before), ("after", after)):
            out, elapsed = timed(model, data)
            if run:
                seconds[way].append(elapsed)
            if way == "before":
                old = out
    n = len(atoms)
    energy, forces = atoms.get_potential_energy(), atoms.get_forces()  # eV, [n, 3] eV/A
    stress = full_stress(atoms)  # [6] eV/A^3
    return {
        "formula": atoms.get_chemical_formula(), "atoms": n, "edges": data["edge_index"].shape[1],
        "de": abs(out["energy"] - old["energy"]).item() / n, "df": (out["forces"] - old["forces"]).abs().max().item(),
        "ds": (out["stress"] - old["stress"]).abs().max().item(),
        "energy": (energy / n, old["energy"].item() / n, out["energy"].item() / n),  # DFT, before, after [eV/atom]
        "forces": (forces, old["forces"].numpy(), out["forces"].numpy()),
        "stress_error": np.abs(out["stress"].numpy() - stress).mean(),
        "before": statistics.median(seconds["before"]), "after": statistics.median(seconds["after"]),
    }  # fmt: skip


def full_stress(atoms) -> np.ndarray:
    """DFT stress [6], xx yy zz yz xz xy [eV/A^3]."""
    stress = np.asarray(atoms.calc.results["stress"])
    return stress if stress.size == 6 else stress.reshape(9)[[0, 4, 8, 5, 2, 1]]


def where_time_goes(model, datas) -> dict[str, float]:
    """Share of each part of `GROUPS` in the self time of all ops, over one pass through the frames."""
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
        for data in tqdm(datas, desc="profiling", leave=False):
            timed(model, data)
    share = dict.fromkeys(GROUPS, 0.0)
    for event in profile.key_averages():
        group = next(name for name, keys in GROUPS.items() if event.key.startswith(keys))
        share[group] += event.self_cpu_time_total
    total = sum(share.values())
    return {name: value / total for name, value in share.items()}


def print_table(rows: list[dict], summary: dict) -> None:
    head = f"{'':>3} {'crystal':<22}{'atoms':>6}{'edges':>7} |{'dE/atom':>10}{'max dF':>10} |{'E error':>9}{'F error':>9} |"
    print(f"{head}{'before':>9}{'after':>8}{'ratio':>7}")
    print(f"{'':>38} |{'ueV':>10}{'ueV/A':>10} |{'meV/atom':>9}{'meV/A':>9} |{'ms':>9}{'ms':>8}")
    for n, r in enumerate(rows):
        e_error, f_error = 1e3 * abs(r["energy"][2] - r["energy"][0]), 1e3 * np.abs(r["forces"][2] - r["forces"][0]).mean()
        print(
            f"{n:>3} {r['formula']:<22}{r['atoms']:>6}{r['edges']:>7} |{1e6 * r['de']:>10.2g}{1e6 * r['df']:>10.2g} |{e_error:>9.2f}"
            f"{f_error:>9.2f} |{1e3 * r['before']:>9.1f}{1e3 * r['after']:>8.1f}{r['before'] / r['after']:>7.1f}"
        )
    atoms, edges = sum(r["atoms"] for r in rows), sum(r["edges"] for r in rows)
    print(
        f"{'all':>3} {'':<22}{atoms:>6}{edges:>7} |{1e6 * summary['max_de_ev_per_atom']:>10.2g}"
        f"{1e6 * summary['max_df_ev_per_a']:>10.2g} |{summary['energy_mae_mev_per_atom']:>9.2f}"
        f"{summary['force_mae_mev_per_a']:>9.2f} |{1e3 * summary['seconds_before']:>9.1f}"
        f"{1e3 * summary['seconds_after']:>8.1f}{summary['speedup']:>7.1f}"
    )


def summarise(rows: list[dict], report) -> dict:
    """The numbers of sevennet_dropin.json. Errors are those of the accelerated model against DFT; replaced and kept are counts."""
    force_errors = np.concatenate([np.abs(r["forces"][2] - r["forces"][0]).ravel() for r in rows])
    before, after = sum(r["before"] for r in rows), sum(r["after"] for r in rows)
    return {
        "frames": len(rows),
        "energy_mae_mev_per_atom": 1e3 * float(np.mean([abs(r["energy"][2] - r["energy"][0]) for r in rows])),
        "force_mae_mev_per_a": 1e3 * float(force_errors.mean()),
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
    plt.rcParams.update({"font.size": 9, "axes.spines.top": False, "axes.spines.right": False, "axes.titleweight": "bold"})
    figure, axes = plt.subplots(2, 2, figsize=(10.5, 8.2), layout="constrained")
    energy = np.array([r["energy"] for r in rows])  # [frames, 3]
    force = [np.concatenate([r["forces"][k].ravel() for r in rows]) for k in range(3)]  # DFT, before, after
    for axis, dft, before, after, what, error in (
        (axes[0, 0], energy[:, 0], energy[:, 1], energy[:, 2], "energy [eV/atom]",
         f"MAE {summary['energy_mae_mev_per_atom']:.2f} meV/atom\nlargest change {1e6 * summary['max_de_ev_per_atom']:.2g} µeV/atom"),
        (axes[0, 1], force[0], force[1], force[2], "force components [eV/Å]",
         f"MAE {summary['force_mae_mev_per_a']:.2f} meV/Å\nlargest change {1e6 * summary['max_df_ev_per_a']:.2g} µeV/Å"),
    ):  # fmt: skip
        ends = [min(dft.min(), after.min()), max(dft.max(), after.max())]
        axis.plot(ends, ends, color=grey, lw=0.8, zorder=0)
        axis.scatter(dft, before, s=34, facecolors="none", edgecolors=old, lw=1, label="before")
        axis.scatter(dft, after, s=7, color=new, lw=0, label="after eqtp.accelerate")
        axis.set(xlabel=f"DFT {what}", ylabel=f"model {what}", title=what.split(" [")[0].capitalize())
        axis.text(0.97, 0.04, error, transform=axis.transAxes, ha="right", va="bottom", color="#333333")
        axis.legend(frameon=False, loc="upper left")
    draw_times(axes[1, 0], rows, summary, old, new)
    draw_shares(axes[1, 1], shares, summary)
    figure.suptitle(title, fontsize=12)
    figure.savefig(path, dpi=160)


def draw_times(axis, rows, summary, old, new) -> None:
    edges = [r["edges"] for r in rows]
    for way, colour in (("before", old), ("after", new)):
        axis.scatter(edges, [1e3 * r[way] for r in rows], s=22, color=colour, lw=0, alpha=0.85, label=way)
    axis.set(xscale="log", yscale="log", xlabel="edges of the frame", ylabel="energy + forces + stress [ms]", title="Time per frame")
    text = f"{summary['seconds_before']:.2f} s → {summary['seconds_after']:.2f} s\n{summary['speedup']:.1f} times faster"
    axis.text(0.97, 0.04, text, transform=axis.transAxes, ha="right", va="bottom", color="#333333")
    axis.legend(frameon=False, loc="upper left")


def draw_shares(axis, shares, summary) -> None:
    """Milliseconds per part: the measured time, split by the shares of the profile."""
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
    after = copy.deepcopy(before)
    report = eqtp.accelerate(after, example=datas[0])
    print(report, end="\n\n")

    pairs = list(zip(frames, datas, strict=True))
    rows = [compare_frame(a, d, before, after, args.repeat) for a, d in tqdm(pairs, desc=f"{args.model}, both ways")]
    summary = summarise(rows, report)
    shares = {"before": where_time_goes(before, datas), "after": where_time_goes(after, datas)}
    print_table(rows, summary)
    print(f"\nlargest change of the stress: {max(r['ds'] for r in rows):.1e} eV/A^3; error of the stress against DFT: "
          f"{1e3 * np.mean([r['stress_error'] for r in rows]):.2f} meV/A^3")  # fmt: skip
    print(f"\nwhere the time goes [ms for all frames]   {'before':>8} {'after':>8}")
    for group in GROUPS:
        times = [1e3 * summary[f"seconds_{way}"] * shares[way][group] for way in ("before", "after")]
        print(f"  {group:<38} {times[0]:>9.1f} {times[1]:>8.1f}")

    args.out.mkdir(parents=True, exist_ok=True)
    title = f"{args.model} on {len(rows)} MPtrj frames, {args.dtype}, {args.threads} thread{'s' * (args.threads > 1)} of a CPU"
    draw(rows, shares, summary, title, args.out / "sevennet_dropin.png")
    (args.out / "sevennet_dropin.json").write_text(json.dumps(summary, indent=1) + "\n")
    print(f"\n{summary['speedup']:.1f} times faster. Picture and numbers: {args.out}/sevennet_dropin.png, .json")


if __name__ == "__main__":
    main()

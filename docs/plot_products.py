"""The pictures and tables of docs/products.md, from bench/results/products-*.json: `python docs/plot_products.py` in
the repository root.

Draws docs/products_runtime, docs/products_per_dof and docs/products_error, each as .png and .svg, and rewrites what is
between the two marks of docs/products.md. Nothing is typed by hand: tests/test_bench_products.py compares the page with
the results.

    --threads N --dtype NAME --channels N   which of the results (default: 1, float32, 32 or the nearest there is)
    --results FOLDER --page FILE            pictures go next to the page
"""

from __future__ import annotations

import argparse
import json
import math
import sys
import textwrap
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.append(str(ROOT))  # bench is not part of the installed package

from bench.report import between  # noqa: E402

BEGIN, END = "<!-- products: begin -->", "<!-- products: end -->"
LAYOUTS = {
    "siso": "one degree by one degree\nto one degree (SISO)",
    "simo": "one degree by one degree\nto 0..2 l (SIMO)",
    "mimo": "degrees 0..l by 0..l\nto 0..2 l (MIMO)",
}
# colour, marker, line; the same in every picture. Ours are solid
STYLES = {
    "gaunt": ("#1f6f8b", "o", "-"), "gaunt+odd": ("#5b8c5a", "s", "-"), "matrix": ("#8e5a9b", "^", "-"),
    "vector-signal": ("#b8a038", "v", "-"), "cg-sparse": ("#d1702a", "D", "-"), "cg-dense": ("#d1702a", "d", ":"),
    "gaunt-sparse": ("#7fb7c9", "o", "-"), "gaunt-grid": ("#1f6f8b", "o", "-"), "gaunt-fourier": ("#12404f", "P", "-"),
    "e3nn-even": ("#888888", "o", "--"), "e3nn": ("#4a4a4a", "s", "--"), "published-fft": ("#c25b7c", "v", "--"),
    "published-direct": ("#dd9bb0", "^", "--"), "published-grid": ("#9c3b3b", "x", "--"),
    "dense-grid": ("#c98b7f", "+", "--"), "pof-grid": ("#6b4f2a", "*", "--"),
}  # fmt: skip
RUNTIME = (
    "gaunt", "gaunt+odd", "matrix", "vector-signal", "cg-sparse", "e3nn-even", "e3nn", "published-fft",
    "published-direct", "published-grid", "dense-grid", "pof-grid",
)  # fmt: skip
PER_DOF = (
    "gaunt", "gaunt+odd", "matrix", "vector-signal", "cg-sparse", "cg-dense", "e3nn-even", "e3nn", "published-fft",
    "pof-grid",
)  # fmt: skip
ERRORS = (
    "gaunt-sparse", "gaunt-grid", "gaunt-fourier", "gaunt+odd", "matrix", "vector-signal", "cg-sparse", "e3nn",
    "published-fft", "pof-grid",
)  # fmt: skip
TABLES = {  # caption: methods
    "degrees 0..l by 0..l to 0..2 l (MIMO)": (
        "gaunt", "gaunt+odd", "matrix", "vector-signal", "cg-sparse", "e3nn-even", "e3nn", "published-fft",
        "dense-grid", "pof-grid",
    ),
    "the routes of the Gaunt product, the same layout": (
        "gaunt-sparse", "gaunt-grid", "gaunt-fourier", "published-direct", "published-grid",
    ),
}  # fmt: skip
PASSES = {"fwd": "forward", "bwd": "forward + backward"}


def read(folder: Path, threads: int = 1, dtype: str = "float32") -> list[dict]:
    """Lines of all files products*.json, those of a file after its "conditions" having a "conditions" key."""
    rows = []
    for path in sorted(folder.glob("products*.json")):
        where = None
        for line in path.read_text().splitlines():
            row = json.loads(line)
            where = row if row["op"] == "conditions" else where
            if row["op"] != "conditions" and (row["threads"], row["dtype"]) == (threads, dtype):
                rows.append(row | {"conditions": where})
    return rows


def sweep(rows: list[dict], channels: int | None) -> list[dict]:
    """Forward timings with one number of channels: the given one, or that nearest to 32."""
    timed = [row for row in rows if row["op"] == "products" and row["pass"] == "fwd"]
    there = {row["channels"] for row in timed}
    if not there:
        return []
    chosen = channels if channels is not None else min(there, key=lambda c: abs(c - 32))
    return [row for row in timed if row["channels"] == chosen]


def number(value: float) -> str:
    """Three significant digits at most."""
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def size(row: dict) -> str:
    """Of a measurement."""
    return f"forward, {row['channels']} channel{'s' * (row['channels'] > 1)}, batch {row['batch']:,}"


def under(row: dict) -> str:
    """Conditions of a measurement, one line."""
    where = row["conditions"]
    threads = "1 thread" if row["threads"] == 1 else f"{row['threads']} threads"
    versions = ", ".join(f"{name} {version}" for name, version in where["versions"].items())
    return f"{where['machine']['cpu']}; {threads}; {row['dtype']}; {versions}."


def wrapped(text: str) -> list[str]:
    """A caption in lines of at most 120 characters."""
    return textwrap.wrap(text, 120, break_long_words=False, break_on_hyphens=False)


def sweep_table(rows: list[dict], names: tuple[str, ...], title: str) -> list[str]:
    """MIMO: a line per lmax, a column per method."""
    rows = [row for row in rows if row["layout"] == "mimo"]
    who = [name for name in names if any(row["backend"] == name for row in rows)]
    if not who:
        return []
    lines = [f"| lmax | {' | '.join(who)} |", "|---:|" + "---:|" * len(who)]
    for l in sorted({row["lmax"] for row in rows}):
        here = {row["backend"]: row for row in rows if row["lmax"] == l}
        cells = [
            f"{number(here[name]['ms'])} ({number(here[name]['us_per_dof'])})" if name in here else "-" for name in who
        ]
        lines.append(f"| {l} | {' | '.join(cells)} |")
    caption = f"Milliseconds (microseconds per degree of freedom): {title}, {size(rows[0])}. {under(rows[0])}"
    return [*lines, "", *wrapped(caption), ""]


def target_table(rows: list[dict]) -> list[str]:
    """The goals and what was reached."""
    goals = [row for row in rows if row["op"] == "target"]
    if not goals:
        return []
    said = {True: "yes", False: "no", None: "?"}
    lines = ["| comparison | pass | goal | reached | met |", "|---|---|---|---|---|"]
    lines += [
        f"| {r['what']} | {PASSES.get(r['pass'], r['pass'])} | {r['target']} | {r['reached']} | {said[r['met']]} |"
        for r in goals
    ]
    caption = (
        "k x name: the time of that code over ours, both medians of one run. ?: nobody to compare with, or not decided."
    )
    if any("symmetric-contraction" in row["target"] for row in goals):
        caption += (
            " symmetric-contraction: written for this project in plain torch, even paths only"
            " (`bench/symmetric_contraction.py`); not MACE's own code."
        )
    return [*lines, "", *wrapped(f"{caption} {under(goals[0])}")]


def content(rows: list[dict], channels: int | None = None) -> str:
    """What stands between the marks."""
    timed = sweep(rows, channels)
    parts = []
    if timed:
        parts += [
            "![Time against the largest degree](products_runtime.png)",
            "",
            "![Time per degree of freedom](products_per_dof.png)",
            "",
        ]
        parts += ["![Error against the largest degree](products_error.png)", ""]
        parts += [line for title, names in TABLES.items() for line in sweep_table(timed, names, title)]
    parts += target_table(rows)
    return (
        "\n".join(parts).strip()
        or "No results yet: `python -m bench products --json bench/results/products-1.json` writes them."
    )


def with_content(page: str, rows: list[dict], channels: int | None = None) -> str:
    """The text of the page with pictures and tables of these rows. Raises ValueError if the two marks are not there
    once each."""
    return between(page, BEGIN, END, content(rows, channels))


def lines_of(axis, rows: list[dict], names: tuple[str, ...], key: str) -> None:
    """One line per method: key against lmax."""
    for name in names:
        points = sorted((row["lmax"], row[key]) for row in rows if row["backend"] == name and row[key] is not None)
        if points:
            colour, marker, line = STYLES[name]
            axis.plot(*zip(*points, strict=True), color=colour, marker=marker, ls=line, lw=1.4, ms=4.5, label=name)


def figure_of(
    panels: list[tuple[str, list[dict], str]], names: tuple[str, ...], label: str, title: str, picture: Path
) -> None:
    """Panels (title, rows, key) side by side with one legend; written as .png and .svg."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt
    from matplotlib.ticker import MaxNLocator

    plt.rcParams.update({"font.size": 9, "svg.hashsalt": "products"})
    figure, axes = plt.subplots(
        1, len(panels), figsize=(1.6 + 3.1 * len(panels), 3.9), sharey=True, squeeze=False, layout="constrained"
    )
    for axis, (head, rows, key) in zip(axes[0], panels, strict=True):
        lines_of(axis, rows, names, key)
        axis.set(yscale="log", xlabel="largest degree l", title=head)
        axis.title.set_fontsize(9)
        axis.xaxis.set_major_locator(MaxNLocator(integer=True))
        axis.grid(which="major", color="#e3e5e8", lw=0.7)
        axis.spines[["top", "right"]].set_visible(False)
    values = [row[key] for _, rows, key in panels for row in rows if row["backend"] in names and row[key]]
    if values:  # whole decades
        axes[0][0].set_ylim(10 ** math.floor(math.log10(min(values))), 10 ** math.ceil(math.log10(max(values))))
    axes[0][0].set_ylabel(label)
    found = {text: handle for axis in axes[0] for handle, text in zip(*axis.get_legend_handles_labels(), strict=True)}
    order = [name for name in names if name in found]
    figure.legend([found[name] for name in order], order, frameon=False, loc="outside right center")
    figure.suptitle(title, fontsize=9, x=0.01, ha="left")
    figure.savefig(picture.with_suffix(".png"), dpi=150)
    figure.savefig(picture.with_suffix(".svg"), metadata={"Date": None})
    plt.close(figure)


def draw(rows: list[dict], folder: Path) -> None:
    """The three pictures of these rows (`sweep`)."""
    one = rows[0]
    where = f"{one['conditions']['machine']['cpu']}, {one['threads']} thread{'s' * (one['threads'] > 1)}"
    note = f"{size(one)}, {one['dtype']}; {where}. Solid: eqtp; dotted: its plain torch; dashed: others"
    layouts = [
        (head, mine) for name, head in LAYOUTS.items() if (mine := [row for row in rows if row["layout"] == name])
    ]
    figure_of(
        [(*each, "ms") for each in layouts], RUNTIME, "milliseconds", f"Time: {note}", folder / "products_runtime"
    )
    title = f"Time per degree of freedom: {note}"
    figure_of(
        [(*each, "us_per_dof") for each in layouts],
        PER_DOF,
        "microseconds per degree of freedom",
        title,
        folder / "products_per_dof",
    )
    last = layouts[-1][1]
    panels = [("against float64", last, "error"), ("from equivariance, random rotations", last, "equivariance_error")]
    what = f"{last[0]['layout'].upper()}, {one['dtype']}"
    title = f"Error, relative to the largest value ({what}). Solid: eqtp; dashed: others"
    figure_of(panels, ERRORS, "largest error", title, folder / "products_error")


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--channels", type=int)
    parser.add_argument("--results", type=Path, default=ROOT / "bench" / "results")
    parser.add_argument("--page", type=Path, default=ROOT / "docs" / "products.md")
    options = parser.parse_args(argv)
    rows = read(options.results, options.threads, options.dtype)
    timed = sweep(rows, options.channels)
    if not rows or (options.channels is not None and not timed):
        print(
            f"no results for these options in {options.results}: run python -m bench products --json ...",
            file=sys.stderr,
        )
        return 1
    options.page.write_text(with_content(options.page.read_text(), rows, options.channels))
    if timed:
        draw(timed, options.page.parent)
    return 0


if __name__ == "__main__":
    sys.exit(main())

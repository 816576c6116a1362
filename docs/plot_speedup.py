"""The picture and the tables of the speed-up on a CPU, from bench/results/*.json: `python docs/plot_speedup.py` in the
repository root.

Draws docs/speedup.png (for each problem and pass, how many times faster than each peer) and rewrites what is between
the two speed-up marks: of docs/benchmarks.md the table of all results, of README.md that of the rows in SHORT. Nothing
is typed by hand: tests/test_docs.py compares both pages with the results.

    --threads N --dtype NAME   which of the results (default: 1, float32)
    --results FOLDER --readme FILE --page FILE --picture FILE
"""

from __future__ import annotations

import argparse
import json
import sys
import textwrap
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.append(str(ROOT))  # bench is not part of the installed package

from bench.peers import note  # noqa: E402
from bench.report import between  # noqa: E402

PASSES = {
    "fwd": "forward",
    "bwd": "forward + backward",
    "bwdbwd": "double backward",
    "energy+forces": "energy + forces",
    "energy+forces, compiled": "energy + forces, compiled",  # by eqtp.compile
}
# the first in the table
OPS = (
    "tensor_product_conv",
    "tensor_product",
    "spherical_harmonics",
    "segment_sum",
    "sevennet",
)
SHORT = (  # op, problem, pass of the rows of README.md
    ("tensor_product_conv", "mace-medium", "fwd"),
    ("tensor_product_conv", "mace-medium", "bwd"),
    ("tensor_product_conv", "sevennet-0", "fwd"),
    ("tensor_product_conv", "sevennet-0", "bwd"),
    ("spherical_harmonics", "lmax3", "fwd"),
    ("sevennet", "7net-0-64-atoms", "energy+forces"),
    ("sevennet", "7net-0-1000-atoms", "energy+forces"),
)
REMARKS = {  # of a peer, in every problem
    "cueq": "cueq and cueq-irmul are the plain torch path of cuequivariance-torch, the one that it has for CPUs: its"
    " closed kernels run on GPUs only",
    "e3nn-compile": "e3nn-compile, e3nn through torch.compile, was measured forward and forward + backward for"
    " mace-medium and sevennet-0 only",
}
BEGIN, END = "<!-- speed-up: begin -->", "<!-- speed-up: end -->"
COLOURS = ("#1f6f8b", "#d1702a", "#5b8c5a", "#8e5a9b", "#b8a038", "#4a4a4a", "#c25b7c")


def pass_of(row: dict) -> str:
    """A key of PASSES: a compiled model has rows of its own."""
    return row["pass"] + (", compiled" if row["backend"] == "eqtp-compiled" else "")


def read(folder: Path, threads: int = 1, dtype: str = "float32") -> list[dict]:
    """Our rows that were timed against peers, in the order of the table.

    Raises ValueError if two lines are about the same problem, pass and backend.
    """
    rows: dict[tuple, dict] = {}
    for path in sorted([*folder.glob("*.json"), *folder.glob("*.jsonl")]):
        for line in path.read_text().splitlines():
            row = json.loads(line)
            if not row["ratio_to"] or (row["threads"], row["dtype"]) != (threads, dtype):
                continue
            key = (
                OPS.index(row["op"]) if row["op"] in OPS else len(OPS),
                row["op"],
                row["problem"],
                list(PASSES).index(pass_of(row)),
            )
            if key in rows:
                raise ValueError(f"{path.name}: {row['op']} {row['problem']} {pass_of(row)} is in the results twice")
            rows[key] = row
    return [rows[key] for key in sorted(rows)]


def peers_of(rows: list[dict]) -> list[str]:
    """Names of all peers, in the order in which they appear."""
    return list(dict.fromkeys(peer for row in rows for peer in row["ratio_to"]))


def notes_of(rows: list[dict]) -> list[str]:
    """A phrase for each peer that does not do quite the same."""
    found = {(peer, note(peer, row["problem"])) for row in rows for peer in row["ratio_to"]}
    return sorted(f"{peer} {text}" for peer, text in found if text)


def remarks_of(rows: list[dict]) -> list[str]:
    """What must be known of these peers to read their columns."""
    return [text for peer, text in REMARKS.items() if peer in peers_of(rows)]


def number(value: float) -> str:
    """Three significant digits at most, as a person writes them."""
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def conditions(rows: list[dict]) -> str:
    """Machine and versions, as the rows say."""
    cpus = dict.fromkeys(row["machine"]["cpu"] for row in rows if row.get("machine"))
    versions = {name: version for row in rows for name, version in row.get("versions", {}).items()}
    threads = "1 thread" if rows[0]["threads"] == 1 else f"{rows[0]['threads']} threads"
    return "; ".join(
        [*cpus, threads, rows[0]["dtype"], ", ".join(f"{name} {version}" for name, version in versions.items())]
    )


def ratio_of(row: dict, peer: str) -> str:
    return f"{number(row['ratio_to'][peer])}x" if peer in row["ratio_to"] else "-"


def titles(row: dict) -> list[str]:
    """The first cells of a line."""
    return [f"{row['op']}, {row['problem']}", PASSES[pass_of(row)], number(row["ms"])]


def with_caption(lines: list[str], caption: str, rows: list[dict]) -> str:
    """A table and, below it, how to read it and where it was measured, in lines of at most 120 characters."""
    text = " ".join([caption, *(f"{each}." for each in (*notes_of(rows), *remarks_of(rows), conditions(rows)))])
    return "\n".join([*lines, "", *textwrap.wrap(text, 120, break_long_words=False, break_on_hyphens=False)])


def table(rows: list[dict]) -> str:
    """Markdown: our milliseconds, and each peer's time over ours."""
    if not rows:
        return "No results yet: `make bench` writes them."
    peers = peers_of(rows)
    lines = [f"| op, problem | pass | eqtp, ms | {' | '.join(peers)} |", "|---|---|" + "---:|" * (len(peers) + 1)]
    lines += [f"| {' | '.join([*titles(row), *(ratio_of(row, peer) for peer in peers)])} |" for row in rows]
    caption = (
        "A peer's column: its time over that of eqtp, both medians of one run. -: does not do it, or was not measured."
    )
    return with_caption(lines, caption, rows)


def short_table(rows: list[dict]) -> str:
    """Markdown: the rows of SHORT, with e3nn and with the quickest peer, whoever it is."""
    found = {(row["op"], row["problem"], pass_of(row)): row for row in rows}
    rows = [found[key] for key in SHORT if key in found]
    if not rows:
        return "No results yet: `make bench` writes them."
    lines = ["| op, problem | pass | eqtp, ms | e3nn | quickest peer |", "|---|---|---:|---:|---:|"]
    for row in rows:
        best = min(row["ratio_to"], key=row["ratio_to"].get)
        lines.append(f"| {' | '.join([*titles(row), ratio_of(row, 'e3nn'), f'{ratio_of(row, best)} ({best})'])} |")
    return with_caption(lines, "Nx: that peer's time over the time of eqtp, both medians of one run.", rows)


def with_table(page: str, text: str) -> str:
    """The text of a page with this table. Raises ValueError if the two marks are not there once each."""
    return between(page, BEGIN, END, text)


def label(figure, axis, rows: list[dict], heights: list[float]) -> None:
    """Axes, legend and what is written beside them."""
    from matplotlib.ticker import LogLocator, NullFormatter, StrMethodFormatter

    axis.axvline(1, color="#444444", lw=0.8)
    rings = "".join(f"\nring: {text}" for text in notes_of(rows))
    figure.supxlabel(f"time of the peer / time of eqtp; number: the best peer's{rings}", fontsize=9)
    axis.set(xscale="log", ylim=(heights[-1] + 1, 0))
    names = {
        "spherical_harmonics": "spherical harmonics ",
        "segment_sum": "segment sum ",
        "tensor_product": "product of rows ",
    }
    axis.set_yticks(heights, [f"{names.get(row['op'], '')}{row['problem']}   {PASSES[pass_of(row)]}" for row in rows])
    axis.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axis.xaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
    axis.xaxis.set_minor_formatter(NullFormatter())
    axis.tick_params(axis="y", length=0)
    axis.spines[["top", "right", "left"]].set_visible(False)
    figure.legend(
        frameon=False,
        loc="outside upper center",
        ncols=7,
        title=conditions(rows).rpartition("; ")[0],
        columnspacing=1.2,
        handletextpad=0.2,
    )


def draw(rows: list[dict], picture: Path) -> None:
    """One line per problem and pass, one dot per peer; the number is of the best peer that does the same. Rings:
    `notes_of`."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    heights, height, last = [], 0.0, None
    for row in rows:
        height += 1.0 if last in (None, row["problem"]) else 1.8
        heights.append(height)
        last = row["problem"]
    plt.rcParams.update({"font.size": 9})
    figure, axis = plt.subplots(figsize=(8.5, 1.5 + 0.24 * height), layout="constrained")
    for y, row in zip(heights, rows, strict=True):
        ratios = row["ratio_to"].values()
        axis.plot([min(1, *ratios), max(1, *ratios)], [y, y], color="#e3e5e8", lw=3, zorder=0, solid_capstyle="round")
        best = min(ratio for peer, ratio in row["ratio_to"].items() if not note(peer, row["problem"]))
        axis.annotate(
            f"{number(best)}x",
            (1, y),
            (38, 0),
            axis.get_yaxis_transform(),
            "offset points",
            ha="right",
            va="center",
            weight="bold",
        )
    for peer, colour in zip(peers_of(rows), COLOURS * 9, strict=False):
        dots = [
            (row["ratio_to"][peer], y, note(peer, row["problem"]))
            for row, y in zip(rows, heights, strict=True)
            if peer in row["ratio_to"]
        ]
        x, y, different = zip(*dots, strict=True)
        axis.scatter(
            x,
            y,
            s=26,
            facecolors=["white" if text else colour for text in different],
            edgecolors=colour,
            lw=1,
            label=peer,
            zorder=2,
        )
    label(figure, axis, rows, heights)
    figure.savefig(picture, dpi=150)
    plt.close(figure)


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--results", type=Path, default=ROOT / "bench" / "results")
    parser.add_argument("--readme", type=Path, default=ROOT / "README.md")
    parser.add_argument("--page", type=Path, default=ROOT / "docs" / "benchmarks.md")
    parser.add_argument("--picture", type=Path, default=ROOT / "docs" / "speedup.png")
    options = parser.parse_args(argv)
    rows = read(options.results, options.threads, options.dtype)
    if not rows:
        print(
            f"no results for {options.threads} threads and {options.dtype} in {options.results}: run make bench",
            file=sys.stderr,
        )
        return 1
    for page, text in ((options.readme, short_table(rows)), (options.page, table(rows))):
        page.write_text(with_table(page.read_text(), text))
    draw(rows, options.picture)
    return 0


if __name__ == "__main__":
    sys.exit(main())

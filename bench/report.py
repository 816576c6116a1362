"""Results of `make gpu` as files: JSON lines by op, and tables in Markdown."""

from __future__ import annotations

import json
from pathlib import Path

TITLES = {
    "fwd": "forward",
    "bwd": "forward + backward",
    "bwdbwd": "double backward, all of it",
    "grad": "backward",
    "gradgrad": "double backward",
    "energy+forces": "energy, forces, stress",
}


def read(folder: Path) -> list[dict]:
    """Rows of all results of a folder. A last line that was cut off, by a time limit, is left out."""
    rows = []
    for path in sorted(folder.glob("*.json")):
        for line in path.read_text().splitlines():
            try:
                rows.append(json.loads(line))
            except ValueError:
                continue
    return rows


def write(rows: list[dict], folder: Path, machine: str) -> list[Path]:
    """One file of JSON lines per op, <op>-<machine>.json, and <machine>.md; returns their paths."""
    folder.mkdir(parents=True, exist_ok=True)
    texts = {}
    for row in rows:
        texts.setdefault(f"{row['op']}-{machine}.json", []).append(json.dumps(row) + "\n")
    texts[f"{machine}.md"] = [tables(rows)]
    for name, lines in texts.items():
        (folder / name).write_text("".join(lines))
    return [folder / name for name in sorted(texts)]


def between(page: str, begin: str, end: str, text: str) -> str:
    """The text of a page with this between two marks. Raises ValueError unless each mark stands there once."""
    if page.count(begin) != 1 or page.count(end) != 1:
        raise ValueError(f"the page must have one {begin} and one {end}")
    head, rest = page.split(begin)
    return f"{head}{begin}\n{text}\n{end}{rest.split(end)[1]}"


def _size(row: dict) -> str:
    size = dict(row["size"])
    graph = size.pop("graph", None)
    return ", ".join([*([graph] if graph else []), *(f"{value:,} {name}" for name, value in size.items())])


def _cell(row: dict) -> str:
    """Milliseconds, the fraction of the floor, peak memory."""
    parts = [f"{row['ms']:.3g} ms"]
    if row.get("bandwidth_fraction") is not None:
        parts.append(f"{row['bandwidth_fraction']:.0%}")
    if row.get("peak_mb") is not None:
        parts.append(f"{row['peak_mb']:,.0f} MB")
    return ", ".join(parts)


def _floor(rows: list[dict]) -> str:
    """Milliseconds that the compulsory bytes need at the bandwidth that the machine was measured to have."""
    known = [row["ms"] * row["bandwidth_fraction"] for row in rows if row.get("bandwidth_fraction") is not None]
    return f"{known[0]:.3g} ms" if known else "-"


def conditions(rows: list[dict]) -> str:
    """Machine and versions, one line."""
    if not rows:
        return "No results."
    machine = rows[0]["machine"]
    rates = sorted({row["machine"]["copy_gb_s"] for row in rows if "copy_gb_s" in row["machine"]})
    copy = [f"copy {rates[0]:,.0f} to {rates[-1]:,.0f} GB/s (read + write)"] if rates else []
    where = [
        machine.get("gpu", machine["cpu"]),
        *([f"driver {machine['driver']}"] if "driver" in machine else []),
        *copy,
    ]
    return "; ".join([*where, ", ".join(f"{name} {version}" for name, version in rows[0]["versions"].items())])


def tables(rows: list[dict]) -> str:
    """A table per op: a line per problem, size, dtype and pass, a column per backend."""
    text = [f"# Results\n\n{conditions(rows)}\n"]
    text.append("Medians; the percentage is the floor over the time (the floor: compulsory bytes over the measured")
    text.append("bandwidth); MB: what the call adds at its peak. The L2 cache of a GPU is emptied before each call.")
    text.append("What a pass is: `bench/harness.py`.\n")
    for op in dict.fromkeys(row["op"] for row in rows):
        mine = [row for row in rows if row["op"] == op]
        who = list(dict.fromkeys(row["backend"] for row in mine))
        lines = {}
        for row in mine:
            key = row["problem"], _size(row), row["dtype"], TITLES.get(row["pass"], row["pass"])
            lines.setdefault(key, {})[row["backend"]] = row
        text += [
            f"## {op}\n",
            f"| problem | size | dtype | pass | floor | {' | '.join(who)} |",
            "|---|---|---|---|---:|" + "---:|" * len(who),
        ]
        for key, found in lines.items():
            cells = [_cell(found[name]) if name in found else "-" for name in who]
            text.append(f"| {' | '.join([*key, _floor(list(found.values())), *cells])} |")
        text.append("")
    return "\n".join(text)


def summary(rows: list[dict]) -> str:
    """A line per problem and pass: the quickest, one of our families or a peer, and its fraction of the floor."""
    best = {}
    for row in rows:
        key = row["op"], row["problem"], _size(row), row["dtype"], row["pass"]
        if row["pass"] in ("fwd", "grad", "gradgrad", "energy+forces") or row["op"] == "first_call":
            best[key] = min(best.get(key, row), row, key=lambda each: each["ms"])
    return "\n".join(f"{' '.join(key):90} {row['backend']:9} {_cell(row)}" for key, row in best.items()) or "no results"

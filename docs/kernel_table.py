"""Writes the table of docs/backends.md that says which ops have kernels, from the registry: python
docs/kernel_table.py"""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.append(str(Path(__file__).resolve().parents[1]))  # bench is not part of the installed package

import eqtp  # noqa: F401 (registers everything)
from bench.report import between
from eqtp.backends import registry

PAGE = Path(__file__).with_name("backends.md")
BEGIN, END = "<!-- kernels: begin -->", "<!-- kernels: end -->"
DEVICES = {("cpu",): "CPU", ("cuda",): "NVIDIA", ("cpu", "cuda"): "CPU, NVIDIA", ("cuda", "xpu"): "any GPU of Triton's"}


def table() -> str:
    """A row per op: its engine, and the devices on which each family has kernels for it."""
    families = registry.FAMILIES[:-1]
    lines = [f"| op | engine | {' | '.join(f'`{f}`' for f in families)} |", f"|---|---|{'---|' * len(families)}"]
    for op, engine in registry.ops().items():
        kernels = [registry.kernel(family, engine) if engine else None for family in families]
        cells = ["-" if k is None else DEVICES[k.devices] for k in kernels]
        lines.append(f"| `{op}` | {engine or 'plain torch'} | {' | '.join(cells)} |")
    return "\n".join(lines)


def with_table(page: str) -> str:
    """The text of the page with the table between its two marks."""
    return between(page, BEGIN, END, table())


if __name__ == "__main__":
    PAGE.write_text(with_table(PAGE.read_text()))

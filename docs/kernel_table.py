"""Writes the table of docs/backends.md that says which ops have kernels, from the registry: python
docs/kernel_table.py"""

from __future__ import annotations

from pathlib import Path

import eqtp  # noqa: F401 (registers everything)
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
    head, rest = page.split(BEGIN)
    return f"{head}{BEGIN}\n{table()}\n{END}{rest.split(END)[1]}"


if __name__ == "__main__":
    PAGE.write_text(with_table(PAGE.read_text()))

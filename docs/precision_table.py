"""Measures how large errors are in each dtype on a CPU: python docs/precision_table.py

Writes the table to bench/results/precision.md, with machine and versions, and to docs/conventions.md."""

from __future__ import annotations

import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path += [str(ROOT), str(ROOT / "tests")]  # bench and tests are not part of the installed package

import torch  # noqa: E402
from every_call import GRAPH_OPS, OPS, edges, tensors  # noqa: E402

import eqtp  # noqa: E402
from bench import machine, peers  # noqa: E402
from bench.report import between  # noqa: E402

PAGE = Path(__file__).with_name("conventions.md")
RESULTS = ROOT / "bench" / "results" / "precision.md"
BEGIN, END = "<!-- precision: begin -->", "<!-- precision: end -->"
DTYPES = (torch.float64, torch.float32, torch.float16, torch.bfloat16)
ROWS, NODES = 1000, 50


def call(name: str):
    """Function and float64 inputs."""
    if name in OPS:
        f, shapes = OPS[name]
        inputs = tensors(shapes, ROWS)
    else:
        op, of_nodes, of_edges = GRAPH_OPS[name]
        graph = eqtp.Graph(*edges(ROWS, NODES), NODES, NODES)
        inputs = tensors(of_nodes, NODES) + tensors(of_edges, ROWS)

        def f(*t):
            return op(graph, *t)

    return f, inputs


def cotangent(out: torch.Tensor) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randint(-8, 9, out.shape, generator=generator).to(out.dtype)  # exact in every dtype


def errors(name: str, reference: str, dtype: torch.dtype) -> list[float]:
    """Of output and gradients: largest difference from the reference family in float64, over the largest entry."""
    results = []
    for each, precision in ((reference, torch.float64), (name, dtype)):
        f, inputs = call(each)
        leaves = [t.to(dtype).to(precision).requires_grad_() for t in inputs]
        out = f(*leaves)
        results.append([t.double() for t in (out, *torch.autograd.grad(out, leaves, cotangent(out)))])
    found = [((a - b).abs().max() / b.abs().max()).item() for b, a in zip(*results, strict=True)]
    return [found[0], max(found[1:])]


def table() -> str:
    """A row per op with native kernels: errors of output and gradients in each dtype."""
    heads = [str(dtype).removeprefix("torch.") for dtype in DTYPES]
    lines = [f"| op, native kernels | {' | '.join(heads)} |", "|---|" + "---|" * len(heads)]
    for name in [*OPS, *GRAPH_OPS]:
        if name.endswith(" native"):
            pairs = [errors(name, name.replace(" native", " reference"), dtype) for dtype in DTYPES]
            cells = [f"{value:.1e}, {gradient:.1e}" for value, gradient in pairs]
            lines.append(f"| {name.removesuffix(' native')} | {' | '.join(cells)} |")
    return "\n".join(lines)


if __name__ == "__main__":
    torch.set_num_threads(1)
    measured = table()
    versions = ", ".join(f"{name} {version}" for name, version in peers.versions().items())
    head = f"{machine.cpu_name()}, 1 thread; {versions}; python docs/precision_table.py"
    RESULTS.write_text(f"# Errors by dtype\n\n{head}\n\n{measured}\n")
    PAGE.write_text(between(PAGE.read_text(), BEGIN, END, measured))

"""How long the first step of a model takes in a new process: `python -m bench.first_call --device cuda --backend jit
--json FILE`.

The convolutions of SevenNet-0's five layers (three different plans) and the spherical harmonics, forward and backward,
on copper (36,288 edges). Reported is the first step less a later one: compiling, or reading what was compiled before
(EQTP_CACHE_DIR, TRITON_CACHE_DIR), and loading. What torch itself needs at its first kernel is not in the time.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from pathlib import Path

import torch

import eqtp
from bench import harness, machine, peers
from eqtp.backends import registry as backends
from eqtp.testing import problems

LAYERS = ("sevennet-0-first", "sevennet-0", "sevennet-0", "sevennet-0", "sevennet-0-last")


def model(backend: str, device: str, graph: str, nodes: int, edges: int):
    """step(): forward and backward of all layers; waits until it is done."""
    g = harness.neighbours(graph, nodes, edges, device)
    g.transpose()

    def number(*shape):
        return harness.random(*shape, dtype=torch.float32, seed=1, device=device)

    xyz = number(g.num_edges, 3)
    harmonics = (
        backend if backends.why_not(backend, "spherical_harmonics", None, xyz.device, xyz.dtype) is None else "auto"
    )
    plans = {name: problems.plan(name) for name in LAYERS}
    inputs = {name: (number(g.num_src, p.dim_in1), number(g.num_edges, p.weight_numel)) for name, p in plans.items()}

    def step():
        y = eqtp.spherical_harmonics([0, 1, 2], xyz, True, "component", backend=harmonics)  # [e, 9]
        for name in LAYERS:
            x, w = inputs[name]
            out = eqtp.tensor_product_conv(x, y, w, plans[name], g, backend=backend)
            torch.autograd.grad(out.sum(), (x, w, xyz), retain_graph=True)
        if device == "cuda":
            torch.cuda.synchronize()

    return step


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.first_call", description=__doc__.partition("\n")[0])
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--backend", default="native")
    parser.add_argument(
        "--cache", default="unknown", help="what the caches were before: cold or warm; goes into the result"
    )
    parser.add_argument("--graph", default="crystal-36k")
    parser.add_argument("--nodes", type=int, default=1000)
    parser.add_argument("--edges", type=int, default=20_000)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args(argv)
    device = torch.device(options.device)
    reason = backends.why_not(
        options.backend, "tensor_product_conv", problems.plan("sevennet-0"), device, torch.float32
    )
    if reason:
        print(f"{options.backend} missing: {reason}")
        return 0
    step, seconds = model(options.backend, options.device, options.graph, options.nodes, options.edges), []
    a = torch.rand(64, 64, device=device, requires_grad=True)
    torch.autograd.grad((a @ a).sum(), a)
    for _ in range(3):
        start = time.perf_counter()
        step()
        seconds.append(time.perf_counter() - start)
    ms = 1e3 * max(0.0, seconds[0] - min(seconds[1:]))
    print(
        f"{options.backend}, {options.cache} cache: first step {seconds[0]:.3f} s, later ones {min(seconds[1:]):.3f} s",
        flush=True,
    )
    if options.json:
        gpu = {"gpu": torch.cuda.get_device_name(), "driver": machine.driver_version()} if device.type == "cuda" else {}
        row = {
            "op": "first_call", "problem": "sevennet-0, 5 layers", "pass": f"{options.cache} cache",
            "backend": options.backend, "dtype": "float32", "device": options.device,
            "threads": None if gpu else torch.get_num_threads(), "ms": ms, "ratio_to": {}, "missing": {},
            "step_ms": 1e3 * min(seconds[1:]), "size": {"graph": options.graph},
            "machine": {"cpu": machine.cpu_name(), **gpu},
            "versions": {"eqtp": eqtp.__version__, **peers.versions(options.device)},
        }  # fmt: skip
        options.json.write_text(json.dumps(row) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())

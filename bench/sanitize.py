"""Every kernel of every family once, on small shapes: what compute-sanitizer watches in `make gpu`.

    compute-sanitizer --tool memcheck python -m bench.sanitize --device cuda --backend jit,native,triton

Operands and the graph are made on the CPU, so that hardly a kernel of torch runs. Each result is compared with the
reference. Prints a line per family; exit code 1 if a result is wrong.
"""

from __future__ import annotations

import argparse
import importlib
import sys

import torch

import eqtp
from bench import harness
from eqtp.backends import registry as backends

NODES, EDGES = 5, 41
DTYPES = (torch.float32, torch.float64, torch.bfloat16)
OPS = ("tensor_product_conv", "tensor_product", "spherical_harmonics", "segment_sum", "segment_max", "segment_softmax")


def small_plan() -> eqtp.TensorProductPlan:
    """Uneven multiplicities, more and fewer channels than a warp has lanes, degrees to 3."""
    in1, in2, out, instructions = eqtp.Irreps("5x0e + 33x1o + 8x2e"), eqtp.Irreps("0e + 1o + 2e"), [], []
    for i, (mul, ir1) in enumerate(in1):
        for j, (_, ir2) in enumerate(in2):
            for ir in ir1 * ir2:
                if ir.l <= 3:
                    instructions.append((i, j, len(out), "uvu", True))
                    out.append((mul, ir))
    return eqtp.TensorProductPlan(in1, in2, eqtp.Irreps(out), instructions)


def small_graph(device: str) -> eqtp.Graph:
    """A graph with nodes that receive nothing and one that receives most, sorted on the CPU."""
    at = torch.Generator().manual_seed(0)
    src, dst = (torch.randint(0, high, (EDGES,), generator=at) for high in (NODES, NODES - 1))
    dst[EDGES // 2 :] = 1
    graph = eqtp.Graph(src, dst, NODES, NODES)
    graph.transpose()
    return graph.to(device)


def calls(op: str, dtype: torch.dtype, device: str):
    """(f(backend, *inputs), inputs, shape of the output, passes) of an op."""
    plan, graph = small_plan(), small_graph(device)

    def number(*shape, seed):
        return harness.random(*shape, dtype=dtype, seed=seed).detach().to(device).requires_grad_()

    row, passes = (number(EDGES, 37, seed=1),), ["fwd", "bwd", "bwdbwd"]
    f = getattr(importlib.import_module(f"eqtp.ops.{op}"), op)
    if op in ("tensor_product_conv", "tensor_product"):
        rows, more = (NODES, (plan, graph)) if op == "tensor_product_conv" else (EDGES, (plan,))
        inputs = (
            number(rows, plan.dim_in1, seed=1),
            number(EDGES, plan.dim_in2, seed=2),
            number(EDGES, plan.weight_numel, seed=3),
        )
        return lambda backend, *t: f(*t, *more, backend=backend), inputs, (rows, plan.dim_out), passes
    if op == "spherical_harmonics":
        return (
            lambda backend, xyz: f([0, 1, 2, 3], xyz, True, backend=backend),
            (number(EDGES, 3, seed=1),),
            (EDGES, 16),
            passes,
        )
    softmax = op == "segment_softmax"
    return (
        lambda backend, x: f(x, graph, backend=backend),
        row,
        (EDGES if softmax else NODES, 37),
        passes if softmax else passes[:2],
    )


def compare(op: str, family: str, dtype: torch.dtype, device: str) -> str | None:
    """None if the family computes what the reference does in float64, else what is wrong. Raises Missing."""
    plan = small_plan() if op.startswith("tensor") else None
    harness.require(family, op, plan, dtype, torch.device(device))
    f, inputs, shape, passes = calls(op, dtype, device)
    on_cpu, inputs64, _, _ = calls(op, dtype, "cpu")
    inputs64 = tuple(t.detach().double().requires_grad_() for t in inputs64)
    cotangent = harness.random(*shape, dtype=dtype, seed=9, grad=False)
    for pass_ in passes:
        got = harness.run_pass(lambda *t: f(family, *t), inputs, cotangent.to(device), pass_)
        want = harness.run_pass(lambda *t: on_cpu("reference", *t), inputs64, cotangent.double(), pass_)
        for n, (a, b) in enumerate(zip(got, want, strict=True)):
            off = (a.detach().cpu().double() - b).abs().max().item() / (b.abs().max().item() or 1.0)
            if not off <= harness.TOLERANCE[dtype]:
                return f"{op} {pass_} {str(dtype)[6:]}: result {n} is off by {off:.1e} of its scale"
    return None


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.sanitize", description=__doc__.partition("\n")[0])
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cuda")
    parser.add_argument(
        "--backend", type=lambda text: text.split(","), default=[f for f in backends.FAMILIES if f != "reference"]
    )
    parser.add_argument(
        "--dtype", type=lambda text: [getattr(torch, name) for name in text.split(",")], default=list(DTYPES)
    )
    options = parser.parse_args(argv)
    wrong = []
    for family in options.backend:
        said = {}
        for op in OPS:
            for dtype in options.dtype:
                try:
                    text = compare(op, family, dtype, options.device) or "ok"
                except harness.Missing as reason:
                    text = f"not run: {reason}"
                except Exception as error:  # of a kernel, or of all after one that broke the GPU's context
                    text = harness.reason_of(error)
                if text != "ok" and not text.startswith("not run"):
                    wrong.append(f"{family} {op} {str(dtype)[6:]}: {text}")
                said.setdefault(text, []).append(f"{op} {str(dtype)[6:]}")
        for text, which in said.items():
            print(f"{family:10} {text}: {', '.join(which)}", flush=True)
    print(f"{len(wrong)} wrong{', the first: ' + wrong[0] if wrong else ''}")
    return int(bool(wrong))


if __name__ == "__main__":
    sys.exit(main())

"""Every kernel of every family once, on the small problems of its benchmark (bench/registry.py): what
compute-sanitizer watches in `make gpu`.

    compute-sanitizer --tool memcheck python -m bench.sanitize --device cuda --backend jit,native,triton

Operands and the graph are made on the CPU, so that hardly a kernel of torch runs. Each result is compared with the
reference. Prints a line per family; exit code 1 if a result is wrong.
"""

from __future__ import annotations

import argparse
import sys

import torch

from bench import harness
from bench.registry import with_kernels
from eqtp.backends import registry as backends

DTYPES = (torch.float32, torch.float64, torch.bfloat16)


def compare(op: str, problem: str, family: str, dtype: torch.dtype, device: str) -> str | None:
    """None if the family computes what the reference does in float64, else what is wrong. Raises Missing."""
    module = with_kernels()[op]
    size = module.CHECK_SIZE
    on_cpu, here = (module.case(problem, dtype, device=where, **size) for where in ("cpu", device))
    f, passes = here.ours(family), [p for p in ("fwd", "bwd", "bwdbwd") if p in module.PASSES]
    inputs = tuple(t.detach().to(device).requires_grad_() for t in on_cpu.inputs.values())
    for pass_ in passes:
        got = harness.run_pass(f, inputs, on_cpu.cotangent.to(device), pass_)
        for n, (a, b) in enumerate(zip(got, harness.expected(on_cpu, pass_), strict=True)):
            off = (a.detach().cpu().double() - b).abs().max().item() / (b.abs().max().item() or 1.0)
            if not off <= harness.TOLERANCE[dtype]:
                return f"{problem} {pass_} {str(dtype)[6:]}: result {n} is off by {off:.1e} of its scale"
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
        for op, problem in ((op, problem) for op, module in with_kernels().items() for problem in module.SMALL):
            for dtype in options.dtype:
                try:
                    text = compare(op, problem, family, dtype, options.device) or "ok"
                except harness.Missing as reason:
                    text = f"not run: {reason}"
                except Exception as error:  # of a kernel, or of all after one that broke the GPU's context
                    text = harness.reason_of(error)
                if text != "ok" and not text.startswith("not run"):
                    wrong.append(f"{family} {op} {str(dtype)[6:]}: {text}")
                said.setdefault(text, {}).setdefault(f"{op} {problem}", []).append(str(dtype)[6:])
        for text, which in said.items():
            print(f"{family}: {text}", flush=True)
            for what, dtypes in which.items():
                print(f"  {what:<50} {', '.join(dtypes)}", flush=True)
    print(f"{len(wrong)} wrong{', the first: ' + wrong[0] if wrong else ''}")
    return int(bool(wrong))


if __name__ == "__main__":
    sys.exit(main())

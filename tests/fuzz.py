"""Random ops, graphs, dtypes and strides under random transforms, against another way in float64: `make fuzz`.

    python tests/fuzz.py [--cases 10000] [--seed 0] [--workers 2]

Prints how many cases were run, and of a failure the smallest case that fails and the seed. tests/test_fuzz.py runs
200.
"""

from __future__ import annotations

import argparse
import multiprocessing
import sys
import time
import traceback
import warnings
from collections import Counter
from pathlib import Path

import torch
from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis import strategies as st
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.autograd import forward_ad
from torch.fx.experimental.proxy_tensor import make_fx
from torch.utils.checkpoint import checkpoint

sys.path.insert(0, str(Path(__file__).parent))

import fuzz_cases

# Largest difference, relative to the largest entry: of a value and of a gradient. Half precision is what its storage
# rounds, of inputs that the float64 oracle gets rounded, too
TOLERANCE = {torch.float64: 1e-11, torch.float32: 1e-5, torch.bfloat16: 2.0**-7, torch.float16: 2.0**-10}
ORDINARY = (torch.float64, torch.float32)
done = Counter()  # transform -> cases


def assert_close(actual, expected, dtype, what: str, slack: float = 1.0) -> None:
    for n, (a, b) in enumerate(zip(actual, expected, strict=True)):
        assert a.shape == b.shape, f"{what} {n}: shape {list(a.shape)}, expected {list(b.shape)}"
        assert a.dtype == dtype, f"{what} {n}: {a.dtype}, expected {dtype}"
        if b.numel():
            scale = b.abs().max().item()
            error = (a.detach().double() - b.detach()).abs().max().item()
            allowed = slack * TOLERANCE[dtype] * max(scale, 0.05)  # terms near 1 may cancel
            assert error <= allowed, f"{what} {n}: off by {error:.1e}, largest entry {scale:.1e}, {dtype}"


def cotangent(t: torch.Tensor) -> torch.Tensor:
    """Numbers that every dtype holds."""
    return torch.randn(t.shape, generator=torch.Generator().manual_seed(7)).bfloat16().half().to(t.dtype)


def gradients(f, inputs, create_graph=False):
    """Gradients of <cotangent, f(*inputs)>, zeros where there is none."""
    out = f(*inputs)
    if not out.requires_grad:
        return out, [torch.zeros_like(t) for t in inputs]
    return out, torch.autograd.grad(out, inputs, cotangent(out), create_graph=create_graph, materialize_grads=True)


def leaves(inputs):
    """New leaves, with the strides of the inputs."""
    return [t.detach().requires_grad_() for t in inputs]


# ------------------------------------------------------------------------ transforms
def value(f, inputs):
    return [f(*inputs)]


def backward(f, inputs):
    out, found = gradients(f, leaves(inputs))
    return [out.detach(), *found]


def second(f, inputs):
    inputs = leaves(inputs)
    _, first = gradients(lambda *t: f(*t).sin(), inputs, create_graph=True)
    loss = sum((t * cotangent(t)).sum() for t in first)
    if not loss.requires_grad:
        return [torch.zeros_like(t) for t in inputs]
    return torch.autograd.grad(loss, inputs, materialize_grads=True)


def writable(inputs):
    """Copies of what is one number for many, which torch cannot make dual."""
    return [t.clone(memory_format=torch.contiguous_format) if 0 in t.stride() else t for t in inputs]


def jvp(f, inputs):
    inputs = writable(inputs)
    return torch.func.jvp(f, tuple(inputs), tuple(cotangent(t) for t in inputs))


def dual(f, inputs):
    with forward_ad.dual_level():
        out = f(*(forward_ad.make_dual(t, cotangent(t)) for t in writable(inputs)))
        primal, tangent = forward_ad.unpack_dual(out)
        return [primal, torch.zeros_like(primal) if tangent is None else tangent]


def func_grad(f, inputs):
    return torch.func.grad(lambda *t: f(*t).sin().sum(), argnums=tuple(range(len(inputs))))(*inputs)


def vmapped(count):
    def run(f, inputs):
        batched = [torch.stack([t * (k + 1) for k in range(count)], 1 if t.ndim else 0) if count else
                   t.new_empty((t.shape[0], 0, *t.shape[1:]) if t.ndim else (0,)) for t in inputs[:1]]  # fmt: skip
        in_dims = (1 if inputs[0].ndim else 0, *[None] * (len(inputs) - 1))
        return [torch.func.vmap(f, in_dims=in_dims)(*batched, *inputs[1:])]

    return run


def vmap_of_nothing(f, inputs):
    out = f(*inputs)
    return [out.new_empty(0, *out.shape)]


def hessian(f, inputs):
    x, *rest = writable(inputs)
    return [torch.func.hessian(lambda x: f(x, *rest).sin().sum())(x)]


def inference(f, inputs):
    with torch.inference_mode():
        out = f(*inputs)
    return [out.clone(), *backward(f, inputs)]


def checkpointed(f, inputs):
    return backward(lambda *t: checkpoint(f, *t, use_reentrant=False), inputs)


def traced_by(mode):
    def run(f, inputs):
        return [make_fx(f, tracing_mode=mode, _allow_non_fake_inputs=mode != "real")(*inputs)(*inputs)]

    return run


def fake(f, inputs):
    with FakeTensorMode(allow_non_fake_inputs=True) as mode:
        shape = f(*map(mode.from_tensor, inputs)).shape
    out = f(*inputs)
    assert out.shape == shape and type(out) is torch.Tensor
    return [out]


def compiled(f, inputs):
    torch._dynamo.reset()
    return backward(torch.compile(f, fullgraph=True, backend="aot_eager"), inputs)


class Module(torch.nn.Module):
    def __init__(self, f):
        super().__init__()
        self.f = f

    def forward(self, *inputs):
        return self.f(*inputs)


def exported(f, inputs):
    return [torch.export.export(Module(f), tuple(inputs), strict=False).module()(*inputs)]


def jit_traced(f, inputs):
    return [torch.jit.trace(f, tuple(inputs), check_trace=False)(*inputs)]


# name: (transform, the same for the oracle, how often, of what dtypes, whether a second derivative is needed)
TRANSFORMS = {
    "value": (value, value, 4, None, False),
    "backward": (backward, backward, 6, None, False),
    "second": (second, second, 6, ORDINARY, True),
    "jvp": (jvp, jvp, 3, ORDINARY, False),
    "dual": (dual, dual, 2, ORDINARY, False),
    "func_grad": (func_grad, func_grad, 3, ORDINARY, False),
    "vmap 0": (vmapped(0), vmap_of_nothing, 1, ORDINARY, False),
    **{f"vmap {n}": (vmapped(n), vmapped(n), 1, ORDINARY, False) for n in (1, 3)},
    "hessian": (hessian, hessian, 2, (torch.float64,), True),
    "inference": (inference, lambda f, x: [f(*x), *backward(f, x)], 2, None, False),
    "checkpoint": (checkpointed, backward, 1, None, False),
    **{f"make_fx {mode}": (traced_by(mode), value, 1, None, False) for mode in ("real", "fake", "symbolic")},
    "fake": (fake, value, 2, None, False),
    "compile": (compiled, backward, 1, None, False),
    "export": (exported, value, 1, None, False),
    "jit.trace": (jit_traced, value, 1, None, False),
}
NAMES = [name for name, (_, _, weight, _, _) in TRANSFORMS.items() for _ in range(weight)]


def check(case: fuzz_cases.Case, name: str) -> None:
    """The case under the transform, then plainly again: nothing may be left of the transform."""
    transform, same, _, dtypes, smooth = TRANSFORMS[name]
    dtype = case.inputs[0].dtype
    if (dtypes and dtype not in dtypes) or (smooth and not case.smooth):
        transform, same, name = backward, backward, "backward"
    if name == "hessian" and not 0 < case.inputs[0].numel() <= 60:  # of nothing: an error in torch
        transform, same, name = second, second, "second"
    exact = [t.detach().double() for t in case.inputs]
    slack = 20.0 if name in ("second", "hessian") else 4.0 if dtype == torch.float16 else 2.0
    assert_close(transform(case.f, case.inputs), same(case.oracle, exact), dtype, f"{case.name}: {name}", slack)
    again = backward(case.f, case.inputs), backward(case.oracle, exact)
    assert_close(*again, dtype, f"{case.name}: plainly, after {name}", 4.0 if dtype == torch.float16 else 2.0)
    done[name] += 1


def run(cases: int, first: int) -> None:
    """Checks this many random cases, the same for the same seed; raises the error of the smallest that fails."""

    @seed(first)
    @settings(max_examples=cases, deadline=None, database=None, suppress_health_check=list(HealthCheck),
              phases=[Phase.generate, Phase.shrink], print_blob=False)  # fmt: skip
    @given(fuzz_cases.cases(), st.sampled_from(NAMES))
    def every(case, name):
        check(case, name)

    torch.set_num_threads(1)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", torch.jit.TracerWarning)  # sizes are checked in Python
        every()


CHUNK = 100  # cases of one seed


def _work(job: tuple[int, int]) -> tuple[int, Counter, str]:
    first, cases = job
    done.clear()
    try:
        run(cases, first)
    except BaseException:
        return first, Counter(done), traceback.format_exc(limit=-4)
    return first, Counter(done), ""


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--cases", type=int, default=10_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--workers", type=int, default=2)
    options = parser.parse_args(argv)
    jobs = [(options.seed + n, min(CHUNK, options.cases - n * CHUNK)) for n in range(-(-options.cases // CHUNK))]
    start, total, wrong = time.time(), Counter(), []
    with multiprocessing.get_context("spawn").Pool(options.workers) as pool:
        for first, counts, error in pool.imap_unordered(_work, jobs):
            total += counts
            if error:
                wrong.append(first)
                print(f"\nseed {first}:\n{error}", flush=True)
    for name, count in sorted(total.items()):
        print(f"{name:20} {count:7,}")
    say = f"{len(wrong)} of {len(jobs)} seeds failed: {wrong}" if wrong else "all right"
    print(f"{sum(total.values()):,} cases in {time.time() - start:,.0f} s: {say}")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())

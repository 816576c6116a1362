"""What every benchmark does the same way: the passes, the correctness gate, the clock, memory and floors.

A pass is one thing that is timed, for our kernels and for every peer through the same lines of `run_pass`:

    fwd      out = f(x, y, w) under no_grad
    bwd      out = f(x, y, w), then the gradients of x, y and w (all require grad) for a random cotangent
             (printed as fwd+bwd: the time includes the forward)
    bwdbwd   the same with a graph of the gradients, the sum of their squares as a force-like loss, and the
             gradients of that loss for x, y and w (the time includes everything)
    grad         the gradients of bwd by themselves, from an output that is there (printed as bwd alone)
    gradgrad     gradients of x, y and w for random cotangents of the gradients that bwd gave, by themselves

A pass consists of stages (`STAGES`); its compulsory bytes and operations are their sums. In each stage
every operand is read once and every result written once, nothing else:

    fwd      reads x, y, w, indices                                 writes out
    bwd      reads x, y, w, indices, the cotangent                  writes gx, gy, gw
    bwdbwd   reads what bwd reads and cotangents of gx, gy, gw      writes the gradients of x, y, w

The loss (squares and sums of gx, gy, gw) is inside the time but not in the bytes. Sorting the graph is not in
the time: a model does it once for all its layers. Caches of compiled code are warm. Inputs are random, never zeros.

On a GPU the clock is a pair of CUDA events around each call. Before each call FLUSH_BYTES are written, outside of the
clock: nothing is left of the inputs in the L2 cache, and the GPU is busy for a millisecond or so while Python prepares
the launches: what is timed is the GPU's work, as in a model that keeps it busy. Peak memory is what torch's allocator
says.
"""

from __future__ import annotations

import ctypes
import gc
import math
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cache, partial

import torch

import eqtp
from eqtp.backends import registry as backends
from eqtp.testing import problems

STAGES = {
    "fwd": ("fwd",),
    "bwd": ("fwd", "bwd"),
    "bwdbwd": ("fwd", "bwd", "bwdbwd"),
    "grad": ("bwd",),
    "gradgrad": ("bwdbwd",),
}
TITLES = {"fwd": "fwd", "bwd": "fwd+bwd", "bwdbwd": "bwdbwd", "grad": "bwd alone", "gradgrad": "bwdbwd alone"}
WHOLE = {"grad": "bwd", "gradgrad": "bwdbwd"}  # the pass that contains, and is checked for, one that is timed by itself
# relative to the scale of each piece; bfloat16 has 8 bits
TOLERANCE = {
    torch.float64: 1e-12,
    torch.float32: 1e-5,
    torch.bfloat16: 3e-2,
}
MAX_CALLS = 200  # in one round
FLUSH_BYTES = 3 << 30  # many times the largest L2 cache: see above


class Missing(Exception):
    """A peer or a backend that cannot take part, with the reason as its text."""


class WrongKernel(Exception):
    """A kernel that does not agree with the float64 reference; it is not timed."""


@dataclass
class Case:
    """One problem at one size, with all that is needed to check it and to time it."""

    problem: str
    size: dict[str, int]  # rows, nodes, edges or points, as they go into the JSON file
    inputs: dict[str, torch.Tensor]  # the operands that are differentiated, by name, in order
    cotangent: torch.Tensor  # [as the output]
    ours: Callable[[str], Callable]  # backend -> f(*inputs); raises Missing
    peer: Callable[[str], Callable]  # name -> f(*inputs); raises Missing
    bytes: dict[str, int]  # compulsory bytes by stage
    flops: dict[str, int]  # operations by stage
    pieces: dict[str, list[slice]] = field(default_factory=dict)  # columns by path or irrep: compared one by one


def require(backend: str, op: str, plan, dtype: torch.dtype, device: torch.device) -> None:
    """Raise Missing, with the reason, if one of our backends cannot run the op with the plan (None: an op without a
    plan)."""
    reason = None if backend == "auto" else backends.why_not(backend, op, plan, device, dtype)
    if reason:
        raise Missing(reason)


def neighbours(name: str, nodes: int, edges: int, device: str) -> eqtp.Graph:
    """The graph of problems.graph, sorted, on a device."""
    ends = problems.graph(name, nodes, edges)
    src, dst = (torch.from_numpy(t).to(device) for t in (ends.src, ends.dst))  # [e], [e]
    return eqtp.Graph(src, dst, ends.num_nodes, ends.num_nodes)


def random(
    *shape: int, dtype: torch.dtype, seed: int, grad: bool = True, device: torch.device | str = "cpu"
) -> torch.Tensor:
    """Normal random numbers, the same in every dtype up to rounding."""
    generator = torch.Generator(device).manual_seed(seed)
    values = torch.randn(shape, generator=generator, dtype=torch.float64, device=device)
    return values.to(dtype).requires_grad_(grad)


def multilinear_bytes(inputs: dict[str, torch.Tensor], out: torch.Tensor, index_bytes: int = 0) -> dict[str, int]:
    """Compulsory bytes by stage as the head of this file says."""

    def size(t):
        return t.numel() * t.element_size()

    operands, result = sum(map(size, inputs.values())), size(out)
    return {
        "fwd": operands + result + index_bytes,
        "bwd": 2 * operands + result + index_bytes,
        "bwdbwd": 3 * operands + result + index_bytes,
    }


def case_of_signals(
    problem: str,
    inputs: dict[str, torch.Tensor],
    cotangent: torch.Tensor,
    ours: Callable,
    peer: Callable,
    flops: int | dict,
    pieces: list[slice],
) -> Case:
    """A product of coefficients on the sphere, rows first. flops: by stage, or of the forward alone: then twice and
    three times as many later."""
    return Case(
        problem=problem,
        size={"edges": len(cotangent)},
        inputs=inputs,
        cotangent=cotangent,
        ours=ours,
        peer=peer,
        bytes=multilinear_bytes(inputs, cotangent),
        flops=flops if isinstance(flops, dict) else {"fwd": flops, "bwd": 2 * flops, "bwdbwd": 3 * flops},
        pieces={"out": pieces},
    )


def case_of_segments(
    op: Callable,
    problem_id: str,
    dtype: torch.dtype,
    size: dict,
    device: str,
    peer: Callable,
    costs: Callable,
    to="nodes",
) -> Case:
    """A segment op on edge rows as wide as the messages of a convolution. peer: f(name, dst, num_dst); costs:
    f(edges, nodes, width, itemsize) -> bytes and operations by stage; to: what the rows of the output are."""
    width = problems.tensor_product(problem_id).dim_out
    csr = neighbours(size["graph"], size["nodes"], size["edges"], device)
    sizes = {"nodes": csr.num_dst, "edges": csr.num_edges}
    moved, flops = costs(csr.num_edges, csr.num_dst, width, dtype.itemsize)

    def ours(backend: str) -> Callable:
        require(backend, op.__name__, None, dtype, torch.device(device))
        return lambda x: op(x, csr, backend=backend)

    return Case(
        problem=problem_id,
        size=sizes,
        inputs={"x": random(csr.num_edges, width, dtype=dtype, seed=1, device=device)},
        cotangent=random(sizes[to], width, dtype=dtype, seed=2, device=device, grad=False),
        ours=ours,
        peer=lambda name: peer(name, csr.dst, csr.num_dst),
        bytes=moved,
        flops=flops,
    )


def degrees_of(lmax: int, lmin: int = 0) -> list[slice]:
    """Components of each degree lmin..lmax."""
    return [slice(l * l, (l + 1) ** 2) for l in range(lmin, lmax + 1)]


def run_pass(f: Callable, inputs: tuple, cotangent: torch.Tensor, pass_: str) -> tuple[torch.Tensor, ...]:
    """One timed call. Returns (out,), (out, *gradients) or the gradients of the force-like loss."""
    if pass_ == "fwd":
        with torch.no_grad():
            return (f(*inputs),)
    out = f(*inputs)
    gradients = torch.autograd.grad(out, inputs, cotangent, create_graph=pass_ == "bwdbwd")
    if pass_ == "bwd":
        return (out, *gradients)
    loss = sum(g.square().sum() for g in gradients)
    return torch.autograd.grad(loss, inputs)


def call_of(f: Callable, inputs: tuple, cotangent: torch.Tensor, pass_: str) -> Callable[[], tuple[torch.Tensor, ...]]:
    """What is timed. What the passes grad and gradgrad start from is made at the first call, which a warm-up makes."""
    if pass_ not in WHOLE:
        return partial(run_pass, f, inputs, cotangent, pass_)

    @cache
    def prepared():
        out = f(*inputs)
        if pass_ == "grad":
            return out, cotangent
        results = torch.autograd.grad(out, inputs, cotangent, create_graph=True)
        return results, [torch.randn_like(g) for g in results]

    return lambda: torch.autograd.grad(prepared()[0], inputs, prepared()[1], retain_graph=True, allow_unused=True)


def result_names(inputs: dict[str, torch.Tensor], pass_: str) -> list[tuple[str, str]]:
    """(what it is, the operand whose columns it has) of each tensor that `run_pass` returns."""
    first = [(f"gradient of {name}", name) for name in inputs]
    second = [(f"second-order gradient of {name}", name) for name in inputs]
    return {"fwd": [("output", "out")], "bwd": [("output", "out"), *first], "bwdbwd": second}[pass_]


def expected(case: Case, pass_: str) -> tuple[torch.Tensor, ...]:
    """What `run_pass` must return, from the reference in float64."""
    inputs = tuple(t.detach().double().requires_grad_() for t in case.inputs.values())
    return run_pass(case.ours("reference"), inputs, case.cotangent.double(), pass_)


def check(case: Case, f: Callable, who: str, passes: list[str], tolerance: float | None = None) -> None:
    """Compare `f` with the float64 reference: output and each operand's gradients, one path or irrep at a
    time.

    Raises WrongKernel, one sentence that names the tensor and the columns, if a piece is off by more than the
    tolerance relative to its largest entry, or is not finite.
    """
    inputs = tuple(case.inputs.values())
    tolerance = tolerance or TOLERANCE[case.cotangent.dtype]
    for pass_ in dict.fromkeys(WHOLE.get(name, name) for name in passes):
        got, want = run_pass(f, inputs, case.cotangent, pass_), expected(case, pass_)
        for (what, name), a, b in zip(result_names(case.inputs, pass_), got, want, strict=True):
            if a.shape != b.shape:
                raise WrongKernel(
                    f"{case.problem}, {TITLES[pass_]}: {who}: {what} is {list(a.shape)}, not {list(b.shape)}"
                )
            for piece in case.pieces.get(name) or [slice(0, b.shape[-1])]:
                scale = b[..., piece].abs().max().item() or 1.0
                off = (a[..., piece].double() - b[..., piece]).abs().max().item() / scale
                if not off <= tolerance:
                    where = f"{case.problem}, {TITLES[pass_]}: {who}: {what}, columns {piece.start}:{piece.stop}"
                    raise WrongKernel(f"{where}, is off by {off:.1e} of its scale, allowed {tolerance:.0e}")


def reason_of(error: Exception) -> str:
    """Kind and first line of an exception."""
    lines = str(error).strip().splitlines() or [""]
    return f"{type(error).__name__}: {lines[0][:200]}"


def _status(key: str) -> float:
    """A line of /proc/self/status, in MB."""
    with open("/proc/self/status") as lines:
        return next(int(line.split()[1]) / 1024 for line in lines if line.startswith(key + ":"))


def peak_mb(call: Callable[[], object], device: torch.device | str = "cpu") -> float | None:
    """Peak memory that one call adds, results included, in MB. On the CPU resident memory: VmHWM (reset before) minus
    VmRSS before.

    Free heap is given back to the system first, so that memory freed earlier does not hide what the call
    takes. None where the system does not let a process reset its high-water mark.
    """
    if torch.device(device).type == "cuda":
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        call()
        return (torch.cuda.max_memory_allocated() - before) / 2**20
    gc.collect()
    try:
        ctypes.CDLL(None).malloc_trim(0)
        with open("/proc/self/clear_refs", "w") as file:
            file.write("5")
        before = _status("VmRSS")
    except (OSError, AttributeError):
        call()
        return None
    call()
    return max(0.0, _status("VmHWM") - before)


@dataclass
class Timing:
    """Milliseconds of the calls of one contestant."""

    calls: list[float] = field(default_factory=list)
    peak_mb: float | None = None

    def quantile(self, q: float) -> float:
        ordered = sorted(self.calls)
        at = q * (len(ordered) - 1)
        low = math.floor(at)
        high = min(low + 1, len(ordered) - 1)
        return ordered[low] + (at - low) * (ordered[high] - ordered[low])

    @property
    def ms(self) -> float:
        return self.quantile(0.5)


def clock(call: Callable[[], object], count: int, device: torch.device | str = "cpu") -> list[float]:
    """Milliseconds of each of `count` calls."""
    if torch.device(device).type == "cpu":
        times = []
        for _ in range(count):
            start = time.perf_counter()
            call()
            times.append((time.perf_counter() - start) * 1e3)
        return times
    flush = torch.empty(FLUSH_BYTES, dtype=torch.int8, device=device)
    events = [[torch.cuda.Event(enable_timing=True) for _ in range(2)] for _ in range(count)]
    for start, end in events:
        flush.zero_()
        start.record()
        call()
        end.record()
    torch.cuda.synchronize()
    return [start.elapsed_time(end) for start, end in events]


def warm_up(call: Callable[[], object], calls: int, device: torch.device | str = "cpu") -> tuple[float | None, float]:
    """Call `calls` times, at least once. Returns the peak memory of the last call and its seconds."""
    seconds = 0.0

    def timed() -> None:
        nonlocal seconds
        start = time.perf_counter()
        call()
        if torch.device(device).type == "cuda":
            torch.cuda.synchronize()
        seconds = time.perf_counter() - start

    for _ in range(calls - 1):
        call()
    return peak_mb(timed, device), seconds


def time_together(
    contestants: dict[str, Callable[[], object]],
    *,
    rounds: int,
    min_time: float,
    warmup: int,
    step: Callable[[str], None] = lambda who: None,
    device: torch.device | str = "cpu",
) -> tuple[dict[str, Timing], dict[str, str]]:
    """Time all contestants in one run, round robin, so that a drift of the machine meets all of them.

    In each of `rounds` rounds each contestant is called once if it is slow, and as often as it takes to fill
    min_time / rounds seconds if it is quick. `step(who)` is called after each warm-up and after each turn.
    Returns the timings, and the reason of each contestant that raised.
    """
    timings: dict[str, Timing] = {}
    failed: dict[str, str] = {}
    calls = {}
    for who, call in contestants.items():
        try:
            peak, seconds = warm_up(call, warmup, device)
        except Exception as error:  # a peer may fail in any way; it is named with its reason
            failed[who] = reason_of(error)
        else:
            timings[who] = Timing(peak_mb=peak)
            calls[who] = max(1, min(MAX_CALLS, math.ceil(min_time / rounds / max(seconds, 1e-6))))
        step(who)
    gc.collect()
    gc.disable()
    try:
        for _ in range(rounds):
            for who, timing in timings.items():
                timing.calls += clock(contestants[who], calls[who], device)
                step(who)
    finally:
        gc.enable()
    return timings, failed

"""The comparisons that were set as goals (`python -m bench products --targets`), and the rule of method="auto"
(`--rule`).

A batch, channel or lmax below the sizes that are named here (--batch, --channels, --lmax) makes all of it smaller: a
rehearsal, whose table says so.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import torch

import eqtp
from bench import harness, published
from bench import product_methods as methods
from bench import symmetric_contraction as mace
from bench.harness import TITLES, Missing, Timing, WrongKernel
from eqtp.math.sphere import folded_flops
from eqtp.ops.gaunt_tensor_product import AUTO
from eqtp.testing import relative_error

TODAY = ("pof-grid", "e3nn-even", "published-fft")  # the figures that goals were set from
ALL = ("e3nn-even", *published.NAMES, "pof-grid")


class Goal(NamedTuple):
    """kind "ms": at most `value` milliseconds; "times": that many times quicker than the quickest of `who`; "peak":
    that part of the FMA peak."""

    kind: str
    value: float
    who: tuple[str, ...] = ()


class Comparison(NamedTuple):
    """One product of ours at one size against others."""

    title: str
    problem: methods.Problem
    channels: int
    batch: int
    ours: str
    others: tuple[str, ...]
    goals: dict[str, tuple[Goal, ...]]  # by pass


AGAINST_E3NN = Goal("times", 15, ("e3nn-even",)), Goal("times", 100, ("published-fft",))
GRIDS = ("dense-grid", "published-grid")
COMPARISONS = (
    Comparison(
        "Gaunt 4 x 4 -> 8", methods.Problem("mimo", 4), 1, 1000, "gaunt", ALL,
        {"fwd": (Goal("ms", 0.20), Goal("times", 5, TODAY))},
    ),
    Comparison(
        "Gaunt 4 x 4 -> 8", methods.Problem("mimo", 4), 32, 1000, "gaunt", ALL,
        {"fwd": (Goal("ms", 7), *AGAINST_E3NN), "bwd": AGAINST_E3NN},
    ),
    Comparison(
        "Gaunt 8 x 8 -> 16", methods.Problem("mimo", 8), 1, 1000, "gaunt", ALL,
        {"fwd": (Goal("ms", 1.6), Goal("times", 5, TODAY))},
    ),
    Comparison(
        "Gaunt grid 6 x 6 -> 6", methods.Problem("mimo", 6, 6), 128, 100, "gaunt-grid", GRIDS,
        {"fwd": (Goal("times", 4, GRIDS), Goal("peak", 0.40))},
    ),
)  # fmt: skip
POWERS, POWERS_ONLY, CONTRACTION = "gaunt_many_body, weighted", "gaunt_many_body alone", "symmetric-contraction"


def row(options, title: str, pass_: str, who: str, timing: Timing, missing: dict, **more) -> dict:
    """A line of the JSON file."""
    return {
        "op": "products-targets", "problem": title, "pass": pass_, "backend": who, "dtype": options.dtype,
        "device": "cpu", "threads": options.threads, "ms": timing.ms, "ms_p20": timing.quantile(0.2),
        "ms_p80": timing.quantile(0.8), "peak_mb": timing.peak_mb, "repeats": len(timing.calls),
        "ratio_to": {}, "missing": missing, **more,
    }  # fmt: skip


def take_turns(calls: dict[str, Callable], options, ours: tuple[str, ...]) -> tuple[dict[str, Timing], dict[str, str]]:
    """`harness.time_together`; raises WrongKernel if one of ours failed."""
    timings, failed = harness.time_together(
        calls, rounds=options.repeat, min_time=options.min_time, warmup=options.warmup
    )
    for who in ours:
        if who in failed:
            raise WrongKernel(f"{who} raised {failed[who]}")
    return timings, failed


def judged(
    what: str, pass_: str, goals: tuple[Goal, ...], ours: str, ms: dict[str, float], flops: float, rates
) -> list[dict]:
    """A line per goal: what was to be reached, what was; met is None where nobody to compare with could run."""
    found = []
    for goal in goals:
        there = [who for who in goal.who if who in ms]
        if goal.kind == "ms":
            target, reached, met = f"<= {goal.value:g} ms", f"{ms[ours]:.3g} ms", ms[ours] <= goal.value
        elif goal.kind == "peak":
            part = flops / ms[ours] / 1e6 / rates.gflop_s
            target, reached, met = f">= {goal.value:.0%} of the FMA peak", f"{part:.0%}", part >= goal.value
        else:
            best = min(there, key=ms.get, default=None)
            ratio = ms[best] / ms[ours] if there else math.nan
            target = f">= {goal.value:g} x {'the quickest of ' * (len(goal.who) > 1)}{', '.join(goal.who)}"
            reached, met = (f"{ratio:.1f} x ({best})", ratio >= goal.value) if there else ("nobody there", None)
        found.append({"op": "target", "what": what, "pass": pass_, "target": target, "reached": reached, "met": met})
    return found


def gaunt_products(options, rates, write) -> list[dict]:
    """Time COMPARISONS; returns the lines of their goals."""
    judgements, dtype = [], getattr(torch, options.dtype)
    for each in COMPARISONS:
        l = min(each.problem.l, max(options.lmax))
        problem = each.problem._replace(l=l, top=None if each.problem.top is None else l)
        channels, batch = min(each.channels, max(options.channels)), min(each.batch, options.batch)
        what = f"{each.title}, {channels} channel{'s' * (channels > 1)}, batch {batch:,}" + (
            f" (rehearsal: l = {l})" if l < each.problem.l else ""
        )
        x1, x2 = methods.operands(problem, batch, channels, dtype)
        for pass_, goals in each.goals.items():
            calls, missing, wrong = {}, {}, {}
            for who in (each.ours, *each.others):
                try:
                    f = methods.method(who, problem, dtype, options.backend, options.pof)
                    wrong[who] = methods.errors(who, problem, f, dtype)[0]
                    if not wrong[who] <= 1e-5 and who == each.ours:
                        raise WrongKernel(f"{what}: {who} is off by {wrong[who]:.1e}")
                    calls[who] = f.clocked(x1, x2, pass_)
                except Missing as reason:
                    missing[who] = str(reason)
            timings, failed = take_turns(calls, options, (each.ours,))
            missing |= failed
            flops = channels * batch * folded_flops(l, l, problem.lmax_out)
            ms = {who: timing.ms for who, timing in timings.items()}
            rows = [
                row(options, what, pass_, who, t, missing, error=wrong[who], channels=channels, batch=batch)
                for who, t in timings.items()
            ]
            lines = [f"  {who:28}{t:10.4g} ms {t / ms[each.ours]:9.1f} x" for who, t in ms.items()]
            write(
                "\n".join(
                    [
                        "",
                        f"{what}, {TITLES[pass_]}",
                        *lines,
                        *(f"  {who:28}missing: {why}" for who, why in missing.items()),
                    ]
                ),
                rows,
            )
            judgements += judged(what, pass_, goals, each.ours, ms, flops, rates)
    return judgements


def of_nodes(w: torch.Tensor, z: torch.Tensor) -> torch.Tensor:
    """Weights of elements w [elements, 3, lmax_out+1, channels] and elements z [b] -> [b, channels, 3, lmax_out+1]"""
    return w[z].permute(0, 3, 1, 2)


def many_body(options, rates, write) -> list[dict]:
    """Powers to the third with weights against MACE's symmetric contraction, which is told weights that make it the
    same function."""
    lmax, nodes, channels, dtype = (
        min(3, max(options.lmax)),
        min(1000, options.batch),
        min(128, max(options.channels)),
        getattr(torch, options.dtype),
    )
    judgements = []
    for lmax_out in (0, 1):
        small = mace.Contraction(lmax, lmax_out, 3, 10, 2, torch.float64)
        x, z = harness.random(11, 2, (lmax + 1) ** 2, dtype=torch.float64, seed=1, grad=False), small.z(11)
        got = mace.powers(x, of_nodes(small.w, z), lmax_out, 3, options.backend)
        if (off := relative_error(got, small.contract(x, z, *small.operands()))) > 1e-12:
            raise WrongKernel(f"gaunt_many_body and the symmetric contraction differ by {off:.1e}")
        what = f"many-body, nu = 3, lmax {lmax} to {lmax_out}, {channels} channels, {nodes:,} nodes"
        contraction = mace.Contraction(lmax, lmax_out, 3, 10, channels, dtype)
        x, z = harness.random(nodes, channels, (lmax + 1) ** 2, dtype=dtype, seed=1), contraction.z(nodes)
        w = contraction.w.clone().requires_grad_()
        g = harness.random(nodes, channels, (lmax_out + 1) ** 2, dtype=dtype, seed=2, grad=False)
        powers_g = harness.random(nodes, channels, 3, (lmax_out + 1) ** 2, dtype=dtype, seed=2, grad=False)

        def f(x, w, z=z, top=lmax_out):
            return mace.powers(x, of_nodes(w, z), top, 3, options.backend)

        def alone(x, top=lmax_out):
            return eqtp.gaunt_many_body(x, top, 3, backend=options.backend)

        for pass_ in ("fwd", "bwd"):
            calls = {
                POWERS: harness.call_of(f, (x, w), g, pass_),
                POWERS_ONLY: harness.call_of(alone, (x,), powers_g, pass_),
                CONTRACTION: contraction.timed(x.detach(), g, pass_),
            }
            timings, failed = take_turns(calls, options, (POWERS, POWERS_ONLY))
            ms = {who: timing.ms for who, timing in timings.items()}
            rows = [
                row(options, what, pass_, who, t, failed, channels=channels, batch=nodes) for who, t in timings.items()
            ]
            lines = [f"  {who:28}{t:10.4g} ms {t / ms[POWERS]:9.1f} x" for who, t in ms.items()]
            write(
                "\n".join(
                    [
                        "",
                        f"{what}, {TITLES[pass_]}",
                        *lines,
                        *(f"  {who:28}missing: {why}" for who, why in failed.items()),
                    ]
                ),
                rows,
            )
            judgements += judged(what, pass_, (Goal("times", 10, (CONTRACTION,)),), POWERS, ms, 0.0, rates)
    return judgements


def accuracy(options, write) -> list[dict]:
    """The largest errors of the three routes over all degrees, in float32."""
    worst = {}
    for l in options.lmax:
        problem = methods.Problem("mimo", l)
        for who in ("gaunt-sparse", "gaunt-grid", "gaunt-fourier"):
            error = methods.errors(
                who, problem, methods.method(who, problem, torch.float32, options.backend), torch.float32
            )
            worst[who] = [max(pair) for pair in zip(worst.get(who, (0, 0)), error, strict=True)]
    top = max(options.lmax)
    lines = [
        f"  {who:28}{error:10.1e} against float64, {turned:.1e} from equivariance"
        for who, (error, turned) in worst.items()
    ]
    write("\n".join(["", f"Gaunt l x l -> 2 l, l = {min(options.lmax)}..{top}, float32, largest error", *lines]), [])
    return [
        {"op": "target", "what": f"accuracy, {who}, l = {min(options.lmax)}..{top}", "pass": "fwd",
         "target": "<= 1e-06 relative", "reached": f"{error:.1e} (equivariance {turned:.1e})", "met": error <= 1e-6}
        for who, (error, turned) in worst.items()
    ]  # fmt: skip


def judged_crossover(degree: int, used: int, timed: list[int]) -> dict:
    """The line of the goal that method="auto" changes from sparse to grid where the times do. Met only if sparse wins
    to `degree` = `used`; not decided (None) if sparse wins at every degree that was timed and none is above `used`."""
    undecided = degree == max(timed, default=0) <= used
    return {
        "op": "target", "what": "crossover sparse / grid", "pass": "fwd, bwd", "target": "measured and used",
        "reached": f"sparse to {degree}; auto uses it to {used}", "met": None if undecided else degree == used,
    }  # fmt: skip


def summary(judgements: list[dict]) -> str:
    """A line per goal: what it is, what was reached, and yes, NO or ? (not decided)."""
    lines = ["", f"{'what':56} {'pass':8} {'target':60} {'reached':34} met"]
    for each in judgements:
        met = {True: "yes", False: "NO", None: "?"}[each["met"]]
        pass_ = TITLES.get(each["pass"], each["pass"])
        lines.append(f"{each['what']:56} {pass_:8} {each['target']:60} {each['reached']:34} {met}")
    return "\n".join(lines)


def targets(options, rates, write) -> None:
    """All goals. Raises WrongKernel."""
    judgements = gaunt_products(options, rates, write)
    judgements += many_body(options, rates, write)
    judgements += accuracy(options, write)
    degrees = [l for l in options.lmax if l <= 4]
    (degree, _), (used, _) = crossover(options, write, degrees, square=True), AUTO["native"]
    judgements.append(judged_crossover(degree, used, degrees))
    more = {"ratio_to": {}, "threads": options.threads, "dtype": options.dtype}
    write(summary(judgements), [each | more for each in judgements])


def routed(x1: torch.Tensor, x2: torch.Tensor, **options) -> torch.Tensor:
    """`eqtp.gaunt_tensor_product`"""
    return eqtp.gaunt_tensor_product(x1, x2, **options)


def crossover(options, write, degrees: list[int], square: bool = False) -> tuple[int, int]:
    """Times sparse against grid; returns the two degrees of AUTO (both at most the first, or one at most the second:
    sparse) that lose the least, as a product of ratios of times. square: equal degrees only, the second is 0."""
    tried = (0, *degrees)
    dtype, lost = (
        getattr(torch, options.dtype),
        {(both, one): 0.0 for both in tried for one in tried if one <= (0 if square else both)},
    )
    for channels in options.channels:
        for l1, l2 in ((a, b) for a in degrees for b in degrees if a >= b and (a == b or not square)):
            for l3 in (l1 + l2,) if square else dict.fromkeys((l1, l1 + l2)):
                x1, x2 = (harness.random(options.batch, channels, (l + 1) ** 2, dtype=dtype, seed=l) for l in (l1, l2))
                g = harness.random(options.batch, channels, (l3 + 1) ** 2, dtype=dtype, seed=9, grad=False)
                for pass_ in ("fwd", "bwd"):
                    routes = {
                        how: partial(routed, lmax_out=l3, method=how, backend=options.backend)
                        for how in ("sparse", "grid")
                    }
                    calls = {how: harness.call_of(f, (x1, x2), g, pass_) for how, f in routes.items()}
                    timed, _ = take_turns(calls, options, ("sparse", "grid"))
                    ms = {how: timing.ms for how, timing in timed.items()}
                    for both, one in lost:
                        lost[both, one] += math.log(
                            ms["sparse" if l1 <= both or l2 <= one else "grid"] / min(ms.values())
                        )
                    what = f"{l1} x {l2} -> {l3}, {channels} channel{'s' * (channels > 1)}, batch {options.batch:,}"
                    rows = [
                        row(options, what, pass_, f"gaunt-{how}", t, {}, rule=True, channels=channels)
                        for how, t in timed.items()
                    ]
                    ratio = f"grid / sparse {ms['grid'] / ms['sparse']:6.2f}"
                    text = f"sparse {ms['sparse']:10.4g} ms, grid {ms['grid']:10.4g} ms, {ratio}"
                    write(f"{what:44} {TITLES[pass_]:8} {text}", rows)
    return min(lost, key=lambda pair: (round(lost[pair], 9), pair))


def rule(options, rates, write) -> None:
    """The entry of AUTO in eqtp/ops/gaunt_tensor_product.py, as measured here."""
    found = crossover(options, write, [l for l in options.lmax if l <= 8])
    size = f"{options.batch:,} rows, {', '.join(map(str, options.channels))} channels, {options.dtype}"
    write(f"\n# {rates}; {size}\nAUTO: {found}", [])

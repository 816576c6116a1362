"""Plans as compile-time tables: a C++ struct of numbers for csrc/channelwise/channelwise.cuh.

A *unit* is a set of paths that share blocks of x or of the output: a connected component of the graph of blocks and
paths, usually all paths of one block of x. All blocks of a unit have the same multiplicity.
"""

from __future__ import annotations

from functools import lru_cache
from typing import NamedTuple

import numpy as np
import torch

from eqtp.backends.jit.samples import running_sum
from eqtp.plans.plan import TensorProductPlan

THREADS = 128  # of a block (csrc/channelwise/unit.cuh)
# registers of a thread, of 255, to aim for: enough threads then fit a multiprocessor to hide the memory's latency
TARGET_REGISTERS = 150
# blocks on a multiprocessor, at least, for float32 and float64: leaves 168 and 255 registers per thread
MIN_RESIDENT_BLOCKS = (3, 2)
# Forward, backward, and the derivative of each along a direction, which is the second order
KERNEL_PASSES = ("fwd", "bwd", "fwd_tangent", "bwd_tangent")


class Unit(NamedTuple):
    """Blocks and paths of a unit, as indices into the plan."""

    mul: int
    in1: list[int]
    out: list[int]
    paths: list[int]


class ThreadMapping(NamedTuple):
    """How a unit is distributed over threads."""

    channels: int  # per thread
    ahead: bool  # the next edge's operands are prefetched
    lanes: int  # threads across the channels
    chunks: int  # blocks of threads across the channels


@lru_cache(maxsize=1024)
def units(plan: TensorProductPlan) -> list[Unit]:
    """The connected components of a channelwise plan, in the order of their first path."""
    member: dict[tuple[str, int], list[int]] = {}  # block -> paths of its component
    for n, p in enumerate(plan.paths):
        if p.mul1 == 0:
            continue
        joined = [n]
        for block in (("in1", p.i1), ("out", p.io)):
            for other in member.get(block, []):
                if other not in joined:
                    joined.append(other)
        for path in joined:
            for block in (("in1", plan.paths[path].i1), ("out", plan.paths[path].io)):
                member[block] = joined
    found = {id(paths): sorted(paths) for paths in member.values()}
    result = []
    for paths in sorted(found.values()):
        chosen = [plan.paths[n] for n in paths]
        result.append(Unit(chosen[0].mul1, sorted({p.i1 for p in chosen}), sorted({p.io for p in chosen}), paths))
    return result


def thread_mapping(plan: TensorProductPlan, unit: Unit, pass_: str, dtype: torch.dtype) -> ThreadMapping:
    """The mapping with the most work per thread that the registers allow."""
    nx, no = (
        sum(irreps[b].ir.dim for b in blocks)
        for irreps, blocks in ((plan.irreps_in1, unit.in1), (plan.irreps_out, unit.out))
    )
    size, directions = (2 if dtype == torch.float64 else 1), (2 if pass_.endswith("tangent") else 1)
    at1, _, out = plan.offsets
    places = [
        plan.dim_in1,
        plan.dim_out,
        plan.weight_numel,
        unit.mul,
        *(at1[b].start for b in unit.in1),
        *(out[b].start for b in unit.out),
    ]
    places += [plan.paths[n].weight_offset for n in unit.paths if plan.paths[n].has_weight]
    # what the units have in common stays in registers; fitted to what ptxas reports
    others = 40 + 18 * max(0, len(units(plan)) - 4)
    widest = 2 if unit.mul >= 64 else 1
    choices = [
        (c, ahead) for c in (2, 1) for ahead in (True, False) if c <= widest and all(place % c == 0 for place in places)
    ]
    for channels, ahead in choices:  # the last one, if none fits
        if pass_.startswith("fwd"):
            operands = (channels * (nx + len(unit.paths)) + plan.dim_in2) * directions
            registers = channels * no + operands * (2 if ahead else 1)
        else:
            registers = channels * (nx * (1 + directions) + no + len(unit.paths) * directions) + plan.dim_in2 * (
                1 + directions
            )
            ahead, others = False, 40
        if registers * size + others + (56 if ahead else 0) <= TARGET_REGISTERS:
            break
    threads = next(n for n in (4, 8, 16, 32) if n >= min(32, -(-unit.mul // channels)))
    return ThreadMapping(channels, ahead, threads, -(-unit.mul // (threads * channels)))


class SpecialisedPlan(NamedTuple):
    """A plan as C++ text for one pass and dtype."""

    text: str  # struct eqtp::Plan
    blocks: int  # blocks of threads per row
    workers: list[int]  # threads of a block that have the same channels, by unit
    idle: dict[str, list[slice]]  # columns of "x" and "out" without a path


def _array(name: str, values, kind: str = "int") -> str:
    values = list(values) or [0]
    text = ", ".join(repr(float(v)) if kind == "double" else str(int(v)) for v in values)
    return f"  static constexpr {kind} {name}[] = {{{text}}};\n"


def _coefficients(plan: TensorProductPlan, chosen: list[Unit]) -> str:
    """Entries (i, k) of each path's M and the terms (j, c) of each entry."""
    paths = [plan.paths[n] for u in chosen for n in u.paths]
    at2 = plan.irreps_in2.slices()
    i, k, terms, j, c, entries = [], [], [], [], [], []
    for p in paths:
        table = plan.coefficients(p)  # [d1, d2, d3]
        pattern = np.argwhere((table != 0).any(axis=1))  # [entries, 2]
        if len(pattern) == 0:  # a path of scale 0
            pattern = np.zeros((1, 2), int)
        for a, b in pattern:
            which = np.flatnonzero(table[a, :, b]) if table[a, :, b].any() else [0]
            i.append(a), k.append(b), terms.append(len(which))
            j += [at2[p.i2].start + n for n in which]
            c += [table[a, n, b] for n in which]
        entries.append(len(pattern))
    text = _array("ENTRY", running_sum(entries)) + _array("I", i) + _array("K", k) + _array("TERM", running_sum(terms))
    return text + _array("J", j) + _array("C", c, "double")


def _blocks(plan: TensorProductPlan, chosen: list[Unit], side: str) -> tuple[str, dict[int, int]]:
    """Blocks of x or of the output by unit as C++ text, and the first register of each."""
    irreps, prefix = (plan.irreps_in1, "IN") if side == "in1" else (plan.irreps_out, "OUT")
    slices, at, first = irreps.slices(), [], {}
    for unit in chosen:
        register = 0
        for block in getattr(unit, side):
            first[block] = register
            at.append(register)
            register += irreps[block].ir.dim
    order = [block for unit in chosen for block in getattr(unit, side)]
    text = _array(prefix, running_sum(len(getattr(unit, side)) for unit in chosen)) + _array(
        f"{prefix}_OFFSET", (slices[b].start for b in order)
    )
    return text + _array(f"{prefix}_D", (irreps[b].ir.dim for b in order)) + _array(f"{prefix}_AT", at), first


@lru_cache(maxsize=1024)
def tables(key: str, pass_: str, dtype: torch.dtype) -> SpecialisedPlan:
    """The tables of the plan with this key for a pass ("fwd", "bwd", "fwd_tangent", "bwd_tangent") and a dtype."""
    plan = TensorProductPlan.from_key(key)
    chosen = units(plan)
    mappings = [thread_mapping(plan, unit, pass_, dtype) for unit in chosen]
    size = max(4, dtype.itemsize)
    vec_y = next(n for n in (4, 2, 1) if plan.dim_in2 % n == 0 and n * size <= 16)
    paths = [plan.paths[n] for unit in chosen for n in unit.paths]
    ins, x = _blocks(plan, chosen, "in1")
    outs, o = _blocks(plan, chosen, "out")
    numbers = {
        "DIM1": plan.dim_in1,
        "DIM2": plan.dim_in2,
        "DIM3": plan.dim_out,
        "NUMEL": plan.weight_numel,
        "UNITS": len(chosen),
        "VEC_Y": vec_y,
        "RESIDENT": MIN_RESIDENT_BLOCKS[dtype == torch.float64],
    }
    text = "".join(f"  static constexpr int {name} = {value};\n" for name, value in numbers.items())
    text += (
        _array("MUL", (u.mul for u in chosen))
        + _array("CPL", (s.channels for s in mappings))
        + _array("LANES", (s.lanes for s in mappings))
    )
    text += _array("AHEAD", (s.ahead for s in mappings), "bool")
    text += ins + outs + _array("PATH", running_sum(len(u.paths) for u in chosen))
    text += (
        _array("W", (p.weight_offset for p in paths))
        + _array("X", (x[p.i1] for p in paths))
        + _array("O", (o[p.io] for p in paths))
    )
    text += _array("D1", (2 * p.l1 + 1 for p in paths)) + _coefficients(plan, chosen)
    used = {"x": {b for u in chosen for b in u.in1}, "out": {b for u in chosen for b in u.out}}
    slices = {"x": plan.irreps_in1.slices(), "out": plan.irreps_out.slices()}
    idle = {side: [s for b, s in enumerate(slices[side]) if b not in used[side] and s.stop > s.start] for side in used}
    text = f"namespace eqtp {{\nstruct Plan {{\n{text}}};\n}}\n"
    return SpecialisedPlan(text, sum(s.chunks for s in mappings), [THREADS // s.lanes for s in mappings], idle)

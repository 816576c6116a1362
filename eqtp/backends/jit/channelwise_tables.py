"""Plans as compile-time tables: a C++ struct of numbers for csrc/channelwise/channelwise.cuh.

A *unit* is a set of paths that share blocks of x or of the output: a connected component of the graph of blocks and
paths, usually all paths of one block of x. All blocks of a unit have the same multiplicity.
"""

from __future__ import annotations

import json
from functools import lru_cache
from pathlib import Path as File
from typing import NamedTuple

import numpy as np
import torch

from eqtp.backends.jit.samples import running_sum
from eqtp.math.cost import nonzeros
from eqtp.plans.plan import Path, TensorProductPlan

THREADS = 128  # of a block (csrc/channelwise/unit.cuh)
REGISTERS = 65536  # of a multiprocessor
# Forward, backward, the derivative of each along a direction, and both of these at once, which is the second order
KERNEL_PASSES = ("fwd", "bwd", "fwd_tangent", "bwd_tangent", "second")
TANGENT_PASSES = ("fwd_tangent", "bwd_tangent", "second")


class Tuning(NamedTuple):
    """How the kernels of a pass are made. Results do not depend on it but for rounding."""

    stages: int = 3  # slots of a worker's ring (csrc/channelwise/ring.cuh); 0: no graph, see ROWS
    channels: int = 4  # of a thread, at most
    resident: int = 3  # blocks on a multiprocessor, at least: of REGISTERS / THREADS, a thread has its share
    lanes: int = 8  # threads across the channels of an edge, at least; less than 32 where a unit has few channels
    by_destination: bool = False  # a backward pass walks destinations, not sources


# Where each edge is a row of its own, or in any order: there is no ring
ROWS = Tuning(stages=0, channels=2, resident=3, lanes=32)
ROWS_FLOAT64 = ROWS._replace(resident=2)


class Unit(NamedTuple):
    """Blocks and paths of a unit, as indices into the plan."""

    mul: int
    in1: list[int]
    out: list[int]
    paths: list[int]


class ThreadMapping(NamedTuple):
    """How a unit is distributed over threads."""

    channels: int  # per thread
    lanes: int  # threads across the channels
    chunks: int  # blocks of threads across the channels


@lru_cache(maxsize=1024)
def units(plan: TensorProductPlan) -> list[Unit]:
    """The connected components of a channelwise plan, those of the most work first."""
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
    return sorted(result, key=lambda u: -u.mul * sum(_entries(plan.paths[n]) for n in u.paths))


def _entries(p: Path) -> int:
    """Coefficients of a path."""
    return nonzeros(p.l1, p.l2, p.l3)[0]


def _components(plan: TensorProductPlan, unit: Unit) -> tuple[int, int]:
    """Of all blocks of x and of the output of a unit."""
    return sum(plan.irreps_in1[b].ir.dim for b in unit.in1), sum(plan.irreps_out[b].ir.dim for b in unit.out)


def _registers(plan: TensorProductPlan, unit: Unit, pass_: str, channels: int, tuning: Tuning) -> int:
    """About how many a thread needs, in numbers; fitted to what ptxas reports."""
    nx, no = _components(plan, unit)
    directions, depth = 2 if pass_ in TANGENT_PASSES else 1, max(2 * plan.paths[n].l1 + 1 for n in unit.paths)
    if tuning.stages == 0:  # all operands of an edge
        sums = 0 if pass_.startswith("fwd") else nx
        operands = channels * (nx + len(unit.paths)) + plan.dim_in2
        return channels * (no + sums) + operands * directions + 60 + 18 * max(0, len(units(plan)) - 4)
    others = 36 + 8 * directions  # addresses, and the columns of y that a path uses
    if pass_.startswith("fwd"):
        return channels * (no + (nx + 1) * directions + depth) + others
    sums = no if pass_ == "second" else 0
    return channels * (nx * (1 + directions) + 2 * depth * directions + 2 + sums) + plan.dim_in2 + others


def thread_mapping(
    plan: TensorProductPlan, unit: Unit, pass_: str, dtype: torch.dtype, tuning: Tuning
) -> ThreadMapping:
    """The mapping with the most channels per thread that the registers allow."""
    at1, _, out = plan.offsets
    places = [plan.dim_in1, plan.dim_out, plan.weight_numel, unit.mul]
    places += [at1[b].start for b in unit.in1] + [out[b].start for b in unit.out]
    places += [plan.paths[n].weight_offset for n in unit.paths if plan.paths[n].has_weight]
    size, most = 2 if dtype == torch.float64 else 1, min(REGISTERS // THREADS // tuning.resident, 255)
    for channels in (4, 2, 1):  # the last one, if none fits
        aligned = all(place % channels == 0 for place in places) and channels * dtype.itemsize <= 16
        if channels > tuning.channels or not aligned or (channels > 1 and unit.mul < tuning.lanes * channels):
            continue
        if size * _registers(plan, unit, pass_, channels, tuning) <= most:
            break
    lanes = next(n for n in (4, 8, 16, 32) if n >= min(32, -(-unit.mul // channels)))
    return ThreadMapping(channels, lanes, -(-unit.mul // (lanes * channels)))


def _up_to_16(count: int) -> int:
    return -(-count // 16) * 16


def ring_bytes(plan: TensorProductPlan, pass_: str, dtype: torch.dtype, tuning: Tuning) -> int:
    """Shared memory of the rings of a block: `Slot` of csrc/channelwise/ring.cuh."""
    most, real = 0, max(4, dtype.itemsize)
    for unit in units(plan):
        m = thread_mapping(plan, unit, pass_, dtype, tuning)
        line, (nx, no) = m.lanes * m.channels * dtype.itemsize, _components(plan, unit)
        gathers_x = pass_.startswith("fwd") or tuning.by_destination
        row, y = len(unit.paths) * line, plan.dim_in2 * real
        y_at = _up_to_16(row + (nx if gathers_x else no) * line)
        slot = _up_to_16(y_at + y)
        if pass_ in TANGENT_PASSES:
            slot = _up_to_16(slot + (y_at if gathers_x else _up_to_16(row)) + y)
        most = max(most, slot * tuning.stages * (THREADS // m.lanes))
    return most


def shared_bytes(plan: TensorProductPlan, pass_: str, dtype: torch.dtype, tuning: Tuning) -> int:
    """Dynamic shared memory of a block: the rings, and g of a row where destinations are walked backwards."""
    numbers_of_g = 0
    if tuning.by_destination:
        for unit in units(plan):
            m = thread_mapping(plan, unit, pass_, dtype, tuning)
            numbers_of_g = max(numbers_of_g, _components(plan, unit)[1] * m.lanes * m.channels)
    return ring_bytes(plan, pass_, dtype, tuning) + numbers_of_g * max(4, dtype.itemsize)


def tile_bytes(plan: TensorProductPlan, pass_: str, dtype: torch.dtype, tuning: Tuning) -> int:
    """Static shared memory of a block, in which blocks [mul, d] are put together."""
    if tuning.by_destination and pass_ != "second":
        return 0
    most = 1
    for unit in units(plan):
        channels = thread_mapping(plan, unit, pass_, dtype, tuning).channels
        dimensions = [plan.irreps_in1[b].ir.dim for b in unit.in1] + [plan.irreps_out[b].ir.dim for b in unit.out]
        most = max(most, channels * max(dimensions))
    return THREADS * most * max(4, dtype.itemsize)


def block_bytes(plan: TensorProductPlan, pass_: str, dtype: torch.dtype, tuning: Tuning) -> int:
    """All shared memory of a block, with what the system keeps for itself."""
    return shared_bytes(plan, pass_, dtype, tuning) + tile_bytes(plan, pass_, dtype, tuning) + 1024


# Tunings of plans that have been measured, and where (python -m bench.tune). For others what did well on most of these:
# by pass, in order of preference, the first that fits.
TUNINGS = File(__file__).with_name("channelwise_tunings.json")
FORWARD = (Tuning(3, 4, 4, 8), Tuning(3, 4, 3, 8), Tuning(3, 2, 3, 16), Tuning(2, 2, 2, 16))
BY_SOURCE = (Tuning(2, 2, 4, 16), Tuning(2, 2, 3, 16), Tuning(2, 2, 2, 16))
BY_DESTINATION = tuple(Tuning(*t, by_destination=True) for t in ((3, 4, 3, 32), (3, 2, 3, 32), (2, 2, 2, 32)))
SMALLEST = Tuning(2, 1, 1, 32)
SECOND = tuple(Tuning(*t, by_destination=True) for t in ((2, 4, 3, 8), (2, 2, 3, 16)))
# Rows of the output that are this many times as long as those of x make it cheaper to gather those of x
LONGER = 7
# Coefficients up to which one kernel for all of the second order is faster than two
FEW = 150


def shape_of(plan: TensorProductPlan) -> str:
    """What the speed of a plan's kernels depends on: all but the values of its coefficients."""
    paths = " ".join(f"{p.i1},{p.i2},{p.io}{'w' if p.has_weight else ''}" for p in plan.paths)
    return f"{plan.irreps_in1} x {plan.irreps_in2} -> {plan.irreps_out}: {paths}"


@lru_cache
def _measured() -> dict[str, dict]:
    return json.loads(TUNINGS.read_text(encoding="utf-8"))["plans"] if TUNINGS.exists() else {}


def _preferred(plan: TensorProductPlan, pass_: str) -> tuple[Tuning, ...]:
    if pass_ == "second":
        return SECOND if sum(map(_entries, plan.paths)) <= FEW else ()
    if pass_.startswith("fwd"):
        return (*(FORWARD if pass_ == "fwd" else FORWARD[1:]), SMALLEST)
    longer = plan.dim_out >= LONGER * plan.dim_in1
    choices = BY_DESTINATION + BY_SOURCE if longer else BY_SOURCE + BY_DESTINATION
    return (*choices, SMALLEST._replace(by_destination=True), SMALLEST)


@lru_cache(maxsize=1024)
def chosen_tuning(key: str, pass_: str, dtype: torch.dtype, shared: int) -> Tuning:
    """The tuning for one of KERNEL_PASSES where a block of threads may have `shared` bytes of shared memory, and a
    multiprocessor hardly has more. One for "second" that is not by destination: two kernels do it. Raises RuntimeError
    for a plan that is too large."""
    plan = TensorProductPlan.from_key(key)
    measured = _measured().get(shape_of(plan), {}) if dtype == torch.float32 else {}
    if pass_ in measured:
        tuning = Tuning(*measured[pass_])
        if block_bytes(plan, pass_, dtype, tuning) <= shared:
            return tuning
    for tuning in _preferred(plan, pass_):
        used = block_bytes(plan, pass_, dtype, tuning)
        if tuning.resident * used <= shared:
            return tuning
    if pass_ == "second":
        return Tuning()
    raise RuntimeError(f"a unit of this plan needs {used} bytes of shared memory, a block here has {shared}")


class SpecialisedPlan(NamedTuple):
    """A plan as C++ text for one pass and dtype."""

    text: str  # struct eqtp::Plan
    blocks: int  # blocks of threads per row
    workers: list[int]  # threads of a block that have the same channels, by unit
    idle: dict[str, list[slice]]  # columns of "x" and "out" without a path
    shared: int  # bytes of dynamic shared memory


def _array(name: str, values, kind: str = "int") -> str:
    values = list(values) or [0]
    text = ", ".join(repr(float(v)) if kind == "double" else str(int(v)) for v in values)
    return f"  static constexpr {kind} {name}[] = {{{text}}};\n"


def _coefficients(plan: TensorProductPlan, chosen: list[Unit], by_k: bool) -> str:
    """Entries (i, k) of each path's M, by i or by k, and the terms (j, c) of each entry."""
    paths = [plan.paths[n] for u in chosen for n in u.paths]
    at2 = plan.irreps_in2.slices()
    i, k, terms, j, c, entries = [], [], [], [], [], []
    for p in paths:
        table = plan.coefficients(p)  # [d1, d2, d3]
        pattern = np.argwhere((table != 0).any(axis=1))  # [entries, 2]
        pattern = pattern[np.lexsort(pattern.T)] if by_k else pattern
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
def tables(key: str, pass_: str, dtype: torch.dtype, tuning: Tuning) -> SpecialisedPlan:
    """The tables of the plan with this key for one of KERNEL_PASSES and a dtype."""
    plan = TensorProductPlan.from_key(key)
    chosen = units(plan)
    mappings = [thread_mapping(plan, unit, pass_, dtype, tuning) for unit in chosen]
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
        "STAGES": tuning.stages,
        "RINGS": ring_bytes(plan, pass_, dtype, tuning),
        "RESIDENT": tuning.resident,
    }
    text = "".join(f"  static constexpr int {name} = {value};\n" for name, value in numbers.items())
    text += (
        _array("MUL", (u.mul for u in chosen))
        + _array("CPL", (s.channels for s in mappings))
        + _array("LANES", (s.lanes for s in mappings))
    )
    text += ins + outs + _array("PATH", running_sum(len(u.paths) for u in chosen))
    text += (
        _array("W", (p.weight_offset for p in paths))
        + _array("X", (x[p.i1] for p in paths))
        + _array("O", (o[p.io] for p in paths))
    )
    at2 = plan.irreps_in2.slices()
    text += _array("Y", (at2[p.i2].start for p in paths)) + _array("D2", (2 * p.l2 + 1 for p in paths))
    text += _array("D1", (2 * p.l1 + 1 for p in paths)) + _coefficients(plan, chosen, by_k=not pass_.startswith("fwd"))
    used = {"x": {b for u in chosen for b in u.in1}, "out": {b for u in chosen for b in u.out}}
    slices = {"x": plan.irreps_in1.slices(), "out": plan.irreps_out.slices()}
    idle = {side: [s for b, s in enumerate(slices[side]) if b not in used[side] and s.stop > s.start] for side in used}
    text = f"namespace eqtp {{\nstruct Plan {{\n{text}}};\n}}\n"
    shared = shared_bytes(plan, pass_, dtype, tuning)
    workers = [THREADS // s.lanes for s in mappings]
    return SpecialisedPlan(text, sum(s.chunks for s in mappings), workers, idle, shared)

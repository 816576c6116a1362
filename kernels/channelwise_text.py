"""The channelwise (uvu) tensor product of one edge, as the text of a Triton kernel with the plan's coefficients as
constants.

A kernel works on a unit, paths that share input or output slots, for one block of channels. Channels are the lanes of
a vector [B]; components are variables, as Triton has no arrays in registers: x0 x1 x2 [B] are the components of the
input slot, y0 y1 .. are scalars. With the coefficients contracted with the edge, M[k, i] = sum_j C[i, j, k] y_j, and TM
the same for the direction ty of the second order:

    a_i = w x_i                          b_i = tw x_i + w tx_i  (second order)
    out_k += sum_i M a_i                 second order: sum_i (M b_i + TM a_i)
    s_i = sum_k M g_k                    t_i = sum_k TM g_k
    gx_i += w s_i                        second order: tw s_i + w t_i
    gw = sum_i s_i x_i                   second order: sum_i (t_i x_i + s_i tx_i)
    gy_j += sum_ik C[i, j, k] g_k a_i    second order: b_i in place of a_i

The second order is the derivative of all four along the direction (tx, ty, tw) of (x, y, w), as in
csrc/channelwise/path.h. kernels/channelwise.py puts these lines into one program per node or, for
`eqtp.tensor_product`, per row, which is one edge.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import NamedTuple

import numpy as np

from eqtp.math.cost import nonzeros
from eqtp.plans.plan import Path, TensorProductPlan

MAX_SUMS = 24  # components of the output that a forward kernel keeps in registers
MAX_TERMS = 96  # coefficients in a backward kernel; with more, compiling takes more than a few seconds


class Unit(NamedTuple):
    """Paths of one multiplicity that one kernel computes."""

    mul: int
    paths: tuple[Path, ...]  # sorted by i1, then i2
    adds: bool = False  # backward: to the gradients of the same input slot that an earlier unit stored


def _grouped(paths: Iterable[Path], key: Callable) -> list[list[Path]]:
    groups: dict[object, list[Path]] = {}
    for p in paths:
        if p.mul1:
            groups.setdefault(key(p), []).append(p)
    return list(groups.values())


def _split(groups: list[list[Path]], sizes: list[int], most: int) -> list[list[Path]]:
    """The groups in ceil(total size / most) parts of about equal size; a larger group is a part of its own."""
    count = -(-sum(sizes) // most)
    middle = np.cumsum(sizes) - np.array(sizes) / 2  # a group goes to the part in which its middle lies
    part = (middle * count / sum(sizes)).astype(int)
    return [[p for group, at in zip(groups, part, strict=True) if at == n for p in group] for n in sorted(set(part))]


def _unit(paths: list[Path], adds: bool = False) -> Unit:
    return Unit(paths[0].mul1, tuple(sorted(paths, key=lambda p: (p.i1, p.i2))), adds)


def forward_units(plan: TensorProductPlan) -> list[Unit]:
    """Every path once: all paths of an output slot together, with as many slots of the same inputs as fit registers."""
    slots = {paths[0].io: paths for paths in _grouped(plan.paths, lambda p: p.io)}
    inputs = {io: (paths[0].mul1, *sorted({p.i1 for p in paths})) for io, paths in slots.items()}
    units = []
    for paths in _grouped(plan.paths, lambda p: inputs[p.io]):
        group = [slots[io] for io in dict.fromkeys(p.io for p in paths)]
        units += map(_unit, _split(group, [2 * slot[0].l3 + 1 for slot in group], MAX_SUMS))
    return units


def backward_units(plan: TensorProductPlan) -> list[Unit]:
    """Every path once: those of an input slot in one unit or in consecutive ones."""
    units = []
    for paths in _grouped(plan.paths, lambda p: p.i1):
        paths = sorted(paths, key=lambda p: p.i2)
        parts = _split([[p] for p in paths], [nonzeros(p.l1, p.l2, p.l3)[0] for p in paths], MAX_TERMS)
        units += [_unit(part, adds=n > 0) for n, part in enumerate(parts)]
    return units


def load(name: str, at: str) -> str:
    """Loads a vector of channels; lanes beyond the last channel are 0."""
    return f"{name} = tl.load({at}, mask=mask, other=0.0).to(REAL)"


def components(name: str, row: str, offset: int, dim: int) -> list[str]:
    """Loads name0 .. of the slot [mul, dim] at `offset` of a row."""
    return [load(f"{name}{i}", f"{row} + (u * {dim} + {offset + i})") for i in range(dim)]


def _weights(p: Path, second: bool) -> list[str]:
    """wn and tn of a path with weights."""
    if not p.has_weight:
        return []
    return [
        load("wn", f"wr + (u + {p.weight_offset})"),
        *([load("tn", f"cwr + (u + {p.weight_offset})")] if second else []),
    ]


def _scaled(p: Path, names: str) -> list[str]:
    """a_i, b_i or both, as in `names`."""
    lines = []
    for i in range(2 * p.l1 + 1):
        if "a" in names:
            lines.append(f"a{i} = wn * x{i}" if p.has_weight else f"a{i} = x{i}")
        if "b" in names:
            lines.append(f"b{i} = tn * x{i} + wn * tx{i}" if p.has_weight else f"b{i} = tx{i}")
    return lines


def _matrix(y: str, c: np.ndarray, at: int) -> str:
    """One element of M: the contraction of c [2 l2 + 1] with the components of y from `at`; empty if all are zero."""
    terms = [f"{float(v)!r} * {y}{at + j}" for j, v in enumerate(c) if v != 0]
    return f"({' + '.join(terms)})" if terms else ""


def _sum(target: str, terms: Iterable[tuple[str, str]]) -> str:
    """target, then the sum of the products with a non-empty matrix element; empty if there are none."""
    products = [f"{m} * {v}" for m, v in terms if m]
    return f"{target} {' + '.join(products)}" if products else ""


def edge_scalars(unit: Unit, plan: TensorProductPlan, second: bool) -> list[str]:
    """Loads the components of y (and of its direction) that the unit's paths read."""
    _, in2, _ = plan.offsets
    used = sorted({j for p in unit.paths for j in range(in2[p.i2].start, in2[p.i2].stop)})
    return [
        f"{v}{j} = tl.load({row} + {j}).to(REAL)" for v, row in (("y", "yr"), ("ty", "cyr"))[: 1 + second] for j in used
    ]


def forward(unit: Unit, plan: TensorProductPlan, second: bool) -> list[str]:
    """Adds an edge to the sums o<component of the output row>. Reads rows xr, wr (cxr, cwr) and the scalars of the
    edge."""
    in1, in2, out = plan.offsets
    lines, loaded = [], None
    for p in unit.paths:
        if p.i1 != loaded:
            lines += components("x", "xr", in1[p.i1].start, 2 * p.l1 + 1)
            lines += components("tx", "cxr", in1[p.i1].start, 2 * p.l1 + 1) if second else []
            loaded = p.i1
        lines += [*_weights(p, second), *_scaled(p, "ab" if second else "a")]
        c, at = plan.coefficients(p), in2[p.i2].start
        for k in range(2 * p.l3 + 1):
            direction = [(_matrix("ty", c[i, :, k], at), f"a{i}") for i in range(len(c))] if second else []
            value = [(_matrix("y", c[i, :, k], at), f"{'b' if second else 'a'}{i}") for i in range(len(c))]
            lines.append(_sum(f"o{out[p.io].start}_{k} +=", [*value, *direction]))
    return [line for line in lines if line]


def outputs(unit: Unit, plan: TensorProductPlan) -> dict[str, tuple[int, int, int]]:
    """Name of each sum of a forward unit -> (offset of its slot in the row, dimension of the slot, component)."""
    _, _, out = plan.offsets
    slots = {out[p.io].start: 2 * p.l3 + 1 for p in unit.paths}
    return {f"o{start}_{k}": (start, dim, k) for start, dim in slots.items() for k in range(dim)}


def _contracted(p: Path, c: np.ndarray, at: int, second: bool) -> list[str]:
    """s_i and t_i."""
    lines = []
    for s, y in (("s", "y"), ("t", "ty"))[: 1 + second]:
        for i in range(len(c)):
            terms = [(_matrix(y, c[i, :, k], at), f"g{k}") for k in range(2 * p.l3 + 1)]
            lines.append(_sum(f"{s}{i} =", terms) or f"{s}{i} = tl.zeros([B], REAL)")
    return lines


def _gradient_w(p: Path, second: bool) -> list[str]:
    terms = [f"s{i} * {'t' if second else ''}x{i}" for i in range(2 * p.l1 + 1)]
    terms += [f"t{i} * x{i}" for i in range(2 * p.l1 + 1)] if second else []
    return [f"tl.store(gwr + (u + {p.weight_offset}), ({' + '.join(terms)}).to(gw.dtype.element_ty), mask=mask)"]


def _gradient_x(p: Path, second: bool) -> list[str]:
    if not p.has_weight:
        return [f"gx{i} += {'t' if second else 's'}{i}" for i in range(2 * p.l1 + 1)]
    return [f"gx{i} += {f'tn * s{i} + wn * t{i}' if second else f'wn * s{i}'}" for i in range(2 * p.l1 + 1)]


def _gradient_y(p: Path, c: np.ndarray, second: bool) -> list[str]:
    name = "b" if second else "a"
    lines = _scaled(p, name)
    for i, k in np.argwhere(c.any(axis=1)):
        lines.append(f"q = g{k} * {name}{i}")
        lines += [f"h{j} += {float(v)!r} * q" for j, v in enumerate(c[i, :, k]) if v != 0]
    return lines


def backward(unit: Unit, plan: TensorProductPlan, second: bool, wanted: tuple[bool, bool, bool]) -> list[str]:
    """Adds an edge to gx<i> and stores its gw and, summed over the block's channels, its gy; wanted: gx, gy, gw.

    Reads x<i> (tx<i>), rows wr, gr (cwr) and the scalars of the edge; writes rows gwr, and gyr of this unit and block.
    """
    _, in2, out = plan.offsets
    want_x, want_y, want_w = wanted
    lines = []
    for n, p in enumerate(unit.paths):
        c, at = plan.coefficients(p), in2[p.i2].start
        if want_y and (n == 0 or unit.paths[n - 1].i2 != p.i2):
            lines += [f"h{j} = tl.zeros([B], REAL)" for j in range(2 * p.l2 + 1)]
        lines += [*_weights(p, second), *components("g", "gr", out[p.io].start, 2 * p.l3 + 1)]
        stored = want_w and p.has_weight
        lines += _contracted(p, c, at, second) if want_x or stored else []
        lines += [*(_gradient_x(p, second) if want_x else []), *(_gradient_w(p, second) if stored else [])]
        lines += _gradient_y(p, c, second) if want_y else []
        if want_y and (n + 1 == len(unit.paths) or unit.paths[n + 1].i2 != p.i2):
            lines += [f"tl.store(gyr + {at + j}, tl.sum(h{j}, 0))" for j in range(2 * p.l2 + 1)]
    return lines

"""Products of functions on the sphere (`eqtp.plans.signals`): one sample per lane, which walks the rows of the folded
grid (`eqtp.math.sphere`).

The text of a kernel is straight-line within a row, with every number in a register, and loops over the rows, reading
the Legendre functions of each row from a small table:

    for each row        sum over degrees of every field:  row_sum[x, m, y] = sum over k of P[m, y, k] f[x, m, y, k]
      for each column   part[x, p, y] = sum over m of A[x, m] row_sum[x, m, y];  values by butterflies;  products;
        butterflies;  wave[x, m, y] += A part
      at its end        out[x, m, y, k] += P weight[m, y, k] wave[x, m, y]

which costs the operations of the separable transforms and never writes a value of the grid to memory. A program that
needs more numbers at once than a lane has registers runs as several kernels (`parts`), each for some of its outputs,
some of their orders, or some of their terms.
"""

from __future__ import annotations

from collections.abc import Iterable
from functools import lru_cache
from itertools import groupby, product
from typing import NamedTuple

import numpy as np
import torch
import triton

from eqtp import kernels
from eqtp.kernels import indent
from eqtp.kernels.samples import SAMPLES, lanes
from eqtp.math.sphere import fold
from eqtp.plans.calls import Pass
from eqtp.plans.signals import DOWN, EAST, VALUE, SignalProgram, Term

# Numbers that a part keeps at once, by our count, that the compiler can keep in registers
MAX_LIVE_NUMBERS = {"float32": 200, "float64": 90}
PROJECTION = 3  # index of the projection's table in a row, after those of the three fields

Orders = tuple[tuple[int, int], ...]  # (x, m): sin or cos, and |m|


class PartialSum(NamedTuple):
    """Some terms of an output, projected onto some of its orders."""

    output: int
    terms: tuple[Term, ...]
    orders: Orders
    adds: bool  # to what an earlier kernel has stored


Part = tuple[PartialSum, ...]  # what one kernel computes


def _orders(lmax: int) -> Orders:
    return tuple((x, m) for m in range(lmax + 1) for x in ((0, 1) if m else (0,)))


def _degrees(lmax: int, m: int, y: int) -> range:
    """The degrees l of order m with (l - m) mod 2 = y, indexed by k."""
    return range(m + y, lmax + 1, 2)


def _waves(s: PartialSum, lmax: int) -> list[tuple[int, int, int]]:
    return [(x, m, y) for x, m in s.orders for y in (0, 1) if _degrees(lmax, m, y)]


def _fields(part: Part) -> list[tuple[int, int]]:
    """(input, field) that the part's terms use."""
    return sorted({factor for s in part for term in s.terms for factor in term.factors})


def live_numbers(program: SignalProgram, part: Part) -> int:
    """Numbers that a lane keeps at once: the outputs, the row sums and waves, the values at the images of a
    point."""
    fields = _fields(part)
    row_sums = sum(4 * program.lmax_in[n] or 1 for n, _ in fields)
    sums = sum(len(_waves(s, program.lmax_out[s.output])) for s in part)
    outputs = sum(
        len(_degrees(program.lmax_out[s.output], m, y))
        for s in part
        for _, m, y in _waves(s, program.lmax_out[s.output])
    )
    return row_sums + sums + outputs + 8 * (len(fields) + 1)


def _split(program: SignalProgram, output: int, terms: tuple[Term, ...], adds: bool, most: int) -> list[PartialSum]:
    """Sums that fit a lane's registers: halves the terms until their fields leave room for sums, then splits the orders
    into as few parts as fit."""
    orders = _orders(program.lmax_out[output])

    def count(orders):
        return live_numbers(program, (PartialSum(output, terms, orders, adds),))

    if count(orders) > most and count(()) > most / 2 and len(terms) > 2:
        half = len(terms) // 4 * 2 or 2
        return [*_split(program, output, terms[:half], adds, most), *_split(program, output, terms[half:], True, most)]
    room = max(most, count(()) + most // 3)  # where the fields alone are too many, some numbers spill
    splits = ([orders[first::step] for first in range(step)] for step in range(1, len(orders) + 1))
    return [
        PartialSum(output, terms, of, adds)
        for of in next(split for split in splits if len(split) == len(orders) or max(map(count, split)) <= room)
    ]


@lru_cache(maxsize=1024)
def parts(program: SignalProgram, real: str) -> tuple[Part, ...]:
    """The program as kernels; those of an output whose terms are split follow each other."""
    found: list[Part] = []
    for output, terms in enumerate(program.terms):
        for s in _split(program, output, terms, False, MAX_LIVE_NUMBERS[real]) if terms else []:
            fits = found and live_numbers(program, (*found[-1], s)) <= MAX_LIVE_NUMBERS[real]
            if fits and not (s.adds and s.output in {other.output for other in found[-1]}):
                found[-1] = (*found[-1], s)
            else:
                found.append((s,))
    return tuple(found)


def _component(x: int, m: int, l: int) -> int:
    return l * l + l + (-m if x else m)


def _table_at(field: int, lmax: int, m: int, l: int) -> int:
    """Index in a row's table of the functions up to degree lmax."""
    return (field * (lmax + 1) + m) * (lmax + 1) + l


@lru_cache(maxsize=256)
def tables(program: SignalProgram) -> tuple[np.ndarray, np.ndarray]:
    """[rows / 2, 4, M, M (l)]: Legendre functions, their derivatives and their projection; [columns / 4, 2, M]: cosines
    and sines of the columns."""
    lmax = max(*program.lmax_in, *program.lmax_out)
    f = fold(lmax, program.rows, program.columns)
    found = np.zeros((program.rows // 2, 4, lmax + 1, lmax + 1))
    for m, y in product(range(lmax + 1), (0, 1)):
        for k, l in enumerate(_degrees(lmax, m, y)):
            found[:, :, m, l] = np.stack([t[m, y, k] for t in (f.legendre, f.slope, f.steep, f.projection)], 1)
    return found, np.ascontiguousarray(f.azimuth[:, : lmax + 1].transpose(2, 0, 1))


def _row_sums(
    program: SignalProgram, fields: list[tuple[int, int]]
) -> tuple[list[str], dict[tuple[int, int], list[tuple[int, int, int]]]]:
    """Lines that compute the row sums f<input>_<field>_<x>_<m>_<y>, and the (x, m, y) of each field.

    d/dbeta of a row sum is stored at 1 - y; d/dalpha, which takes cos(m alpha) to -m sin(m alpha) and sin(m alpha) to
    m cos(m alpha), at 1 - x.
    """
    top = max(*program.lmax_in, *program.lmax_out)
    lines, found = [], {field: [] for field in fields}
    largest = max((program.lmax_in[n] for n, _ in fields), default=0)
    for m, y in product(range(largest + 1), (0, 1)):
        for field in sorted({field for _, field in fields}):
            lines += [
                f"p{field}_{l} = tl.load(row + {_table_at(field, top, m, l)})"
                for l in _degrees(largest, m, y)
                if field != EAST or m
            ]
        for n, of_input in groupby(fields, key=lambda f: f[0]):
            degrees = _degrees(program.lmax_in[n], m, y)
            if not degrees:
                continue
            of_input = list(of_input)
            for x in (0, 1) if m else (0,):
                lines += [
                    f"q{l} = tl.load(x{n} + {_component(x, m, l)}, mask=mask, other=0.0).to(REAL)" for l in degrees
                ]
                for _, field in of_input:
                    if field == EAST and m == 0:
                        continue
                    at = (x, m, y) if field == VALUE else (x, m, 1 - y) if field == DOWN else (1 - x, m, y)
                    minus = "-" if field == EAST and x == 0 else ""
                    lines.append(
                        f"{_name(f'f{n}_{field}', at)} = {minus}({' + '.join(f'p{field}_{l} * q{l}' for l in degrees)})"
                    )
                    found[n, field].append(at)
    return lines, found


def _name(name: str, at: Iterable[int]) -> str:
    return "_".join((name, *map(str, at)))


def _times(factor: str | int | None, name: str) -> str:
    return f"{factor} * {name}" if factor else name


def _butterflies(lines: list[str], name: str, eight: list[str | None]) -> list[str]:
    """The butterflies of eight values (None: zero); the results are variables or zeros."""
    for bit in (4, 2, 1):
        made: list[str | None] = [None] * 8
        for n in range(8):
            if n & bit:
                continue
            a, b = eight[n], eight[n | bit]
            if a and b:
                lines += [f"{name}_{bit}_{n} = {a} + {b}", f"{name}_{bit}_{n | bit} = {a} - {b}"]
                made[n], made[n | bit] = f"{name}_{bit}_{n}", f"{name}_{bit}_{n | bit}"
            elif a or b:
                made[n], made[n | bit] = a or b, a or f"(-{b})"
        eight = made
    return [v or "tl.zeros([B], REAL)" for v in eight]


def _products(lines: list[str], terms: tuple[Term, ...], values: dict, image: int, made: dict) -> str:
    """The sum of the terms at one image of a point. Products of the same leading factors are computed once."""

    def of(factors):
        if len(factors) == 1:
            return values[factors[0]][image]
        if (image, factors) not in made:
            made[image, factors] = f"t{len(made)}"
            lines.append(f"{made[image, factors]} = {of(factors[:-1])} * {values[factors[-1]][image]}")
        return made[image, factors]

    return " + ".join(
        _times(None if t.coefficient == 1 else f"({float(t.coefficient)!r})", of(t.factors)) for t in terms
    )


def _column(program: SignalProgram, part: Part, row_sums: dict) -> list[str]:
    """Lines for one column of a row."""
    top = max(*program.lmax_in, *program.lmax_out)
    waves = {at for s in part for at in _waves(s, program.lmax_out[s.output])}.union(*row_sums.values())
    lines = [f"at = azimuth + column * {2 * (top + 1)}"]
    lines += [f"a{x}_{m} = tl.load(at + {x * (top + 1) + m})" for x, m in sorted({at[:2] for at in waves}) if m]
    values = {}
    for field, found in row_sums.items():
        kinds: list[list[str]] = [[] for _ in range(8)]
        name = f"f{field[0]}_{field[1]}"
        for x, m, y in found:
            kinds[4 * x + 2 * (m % 2) + y].append(_times(m and f"a{x}_{m}", _name(name, (x, m, y))))
        named: list[str | None] = [None] * 8
        for kind, sums in enumerate(kinds):
            if sums:
                named[kind] = f"{name}_{kind}"
                lines.append(f"{name}_{kind} = {' + '.join(sums)}")
        values[field] = _butterflies(lines, f"v{name}", named)
    made: dict = {}
    for number, s in enumerate(part):
        eight = []
        for image in range(8):
            total = _products(lines, s.terms, values, image, made)
            lines.append(f"w{image} = {total}")
            eight.append(f"w{image}")
        eight = _butterflies(lines, "w", eight)
        for x, m, y in _waves(s, program.lmax_out[s.output]):
            lines.append(
                f"{_name(f's{number}', (x, m, y))} += {_times(m and f'a{x}_{m}', eight[4 * x + 2 * (m % 2) + y])}"
            )
    return lines


HEAD = (
    """\
def {name}(
    {inputs},  # [batch, channels, (lmax+1)^2] each
    {outputs},  # [batch, channels, (lmax_out+1)^2] each
    table, azimuth,  # [rows, {width}], [columns, {azimuth_size}]
    {strides}, opaque_zero, num, channels, B: tl.constexpr,  # opaque_zero: 0, unknown to the compiler
):
"""
    + SAMPLES
)


def _names(part: Part) -> tuple[list[int], list[int]]:
    """The inputs and outputs of a part."""
    return sorted({n for n, _ in _fields(part)}), sorted({s.output for s in part})


def _text(program: SignalProgram, part: Part, name: str) -> str:
    inputs, outputs = _names(part)
    tensors = [*(f"in{n}" for n in inputs), *(f"out{n}" for n in outputs)]
    table, azimuth = tables(program)
    top = table.shape[-1] - 1
    # If the address of an input did not depend on the row, compilers would keep it, or the value there, in a register
    # throughout the loop.
    begin = [f"row = table + r * {table[0].size}", *(f"x{n} = in{n} + r * opaque_zero" for n in inputs)]
    lines, row_sums = _row_sums(program, _fields(part))
    before, end, after = [f"{t} += b * b_{t} + c * c_{t}" for t in tensors], [], []
    for number, s in enumerate(part):
        lmax = program.lmax_out[s.output]
        for x, m, y in _waves(s, lmax):
            lines.append(f"{_name(f's{number}', (x, m, y))} = tl.zeros([B], REAL)")
            for l in _degrees(lmax, m, y):
                o, at = f"o{number}_{_component(x, m, l)}", f"out{s.output} + {_component(x, m, l)}"
                before.append(
                    f"{o} = tl.load({at}, mask=mask, other=0.0).to(REAL)" if s.adds else f"{o} = tl.zeros([B], REAL)"
                )
                end.append(
                    f"{o} += tl.load(row + {_table_at(PROJECTION, top, m, l)}) * {_name(f's{number}', (x, m, y))}"
                )
                after.append(f"tl.store({at}, {o}.to(out{s.output}.dtype.element_ty), mask=mask)")
    head = HEAD.format(
        name=name,
        inputs=", ".join(f"in{n}" for n in inputs),
        outputs=", ".join(f"out{n}" for n in outputs),
        strides=", ".join(f"b_{t}, c_{t}" for t in tensors),
        width=table[0].size,
        azimuth_size=azimuth[0].size,
    )
    rows = [
        *begin,
        *lines,
        f"for column in range({len(azimuth)}):",
        *("    " + line for line in _column(program, part, row_sums)),
        *end,
    ]
    return head + indent([*before, f"for r in range({len(table)}):", *("    " + line for line in rows), *after])


@lru_cache(maxsize=1024)
def source(program: SignalProgram, real: str) -> tuple[tuple[str, str, Part], ...]:
    """Name, text and part of each kernel of a program. real: "float32" or "float64"."""
    named = [(f"signals_{n}", part) for n, part in enumerate(parts(program, real))]
    return tuple((name, _text(program, part, name).replace("REAL", f"tl.{real}"), part) for name, part in named)


@lru_cache(maxsize=1024)
def _compiled(program: SignalProgram, real: torch.dtype, device: str) -> tuple[list, list[torch.Tensor], set[int]]:
    """(kernel, its inputs, its outputs) of each part; the tables; the outputs that several parts add to."""
    made = source(program, kernels.compute_name(real))
    with torch.inference_mode(False):  # a cached tensor may be used outside inference mode
        constants = [torch.tensor(t, dtype=real, device=device) for t in tables(program)]
    several = {s.output for _, _, part in made for s in part if s.adds}
    return [(kernels.function(name, text, None), *_names(part)) for name, text, part in made], constants, several


def run(program: SignalProgram, pass_: Pass, inputs: list[torch.Tensor], outputs: list[torch.Tensor]) -> None:
    """Runs a program. inputs: [batch, channels, (lmax_in+1)^2] each; outputs: [batch, channels, (lmax_out+1)^2] each;
    components contiguous."""
    like = outputs[0]
    batch, channels = like.shape[:2]
    if batch * channels == 0:
        return
    real = kernels.compute_dtype(like.dtype)
    parts, constants, several = _compiled(program, real, str(like.device))
    for out, terms in zip(outputs, program.terms, strict=True):
        if not terms:
            out.zero_()
    sums = [
        torch.empty_like(out, dtype=real) if n in several and out.dtype != real else out
        for n, out in enumerate(outputs)
    ]
    for kernel, of_inputs, of_outputs in parts:
        tensors = [*(inputs[n] for n in of_inputs), *(sums[n] for n in of_outputs)]
        strides = [stride for t in tensors for stride in t.stride()[:2]]
        kernel[(triton.cdiv(batch * channels, lanes()),)](
            *tensors, *constants, *strides, 0, batch * channels, channels, B=lanes(), num_warps=1
        )
    for out, total in zip(outputs, sums, strict=True):
        if total is not out:
            out.copy_(total)

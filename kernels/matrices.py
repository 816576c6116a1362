"""Products of matrices that represent functions on the sphere (`eqtp.plans.matrices`): one sample per lane.

Small matrices are straight-line text, with the coefficients of the conversions as constants and every number in a
register. Larger ones are kept in a scratch [number, sample] of each program, where loops convert components to
matrices, sum products by blocks of rows and columns that stay in registers, and convert the sums back. As a program has
one sample per lane, a lane reads only what it wrote itself: no barriers.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache

import numpy as np
import torch
import triton

from eqtp import kernels
from eqtp.kernels import indent
from eqtp.kernels.samples import HEAD, lanes
from eqtp.plans.calls import Pass
from eqtp.plans.matrices import MatrixProgram, conversion

MAX_TEXT_SIZE = 5  # rows of a matrix: larger ones are loops, not straight-line text
# numbers that a lane keeps at once, by our count: with more the compiler takes long
MAX_LIVE_NUMBERS = {"float32": 130, "float64": 90}
MAX_BLOCK = 8  # rows, and columns, of the block of sums in registers
MAX_SCRATCH = 1 << 26  # numbers in the scratch of all programs together
MAX_PROGRAMS = 2048  # of Triton in one launch, enough to fill any GPU

LOOP_HEAD = """\
def {name}(
    {inputs},  # [batch, channels, (lmax+1)^2] each
    {outputs},  # [batch, channels, (lmax_out+1)^2] each
    ptr, at, coefficient,  # the entries of all conversions: ptr by place or component, then [entries] each
    scratch,  # [programs, {numbers}, B]
    {strides}, num, channels, B: tl.constexpr,
):
    own = scratch + tl.program_id(0).to(tl.int64) * {numbers} * B + tl.arange(0, B)
    first = tl.program_id(0).to(tl.int64) * B
    while first < num:
        n = first + tl.arange(0, B)
        first += tl.num_programs(0) * B
        mask = n < num
        b = n // channels
        c = n - b * channels
"""


def _with_partner(pair: int, n: int) -> tuple[int, ...]:
    """Signal n, or both signals of its pair."""
    return (pair, pair + 1) if 0 <= pair <= n <= pair + 1 else (n,)


def _half_of_pair(pair: int, n: int, of: Callable[[int], str]) -> str:
    """Signal n or, in a pair, half the sum or half the difference of the two. of(n): the variable of a signal."""
    names = [of(m) for m in _with_partner(pair, n)]
    return f"0.5 * ({names[0]} {'+-'[n - pair]} {names[1]})" if len(names) == 2 else names[0]


def _used(program: MatrixProgram, outputs: tuple[int, ...]) -> list[int]:
    """The inputs that these outputs read; of a pair, both."""
    used = {n for o in outputs for left, _, right, _ in program.terms[o] for n in (left, right)}
    return sorted({m for n in used for m in _with_partner(program.pair_in, n)})


def _sum_of(terms: list[str]) -> str:
    return " + ".join(terms) or "tl.zeros([B], REAL)"


# ------------------------------------------------------------------------ text
@lru_cache(maxsize=1024)
def parts(program: MatrixProgram, real: str) -> tuple[tuple[int, ...], ...]:
    """The outputs of each kernel: as many as a lane has registers for; of a pair, both."""
    found: list[tuple[int, ...]] = []
    for o in range(len(program.terms)):
        joined = (*(found[-1] if found else ()), o)
        pair = _with_partner(program.pair_out, o)[0] < o
        if found and (pair or (len(_used(program, joined)) + 1) * program.size**2 <= MAX_LIVE_NUMBERS[real]):
            found[-1] = joined
        else:
            found.append((o,))
    return tuple(found)


def _load_matrix(program: MatrixProgram, i: int) -> list[str]:
    """Lines that compute m<input>_<row>_<column> from the components x<input>_<component>."""
    size = program.size
    lines = [
        f"h{k} = {_half_of_pair(program.pair_in, i, lambda n, k=k: f'x{n}_{k}')}"
        for k in range((program.lmax_in[i] + 1) ** 2)
    ]
    sums: dict[int, list[str]] = {place: [] for place in range(size * size)}
    for place, k, to, _ in zip(*(a.tolist() for a in conversion(program.lmax_in[i], size)), strict=True):
        sums[place].append(f"{to!r} * h{k}")
    for a in range(size):
        lines.append(f"m{i}_{a}_{a} = {_sum_of(sums[a * size + a])}")
        for b in range(a + 1, size):
            lines += [f"u = {_sum_of(sums[a * size + b])}", f"v = {_sum_of(sums[b * size + a])}"]
            lines += [f"m{i}_{a}_{b} = u + v", f"m{i}_{b}_{a} = u - v"]
    return lines


def _multiply(program: MatrixProgram, o: int, matrix: Callable[[int], list[str]]) -> list[str]:
    """Lines that compute s<output>_<row>_<column>. matrix(n): lines for the matrix of input n, if not written yet."""
    size = range(program.size)
    lines = [f"s{o}_{a}_{b} = tl.zeros([B], REAL)" for a in size for b in size]
    for left, left_t, right, right_t in program.terms[o]:
        lines += [*matrix(left), *matrix(right)]

        def at(m, t, a, b):
            return f"m{m}_{b}_{a}" if t else f"m{m}_{a}_{b}"

        for a in size:
            for b in size:
                lines += [f"s{o}_{a}_{b} += {at(left, left_t, a, k)} * {at(right, right_t, k, b)}" for k in size]
    return lines


def _store(program: MatrixProgram, o: int) -> list[str]:
    """Lines that convert the sum to the components of an output and store them."""
    size, lmax = program.size, program.lmax_out[o]

    def entry(a, b):
        return _half_of_pair(program.pair_out, o, lambda n: f"s{n}_{a}_{b}")

    lines = []
    for a in range(size):
        lines.append(f"y{a * size + a} = {entry(a, a)}")
        for b in range(a + 1, size):
            lines += [
                f"u = {entry(a, b)}",
                f"v = {entry(b, a)}",
                f"y{a * size + b} = u + v",
                f"y{b * size + a} = u - v",
            ]
    sums: list[list[str]] = [[] for _ in range((lmax + 1) ** 2)]
    for place, k, _, back in zip(*(a.tolist() for a in conversion(lmax, size)), strict=True):
        sums[k].append(f"{back!r} * y{place}")
    return lines + [
        f"tl.store(out{o} + {k}, ({_sum_of(total)}).to(out{o}.dtype.element_ty), mask=mask)"
        for k, total in enumerate(sums)
    ]


def _text(program: MatrixProgram, outputs: tuple[int, ...], name: str) -> str:
    written: set[str] = set()

    def once(what: str, lines: list[str]) -> list[str]:
        fresh = [] if what in written else lines
        written.add(what)
        return fresh

    def matrix(i: int) -> list[str]:
        lines = []
        for n in _with_partner(program.pair_in, i):
            loads = [
                f"x{n}_{k} = tl.load(in{n} + {k}, mask=mask, other=0.0).to(REAL)"
                for k in range((program.lmax_in[n] + 1) ** 2)
            ]
            lines += once(f"x{n}", loads)
        return lines + once(f"m{i}", _load_matrix(program, i))

    of_inputs, of_outputs = [f"in{i}" for i in _used(program, outputs)], [f"out{o}" for o in outputs]
    tensors = [*of_inputs, *of_outputs]
    lines = [f"{t} += b * b_{t} + c * c_{t}" for t in tensors]
    for o in outputs:
        lines += _multiply(program, o, matrix)
        if o != program.pair_out:  # the first of a pair is stored with the second
            lines += [line for n in _with_partner(program.pair_out, o) for line in _store(program, n)]
    strides = ", ".join(f"b_{t}, c_{t}" for t in tensors)
    return HEAD.format(name=name, inputs=", ".join(of_inputs), outputs=", ".join(of_outputs), strides=strides) + indent(
        lines
    )


# ------------------------------------------------------------------------ loops
class _Conversions:
    """The entries of a program's conversions, concatenated, and the first ptr of each."""

    def __init__(self, program: MatrixProgram):
        self.ptr, self.at, self.coefficient, self.begin = [], [], [], {}
        for lmax in sorted({*program.lmax_in, *program.lmax_out}):
            c = conversion(lmax, program.size)
            self._add(("to", lmax), program.size**2, c.place, c.component, c.to)
            self._add(("back", lmax), (lmax + 1) ** 2, c.component, c.place, c.back)

    def _add(self, name, count: int, to: np.ndarray, at: np.ndarray, coefficient: np.ndarray) -> None:
        order = np.argsort(to, kind="stable")
        self.begin[name] = len(self.ptr)
        self.ptr += (len(self.at) + np.searchsorted(to[order], np.arange(count + 1))).tolist()
        self.at += at[order].tolist()
        self.coefficient += coefficient[order].tolist()


def _convert(count: int, begin: int, value: str, store: str) -> list[str]:
    """Lines that apply a conversion: total, the sum of its entries times value, is stored for each of `count`
    places."""
    return [
        f"for i in range({count}):",
        "    total = tl.zeros([B], REAL)",
        f"    for e in range(tl.load(ptr + {begin} + i), tl.load(ptr + {begin + 1} + i)):",
        "        of = tl.load(at + e)",
        f"        total += tl.load(coefficient + e) * {value}",
        f"    {store}",
    ]


def _butterflies(matrix: int, size: int) -> list[str]:
    """Lines that turn symmetric and antisymmetric parts in the scratch into the matrix, or the adjoint."""
    first, second = (f"own + ({matrix * size * size} + {at}) * B" for at in (f"i * {size} + j", f"j * {size} + i"))
    return [
        f"for i in range({size}):",
        f"    for j in range(i + 1, {size}):",
        f"        u = tl.load({first})",
        f"        v = tl.load({second})",
        f"        tl.store({first}, u + v)",
        f"        tl.store({second}, u - v)",
    ]


def _multiply_blocks(program: MatrixProgram, o: int, matrices: dict[str, int]) -> list[str]:
    """Lines that sum the products of an output in the scratch. Blocks beyond the edge repeat the last row or column."""
    size = program.size
    block = range(-(-size // -(-size // MAX_BLOCK)))

    def address(name, a, b):
        return f"own + ({matrices[name] * size * size} + {a} * {size} + {b}) * B"

    inner = [
        *(f"i{r} = tl.minimum(i + {r}, {size - 1})" for r in block),
        *(f"j{s} = tl.minimum(j + {s}, {size - 1})" for s in block),
    ]
    inner += [f"s{r}_{s} = tl.zeros([B], REAL)" for r in block for s in block]
    for left, left_t, right, right_t in program.terms[o]:

        def at(n, t, a, b):
            return address(f"in{n}", b, a) if t else address(f"in{n}", a, b)

        inner.append(f"for k in range({size}):")
        inner += [f"    a{r} = tl.load({at(left, left_t, f'i{r}', 'k')})" for r in block]
        for s in block:
            inner.append(f"    y = tl.load({at(right, right_t, 'k', f'j{s}')})")
            inner += [f"    s{r}_{s} += a{r} * y" for r in block]
    inner += [f"tl.store({address(f'out{o}', f'i{r}', f'j{s}')}, s{r}_{s})" for r in block for s in block]
    step = len(block)
    return [
        f"for i in range(0, {size}, {step}):",
        f"    for j in range(0, {size}, {step}):",
        *("        " + line for line in inner),
    ]


def _scratch_slots(program: MatrixProgram) -> dict[str, int]:
    """Tensor -> index of its matrix in the scratch."""
    used = _used(program, tuple(range(len(program.terms))))
    return {
        name: n for n, name in enumerate([*(f"in{i}" for i in used), *(f"out{o}" for o in range(len(program.terms)))])
    }


def _loop_text(program: MatrixProgram, name: str) -> str:
    size, matrices = program.size, _scratch_slots(program)
    square = size * size
    tensors, begin = list(matrices), _Conversions(program).begin
    lines = [f"x_{t} = {t} + b * b_{t} + c * c_{t}" for t in tensors]
    inputs = [t for t in tensors if t.startswith("in")]
    for t in inputs:
        i, own = int(t[2:]), matrices[t]
        value = _half_of_pair(program.pair_in, i, lambda n: f"tl.load(x_in{n} + of, mask=mask, other=0.0).to(REAL)")
        lines += _convert(
            square, begin["to", program.lmax_in[i]], value, f"tl.store(own + ({own * square} + i) * B, total)"
        )
        lines += _butterflies(own, size)
    for o in range(len(program.terms)):
        lines += [*_multiply_blocks(program, o, matrices), *_butterflies(matrices[f"out{o}"], size)]
    for o, lmax in enumerate(program.lmax_out):
        value = _half_of_pair(
            program.pair_out, o, lambda n: f"tl.load(own + ({matrices[f'out{n}'] * square} + of) * B)"
        )
        store = f"tl.store(x_out{o} + i, total.to(out{o}.dtype.element_ty), mask=mask)"
        lines += _convert((lmax + 1) ** 2, begin["back", lmax], value, store)
    outputs = ", ".join(t for t in tensors if t not in inputs)
    strides = ", ".join(f"b_{t}, c_{t}" for t in tensors)
    head = LOOP_HEAD.format(
        name=name, inputs=", ".join(inputs), outputs=outputs, numbers=len(matrices) * square, strides=strides
    )
    return head + indent("    " + line for line in lines)


# ------------------------------------------------------------------------ run
@lru_cache(maxsize=1024)
def source(program: MatrixProgram, real: str) -> tuple[tuple[str, str, tuple[int, ...]], ...]:
    """Name, text and outputs of each kernel of a program. real: "float32" or "float64"."""
    if program.size > MAX_TEXT_SIZE:
        made = [("matrices", _loop_text(program, "matrices"), tuple(range(len(program.terms))))]
    else:
        made = [
            (f"matrices_{n}", _text(program, outputs, f"matrices_{n}"), outputs)
            for n, outputs in enumerate(parts(program, real))
        ]
    return tuple((name, text.replace("REAL", f"tl.{real}"), outputs) for name, text, outputs in made)


@lru_cache(maxsize=1024)
def _compiled(program: MatrixProgram, real: torch.dtype, device: str) -> tuple[list, list[torch.Tensor]]:
    """(kernel, its inputs, its outputs) of each part; the tables, if the program runs by loops."""
    made = [
        (kernels.function(name, text, None), _used(program, o), o)
        for name, text, o in source(program, kernels.compute_name(real))
    ]
    if program.size <= MAX_TEXT_SIZE:
        return made, []
    c = _Conversions(program)
    with torch.inference_mode(False):  # a cached tensor may be used outside inference mode
        numbers = [torch.tensor(t, dtype=torch.int64, device=device) for t in (c.ptr, c.at)]
        return made, [*numbers, torch.tensor(c.coefficient, dtype=real, device=device)]


def run(program: MatrixProgram, pass_: Pass, inputs: list[torch.Tensor], outputs: list[torch.Tensor]) -> None:
    """Runs a program. inputs: [batch, channels, (lmax_in+1)^2] each; outputs: [batch, channels, (lmax_out+1)^2] each;
    components contiguous."""
    like = outputs[0]
    batch, channels = like.shape[:2]
    num, real = batch * channels, kernels.compute_dtype(like.dtype)
    if num == 0:
        return
    made, tables = _compiled(program, real, str(like.device))
    count = triton.cdiv(num, lanes())
    if tables:
        numbers = len(_scratch_slots(program)) * program.size**2 * lanes()
        count = min(count, MAX_PROGRAMS, max(1, MAX_SCRATCH // numbers))
        tables = [*tables, torch.empty(count, numbers, dtype=real, device=like.device)]
    for kernel, of_inputs, of_outputs in made:
        tensors = [*(inputs[n] for n in of_inputs), *(outputs[n] for n in of_outputs)]
        strides = [stride for t in tensors for stride in t.stride()[:2]]
        kernel[(count,)](*tensors, *tables, *strides, num, channels, B=lanes(), num_warps=1)

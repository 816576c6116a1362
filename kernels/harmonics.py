"""Spherical harmonics: one point per lane; value, gradient and the derivative of both along a direction.

The recursion, its gradient and its constants are those of csrc/harmonics/harmonics.h. A kernel is straight-line text
for one list of degrees. Arithmetic with `Dual`s writes it: the lines for the value and, given a direction c, for the
derivative along c.
"""

from __future__ import annotations

from functools import lru_cache

import torch
import triton

from eqtp import kernels
from eqtp.kernels import indent
from eqtp.math.harmonics import constants
from eqtp.plans.calls import Harmonics, Pass

HEAD = """\
def {name}(
    xyz, g, c, out, gxyz,  # [num, 3], [num, columns], [num, 3], [num, columns], [num, 3]; the last two contiguous
    num, xyz_row, xyz_column, g_row, c_row, c_column, B: tl.constexpr,
):
    n = tl.program_id(0).to(tl.int64) * B + tl.arange(0, B)
    mask = n < num
"""
# A vector is first divided by |x| + |y| + |z|, which cancels: no square over- or underflows. Zero vectors get
# x = y = z = r2 = inverse = 0.
NORMALIZE = """\
size = tl.abs(x) + tl.abs(y) + tl.abs(z)
null = size < TINY
size = tl.where(null, 1.0, size)
x, y, z = x / size, y / size, z / size
unit = tl.where(null, 0.0, tl.rsqrt(tl.where(null, 1.0, x * x + y * y + z * z)))
x, y, z = x * unit, y * unit, z * unit
inverse = unit / size
r2 = tl.where(null, 0.0, tl.full([B], 1.0, REAL))
"""
NORMALIZE_TANGENT = """\
slope = (x * cx + y * cy + z * cz) * inverse
cx, cy, cz = cx * inverse - x * slope, cy * inverse - y * slope, cz * inverse - z * slope
bend = -slope * inverse
"""


class Dual:
    """A dual number: a value and its tangent (derivative along c), each the name of a variable or a known float."""

    def __init__(self, lines: list[str], value, tangent=0.0):
        self.lines, self.value, self.tangent = lines, value, tangent

    def __mul__(self, other: Dual | float) -> Dual:
        other = other if isinstance(other, Dual) else Dual(self.lines, other)
        tangent = self._plus(self._times(self.value, other.tangent), self._times(self.tangent, other.value))
        return Dual(self.lines, self._assign(self._times(self.value, other.value)), self._assign(tangent))

    def __add__(self, other: Dual) -> Dual:
        value, tangent = self._plus(self.value, other.value), self._plus(self.tangent, other.tangent)
        return Dual(self.lines, self._assign(value), self._assign(tangent))

    __rmul__ = __mul__

    @staticmethod
    def _times(a, b):
        if isinstance(a, float) and isinstance(b, float):
            return a * b
        if 0.0 in (a, b):
            return 0.0
        return b if a == 1.0 else a if b == 1.0 else f"{a} * {b}"

    @staticmethod
    def _plus(a, b):
        if isinstance(a, float) and isinstance(b, float):
            return a + b
        return b if a == 0.0 else a if b == 0.0 else f"{a} + {b}"

    def _assign(self, value):
        if isinstance(value, float) or value.isidentifier():
            return value
        self.lines.append(f"v{len(self.lines)} = {value}")
        return f"v{len(self.lines) - 1}"


def _chain(m: int, lmax: int, rows: dict, y: Dual, r2: Dual) -> dict[int, Dual]:
    """P_lm for l = m .. lmax."""
    chain = {}
    for l in range(m, lmax + 1):
        a, b, _, _ = rows[m, l]
        if l == m:
            chain[l] = Dual(y.lines, a)
        else:
            chain[l] = y * chain[l - 1] * a + (r2 * chain[l - 2] * b if l > m + 1 else Dual(y.lines, 0.0))
    return chain


def polynomials(
    lines: list[str],
    lmax: int,
    normalization: str,
    position: list[Dual],
    r2: Dual,
    g: dict[int, Dual],
    want_values: bool,
):
    """Values of the components l^2 + l + m, and the gradient of sum g[component] * component by the position."""
    x, y, z = position
    order = [(m, l) for m in range(lmax + 1) for l in range(m, lmax + 1)]
    rows = dict(zip(order, constants(lmax, normalization).tolist(), strict=True))
    zero, one = Dual(lines, 0.0), Dual(lines, 1.0)
    values, gradient, radial = {}, [zero, zero, zero], zero
    c, s, c_before, s_before = one, zero, zero, zero  # Re, Im of (z + i x)^m and of the power before
    chain = _chain(0, lmax, rows, y, r2)
    for m in range(lmax + 1):
        chain_after = _chain(m + 1, lmax, rows, y, r2)
        for l in range(m, lmax + 1):
            plus, minus = l * l + l + m, l * l + l - m
            if want_values:
                values[plus] = chain[l] * c
                values |= {minus: chain[l] * s} if m else {}
            gp, gm = g.get(plus), g.get(minus) if m else None
            if gp is None:  # gm is None too
                continue
            both = gp * c + gm * s if m else gp
            _, _, e, f = rows[m, l]
            if l > m:
                gradient[1] = gradient[1] + chain[l - 1] * both * e
            if l > m + 1:
                radial = radial + chain_after[l - 1] * both * f
            if m:
                gradient[0] = gradient[0] + chain[l] * (gm * c_before + gp * s_before * -1.0) * float(m)
                gradient[2] = gradient[2] + chain[l] * (gp * c_before + gm * s_before) * float(m)
        c, s, c_before, s_before = z * c + x * s * -1.0, z * s + x * c, c, s
        chain = chain_after
    return values, [gradient[0] + x * radial, gradient[1], gradient[2] + z * radial]


def _store_columns(pointer: str, vectors: list, columns: int, first: int = 0) -> list[str]:
    """Stores columns first .. of a row. Vectors are joined to tiles [B, 2^k], so that adjacent columns are written
    together."""
    full = [v if isinstance(v, str) else f"tl.full([B], {v!r}, REAL)" for v in vectors]
    if len(full) > 32:
        return [
            *_store_columns(pointer, vectors[:32], columns, first),
            *_store_columns(pointer, vectors[32:], columns, first + 32),
        ]
    if len(full) == 1:
        return [f"tl.store({pointer} + n * {columns} + {first}, {full[0]}.to({pointer}.dtype.element_ty), mask=mask)"]
    width = triton.next_power_of_2(len(full))
    tiles = full + [full[0]] * (width - len(full))
    while len(tiles) > 1:  # the first join becomes the slowest axis
        half = len(tiles) // 2
        tiles = [f"tl.join({a}, {b})" for a, b in zip(tiles[:half], tiles[half:], strict=True)]
    return [
        f"column = tl.arange(0, {width})",
        f"tile = tl.reshape({tiles[0]}, [B, {width}]).to({pointer}.dtype.element_ty)",
        f"at = {pointer} + n[:, None] * {columns} + (column[None, :] + {first})",
        f"tl.store(at, tile, mask=mask[:, None] & (column[None, :] < {len(full)}))",
    ]


def _load_vector(names: str, pointer: str) -> list[str]:
    def at(i):
        return f"{pointer} + n * {pointer}_row + {i} * {pointer}_column"

    return [f"{name} = tl.load({at(i)}, mask=mask, other=0.0).to(REAL)" for i, name in enumerate(names.split())]


def _load_columns(pointer: str, count: int, first: int = 0) -> list[str]:
    """Loads columns first .. of a row as <pointer><column>: contiguous tiles [B, 2^k], then split."""
    if count > 32:
        return [*_load_columns(pointer, 32, first), *_load_columns(pointer, count - 32, first + 32)]
    width = triton.next_power_of_2(count)
    at = f"{pointer} + n[:, None] * {pointer}_row + (column[None, :] + {first})"
    lines = [f"column = tl.arange(0, {width})"]
    lines.append(f"tile0 = tl.load({at}, mask=mask[:, None] & (column[None, :] < {count}), other=0.0).to(REAL)")
    tiles = [list(range(width))]  # columns in each tile, of the names tile0, tile1, ...
    while width > 1:
        width //= 2
        for n in range(len(tiles)):
            shape = f"[B, {width}, 2]" if width > 1 else "[B, 2]"
            lines.append(f"part{2 * n}, part{2 * n + 1} = tl.split(tl.reshape(tile{n}, {shape}))")
        tiles = [half for columns in tiles for half in (columns[::2], columns[1::2])]
        lines += [f"tile{n} = part{n}" for n in range(len(tiles))]

    def name(n):
        return f"tl.reshape(tile{n}, [B])" if len(tiles) == 1 else f"tile{n}"

    return lines + [f"{pointer}{first + column} = {name(n)}" for n, (column,) in enumerate(tiles) if column < count]


@lru_cache(maxsize=256)
def source(
    degrees: tuple[int, ...],
    normalize: bool,
    normalization: str,
    second: bool,
    want_out: bool,
    want_gxyz: bool,
    real: str,
    tiny: float,
):
    """Name and text of a kernel. second: the derivative along c of the wanted outputs."""
    lmax = max(degrees, default=0)
    components = [l * l + i for l in degrees for i in range(2 * l + 1)]
    lines = _load_vector("x y z", "xyz") + (_load_vector("cx cy cz", "c") if second else [])
    if normalize:
        lines += [*NORMALIZE.splitlines(), *(NORMALIZE_TANGENT.splitlines() if second else [])]
    tangent = ("cx", "cy", "cz") if second else (0.0, 0.0, 0.0)
    position = [Dual(lines, v, t) for v, t in zip("xyz", tangent, strict=True)]
    x, y, z = position
    r2 = Dual(lines, "r2") if normalize else x * x + y * y + z * z
    g = {}
    lines += _load_columns("g", len(components)) if want_gxyz else []
    for j, component in enumerate(components if want_gxyz else ()):
        again = Dual(lines, f"g{j}")
        g[component] = g[component] + again if component in g else again
    values, gradient = polynomials(lines, lmax, normalization, position, r2, g, want_out)

    def pick(v):
        return v.tangent if second else v.value

    if want_gxyz:
        if normalize:  # project out the direction, divide by the length
            inverse = Dual(lines, "inverse", "bend" if second else 0.0)
            radial = x * gradient[0] + y * gradient[1] + z * gradient[2]
            gradient = [(q + v * radial * -1.0) * inverse for q, v in zip(gradient, position, strict=True)]
        lines += [line for i, v in enumerate(gradient) for line in _store_columns("gxyz", [pick(v)], 3, i)]
    if want_out and components:
        lines += _store_columns("out", [pick(values[i]) for i in components], len(components))
    name = f"spherical_harmonics_{'bwdbwd' if second else 'bwd' if want_gxyz else 'fwd'}"
    text = HEAD.format(name=name) + indent(lines)
    return name, text.replace("TINY", repr(tiny)).replace("REAL", f"tl.{real}")


CONFIGURATIONS = [({"B": 128}, 4), ({"B": 64}, 2), ({"B": 128}, 2), ({"B": 32}, 1)]  # one to two points per lane


@lru_cache(maxsize=256)
def _kernel(*arguments):
    return kernels.tuned(kernels.function(*source(*arguments)), CONFIGURATIONS)


def run(what: Harmonics, pass_: Pass, inputs, outputs) -> None:
    """Inputs and outputs as for `eqtp.backends.native.harmonics.run`; rows of g contiguous."""
    (xyz, g, c), (out, gxyz) = inputs, outputs
    if not len(xyz) or (out is None and gxyz is None):
        return
    second = pass_ == Pass.BWDBWD
    if gxyz is not None and g.shape[1] == 0:
        gxyz.zero_()
        return run(what, pass_, inputs, (out, None))
    real = kernels.compute_name(xyz.dtype)
    kernel = _kernel(
        what.degrees,
        what.normalize,
        what.normalization,
        second,
        out is not None,
        gxyz is not None,
        real,
        torch.finfo(xyz.dtype).tiny,
    )
    strides = (*xyz.stride(), 0 if g is None else g.stride(0), *(c.stride() if second else (0, 0)))
    kernel[lambda meta: (triton.cdiv(len(xyz), meta["B"]),)](
        xyz, g if gxyz is not None else None, c, out, gxyz, len(xyz), *strides
    )

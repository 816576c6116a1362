"""Irreducible representations of O(3) and their direct sums, with the grammar and the ordering of e3nn.

Both are plain tuples, as in e3nn: ``Irrep`` is ``(l, p)``, ``Irreps`` a tuple of ``(mul, ir)``. They compare
equal to e3nn's own objects, and each library accepts the other's. No torch here.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterable, Iterator
from typing import NamedTuple


class Irrep(tuple):
    """Irreducible representation of O(3): degree ``l`` >= 0 and parity ``p`` = +1 (even) or -1 (odd).

    ``Irrep("1o")``, ``Irrep("2y")`` (parity (-1)^l), ``Irrep(1, -1)``, ``Irrep((1, -1))``, or any object
    whose ``str()`` reads like that. Ordered as the tuple ``(l, p)``. Raises ValueError.
    """

    __slots__ = ()

    def __new__(cls, l, p: int | None = None) -> Irrep:
        if p is None:
            if isinstance(l, Irrep):
                return l
            if isinstance(l, MulIr):
                return l.ir
            if type(l) is not tuple:
                return super().__new__(cls, _parse_irrep(str(l)))
            if len(l) != 2:
                raise ValueError(f"Irrep: a tuple must be (l, p), got {l!r}")
            l, p = l
        try:
            degree = operator.index(l)
        except TypeError:
            degree = -1
        if degree < 0:
            raise ValueError(f"Irrep: l must be a non-negative integer, got {l!r}")
        if p not in (-1, 1):
            raise ValueError(f"Irrep: p must be 1 or -1, got {p!r}")
        return super().__new__(cls, (degree, int(p)))

    @property
    def l(self) -> int:  # noqa: E743
        """Degree."""
        return self[0]

    @property
    def p(self) -> int:
        """Parity, +1 or -1."""
        return self[1]

    @property
    def dim(self) -> int:
        """Number of components, 2 l + 1."""
        return 2 * self[0] + 1

    def is_scalar(self) -> bool:
        """True for 0e."""
        return self == (0, 1)

    def __repr__(self) -> str:
        return f"{self[0]}{'e' if self[1] == 1 else 'o'}"

    __str__ = __repr__

    def __mul__(self, other) -> list[Irrep]:
        """Irreps of the product with ``other``: l from |l1 - l2| to l1 + l2, parity p1 p2."""
        other = Irrep(other)
        return [Irrep(l, self.p * other.p) for l in range(abs(self.l - other.l), self.l + other.l + 1)]

    def __rmul__(self, mul: int) -> Irreps:
        return Irreps([(mul, self)])

    def __add__(self, other) -> Irreps:
        return Irreps(self) + Irreps(other)


class MulIr(NamedTuple):
    """``mul`` copies (channels) of the irrep ``ir``."""

    mul: int
    ir: Irrep

    @property
    def dim(self) -> int:
        return self.mul * self.ir.dim

    def __repr__(self) -> str:
        return f"{self.mul}x{self.ir}"

    __str__ = __repr__


class SortedIrreps(NamedTuple):
    """Result of `Irreps.sort`: block i went to place ``p[i]`` of ``irreps``; ``inv`` is the inverse."""

    irreps: Irreps
    p: tuple[int, ...]
    inv: tuple[int, ...]


class Irreps(tuple):
    """Direct sum of irreps: a tuple of `MulIr`.

    ``Irreps("128x0e + 64x1o")``, ``Irreps("1o")``, ``Irreps("")``, ``Irreps([(128, "0e"), (64, (1, -1))])``,
    ``Irreps(["0e", "1o"])``, an `Irrep`, or any object whose ``str()`` reads like that. Raises ValueError.
    """

    __slots__ = ()

    def __new__(cls, irreps=None) -> Irreps:
        if isinstance(irreps, Irreps):
            return irreps
        if irreps is None:
            return super().__new__(cls)
        if isinstance(irreps, MulIr):
            return super().__new__(cls, (irreps,))
        if type(irreps) in (list, tuple) or isinstance(irreps, Iterator):
            return super().__new__(cls, [_mul_ir(item) for item in irreps])
        return super().__new__(cls, _parse_irreps(str(irreps)))

    @staticmethod
    def spherical_harmonics(lmax: int, p: int = -1) -> Irreps:
        """``1x0e + 1x1o + 1x2e + ...`` up to ``lmax``; with ``p`` = 1 all even."""
        return Irreps([(1, (l, p**l)) for l in range(lmax + 1)])

    @property
    def dim(self) -> int:
        """Total number of components."""
        return sum(block.dim for block in self)

    @property
    def num_irreps(self) -> int:
        """Sum of the multiplicities."""
        return sum(block.mul for block in self)

    @property
    def ls(self) -> list[int]:
        """Degree of every single irrep, multiplicities written out."""
        return [ir.l for mul, ir in self for _ in range(mul)]

    @property
    def lmax(self) -> int:
        """Largest degree that occurs with a non-zero multiplicity. Raises ValueError if there is none."""
        if self.num_irreps == 0:
            raise ValueError(f'Irreps: lmax of empty irreps "{self}" is not defined')
        return max(ir.l for mul, ir in self if mul > 0)

    def slices(self) -> list[slice]:
        """Where each block lies on the component axis."""
        out, start = [], 0
        for block in self:
            out.append(slice(start, start + block.dim))
            start += block.dim
        return out

    def sort(self) -> SortedIrreps:
        """Blocks in the order of `Irrep` (stable), with the permutation."""
        inv = tuple(sorted(range(len(self)), key=lambda i: (self[i].ir, i)))
        p = [0] * len(self)
        for new, old in enumerate(inv):
            p[old] = new
        return SortedIrreps(Irreps([self[i] for i in inv]), tuple(p), inv)

    def simplify(self) -> Irreps:
        """Adjacent blocks of the same irrep joined, empty blocks dropped; the order stays."""
        out: list[MulIr] = []
        for mul, ir in self:
            if out and out[-1].ir == ir:
                out[-1] = MulIr(out[-1].mul + mul, ir)
            elif mul > 0:
                out.append(MulIr(mul, ir))
        return Irreps(out)

    def regroup(self) -> Irreps:
        """Sorted, then simplified."""
        return self.sort().irreps.simplify()

    def remove_zero_multiplicities(self) -> Irreps:
        """Without the empty blocks."""
        return Irreps([block for block in self if block.mul > 0])

    def filter(self, keep=None, *, drop=None, lmax: int | None = None) -> Irreps:
        """Blocks that satisfy exactly one condition (e3nn's rules).

        ``keep``, ``drop``: irreps in any form this class takes (multiplicities ignored), or a function of
        `MulIr`. ``lmax``: largest degree to keep. Raises ValueError if more than one is given.
        """
        if sum(condition is not None for condition in (keep, drop, lmax)) > 1:
            raise ValueError("Irreps.filter: give only one of keep, drop and lmax")
        if keep is not None:
            wanted = _selector(keep)
            return Irreps([block for block in self if wanted(block)])
        if drop is not None:
            unwanted = _selector(drop)
            return Irreps([block for block in self if not unwanted(block)])
        return self if lmax is None else Irreps([block for block in self if block.ir.l <= lmax])

    def count(self, ir) -> int:
        """Total multiplicity of ``ir``."""
        ir = Irrep(ir)
        return sum(block.mul for block in self if block.ir == ir)

    def __contains__(self, ir) -> bool:
        ir = Irrep(ir)
        return any(block.ir == ir for block in self)

    def __getitem__(self, index):
        item = super().__getitem__(index)
        return Irreps(item) if isinstance(index, slice) else item

    def __add__(self, other) -> Irreps:
        return Irreps(tuple(self) + tuple(Irreps(other)))

    def __radd__(self, other) -> Irreps:
        return Irreps(other) + self

    def __mul__(self, times: int) -> Irreps:
        """The list of blocks repeated."""
        return Irreps(tuple(self) * times)

    __rmul__ = __mul__

    def __repr__(self) -> str:
        return "+".join(map(str, self))

    __str__ = __repr__


def _parse_irrep(text: str) -> tuple[int, int]:
    name = text.strip()
    try:
        l = int(name[:-1])
        p = {"e": 1, "o": -1, "y": (-1) ** abs(l)}[name[-1]]
    except (ValueError, KeyError, IndexError):
        raise ValueError(f'Irrep: cannot read "{text}", expected degree and parity such as "1o" or "2e"') from None
    if l < 0:
        raise ValueError(f'Irrep: cannot read "{text}", the degree must not be negative')
    return l, p


def _parse_mul_ir(text: str) -> MulIr:
    mul, x, ir = text.partition("x")
    if not x:
        return MulIr(1, Irrep(text))
    count = int(mul)  # ValueError is turned into a sentence by the callers
    if count < 0:
        raise ValueError(f"negative multiplicity {count}")
    return MulIr(count, Irrep(ir))


def _parse_irreps(text: str) -> list[MulIr]:
    if not text.strip():
        return []
    try:
        return [_parse_mul_ir(term) for term in text.split("+")]
    except ValueError:
        raise ValueError(f'Irreps: cannot read "{text}", expected terms such as "128x0e + 64x1o"') from None


def _mul_ir(item) -> MulIr:
    """One block from a list of blocks: ``(mul, ir)``, an irrep, or a string."""
    if isinstance(item, MulIr):
        return item
    if isinstance(item, Irrep):
        return MulIr(1, item)
    try:
        if type(item) is tuple or type(item) is list:
            mul, ir = item
            mul = operator.index(mul)
            if mul < 0:
                raise ValueError
            return MulIr(mul, Irrep(tuple(ir) if type(ir) is list else ir))
        return _parse_mul_ir(str(item))
    except (ValueError, TypeError):
        raise ValueError(
            f'Irreps: cannot read the block {item!r}, expected (mul, ir) such as (64, "1o"), or "1o"'
        ) from None


def _selector(condition) -> Callable[[MulIr], bool]:
    if callable(condition):
        return condition
    if isinstance(condition, Iterable) and not isinstance(condition, (str, Irrep, MulIr, Irreps)):
        irs = {block.ir for block in Irreps(list(condition))}
    else:
        irs = {block.ir for block in Irreps(condition)}
    return lambda block: block.ir in irs

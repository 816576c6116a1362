"""The plan of a tensor product: everything that is not an input, as one frozen value built in float64.

All backends read paths, coefficients, scales and offsets from here; none computes its own. No torch here.

A path couples block i1 of x1 with block i2 of x2 into block io of the output:

    out[w, k] += scale * sum over u, v, i, j of  weight[u, v, w] * w3j[i, j, k] * x1[u, i] * x2[v, j]

The mode says which of the multiplicities u, v, w are tied or summed (`MODES`). ``scale`` is e3nn's path
coefficient, with path_weight and the variances under the square root.
"""

from __future__ import annotations

import json
import operator
from collections.abc import Iterable
from functools import lru_cache
from math import isfinite, prod, sqrt
from typing import NamedTuple

import numpy as np

from eqtp.math.cost import PASSES, nonzeros, path_flops, row_bytes
from eqtp.math.irreps import Irreps
from eqtp.math.so3 import wigner_3j


class Mode(NamedTuple):
    """Index letters of a mode: u, v, w are the channels of x1, x2, out; q the pairs u < v, row by row."""

    pair: str  # letters of the coupled inputs before the weight
    weight: str  # letters of the weight
    out: str  # letters of the output; letters of pair that are missing here are summed


MODES = {
    "uvw": Mode("uv", "uvw", "w"),
    "uvu": Mode("uv", "uv", "u"),
    "uvv": Mode("uv", "uv", "v"),
    "uuw": Mode("u", "uw", "w"),
    "uuu": Mode("u", "u", "u"),
    "uvuv": Mode("uv", "uv", "uv"),
    "uvu<v": Mode("q", "q", "q"),
    "u<vw": Mode("q", "qw", "w"),
}


class Path(NamedTuple):
    """One coupling (e3nn: instruction), with everything a kernel needs to know."""

    i1: int  # block of irreps_in1
    i2: int  # block of irreps_in2
    io: int  # block of irreps_out
    mode: str
    has_weight: bool
    path_weight: float  # as the user gave it (under the square root of scale)
    scale: float  # the coefficient in front of w3j
    mul1: int
    mul2: int
    mul3: int
    l1: int
    l2: int
    l3: int
    weight_shape: tuple[int, ...]  # () without weight
    weight_offset: int  # where the weight starts in w [numel]; -1 without weight

    @property
    def path_shape(self) -> tuple[int, ...]:
        """Shape of the weight that this path has or, without one, would have (e3nn's ``path_shape``)."""
        return tuple(_sizes(self.mul1, self.mul2, self.mul3)[letter] for letter in MODES[self.mode].weight)

    @property
    def weight_numel(self) -> int:
        """Number of weights of this path."""
        return prod(self.weight_shape) if self.has_weight else 0

    @property
    def num_pairs(self) -> int:
        """Number of pairs of channels of x1 and x2 that are coupled."""
        return prod(_sizes(self.mul1, self.mul2, self.mul3)[letter] for letter in MODES[self.mode].pair)

    @property
    def mixes(self) -> bool:
        """True if the weight mixes channels into those of the output (uvw, uuw, u<vw)."""
        return MODES[self.mode].out == "w"


class CoefficientTable(NamedTuple):
    """The non-zero coefficients of all paths as columns, sorted by (path, i, j, k)."""

    path: np.ndarray  # int32 [nnz], index into plan.paths
    i: np.ndarray  # int32 [nnz]
    j: np.ndarray  # int32 [nnz]
    k: np.ndarray  # int32 [nnz]
    c: np.ndarray  # float64 [nnz], scale * w3j[i, j, k]


class TensorProductPlan:
    """A tensor product of O(3) features, from e3nn-style instructions. Frozen; hash and == by value.

    irreps_in1, irreps_in2, irreps_out
        irreps of x1 [z, dim_in1], x2 [z, dim_in2] and the output [z, dim_out], in any form `Irreps` takes.
    instructions
        tuples ``(i_in1, i_in2, i_out, mode, has_weight[, path_weight=1.0])``; the modes of e3nn (`MODES`).
    irrep_normalization
        "component" (scale^2 has the factor 2 l3 + 1), "norm" ((2 l1 + 1)(2 l2 + 1)) or "none" (1).
    path_normalization
        "element" (scale^2 divided by the number of terms, over all paths into the same block), "path" (number
        of terms of this path times number of paths into the block) or "none".
    layout
        "mul_ir": channel-major, m fastest.
    in1_var, in2_var, out_var
        variance of each block, all 1 by default.

    Raises ValueError, one sentence, for anything that is not a tensor product. Empty irreps and no
    instructions are valid. Source: e3nn.o3.TensorProduct, whose results, weights and weight order this
    reproduces. (The ``instructions`` of an e3nn module carry the final coefficient: pass its square, both
    normalizations "none".)
    """

    def __init__(
        self,
        irreps_in1,
        irreps_in2,
        irreps_out,
        instructions: Iterable[tuple],
        irrep_normalization: str = "component",
        path_normalization: str = "element",
        layout: str = "mul_ir",
        in1_var: Iterable[float] | None = None,
        in2_var: Iterable[float] | None = None,
        out_var: Iterable[float] | None = None,
    ):

        def put(name, value):
            object.__setattr__(self, name, value)  # the object is frozen

        for name, value, known in (
            ("irrep_normalization", irrep_normalization, ("component", "norm", "none")),
            ("path_normalization", path_normalization, ("element", "path", "none")),
            ("layout", layout, ("mul_ir",)),
        ):
            if value not in known:
                raise _error(f"{name} must be one of {', '.join(map(repr, known))}, got {value!r}")
            put(name, value)
        for name, irreps, var in (
            ("in1", irreps_in1, in1_var),
            ("in2", irreps_in2, in2_var),
            ("out", irreps_out, out_var),
        ):
            irreps = Irreps(irreps)
            put(f"irreps_{name}", irreps)
            put(f"dim_{name}", irreps.dim)
            put(f"{name}_var", _variances(f"{name}_var", var, len(irreps)))
        checked = [_check_instruction(self, n, item) for n, item in enumerate(instructions)]
        put("paths", _build_paths(self, checked))
        put("weight_numel", sum(path.weight_numel for path in self.paths))
        put("cg_nonzeros", sum(nonzeros(p.l1, p.l2, p.l3)[0] for p in self.paths))
        put("key", _write_key(self))
        put("_hash", hash(self.key))
        put("_table", None)

    @staticmethod
    def from_key(key: str) -> TensorProductPlan:
        """The plan whose ``.key`` this is. Cached. Raises ValueError if the text is not such a key."""
        return _from_key(key)

    def coefficients(self, path: Path) -> np.ndarray:
        """``scale * w3j`` of a path: float64 [2 l1 + 1, 2 l2 + 1, 2 l3 + 1]."""
        return path.scale * wigner_3j(path.l1, path.l2, path.l3)

    @property
    def table(self) -> CoefficientTable:
        """Non-zero coefficients of all paths as columns, built once."""
        if self._table is None:
            object.__setattr__(self, "_table", _build_table(self))
        return self._table

    @property
    def offsets(self) -> tuple[list[slice], list[slice], list[slice]]:
        """Slices of the blocks of x1, x2 and the output on their component axes."""
        return self.irreps_in1.slices(), self.irreps_in2.slices(), self.irreps_out.slices()

    @property
    def output_mask(self) -> np.ndarray:
        """1 where some path writes to the output, else 0: float64 [dim_out] (e3nn's ``output_mask``)."""
        mask = np.zeros(self.dim_out)
        slices = self.irreps_out.slices()
        for path in self.paths:
            if path.scale != 0 and path.num_pairs > 0:
                mask[slices[path.io]] = 1
        return mask

    def flops(self, pass_: str = "fwd") -> int:
        """Floating-point operations per row (edge) of a channelwise kernel that skips zero coefficients.

        ``pass_``: "fwd"; "bwd" (gradients of x1, x2, w); "bwdbwd" (gradients of those, with cotangents for
        all three). A multiply-add counts 2. See `eqtp.math.cost.path_flops` for what is counted.
        """
        _check_pass(pass_)
        return sum(path_flops(path, pass_) for path in self.paths)

    def bytes(self, pass_: str = "fwd", itemsize: int = 4, shared_weights: bool = False) -> int:
        """Bytes per row (edge) that no kernel can avoid: every operand read once, every result written once.

        fwd: x1 x2 w -> y. bwd: x1 x2 w gy -> gx1 gx2 gw. bwdbwd: those four and three cotangents -> four
        gradients. Shared weights are not counted. ``itemsize``: bytes of a number (4 for float32).
        """
        _check_pass(pass_)
        num_inputs = self.dim_in1 + self.dim_in2 + (0 if shared_weights else self.weight_numel)
        return row_bytes(num_inputs, self.dim_out, pass_, itemsize)

    def __setattr__(self, name, value):
        raise AttributeError(f"TensorProductPlan: a plan is frozen, cannot set {name}")

    def __delattr__(self, name):
        raise AttributeError(f"TensorProductPlan: a plan is frozen, cannot delete {name}")

    def __hash__(self) -> int:
        return self._hash

    def __eq__(self, other) -> bool:
        return self.key == other.key if isinstance(other, TensorProductPlan) else NotImplemented

    def __reduce__(self):
        return _from_key, (self.key,)

    def __repr__(self) -> str:
        product = f"{self.irreps_in1} x {self.irreps_in2} -> {self.irreps_out}"
        return f"TensorProductPlan({product} | {len(self.paths)} paths | {self.weight_numel} weights)"

    def __str__(self) -> str:
        return _describe(self)


class Dims(NamedTuple):
    """Row lengths of x1, x2, the output and the weights."""

    in1: int
    in2: int
    out: int
    weights: int


@lru_cache(maxsize=1024)
def dims(key: str) -> Dims:
    """Row lengths of a plan, from its key."""
    p = TensorProductPlan.from_key(key)
    return Dims(p.dim_in1, p.dim_in2, p.dim_out, p.weight_numel)


def _error(text: str) -> ValueError:
    return ValueError(f"TensorProductPlan: {text}")


def _check_pass(pass_: str) -> None:
    if pass_ not in PASSES:
        raise _error(f"pass_ must be 'fwd', 'bwd' or 'bwdbwd', got {pass_!r}")


def _variances(name: str, var, count: int) -> tuple[float, ...]:
    try:
        var = (1.0,) * count if var is None else tuple(float(value) for value in var)
    except (TypeError, ValueError):
        raise _error(f"{name} must be a list of numbers, got {var!r}") from None
    if len(var) != count:
        raise _error(f"{name} must have one value per block ({count}), got {len(var)}")
    if not all(isfinite(value) and value >= 0 for value in var):
        raise _error(f"{name} must be finite and not negative, got {list(var)}")
    return var


def _sizes(mul1: int, mul2: int, mul3: int) -> dict[str, int]:
    """Range of each index letter of a mode; q counts the pairs u < v."""
    return {"u": mul1, "v": mul2, "w": mul3, "q": mul1 * (mul2 - 1) // 2}


def _check_instruction(plan, number: int, item) -> tuple[int, int, int, str, bool, float]:
    if not isinstance(item, (tuple, list)) or len(item) not in (5, 6):
        form = "(i_in1, i_in2, i_out, mode, has_weight[, path_weight])"
        raise _error(f"instruction {number} must be {form}, got {item!r}")
    *indices, mode, has_weight, path_weight = tuple(item) if len(item) == 6 else (*item, 1.0)
    where = f"instruction {number} {tuple(item)!r}"
    blocks = []
    for name, index in zip(("irreps_in1", "irreps_in2", "irreps_out"), indices, strict=True):
        irreps = getattr(plan, name)
        try:
            index = operator.index(index)
        except TypeError:
            raise _error(f"{where}: the index into {name} must be an integer, got {index!r}") from None
        if not 0 <= index < len(irreps):
            raise _error(f'{where}: index {index} is out of range for the {len(irreps)} blocks of {name} "{irreps}"')
        blocks.append((index, *irreps[index]))
    if not isinstance(mode, str) or mode not in MODES:
        raise _error(f"{where}: mode must be one of {', '.join(MODES)}, got {mode!r}")
    (i1, mul1, ir1), (i2, mul2, ir2), (io, mul3, ir3) = blocks
    if ir3 not in ir1 * ir2:
        raise _error(f"{where}: {ir3} does not occur in {ir1} x {ir2} = {' + '.join(map(str, ir1 * ir2))}")
    if mode in ("uuw", "uuu", "uvu<v", "u<vw") and mul1 != mul2:
        raise _error(f"{where}: mode {mode} needs equal multiplicities of both inputs, got {mul1} and {mul2}")
    if not has_weight and mode in ("uvw", "u<vw"):
        raise _error(f"{where}: mode {mode} needs weights")
    out = MODES[mode].out
    expected = prod(_sizes(mul1, mul2, mul3)[letter] for letter in out) if has_weight or out != "w" else 1
    if mul3 != expected:
        kind = mode if has_weight else f"{mode} without weights"
        given = f"with input multiplicities {mul1} and {mul2}"
        raise _error(f"{where}: mode {kind} {given} needs output multiplicity {expected}, got {mul3}")
    try:
        path_weight = float(path_weight)
    except (TypeError, ValueError):
        raise _error(f"{where}: path_weight must be a number, got {path_weight!r}") from None
    if not (isfinite(path_weight) and path_weight >= 0):
        raise _error(f"{where}: path_weight must be finite and not negative (it enters under a square root)")
    return i1, i2, io, mode, bool(has_weight), path_weight


def _num_terms(plan, i1: int, i2: int, io: int, mode: str) -> float:
    """Terms that a path sums into one output channel, times the variances of its inputs."""
    sizes = _sizes(plan.irreps_in1[i1].mul, plan.irreps_in2[i2].mul, plan.irreps_out[io].mul)
    summed = [letter for letter in MODES[mode].pair if letter not in MODES[mode].out]
    return plan.in1_var[i1] * plan.in2_var[i2] * prod(sizes[letter] for letter in summed)


def _build_paths(plan, instructions) -> tuple[Path, ...]:
    terms = [_num_terms(plan, *instruction[:4]) for instruction in instructions]  # [num_paths]
    same_out = [[] for _ in plan.irreps_out]  # terms of the paths into each block
    for (_, _, io, *_), count in zip(instructions, terms, strict=True):
        same_out[io].append(count)
    paths, offset = [], 0
    for n, (i1, i2, io, mode, has_weight, path_weight) in enumerate(instructions):
        (mul1, ir1), (mul2, ir2), (mul3, ir3) = plan.irreps_in1[i1], plan.irreps_in2[i2], plan.irreps_out[io]
        alpha = {"component": ir3.dim, "norm": ir1.dim * ir2.dim, "none": 1}[plan.irrep_normalization]
        total = {"element": sum(same_out[io]), "path": terms[n] * len(same_out[io]), "none": 1}
        total = total[plan.path_normalization]
        alpha = alpha / total if total > 0 else alpha
        scale = sqrt(alpha * plan.out_var[io] * path_weight)
        sizes = _sizes(mul1, mul2, mul3)
        shape = tuple(sizes[letter] for letter in MODES[mode].weight) if has_weight else ()
        channels, degrees, start = (mul1, mul2, mul3), (ir1.l, ir2.l, ir3.l), offset if has_weight else -1
        paths.append(Path(i1, i2, io, mode, has_weight, path_weight, scale, *channels, *degrees, shape, start))
        offset += paths[-1].weight_numel
    return tuple(paths)


def _build_table(plan) -> CoefficientTable:
    columns = [np.empty((0, 4), dtype=np.int32)]
    values = [np.empty(0)]
    for n, path in enumerate(plan.paths):
        ijk = np.argwhere(wigner_3j(path.l1, path.l2, path.l3))  # [nnz of the path, 3]
        columns.append(np.insert(ijk, 0, n, axis=1).astype(np.int32))
        values.append(plan.coefficients(path)[tuple(ijk.T)])
    arrays = [*(np.ascontiguousarray(column) for column in np.concatenate(columns).T), np.concatenate(values)]
    for array in arrays:
        array.flags.writeable = False
    return CoefficientTable(*arrays)


def _write_key(plan) -> str:
    """JSON list of the constructor's arguments; floats by repr, so that text and plan determine each other."""
    instructions = [(p.i1, p.i2, p.io, p.mode, p.has_weight, p.path_weight) for p in plan.paths]
    variances = [None if set(var) <= {1.0} else var for var in (plan.in1_var, plan.in2_var, plan.out_var)]
    irreps = [str(plan.irreps_in1), str(plan.irreps_in2), str(plan.irreps_out)]
    rest = [plan.irrep_normalization, plan.path_normalization, plan.layout, *variances]
    return json.dumps([*irreps, instructions, *rest], separators=(",", ":"))


@lru_cache(maxsize=1024)
def _from_key(key: str) -> TensorProductPlan:
    try:
        arguments = json.loads(key)
    except (TypeError, ValueError):
        arguments = None
    if not isinstance(arguments, list) or len(arguments) != 10:
        raise _error(f"not the key of a plan: {key!r}")
    return TensorProductPlan(*arguments)


def _describe(plan) -> str:
    lines = [
        f"TensorProductPlan  {plan.irreps_in1}  x  {plan.irreps_in2}  ->  {plan.irreps_out}",
        f"  irrep_normalization {plan.irrep_normalization}, path_normalization {plan.path_normalization}, "
        f"layout {plan.layout}",
    ]
    columns = "  {:>4}  {:<30} {:<6} {:<14} {:>9} {:>10} {:>6}"
    lines.append(columns.format("path", "in1 x in2 -> out", "mode", "weight", "offset", "scale", "nnz"))
    for n, p in enumerate(plan.paths):
        blocks = f"{plan.irreps_in1[p.i1]} x {plan.irreps_in2[p.i2]} -> {plan.irreps_out[p.io]}"
        weight = "x".join(map(str, p.weight_shape)) if p.has_weight else "-"
        offset = p.weight_offset if p.has_weight else "-"
        nnz = nonzeros(p.l1, p.l2, p.l3)[0]
        lines.append(columns.format(n, blocks, p.mode, weight, offset, f"{p.scale:.6f}", nnz))
    lines.append(
        f"  total: {len(plan.paths)} paths, {plan.cg_nonzeros} coefficients, {plan.weight_numel} weights, "
        f"{plan.dim_in1} x {plan.dim_in2} -> {plan.dim_out} components"
    )
    passes = [f"{name} {plan.flops(name):,} flop {plan.bytes(name):,} bytes" for name in PASSES]
    lines.append(f"  per row, float32: {'; '.join(passes)}")
    return "\n".join(lines)

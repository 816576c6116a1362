"""Equivariant linear layers with e3nn's constructor arguments and state_dict, in plain torch: one matrix product per
irrep over all rows, components and slots."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from math import prod
from typing import NamedTuple

import torch

from eqtp.math.irreps import Irrep, Irreps
from eqtp.nn.module import Module
from eqtp.ops.coefficients import as_rows
from eqtp.ops.precision import float32_under_autocast

NORMALIZATIONS = ("element", "path")


class LinearInstruction(NamedTuple):
    """A path as e3nn shows it in `Linear.instructions`."""

    i_in: int  # slot of irreps_in, -1: a bias
    i_out: int  # slot of irreps_out
    path_shape: tuple[int, ...]  # (mul_in, mul_out); (mul_out,) of a bias
    path_weight: float  # the factor in front of the path's weight


class LinearSlices(NamedTuple):
    """Where the weight of a path lies, as e3nn shows it in `Linear.weight_index_slices`."""

    slice_1D: slice
    shape_2D: tuple[int, ...]


class Run(NamedTuple):
    """Neighbouring slots of one irrep, which are one block of channels [mul, d]."""

    ir: Irrep
    slots: tuple[int, ...]
    mul: int


class Term(NamedTuple):
    """A matrix [u, v] from a run of irreps_in: blocks of the paths [slots in][slots out], several where instructions
    repeat."""

    run: int  # index in the runs of irreps_in
    paths: tuple[tuple[tuple[int, ...], ...], ...]


class Linear(Module):
    """Linear map between features of the same irrep, with e3nn's constructor, call, methods and state_dict.

    ``out[slot o] = sum over the paths (i, o) of path_weight * x[slot i] @ weight[path]``, plus the bias of o.

    instructions: (i_in, i_out), slots to connect; by default all pairs with the same irrep. biases: for each slot of
    irreps_out (only scalars, 0e), or True for all scalars. internal_weights, shared_weights: as in
    `eqtp.nn.TensorProduct`. path_normalization: "element" or "path", how path_weight makes the variance of the output
    1. _optimize_einsums does nothing. Under autocast and in half precision: docs/conventions.md.

    Attributes as in e3nn: irreps_in, irreps_out, instructions, weight_numel, bias_numel, weight_index_slices,
    internal_weights, shared_weights, weight, bias, output_mask.

    Raises IndexError for a slot that is not there, ValueError for slots with different irreps, biases that are no
    scalars, internal weights that are not shared, and for f_in or f_out (e3nn's grids of features), which are not
    supported.

    Source: e3nn.o3.Linear.
    """

    def __init__(
        self,
        irreps_in,
        irreps_out,
        *,
        f_in: int | None = None,
        f_out: int | None = None,
        internal_weights: bool | None = None,
        shared_weights: bool | None = None,
        instructions: Iterable[tuple[int, int]] | None = None,
        biases: bool | Iterable[bool] = False,
        path_normalization: str = "element",
        _optimize_einsums: bool | None = None,
    ):
        super().__init__()
        if f_in is not None or f_out is not None:
            raise ValueError(f"Linear: f_in and f_out are not supported, got {f_in} and {f_out}")
        self.irreps_in, self.irreps_out = Irreps(irreps_in), Irreps(irreps_out)
        self.shared_weights = True if shared_weights is None else shared_weights
        self.internal_weights = self.shared_weights if internal_weights is None else internal_weights
        if self.internal_weights and not self.shared_weights:
            raise ValueError("Linear: internal weights are shared by all rows; shared_weights must not be False")
        paths = _paths(self.irreps_in, self.irreps_out, instructions, path_normalization)
        self._set_instructions(paths + _biases(self.irreps_out, biases))
        own = self.internal_weights
        for name, numel, init in (("weight", self.weight_numel, torch.randn), ("bias", self.bias_numel, torch.zeros)):
            if own and numel:
                setattr(self, name, torch.nn.Parameter(init(numel)))  # [numel]
            else:
                self.register_buffer(name, torch.Tensor())
        reached = {ins.i_out for ins in self.instructions if 0 not in ins.path_shape}
        mask = [float(i in reached) for i, block in enumerate(self.irreps_out) for _ in range(block.dim)]
        self.register_buffer("output_mask", torch.tensor(mask))  # [dim_out]

    def _set_instructions(self, instructions: list) -> None:
        """Takes paths with the factors that they have, biases last; plans the matrix products."""
        self.instructions = instructions
        sizes = [prod(ins.path_shape) for ins in instructions]
        ends = [sum(sizes[: n + 1]) for n in range(len(sizes))]
        self.weight_index_slices = [
            LinearSlices(slice(end - size, end), ins.path_shape)
            for end, size, ins in zip(ends, sizes, instructions, strict=True)
        ]
        self._paths = [ins for ins in instructions if ins.i_in >= 0 and 0 not in ins.path_shape]
        self._bias_slots = {ins.i_out: ins.path_shape[0] for ins in instructions if ins.i_in == -1}
        self.weight_numel = sum(prod(ins.path_shape) for ins in self._paths)
        self.bias_numel = sum(self._bias_slots.values())
        self._path_sizes = [prod(ins.path_shape) for ins in self._paths]
        self._runs_in, self._outputs = _matrix_products(self.irreps_in, self.irreps_out, self._paths)
        self._run_sizes = [run.mul * run.ir.dim for run in self._runs_in]

    def forward(
        self, features: torch.Tensor, weight: torch.Tensor | None = None, bias: torch.Tensor | None = None
    ) -> torch.Tensor:
        """features [..., dim_in], weight [weight_numel] (shared) or [..., weight_numel], bias [bias_numel] -> [...,
        dim_out]. Raises ValueError for another width, or for weights that are missing."""
        if features.shape[-1] != self.irreps_in.dim:
            raise ValueError(f"Linear: features must be [..., {self.irreps_in.dim}], got {list(features.shape)}")
        return self._apply_matrices(features, self._given("weight", weight), self._given("bias", bias))

    def _given(self, name: str, value: torch.Tensor | None) -> torch.Tensor:
        """Weights or biases of this call: [numel] of biases and shared weights, else [rows or 1, numel]."""
        numel = getattr(self, f"{name}_numel")
        if value is None:
            if numel and not self.internal_weights:
                raise ValueError(f"Linear: {name} must be given, [..., {numel}]; the module has none of its own")
            return getattr(self, name)
        once = name == "bias" or self.shared_weights
        if value.ndim < 1 or value.shape[-1] != numel or (once and value.ndim > 1):
            raise ValueError(f"Linear: {name} must be [{'' if once else '..., '}{numel}], got {list(value.shape)}")
        return value if once else as_rows(value)

    @float32_under_autocast
    def _apply_matrices(self, features: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
        x = as_rows(features)  # [z, dim_in]
        blocks = x.split_with_sizes(self._run_sizes, -1) if len(self._run_sizes) > 1 else (x,)
        weights = self._scaled(weight)  # [..., u, v] of each path
        outs = []
        for run, terms in self._outputs:
            parts = [_mix(blocks[t.run], _matrix(weights, t.paths), run.ir.dim) for t in terms]  # [z, mul * d] each
            outs.append(sum(parts[1:], parts[0]) if parts else x.new_zeros(x.shape[0], run.mul * run.ir.dim))
        out = outs[0] if len(outs) == 1 else torch.cat(outs, -1) if outs else x.new_zeros(x.shape[0], 0)  # [z, dim_out]
        if self.bias_numel:
            out = out + self._padded(bias)
        return out.reshape(*features.shape[:-1], out.shape[-1])

    def _scaled(self, weight: torch.Tensor) -> list[torch.Tensor]:
        """[..., u, v] of each path, times its factor."""
        lead, sizes = weight.shape[:-1], self._path_sizes
        flat = weight.split_with_sizes(sizes, -1) if len(sizes) > 1 else (weight,) * len(sizes)
        views = (w.reshape(*lead, *ins.path_shape) for w, ins in zip(flat, self._paths, strict=True))
        return [w * ins.path_weight if ins.path_weight != 1 else w for w, ins in zip(views, self._paths, strict=True)]

    def _padded(self, bias: torch.Tensor) -> torch.Tensor:
        """[bias_numel] -> [dim_out], zeros where a slot has no bias."""
        parts = iter(bias.split_with_sizes(list(self._bias_slots.values())))
        slots = enumerate(self.irreps_out)
        return torch.cat([next(parts) if i in self._bias_slots else bias.new_zeros(block.dim) for i, block in slots])

    def weight_views(self, weight: torch.Tensor | None = None, yield_instruction: bool = False) -> Iterator:
        """A view [..., mul_in, mul_out] of the weight of each path; with yield_instruction (index of the path, its
        `LinearInstruction`, view). weight: as in a call; by default the module's own."""
        for n, ins in enumerate(self.instructions):
            if ins.i_in >= 0:
                view = self.weight_view_for_instruction(n, weight)
                yield (n, ins, view) if yield_instruction else view

    def weight_view_for_instruction(self, instruction: int, weight: torch.Tensor | None = None) -> torch.Tensor:
        """The view [..., mul_in, mul_out] of the weight of one path. Raises ValueError for a bias."""
        columns, shape = self.weight_index_slices[instruction]
        if self.instructions[instruction].i_in < 0:
            raise ValueError(f"Linear: instruction {instruction} is a bias, it has no weight")
        weight = self._given("weight", None) if weight is None else weight
        return weight[..., columns].view(*weight.shape[:-1], *shape)

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.irreps_in} -> {self.irreps_out} | {self.weight_numel} weights)"


# ------------------------------------------------------------------------ instructions
def _paths(irreps_in: Irreps, irreps_out: Irreps, pairs, normalization: str) -> list[LinearInstruction]:
    """The paths of these pairs of slots, or of all with the same irrep, with their factors."""
    if normalization not in NORMALIZATIONS:
        known = " or ".join(map(repr, NORMALIZATIONS))
        raise ValueError(f"Linear: path_normalization must be {known}, got {normalization!r}")
    if pairs is None:
        pairs = [(i, o) for i, a in enumerate(irreps_in) for o, b in enumerate(irreps_out) if a.ir == b.ir]
    pairs = [tuple(pair) for pair in pairs]
    for i, o in pairs:
        for what, slot, irreps in (("irreps_in", i, irreps_in), ("irreps_out", o, irreps_out)):
            if not 0 <= slot < len(irreps):
                raise IndexError(f"Linear: {slot} is not a slot of {what}, {irreps}")
        if irreps_in[i].ir != irreps_out[o].ir:
            raise ValueError(f"Linear: slot {i} of {irreps_in} and slot {o} of {irreps_out} are not of the same irrep")
    fan_in = [0] * len(irreps_out)  # channels that reach a slot
    paths_in = [0] * len(irreps_out)
    for i, o in pairs:
        fan_in[o] += irreps_in[i].mul
        paths_in[o] += 1
    found = []
    for i, o in pairs:
        channels = fan_in[o] if normalization == "element" else paths_in[o] * irreps_in[i].mul
        found.append(LinearInstruction(i, o, (irreps_in[i].mul, irreps_out[o].mul), (channels or 1) ** -0.5))
    return found


def _biases(irreps_out: Irreps, biases) -> list[LinearInstruction]:
    if isinstance(biases, bool) or biases is None:
        biases = [bool(biases) and block.ir.is_scalar() for block in irreps_out]
    biases = list(biases)
    scalars = [block.ir.is_scalar() for block in irreps_out]
    if len(biases) != len(scalars) or any(b and not s for b, s in zip(biases, scalars, strict=True)):
        raise ValueError(f"Linear: biases must be one flag per slot of {irreps_out}, True only for 0e; got {biases}")
    return [
        LinearInstruction(-1, i, (block.mul,), 1.0)
        for i, (b, block) in enumerate(zip(biases, irreps_out, strict=True))
        if b
    ]


# ------------------------------------------------------------------------ matrix products
def _matrix_products(irreps_in: Irreps, irreps_out: Irreps, paths: list) -> tuple[list[Run], list]:
    """Runs of irreps_in, and of irreps_out with the terms that make up each. The slots of an irrep are joined if every
    pair of runs is connected fully or not at all; else each is a run of its own."""
    cells: dict[tuple[int, int], list[int]] = {}
    for n, path in enumerate(paths):
        cells.setdefault((path.i_in, path.i_out), []).append(n)
    runs = [_runs(irreps, set()) for irreps in (irreps_in, irreps_out)]
    split = set()
    for a in runs[0]:
        for b in runs[1]:
            connected = [(i, o) in cells for i in a.slots for o in b.slots]
            if any(connected) and not all(connected):
                split.add(a.ir)
    runs_in, runs_out = (_runs(irreps, split) for irreps in (irreps_in, irreps_out))
    outputs = []
    for b in runs_out:
        terms = []
        for n, a in enumerate(runs_in):
            if (a.slots[0], b.slots[0]) in cells:
                terms.append(Term(n, tuple(tuple(tuple(cells[i, o]) for o in b.slots) for i in a.slots)))
        outputs.append((b, terms))
    return runs_in, outputs


def _runs(irreps: Irreps, split: set[Irrep]) -> list[Run]:
    """Neighbouring slots joined, but those of the irreps in ``split``; without empty slots."""
    runs: list[Run] = []
    for i, (mul, ir) in enumerate(irreps):
        if mul and runs and runs[-1].ir == ir and ir not in split:
            runs[-1] = Run(ir, (*runs[-1].slots, i), runs[-1].mul + mul)
        elif mul:
            runs.append(Run(ir, (i,), mul))
    return runs


def _matrix(weights: list[torch.Tensor], paths: tuple) -> torch.Tensor:
    """[..., u, v] from the weights of the paths, slot by slot."""
    rows = []
    for row in paths:
        blocks = [sum((weights[n] for n in cell[1:]), weights[cell[0]]) for cell in row]  # [..., mul_in, mul_out]
        rows.append(blocks[0] if len(blocks) == 1 else torch.cat(blocks, -1))
    return rows[0] if len(rows) == 1 else torch.cat(rows, -2)


def _mix(x: torch.Tensor, w: torch.Tensor, d: int) -> torch.Tensor:
    """x [z, u * d], w [u, v] or [z or 1, u, v] -> [z, v * d], channels outermost in both."""
    z, (u, v) = x.shape[0], w.shape[-2:]
    if w.ndim == 3:
        return (w.transpose(1, 2) @ x.reshape(z, u, d)).reshape(z, v * d)
    if d == 1:
        return x @ w
    planar = x.reshape(z, u, d).transpose(1, 2).reshape(z * d, u)
    return (planar @ w).view(z, d, v).transpose(1, 2).reshape(z, v * d)

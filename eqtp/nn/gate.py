"""Gates and norms with e3nn's constructor arguments and state_dict, in plain torch."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch

from eqtp.math.irreps import Irreps
from eqtp.nn.activation import Activation
from eqtp.nn.module import Module


class KeptBuffers(torch.nn.Module):
    """The buffers of a product without weights that stands here in e3nn: an empty ``weight``, and ``output_mask``."""

    def __init__(self, dim_out: int):
        super().__init__()
        self.register_buffer("weight", torch.Tensor())
        self.register_buffer("output_mask", torch.ones(dim_out))


class Gate(Module):
    """Scalars through functions, and every other irrep times a scalar of its own that went through a function.

    ``out = (act_scalars(scalars), act_gates(gates) * gated)``. The input has all three kinds of slots, sorted by irrep,
    see `irreps_in`; slots of one irrep stand in the order scalars, gates, gated.

    act_scalars, act_gates: as in `Activation`, one function for each slot of irreps_scalars and irreps_gates.
    irreps_gates: as many scalars as irreps_gated has irreps.

    Attributes as in e3nn: irreps_in, irreps_out, irreps_scalars, irreps_gates, irreps_gated, act_scalars, act_gates.
    Raises ValueError for irreps that are no scalars, and for another number of gates.

    Source: e3nn.nn.Gate.
    """

    def __init__(self, irreps_scalars, act_scalars: Sequence, irreps_gates, act_gates: Sequence, irreps_gated):
        super().__init__()
        scalars, gates, gated = Irreps(irreps_scalars), Irreps(irreps_gates), Irreps(irreps_gated)
        for name, irreps in (("irreps_scalars", scalars), ("irreps_gates", gates)):
            if any(ir.l for _, ir in irreps):
                raise ValueError(f"Gate: {name} must be scalars, got {irreps}")
        if gates.num_irreps != gated.num_irreps:
            raise ValueError(f"Gate: {gated} has {gated.num_irreps} irreps to gate, {gates} {gates.num_irreps} scalars")
        self.act_scalars, self.act_gates = Activation(scalars, act_scalars), Activation(gates, act_gates)
        self.irreps_scalars, self.irreps_gates = scalars.simplify(), gates.simplify()
        self.irreps_gated = gated.simplify()
        self.irreps_in = (scalars + gates + gated).regroup()
        products = _gated_irreps(self.irreps_gated, self.act_gates.irreps_out.simplify())
        self.irreps_out = self.act_scalars.irreps_out + products
        self.mul = KeptBuffers(products.dim)
        order = (scalars + gates + self.irreps_gated).sort()
        self._sizes, self._order, self._places = [block.dim for block in order.irreps], order.inv, order.p
        self._gated = [(mul, ir.dim) for mul, ir in self.irreps_gated]

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        """features [..., irreps_in.dim] -> [..., irreps_out.dim]"""
        kinds = [*self.act_scalars.acts, *self.act_gates.acts, *(None for _ in self._gated)]
        blocks: list[torch.Tensor] = []  # in the order of the input
        for part, sizes, act in self._runs(features, [kinds[i] for i in self._order]):
            part = part if act is None else act(part)
            blocks += part.split_with_sizes(sizes, -1) if len(sizes) > 1 else (part,)
        found = [blocks[place] for place in self._places]  # scalars, gates, gated
        first, last = len(self.act_scalars.acts), len(found) - len(self._gated)
        outs = found[:first]
        if self._gated:
            gates = torch.cat(found[first:last], -1) if last > first + 1 else found[first]  # [..., number of gates]
            each = gates.split_with_sizes([mul for mul, _ in self._gated], -1)
            outs += [scale_channels(*args) for args in zip(found[last:], each, self._gated, strict=True)]
        return torch.cat(outs, -1) if len(outs) > 1 else outs[0] if outs else features[..., :0]

    def _runs(self, x: torch.Tensor, acts: list) -> list[tuple]:
        """Neighbouring slots with the same function: their part of x, their sizes, the function."""
        runs: list[tuple[list[int], object]] = []
        for size, act in zip(self._sizes, acts, strict=True):
            if runs and act is not None and act.same_as(runs[-1][1]):
                runs[-1][0].append(size)
            else:
                runs.append(([size], act))
        parts = x.split_with_sizes([sum(sizes) for sizes, _ in runs], -1) if len(runs) > 1 else (x,) * len(runs)
        return [(part, *run) for part, run in zip(parts, runs, strict=True)]

    def __repr__(self) -> str:
        return f"{type(self).__name__} ({self.irreps_in} -> {self.irreps_out})"


def scale_channels(x: torch.Tensor, g: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
    """x [..., mul * d] with each channel times its g [..., mul]; size: (mul, d)."""
    return x * g if size[1] == 1 else (x.reshape(*x.shape[:-1], *size) * g.unsqueeze(-1)).reshape(x.shape)


def _gated_irreps(gated: Irreps, gates: Irreps) -> Irreps:
    """Irreps of the products of gated irreps with as many scalars, cut where either changes."""
    out, left = [], [[mul, ir] for mul, ir in gates]
    for mul, ir in gated:
        while mul:
            count = min(mul, left[0][0])
            out.append((count, (ir.l, ir.p * left[0][1].p)))
            mul, left[0][0] = mul - count, left[0][0] - count
            if not left[0][0]:
                left.pop(0)
    return Irreps(out)


class Norm(Module):
    """Norm of every irrep, or its square. Source: e3nn.o3.Norm, whose state_dict it has.

    The derivatives of a norm at zero are zero.
    """

    def __init__(self, irreps_in, squared: bool = False):
        super().__init__()
        self.irreps_in, self.squared = Irreps(irreps_in).simplify(), squared
        self.irreps_out = Irreps([(self.irreps_in.num_irreps, "0e")]).simplify()
        self.tp = KeptBuffers(self.irreps_in.num_irreps)
        self._blocks = [(mul, ir.dim) for mul, ir in self.irreps_in]

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        """features [..., irreps_in.dim] -> [..., irreps_in.num_irreps]"""
        blocks = features.split_with_sizes([mul * d for mul, d in self._blocks], -1) if self._blocks else ()
        squares = [
            x.square() if d == 1 else x.reshape(*x.shape[:-1], mul, d).square().sum(-1)
            for x, (mul, d) in zip(blocks, self._blocks, strict=True)
        ]
        out = torch.cat(squares, -1) if squares else features[..., :0]
        return out if self.squared else out.relu().sqrt()  # of relu the gradient at zero is zero

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.irreps_in})"


class NormActivation(Module):
    """Every irrep times a function of its norm. Source: e3nn.nn.NormActivation, whose state_dict it has.

    ``out = f(|x| + bias) * x / |x|``; without normalize ``f(|x| + bias) * x``. scalar_nonlinearity: f, elementwise, not
    normalised. epsilon: with normalize, smaller norms are taken as this, by default 1e-8. bias: a parameter for each
    irrep.

    Raises ValueError for an epsilon that is not positive, or one without normalize.
    """

    def __init__(
        self,
        irreps_in,
        scalar_nonlinearity: Callable,
        normalize: bool = True,
        epsilon: float | None = None,
        bias: bool = False,
    ):
        super().__init__()
        self.irreps_in = self.irreps_out = Irreps(irreps_in)
        if epsilon is not None and not (normalize and epsilon > 0):
            raise ValueError(f"NormActivation: epsilon must be positive, and needs normalize=True; got {epsilon}")
        self.epsilon = 1e-8 if epsilon is None and normalize else epsilon
        self.norm = Norm(self.irreps_in, squared=normalize)
        self.scalar_nonlinearity, self.normalize, self.bias = scalar_nonlinearity, normalize, bias
        if bias:
            self.biases = torch.nn.Parameter(torch.zeros(self.irreps_in.num_irreps))  # [num_irreps]
        self.scalar_multiplier = KeptBuffers(self.irreps_in.dim)

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        """features [..., irreps_in.dim] -> the same shape"""
        norms = self.norm(features)  # [..., num_irreps]
        if self.normalize:
            norms = norms.clamp(min=self.epsilon**2).sqrt()
        scales = self.scalar_nonlinearity(norms + self.biases if self.bias else norms)
        if self.normalize:
            scales = scales / norms
        blocks = self.norm._blocks
        if not blocks:
            return features.clone()
        parts = features.split_with_sizes([mul * d for mul, d in blocks], -1)
        each = scales.split_with_sizes([mul for mul, _ in blocks], -1)
        return torch.cat([scale_channels(*args) for args in zip(parts, each, blocks, strict=True)], -1)

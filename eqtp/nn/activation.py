"""Activations with e3nn's constructor arguments and state_dict, in plain torch: functions of scalars, gates, norms."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

import torch

from eqtp.math.irreps import Irrep, Irreps
from eqtp.nn.module import Module

SAMPLES = 1_000_000  # e3nn's, of the second moment


def second_moment_factor(f: Callable) -> float:
    """The factor that makes the mean square of f(z), z normal, 1: over the random numbers that e3nn takes, so that it
    is e3nn's to the last digit."""
    tensors = (*f.parameters(), *f.buffers()) if isinstance(f, torch.nn.Module) else ()
    device = tensors[0].device if tensors else torch.empty(0).device
    generator = torch.Generator(device=device).manual_seed(0)
    with torch.no_grad():
        z = torch.randn(SAMPLES, generator=generator, dtype=torch.float64, device=device)  # [samples]
        return f(z).pow(2).mean().pow(-0.5).item()


class Normalized(Module):
    """``cst * f(x)``, elementwise, with mean square 1 for normal x; f itself if it is that to 1e-4.

    Source: e3nn.math.normalize2mom, whose constants and state_dict it has. cst: the constant, where it is known.
    """

    def __init__(self, f: Callable, cst: float | None = None):
        super().__init__()
        self.f = f
        self.cst = second_moment_factor(f) if cst is None else cst
        self.factor = 1.0 if abs(self.cst - 1) < 1e-4 else self.cst

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """x [...] -> [...]"""
        return self.f(x) if self.factor == 1 else self.f(x) * self.factor

    def same_as(self, other) -> bool:
        """Whether this and ``other`` (perhaps None) are one function."""
        return other is not None and self.f is other.f and self.factor == other.factor


def parity(f: Callable) -> int:
    """1 of an even function, -1 of an odd one, else 0: on 256 points up to 10, to 1e-5, as e3nn finds it."""
    tensors = (*f.parameters(), *f.buffers()) if isinstance(f, torch.nn.Module) else ()
    x = torch.linspace(0, 10, 256, device=tensors[0].device if tensors else None)  # [256]
    with torch.no_grad():
        right, left = f(x), f(-x)
    return 1 if (right - left).abs().max() < 1e-5 else -1 if (right + left).abs().max() < 1e-5 else 0


class Activation(Module):
    """Scalar functions, normalised by `Normalized`, on the slots of irreps_in. Source: e3nn.nn.Activation.

    acts: one elementwise function for each slot; None: the slot as it is. A `Normalized` function stays as it is.
    Neighbouring slots with the same function are one call of it.

    Raises ValueError for another number of functions, a function on a slot that is no scalar, or one that is neither
    even nor odd on an odd scalar.
    """

    def __init__(self, irreps_in, acts: Sequence[Callable | None]):
        super().__init__()
        self.irreps_in = Irreps(irreps_in)
        acts = [act if act is None or isinstance(act, Normalized) else Normalized(act) for act in acts]
        if len(acts) != len(self.irreps_in):
            raise ValueError(f"Activation: {len(self.irreps_in)} slots in {self.irreps_in}, {len(acts)} functions")
        out = []
        for (mul, ir), act in zip(self.irreps_in, acts, strict=True):
            if act is None:
                out.append((mul, ir))
                continue
            if ir.l:
                raise ValueError(f"Activation: a function on {mul}x{ir}, which is no scalar")
            p = parity(act) if ir.p == -1 else 1
            if p == 0:
                raise ValueError(f"Activation: the function on {mul}x{ir} is neither even nor odd, parity is violated")
            out.append((mul, (0, p)))
        self.irreps_out = Irreps(out)
        self.acts = torch.nn.ModuleList(acts)

    @property
    def paths(self) -> list[tuple]:
        """(mul, (l, p), function or None) of each slot, as in e3nn."""
        return [(mul, tuple(ir), act) for (mul, ir), act in zip(self.irreps_in, self.acts, strict=True)]

    def forward(self, features: torch.Tensor, dim: int = -1) -> torch.Tensor:
        """features [..., irreps_in.dim, ...] -> the same shape; dim: where the slots are, by default last."""
        return apply_acts(features, [block.dim for block in self.irreps_in], list(self.acts), dim)

    def __repr__(self) -> str:
        acts = "".join(" " if act is None else "x" for act in self.acts)
        return f"{type(self).__name__} [{acts}] ({self.irreps_in} -> {self.irreps_out})"


def apply_acts(x: torch.Tensor, sizes: list[int], acts: list, dim: int = -1) -> torch.Tensor:
    """Functions on slots of these sizes; of neighbours with the same function in one call."""
    runs: list[tuple[int, Normalized | None]] = []  # (size, function)
    for size, act in zip(sizes, acts, strict=True):
        if runs and (act is runs[-1][1] or (act is not None and act.same_as(runs[-1][1]))):
            runs[-1] = (runs[-1][0] + size, act)
        else:
            runs.append((size, act))
    if len(runs) <= 1:
        return runs[0][1](x) if runs and runs[0][1] is not None else x
    parts = x.split_with_sizes([size for size, _ in runs], dim)
    return torch.cat([part if act is None else act(part) for part, (_, act) in zip(parts, runs, strict=True)], dim)


class Extract(Module):
    """Some slots of irreps_in, for each of irreps_outs those of its instruction. Source: e3nn.nn.Extract.

    instructions: for each of irreps_outs the slots of irreps_in that it has. squeeze_out: of one output, the tensor
    instead of a tuple.

    Raises ValueError for another number of instructions, or of slots in one.
    """

    def __init__(self, irreps_in, irreps_outs: Iterable, instructions: Sequence, squeeze_out: bool = False):
        super().__init__()
        self.irreps_in, self.irreps_outs = Irreps(irreps_in), tuple(Irreps(irreps) for irreps in irreps_outs)
        self.instructions, self.squeeze_out = instructions, squeeze_out
        if [len(irreps) for irreps in self.irreps_outs] != [len(slots) for slots in instructions]:
            raise ValueError(f"Extract: instructions {instructions} do not fit the outputs {self.irreps_outs}")

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, ...] | torch.Tensor:
        """x [..., irreps_in.dim] -> [..., irreps_out.dim] of each output"""
        blocks = x.split_with_sizes([block.dim for block in self.irreps_in], -1) if self.irreps_in else ()
        outs = tuple(
            torch.cat([blocks[i] for i in slots], -1) if slots else x[..., :0].clone() for slots in self.instructions
        )
        return outs[0] if self.squeeze_out and len(outs) == 1 else outs


class ExtractIr(Extract):
    """The slots of one irrep. Source: e3nn.nn.ExtractIr."""

    def __init__(self, irreps_in, ir):
        irreps_in = Irreps(irreps_in)
        slots = tuple(i for i, block in enumerate(irreps_in) if block.ir == Irrep(ir))
        self.irreps_out = Irreps([irreps_in[i] for i in slots])
        super().__init__(irreps_in, [self.irreps_out], [slots], squeeze_out=True)

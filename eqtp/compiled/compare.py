"""A compiled program is accepted only if its numbers are those of the model."""

from __future__ import annotations

import torch

from eqtp.compiled.case import Case
from eqtp.integrations.adapter import Tolerance

RELATIVE = {torch.float64: 1e-10, torch.float32: 1e-5}  # of outputs without a unit, of the largest entry
ABSOLUTE64 = 1e-10  # of outputs with a unit, in float64
LAST_DIGITS = 2  # of a number for which these are more than the tolerance


class Mismatch(Exception):
    """Numbers differ by more than is allowed."""


def differences(case: Case, inputs, expected, got) -> dict[str, float]:
    """Output -> largest difference, of atoms' sums per atom. Raises Mismatch, which names output and difference."""
    found = {}
    sizes = {dim: n for t, dims in zip(inputs, case.labels, strict=True) for dim, n in zip(dims, t.shape, strict=True)}
    single = any(t.dtype == torch.float32 for t in inputs)
    for (name, tolerance), a, b in zip(case.outputs.items(), got, expected, strict=True):
        if a.shape != b.shape or a.dtype != b.dtype:
            raise Mismatch(f"{name} is {_kind(a)}, that of the model is {_kind(b)}")
        per = max(sizes[tolerance.per], 1) if tolerance and tolerance.per else 1
        found[name] = _largest(name, a, b) / per
        allowed = _allowed(tolerance, b, per, single)
        if not found[name] <= allowed:
            raise Mismatch(f"{name} differs from that of the model by {found[name]:.1e}, allowed are {allowed:.1e}")
    return found


def _kind(t: torch.Tensor) -> str:
    return f"{str(t.dtype).removeprefix('torch.')} {list(t.shape)}"


def _largest(name: str, a: torch.Tensor, b: torch.Tensor) -> float:
    a, b = (t if t.is_complex() else t.double() for t in (a, b))
    finite = b.isfinite()
    if not torch.equal(finite, a.isfinite()):
        raise Mismatch(f"{name} is not NaN or infinite where that of the model is")
    return (a - b)[finite].abs().max().item() if finite.any() else 0.0


def _allowed(tolerance: Tolerance | None, expected: torch.Tensor, per: int, single: bool) -> float:
    """single: whether the model computes in float32, whatever it converts outputs to."""
    if not (expected.is_floating_point() or expected.is_complex()):
        return 0.0
    finite = expected[expected.isfinite()].abs()
    scale = finite.max().item() if finite.numel() else 0.0
    dtype = expected.dtype.to_real()
    if tolerance is None:
        return RELATIVE.get(dtype, 1e-2) * scale
    dtype = torch.float32 if single and dtype == torch.float64 else dtype
    allowed = ABSOLUTE64 if dtype == torch.float64 else tolerance.float32
    return max(allowed, LAST_DIGITS * torch.finfo(dtype).eps * scale / per)

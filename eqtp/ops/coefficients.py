"""Tensors of spherical-harmonic coefficients, [..., (lmax+1)^2] in e3nn's order: their shapes, and checks of
arguments."""

from __future__ import annotations

import operator
from math import prod

import torch

from eqtp.backends.tensors import HALVES


def degree_of(x: torch.Tensor) -> int:
    """lmax of [..., (lmax+1)^2], rounded down. Uses comparisons only, which torch.compile can trace for dynamic
    sizes."""
    lmax = 0
    while (lmax + 2) ** 2 <= x.shape[-1]:
        lmax += 1
    return lmax


def gather_padded(x: torch.Tensor, index: torch.Tensor) -> torch.Tensor:
    """x [..., n], index [...], in which n stands for a zero -> [..., *index.shape]"""
    return torch.nn.functional.pad(x, (0, 1))[..., index]


def last_contiguous(t: torch.Tensor) -> torch.Tensor:
    """The tensor with its last dimension contiguous; the other strides are arbitrary."""
    return t if t.shape[-1] == 1 or t.stride(-1) == 1 else t.contiguous()


def as_rows(x: torch.Tensor) -> torch.Tensor:
    """[..., n] -> [rows, n]. Not by reshape(-1, n), which has no answer for a batch of size 0 in vmap, or n = 0."""
    return x.flatten(0, -2) if x.ndim > 1 else x.unsqueeze(0)


def batch_shape(*operands: torch.Tensor) -> torch.Size:
    """The shape that the dimensions before the last broadcast to."""
    shapes = [t.shape[:-1] for t in operands]
    # lengths first: shapes of different lengths are not compared
    alike = all(len(shape) == len(shapes[0]) and shape == shapes[0] for shape in shapes[1:])
    return shapes[0] if alike else torch.broadcast_shapes(*shapes)  # which is slow


def as_batch_channels(*operands: torch.Tensor) -> list[torch.Tensor]:
    """Tensors [..., n] whose leading dimensions broadcast -> [b, c, n] each, with the same b and c. A tensor that is
    shared along all of b, or all of c, is not copied."""
    lead = batch_shape(*operands)
    size = (prod(lead[:-1]), lead[-1]) if len(lead) > 1 else (*lead, *(1,) * (2 - len(lead)))
    return [(t if t.shape[:-1] == lead else t.expand(*lead, t.shape[-1])).reshape(*size, t.shape[-1]) for t in operands]


def upcast_half(*tensors: torch.Tensor | None) -> list[torch.Tensor | None]:
    """Half precision as float32; None and other dtypes unchanged."""
    return [t.float() if t is not None and t.dtype in HALVES else t for t in tensors]


def upcast_for_kernels(
    x: torch.Tensor, *others: torch.Tensor | None, backend: str = "auto"
) -> list[torch.Tensor | None]:
    """The operands of kernels: upcast on the CPU; GPU kernels read half precision themselves (backend: also those that
    are run on the CPU for tests)."""
    on_cpu = x.dtype in HALVES and x.device.type == "cpu" and backend in ("auto", "native", "reference")
    return upcast_half(x, *others) if on_cpu else [x, *others]


def scale_degrees(x: torch.Tensor, w: torch.Tensor | None) -> torch.Tensor:
    """x [..., (lmax+1)^2] times w [..., lmax+1], degree by degree."""
    if w is None:
        return x
    degree = torch.arange(w.shape[-1], device=w.device)
    return x * w.repeat_interleave(2 * degree + 1, -1, output_size=x.shape[-1])


def pad_degrees(x: torch.Tensor, lmax: int) -> torch.Tensor:
    """[..., n] -> [..., (lmax+1)^2], padded with zeros."""
    more = (lmax + 1) ** 2 - x.shape[-1]
    return torch.nn.functional.pad(x, (0, more)) if more else x


# ------------------------------------------------------------------------ checks
def lmax_of(op: str, name: str, x) -> int:
    """Checks that x is a tensor of coefficients [..., (lmax+1)^2]; returns lmax."""
    if not isinstance(x, torch.Tensor):
        raise TypeError(f"{op}: {name} must be a tensor, got {type(x).__name__}")
    if not x.is_floating_point():
        raise TypeError(f"{op}: {name} must be floating point, got {x.dtype}")
    n = x.shape[-1] if x.ndim else 0
    if n < 1 or (degree_of(x) + 1) ** 2 != n:
        raise ValueError(f"{op}: {name} must be [..., (lmax+1)^2], got {list(x.shape)}")
    return degree_of(x)


def as_integer(value) -> int | None:
    """An integer of any kind (of NumPy, too) as an int; None for anything else, True and False included."""
    if type(value) is int:
        return value
    if isinstance(value, bool) or not hasattr(value, "__index__"):
        return None
    try:
        return operator.index(value)
    except TypeError:  # an array
        return None


def check_natural(op: str, name: str, value, least: int = 0) -> int:
    """The value as an int. Raises TypeError or ValueError unless it is an integer (of any kind) of at least `least`."""
    n = as_integer(value)
    if n is None:
        raise TypeError(f"{op}: {name} must be an integer, got {type(value).__name__}")
    if n < least:
        raise ValueError(f"{op}: {name} must be at least {least}, got {n}")
    return n


def check_alike(op: str, given: dict[str, torch.Tensor]) -> None:
    """Checks that tensors, given by argument name, have the dtype and device of the first and leading dimensions that
    broadcast."""
    (first, like), *_ = given.items()
    for name, t in given.items():
        if t.dtype != like.dtype:
            raise TypeError(f"{op}: {name} must have the dtype of {first}, {like.dtype}, got {t.dtype}")
        if t.device != like.device:
            raise ValueError(f"{op}: {name} must be on the device of {first}, {like.device}, got {t.device}")
    try:
        batch_shape(*given.values())
    except RuntimeError:
        shapes = ", ".join(f"{name} {list(t.shape)}" for name, t in given.items())
        raise ValueError(f"{op}: the leading dimensions do not broadcast: {shapes}") from None


def check_operands(op: str, x1, x2, lmax_out: int, w1, w2, w3) -> tuple[int, int, int]:
    """Checks the operands of a product of two functions for `op`; returns lmax1, lmax2 and lmax_out."""
    lmax1, lmax2 = lmax_of(op, "x1", x1), lmax_of(op, "x2", x2)
    lmax_out = check_natural(op, "lmax_out", lmax_out)
    for name, w, degree in (("w1", w1, lmax1), ("w2", w2, lmax2), ("w3", w3, lmax_out)):
        if w is not None and not isinstance(w, torch.Tensor):
            raise TypeError(f"{op}: {name} must be a tensor or None, got {type(w).__name__}")
        if w is not None and (w.ndim == 0 or w.shape[-1] != degree + 1):
            raise ValueError(f"{op}: {name} must be [..., {degree + 1}], got {list(w.shape)}")
    given = {name: t for name, t in (("x1", x1), ("x2", x2), ("w1", w1), ("w2", w2), ("w3", w3)) if t is not None}
    check_alike(op, given)
    return lmax1, lmax2, lmax_out

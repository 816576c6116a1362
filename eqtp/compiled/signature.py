"""What a compiled program takes: names, types and sizes of its tensors, some of them free, checked at every call."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch


class Input(NamedTuple):
    """One tensor that a compiled program reads."""

    name: str
    dtype: str  # "float32"
    device: str  # "cpu"
    shape: tuple[int | str, ...]  # a size, or an expression of free sizes: "edges", "atoms + 1"

    def __str__(self) -> str:
        return f"{self.name} [{', '.join(map(str, self.shape))}] {self.dtype}"


class Signature(NamedTuple):
    """The tensors of a program, and what holds for its free sizes.

    least: the smallest value of each free size. conditions: expressions of the free sizes that were true when the
    program was traced, and that it relies on.
    """

    inputs: tuple[Input, ...]
    least: int
    conditions: tuple[str, ...]

    def check(self, tensors: list[torch.Tensor]) -> list[torch.Tensor]:
        """The tensors as the program takes them: detached, contiguous.

        Raises TypeError for a wrong kind, dtype or device, ValueError for a wrong shape or size.
        """
        sizes: dict[str, int] = {}
        for given, t in zip(self.inputs, tensors, strict=True):
            _check_tensor(given, t)
            for size, found in zip(given.shape, t.shape, strict=True):
                if isinstance(size, str) and size.isidentifier():
                    sizes.setdefault(size, found)
        for given, t in zip(self.inputs, tensors, strict=True):
            expected = [size if isinstance(size, int) else _value(size, sizes) for size in given.shape]
            if expected != list(t.shape):
                known = ", ".join(f"{name} = {n}" for name, n in sizes.items())
                raise ValueError(f"compiled model: {given} expected{f' ({known})' if known else ''}, got {_shape(t)}")
        self._check_sizes(sizes)
        return [t.detach().contiguous() for t in tensors]

    def _check_sizes(self, sizes: dict[str, int]) -> None:
        for name, n in sizes.items():
            if n < self.least:
                raise ValueError(f"compiled model: {name} must be at least {self.least}, got {n}")
        for condition in self.conditions:
            if not _value(condition, sizes):
                known = ", ".join(f"{name} = {n}" for name, n in sizes.items())
                raise ValueError(
                    f"compiled model: it was compiled for sizes with {condition}, got {known}: compile again with an "
                    "example of this size"
                )


def _check_tensor(given: Input, t) -> None:
    if not isinstance(t, torch.Tensor):
        raise TypeError(f"compiled model: {given.name} must be a tensor, got {type(t).__name__}")
    if str(t.dtype) != f"torch.{given.dtype}":
        raise TypeError(
            f"compiled model: {given.name} must be {given.dtype}, got {str(t.dtype).removeprefix('torch.')}"
        )
    if t.device != torch.device(given.device):
        raise TypeError(f"compiled model: {given.name} must be on {given.device}, got {t.device}")
    if t.ndim != len(given.shape):
        raise ValueError(f"compiled model: {given} expected, got {_shape(t)}")


def _shape(t: torch.Tensor) -> str:
    return str(list(t.shape))


def _value(expression: str, sizes: dict[str, int]):
    return eval(expression, {"__builtins__": {"min": min, "max": max, "abs": abs}, "math": math}, dict(sizes))

"""In which precision an op computes: under torch.autocast in float32; half precision is for storage."""

from __future__ import annotations

import functools
from collections.abc import Callable
from contextlib import nullcontext

import torch


def _autocast_is_on(device_type: str) -> bool:
    return device_type != "meta" and torch.is_autocast_enabled(device_type)


def without_autocast(device_type: str):
    """A context in which autocast is off; costs nothing where it is off already."""
    return torch.autocast(device_type, enabled=False) if _autocast_is_on(device_type) else nullcontext()


def _float32(value):
    half = isinstance(value, torch.Tensor) and value.is_floating_point() and value.dtype != torch.float64
    return value.float() if half else value


def float32_under_autocast(op: Callable) -> Callable:
    """The op, which under torch.autocast takes floating tensors but float64 as float32, gives float32, and runs
    with autocast off: what torch.amp.custom_fwd(cast_inputs=torch.float32) does."""

    @functools.wraps(op)
    def call(*args, **named):
        if not (torch.compiler.is_compiling() or torch._C._is_any_autocast_enabled()):
            return op(*args, **named)
        tensor = next((a for a in (*args, *named.values()) if isinstance(a, torch.Tensor)), None)
        if tensor is None or not _autocast_is_on(tensor.device.type):
            return op(*args, **named)
        with torch.autocast(tensor.device.type, enabled=False):
            return op(*map(_float32, args), **{name: _float32(value) for name, value in named.items()})

    return call

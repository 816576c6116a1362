"""What was computed from tensors, kept for later calls while these tensors live and are not written to.

A tensor is recognised by its identity (of a view: that of its base, and where it lies in it) and its version, which
every operation in place changes; never by its values, whose comparison would make a GPU's host wait.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence

import torch
from torch.utils.weak import TensorWeakRef, WeakTensorKeyDictionary

_kept = WeakTensorKeyDictionary()  # tensor -> {key: (references, versions, value)}
_lock = threading.Lock()


def may_keep(*tensors: torch.Tensor) -> bool:
    """Whether what is computed from these tensors now may serve a later call.

    Not while anything but a plain call is under way: in torch.compile, torch.export and torch.jit.trace a kept value
    would become a constant of the program; results in transforms of torch.func, under dispatch modes (fake tensors,
    make_fx) and in inference mode are of no use outside, those of a captured CUDA graph change with each replay.
    """
    return not (
        torch.compiler.is_compiling()
        or torch.jit.is_tracing()
        or torch.is_inference_mode_enabled()
        or torch._C._are_functorch_transforms_active()
        or torch._C._len_torch_dispatch_stack()
        or any(type(t) is not torch.Tensor or t.is_meta or t.is_inference() for t in tensors)
        or (any(t.is_cuda for t in tensors) and torch.cuda.is_current_stream_capturing())
    )


def _place(t: torch.Tensor) -> tuple:
    return t.dtype, t.shape, t.stride(), t.storage_offset()


def remembered(tensors: Sequence[torch.Tensor], key: tuple, make: Callable):
    """make(), or what it returned for the same tensors, not written to since, and the same key."""
    if not may_keep(*tensors):
        return make()
    owners = [t if t._base is None else t._base for t in tensors]
    key = (*key, *map(_place, tensors))
    versions = [t._version for t in owners]
    with _lock:
        found = _kept.setdefault(owners[0], {}).get(key)
    if found is not None:
        references, then, value = found
        if versions == then and all(r() is t for r, t in zip(references, owners, strict=True)):
            return value
    value = make()
    with _lock:
        _kept.setdefault(owners[0], {})[key] = [TensorWeakRef(t) for t in owners], versions, value
    return value

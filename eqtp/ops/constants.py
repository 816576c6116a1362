"""Tables of `eqtp.math` as tensors: cached, and safe in inference mode, in transforms of torch.func and in
torch.compile."""

from __future__ import annotations

from functools import lru_cache

import numpy as np
import torch

from eqtp.math import fourier, so2, sphere
from eqtp.ops.autograd import define

MODULES = (sphere, fourier, so2)
# tables that are a tuple of arrays; the others are one array
TUPLES = {"blocks": sphere.Blocks, "octant": sphere.Octant, "series": fourier.Series, "spectrum": fourier.Spectrum}


def _array(name: str, field: int, arguments) -> np.ndarray:
    module = next(module for module in MODULES if hasattr(module, name))
    made = getattr(module, name)(*arguments)
    return np.ascontiguousarray(made[field] if name in TUPLES else made)


def _dtype(array: np.ndarray, dtype: torch.dtype) -> torch.dtype:
    return {"f": dtype, "c": dtype.to_complex(), "i": torch.int64}[array.dtype.kind]


def _make_table(like, name, field, arguments):
    array = _array(name, field, arguments)
    return torch.tensor(array, dtype=_dtype(array, like.dtype), device=like.device)


def _table_fake(like, name, field, arguments):
    array = _array(name, field, arguments)
    return like.new_empty(array.shape, dtype=_dtype(array, like.dtype))


_table_op = define(
    "gaunt_table", "(Tensor like, str name, int field, int[] arguments) -> Tensor", _make_table, _table_fake
)


@lru_cache(maxsize=256)
def _table(name, field, arguments, device, dtype):
    with torch.inference_mode(False):  # a cached tensor may be used for training later
        return _make_table(torch.empty(0, dtype=dtype, device=device), name, field, arguments)


def constants(name: str, *arguments: int, like: torch.Tensor):
    """The table of this name as a tensor or a tuple of tensors, on the device and in the precision of `like` (real)."""

    def make(field):
        if torch.compiler.is_compiling():  # Dynamo does not trace into the op
            return _table_op(like.detach(), name, field, arguments)
        # a tensor made in a transform or under a dispatch mode belongs to it: do not cache
        transformed = torch._C._are_functorch_transforms_active() or torch._C._len_torch_dispatch_stack()
        table = _table.__wrapped__ if transformed else _table
        return table(name, field, arguments, str(like.device), like.dtype)

    return TUPLES[name](*[make(field) for field in range(len(TUPLES[name]._fields))]) if name in TUPLES else make(0)

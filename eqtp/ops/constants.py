"""Tables of `eqtp.math` and `eqtp.plans` as tensors, made when they are needed: in float64, rounded once for each
device and dtype. Cached, and safe in inference mode, in transforms of torch.func and in torch.compile."""

from __future__ import annotations

from functools import lru_cache

import numpy as np
import torch

from eqtp.math import fourier, harmonics, so2, so3, sphere, variance
from eqtp.ops.autograd import define
from eqtp.plans import couplings
from eqtp.plans.plan import TensorProductPlan


def _path_coefficients(path: int, plan: str) -> np.ndarray:
    """[2 l1+1, 2 l2+1, 2 l3+1] of a path of the plan with this key."""
    p = TensorProductPlan.from_key(plan)
    return p.coefficients(p.paths[path])


def _gradient_map(*degrees_and_normalization) -> np.ndarray:
    *degrees, normalization = degrees_and_normalization
    return harmonics.gradient_map(tuple(degrees), normalization)


MODULES = (sphere, fourier, so2, so3, variance)
OTHERS = {
    "path_coefficients": _path_coefficients,
    "gradient_map": _gradient_map,
    "gaunt_weights": lambda *arguments: np.array(couplings.gaunt_weights(*arguments)),
}
# tables that are a tuple of arrays; the others are one array
TUPLES = {
    "blocks": sphere.Blocks,
    "octant": sphere.Octant,
    "series": fourier.Series,
    "spectrum": fourier.Spectrum,
    "cg_pair": so3.CgPair,
}


def _array(name: str, field: int, arguments, text: str) -> np.ndarray:
    make = OTHERS.get(name) or next(getattr(module, name) for module in MODULES if hasattr(module, name))
    made = make(*arguments, *([text] if text else []))
    return np.ascontiguousarray(made[field] if name in TUPLES else made)


def _dtype(array: np.ndarray, dtype: torch.dtype) -> torch.dtype:
    return {"f": dtype, "c": dtype.to_complex(), "i": torch.int64}[array.dtype.kind]


def _make_table(name, field, arguments, text, device, dtype):
    # a cached tensor may be used for training later, and outside the modes of the call that made it
    with torch.inference_mode(False), torch._C.DisableTorchFunction():
        array = _array(name, field, arguments, text)
        return torch.tensor(array, dtype=_dtype(array, dtype), device=device)


_table = lru_cache(maxsize=1024)(_make_table)


def _find_table(like, name, field, arguments, text):
    # a tensor made in a transform or under a dispatch mode belongs to it: do not cache
    transformed = torch._C._are_functorch_transforms_active() or torch._C._len_torch_dispatch_stack()
    find = _make_table if transformed else _table
    return find(name, field, tuple(arguments), text, str(like.device), like.dtype)


def _table_fake(like, name, field, arguments, text=""):
    array = _array(name, field, arguments, text)
    return like.new_empty(array.shape, dtype=_dtype(array, like.dtype))


_table_op = define(
    "gaunt_table",
    "(Tensor like, str name, int field, int[] arguments, str text='') -> Tensor",
    lambda like, name, field, arguments, text="": _find_table(like, name, field, arguments, text).clone(),
    _table_fake,
)


def constants(name: str, *arguments: int, like: torch.Tensor, text: str = ""):
    """The table of this name as a tensor or a tuple of tensors, on the device and in the precision of `like` (real).

    text: the table's last argument, if that is not an integer."""

    def make(field):
        if torch.compiler.is_compiling():  # Dynamo does not trace into the op
            return _table_op(like.detach(), name, field, arguments, text)
        return _find_table(like, name, field, arguments, text)

    return TUPLES[name](*[make(field) for field in range(len(TUPLES[name]._fields))]) if name in TUPLES else make(0)

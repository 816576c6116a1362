"""Models that were compiled before, found again without tracing them: by everything that the trace depends on.

What is found is compared with the model on the example, as what was just compiled is; what does not agree is traced.
"""

from __future__ import annotations

import hashlib
import inspect
import io
import json
import os
import pickle
from functools import lru_cache
from pathlib import Path

import torch

import eqtp
from eqtp.backends import registry
from eqtp.compiled.case import Case
from eqtp.compiled.package import FORMAT, SETTINGS, machine


class _Digest(pickle.Pickler):
    """Pickles a module with a digest in the place of each tensor, so that equal modules have equal texts."""

    def reducer_override(self, value):
        if isinstance(value, torch.Tensor):
            data = value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes()
            parts = value.dtype, list(value.shape), value.device, value.requires_grad, hashlib.sha256(data).hexdigest()
            return str, (repr(parts),)
        return NotImplemented


@lru_cache
def _code(file: str) -> str:
    return hashlib.sha256(Path(file).read_bytes()).hexdigest()


def _sources(module: torch.nn.Module) -> list[str]:
    """Digests of eqtp's files and of those that define the module's classes, and of what their forward is now."""
    files = {str(path) for path in Path(eqtp.__file__).parent.rglob("*.py")}
    forwards = set()
    for cls in {type(m) for m in module.modules()}:
        files |= {file for base in cls.__mro__[:-1] if (file := inspect.getsourcefile(base))}
        code = getattr(cls.forward, "__code__", None)
        forwards.add(f"{cls.__module__}.{cls.__qualname__} {code and (code.co_code.hex(), code.co_names)}")
    return [*map(_code, sorted(files)), *sorted(forwards)]


def key_of(case: Case, growth: float | None, cuda_graphs: bool) -> str | None:
    """Equal for models and examples that give equal programs; None for what cannot be recognised: a callable, or a
    model that pickle does not take."""
    if case.prepared is None:
        return None
    text = io.BytesIO()
    try:
        _Digest(text, protocol=4).dump(case.prepared)
        sources = _sources(case.prepared)
    except Exception:
        return None
    kinds = [(str(t.dtype), str(t.device), t.requires_grad) for t in case.tensors]
    sizes = [[n if dim is None else dim for n, dim in zip(t.shape, of, strict=True)]
             for t, of in zip(case.tensors, case.dims, strict=True)]  # fmt: skip
    words = [FORMAT, SETTINGS, torch.__version__, machine(), growth, cuda_graphs, case.names, list(case.outputs)]
    words += [kinds, sizes, sources, registry._default, os.environ.get("EQTP_BACKEND"), str(torch.get_default_dtype())]
    words += [torch.are_deterministic_algorithms_enabled(), torch.is_autocast_enabled(case.tensors[0].device.type)]
    digest = hashlib.sha256(json.dumps(words, default=str).encode())
    digest.update(text.getvalue())
    return digest.hexdigest()

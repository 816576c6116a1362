"""The ops in C++: csrc/<engine>/ops.cpp, a library for torch's stable C interface, which torch has from 2.10 on.

With an older torch, or EQTP_CPP_OPS=0, all ops are registered in Python (`eqtp.ops.autograd.define`)."""

from __future__ import annotations

import ctypes
import os
from functools import lru_cache
from pathlib import Path

import torch

NEEDS = (2, 10)
PATH = Path(__file__).parents[2] / "libeqtp_torch.so"  # what a C++ program loads


@lru_cache
def why_not() -> str | None:
    """Loads the library, which registers its ops; None, or a sentence why the ops are in Python."""
    if os.environ.get("EQTP_CPP_OPS") == "0":
        return "EQTP_CPP_OPS is 0"
    version = torch.__version__.split("+")[0]
    if tuple(int(n) for n in version.split(".")[:2]) < NEEDS:
        return f"torch {version} lacks what they need, which came with {'.'.join(map(str, NEEDS))}"
    if not PATH.exists():
        return f"{PATH} is not built; run: pip install ."
    try:
        torch.ops.load_library(PATH)
    except (OSError, RuntimeError) as error:
        return f"{PATH.name} cannot be loaded: {error}"
    return None


def poison(on: bool) -> None:
    """Whether new tensors of these ops are filled with NaN (integers: -1) first, for tests."""
    if loaded():
        ctypes.CDLL(str(PATH)).eqtp_poison(ctypes.c_bool(on))


def value_error(error: RuntimeError) -> str | None:
    """What a ValueError said that came through C++, which has no other kind: "ValueError: Graph: src must be ..."; None
    for another error."""
    kind, _, said = str(error).partition("\n")[0].partition(": ")
    return said if kind == "ValueError" else None


def loaded() -> bool:
    """Whether the ops in C++ are registered."""
    return why_not() is None

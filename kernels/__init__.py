"""Triton kernels, a file per engine, each with run(descriptor, pass_, inputs, outputs); installed as eqtp.kernels.

Triton is imported when a kernel is asked for, never with this module. With TRITON_INTERPRET=1 in the environment, set
before Triton is imported, the kernels run as NumPy on tensors of the CPU: slow, for tests.
"""

from __future__ import annotations

import hashlib
import linecache
import os

import torch

SIZES = ["num_edges", "num"]  # arguments that change from step to step, for which nothing is compiled again


def interpreted() -> bool:
    """Whether kernels run as NumPy."""
    return os.environ.get("TRITON_INTERPRET") == "1"


def compute_dtype(dtype: torch.dtype) -> torch.dtype:
    """The dtype that GPU kernels compute in: half precision is for storage."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def compute_type(dtype: torch.dtype):
    """The same as Triton's type."""
    import triton.language as tl

    return tl.float64 if compute_dtype(dtype) == torch.float64 else tl.float32


def function(name: str, text: str, sizes: list[str] | None = SIZES):
    """The Triton function of a text that defines `name`. Triton reads the source of a function again, so linecache must
    know it as a file.

    sizes: arguments for whose values nothing is compiled again, nor for their alignment; None: all.
    """
    import triton

    file = f"<eqtp.kernels {name} {hashlib.sha256(text.encode()).hexdigest()[:16]}>"
    linecache.cache[file] = (len(text), None, text.splitlines(keepends=True), file)
    namespace = {"tl": triton.language, "__name__": __name__}
    exec(compile(text, file, "exec"), namespace)
    made = namespace[name]
    if sizes is None:
        parameters = made.__code__.co_varnames[: made.__code__.co_argcount]
        sizes = [a for a in parameters if a not in made.__annotations__]  # those are constants
    return triton.jit(made, do_not_specialize=sizes)


def tuned(function, configurations: list[tuple[dict, int]], adds_to: list[str] | None = None):
    """A launchable of a Triton function: the quickest of some (block sizes, warps), found at its first call for a dtype
    and cached.

    adds_to: names of the outputs that the function adds to, which trials must put back. The interpreter takes the first
    of the configurations. What is tuned does not depend on the size of the data: a neighbour list that grows tunes
    once.
    """
    import triton

    configs = [triton.Config(sizes, num_warps=warps, num_stages=2) for sizes, warps in configurations]
    return triton.autotune(configs=configs[:1] if interpreted() else configs, key=[], restore_value=adds_to)(function)

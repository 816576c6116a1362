"""A computation as text: what an op takes as a constant, in a graph of torch, in a file, in a C++ program."""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Callable, Iterable, Sequence


def record(key: str, integers: Iterable[Sequence[int]], numbers: Sequence[float]) -> str:
    """The text that csrc/common/record.h reads: the key, by which Python knows the computation; a hash of the rest;
    a line for each list of integers; a line of float64 numbers in hexadecimal, none of them rounded."""
    lines = [" ".join(map(str, line)) for line in integers]
    lines.append(" ".join(float(x).hex() for x in numbers))
    rest = "\n".join(lines)
    digest = hashlib.sha256(f"{key}\n{rest}".encode()).hexdigest()[:16]
    return f"{key}\n{digest}\n{rest}"


def key_of(text: str) -> str:
    """The key of a record, or the text itself if it is only a key."""
    return text.partition("\n")[0]


def constant(make: Callable) -> Callable:
    """make, of constants, with its results kept; to Dynamo a constant (torch.compiler.assume_constant_result says the
    same, and would import the compiler)."""
    kept = functools.lru_cache(maxsize=1024)(make)

    @functools.wraps(make)
    def call(*constants):
        return kept(*constants)

    call._dynamo_marked_constant = True
    return call

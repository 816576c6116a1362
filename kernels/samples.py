"""What the kernels that work on samples share: a lane is a sample, one (batch, channel)."""

from __future__ import annotations

from collections.abc import Iterable

import torch

# The beginning of a kernel: which samples its lanes have
HEAD = """\
def {name}(
    {inputs},  # [batch, channels, components] each
    {outputs},  # [batch, channels, components] each
    {strides}, num, channels, B: tl.constexpr,
):
    n = tl.program_id(0).to(tl.int64) * B + tl.arange(0, B)
    mask = n < num
    b = n // channels
    c = n - b * channels
"""


def indent(lines: Iterable[str]) -> str:
    """The body of a function."""
    return "".join(f"    {line}\n" for line in lines)


def lanes() -> int:
    """Samples of a program, one for each lane of one warp."""
    return 64 if torch.version.hip else 32

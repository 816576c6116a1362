"""What the engines that work on samples share: a lane is a sample, one (batch, channel)."""

from __future__ import annotations

import torch

# The samples of a program's lanes
SAMPLES = """\
    n = tl.program_id(0).to(tl.int64) * B + tl.arange(0, B)
    mask = n < num
    b = n // channels
    c = n - b * channels
"""
HEAD = (
    """\
def {name}(
    {inputs},  # [batch, channels, components] each
    {outputs},  # [batch, channels, components] each
    {strides}, num, channels, B: tl.constexpr,
):
"""
    + SAMPLES
)


def lanes() -> int:
    """Samples of a program: one for each lane of a warp."""
    return 64 if torch.version.hip else 32

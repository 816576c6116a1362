"""Sums of many float32 numbers: in blocks, which are folded into a pair (total, error) that misses nothing, as in
csrc/common/long_sums.h."""

from __future__ import annotations

import triton
import triton.language as tl

BLOCK_TERMS = tl.constexpr(32)  # terms that are added one after another


@triton.jit
def fold(part, total, error):
    """total + error, grown by part."""
    grown = total + part
    added = grown - total
    return grown, error + ((total - (grown - added)) + (part - added))


@triton.jit
def folded(total, error):
    """The sum. Where the total is not finite the error is NaN."""
    return tl.where(error == error, total + error, total)


# Total and error of a sum wait in memory, `size` numbers apart, where they take no registers; only sums of several
# blocks go there. Before each of these functions there is a barrier: it reads what another thread may have written.
@triton.jit
def keep(part, at, size, first, mask):
    """Adds a block to what is kept; first: it is the first one."""
    known = mask & (first == 0)
    total, error = fold(part, tl.load(at, mask=known, other=0.0), tl.load(at + size, mask=known, other=0.0))
    tl.store(at, total, mask=mask)
    tl.store(at + size, error, mask=mask)


@triton.jit
def finish(part, at, size, mask):
    """The sum of what is kept and the last block."""
    total, error = fold(part, tl.load(at, mask=mask, other=0.0), tl.load(at + size, mask=mask, other=0.0))
    return folded(total, error)

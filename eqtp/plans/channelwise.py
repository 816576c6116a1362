"""The plans that the channelwise kernels run: mode uvu with one channel in the second operand, in every path."""

from __future__ import annotations

import numpy as np

from eqtp.plans.plan import TensorProductPlan, dims
from eqtp.plans.record import constant
from eqtp.plans.record import record as write

MAX_DIM = 33  # largest 2 l + 1 of a path (csrc/channelwise/plan.h)


def why_not(plan: TensorProductPlan) -> str | None:
    """None if every path is channelwise, else a sentence about the first that is not."""
    for n, p in enumerate(plan.paths):
        path = f"path {n} ({plan.irreps_in1[p.i1]} x {plan.irreps_in2[p.i2]} -> {plan.irreps_out[p.io]})"
        if p.mode != "uvu":
            return f"{path} has mode {p.mode}; the channelwise kernels do uvu with one channel in irreps_in2"
        if p.mul2 != 1:
            return f"{path} has {p.mul2} channels in irreps_in2; the channelwise kernels do uvu with one"
        if max(p.l1, p.l2, p.l3) > (MAX_DIM - 1) // 2:
            return f"{path} exceeds l = {(MAX_DIM - 1) // 2}, the largest degree of the channelwise kernels"
    return None


def columns(key: str) -> tuple[list[list[int]], np.ndarray]:
    """What ChannelwisePlan (csrc/channelwise/plan.h) is made of: the blocks of in1 and of the output, (offset, mul, d)
    each; (i1, offset in in2, d2, io, weight offset or -1) of each path; the four row lengths; and the coefficients [d1,
    d2, d3] of all paths, one after another."""
    p = TensorProductPlan.from_key(key)
    in2 = p.irreps_in2.slices()
    blocks = [
        [x for s, (mul, ir) in zip(irreps.slices(), irreps, strict=True) for x in (s.start, mul, ir.dim)]
        for irreps in (p.irreps_in1, p.irreps_out)
    ]
    paths = [x for q in p.paths for x in (q.i1, in2[q.i2].start, 2 * q.l2 + 1, q.io, q.weight_offset)]
    coefficients = np.concatenate([np.zeros(0), *(p.coefficients(q).ravel() for q in p.paths)])
    return [*blocks, paths, list(dims(key))], coefficients


@constant
def record(key: str) -> str:
    """The plan with this key as text that a kernel in C++ reads (`eqtp.plans.record`)."""
    return write(key, *columns(key))

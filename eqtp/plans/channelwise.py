"""The plans that the channelwise kernels run: mode uvu with one channel in the second operand, in every path."""

from __future__ import annotations

from eqtp.plans.plan import TensorProductPlan

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

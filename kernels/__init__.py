"""Triton kernels, one module per op; installed as eqtp.kernels. Imported only when the family "triton" is asked for."""

from __future__ import annotations


def why_not(op, plan, device, dtype) -> str | None:
    """None if the kernels run this op for this plan, device and dtype, else the reason as a sentence."""
    return "the kernels of this family are not written yet"

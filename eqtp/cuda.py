"""The family "jit": csrc/*.cuh compiled at run time with the plan as compile-time constants."""

from __future__ import annotations

import torch

from eqtp.plan import TensorProductPlan


def why_not(op: str, plan: TensorProductPlan | None, device: torch.device, dtype: torch.dtype) -> str | None:
    """None if the kernels run this op for this plan, device and dtype, else the reason as a sentence."""
    return f"the specialised kernels run on NVIDIA GPUs, the tensors are on {device.type}"

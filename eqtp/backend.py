"""Which kernels run: families in the order of `auto`, each with the reason why it cannot."""

from __future__ import annotations

import os
from functools import lru_cache

import torch

from eqtp import native
from eqtp.plan import TensorProductPlan

FAMILIES = ("native", "reference")  # in the order that auto tries them
_default = None


def backends() -> tuple[str, ...]:
    """Names that `backend=` takes besides "auto"."""
    return FAMILIES


def set_backend(name: str | None) -> None:
    """Family for every call that says backend="auto" (overrides EQTP_BACKEND; None: back to it)."""
    global _default
    if name is not None:
        _known(name)
    _default = name


def _known(name: str) -> str:
    if name not in (*FAMILIES, "auto"):
        raise ValueError(f"backend must be one of auto, {', '.join(FAMILIES)}, got {name!r}")
    return name


def why_not(family: str, plan: TensorProductPlan | None, device: torch.device, dtype: torch.dtype) -> str | None:
    """None if the family runs this plan (None: an op without a plan) on this device and dtype, else why not."""
    if family == "reference":
        return None
    return native.why_not(device, dtype) or (native.why_not_plan(plan) if plan is not None else None)


@lru_cache(maxsize=4096)
def _resolve(family: str, plan: TensorProductPlan | None, device: str, dtype: torch.dtype) -> str:
    if family != "auto":
        reason = why_not(family, plan, torch.device(device), dtype)
        if reason:
            raise RuntimeError(f"backend {family!r} cannot run this: {reason}")
        return family
    return next(f for f in FAMILIES if why_not(f, plan, torch.device(device), dtype) is None)


def resolve(backend: str, plan: TensorProductPlan | None, device: torch.device, dtype: torch.dtype) -> str:
    """The family that runs. A family named by the user, here or in EQTP_BACKEND, that cannot run raises RuntimeError;
    only "auto" moves on. Raises ValueError for an unknown name."""
    if backend == "auto":
        backend = _default or os.environ.get("EQTP_BACKEND", "auto")
    remembered = _resolve.__wrapped__ if torch.compiler.is_compiling() else _resolve  # Dynamo warns of caches, and has its own
    return remembered(_known(backend), plan, device.type, dtype)


def explain(plan: TensorProductPlan | None = None, device="cpu", dtype: torch.dtype = torch.float32) -> str:
    """One line per family: yes, or why not; and which one `auto` takes."""
    device = torch.device(device)
    reasons = {f: why_not(f, plan, device, dtype) for f in FAMILIES}
    lines = [f"{f:<10} {'yes' if r is None else 'no: ' + r}" for f, r in reasons.items()]
    return "\n".join([*lines, f"auto       {resolve('auto', plan, device, dtype)}"])

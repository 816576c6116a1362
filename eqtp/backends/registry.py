"""Which kernels run: families in the order of `auto` on each kind of device, each with the reason why it cannot."""

from __future__ import annotations

import os
from collections.abc import Iterable
from functools import lru_cache

import torch

from eqtp.plans.plan import TensorProductPlan

# "reference" is the op's own formula in plain torch; the others are modules or objects, imported when first asked for,
# that have the same functions: convolve, spherical_harmonics, segment_sum, ... (which write their outputs in place),
# walks_transpose, and why_not. Their order is what auto tries on a GPU. Source: what the kernels do, not a measurement;
# to be set from the tables of `make gpu`.
FAMILIES = ("jit", "native", "triton", "reference")
ORDER = {"cpu": ("native", "reference")}  # what auto tries on a device; on others all families
WITHOUT_KERNELS = {"gaunt_convolution", "so2_convolution"}  # ops that have the reference only
_default = None
_others: dict[str, object] = {}  # families that tests add, which auto never takes


def backends() -> tuple[str, ...]:
    """Names that `backend=` takes besides "auto"."""
    return FAMILIES


def family(name: str):
    """The kernels of a family. Raises ImportError if it cannot be imported."""
    if name in _others:
        return _others[name]
    if name == "jit":
        from eqtp.backends.jit.channelwise import KERNELS as module
    elif name == "triton":
        from eqtp.kernels import KERNELS as module
    else:
        from eqtp.backends.native import library as module
    return module


def set_backend(name: str | None) -> None:
    """Family for every call that says backend="auto" (overrides EQTP_BACKEND; None: back to it)."""
    global _default
    if name is not None:
        _known(name)
    _default = name


def _known(name: str) -> str:
    if name not in (*FAMILIES, *_others, "auto"):
        raise ValueError(f"backend must be one of auto, {', '.join(FAMILIES)}, got {name!r}")
    return name


def candidates(device: torch.device) -> tuple[str, ...]:
    """Families that `auto` tries on this device, in order."""
    return ORDER.get(device.type, FAMILIES)


def why_not(name: str, op: str, plan: TensorProductPlan | None, device: torch.device, dtype: torch.dtype) -> str | None:
    """None if the family runs this op with this plan (None: an op without one) on this device and dtype, else why
    not."""
    if name == "reference":
        return None
    if op in WITHOUT_KERNELS:
        return f"there are no {name} kernels for {op}"
    try:
        module = family(name)
    except ImportError as error:
        return f"its kernels cannot be imported: {error}"
    return module.why_not(op, plan, device, dtype)


@lru_cache(maxsize=4096)
def _resolve(name: str, op: str, plan: TensorProductPlan | None, device: str, dtype: torch.dtype) -> str:
    if name != "auto":
        reason = why_not(name, op, plan, torch.device(device), dtype)
        if reason:
            raise RuntimeError(f"backend {name!r} cannot run this: {reason}")
        return name
    return next(
        f for f in candidates(torch.device(device)) if why_not(f, op, plan, torch.device(device), dtype) is None
    )


def resolve(backend: str, op: str, plan: TensorProductPlan | None, device: torch.device, dtype: torch.dtype) -> str:
    """The family that runs. A family named by the user, here or in EQTP_BACKEND, that cannot run raises RuntimeError;
    only "auto" moves on. Raises ValueError for an unknown name."""
    if backend == "auto":
        backend = _default or os.environ.get("EQTP_BACKEND", "auto")
    remembered = (
        _resolve.__wrapped__ if torch.compiler.is_compiling() else _resolve
    )  # Dynamo warns of caches, and has its own
    return remembered(_known(backend), op, plan, device.type, dtype)


def prepare(plans: Iterable[TensorProductPlan], device: torch.device, dtypes: Iterable[torch.dtype]) -> None:
    """Compiles what convolutions of these plans will need, several kernels at a time. Where no kernel is compiled at
    run time it does not even look at the plans."""
    if device.type != "cuda":
        return
    plans = list(plans)
    for dtype in dtypes:
        chosen = [plan for plan in plans if resolve("auto", "tensor_product_conv", plan, device, dtype) == "jit"]
        if chosen:
            family("jit").prepare(chosen, device, dtype)


def explain(
    plan: TensorProductPlan | None = None,
    device="cpu",
    dtype: torch.dtype = torch.float32,
    op: str = "tensor_product_conv",
) -> str:
    """One line per family: yes, or why not; and which one `auto` takes."""
    device = torch.device(device)
    reasons = {f: why_not(f, op, plan, device, dtype) for f in FAMILIES}
    lines = [f"{f:<10} {'yes' if r is None else 'no: ' + r}" for f, r in reasons.items()]
    return "\n".join([*lines, f"auto       {resolve('auto', op, plan, device, dtype)}"])

"""What all families need of tensors: contiguous rows, addresses, the dtype of the arithmetic."""

from __future__ import annotations

import torch

from eqtp.kernels import compute_dtype

__all__ = ["HALVES", "address", "compute_dtype", "contiguous_rows", "dtype_name", "why_not_dtype"]

HALVES = (torch.float16, torch.bfloat16)  # for storage: GPU kernels compute in float32


def contiguous_rows(t: torch.Tensor | None) -> torch.Tensor | None:
    """A tensor [rows, n] whose rows are contiguous; their stride is free (0 for shared rows). None stays None."""
    return t if t is None or t.shape[1] < 2 or t.stride(1) == 1 else t.contiguous()


def address(t: torch.Tensor | None) -> int:
    """Address of the first element; 0 for None."""
    return 0 if t is None else t.data_ptr()


def dtype_name(dtype: torch.dtype) -> str:
    """float32, ..."""
    return str(dtype).removeprefix("torch.")


def why_not_dtype(kernels: str, dtype: torch.dtype, known: tuple[torch.dtype, ...]) -> str | None:
    """None if the dtype is among those that the kernels know, else a sentence."""
    if dtype in known:
        return None
    *most, last = map(dtype_name, known)
    return f"the {kernels} kernels know {', '.join(most)} and {last}, not {dtype_name(dtype)}"

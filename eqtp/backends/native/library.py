"""The compiled module eqtp._native: whether it supports a tensor, and how it is called."""

from __future__ import annotations

import torch

from eqtp.backends.tensors import why_not_dtype

try:
    from eqtp import _native
except ImportError as error:  # a source tree that was never built
    _native = None
    _missing = f"eqtp._native is not built ({error}); run: pip install ."
else:
    _missing = None

DTYPES = (torch.float32, torch.float64)
CUDA_DTYPES = (*DTYPES, torch.float16, torch.bfloat16)  # in the order of the codes in csrc/common/device.cuh


def why_not(binding: str, device: torch.device, dtype: torch.dtype) -> str | None:
    """None if the compiled module has this binding (on a GPU: with the suffix _cuda) for this device and dtype, else
    the reason as a sentence."""
    if _missing:
        return _missing
    if device.type not in ("cpu", "cuda"):
        return f"the native kernels run on CPUs and NVIDIA GPUs, the tensors are on {device.type}"
    reason = _why_not_cuda(binding) if device.type == "cuda" else None
    return reason or why_not_dtype("native", dtype, CUDA_DTYPES if device.type == "cuda" else DTYPES)


def _why_not_cuda(binding: str) -> str | None:
    """None if this build has the binding for a GPU and finds one, else the reason."""
    if not _native.has_cuda:
        return (
            "eqtp was built without CUDA; install nvcc (the CUDA toolkit), or name it in CUDACXX, "
            "and install eqtp again with EQTP_CUDA=1"
        )
    if not hasattr(_native, f"{binding}_cuda"):
        return f"the native kernels have no {binding} for CUDA"
    return _no_gpu()


def _no_gpu() -> str | None:
    return _native.cuda_device_count()[1]


_no_gpu._dynamo_marked_constant = True  # torch.compiler.assume_constant_result, which would import the compiler


def device_and_stream(device: torch.device) -> tuple[int, int]:
    """Index of a GPU and the address of its current stream."""
    return device.index, torch.cuda.current_stream(device).cuda_stream


def dtype_code(dtype: torch.dtype) -> int:
    """The code of a dtype in CUDA bindings."""
    return CUDA_DTYPES.index(dtype)


def csr(index: torch.Tensor, num: int) -> tuple[torch.Tensor, torch.Tensor, int]:
    """ptr [num + 1] and order [e] int64 of an index [e] on the CPU, by a stable sort, and the position of the first
    value outside [0, num), or -1."""
    index = index.contiguous()
    ptr, order = torch.empty(num + 1, dtype=torch.int64), torch.empty(len(index), dtype=torch.int64)
    is64 = index.dtype == torch.int64
    bad = _native.csr(index.data_ptr(), is64, len(index), num, ptr.data_ptr(), order.data_ptr())
    return ptr, order, bad

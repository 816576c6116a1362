"""The compiled module eqtp._native: whether it supports a tensor, and how it is called."""

from __future__ import annotations

import torch

from eqtp.backends.tensors import address, why_not_dtype

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


def edges(src, dst, valid, num_src: int, num_dst: int) -> tuple[torch.Tensor, torch.Tensor, int]:
    """int64 copies of src and dst [e] on the CPU, both int32 or both int64; an edge that is not valid [e] (None: all
    are) gets source 0 and destination num_dst. Then 2 e, or 2 e + 1, for the first edge whose source, or destination,
    is out of range, else -1."""
    src, dst = src.contiguous(), dst.contiguous()
    valid = None if valid is None else valid.contiguous()
    copies = [torch.empty(len(src), dtype=torch.int64, device="cpu") for _ in range(2)]
    inputs = src.data_ptr(), dst.data_ptr(), src.dtype == torch.int64, address(valid), len(src), num_src, num_dst
    return *copies, _native.edges(*inputs, *map(address, copies))


def csr(index: torch.Tensor, num: int) -> tuple[torch.Tensor, torch.Tensor]:
    """ptr [num + 1] and order [e] int64 of an index [e] int64 on the CPU with values in [0, num], by a stable sort; the
    value num is in no segment."""
    ptr, order = (torch.empty(n, dtype=torch.int64, device="cpu") for n in (num + 1, len(index)))
    _native.csr(index.data_ptr(), len(index), num, ptr.data_ptr(), order.data_ptr())
    return ptr, order

"""Native kernels whose lanes are samples, for tensors on the CPU (csrc/common/samples.h)."""

from __future__ import annotations

from collections.abc import Callable

import torch

from eqtp.backends import registry
from eqtp.backends.native import library


def sample_kernel(engine: str, binding: str, program: Callable) -> registry.Kernel:
    """The kernels of an engine; program(descriptor): the descriptor in C++, cached."""

    def run(descriptor, pass_, inputs, outputs) -> None:
        """inputs, outputs: [b, c, n] each, the last dimension contiguous, strides of b and c free."""
        x = inputs[0]
        if x.shape[0] and x.shape[1]:
            tensors = [[(t.data_ptr(), t.stride(0), t.stride(1)) for t in ts] for ts in (inputs, outputs)]
            sizes = x.shape[0], x.shape[1], x.dtype == torch.float64, torch.get_num_threads()
            getattr(library._native, binding)(program(descriptor), *tensors, *sizes)

    return registry.Kernel(
        engine=engine,
        family="native",
        devices=("cpu",),
        why_not=lambda descriptor, device, dtype: library.why_not(binding, device, dtype),
        run=run,
        sources=(f"csrc/{engine}/{engine}.cpp",),
    )

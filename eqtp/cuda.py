"""The family "jit": csrc/*.cuh compiled at run time, with the plan as compile-time constants (`eqtp.specialise`).

`Kernels` says which kernels run with which arguments; how a kernel is built and launched is handed to it (on a GPU `eqtp.jit`; tests hand it a C++
compiler), so the same lines run with and without a GPU.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch

from eqtp import jit, native
from eqtp.plan import TensorProductPlan
from eqtp.specialise import STORAGE, THREADS, tables

MAX_BLOCKS = 2**31 - 1
ALIGNMENT = 16  # bytes: of rows that are read several numbers at a time


class Kernels:
    """A family of specialised kernels.

    build(file, tables, names, device) -> {name: kernel}: kernels, written as in C++, of a file of csrc/ followed by the text `tables`; remembered.
    launch(kernel, grid, block, shared, *arguments): arguments are tensors, None or numpy scalars of the parameters' types.
    unavailable(device) -> None, or the reason why nothing can be built or launched for this device.
    """

    def __init__(self, build: Callable, launch: Callable, unavailable: Callable):
        self.build, self.launch, self.unavailable = build, launch, unavailable

    def why_not(self, op: str, plan: TensorProductPlan | None, device: torch.device, dtype: torch.dtype) -> str | None:
        """None if the kernels run this op for this plan, device and dtype, else the reason as a sentence."""
        if dtype not in STORAGE:
            return f"the specialised kernels know {', '.join(str(t).removeprefix('torch.') for t in STORAGE)}, not {str(dtype).removeprefix('torch.')}"
        return self.unavailable(device) or (native.why_not_plan(plan) if plan is not None else None)

    def walks_transpose(self, device: torch.device) -> bool:
        """Gradients of a convolution walk the edges out of each source."""
        return True

    def convolve(self, key: str, graph, inputs, outputs) -> None:
        """Runs csrc/tensor_product_conv.cuh. graph: (src, dst, ptr, order, tptr, torder), or () for the product of rows; inputs: x, y, w [, g [, cx, cy,
        cw]]; outputs: out, gx, gy, gw, contiguous or None."""
        inputs = [_aligned(t) for t in inputs]
        out, gx, gy, gw = outputs
        if out is not None:
            self._forward(key, graph, inputs, out)
        if gx is not None or gy is not None or gw is not None:
            self._backward(key, graph, inputs, gx, gy, gw)

    def _forward(self, key, graph, inputs, out):
        x, y, w, *rest = inputs
        tangent = rest[1:]  # tx, ty, tw
        run, t = self._program(key, "fwd_tangent" if tangent else "fwd", x, bool(graph))
        for columns in t.idle["out"]:
            out[:, columns].zero_()
        if graph:
            x = self._planar(t, 0, x)
            if tangent:
                tangent[0] = self._planar(t, 0, tangent[0])
            rows, walk = graph[2].shape[0] - 1, (graph[0], graph[2], graph[3])
        else:
            rows, walk = x.shape[0], (None, None, None)
        run(rows, [x, y, w, *(tangent or [None] * 3)], *walk, out)

    def _backward(self, key, graph, inputs, gx, gy, gw):
        x, y, w, g, *tangent = inputs
        run, t = self._program(key, "bwd_tangent" if tangent else "bwd", x, bool(graph))
        if gx is not None:
            for columns in t.idle["x"]:
                gx[:, columns].zero_()
        if graph:
            g = self._planar(t, 1, g)
            rows, walk = x.shape[0], (graph[1], graph[4], graph[5])
        else:
            rows, walk = x.shape[0], (None, None, None)
        whole = gy is None or (t.blocks == 1 and gy.dtype in (torch.float32, torch.float64))
        real = torch.float64 if x.dtype == torch.float64 else torch.float32
        parts = gy if whole else gy.new_empty(y.shape[0], t.blocks, y.shape[1], dtype=real)  # [e, blocks, dim_in2]
        if gy is not None and not t.blocks:
            return gy.zero_()
        run(rows, [x, y, w, g, *(tangent or [None] * 3)], *walk, gx, parts, gw)
        if not whole:
            name = f"eqtp::sum_units_kernel<{STORAGE[x.dtype]}, {t.blocks}, {y.shape[1]}>"
            kernel = self.build("tensor_product_conv.cuh", "", (name,), x.device)[name]
            self._launch(kernel, -(-gy.numel() // THREADS), parts, gy, np.int64(y.shape[0]))
        return None

    def _program(self, key: str, pass_: str, x: torch.Tensor, graph: bool):
        """(run(rows, tensors with row strides, *rest), tables) of a pass."""
        t = tables(key, pass_, x.dtype)
        flags = f"{str(not graph).lower()}, {str(pass_.endswith('tangent')).lower()}"
        name = f"eqtp::conv_{pass_[:3]}_kernel<eqtp::Plan, {STORAGE[x.dtype]}, {flags}>"

        def run(rows, tensors, *rest):
            groups = rows if graph else max((-(-rows // workers) for workers in t.workers), default=0)
            if t.blocks == 0 or groups == 0:
                return
            kernel = self.build("tensor_product_conv.cuh", t.text, (name,), x.device)[name]
            strides = [np.int64(0 if v is None else v.stride(0)) for v in tensors]
            self._launch(kernel, groups * t.blocks, *tensors, *strides, *rest, np.int64(rows))

        return run, t

    def _planar(self, t, side: int, rows: torch.Tensor) -> torch.Tensor:
        """Rows [n, dim] with the components of each block outermost."""
        out = torch.empty(rows.shape, dtype=rows.dtype, device=rows.device)
        if rows.numel() and t.blocks:
            name = f"eqtp::planar_kernel<eqtp::Plan, {side}, {STORAGE[rows.dtype]}>"
            kernel = self.build("tensor_product_conv.cuh", t.text, (name,), rows.device)[name]
            self._launch(kernel, rows.shape[0], rows, np.int64(rows.stride(0)), out, np.int64(rows.shape[0]))
        return out

    def _launch(self, kernel, blocks: int, *arguments) -> None:
        self.launch(kernel, (min(blocks, MAX_BLOCKS),), (THREADS,), 0, *arguments)


def _aligned(t: torch.Tensor) -> torch.Tensor:
    """Rows whose elements are contiguous, each beginning at a multiple of ALIGNMENT if the first does."""
    t = native.row(t)
    regular = t.shape[0] < 2 or t.stride(0) in (0, t.shape[1]) or t.stride(0) * t.element_size() % ALIGNMENT == 0
    if t.data_ptr() % ALIGNMENT == 0 and regular:
        return t
    return t[:1].clone().expand_as(t) if t.stride(0) == 0 else t.clone(memory_format=torch.contiguous_format)


def _build(file: str, text: str, names: tuple[str, ...], device: torch.device) -> dict:
    return jit.kernels(_source(file) + text, names, device)


def _unavailable(device: torch.device) -> str | None:
    if device.type != "cuda":
        return f"the specialised kernels run on NVIDIA GPUs, the tensors are on {device.type}"
    return jit.why_not()


_sources: dict[str, str] = {}


def _source(file: str) -> str:
    if file not in _sources:
        _sources[file] = jit.source(file)
    return _sources[file]


KERNELS = Kernels(_build, jit.launch, _unavailable)

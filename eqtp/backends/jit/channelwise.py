"""The family "jit": csrc/*.cuh compiled at run time, with the plan as compile-time constants
(`eqtp.backends.jit.channelwise_tables`).

`Kernels` says which kernels run with which arguments; how a kernel is built and launched is handed to it (on a GPU
`eqtp.backends.jit.runtime`; tests hand it a C++ compiler), so the same lines run with and without a GPU.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache
from typing import NamedTuple

import numpy as np
import torch

from eqtp.backends.jit import runtime, sample_tables
from eqtp.backends.jit.channelwise_tables import (
    MAX_BLOCKS,
    STORAGE,
    THREADS,
    Tables,
    harmonics_shape,
    harmonics_source,
    tables,
)
from eqtp.backends.native import library
from eqtp.plans.plan import TensorProductPlan, dims

ALIGNMENT = 16  # bytes: of rows that are read several numbers at a time


class Kernels:
    """A family of specialised kernels.

    build(file, tables, names, device) -> {name: kernel}: kernels, written as in C++, of a file of csrc/ followed by the
    text `tables`; remembered. launch(kernel, grid, block, shared, *arguments): arguments are tensors, None or numpy
    scalars of the parameters' types. unavailable(device) -> None, or the reason why nothing can be built or launched
    for this device.
    """

    def __init__(self, build: Callable, launch: Callable, unavailable: Callable):
        self.build, self.launch, self.unavailable = build, launch, unavailable

    def why_not(self, op: str, plan: TensorProductPlan | None, device: torch.device, dtype: torch.dtype) -> str | None:
        """None if the kernels run this op for this plan, device and dtype, else the reason as a sentence."""
        if op.startswith("segment_"):
            return f"there is nothing to specialise in {op}"
        if dtype not in STORAGE:
            return f"the specialised kernels know {', '.join(map(_name, STORAGE))}, not {_name(dtype)}"
        return self.unavailable(device) or (library.why_not_plan(plan) if plan is not None else None)

    def walks_transpose(self, device: torch.device) -> bool:
        """Gradients of a convolution walk the edges out of each source."""
        return True

    def adds_atomically(self, dtype: torch.dtype) -> bool:
        """Whether convolutions over an unsorted graph add with atomics; in half precision they would round at each
        addition."""
        return dtype in (torch.float32, torch.float64)

    def convolve(self, key: str, graph, inputs, outputs) -> None:
        """Runs csrc/channelwise/channelwise.cuh. graph: (src, dst, ptr, order, tptr, torder), or () for the product of
        rows; inputs: x, y, w [, g [, cx, cy, cw]]; outputs: out, gx, gy, gw, contiguous or None."""
        inputs = [_aligned(t) for t in inputs]
        out, gx, gy, gw = outputs
        if out is not None:
            self._forward(key, graph, inputs, out)
        if gx is not None or gy is not None or gw is not None:
            self._backward(key, graph, inputs, gx, gy, gw)

    def _forward(self, key, graph, inputs, out):
        x, y, w, _, *tangent = (*inputs, None) if len(inputs) == 3 else inputs
        p = program(key, "fwd_tangent" if tangent else "fwd", x.dtype, _mode(graph))
        for columns in [slice(None)] if p.mode == "EDGES" else p.tables.idle["out"]:
            out[:, columns].zero_()
        rows = graph[2].shape[0] - 1 if p.mode == "GRAPH" else y.shape[0]
        if p.blocks(rows) == 0:
            return
        kernels = self._build(p, x.device)
        if p.mode == "GRAPH":
            x = self._planar(kernels, p, x, key, True)
            tangent[:1] = [self._planar(kernels, p, t, key, True) for t in tangent[:1]]
        tensors = [x, y, w, *(tangent or [None] * 3)]
        self._run(
            kernels[p.main],
            p.blocks(rows),
            *tensors,
            *_strides(tensors),
            *_walk(p.mode, graph, True),
            out,
            np.int64(rows),
        )

    def _backward(self, key, graph, inputs, gx, gy, gw):
        x, y, w, g, *tangent = inputs
        p = program(key, "bwd_tangent" if tangent else "bwd", x.dtype, _mode(graph))
        rows = x.shape[0] if p.mode == "GRAPH" else y.shape[0]
        if gx is not None:
            for columns in [slice(None)] if p.mode == "EDGES" else p.tables.idle["x"]:
                gx[:, columns].zero_()
        if p.blocks(rows) == 0:
            for t in (gx, gy, gw):
                if t is not None:
                    t.zero_()
            return
        kernels = self._build(p, x.device)
        if p.mode == "GRAPH":
            g = self._planar(kernels, p, g, key, False)
        tensors = [x, y, w, g, *(tangent or [None] * 3)]
        parts = (
            None if gy is None else gy.new_empty(y.shape[0], p.tables.blocks, y.shape[1], dtype=library.real(x.dtype))
        )  # of the gradient of y
        self._run(
            kernels[p.main],
            p.blocks(rows),
            *tensors,
            *_strides(tensors),
            *_walk(p.mode, graph, False),
            gx,
            parts,
            gw,
            np.int64(rows),
        )
        if gy is not None and gy.numel():
            self._run(kernels[p.sum_units], -(-gy.numel() // THREADS), parts, gy, np.int64(y.shape[0]))

    def spherical_harmonics(self, degrees, normalize: bool, normalization: str, xyz, g, c, out, gxyz) -> None:
        """Runs csrc/harmonics/harmonics.cuh: out from xyz; gxyz from g; or both, along c. Outputs contiguous or
        None."""
        if not xyz.shape[0] or (out is None and gxyz is None):
            return
        which = "SECOND" if c is not None else "GRADIENT" if gxyz is not None else "VALUES"
        shape = harmonics_shape(degrees, which, xyz.dtype)
        if not shape.tile:
            raise RuntimeError(
                f"spherical_harmonics: {sum(2 * l + 1 for l in degrees)} columns do not fit the shared memory of a GPU"
            )
        name = f"eqtp::harmonics_plan_kernel<{STORAGE[xyz.dtype]}, eqtp::{which}, eqtp::Plan>"
        kernel = self.build("harmonics/harmonics.cuh", harmonics_source(degrees, normalization), (name,), xyz.device)[
            name
        ]

        def strides(t, count):
            return [np.int64(0 if t is None else t.stride(k)) for k in range(count)]

        g = None if g is None else library.row(g)
        arguments = [
            xyz,
            *strides(xyz, 2),
            g,
            *strides(g, 1),
            c,
            *strides(c, 2),
            out,
            gxyz,
            np.int32(shape.tile),
            np.int32(shape.room),
        ]
        blocks, threads, shared = shape.launch(xyz.shape[0])
        self.launch(kernel, (blocks,), (threads,), shared, np.bool_(normalize), np.int64(xyz.shape[0]), *arguments)

    def signals(self, program, inputs, outputs) -> None:
        """Runs csrc/signals/signals.cuh. program: `eqtp.plans.signals.Program`; inputs, outputs: a tensor [B, C,
        (lmax+1)^2] for each of its inputs and outputs, the last dimension contiguous. Raises RuntimeError for a program
        too large for the shared memory of a GPU."""
        self._run_samples("signals/signals.cuh", sample_tables.signals, program, inputs, outputs)

    def couple(self, couplings, inputs, outputs) -> None:
        """Runs csrc/couplings/couplings.cuh. couplings: `eqtp.plans.couplings.Couplings`; inputs, outputs: a tensor [B,
        C, n] for each of their inputs and outputs, the last dimension contiguous. Raises RuntimeError for rows too long
        for the shared memory of a GPU."""
        self._run_samples("couplings/couplings.cuh", sample_tables.couple, couplings, inputs, outputs)

    def matrices(self, program, inputs, outputs) -> None:
        """Runs csrc/matrices/matrices.cuh. program: `eqtp.plans.matrices.Program`; inputs, outputs: a tensor [B, C,
        (lmax+1)^2] for each of its inputs and outputs, the last dimension contiguous. Raises RuntimeError for matrices
        too large for the shared memory of a GPU."""
        self._run_samples("matrices/matrices.cuh", sample_tables.matrices, program, inputs, outputs)

    def _run_samples(self, file: str, specialise: Callable, what, inputs, outputs) -> None:
        """Rows [B, C, n] of many tensors (csrc/common/tile.cuh)."""
        if not outputs or not outputs[0].shape[:2].numel():
            return
        batch, channels = outputs[0].shape[:2]
        kernel = specialise(what, outputs[0].dtype)
        if kernel is None:  # a sum of nothing
            for t in outputs:
                t.zero_()
            return
        function = self.build(file, kernel.text, (kernel.name,), outputs[0].device)[kernel.name]
        rows = [
            a
            for t in (*[inputs[n] for n in kernel.inputs], *outputs)
            for a in (t, np.int64(t.stride(0)), np.int64(t.stride(1)))
        ]
        grid, samples = (kernel.blocks(batch * channels),), np.int64(batch * channels)
        self.launch(function, grid, (kernel.threads,), kernel.shared, np.int64(channels), samples, *rows)

    def prepare(self, plans, device: torch.device, dtype: torch.dtype) -> None:
        """Compiles the convolutions of these plans, forward and backward, several at a time, so that the first call
        need not wait long."""
        programs = [
            program(plan.key, pass_, dtype, "GRAPH") for plan in dict.fromkeys(plans) for pass_ in ("fwd", "bwd")
        ]
        with ThreadPoolExecutor(min(len(programs), os.cpu_count() or 1)) as pool:
            list(pool.map(lambda p: self._build(p, device), [p for p in programs if p.tables.blocks]))

    def _build(self, p: Program, device: torch.device) -> dict:
        return self.build("channelwise/channelwise.cuh", p.tables.text, p.names, device)

    def _planar(self, kernels, p: Program, rows: torch.Tensor, key: str, forward: bool) -> torch.Tensor:
        """Rows [n, dim] of x (forward) or of the output with the components of each block outermost."""
        out = torch.empty(rows.shape, dtype=rows.dtype, device=rows.device)
        if rows.numel():
            n, dim = rows.shape
            columns = _component_major(key, forward, rows.device)
            self._run(kernels[p.planar], n, rows, np.int64(rows.stride(0)), columns, out, np.int64(dim), np.int64(n))
        return out

    def _run(self, kernel, blocks: int, *arguments) -> None:
        self.launch(kernel, (min(blocks, MAX_BLOCKS),), (THREADS,), 0, *arguments)


class Program(NamedTuple):
    """The kernels of a plan for one pass and dtype: names as written in C++."""

    tables: Tables
    mode: str  # "GRAPH", "ROWS" or "EDGES" (csrc/channelwise/unit.cuh)
    main: str
    planar: str | None  # rows of x (forward) or g (backward) by component; with a graph only
    sum_units: str | None  # parts of the gradient of y; backward only

    @property
    def names(self) -> tuple[str, ...]:
        """The kernels that there are."""
        return tuple(name for name in self[2:] if name)

    def blocks(self, rows: int) -> int:
        """Blocks of threads for this many rows."""
        groups = (
            rows if self.mode == "GRAPH" else max((-(-rows // workers) for workers in self.tables.workers), default=0)
        )
        return groups * self.tables.blocks


@lru_cache(maxsize=1024)
def program(key: str, pass_: str, dtype: torch.dtype, mode: str) -> Program:
    """The kernels of the plan with this key for a pass ("fwd", "bwd", "fwd_tangent", "bwd_tangent") and a mode of
    csrc/channelwise/unit.cuh."""
    t, storage, forward = tables(key, pass_, dtype), STORAGE[dtype], pass_.startswith("fwd")
    tangent = str(pass_.endswith("tangent")).lower()
    main = f"eqtp::conv_{pass_[:3]}_kernel<eqtp::Plan, {storage}, eqtp::{mode}, {tangent}>"
    planar = f"eqtp::planar_kernel<{storage}>" if mode == "GRAPH" else None
    return Program(
        t, mode, main, planar, None if forward else f"eqtp::sum_units_kernel<{storage}, {t.blocks}, {dims(key).in2}>"
    )


def _mode(graph) -> str:
    """How a graph (src, dst, ptr, order, ..) is walked; () is the product of rows."""
    if not graph:
        return "ROWS"
    return "EDGES" if graph[0].numel() and not graph[3].numel() else "GRAPH"


@lru_cache(maxsize=1024)
def _component_major(key: str, forward: bool, device: torch.device) -> torch.Tensor:
    """[dim] where each column of planar rows of x (forward) or of the output, [d, mul] per block, stands in rows [mul,
    d]."""
    plan = TensorProductPlan.from_key(key)
    irreps = plan.irreps_in1 if forward else plan.irreps_out
    blocks = [
        np.arange(s.start, s.stop).reshape(mul, ir.dim).T.ravel()
        for s, (mul, ir) in zip(irreps.slices(), irreps, strict=True)
    ]
    return torch.from_numpy(np.concatenate([np.zeros(0, np.int64), *blocks])).to(device)


def _walk(mode: str, graph, forward: bool) -> tuple:
    """Rows that are gathered, and how edges are found: of the rows that are summed (GRAPH), or those rows themselves
    (EDGES)."""
    if mode == "ROWS":
        return None, None, None
    src, dst, ptr, order, tptr, torder = graph
    if mode == "EDGES":
        return (src, dst, None) if forward else (dst, src, None)
    return (src, ptr, order) if forward else (dst, tptr, torder)


def _strides(tensors) -> list[np.int64]:
    return [np.int64(0 if t is None else t.stride(0)) for t in tensors]


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def _aligned(t: torch.Tensor) -> torch.Tensor:
    """Rows whose elements are contiguous, each beginning at a multiple of ALIGNMENT if the first does."""
    t = library.row(t)
    regular = t.shape[0] < 2 or t.stride(0) in (0, t.shape[1]) or t.stride(0) * t.element_size() % ALIGNMENT == 0
    if t.data_ptr() % ALIGNMENT == 0 and regular:
        return t
    return t[:1].clone().expand_as(t) if t.stride(0) == 0 else t.clone(memory_format=torch.contiguous_format)


def _build(file: str, text: str, names: tuple[str, ...], device: torch.device) -> dict:
    return runtime.kernels(_source(file) + text, names, device)


def _unavailable(device: torch.device) -> str | None:
    if device.type != "cuda":
        return f"the specialised kernels run on NVIDIA GPUs, the tensors are on {device.type}"
    return runtime.why_not()


@lru_cache
def _source(file: str) -> str:
    return runtime.source(file)


KERNELS = Kernels(_build, runtime.launch, _unavailable)

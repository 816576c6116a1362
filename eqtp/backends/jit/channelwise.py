"""Channelwise products specialised for their plan: csrc/channelwise/channelwise.cuh, with the plan as compile-time
constants (`eqtp.backends.jit.channelwise_tables`)."""

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache
from typing import NamedTuple

import numpy as np
import torch

from eqtp.backends import registry
from eqtp.backends.jit.channelwise_tables import (
    ROWS,
    ROWS_FLOAT64,
    TANGENT_PASSES,
    THREADS,
    SpecialisedPlan,
    Tuning,
    chosen_tuning,
    tables,
)
from eqtp.backends.jit.runtime import Struct
from eqtp.backends.jit.toolchain import GPU, MAX_BLOCKS, STORAGE, Toolchain
from eqtp.backends.tensors import HALVES, compute_dtype, contiguous_rows
from eqtp.plans import channelwise
from eqtp.plans.calls import EdgeKind, Edges, Operands, Outputs, Pass
from eqtp.plans.plan import TensorProductPlan, dims

FILE = "channelwise/channelwise.cuh"
ALIGNMENT = 16  # bytes, of rows that vector loads read
# The members of ConvParams in csrc/channelwise/channelwise.cuh
CONV_PARAMS = np.dtype(
    [member for n in ("x", "w", "g", "tx", "tw", "y", "ty") for member in ((n, np.uint64), (f"{n}_stride", np.int64))]
    + [(n, np.uint64) for n in ("neighbour", "ptr", "order", "out", "gx", "gw", "gy", "gxe")]
    + [("rows", np.int64)],
    align=True,
)
MODES = {EdgeKind.SORTED: "GRAPH", EdgeKind.ROWS: "ROWS", EdgeKind.UNSORTED: "EDGES"}  # in csrc/channelwise/unit.cuh


class Channelwise:
    """The kernels, built and launched by a toolchain."""

    def __init__(self, toolchain: Toolchain):
        self.toolchain = toolchain

    def why_not(self, plan: TensorProductPlan | None, device: torch.device, dtype: torch.dtype) -> str | None:
        """None if the kernels run this plan on this device for this dtype, else the reason as a sentence."""
        reason = self.toolchain.why_not(device, dtype) or (channelwise.why_not(plan) if plan is not None else None)
        if reason or plan is None:
            return reason
        try:
            for pass_ in ("fwd", "bwd", "fwd_tangent", "bwd_tangent"):
                self.tuning(plan.key, pass_, dtype, "GRAPH", device)
        except RuntimeError as error:
            return str(error)
        return None

    def run(self, key: str, pass_: Pass, inputs: Operands, outputs: Outputs) -> None:
        """A pass of the product of the plan with this key."""
        if inputs.x.dtype in HALVES:  # y is small, and read as what it is computed in
            y, ty = inputs.y.float(), None if inputs.cy is None else inputs.cy.float()
            inputs = inputs._replace(y=y, cy=ty)
        inputs, tangent = inputs.map(_aligned_rows), pass_ == Pass.BWDBWD
        gradients = any(t is not None for t in outputs[1:])
        if tangent and outputs.out is not None and gradients and self._tuning(key, "second", inputs).by_destination:
            return self._backward_by_destination(key, self._kernels(key, "second", inputs), inputs, outputs)
        if outputs.out is not None:
            self._forward(key, self._kernels(key, "fwd_tangent" if tangent else "fwd", inputs), inputs, outputs.out)
        if gradients:
            p = self._kernels(key, "bwd_tangent" if tangent else "bwd", inputs)
            (self._backward_by_destination if p.by_destination else self._backward)(key, p, inputs, outputs)

    def _tuning(self, key: str, pass_: str, inputs: Operands) -> Tuning:
        return self.tuning(key, pass_, inputs.x.dtype, MODES[inputs.edges.kind], inputs.x.device)

    def _kernels(self, key: str, pass_: str, inputs: Operands) -> PlanKernels:
        tuning = self._tuning(key, pass_, inputs)
        return kernels_of(key, pass_, inputs.x.dtype, MODES[inputs.edges.kind], tuning)

    def tuning(self, key: str, pass_: str, dtype: torch.dtype, mode: str, device: torch.device) -> Tuning:
        """How the kernels of this plan are made for a pass, dtype, mode and device."""
        if mode != "GRAPH":
            return ROWS_FLOAT64 if dtype == torch.float64 else ROWS
        return chosen_tuning(key, pass_, dtype, self.toolchain.shared(device))

    def _forward(self, key: str, p: PlanKernels, inputs: Operands, out: torch.Tensor) -> None:
        x, y, _, _, tx, *_ = inputs
        edges = inputs.edges
        for columns in [slice(None)] if p.mode == "EDGES" else p.tables.idle["out"]:
            out[:, columns].zero_()
        rows = edges.ptr.shape[0] - 1 if p.mode == "GRAPH" else y.shape[0]
        if 0 in p.grid(rows):
            return
        built = self._build(p, x.device)
        if p.mode == "GRAPH":
            x, tx = self._planar(built, p, x, key, True), self._planar(built, p, tx, key, True)
        params = _params(inputs._replace(x=x, cx=tx), _gather_indices(edges, forward=True), rows, Outputs(out=out))
        self.toolchain.launch(built[p.main], p.grid(rows), (THREADS,), p.tables.shared, params)

    def _backward(self, key: str, p: PlanKernels, inputs: Operands, outputs: Outputs) -> None:
        x, y, _, g, *_ = inputs
        edges, (_, gx, gy, gw) = inputs.edges, outputs
        rows = x.shape[0] if p.mode == "GRAPH" else y.shape[0]
        if gx is not None:
            for columns in [slice(None)] if p.mode == "EDGES" else p.tables.idle["x"]:
                gx[:, columns].zero_()
        if 0 in p.grid(rows):
            return _zero(gx, gy, gw)
        built = self._build(p, x.device)
        if p.mode == "GRAPH":
            g = self._planar(built, p, g, key, False)
        partial_gy = _parts(gy, p)
        indices = _gather_indices(edges, forward=False)
        params = _params(inputs._replace(g=g), indices, rows, Outputs(gx=gx, gy=partial_gy, gw=gw))
        self.toolchain.launch(built[p.main], p.grid(rows), (THREADS,), p.tables.shared, params)
        self._sum_units(built, p, partial_gy, gy)

    def _backward_by_destination(self, key: str, p: PlanKernels, inputs: Operands, outputs: Outputs) -> None:
        x, y, _, _, tx, *_ = inputs
        edges, (out, gx, gy, gw) = inputs.edges, outputs
        rows, num_edges = edges.ptr.shape[0] - 1, y.shape[0]
        if 0 in p.grid(rows) or num_edges == 0:
            return _zero(out, gx, gy, gw)
        built = self._build(p, x.device)
        x, tx = self._planar(built, p, x, key, True), self._planar(built, p, tx, key, True)
        # [e, in1]
        gxe = None if gx is None else x.new_empty(num_edges, x.shape[1], dtype=compute_dtype(x.dtype))
        partial_gy = _parts(gy, p)
        results, indices = Outputs(out=out, gy=partial_gy, gw=gw), _gather_indices(edges, forward=True)
        params = _params(inputs._replace(x=x, cx=tx), indices, rows, results, gxe)
        self.toolchain.launch(built[p.main], p.grid(rows), (THREADS,), p.tables.shared, params)
        self._sum_units(built, p, partial_gy, gy)
        if gx is not None and gx.numel():
            columns, n = _planar_columns(key, True, x.device), len(gx)
            self._launch(built[p.sum_sources], n, gxe, edges.tptr, edges.torder, columns, gx, np.int64(n))
        for t, side in ((out, "out"), (gx, "x")):  # of the columns without a path nothing has been written
            for columns in p.tables.idle[side] if t is not None else ():
                t[:, columns].zero_()

    def _sum_units(self, built: dict, p: PlanKernels, parts: torch.Tensor | None, gy: torch.Tensor | None) -> None:
        if gy is not None and gy.numel():
            self._launch(built[p.sum_units], -(-gy.numel() // THREADS), parts, gy, np.int64(len(gy)))

    def prepare(self, plans, device: torch.device, dtype: torch.dtype) -> None:
        """Compiles the convolutions of these plans, forward and backward, in parallel, ahead of the first call."""
        wanted = [
            kernels_of(plan.key, pass_, dtype, "GRAPH", self.tuning(plan.key, pass_, dtype, "GRAPH", device))
            for plan in dict.fromkeys(plans)
            for pass_ in ("fwd", "bwd")
        ]
        with ThreadPoolExecutor(min(len(wanted), os.cpu_count() or 1)) as pool:
            list(pool.map(lambda p: self._build(p, device), [p for p in wanted if p.tables.blocks]))

    def _build(self, p: PlanKernels, device: torch.device) -> dict:
        return self.toolchain.build(FILE, p.tables.text, p.names, device)

    def _planar(
        self, built: dict, p: PlanKernels, rows: torch.Tensor | None, key: str, forward: bool
    ) -> torch.Tensor | None:
        """Planar copy of rows [n, dim] of x (forward) or of the output: the components of each block outermost."""
        if rows is None:
            return None
        out = torch.empty(rows.shape, dtype=rows.dtype, device=rows.device)
        if rows.numel():
            n, dim = rows.shape
            columns = _planar_columns(key, forward, rows.device)
            self._launch(built[p.planar], n, rows, np.int64(rows.stride(0)), columns, out, np.int64(dim), np.int64(n))
        return out

    def _launch(self, kernel, blocks: int, *arguments) -> None:
        self.toolchain.launch(kernel, (min(blocks, MAX_BLOCKS),), (THREADS,), 0, *arguments)


class PlanKernels(NamedTuple):
    """The kernels of a plan for one pass and dtype: names as written in C++."""

    tables: SpecialisedPlan
    mode: str  # "GRAPH", "ROWS" or "EDGES" (csrc/channelwise/unit.cuh)
    main: str
    planar: str | None  # makes rows of x (forward) or g (backward) planar; with a graph only
    sum_units: str | None  # sums the partial gradients of y; backward only
    sum_sources: str | None  # sums the gradients of x over the edges out of a source; backward by destination only

    @property
    def names(self) -> tuple[str, ...]:
        """The kernels that are not None."""
        return tuple(name for name in self[2:] if name)

    @property
    def by_destination(self) -> bool:
        """Whether `main` is a backward pass that walks destinations."""
        return self.sum_sources is not None

    def grid(self, rows: int) -> tuple[int, int]:
        """Blocks of threads for this many rows: along the rows, along the chunks of all units."""
        if self.mode != "GRAPH":
            rows = max((-(-rows // workers) for workers in self.tables.workers), default=0)
        return min(rows, MAX_BLOCKS), self.tables.blocks


@lru_cache(maxsize=1024)
def kernels_of(key: str, pass_: str, dtype: torch.dtype, mode: str, tuning: Tuning) -> PlanKernels:
    """The kernels of the plan with this key for one of KERNEL_PASSES and a mode of csrc/channelwise/unit.cuh."""
    t, storage, forward = tables(key, pass_, dtype, tuning), STORAGE[dtype], pass_.startswith("fwd")
    plan, tangent, sum_sources = f"eqtp::Plan, {storage}", str(pass_ in TANGENT_PASSES).lower(), None
    main = f"eqtp::conv_{pass_[:3]}_kernel<{plan}, eqtp::{mode}, {tangent}>"
    if tuning.by_destination and not forward:
        main = f"eqtp::conv_bwd_by_destination_kernel<{plan}, {tangent}, {str(pass_ == 'second').lower()}>"
        pack = next(n for n in (4, 2, 1) if dims(key).in1 % n == 0)
        sum_sources = f"eqtp::sum_sources_kernel<{storage}, {dims(key).in1}, {pack}>"
    planar = f"eqtp::planar_kernel<{storage}>" if mode == "GRAPH" else None
    sum_units = None if forward else f"eqtp::sum_units_kernel<{storage}, {t.blocks}, {dims(key).in2}>"
    return PlanKernels(t, mode, main, planar, sum_units, sum_sources)


def _parts(gy: torch.Tensor | None, p: PlanKernels) -> torch.Tensor | None:
    """For the gradients of y that each block of threads finds, [e, blocks, in2]."""
    if gy is None:
        return None
    return gy.new_empty(gy.shape[0], p.tables.blocks, gy.shape[1], dtype=compute_dtype(gy.dtype))


def _zero(*tensors: torch.Tensor | None) -> None:
    for t in tensors:
        if t is not None:
            t.zero_()


@lru_cache(maxsize=1024)
def _planar_columns(key: str, forward: bool, device: torch.device) -> torch.Tensor:
    """[dim]: for each column of planar rows ([d, mul] per block) of x (forward) or of the output, its column in rows of
    layout mul_ir ([mul, d])."""
    plan = TensorProductPlan.from_key(key)
    irreps = plan.irreps_in1 if forward else plan.irreps_out
    blocks = [
        np.arange(s.start, s.stop).reshape(mul, ir.dim).T.ravel()
        for s, (mul, ir) in zip(irreps.slices(), irreps, strict=True)
    ]
    return torch.from_numpy(np.concatenate([np.zeros(0, np.int64), *blocks])).to(device)


def _gather_indices(edges: Edges, forward: bool) -> tuple:
    """neighbour, ptr, order of CONV_PARAMS: the rows to gather, and the CSR of the rows to sum (SORTED) or the rows to
    add to (UNSORTED)."""
    if edges.kind is EdgeKind.ROWS:
        return None, None, None
    if edges.kind is EdgeKind.UNSORTED:
        return (edges.src, edges.dst, None) if forward else (edges.dst, edges.src, None)
    return (edges.src, edges.ptr, edges.order) if forward else (edges.dst, edges.tptr, edges.torder)


def _params(inputs: Operands, indices: tuple, rows: int, results: Outputs, gxe: torch.Tensor | None = None) -> Struct:
    """CONV_PARAMS. indices: neighbour, ptr, order."""
    x, y, w, g, tx, ty, tw = inputs[:7]
    members = [m for t in (x, w, g, tx, tw, y, ty) for m in (t, np.int64(0 if t is None else t.stride(0)))]
    out, gx, gy, gw = results
    return Struct(CONV_PARAMS, (*members, *indices, out, gx, gw, gy, gxe, np.int64(rows)))


def _aligned_rows(t: torch.Tensor) -> torch.Tensor:
    """Contiguous rows that all begin at a multiple of ALIGNMENT, copied if they do not."""
    t = contiguous_rows(t)
    regular = t.shape[0] < 2 or t.stride(0) in (0, t.shape[1]) or t.stride(0) * t.element_size() % ALIGNMENT == 0
    if t.data_ptr() % ALIGNMENT == 0 and regular:
        return t
    return t[:1].clone().expand_as(t) if t.stride(0) == 0 else t.clone(memory_format=torch.contiguous_format)


def kernel(toolchain: Toolchain) -> registry.Kernel:
    """The kernels, built and launched by a toolchain."""
    made = Channelwise(toolchain)
    return registry.Kernel(
        engine="channelwise",
        family=toolchain.family,
        devices=toolchain.devices,
        why_not=made.why_not,
        run=made.run,
        sources=(f"csrc/{FILE}",),
        transposes=toolchain.devices,
        atomics=(torch.float32, torch.float64),  # half precision would round at each addition
        prepare=made.prepare,
    )


registry.register(kernel(GPU))

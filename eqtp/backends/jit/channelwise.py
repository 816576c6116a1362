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
from eqtp.backends.jit.channelwise_tables import THREADS, SpecialisedPlan, tables
from eqtp.backends.jit.runtime import Struct
from eqtp.backends.jit.toolchain import GPU, MAX_BLOCKS, STORAGE, Toolchain
from eqtp.backends.tensors import compute_dtype, contiguous_rows
from eqtp.plans import channelwise
from eqtp.plans.calls import EdgeKind, Edges, Operands, Outputs, Pass
from eqtp.plans.plan import TensorProductPlan, dims

FILE = "channelwise/channelwise.cuh"
ALIGNMENT = 16  # bytes, of rows that vector loads read
# The members of ConvParams in csrc/channelwise/channelwise.cuh
CONV_PARAMS = np.dtype(
    [member for n in ("x", "y", "w", "g", "tx", "ty", "tw") for member in ((n, np.uint64), (f"{n}_stride", np.int64))]
    + [(n, np.uint64) for n in ("neighbour", "ptr", "order", "out", "gx", "gw", "gy")]
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
        return self.toolchain.why_not(device, dtype) or (channelwise.why_not(plan) if plan is not None else None)

    def run(self, key: str, pass_: Pass, inputs: Operands, outputs: Outputs) -> None:
        """A pass of the product of the plan with this key."""
        inputs = inputs.map(_aligned_rows)
        if outputs.out is not None:
            self._forward(key, pass_, inputs, outputs.out)
        if any(t is not None for t in outputs[1:]):
            self._backward(key, pass_, inputs, outputs)

    def _forward(self, key: str, pass_: Pass, inputs: Operands, out: torch.Tensor) -> None:
        x, y, _, _, tx, *_ = inputs
        edges = inputs.edges
        p = kernels_of(key, "fwd_tangent" if pass_ == Pass.BWDBWD else "fwd", x.dtype, MODES[edges.kind])
        for columns in [slice(None)] if p.mode == "EDGES" else p.tables.idle["out"]:
            out[:, columns].zero_()
        rows = edges.ptr.shape[0] - 1 if p.mode == "GRAPH" else y.shape[0]
        if p.blocks(rows) == 0:
            return
        built = self._build(p, x.device)
        if p.mode == "GRAPH":
            x = self._planar(built, p, x, key, True)
            tx = None if tx is None else self._planar(built, p, tx, key, True)
        params = _params(inputs._replace(x=x, cx=tx), _gather_indices(edges, forward=True), rows, Outputs(out=out))
        self._launch(built[p.main], p.blocks(rows), params)

    def _backward(self, key: str, pass_: Pass, inputs: Operands, outputs: Outputs) -> None:
        x, y, _, g, *_ = inputs
        edges, (_, gx, gy, gw) = inputs.edges, outputs
        p = kernels_of(key, "bwd_tangent" if pass_ == Pass.BWDBWD else "bwd", x.dtype, MODES[edges.kind])
        rows = x.shape[0] if p.mode == "GRAPH" else y.shape[0]
        if gx is not None:
            for columns in [slice(None)] if p.mode == "EDGES" else p.tables.idle["x"]:
                gx[:, columns].zero_()
        if p.blocks(rows) == 0:
            for t in (gx, gy, gw):
                if t is not None:
                    t.zero_()
            return
        built = self._build(p, x.device)
        if p.mode == "GRAPH":
            g = self._planar(built, p, g, key, False)
        partial_gy = None  # [e, blocks of threads, in2]
        if gy is not None:
            partial_gy = gy.new_empty(y.shape[0], p.tables.blocks, y.shape[1], dtype=compute_dtype(x.dtype))
        results = Outputs(gx=gx, gy=partial_gy, gw=gw)
        params = _params(inputs._replace(g=g), _gather_indices(edges, forward=False), rows, results)
        self._launch(built[p.main], p.blocks(rows), params)
        if gy is not None and gy.numel():
            self._launch(built[p.sum_units], -(-gy.numel() // THREADS), partial_gy, gy, np.int64(y.shape[0]))

    def prepare(self, plans, device: torch.device, dtype: torch.dtype) -> None:
        """Compiles the convolutions of these plans, forward and backward, in parallel, ahead of the first call."""
        wanted = [
            kernels_of(plan.key, pass_, dtype, "GRAPH") for plan in dict.fromkeys(plans) for pass_ in ("fwd", "bwd")
        ]
        with ThreadPoolExecutor(min(len(wanted), os.cpu_count() or 1)) as pool:
            list(pool.map(lambda p: self._build(p, device), [p for p in wanted if p.tables.blocks]))

    def _build(self, p: PlanKernels, device: torch.device) -> dict:
        return self.toolchain.build(FILE, p.tables.text, p.names, device)

    def _planar(self, built: dict, p: PlanKernels, rows: torch.Tensor, key: str, forward: bool) -> torch.Tensor:
        """Planar copy of rows [n, dim] of x (forward) or of the output: the components of each block outermost."""
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

    @property
    def names(self) -> tuple[str, ...]:
        """The kernels that are not None."""
        return tuple(name for name in self[2:] if name)

    def blocks(self, rows: int) -> int:
        """Blocks of threads for this many rows."""
        if self.mode != "GRAPH":
            rows = max((-(-rows // workers) for workers in self.tables.workers), default=0)
        return rows * self.tables.blocks


@lru_cache(maxsize=1024)
def kernels_of(key: str, pass_: str, dtype: torch.dtype, mode: str) -> PlanKernels:
    """The kernels of the plan with this key for a pass ("fwd", "bwd", "fwd_tangent", "bwd_tangent") and a mode of
    csrc/channelwise/unit.cuh."""
    t, storage, forward = tables(key, pass_, dtype), STORAGE[dtype], pass_.startswith("fwd")
    tangent = str(pass_.endswith("tangent")).lower()
    main = f"eqtp::conv_{pass_[:3]}_kernel<eqtp::Plan, {storage}, eqtp::{mode}, {tangent}>"
    planar = f"eqtp::planar_kernel<{storage}>" if mode == "GRAPH" else None
    return PlanKernels(
        t, mode, main, planar, None if forward else f"eqtp::sum_units_kernel<{storage}, {t.blocks}, {dims(key).in2}>"
    )


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


def _params(inputs: Operands, indices: tuple, rows: int, results: Outputs) -> Struct:
    """CONV_PARAMS. indices: neighbour, ptr, order."""
    members = [member for t in inputs[:7] for member in (t, np.int64(0 if t is None else t.stride(0)))]
    out, gx, gy, gw = results
    return Struct(CONV_PARAMS, (*members, *indices, out, gx, gw, gy, np.int64(rows)))


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

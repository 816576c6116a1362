"""Tensor product convolution (and the row-wise product): one program per node, unit of paths and block of channels; no
atomics.

Programs that walk the edges into a destination sum the output; programs that walk the edges out of a source sum the
gradients of x; float32 sums of many edges are made of blocks (long_sums.py). Those out of a source also write the
gradients of w, one row per edge, and their block's part of the gradients of y; these parts are added in a fixed order.
The text for one edge comes from channelwise_text.py; here it is put into a loop, compiled once per plan and pass, and
launched.
"""

from __future__ import annotations

from functools import lru_cache

import torch
import triton

from eqtp import kernels
from eqtp.kernels import channelwise_text as edge_text
from eqtp.kernels import indent
from eqtp.plans.calls import EdgeKind, Operands, Outputs, Pass
from eqtp.plans.plan import TensorProductPlan

HEAD = """\
def {name}(
    # [num_src, in1], [e, in2], [e, weights], [num_dst, out], and directions of the first three
    x, y, w, g, cx, cy, cw,
    out, gx, gy, gw,  # [num_dst, out], [num_src, in1], [blocks, e, in2], [e, weights], contiguous
    scratch,  # [2, nodes, .], of the sums (out or gx): what those of several blocks were before the last one
    far, ptr, order,  # [e] the other end of an edge, [nodes + 1], [e]
    sx, sy, sw, sg, scx, scy, scw, num_edges, first_block, B: tl.constexpr,
):
    n = tl.program_id(0).to(tl.int64)
    u = tl.program_id(1) * B + tl.arange(0, B)
    mask = u < {mul}
"""
WALK = """\
    for p in range(tl.load(ptr + n), tl.load(ptr + n + 1)):
        e = tl.load(order + p)
        r = tl.load(far + e)
"""
ROW = """\
    if True:
        e = n
        r = n
"""
BLOCKS = """\
    begin, end = tl.load(ptr + n), tl.load(ptr + n + 1)
    for p in range(begin, end):
        if (p > begin) & ((p - begin) % long_sums.BLOCK_TERMS == 0):
{keep}\
        e = tl.load(order + p)
        r = tl.load(far + e)
{edge}\
    if end - begin > long_sums.BLOCK_TERMS:
{finish}\
    else:
{stores}\
"""


def _sum_edges(
    edge: list[str], to: str, row: int, sums: dict[str, tuple[int, int, int]], real: str, graph: bool
) -> str:
    """Text that does `edge` for each edge of node n, which adds to `sums`, and stores these in rows of length `row` of
    `to`. sums: name -> (offset of its slot, dimension of the slot, component)."""

    def place(s: str, u: str) -> str:
        start, dim, k = sums[s]
        return f"n * {row} + ({u} * {dim} + {start + k})"

    def store(s: str, value: str, u: str) -> str:
        return f"tl.store({to} + {place(s, u)}, {value}.to({to}.dtype.element_ty), mask=mask)"

    stores = [store(s, s, "u") for s in sums]
    if not graph or not sums or real == "float64":
        return (WALK if graph else ROW) + indent(edge, 2) + indent(stores, 1)
    # u, but not for all that the compiler knows, or it would compute the addresses before the loop and hold them
    again = ["tl.debug_barrier()", "zero = tl.load(ptr + n, volatile=True) - begin", "v = u + zero.to(tl.int32)"]
    again += [f"size = tl.num_programs(0).to(tl.int64) * {row} + zero"]
    kept = {s: f"{s}, scratch + {place(s, 'v')}, size" for s in sums}
    keep = [f"long_sums.keep({at}, p == begin + long_sums.BLOCK_TERMS, mask)" for at in kept.values()]
    keep += [f"{s} = tl.zeros([B], REAL)" for s in sums]
    finish = [store(s, f"long_sums.finish({at}, mask)", "v") for s, at in kept.items()]
    return BLOCKS.format(
        keep=indent([*again, *keep], 3),
        edge=indent(edge, 2),
        finish=indent([*again, *finish], 2),
        stores=indent(stores, 2),
    )


def _forward_text(
    unit: edge_text.Unit, plan: TensorProductPlan, name: str, second: bool, real: str, graph: bool
) -> str:
    sums = edge_text.outputs(unit, plan)
    pointers = ["xr = x + r * sx", "yr = y + e * sy", "wr = w + e * sw"]
    pointers += ["cxr = cx + r * scx", "cyr = cy + e * scy", "cwr = cw + e * scw"] if second else []
    lines = [*edge_text.edge_scalars(unit, plan, second), *edge_text.forward(unit, plan, second)]
    return (
        HEAD.format(name=name, mul=unit.mul)
        + indent([f"{o} = tl.zeros([B], REAL)" for o in sums], 1)
        + _sum_edges([*pointers, *lines], "out", plan.dim_out, sums, real, graph)
    )


def _backward_text(
    unit: edge_text.Unit,
    plan: TensorProductPlan,
    name: str,
    second: bool,
    real: str,
    graph: bool,
    wanted: tuple[bool, bool, bool],
) -> str:
    p = unit.paths[0]
    dim, start = 2 * p.l1 + 1, plan.offsets[0][p.i1].start
    before = edge_text.components("x", "x + n * sx", start, dim)
    before += edge_text.components("tx", "cx + n * scx", start, dim) if second else []
    if wanted[0]:
        before += (
            edge_text.components("gx", f"gx + n * {plan.dim_in1}", start, dim)
            if unit.adds
            else [f"gx{i} = tl.zeros([B], REAL)" for i in range(dim)]
        )
    pointers = ["yr = y + e * sy", "wr = w + e * sw", "gr = g + r * sg"]
    pointers += ["cyr = cy + e * scy", "cwr = cw + e * scw"] if second else []
    pointers += (
        [f"gyr = gy + ((first_block + tl.program_id(1).to(tl.int64)) * num_edges + e) * {plan.dim_in2}"]
        if wanted[1]
        else []
    )
    pointers += [f"gwr = gw + e * {plan.weight_numel}"] if wanted[2] else []
    sums = {f"gx{i}": (start, dim, i) for i in range(dim)} if wanted[0] else {}
    lines = [*edge_text.edge_scalars(unit, plan, second), *edge_text.backward(unit, plan, second, wanted)]
    return (
        HEAD.format(name=name, mul=unit.mul)
        + indent(before, 1)
        + _sum_edges([*pointers, *lines], "gx", plan.dim_in1, sums, real, graph)
    )


@lru_cache(maxsize=1024)
def source(
    key: str, pass_: str, real: str, graph: bool, wanted: tuple[bool, bool, bool] = (False,) * 3
) -> tuple[tuple[str, str, edge_text.Unit], ...]:
    """Name, text and unit of each kernel of a pass: "fwd", "fwd2" (its derivative along a direction), "bwd", "bwd2".
    real: "float32" or "float64"."""
    plan = TensorProductPlan.from_key(key)
    forward, second = pass_.startswith("fwd"), pass_.endswith("2")
    found = []
    for number, unit in enumerate(edge_text.forward_units(plan) if forward else edge_text.backward_units(plan)):
        name = f"tensor_product{'_conv' if graph else ''}_{pass_}_{number}"
        if forward:
            text = _forward_text(unit, plan, name, second, real, graph)
        else:
            text = _backward_text(unit, plan, name, second, real, graph, wanted)
        found.append((name, text.replace("REAL", f"tl.{real}"), unit))
    return tuple(found)


def configurations(unit: edge_text.Unit, pass_: str) -> list[tuple[dict, int]]:
    """Channels per program and warps to try, the most channels per lane first.

    Backward kernels have one block size, which sizes the partial gradients of y, and few warps, because a sum over
    channels across warps costs a barrier.
    """
    full = triton.next_power_of_2(unit.mul)
    sizes = [min(full, 64)] if pass_.startswith("bwd") else [min(full, 128), min(full, 64)]
    most = 4 if pass_ == "fwd" else 2  # channels per lane
    tried = [
        (block, warps)
        for block in sizes
        for warps in (1, 2, 4)
        if block <= 32 * most * warps and (warps == 1 or block >= 32 * warps)
    ]
    return [({"B": block}, warps) for block, warps in dict.fromkeys(tried)]


def blocks(unit: edge_text.Unit) -> int:
    """Blocks of channels of a backward unit."""
    return triton.cdiv(unit.mul, configurations(unit, "bwd")[0][0]["B"])


@lru_cache(maxsize=1024)
def _kernels(key: str, pass_: str, real: str, graph: bool, wanted: tuple[bool, bool, bool]) -> list:
    """(launchable, unit) of each kernel of a pass."""
    return [
        (
            kernels.tuned(
                kernels.function(name, text), configurations(unit, pass_), ["gx"] if unit.adds and wanted[0] else None
            ),
            unit,
        )
        for name, text, unit in source(key, pass_, real, graph, wanted)
    ]


def _launch(key: str, pass_: str, walk: tuple, num_rows: int, inputs: list, outputs: tuple) -> None:
    """One program per row and block of channels, one launch per unit. walk: (far, ptr, order), or () where each row is
    one edge."""
    real = kernels.compute_name(inputs[0].dtype)
    tensors = [*inputs, *[None] * (7 - len(inputs))]
    strides = [0 if t is None else t.stride(0) for t in tensors]
    scratch, summed = None, next((t for t in outputs[:2] if t is not None), None)
    if walk and real == "float32" and summed is not None:
        scratch = torch.empty(2, *summed.shape, dtype=torch.float32, device=summed.device)
    first_block = 0
    for kernel, unit in _kernels(key, pass_, real, bool(walk), tuple(t is not None for t in outputs[1:])):

        def grid(meta, mul=unit.mul):
            return (num_rows, triton.cdiv(mul, meta["B"]))

        kernel[grid](*tensors, *outputs, scratch, *(walk or (None,) * 3), *strides, len(inputs[1]), first_block)
        first_block += blocks(unit)


def _all_slots_used(offsets: list[slice], used: set[int]) -> bool:
    """Whether some path writes every slot of a row."""
    return all(i in used or s.start == s.stop for i, s in enumerate(offsets))


def _gradients(key: str, pass_: str, walk: tuple, inputs: list, gx, gy, gw) -> None:
    """Gradients (None: not wanted) by a walk over the edges out of the rows of x. Sums that several kernels add to are
    kept in full precision."""
    plan, x = TensorProductPlan.from_key(key), inputs[0]
    real = kernels.compute_dtype(x.dtype)
    units = edge_text.backward_units(plan)
    sums = (
        gx
        if gx is None or gx.dtype == real or not any(unit.adds for unit in units)
        else torch.empty_like(gx, dtype=real)
    )
    if sums is not None and not _all_slots_used(plan.offsets[0], {p.i1 for p in plan.paths}):
        sums.zero_()
    # [blocks, e, in2]
    partial_gy = None if gy is None else torch.zeros(sum(map(blocks, units)), *gy.shape, dtype=real, device=gy.device)
    if len(x):
        _launch(key, pass_, walk, len(x), inputs, (None, sums, partial_gy, gw))
    if sums is not gx:
        gx.copy_(sums)
    if gy is not None:
        gy.copy_(partial_gy.sum(0))


def run(key: str, pass_: Pass, inputs: Operands, outputs: Outputs) -> None:
    """A pass of the product of the plan with this key. Rows of the operands are contiguous."""
    plan, graph = TensorProductPlan.from_key(key), inputs.edges
    out, *gradients = outputs
    second, tensors = "2" if pass_ == Pass.BWDBWD else "", inputs.tensors
    forward, backward = (graph.src, graph.ptr, graph.order), (graph.dst, graph.tptr, graph.torder)
    if graph.kind is EdgeKind.ROWS:
        forward = backward = ()
    if out is not None:
        if not _all_slots_used(plan.offsets[2], {p.io for p in plan.paths}):
            out.zero_()
        if len(out):
            _launch(key, f"fwd{second}", forward, len(out), tensors, (out, None, None, None))
    if any(t is not None for t in gradients):
        _gradients(key, f"bwd{second}", backward, tensors, *gradients)

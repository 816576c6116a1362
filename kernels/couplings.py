"""Sums of products of components by a table (`eqtp.plans.couplings`): one sample per lane.

A short table is straight-line text with its coefficients as constants and its components in registers. A longer one,
which would take too long to compile, is data: one kernel for all tables loops over the entries of one output component,
with the inputs transposed to rows [component, sample].
"""

from __future__ import annotations

from functools import lru_cache

import torch
import triton
import triton.language as tl

from eqtp import kernels
from eqtp.kernels import indent
from eqtp.kernels.samples import HEAD, lanes
from eqtp.plans.calls import Pass
from eqtp.plans.couplings import CouplingTable

MAX_TEXT_ENTRIES = 700  # entries of a table that becomes text: it compiles within seconds
MAX_TEXT_COMPONENTS = {"float32": 160, "float64": 80}  # input components of a table that becomes text: in registers
BLOCK_SIZE, WARPS = 256, 2  # samples and warps of a program that reads its table as data


def is_text(couplings: CouplingTable, real: str) -> bool:
    """Whether the table becomes text."""
    return len(couplings.c) <= MAX_TEXT_ENTRIES and sum(couplings.inputs) <= MAX_TEXT_COMPONENTS[real]


def _names(name: str, sizes: tuple[int, ...]) -> list[tuple[str, int]]:
    """(tensor, component) of each component of all tensors, concatenated."""
    return [(f"{name}{n}", i) for n, size in enumerate(sizes) for i in range(size)]


@lru_cache(maxsize=256)
def source(couplings: CouplingTable, real: str) -> tuple[str, str]:
    """Name and text of the kernel of a short table. real: "float32" or "float64"."""
    tensors = [*(f"in{n}" for n in range(len(couplings.inputs))), *(f"out{n}" for n in range(len(couplings.outputs)))]
    lines = [f"{t} += b * b_{t} + c * c_{t}" for t in tensors]
    used = sorted({*couplings.a.tolist(), *couplings.b.tolist(), *couplings.scale.tolist()} - {-1})
    components = _names("in", couplings.inputs)
    lines += [f"x{i} = tl.load({components[i][0]} + {components[i][1]}, mask=mask, other=0.0).to(REAL)" for i in used]
    for k, (tensor, component) in enumerate(_names("out", couplings.outputs)):
        lines.append("total = tl.zeros([B], REAL)")
        for g in range(couplings.out_ptr[k], couplings.out_ptr[k + 1]):
            entries = range(couplings.group_ptr[g], couplings.group_ptr[g + 1])
            lines.append(
                "part = "
                + " + ".join(f"{float(couplings.c[e])!r} * (x{couplings.a[e]} * x{couplings.b[e]})" for e in entries)
            )
            lines.append(f"total += part * x{couplings.scale[g]}" if couplings.scale[g] >= 0 else "total += part")
        lines.append(f"tl.store({tensor} + {component}, total.to({tensor}.dtype.element_ty), mask=mask)")
    name = "coupling"
    inputs, outputs = (", ".join(t for t in tensors if t.startswith(kind)) for kind in ("in", "out"))
    head = HEAD.format(name=name, inputs=inputs, outputs=outputs, strides=", ".join(f"b_{t}, c_{t}" for t in tensors))
    return name, (head + indent(lines)).replace("REAL", f"tl.{real}")


@lru_cache(maxsize=256)
def _kernel(couplings: CouplingTable, real: str):
    return kernels.function(*source(couplings, real), None)


@triton.jit(do_not_specialize=kernels.SIZES)
def _couple_by_table(rows, sums, out_ptr, group_ptr, scale, a, b, coefficient, num, B: tl.constexpr):
    # rows [components + 1, num], the last of ones; sums [components, num]; the rest as in eqtp.plans.couplings, with
    # scale the last component instead of -1
    k = tl.program_id(1)
    n = tl.program_id(0).to(tl.int64) * B + tl.arange(0, B)
    mask = n < num
    total = tl.zeros([B], rows.dtype.element_ty)
    for g in range(tl.load(out_ptr + k), tl.load(out_ptr + k + 1)):
        part = tl.zeros([B], rows.dtype.element_ty)
        for e in range(tl.load(group_ptr + g), tl.load(group_ptr + g + 1)):
            left = tl.load(rows + tl.load(a + e) * num + n, mask=mask, other=0.0)
            right = tl.load(rows + tl.load(b + e) * num + n, mask=mask, other=0.0)
            part += tl.load(coefficient + e) * (left * right)
        total += part * tl.load(rows + tl.load(scale + g) * num + n, mask=mask, other=0.0)
    tl.store(sums + k.to(tl.int64) * num + n, total, mask=mask)


@lru_cache(maxsize=256)
def _table_tensors(couplings: CouplingTable, device: str, dtype: torch.dtype) -> list[torch.Tensor]:
    """out_ptr, group_ptr, scale, a, b as int64 and c."""
    scale = couplings.scale.astype("int64")
    scale[scale < 0] = sum(couplings.inputs)
    integers = [couplings.out_ptr, couplings.group_ptr, scale, couplings.a, couplings.b]
    with torch.inference_mode(False):  # a cached tensor may be used outside inference mode
        return [
            *(torch.tensor(t, dtype=torch.int64, device=device) for t in integers),
            torch.tensor(couplings.c, dtype=dtype, device=device),
        ]


def _run_table(
    couplings: CouplingTable, inputs: list[torch.Tensor], outputs: list[torch.Tensor], real: torch.dtype
) -> None:
    batch, channels = outputs[0].shape[:2]
    num, components = batch * channels, sum(couplings.inputs)
    rows = torch.ones(components + 1, batch, channels, dtype=real, device=outputs[0].device)
    for row, x in zip(rows[:-1].split(couplings.inputs), inputs, strict=True):
        row.copy_(x.movedim(-1, 0))
    sums = torch.empty(sum(couplings.outputs), batch, channels, dtype=real, device=rows.device)
    grid = (triton.cdiv(num, BLOCK_SIZE), len(sums))
    _couple_by_table[grid](
        rows, sums, *_table_tensors(couplings, str(rows.device), real), num, B=BLOCK_SIZE, num_warps=WARPS
    )
    for out, total in zip(outputs, sums.split(couplings.outputs), strict=True):
        out.copy_(total.movedim(0, -1))


def run(couplings: CouplingTable, pass_: Pass, inputs: list[torch.Tensor], outputs: list[torch.Tensor]) -> None:
    """Sums products by a table. inputs, outputs: [batch, channels, n] each, the last dimension contiguous."""
    batch, channels = outputs[0].shape[:2]
    num, real = batch * channels, kernels.compute_dtype(outputs[0].dtype)
    if num == 0 or not sum(couplings.outputs):
        return
    name = kernels.compute_name(real)
    if not is_text(couplings, name):
        return _run_table(couplings, inputs, outputs, real)
    tensors = [*inputs, *outputs]
    strides = [stride for t in tensors for stride in t.stride()[:2]]
    _kernel(couplings, name)[(triton.cdiv(num, lanes()),)](*tensors, *strides, num, channels, B=lanes(), num_warps=1)

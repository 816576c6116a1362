"""The compiled kernels (eqtp._native: C++ for CPU tensors, CUDA for those on a GPU), and what they ask of their
arguments. No formula lives here."""

from __future__ import annotations

from functools import lru_cache
from typing import NamedTuple

import numpy as np
import torch

from eqtp.math import harmonics, sphere
from eqtp.plans import matrices as matrix_data
from eqtp.plans.couplings import Couplings
from eqtp.plans.plan import TensorProductPlan, dims
from eqtp.plans.signals import Program

try:
    from eqtp import _native
except ImportError as error:  # a source tree that was never built
    _native = None
    _missing = f"eqtp._native is not built ({error}); run: pip install ."
else:
    _missing = None

MAX_DIM = 33  # largest 2 l + 1 of a native path (csrc/channelwise/plan.h)
DTYPES = (torch.float32, torch.float64)
CUDA_DTYPES = (
    torch.float32,
    torch.float64,
    torch.float16,
    torch.bfloat16,
)  # in the order of csrc/common/device.cuh's codes


def why_not(op: str, plan: TensorProductPlan | None, device: torch.device, dtype: torch.dtype) -> str | None:
    """None if the compiled kernels run this op (with this plan, if it has one) for this device and dtype, else the
    reason as a sentence."""
    if _missing:
        return _missing
    if device.type not in ("cpu", "cuda"):
        return f"the native kernels run on CPUs and NVIDIA GPUs, the tensors are on {device.type}"
    reason = _why_not_cuda(op) if device.type == "cuda" else None
    if reason:
        return reason
    known = CUDA_DTYPES if device.type == "cuda" else DTYPES
    if dtype not in known:
        names = [str(t).removeprefix("torch.") for t in (*known, dtype)]
        return f"the native kernels know {', '.join(names[:-2])} and {names[-2]}, not {names[-1]}"
    return why_not_plan(plan) if plan is not None else None


def _why_not_cuda(op: str) -> str | None:
    """None if this build has the op for a GPU and finds one, else the reason."""
    if not _native.has_cuda:
        return "eqtp was built without CUDA; install nvcc (the CUDA toolkit), or name it in CUDACXX, and install eqtp again with EQTP_CUDA=1"
    name = "tensor_product_conv" if op == "tensor_product" else op
    if not hasattr(_native, f"{name}_cuda"):
        return f"the native kernels have no {op} for CUDA"
    return _no_gpu()


def _no_gpu() -> str | None:
    return _native.cuda_device_count()[1]


_no_gpu._dynamo_marked_constant = True  # torch.compiler.assume_constant_result, which would import the compiler


def walks_transpose(device: torch.device) -> bool:
    """Whether the gradients of a convolution need the transposed graph: on the CPU they do not."""
    return device.type != "cpu"


def adds_atomically(dtype: torch.dtype) -> bool:
    """Whether convolutions over an unsorted graph add with atomics: these kernels sort it."""
    return False


def why_not_plan(plan: TensorProductPlan) -> str | None:
    """None if every path is channelwise (uvu with one channel in x2), else the first path that is not."""
    for n, p in enumerate(plan.paths):
        path = f"path {n} ({plan.irreps_in1[p.i1]} x {plan.irreps_in2[p.i2]} -> {plan.irreps_out[p.io]})"
        if p.mode != "uvu":
            return f"{path} has mode {p.mode}; the native kernels do uvu with one channel in irreps_in2"
        if p.mul2 != 1:
            return f"{path} has {p.mul2} channels in irreps_in2; the native kernels do uvu with one"
        if max(p.l1, p.l2, p.l3) > (MAX_DIM - 1) // 2:
            return f"{path} exceeds l = {(MAX_DIM - 1) // 2}, the largest degree of the native kernels"
    return None


@lru_cache(maxsize=256)
def plan(key: str):
    """The kernels' own copy of a channelwise plan's columns (csrc/channelwise/plan.h)."""
    p = TensorProductPlan.from_key(key)
    in2 = p.irreps_in2.slices()
    slots = [
        [x for s, (mul, ir) in zip(irreps.slices(), irreps, strict=True) for x in (s.start, mul, ir.dim)]
        for irreps in (p.irreps_in1, p.irreps_out)
    ]
    columns = [x for q in p.paths for x in (q.i1, in2[q.i2].start, 2 * q.l2 + 1, q.io, q.weight_offset)]
    coefficients = np.concatenate([np.zeros(0), *(p.coefficients(q).ravel() for q in p.paths)])
    return _native.Plan(*slots, columns, coefficients.tolist(), *dims(key))


def row(t: torch.Tensor) -> torch.Tensor:
    """A tensor [rows, n] whose rows are contiguous; their stride is free (0 for shared rows)."""
    return t.contiguous() if t.shape[1] > 1 and t.stride(1) != 1 else t


def convolve(key: str, graph, inputs, outputs) -> None:
    """Runs csrc/channelwise/channelwise.cpp or .cu. graph: (src, dst, ptr, order, tptr, torder), or () for the product
    of rows; inputs: x, y, w [, g [, cx, cy, cw]]; outputs: out, gx, gy, gw, contiguous or None."""
    inputs = [row(t) for t in inputs]
    if inputs[0].is_cuda:
        return convolve_cuda(key, graph, inputs, outputs)
    x, y = inputs[:2]
    columns = (graph[0], graph[2], graph[3]) if graph else ()  # src, ptr, order
    num_dst = graph[2].shape[0] - 1 if graph else x.shape[0]
    _native.tensor_product_conv(
        plan(key),
        x.shape[0],
        num_dst,
        y.shape[0],
        [t.data_ptr() for t in columns],
        [(t.data_ptr(), t.stride(0)) for t in inputs],
        [address(t) for t in outputs],
        x.dtype == torch.float64,
        torch.get_num_threads(),
    )


class Walk(NamedTuple):
    """What the kernels of csrc/channelwise/table_driven.cuh read (its structs say what the columns mean), for the walk
    over destinations or sources."""

    units: np.ndarray  # int32 [units, 10]
    paths: np.ndarray  # int32 [paths, 4]
    columns: np.ndarray  # int32 [entries, 2]
    terms: np.ndarray  # float64 [entries, 2]
    y_ptr: np.ndarray  # int32 [blocks (dim2 + 1)]
    y_entry: np.ndarray  # int32 [terms]
    y_term: np.ndarray  # float64 [terms]
    sizes: tuple[
        int, int, int, int
    ]  # units; the largest of: components of a unit, of a block across from it, entries of M


def _entries(p: TensorProductPlan, q) -> tuple[np.ndarray, np.ndarray]:
    """The entries of M of path q, each the sum of at most two terms: columns of y and coefficients, both [d1, d3,
    2]."""
    c = p.coefficients(q)  # [d1, d2, d3]
    if (c != 0).sum(axis=1).max() > 2:
        raise ValueError("tensor_product: more than two coefficients couple one component of x1 with one of the output")
    c = np.concatenate(
        [c, np.zeros((c.shape[0], 1, c.shape[2]))], axis=1
    )  # a path with one column has a second one too
    first = np.argsort(c == 0, axis=1, kind="stable")[:, :2]  # [d1, 2, d3], non-zero ones first
    terms = np.take_along_axis(c, first, axis=1)
    columns = p.irreps_in2.slices()[q.i2].start + np.where(terms != 0, first, 0)
    return np.moveaxis(columns, 1, 2), np.moveaxis(terms, 1, 2)


def _tiles(a: np.ndarray) -> list[np.ndarray]:
    """[rows, d, 2] as tiles of the components that a lane holds: [rows, K, 2] each, K = 1, 4 or 8, filled up with
    zeros."""
    d = a.shape[1]
    size = 1 if d == 1 else 4 if d == 3 else 8
    a = np.pad(a, ((0, 0), (0, -d % size), (0, 0)))
    return np.split(a, a.shape[1] // size, axis=1)


def walk(p: TensorProductPlan, forward: bool) -> Walk:
    """Tables of a walk: units are blocks of the output (forward) or of x, 32 channels each; forward, blocks of more
    than 7 components are cut."""
    own, across = (p.irreps_out, p.irreps_in1) if forward else (p.irreps_in1, p.irreps_out)
    starts = [s.start for s in across.slices()]
    units, paths, columns, terms, y_ptr, y_entry, y_term = [], [], [], [], [], [], []
    entries = 0  # so far
    for slot, (s, (mul, ir)) in enumerate(zip(own.slices(), own, strict=True)):
        mine = [q for q in p.paths if (q.io if forward else q.i1) == slot]
        pairs = [[np.swapaxes(a, 0, 1) if not forward else a for a in _entries(p, q)] for q in mine]
        tiles = [[_tiles(a) for a in pair] for pair in pairs]  # [path][columns, terms][tile]
        count = -(-ir.dim // 8)  # tiles
        for part in [[k] for k in range(count)] if forward else [range(count)]:
            first_path, first_entry = len(paths), entries
            for q, pair in zip(mine, tiles, strict=True):
                a, b = (np.concatenate([tile[k].reshape(-1, 2) for k in part]) for tile in pair)
                other = q.i1 if forward else q.io
                paths.append((starts[other], across[other].ir.dim, q.weight_offset, entries - first_entry))
                columns.append(a)
                terms.append(b)
                entries += len(a)
            position = first_path, len(paths), first_entry, entries - first_entry, len(y_ptr)
            units += [(s.start, ir.dim, mul, u, 8 * part[0], *position) for u in range(0, mul, 32)]
        if not forward:  # the terms of the block's entries once more, by column of y
            a, b = (np.concatenate([np.zeros((0, 2)), *t[len(t) - len(mine) :]]).ravel() for t in (columns, terms))
            order = np.argsort(a, kind="stable")
            order = order[b[order] != 0]
            y_ptr += (
                sum(map(len, y_term))
                + np.concatenate([[0], np.bincount(a[order].astype(int), minlength=p.dim_in2).cumsum()])
            ).tolist()
            y_entry.append(order // 2)
            y_term.append(b[order])

    def table(rows, width):
        return np.array(rows, np.int32).reshape(-1, width)

    def join(parts, width, dtype):
        return np.concatenate([np.zeros((0, *width)), *parts]).astype(dtype)

    sizes = (
        len(units),
        *(max((row[n] for row in rows), default=0) for rows, n in ((units, 1), (paths, 1), (units, 8))),
    )
    tables = table(units, 10), table(paths, 4), join(columns, (2,), np.int32), join(terms, (2,), np.float64)
    return Walk(*tables, np.array(y_ptr, np.int32), join(y_entry, (), np.int32), join(y_term, (), np.float64), sizes)


@lru_cache(maxsize=256)
def _uploaded(key: str, device: torch.device, real: torch.dtype) -> tuple:
    """The tensors of both walks, forward and backward, on a device, and their sizes; coefficients in the dtype that the
    kernels compute in."""
    both = []
    for forward in (True, False):
        w = walk(TensorProductPlan.from_key(key), forward)
        tensors = [torch.from_numpy(a).to(device) for a in w[:-1]]
        both.append(([t.to(real) if t.is_floating_point() else t for t in tensors], w.sizes))
    return tuple(both)


def convolve_cuda(key: str, graph, inputs, outputs) -> None:
    """Runs csrc/channelwise/channelwise.cu; arguments as for `convolve`, rows contiguous."""
    x, y = inputs[:2]
    (fwd, fwd_sizes), (bwd, bwd_sizes) = _uploaded(key, x.device, real(x.dtype))
    gy = outputs[2]
    shares = (
        None if gy is None else torch.empty(bwd_sizes[0], *gy.shape, dtype=real(x.dtype), device=x.device)
    )  # [units, e, dim2]
    _native.tensor_product_conv_cuda(
        [t.data_ptr() for t in fwd],
        fwd_sizes,
        [t.data_ptr() for t in bwd],
        bwd_sizes,
        x.shape[0],
        graph[2].shape[0] - 1 if graph else x.shape[0],
        y.shape[0],
        [t.data_ptr() for t in graph],
        [(t.data_ptr(), t.stride(0)) for t in inputs],
        [address(t) for t in outputs],
        address(shares),
        tuple(dims(key)),
        CUDA_DTYPES.index(x.dtype),
        *place(x.device),
    )


def real(dtype: torch.dtype) -> torch.dtype:
    """The dtype that GPU kernels compute in: half precision is for storage (Real in csrc/common/device.cuh)."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def place(device: torch.device) -> tuple[int, int]:
    """Index of a GPU and the address of its current stream."""
    return device.index, torch.cuda.current_stream(device).cuda_stream


def csr(index: torch.Tensor, num: int, ptr: torch.Tensor, order: torch.Tensor) -> int:
    """Fills ptr [num + 1] and order [e]; returns the position of the first value outside [0, num), or -1."""
    index = index.contiguous()
    is64 = index.dtype == torch.int64
    return _native.csr(index.data_ptr(), is64, len(index), num, ptr.data_ptr(), order.data_ptr())


def _segments(
    name: str, x: torch.Tensor, ptr: torch.Tensor, order: torch.Tensor, num: int, out: torch.Tensor, *more: int
) -> None:
    """Runs csrc/<name>.cpp, or .cu for CUDA tensors, on the rows of x [e, c]; more: what the op takes besides."""
    arguments = (
        x.data_ptr(),
        x.stride(0),
        ptr.data_ptr(),
        order.data_ptr(),
        len(x),
        num,
        x.shape[1],
        out.data_ptr(),
        *more,
    )
    if x.is_cuda:
        getattr(_native, f"{name}_cuda")(*arguments, CUDA_DTYPES.index(x.dtype), *place(x.device))
    else:
        getattr(_native, name)(*arguments, x.dtype == torch.float64, torch.get_num_threads())


def segment_sum(x: torch.Tensor, ptr: torch.Tensor, order: torch.Tensor, out: torch.Tensor) -> None:
    """out [n, c] = sums of the rows of x [e, c] over the segments of ptr [n + 1], order [e]."""
    _segments("segment_sum", row(x), ptr, order, len(out), out)


def segment_max(x: torch.Tensor, ptr: torch.Tensor, order: torch.Tensor, out: torch.Tensor, arg: torch.Tensor) -> None:
    """out [n, c] = largest values of the rows of x [e, c], from the edges arg [n, c] int64; where there is none: 0,
    from e."""
    _segments("segment_max", row(x), ptr, order, len(out), out, arg.data_ptr())


def segment_softmax(x: torch.Tensor, ptr: torch.Tensor, order: torch.Tensor, out: torch.Tensor) -> None:
    """out [e, c] = softmax of x [e, c] over the segments."""
    _segments("segment_softmax", row(x), ptr, order, len(ptr) - 1, out)


def segment_softmax_bwd(
    g: torch.Tensor, y: torch.Tensor, ptr: torch.Tensor, order: torch.Tensor, gx: torch.Tensor
) -> None:
    """gx [e, c] = y (g - sums of y g over the segments), the gradient of the logits from that of their softmax y."""
    y = row(y)
    _segments("segment_softmax_bwd", row(g), ptr, order, len(ptr) - 1, gx, y.data_ptr(), y.stride(0))


@lru_cache(maxsize=256)
def _harmonics(degrees: tuple[int, ...], normalization: str):
    """Constants of the kernel (csrc/harmonics/harmonics.h)."""
    lmax, columns = max(degrees, default=0), sum(2 * l + 1 for l in degrees)
    return _native.Harmonics(
        lmax, columns, harmonics.columns(degrees), harmonics.constants(lmax, normalization).ravel().tolist()
    )


@lru_cache(maxsize=256)
def _harmonics_cuda(degrees: tuple[int, ...], normalization: str, device: torch.device, real: torch.dtype):
    """Constants for csrc/harmonics/harmonics.cu: on the host (None unless all degrees stand in order), and the run-time
    tables on the device."""
    constants, start, column = harmonics.tables(degrees, normalization)
    fixed = None if harmonics.columns(degrees) else np.ascontiguousarray(constants)
    integers = [torch.tensor(t or [0], dtype=torch.int32, device=device) for t in (start, column)]
    return fixed, [torch.from_numpy(constants).to(real).to(device), *integers]


def spherical_harmonics(degrees, normalize: bool, normalization: str, xyz, g, c, out, gxyz) -> None:
    """Runs csrc/harmonics/harmonics.cpp, or .cu for CUDA tensors: out from xyz; gxyz from g; or both, along c. Outputs
    contiguous or None."""
    g = None if g is None else row(g)

    def size(t):
        return (0, 0) if t is None else t.stride()

    points = (
        normalize,
        xyz.shape[0],
        xyz.data_ptr(),
        *xyz.stride(),
        address(g),
        size(g)[0],
        address(c),
        *size(c),
        address(out),
        address(gxyz),
    )
    if not xyz.is_cuda:
        _native.spherical_harmonics(
            _harmonics(degrees, normalization), *points, xyz.dtype == torch.float64, torch.get_num_threads()
        )
        return
    fixed, tables = _harmonics_cuda(degrees, normalization, xyz.device, real(xyz.dtype))
    shape = max(degrees, default=0), sum(2 * l + 1 for l in degrees)
    host = 0 if fixed is None else fixed.ctypes.data
    _native.spherical_harmonics_cuda(
        *shape, host, *map(address, tables), *points, CUDA_DTYPES.index(xyz.dtype), *place(xyz.device)
    )


@lru_cache(maxsize=256)
def _signal_tables(lmax: int, rows: int, columns: int):
    """Tables of the transforms of degrees 0..lmax on a folded grid (csrc/signals/signals.h)."""
    f, ordered = sphere.fold(lmax, rows, columns), np.ascontiguousarray
    back = f.azimuth.reshape(2, -1, 2, columns // 4).transpose(0, 2, 3, 1)  # [2, 2 (p), Q, M / 2]
    tables = [
        f.legendre,
        f.slope,
        f.steep,
        f.azimuth,
        f.turned,
        ordered(back),
        ordered(f.projection.transpose(0, 1, 3, 2)),
    ]
    return _native.SignalTables(lmax, sphere.blocks(lmax).place.tolist(), [a.ravel().tolist() for a in tables])


@lru_cache(maxsize=1024)
def _signal_program(program: Program):
    fields = [(n, field) for n in range(len(program.lmax_in)) for field in program.fields(n)]
    terms = [term for of_output in program.terms for term in of_output]

    def ptr(lengths):
        return np.cumsum([0, *lengths]).tolist()

    return _native.SignalProgram(
        program.rows // 2,
        program.columns // 4,
        *(
            [_signal_tables(lmax, program.rows, program.columns) for lmax in degrees]
            for degrees in (program.lmax_in, program.lmax_out)
        ),
        [x for field in fields for x in field],
        ptr(map(len, program.terms)),
        [term.coefficient for term in terms],
        ptr(len(term.factors) for term in terms),
        [fields.index(factor) for term in terms for factor in term.factors],
    )


@lru_cache(maxsize=256)
def _coupling_table(c: Couplings):
    return _native.CouplingTable(
        c.inputs, c.outputs, *(a.tolist() for a in (c.out_ptr, c.group_ptr, c.scale, c.a, c.b, c.c))
    )


@lru_cache(maxsize=256)
def _matrix_conversion(lmax: int, size: int):
    """Between the components of degrees 0..lmax and matrices (csrc/matrices/matrices.h)."""
    c = matrix_data.conversion(lmax, size)
    back = np.argsort(c.component, kind="stable")

    def ptr(ordered, count):
        return np.searchsorted(ordered, np.arange(count + 1)).tolist()

    to = ptr(c.place, size * size), c.component.tolist()
    return _native.MatrixConversion(
        *to, ptr(c.component[back], (lmax + 1) ** 2), c.place[back].tolist(), c.to.tolist(), c.back[back].tolist()
    )


@lru_cache(maxsize=1024)
def _matrix_program(p: matrix_data.Program):
    conversions = [[_matrix_conversion(lmax, p.size) for lmax in degrees] for degrees in (p.lmax_in, p.lmax_out)]
    ptr = np.cumsum([0, *map(len, p.terms)]).tolist()
    return _native.MatrixProgram(
        p.size, *conversions, p.pair_in, p.pair_out, ptr, [int(x) for terms in p.terms for term in terms for x in term]
    )


def _samples(run, what, inputs, outputs) -> None:
    x = inputs[0]
    if x.shape[0] and x.shape[1]:
        tensors = [[(t.data_ptr(), t.stride(0), t.stride(1)) for t in ts] for ts in (inputs, outputs)]
        run(what, *tensors, x.shape[0], x.shape[1], x.dtype == torch.float64, torch.get_num_threads())


def signals(program: Program, inputs, outputs) -> None:
    """Runs csrc/signals/signals.cpp. inputs, outputs: [b, c, (lmax+1)^2] each, the last dimension contiguous, strides
    of b and c free."""
    _samples(_native.signals, _signal_program(program), inputs, outputs)


def couple(couplings: Couplings, inputs, outputs) -> None:
    """Runs csrc/couplings/couplings.cpp. inputs, outputs: [b, c, components] each, the last dimension contiguous,
    strides of b and c free."""
    _samples(_native.couple, _coupling_table(couplings), inputs, outputs)


def matrices(program: matrix_data.Program, inputs, outputs) -> None:
    """Runs csrc/matrices/matrices.cpp. inputs, outputs: [b, c, (lmax+1)^2] each, the last dimension contiguous, strides
    of b and c free."""
    _samples(_native.matrices, _matrix_program(program), inputs, outputs)


def address(t: torch.Tensor | None) -> int:
    """Address of the first element; 0 for None."""
    return 0 if t is None else t.data_ptr()

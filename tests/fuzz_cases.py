"""What tests/fuzz.py draws: an op with random arguments, its inputs, and what it should give, in float64, by another
way: e3nn's products and harmonics, loops over nodes, tables of e3nn's coefficients."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from functools import lru_cache
from math import pi, prod, sqrt
from typing import NamedTuple

import e3nn
import torch
from e3nn import o3
from hypothesis import strategies as st

import eqtp
from eqtp.plans.plan import TensorProductPlan

e3nn.set_optimization_defaults(jit_script_fx=False, jit_mode="eager")
warnings.filterwarnings("ignore", category=DeprecationWarning)

seeds = st.integers(0, 2**20)


class Case(NamedTuple):
    """f(*inputs): eqtp's result; oracle(*inputs in float64): what it should be."""

    name: str
    f: Callable
    oracle: Callable
    inputs: list[torch.Tensor]
    smooth: bool = True  # every derivative exists


# ------------------------------------------------------------------------ tensors
def numbers(seed: int, *shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).double()


@st.composite
def tensors(draw, *shape: int, dtype: torch.dtype):
    """Random numbers with strides of any kind: contiguous, part of wider rows, every other row, another order of
    dimensions, one row for all."""
    kind = draw(st.sampled_from(["contiguous", "wide", "every other", "turned", "expanded"]))
    seed = draw(seeds)
    t = numbers(seed, *shape).to(dtype)
    if kind == "contiguous" or not shape:
        return t
    if kind == "wide":
        whole = torch.full((*shape[:-1], shape[-1] + 3), torch.nan, dtype=dtype)
        whole[..., 1 : 1 + shape[-1]] = t
        return whole[..., 1 : 1 + shape[-1]]
    if kind == "every other":
        return torch.stack([t, torch.full_like(t, torch.nan)], 1).flatten(0, 1)[::2]
    if kind == "turned":
        order = list(reversed(range(len(shape))))
        return t.permute(order).contiguous().permute(order)
    return t[:1].expand(shape) if shape[0] else t


# ------------------------------------------------------------------------ plans
@st.composite
def irreps(draw, slots: int = 3, muls: int = 5, lmax: int = 3):
    return [
        (draw(st.integers(1, muls)), (draw(st.integers(0, lmax)), draw(st.sampled_from([1, -1]))))
        for _ in range(draw(st.integers(1, slots)))
    ]


EQUAL = ("uuw", "uuu", "uvu<v", "u<vw")  # modes of equal multiplicities
WEIGHTED = ("uvw", "uuw", "u<vw")  # modes that need weights


def multiplicity(mode: str, mul1: int, mul2: int, free: int) -> int:
    """Of the output."""
    pairs = mul1 * (mul1 - 1) // 2
    return {"uvu": mul1, "uvv": mul2, "uuu": mul1, "uvuv": mul1 * mul2, "uvu<v": pairs}.get(mode, free)


@st.composite
def products(draw, channelwise: bool):
    """Arguments of e3nn's TensorProduct: irreps, instructions, normalizations. channelwise: what has kernels."""
    in1 = draw(irreps(muls=9 if channelwise else 4))
    in2 = draw(irreps(muls=1 if channelwise else 4))
    out, instructions = [], []
    for _ in range(draw(st.integers(1, 4))):
        i1, i2 = draw(st.integers(0, len(in1) - 1)), draw(st.integers(0, len(in2) - 1))
        (mul1, (l1, p1)), (mul2, (l2, p2)) = in1[i1], in2[i2]
        modes = [m for m in ("uvw", "uvu", "uvv", "uvuv", *EQUAL) if m not in EQUAL or mul1 == mul2]
        modes = [m for m in modes if mul1 > 1 or m not in ("uvu<v", "u<vw")]
        mode = "uvu" if channelwise else draw(st.sampled_from(modes))
        l3 = draw(st.integers(abs(l1 - l2), min(l1 + l2, 3 + abs(l1 - l2))))
        slot = multiplicity(mode, mul1, mul2, draw(st.integers(1, 4))), (l3, p1 * p2)
        if slot not in out or draw(st.booleans()):
            out.append(slot)
        weighted = mode in WEIGHTED or draw(st.booleans())
        path_weight = draw(st.sampled_from([1.0, 0.5, 2.0]))
        instructions.append((i1, i2, len(out) - 1 - out[::-1].index(slot), mode, weighted, path_weight))
    norms = draw(st.sampled_from(["component", "norm", "none"])), draw(st.sampled_from(["element", "path", "none"]))
    return in1, in2, out, instructions, *norms


def as_text(irreps) -> str:
    return "+".join(f"{mul}x{l}{'e' if p == 1 else 'o'}" for mul, (l, p) in irreps)


def e3nn_product(arguments, shared: bool) -> Callable:
    """e3nn's own, in float64."""
    in1, in2, out, instructions, irrep, path = arguments
    default = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    try:
        product = o3.TensorProduct(
            *map(as_text, (in1, in2, out)), instructions, irrep_normalization=irrep, path_normalization=path,
            internal_weights=False, shared_weights=shared,
        )  # fmt: skip
    finally:
        torch.set_default_dtype(default)

    def apply(x, *rest):  # of no rows e3nn's generated code makes nothing
        return product(x, *rest) if len(x) else x.new_zeros(0, product.irreps_out.dim) + 0 * x.sum()

    return apply


def our_plan(arguments) -> TensorProductPlan:
    in1, in2, out, instructions, irrep, path = arguments
    return TensorProductPlan(*map(as_text, (in1, in2, out)), instructions, irrep, path)


@st.composite
def product_cases(draw, dtype, backend):
    arguments = draw(products(draw(st.booleans())))
    plan, rows, shared = our_plan(arguments), draw(st.sampled_from([0, 1, 2, 5])), draw(st.booleans())
    theirs = e3nn_product(arguments, shared)
    shape = (plan.weight_numel,) if shared else (rows, plan.weight_numel)
    inputs = [draw(tensors(*s, dtype=dtype)) for s in ((rows, plan.dim_in1), (rows, plan.dim_in2))]
    if plan.weight_numel:
        inputs.append(draw(tensors(*shape, dtype=dtype)))

    def f(x1, x2, w):
        return eqtp.tensor_product(x1, x2, w, plan, backend)

    def unweighted(x1, x2):
        return eqtp.tensor_product(x1, x2, None, plan, backend)

    return Case(f"tensor_product {arguments} {backend}", f if plan.weight_numel else unweighted, theirs, inputs)


# ------------------------------------------------------------------------ graphs
class Edges(NamedTuple):
    graph: eqtp.Graph
    src: torch.Tensor  # of the edges that count
    dst: torch.Tensor
    counts: torch.Tensor  # [e] bool


@st.composite
def graphs(draw):
    """Empty, with ghosts, padded, with self loops and double edges, with one giant node; in any order, sorted, as
    CSR."""
    num_src = draw(st.sampled_from([0, 1, 2, 5, 9]))
    num_dst = draw(st.sampled_from([0, 1, 3, 5]))
    e = draw(st.sampled_from([0, 1, 7, 40])) if num_src and num_dst else 0
    generator = torch.Generator().manual_seed(draw(seeds))
    src, dst = (torch.randint(max(n, 1), (e,), generator=generator) for n in (num_src, num_dst))
    kind = draw(st.sampled_from(["any", "giant", "loops"]))
    if kind == "giant":
        dst = torch.where(torch.rand(e, generator=generator) < 0.8, 0, dst)
    if kind == "loops" and num_src and num_dst:
        dst = torch.where(torch.rand(e, generator=generator) < 0.5, src % num_dst, dst)
    how = draw(st.sampled_from(["any", "unsorted", "csr", "mask", "count", "csr padded"]))
    index = draw(st.sampled_from([torch.int32, torch.int64]))
    more = draw(st.integers(0, 5)) if how in ("mask", "count", "csr padded") else 0
    counts = torch.ones(e + more, dtype=torch.bool)
    counts[torch.randperm(e + more, generator=generator)[:more] if how == "mask" else slice(e, None)] = False
    if how.startswith("csr"):
        order = torch.argsort(dst, stable=True)
        src, dst = src[order], dst[order]
    wide_src, wide_dst = (torch.full((e + more,), bad, dtype=index) for bad in (-7, 10**6))
    wide_src[counts], wide_dst[counts] = src.to(index), dst.to(index)
    ends = wide_src, wide_dst, num_src, num_dst
    ptr = torch.bincount(dst, minlength=num_dst).cumsum(0)
    make = {
        "any": lambda: eqtp.Graph(*ends),
        "unsorted": lambda: eqtp.Graph(*ends, sort=False),
        "mask": lambda: eqtp.Graph(*ends, mask=counts),
        "count": lambda: eqtp.Graph(*ends, num_edges=draw(st.sampled_from([e, torch.tensor(e), torch.tensor([e])]))),
    }
    if how.startswith("csr"):
        ptr = torch.cat([ptr.new_zeros(1), ptr]).to(index)
        graph = eqtp.Graph.from_csr(ptr, wide_src, num_src, padded=how == "csr padded")
    else:
        graph = make[how]()
    return Edges(graph, src, dst, counts)


@st.composite
def convolution_cases(draw, dtype, backend):
    arguments, edges = draw(products(draw(st.integers(0, 3)) > 0)), draw(graphs())
    plan, shared, graph = our_plan(arguments), draw(st.booleans()), edges.graph
    theirs, e = e3nn_product(arguments, shared), graph.num_edges
    shapes = [(graph.num_src, plan.dim_in1), (e, plan.dim_in2)]
    shapes += [(plan.weight_numel,) if shared else (e, plan.weight_numel)] * (plan.weight_numel > 0)

    def f(x, y, w):
        return eqtp.tensor_product_conv(x, y, w, plan, graph, backend)

    def unweighted(x, y):
        return eqtp.tensor_product_conv(x, y, None, plan, graph, backend)

    def oracle(x, y, *w):
        w = [t if shared else t[edges.counts] for t in w]
        messages = theirs(x[edges.src], y[edges.counts], *w)
        return x.new_zeros(graph.num_dst, plan.dim_out).index_add(0, edges.dst, messages)

    inputs = [draw(tensors(*s, dtype=dtype)) for s in shapes]
    name = f"tensor_product_conv {arguments} {graph!r} {backend}"
    return Case(name, f if plan.weight_numel else unweighted, oracle, inputs)


@st.composite
def segment_cases(draw, dtype, backend):
    edges, tail = draw(graphs()), draw(st.sampled_from([(), (1,), (5,), (2, 3), (0,), (33,)]))
    op = draw(st.sampled_from(["sum", "mean", "max", "softmax"]))
    graph, f = edges.graph, getattr(eqtp, f"segment_{op}")
    into = [torch.nonzero(edges.counts).flatten()[edges.dst == n] for n in range(graph.num_dst)]

    def oracle(x):
        if op == "softmax":
            out = torch.zeros_like(x)
            for rows in into:
                out = out.index_copy(0, rows, torch.softmax(x[rows], 0))
            return out
        reduce = {"sum": lambda t: t.sum(0), "mean": lambda t: t.mean(0), "max": lambda t: t.amax(0)}[op]
        parts = [reduce(x[rows]) if len(rows) else x.new_zeros(tail) for rows in into]
        return torch.stack(parts) if parts else x.new_zeros(0, *tail)

    x = draw(tensors(graph.num_edges, *tail, dtype=dtype))
    if op == "max":  # among equal values torch shares the gradient, ours goes to the first
        x = (x.double().argsort(0).argsort(0) - 20).to(dtype)
    smooth = op != "max"
    return Case(f"segment_{op} {graph!r} {tail}", lambda x: f(x, graph, backend), oracle, [x], smooth=smooth)


# ------------------------------------------------------------------------ functions on the sphere
@lru_cache(maxsize=512)
def wigner_3j(l1: int, l2: int, l3: int) -> torch.Tensor:
    return o3.wigner_3j(l1, l2, l3, dtype=torch.float64)


@lru_cache(maxsize=128)
def couplings(lmax1: int, lmax2: int, lmax_out: int, kind: str) -> torch.Tensor:
    """[(lmax1+1)^2, (lmax2+1)^2, (lmax_out+1)^2]. "gaunt": integrals of three harmonics; "cg": sqrt(2 l3 + 1) w3j."""
    c = torch.zeros((lmax1 + 1) ** 2, (lmax2 + 1) ** 2, (lmax_out + 1) ** 2, dtype=torch.float64)
    for l1 in range(lmax1 + 1):
        for l2 in range(lmax2 + 1):
            for l3 in range(abs(l1 - l2), min(l1 + l2, lmax_out) + 1):
                w = wigner_3j(l1, l2, l3)
                # the harmonics at the pole, where only m = 0 is there: sqrt((2 l + 1) / 4 pi)
                scale = sqrt(prod(2 * l + 1 for l in (l1, l2, l3)) / (4 * pi)) * w[l1, l2, l3]
                scale = sqrt(2 * l3 + 1) if kind == "cg" else scale
                c[l1**2 : (l1 + 1) ** 2, l2**2 : (l2 + 1) ** 2, l3**2 : (l3 + 1) ** 2] = scale * w
    return c


@st.composite
def function_cases(draw, dtype, backend):
    """Products of functions on the sphere with leading dimensions that broadcast."""
    lmax1, lmax2, lmax_out = (draw(st.integers(0, 4)) for _ in range(3))
    lead1, lead2 = draw(
        st.sampled_from([((), ()), ((3,), (3,)), ((2, 3), (1, 3)), ((0, 2), (1, 2)), ((4,), ()), ((1,), (1,))])
    )
    op = draw(st.sampled_from(["gaunt", "cg", "many"]))
    inputs = [draw(tensors(*lead, (lmax + 1) ** 2, dtype=dtype)) for lead, lmax in ((lead1, lmax1), (lead2, lmax2))]
    if op == "many":
        degree = draw(st.integers(1, 4))

        def powers(x):
            return eqtp.gaunt_many_body(x, lmax_out, degree, backend=backend)

        tables = [couplings(n * lmax1, lmax1, (n + 1) * lmax1, "gaunt") for n in range(degree)]

        def oracle(x):
            found = [x]
            for n in range(1, degree):
                found.append(torch.einsum("...i,...j,ijk->...k", found[-1], x, tables[n]))
            return torch.stack([resized(t, lmax_out) for t in found], -2)

        return Case(f"gaunt_many_body {lmax1} {lmax_out} {degree} {lead1}", powers, oracle, inputs[:1])
    methods = {"gaunt": ["auto", "sparse", "grid", "fourier"], "cg": ["auto", "dense", "sparse"]}[op]
    method = draw(st.sampled_from(methods)) if backend == "auto" else "auto"
    function = eqtp.gaunt_tensor_product if op == "gaunt" else eqtp.cg_tensor_product

    def f(x1, x2):
        return function(x1, x2, lmax_out, method=method, backend=backend)

    table = couplings(lmax1, lmax2, lmax_out, op)  # made here, not in a transform

    def oracle(x1, x2):
        return torch.einsum("...i,...j,ijk->...k", x1, x2, table)

    return Case(f"{op} {method} {lmax1} {lmax2} {lmax_out} {lead1} {lead2}", f, oracle, inputs)


def resized(x: torch.Tensor, lmax: int) -> torch.Tensor:
    """[..., n] -> [..., (lmax+1)^2]: cut, or padded with zeros."""
    n = (lmax + 1) ** 2
    return torch.nn.functional.pad(x, (0, n - x.shape[-1])) if x.shape[-1] < n else x[..., :n]


@st.composite
def harmonics_cases(draw, dtype, backend):
    degrees = draw(st.lists(st.integers(0, 7), min_size=1, max_size=4))
    lead = draw(st.sampled_from([(5,), (), (0,), (2, 3), (1,)]))
    normalize = draw(st.booleans())
    normalization = draw(st.sampled_from(["integral", "component", "norm"]))
    xyz = draw(tensors(*lead, 3, dtype=dtype))

    def f(xyz):
        return eqtp.spherical_harmonics(degrees, xyz, normalize, normalization, backend)

    def oracle(xyz):
        return o3.spherical_harmonics(degrees, xyz, normalize, normalization)

    return Case(f"spherical_harmonics {degrees} {lead} {normalize} {normalization}", f, oracle, [xyz])


@st.composite
def edge_cases(draw, dtype, backend):
    """Convolutions of functions with the harmonics of an edge."""
    lmax, lmax_out = draw(st.integers(0, 3)), draw(st.integers(0, 3))
    op = draw(st.sampled_from(["gaunt product", "gaunt rotated", "so2"]))
    rows = draw(st.sampled_from([0, 1, 4]))
    inputs = [draw(tensors(rows, 2, (lmax + 1) ** 2, dtype=dtype)), draw(tensors(rows, 1, 3, dtype=dtype))]
    lmax_filter = lmax + lmax_out
    if op == "so2":
        paths = eqtp.so2_paths(lmax, lmax_out)
        tables = [sqrt(2 * l3 + 1) * wigner_3j(l1, l2, l3) for l1, l2, l3 in paths]
        inputs.append(draw(tensors(2, len(paths), dtype=dtype)))

        def f(x, r, w):
            return eqtp.so2_convolution(x, r, eqtp.so2_weights(w, lmax, lmax_out), lmax_out, backend=backend)

        def oracle(x, r, w):
            y = o3.spherical_harmonics(list(range(lmax_filter + 1)), r, True, "component")
            out = x.new_zeros(rows, 2, (lmax_out + 1) ** 2)
            for n, (l1, l2, l3) in enumerate(paths):
                a, b = x[..., l1**2 : (l1 + 1) ** 2], y[..., l2**2 : (l2 + 1) ** 2]
                part = torch.einsum("...i,...j,ijk->...k", a, b, tables[n])
                out = out + resized(torch.nn.functional.pad(part * w[:, n, None], (l3**2, 0)), lmax_out)
            return out

        return Case(f"so2_convolution {lmax} {lmax_out} {rows}", f, oracle, inputs)
    odd_method = op.split()[1]

    def convolution(x, r):
        return eqtp.gaunt_convolution(x, r, lmax_out, method=odd_method, backend=backend)

    table = couplings(lmax, lmax_filter, lmax_out, "gaunt")

    def by_couplings(x, r):
        y = o3.spherical_harmonics(list(range(lmax_filter + 1)), r, True, "integral")
        return torch.einsum("...i,...j,ijk->...k", x, y, table)

    return Case(f"gaunt_convolution {odd_method} {lmax} {lmax_out} {rows}", convolution, by_couplings, inputs)


KINDS = (product_cases, convolution_cases, segment_cases, function_cases, harmonics_cases, edge_cases)


@st.composite
def cases(draw):
    """An op, its inputs in a dtype, and the backend that is asked for."""
    dtype = draw(st.sampled_from([torch.float64, torch.float64, torch.float32, torch.bfloat16, torch.float16]))
    kind = draw(st.sampled_from([*KINDS, product_cases, convolution_cases, convolution_cases]))
    backend = draw(st.sampled_from(["auto", "auto", "reference"]))
    return draw(kind(dtype, backend))

"""Shapes of published models and of the benchmark suites of other libraries.

Tests and benchmarks run over these tables, so a shape added here is tested and timed without another edit.
Every product carries the counts it must have (output dimension, weights, paths, non-zero coefficients);
`tests/test_problems.py` asserts them.

    >>> from eqtp import problems
    >>> plan = problems.plan("mace-medium")
    >>> plan.weight_numel, plan.dim_out
    (1280, 5120)
"""

from __future__ import annotations

from functools import cache
from typing import NamedTuple

import numpy as np

from eqtp.math.irreps import Irreps
from eqtp.plans.plan import TensorProductPlan


class TensorProductProblem(NamedTuple):
    """One tensor product of a published model.

    `out` for mode uvu: the irreps to keep (multiplicities ignored; "in1": those of `irreps_in1`); every path
    has its own output slot, with the multiplicity of its first operand. For mode uvw: the output irreps
    themselves. `order`: how the model lists its paths: "product" (as looped: NequIP, SevenNet) or
    "output" (by output slot: MACE). `weights`: "per_edge" (a row of weights for each row of input) or
    "shared" (one row for all).
    """

    id: str
    model: str
    irreps_in1: str
    irreps_in2: str
    out: str
    dim_out: int
    weight_numel: int
    num_paths: int
    cg_nonzeros: int  # coefficients with |c| > 1e-9 in the real basis, summed over paths
    mode: str = "uvu"
    weights: str = "per_edge"
    order: str = "product"
    graph: str | None = None  # a graph of GRAPHS that belongs to the model, if it has one


_Y1, _Y2, _Y3 = "0e+1o", "0e+1o+2e", "0e+1o+2e+3o"
_EQ2, _EQ3 = "0e+1e+2e", "0e+1e+2e+3e"  # SevenNet without inversion
_ALL3 = "0e+0o+1e+1o+2e+2o+3e+3o"
_P = TensorProductProblem

_MACE = [
    _P("mace-l1", "MACE layer 1", "128x0e", _Y3, _Y3, 2048, 512, 4, 16, order="output"),
    _P("mace-medium", "MACE medium layer 2", "128x0e+128x1o", _Y3, _Y3, 5120, 1280, 10, 86, order="output"),
    _P("mace-medium-no3o", "MACE medium, outputs to l=2 (OpenEquivariance suite)",
       "128x0e+128x1o", _Y3, _Y2, 3328, 1024, 8, 58, order="output"),
    _P("mace-large", "MACE large layer 2",
       "128x0e+128x1o+128x2e", _Y3, _Y3, 9088, 2176, 17, 215, order="output", graph="diamond:5"),
    _P("flashtp-mace-large", "FlashTP 'mace/large' L2",
       "256x0e+256x1o", _Y3, _Y3, 10240, 2560, 10, 86, order="output"),
    _P("cueq-channelwise", "cuEquivariance MACE tutorial",
       "128x0e+128x1o", _Y1, "in1", 1024, 512, 4, 10, order="output", graph="cueq-tutorial"),
]  # fmt: skip

_NEQUIP = [
    _P("nequip-lips", "NequIP Li3PS4", "32x0o+32x0e+32x1o+32x1e+32x2o+32x2e", _Y2, "in1", 3264, 960, 30, 274),
    _P("revmd17-aspirin", "NequIP rMD17 aspirin", "64x0o+64x0e+64x1o+64x1e", _Y1, "in1", 1408, 640, 10, 32),
    _P("revmd17-toluene", "NequIP rMD17 toluene",
       "64x0o+64x0e+64x1o+64x1e+64x2o+64x2e", _Y2, "in1", 6528, 1920, 30, 274),
    _P("revmd17-benzene", "NequIP rMD17 benzene",
       "64x0o+64x0e+64x1o+64x1e+64x2o+64x2e+64x3o+64x3e", _Y3, "in1", 19968, 4352, 68, 1222),
    _P("nequip-water", "NequIP water", "32x0o+32x0e+32x1o+32x1e", _Y1, "in1", 704, 320, 10, 32),
    _P("nequip-s", "NequIP preset S", "128x0e+64x1o", _Y1, "in1", 768, 384, 4, 10),
    _P("nequip-m", "NequIP preset M", "128x0e+64x1o+32x2e", _Y2, "in1", 2368, 768, 11, 83),
    _P("nequip-l", "NequIP preset L (OAM-L), nequix-mp-1 main layer",
       "128x0e+64x1o+32x2e+32x3o", _Y3, "in1", 5472, 1312, 23, 353, graph="nequip-lammps"),
    _P("nequip-xl", "NequIP preset XL",
       "320x0e+96x1o+64x2e+32x3o+32x4e", _Y3 + "+4e", "in1", 18848, 3616, 42, 1158),
    _P("nequix-first", "nequix-mp-1 first layer", "89x0e", _Y3, _Y3, 1424, 356, 4, 16),
    _P("nequix-last", "nequix-mp-1 last layer", "128x0e+64x1o+32x2e+32x3o", _Y3, "0e", 256, 256, 4, 16),
    _P("flashtp-nequip-4-32-3", "FlashTP example layer 3",
       "32x0e+32x0o+32x1e+32x2e+32x3e+32x1o+32x2o+32x3o", _Y3, "in1", 9984, 2176, 68, 1222, graph="flashtp"),
]  # fmt: skip

_SEVENNET = [
    _P("sevennet-0-first", "SevenNet-0 layer 1", "128x0e", _EQ2, _EQ2, 1152, 384, 3, 9),
    _P("sevennet-0", "SevenNet-0 layers 2-4",
       "128x0e+64x1e+32x2e", _EQ2, "in1", 3136, 960, 15, 137, graph="crystal-36k"),
    _P("sevennet-0-last", "SevenNet-0 layer 5", "128x0e+64x1e+32x2e", _EQ2, "0e", 224, 224, 3, 9),
    _P("sevennet-l3i5", "SevenNet-l3i5 main layers",
       "128x0e+64x1e+32x2e+32x3e", _EQ3, "in1", 7776, 1760, 34, 611),
    _P("sevennet-mf-ompa-l2", "SevenNet-MF-ompa layer 2",
       "128x0e+64x1o+64x1e+32x2o+32x2e+32x3o+32x3e", _Y3, _ALL3, 13504, 3008, 64, 1206),
    _P("sevennet-mf-ompa-l3", "SevenNet-MF-ompa layer 3",
       "128x0o+128x0e+64x1o+64x1e+32x2o+32x2e+32x3o+32x3e", _Y3, _ALL3, 15552, 3520, 68, 1222),
]  # fmt: skip

_FULLY_CONNECTED = [
    _P("diffdock-l1", "DiffDock L=1", "10x1o+10x1e+48x0e+48x0o", _Y1, "in1", 156, 6928, 10, 32, mode="uvw"),
    _P("diffdock-l2", "DiffDock L=2", "10x1o+10x1e+48x0e+48x0o", _Y2, "in1", 156, 7128, 12, 54, mode="uvw"),
    _P("tetris-1", "e3nn tetris, polynomial model, product 1",
       _Y3, _Y3, "64x0e+24x1e+24x1o+16x2e+16x2o", 368, 648, 24, 351, mode="uvw"),
    _P("tetris-2", "e3nn tetris, polynomial model, product 2",
       "64x0e+24x1e+24x1o+16x2e+16x2o", _Y2, "0o+6x0e", 7, 664, 5, 17, mode="uvw"),
    _P("e3tools-conv", "e3tools convolution",
       "64x0e+16x1o", _Y1, "80x0e+16x1o", 128, 7680, 4, 10, mode="uvw"),
    _P("e3tools-transformer", "e3tools transformer",
       "64x0e+16x1o", _Y1, "64x0e+16x1o", 112, 6400, 4, 10, mode="uvw", weights="shared"),
]  # fmt: skip

_SWEEP = "OpenEquivariance roofline sweep, batch 200,000"
_ROOFLINE = [
    _P("roofline-111", _SWEEP, "128x1e", "1e", "1e", 384, 128, 1, 6),
    _P("roofline-212", _SWEEP, "128x2e", "1e", "2e", 640, 128, 1, 16),
    _P("roofline-313", _SWEEP, "128x3e", "1e", "3e", 896, 128, 1, 26),
    _P("roofline-553", _SWEEP, "128x5e", "5e", "3e", 896, 128, 1, 102),
    _P("roofline-535", _SWEEP, "128x5e", "3e", "5e", 1408, 128, 1, 102),
    _P("roofline-636", _SWEEP, "128x6e", "3e", "6e", 1664, 128, 1, 126),
    _P("roofline-747", _SWEEP, "128x7e", "4e", "7e", 1920, 128, 1, 199),
    _P("roofline-777", _SWEEP, "128x7e", "7e", "7e", 1920, 128, 1, 258),
]

TENSOR_PRODUCTS: dict[str, TensorProductProblem] = {
    problem.id: problem for problem in [*_MACE, *_NEQUIP, *_SEVENNET, *_FULLY_CONNECTED, *_ROOFLINE]
}


def tensor_product(problem_id: str) -> TensorProductProblem:
    """The tensor product called `problem_id`; ValueError that lists the known ones if there is none."""
    if problem_id not in TENSOR_PRODUCTS:
        raise ValueError(f"unknown tensor product problem {problem_id!r}; known: {', '.join(TENSOR_PRODUCTS)}")
    return TENSOR_PRODUCTS[problem_id]


@cache
def plan(problem_id: str) -> TensorProductPlan:
    """The plan of a problem, with its paths listed the way its model lists them.

    uvu (NequIP, SevenNet, MACE convolutions): loop over in1, in2 and the irreps of their product, keep
    those in the filter, give each its own output slot, then sort the slots by irrep (stably) so that equal
    irreps are neighbours. uvw (e3nn's fully connected product): loop over in1, in2 and the outputs, keep
    what the selection rule allows.

    Raises ValueError for an unknown id.
    """
    problem = tensor_product(problem_id)
    in1, in2 = Irreps(problem.irreps_in1), Irreps(problem.irreps_in2)
    out = in1 if problem.out == "in1" else Irreps(problem.out)
    if problem.mode == "uvu":
        out, instructions = _channelwise(in1, in2, kept={ir for _, ir in out})
    else:
        instructions = _fully_connected(in1, in2, out)
    if problem.order == "output":
        instructions.sort(key=lambda instruction: instruction[2])
    return TensorProductPlan(in1, in2, out, instructions)


def _channelwise(in1: Irreps, in2: Irreps, kept: set) -> tuple[Irreps, list[tuple]]:
    paths = [
        (i1, i2, mul, ir)
        for i1, (mul, ir1) in enumerate(in1)
        for i2, (_, ir2) in enumerate(in2)
        for ir in ir1 * ir2
        if ir in kept
    ]  # fmt: skip
    by_irrep = sorted(range(len(paths)), key=lambda path: paths[path][3])
    slot = {path: position for position, path in enumerate(by_irrep)}
    out = Irreps([(paths[path][2], paths[path][3]) for path in by_irrep])
    return out, [(i1, i2, slot[path], "uvu", True) for path, (i1, i2, _, _) in enumerate(paths)]


def _fully_connected(in1: Irreps, in2: Irreps, out: Irreps) -> list[tuple]:
    return [
        (i1, i2, io, "uvw", True)
        for i1, (_, ir1) in enumerate(in1)
        for i2, (_, ir2) in enumerate(in2)
        for io, (_, ir3) in enumerate(out)
        if ir3 in ir1 * ir2
    ]


class SymmetricContractionProblem(NamedTuple):
    """One symmetric contraction of MACE: `channels` times `irreps_in` to `channels` times `irreps_out`."""

    id: str
    irreps_in: str
    irreps_out: str
    channels: int = 128
    correlation: int = 3
    num_elements: int = 10
    nodes: int = 1000


SYMMETRIC_CONTRACTIONS: dict[str, SymmetricContractionProblem] = {
    problem.id: problem
    for problem in [
        SymmetricContractionProblem("mace-medium", _Y3, "0e+1o"),
        SymmetricContractionProblem("mace-large", _Y3, "0e+1o+2e"),
    ]
}


class GauntProblem(NamedTuple):
    """One sweep of Gaunt products of the published comparisons; every combination of the tuples is one case.

    `kind`: "feature_interaction" (x1 times x2), "many_body" (x to the power nu), or "siso", "simo", "mimo":
    one degree or all degrees up to lmax on the inputs and on the output (single/multiple input,
    single/multiple output).
    """

    id: str
    kind: str
    channels: int
    lmax: tuple[int, ...]
    batch: tuple[int, ...]
    nu: tuple[int, ...] = (2,)


GAUNT: dict[str, GauntProblem] = {
    problem.id: problem
    for problem in [
        GauntProblem("feature-interaction", "feature_interaction", 128, tuple(range(1, 11)), (1, 100, 10_000)),
        GauntProblem("many-body-lmax", "many_body", 128, tuple(range(1, 7)), (32, 10_000), (3,)),
        GauntProblem("many-body-nu", "many_body", 128, (2,), (32, 10_000), (3, 4, 5, 6, 7)),
        GauntProblem("price-of-freedom-siso", "siso", 1, tuple(range(1, 11)), (10_000,)),
        GauntProblem("price-of-freedom-simo", "simo", 1, tuple(range(1, 11)), (10_000,)),
        GauntProblem("price-of-freedom-mimo", "mimo", 1, tuple(range(1, 11)), (10_000,)),
    ]
}

SPHERICAL_HARMONICS: dict[str, int] = {f"lmax{lmax}": lmax for lmax in (1, 2, 3, 4, 6, 8, 10, 15)}
SPHERICAL_HARMONICS_POINTS: tuple[int, ...] = (10_000, 1_000_000)


class Edges(NamedTuple):
    """A directed graph: edge e carries a message from node src[e] to node dst[e]."""

    src: np.ndarray  # [e] int64
    dst: np.ndarray  # [e] int64
    num_nodes: int


def random_graph(nodes: int, edges: int, seed: int = 0) -> Edges:
    """`edges` edges with both ends uniformly random, in random order."""
    rng = np.random.default_rng(seed)
    return Edges(rng.integers(nodes, size=edges), rng.integers(nodes, size=edges), nodes)


def sorted_graph(nodes: int, edges: int, seed: int = 0) -> Edges:
    """`random_graph` with its edges sorted by destination, as neighbour lists of simulation codes come."""
    src, dst, _ = random_graph(nodes, edges, seed)
    return Edges(src, np.sort(dst), nodes)


def regular_graph(nodes: int, degree: int, seed: int = 0) -> Edges:
    """Every node receives from `degree` distinct random others; edges sorted by destination."""
    rank = np.random.default_rng(seed).random((nodes, nodes))
    np.fill_diagonal(rank, 2.0)
    src = np.argsort(rank, axis=1)[:, :degree]  # [dst, degree]
    return Edges(src.ravel(), np.repeat(np.arange(nodes), degree), nodes)


def crystal_graph(basis: np.ndarray, a: float, cells: int, cutoff: float) -> Edges:
    """Neighbour list of a periodic cubic crystal; edges sorted by destination.

    basis [b, 3] in units of the lattice constant `a` (angstrom), `cells` repetitions along each axis, pairs
    closer than `cutoff` (angstrom), periodic images counted each. Node of basis atom b in cell (i, j, k):
    ((i * cells + j) * cells + k) * len(basis) + b.
    """
    reach = np.arange(-int(cutoff / a) - 1, int(cutoff / a) + 2)
    shifts = np.stack(np.meshgrid(reach, reach, reach, indexing="ij"), -1).reshape(-1, 3)  # [s, 3]
    away = basis[None, :, None] + shifts[None, None] - basis[:, None, None]  # [dst basis, src basis, s, 3]
    distance = a * np.linalg.norm(away, axis=-1)
    dst_b, src_b, s = np.nonzero((distance < cutoff) & (distance > 1e-6))  # [neighbours of one cell]
    axis = np.arange(cells)
    cell = np.stack(np.meshgrid(axis, axis, axis, indexing="ij"), -1).reshape(-1, 3)  # [cells**3, 3]
    stride = np.array([cells * cells, cells, 1])
    src_cell = ((cell[:, None] + shifts[s][None]) % cells) @ stride  # [cells**3, neighbours]
    dst = (cell @ stride)[:, None] * len(basis) + dst_b[None]
    return Edges((src_cell * len(basis) + src_b).ravel(), dst.ravel(), len(basis) * cells**3)


_FCC = np.array([[0, 0, 0], [0, 0.5, 0.5], [0.5, 0, 0.5], [0.5, 0.5, 0]])


def _face_centred(sites: list) -> np.ndarray:
    """The sites of a face-centred cubic cell, [4 * sites, 3] in [0, 1)."""
    return (np.array(sites)[:, None] + _FCC[None]).reshape(-1, 3) % 1.0


_DIAMOND = _face_centred([(0, 0, 0), (0.25, 0.25, 0.25)])

# Ordered Li6PS5Cl (F-43m), idealised sites: Cl 4a, P 4b, S 4d, S 16e (x = 0.618), Li 24g (x = 0.019); [52, 3]
_S, _LI, _Q, _T = 0.618, 0.019, 0.25, 0.75
ARGYRODITE = _face_centred(
    [(0, 0, 0), (0.5, 0.5, 0.5), (0.25, 0.25, 0.25)]
    + [(_S, _S, _S), (-_S, -_S, _S), (-_S, _S, -_S), (_S, -_S, -_S)]
    + [(_LI, _Q, _Q), (-_LI, _T, _Q), (_Q, _LI, _Q), (_Q, -_LI, _T), (_Q, _Q, _LI), (_T, _Q, -_LI)]
)


def diamond(cells: int = 5) -> Edges:
    """Diamond, a = 3.567 A, r < 6.0 A: 158 neighbours an atom, 8 cells**3 atoms."""
    return crystal_graph(_DIAMOND, 3.567, cells, 6.0)


def argyrodite(cells: int = 6) -> Edges:
    """Ordered Li6PS5Cl, a = 10.2795 A, r < 6.0 A: 52 cells**3 atoms."""
    return crystal_graph(ARGYRODITE, 10.2795, cells, 6.0)


def copper(cells: int = 6) -> Edges:
    """Copper, a = 3.61 A, r < 5.0 A (SevenNet-0's cutoff): 42 neighbours an atom, 4 cells**3 atoms."""
    return crystal_graph(_FCC, 3.61, cells, 5.0)


GRAPHS = {
    # cells 3: 216 atoms, 34,128 edges; 5: 1,000 and 158,000; 7: 2,744 and 433,552; 9: 5,832 and 921,456
    "diamond": diamond,
    "cueq-mp": lambda: random_graph(3_000, 160_000),
    "cueq-off": lambda: random_graph(4_000, 70_000),
    "cueq-tutorial": lambda: random_graph(1_000, 10_000),
    "flashtp": lambda: regular_graph(512, 64),
    "nequip-lammps": argyrodite,
    "crystal-36k": copper,  # 864 atoms, 36,288 edges: SevenNet-0's typical size
}


def graph(name: str, nodes: int = 1000, edges: int = 20_000, seed: int = 0) -> Edges:
    """The graph called `name`: "random", "sorted" (`nodes`, `edges`) or one of GRAPHS; "diamond:5": 5 cells.

    Raises ValueError for an unknown name.
    """
    kind, _, cells = name.partition(":")
    if kind == "random":
        return random_graph(nodes, edges, seed)
    if kind == "sorted":
        return sorted_graph(nodes, edges, seed)
    if kind not in GRAPHS:
        raise ValueError(f"unknown graph {name!r}; known: random, sorted, {', '.join(GRAPHS)}")
    return GRAPHS[kind](int(cells)) if cells else GRAPHS[kind]()

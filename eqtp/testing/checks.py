"""Checks shared by tests, benchmarks and users' own tests: an op against its float64 reference, O(3)
equivariance, poisoned memory.

Nothing here needs a test framework; a failure is an AssertionError that names the block that is wrong.

`check_op` compares block by block (a path's slot, a path's weights), each against the largest value of that
block, because one wrong path among twenty hides in the norm of a whole tensor. Cotangents are random; in
`Case`s made here the rows of a group get a cotangent in one output slot only, so that each path's share of
the gradients of x and y is compared by itself.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import NamedTuple

import numpy as np
import torch

from eqtp.backends.native import operators
from eqtp.math.irreps import Irreps
from eqtp.math.so3 import wigner_3j
from eqtp.ops import tensor_product as rows_op
from eqtp.ops import tensor_product_conv as conv_op
from eqtp.ops.graph import Graph
from eqtp.plans.plan import TensorProductPlan

TOLERANCE = {torch.float64: 1e-12, torch.float32: 1e-5}  # relative to the largest value of the block
DENSE_ROWS = 3  # rows of a case that get a cotangent in every slot
ROWS_PER_SLOT = 2  # rows of a case that get a cotangent in one slot only


@contextmanager
def poisoned() -> Iterator[None]:
    """A context in which torch fills uninitialised memory with NaN (integers: the largest), which exposes
    outputs that a kernel does not write."""
    before = (
        torch.are_deterministic_algorithms_enabled(),
        torch.is_deterministic_algorithms_warn_only_enabled(),
    )
    fill = torch.utils.deterministic.fill_uninitialized_memory
    torch.use_deterministic_algorithms(True)
    torch.utils.deterministic.fill_uninitialized_memory = True
    operators.poison(True)
    try:
        if not torch.empty(3, device="cpu").isnan().all():
            raise RuntimeError("poisoned: this torch does not fill uninitialised memory")
        yield
    finally:
        torch.use_deterministic_algorithms(before[0], warn_only=before[1])
        torch.utils.deterministic.fill_uninitialized_memory = fill
        operators.poison(before[0] and fill)


class Block(NamedTuple):
    """A part of a tensor that is compared against its own largest value."""

    name: str
    index: tuple


class Case(NamedTuple):
    """Inputs for `check_op`. Values are float64 that float32 holds exactly, so that one reference serves both
    dtypes.

    operands: name -> tensor. g: cotangent of the output. cotangents: name -> cotangent of the operand's
    gradient. blocks: name of an operand, or "out", -> blocks to compare, the whole tensor by default.
    """

    operands: dict[str, torch.Tensor]
    g: torch.Tensor
    cotangents: dict[str, torch.Tensor]
    blocks: dict[str, list[Block]]


def random(*shape: int, seed: int = 0) -> torch.Tensor:
    """Standard normal numbers, float64, each exact in float32."""
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), device="cpu").double()


def relative_error(actual: torch.Tensor, expected: torch.Tensor) -> float:
    """Largest difference over the largest expected value; where all expected values are 0: 0 if all actual
    ones are, else infinite. NaN if there is one."""
    if expected.numel() == 0:
        return 0.0
    actual, expected = actual.detach().double(), expected.detach()
    difference, scale = float((actual - expected).abs().max()), float(expected.abs().max())
    return difference / scale if scale > 0 else difference * float("inf") if difference != 0 else 0.0


def assert_close(actual: torch.Tensor, expected: torch.Tensor, what: str = "", tolerance: float | None = None) -> float:
    """Fails unless shapes agree and `relative_error` is within TOLERANCE of the dtype of `actual`; returns
    the error."""
    if actual.shape != expected.shape:
        raise AssertionError(f"{what}: shape {list(actual.shape)}, expected {list(expected.shape)}")
    tolerance = TOLERANCE[actual.dtype] if tolerance is None else tolerance
    error = relative_error(actual, expected)
    if not error <= tolerance:
        raise AssertionError(f"{what}: relative error {error:.1e} > {tolerance:.0e} in {actual.dtype}")
    return error


def derivatives(
    op: Callable, case: Case, dtype: torch.dtype, create_graph: bool = False, second: bool = True
) -> dict[str, torch.Tensor]:
    """Output ("out"), gradient of each operand ("d x"), and the gradient of sum <cotangent, gradient> with
    respect to the cotangent of the output and each operand ("dd out", "dd x"). create_graph: as in the last
    torch.autograd.grad."""
    operands = {n: t.detach().to(dtype).requires_grad_() for n, t in case.operands.items()}
    g = case.g.detach().to(dtype).requires_grad_()
    out = op(*operands.values())
    first = torch.autograd.grad(out, list(operands.values()), g, create_graph=second)
    result = {"out": out, **{f"d {n}": t for n, t in zip(operands, first, strict=True)}}
    if second:
        cotangents = [case.cotangents[n].to(dtype) for n in operands]
        inputs = [g, *operands.values()]
        again = torch.autograd.grad(first, inputs, cotangents, create_graph=create_graph, materialize_grads=True)
        result |= {f"dd {n}": t for n, t in zip(("out", *operands), again, strict=True)}
    return {n: t.detach() for n, t in result.items()}


def check_op(
    op: Callable,
    reference: Callable,
    case: Case,
    dtypes: Sequence[torch.dtype] = (torch.float64, torch.float32),
    second: bool = True,
) -> dict[torch.dtype, float]:
    """Compares output, gradients and second-order gradients of op(*operands) with reference(*operands) in
    float64, block by block.

    The second order runs twice: without create_graph (the fused kernel) and with create_graph=True (composed
    ops). Memory is poisoned meanwhile. Returns the largest relative error per
    dtype; raises AssertionError with every block beyond TOLERANCE.
    """
    expected = derivatives(reference, case, torch.float64, second=second)
    worst = {}
    for dtype in dtypes:
        errors = {}
        for create_graph in (False, True) if second else (False,):
            with poisoned():
                actual = derivatives(op, case, dtype, create_graph, second)
            for name, t in actual.items():
                if t.dtype != dtype or t.shape != expected[name].shape:
                    raise AssertionError(f"{name}: got {t.dtype} {list(t.shape)}")
                for block in [Block("all", ...), *case.blocks.get(name.split()[-1], [])]:
                    error = relative_error(t[block.index], expected[name][block.index])
                    errors[f"{name}, {block.name}, create_graph={create_graph}"] = error
        wrong = [f"{name}: {error:.1e}" for name, error in errors.items() if not error <= TOLERANCE[dtype]]
        if wrong:
            raise AssertionError(f"{dtype}: {len(wrong)} blocks beyond {TOLERANCE[dtype]:.0e}: {'; '.join(wrong)}")
        worst[dtype] = max(errors.values())
    return worst


def _slot_rows(plan: TensorProductPlan) -> list[tuple[int, torch.Tensor]]:
    """(output slot, the rows that get a cotangent in this slot only)."""
    slots = torch.arange(len(plan.irreps_out) * ROWS_PER_SLOT, device="cpu").view(-1, ROWS_PER_SLOT)
    return list(enumerate(slots))


def _blocks(plan: TensorProductPlan, x_rows: Callable, y_rows: Callable) -> dict[str, list[Block]]:
    """Blocks of a product. x_rows, y_rows: rows of a case -> rows of x and of y that contribute to them."""
    in1, in2, out = plan.offsets
    every = slice(None)
    blocks = {
        "out": [Block(f"slot {io} ({plan.irreps_out[io]})", (every, s)) for io, s in enumerate(out)],
        "x": [],
        "y": [],
        "w": [],
    }
    for io, rows in _slot_rows(plan):
        paths = [p for p in plan.paths if p.io == io]
        for i1 in sorted({p.i1 for p in paths}):
            name = f"share of slot {io} in x slot {i1} ({plan.irreps_in1[i1]})"
            blocks["x"].append(Block(name, (x_rows(rows), in1[i1])))
        for i2 in sorted({p.i2 for p in paths}):
            name = f"share of slot {io} in y slot {i2} ({plan.irreps_in2[i2]})"
            blocks["y"].append(Block(name, (y_rows(rows), in2[i2])))
    for n, p in enumerate(plan.paths):
        if p.has_weight:
            blocks["w"].append(Block(f"path {n}", (every, slice(p.weight_offset, p.weight_offset + p.weight_numel))))
    return blocks


def _cotangent(plan: TensorProductPlan, num_rows: int, seed: int) -> torch.Tensor:
    """[num_rows, dim_out]: the first rows in one slot only, the others everywhere."""
    g = random(num_rows, plan.dim_out, seed=seed)
    mask = torch.ones_like(g)
    for (_, rows), s in zip(_slot_rows(plan), plan.irreps_out.slices(), strict=True):
        mask[rows] = 0
        mask[rows, s] = 1
    return g * mask


def _case(plan: TensorProductPlan, num_x: int, num_y: int, num_out: int, blocks, seed: int) -> Case:
    shapes = {"x": (num_x, plan.dim_in1), "y": (num_y, plan.dim_in2), "w": (num_y, plan.weight_numel)}
    if plan.weight_numel == 0:
        del shapes["w"]
    operands = {n: random(*shape, seed=seed + k) for k, (n, shape) in enumerate(shapes.items())}
    cotangents = {n: random(*shape, seed=seed + 10 + k) for k, (n, shape) in enumerate(shapes.items())}
    return Case(operands, _cotangent(plan, num_out, seed + 20), cotangents, blocks)


def rows_case(plan: TensorProductPlan, seed: int = 0) -> Case:
    """A case for `eqtp.tensor_product`: a few rows for each output slot alone, and a few for all."""
    z = ROWS_PER_SLOT * len(plan.irreps_out) + DENSE_ROWS
    return _case(plan, z, z, z, _blocks(plan, lambda rows: rows, lambda rows: rows), seed)


def conv_case(plan: TensorProductPlan, seed: int = 0) -> tuple[Case, Graph]:
    """A case for `eqtp.tensor_product_conv`, with its bipartite graph, edges in random order.

    Each row of `rows_case` becomes a destination. Those with a cotangent in one slot have one edge, from a
    source of their own; the others have 17 edges (more than a kernel takes at a time), one edge and no edge,
    from five shared sources. One source has no edges.
    """
    alone = ROWS_PER_SLOT * len(plan.irreps_out)
    degrees = [1] * alone + [17, 1, 0]
    dst = np.repeat(np.arange(len(degrees)), degrees)  # [e]
    src = np.concatenate([np.arange(alone), alone + np.arange(len(dst) - alone) * 3 % 5])  # [e]
    shuffled = np.random.default_rng(seed).permutation(len(dst))
    edge_of = torch.from_numpy(np.argsort(shuffled))  # destination with one slot -> its edge
    src, dst = (torch.from_numpy(t[shuffled]) for t in (src, dst))
    graph = Graph(src, dst, alone + 6, len(degrees))
    blocks = _blocks(plan, lambda rows: rows, lambda rows: edge_of[rows])
    return _case(plan, graph.num_src, graph.num_edges, graph.num_dst, blocks, seed), graph


def check_tensor_product(plan: TensorProductPlan, backend: str = "auto", **options) -> dict[torch.dtype, float]:
    """`check_op` of `eqtp.tensor_product` on a random case of this plan."""

    def op(x, y, w=None):
        return rows_op.tensor_product(x, y, w, plan, backend)

    return check_op(op, lambda x, y, w=None: rows_op.reference(x, y, w, plan), rows_case(plan), **options)


def check_tensor_product_conv(plan: TensorProductPlan, backend: str = "auto", **options) -> dict[torch.dtype, float]:
    """`check_op` of `eqtp.tensor_product_conv` on a random case of this plan."""
    case, graph = conv_case(plan)

    def op(x, y, w=None):
        return conv_op.tensor_product_conv(x, y, w, plan, graph, backend)

    return check_op(op, lambda x, y, w=None: conv_op.reference(x, y, w, plan, graph), case, **options)


def random_rotation(seed: int) -> np.ndarray:
    """A uniformly random proper rotation of (x, y, z): float64 [3, 3]."""
    q, r = np.linalg.qr(np.random.default_rng(seed).standard_normal((3, 3)))
    q = q * np.sign(np.diag(r))
    return q * np.linalg.det(q)


def representation(irreps, rotation: np.ndarray) -> np.ndarray:
    """Matrix of an element of O(3) on a row of irreps (mul_ir): float64 [dim, dim].

    rotation: orthogonal [3, 3], of determinant 1 or -1. Degree by degree from D1 = rotation: D(l + 1) is the
    part of D(l) x D1 that wigner_3j(l, 1, l + 1) picks out.
    """
    irreps = Irreps(irreps)
    sign = float(np.sign(np.linalg.det(rotation)))
    proper = sign * rotation
    matrices = [np.ones((1, 1)), proper]
    for l in range(1, irreps.lmax if irreps.dim else 0):
        c = wigner_3j(l, 1, l + 1)  # [2l+1, 3, 2l+3]
        matrices.append((2 * l + 3) * np.einsum("ijm,ia,jb,abn->mn", c, matrices[l], proper, c, optimize=True))
    d = np.zeros((irreps.dim, irreps.dim))
    for s, (mul, ir) in zip(irreps.slices(), irreps, strict=True):
        d[s, s] = np.kron(np.eye(mul), matrices[ir.l] * (sign if ir.p == -1 else 1.0))
    return d


def assert_equivariant(
    f: Callable,
    inputs: Mapping | Sequence,
    irreps_out,
    elements: int = 4,
    tolerance: float | None = None,
) -> None:
    """Fails unless f(D x, ...) = D f(x, ...) for random elements of O(3): proper rotations, rotations with
    inversion, inversion alone.

    inputs: (tensor [..., dim], irreps) for each argument of f; irreps None for an argument that does not
    rotate. tolerance: relative to the largest output, by default TOLERANCE of the output's dtype.
    """
    inputs = list(inputs)
    out = f(*(t for t, _ in inputs))
    rotations = [sign * random_rotation(n) for n in range(elements) for sign in (1.0, -1.0)]
    for n, rotation in enumerate([*rotations, -np.eye(3)]):

        def rotate(t, irreps, rotation=rotation):
            return t @ torch.from_numpy(representation(irreps, rotation)).to(t).T

        rotated = f(*(t if irreps is None else rotate(t, irreps) for t, irreps in inputs))
        expected = rotate(out, irreps_out)
        kind = "rotation" if np.linalg.det(rotation) > 0 else "rotation with inversion"
        assert_close(rotated, expected, f"equivariance under {kind} {n}", tolerance)

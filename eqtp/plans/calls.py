"""How a kernel is called: which pass, with which operands, over which edges. No torch here."""

from __future__ import annotations

from enum import Enum
from typing import Any, NamedTuple

Tensor = Any  # torch.Tensor, without torch


class Pass(str, Enum):
    """A pass of an op; each equals its name, Pass.FWD == "fwd"."""

    FWD = "fwd"  # the op itself
    BWD = "bwd"  # gradients of the operands, from the cotangent g of the output
    BWDBWD = "bwdbwd"  # the second order: gradients of g and of the operands, from cotangents of BWD's outputs


class EdgeKind(Enum):
    """How the edges of a convolution are stored."""

    ROWS = "one edge per row, no graph"
    SORTED = "CSR by destination"
    UNSORTED = "any order: sums are atomic"


class Edges(NamedTuple):
    """The columns of a graph that kernels read; those that `kind` does not use are None or empty."""

    src: Tensor = None  # [e] int64
    dst: Tensor = None  # [e] int64
    ptr: Tensor = None  # [num_dst + 1] int64; UNSORTED: its size only
    order: Tensor = None  # [e] int64: edges by destination
    tptr: Tensor = None  # [num_src + 1] int64, of the transposed graph
    torder: Tensor = None  # [e] int64: edges by source
    kind: EdgeKind = EdgeKind.ROWS


ROWS = Edges()  # the product of rows


class Operands(NamedTuple):
    """The operands of a channelwise product: x of rows or nodes, y and w of rows or edges; rows contiguous."""

    x: Tensor  # [num_src, dim_in1]
    y: Tensor  # [e, dim_in2]
    w: Tensor  # [e, weight_numel]; a row stride of 0 where all edges share one
    g: Tensor = None  # [num_dst, dim_out] cotangent of the output: BWD, BWDBWD
    cx: Tensor = None  # cotangents of the gradients of x, y and w, of their shapes: BWDBWD
    cy: Tensor = None
    cw: Tensor = None
    edges: Edges = ROWS

    @property
    def tensors(self) -> list[Tensor]:
        """The operands that are not None, in order."""
        return [t for t in self[:7] if t is not None]

    def map(self, function) -> Operands:
        """The operands with function applied to each that is not None."""
        return Operands(*[None if t is None else function(t) for t in self[:7]], self.edges)


class Outputs(NamedTuple):
    """The outputs that a pass of a channelwise product fills, contiguous; None: not wanted, or not of this pass."""

    out: Tensor = None  # [num_dst, dim_out]; BWDBWD: the gradient of g
    gx: Tensor = None  # [num_src, dim_in1]
    gy: Tensor = None  # [e, dim_in2]
    gw: Tensor = None  # [e, weight_numel]


class Harmonics(NamedTuple):
    """Descriptor of the spherical harmonics to compute."""

    degrees: tuple[int, ...]
    normalize: bool
    normalization: str  # "integral", "component" or "norm"

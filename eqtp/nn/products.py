"""Products and harmonics with e3nn's constructor arguments and state_dict, on eqtp's ops."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Iterator, Sequence
from math import prod
from typing import NamedTuple

import torch

from eqtp.math.irreps import Irreps
from eqtp.nn import tables
from eqtp.nn.drawing import draw_product
from eqtp.nn.module import Module
from eqtp.ops.coefficients import as_rows
from eqtp.ops.graph import Graph, shared
from eqtp.ops.spherical_harmonics import NORMALIZATIONS, integer_degrees, spherical_harmonics
from eqtp.ops.tensor_product import tensor_product
from eqtp.ops.tensor_product_conv import tensor_product_conv
from eqtp.plans.plan import TensorProductPlan


class Instruction(NamedTuple):
    """A path as e3nn shows it in `TensorProduct.instructions`."""

    i_in1: int
    i_in2: int
    i_out: int
    connection_mode: str
    has_weight: bool
    path_weight: float  # the coefficient in front of the coupling, not what was given: `scale` of the plan's path
    path_shape: tuple[int, ...]  # of the weight that the path has, or would have


class TensorProduct(Module):
    """Tensor product with e3nn's constructor, call, methods and state_dict.

    instructions: (i_in1, i_in2, i_out, mode, has_weight[, path_weight]). in1_var, in2_var, out_var: variance of each
    block, 1 by default. internal_weights: the module owns its weights (one set, shared by all rows); by default if the
    weights are shared and there are any. shared_weights: one set for all rows; by default True. backend: see
    `eqtp.backends`. Where a weight is taken, a list with the weight of each path that has one is taken, too.

    compile_right: whether `right` can be called. normalization: e3nn's older name of irrep_normalization, which it
    replaces. compile_left_right and _specialized_code steer e3nn's code generation: here they say only which coupling
    tables stand in the state_dict, as in e3nn's; _optimize_einsums does nothing.

    Attributes as in e3nn: irreps_in1, irreps_in2, irreps_out, instructions, weight_numel, internal_weights,
    shared_weights, weight, output_mask. And `plan`, the `TensorProductPlan`.

    Raises ValueError for instructions that are not a tensor product, internal weights that are not shared, and weights
    of another shape than shared_weights says.

    Source: e3nn.o3.TensorProduct.
    """

    def __init__(
        self,
        irreps_in1,
        irreps_in2,
        irreps_out,
        instructions: Iterable[tuple],
        in1_var=None,
        in2_var=None,
        out_var=None,
        irrep_normalization: str | None = None,
        path_normalization: str | None = None,
        internal_weights: bool | None = None,
        shared_weights: bool | None = None,
        compile_left_right: bool = True,
        compile_right: bool = False,
        normalization: str | None = None,
        _specialized_code: bool | None = None,
        _optimize_einsums: bool | None = None,
        backend: str = "auto",
    ):
        super().__init__()
        if normalization is not None:
            text = "`normalization` is deprecated. Use `irrep_normalization` instead."
            warnings.warn(text, DeprecationWarning, stacklevel=2)
            irrep_normalization = normalization
        normalizations = irrep_normalization or "component", path_normalization or "element"
        variances = {"in1_var": in1_var, "in2_var": in2_var, "out_var": out_var}
        plan = TensorProductPlan(irreps_in1, irreps_in2, irreps_out, instructions, *normalizations, **variances)
        shared_weights = True if shared_weights is None else shared_weights
        if internal_weights is None:
            internal_weights = shared_weights and any(path.has_weight for path in plan.paths)
        if internal_weights and not shared_weights:
            raise ValueError(
                f"{type(self).__name__}: internal weights are shared by all rows; shared_weights must not be False"
            )
        self._set_plan(plan, internal_weights, shared_weights, backend)
        self._did_compile_right = compile_right
        specialised = _specialized_code is not False
        self.add_module(
            tables.FORWARD, tables.KeptTables(tables.tables_of(plan, specialised) if compile_left_right else {})
        )
        self.add_module(
            tables.RIGHT, tables.KeptTables(tables.tables_of(plan, specialised, right=True) if compile_right else {})
        )
        if internal_weights and plan.weight_numel:
            self.weight = torch.nn.Parameter(torch.randn(plan.weight_numel))  # [numel]
        else:
            self.register_buffer("weight", torch.Tensor())
        self.register_buffer("output_mask", torch.tensor(plan.output_mask, dtype=torch.get_default_dtype()))

    def _set_plan(self, plan: TensorProductPlan, internal_weights: bool, shared_weights: bool, backend: str):
        self.plan, self.backend = plan, backend
        self.irreps_in1, self.irreps_in2, self.irreps_out = plan.irreps_in1, plan.irreps_in2, plan.irreps_out
        self.weight_numel, self.internal_weights, self.shared_weights = (
            plan.weight_numel,
            internal_weights,
            shared_weights,
        )
        self.instructions = [
            Instruction(p.i1, p.i2, p.io, p.mode, p.has_weight, p.scale, p.path_shape) for p in plan.paths
        ]

    def _weights(self, weight: torch.Tensor | Sequence[torch.Tensor] | None) -> torch.Tensor | None:
        """[..., numel] given by the caller, flat or path by path, or the module's own [numel]."""
        name, n = type(self).__name__, self.weight_numel
        if isinstance(weight, (list, tuple)):
            weight = self._joined(weight)
        if weight is None:
            if n and not self.internal_weights:
                raise ValueError(f"{name}: weight must be given, [..., {n}]; the module has none of its own")
            return self.weight if n else None
        if weight.ndim < 1 or weight.shape[-1] != n:
            raise ValueError(f"{name}: weight must be [..., {n}], got {list(weight.shape)}")
        self._check_rows(weight)
        return weight

    def _check_rows(self, weight: torch.Tensor) -> None:
        """One set [numel] of shared weights, else [..., numel] with a dimension of rows at least."""
        if (weight.ndim == 1) != self.shared_weights:
            form = f"[{self.weight_numel}]" if self.shared_weights else f"[..., rows, {self.weight_numel}]"
            raise ValueError(
                f"{type(self).__name__}: weight must be {form} where shared_weights={self.shared_weights}, "
                f"got {list(weight.shape)}"
            )

    def _joined(self, weights: Sequence[torch.Tensor]) -> torch.Tensor | None:
        """[..., numel] of the weights of the paths, each [..., *path_shape] or [..., path_numel]; None of no paths."""
        name, shapes = type(self).__name__, [ins.path_shape for ins in self.instructions if ins.has_weight]
        if len(weights) != len(shapes):
            raise ValueError(
                f"{name}: weight must be a tensor or a list of {len(shapes)}, one for each path with a weight, "
                f"got {len(weights)}"
            )
        flat = []
        for n, (w, shape) in enumerate(zip(weights, shapes, strict=True)):
            lead = len(w.shape) - len(shape)
            if self.shared_weights and w.numel() == prod(shape):
                flat.append(w.reshape(prod(shape)))
            elif not self.shared_weights and lead >= 0 and tuple(w.shape[lead:]) == shape:
                flat.append(w.reshape(*w.shape[:lead], prod(shape)))
            elif not self.shared_weights and w.ndim and w.shape[-1] == prod(shape):
                flat.append(w)
            else:
                dots = "" if self.shared_weights else "..., "
                raise ValueError(
                    f"{name}: weight[{n}] must be [{dots}{', '.join(map(str, shape))}], got {list(w.shape)}"
                )
        return torch.cat(flat, dim=-1) if flat else None

    def weight_views(self, weight=None, yield_instruction: bool = False) -> Iterator:
        """A view [..., *path_shape] of the weight of each path that has one; with yield_instruction (index of the path,
        its `Instruction`, view). weight: as in a call; by default the module's own."""
        weight = self._weights(weight)
        for n, (ins, path) in enumerate(zip(self.instructions, self.plan.paths, strict=True)):
            if ins.has_weight:
                view = self._view(path, weight)
                yield (n, ins, view) if yield_instruction else view

    def weight_view_for_instruction(self, instruction: int, weight=None) -> torch.Tensor:
        """The view [..., *path_shape] of the weight of one path. Raises ValueError if it has none."""
        if not self.instructions[instruction].has_weight:
            raise ValueError(f"{type(self).__name__}: instruction {instruction} has no weight")
        return self._view(self.plan.paths[instruction], self._weights(weight))

    def _view(self, path, weight: torch.Tensor | None) -> torch.Tensor:
        """[..., numel] -> [..., *path_shape]; no weight if all are of size zero."""
        weight = self.weight if weight is None else weight
        part = weight.narrow(-1, path.weight_offset, path.weight_numel)
        return part.view(*weight.shape[:-1], *path.weight_shape)

    def right(self, y: torch.Tensor, weight=None) -> torch.Tensor:
        """The product with y as matrices: y [..., dim_in2] -> m [..., dim_in1, dim_out], where
        ``torch.einsum("...i,...ik->...k", x, m)`` is the product of x and y.

        Runs the product on the rows of the identity: it takes the time and the memory of dim_in1 calls. Raises
        RuntimeError for a module that was made without compile_right.
        """
        if not self._did_compile_right:
            raise RuntimeError(f"{type(self).__name__}: for right() make the module with compile_right=True")
        weight = self._weights(weight)
        if weight is not None and weight.ndim > 1:
            weight = weight.unsqueeze(-2)  # [..., 1, numel]
        x = torch.eye(self.plan.dim_in1, dtype=y.dtype, device=y.device)  # [dim_in1, dim_in1]
        return TensorProduct.forward(self, x, y.unsqueeze(-2), weight)

    def visualize(self, weight=None, plot_weight: bool = True, aspect_ratio=1, ax=None):
        """Draws which blocks the paths couple, those with a weight the darker the larger its mean square.

        weight: as in a call. plot_weight: without it, or without weights to show, such paths are green. aspect_ratio,
        ax and errors: see `eqtp.nn.drawing.draw_product`. Returns (figure, axes) of matplotlib.
        """
        strengths = None
        if plot_weight and (weight is not None or self.internal_weights):
            squares = {n: w.detach().square().mean().item() for n, _, w in self.weight_views(weight, True)}
            largest = max(squares.values(), default=0) or 1
            strengths = [squares.get(n, 0) / largest for n in range(len(self.instructions))]
        paths = [(*ins[:3], ins.has_weight) for ins in self.instructions]
        return draw_product((self.irreps_in1, self.irreps_in2, self.irreps_out), paths, strengths, aspect_ratio, ax)

    def forward(self, x: torch.Tensor, y: torch.Tensor, weight: torch.Tensor | None = None) -> torch.Tensor:
        """x [..., dim_in1], y [..., dim_in2], weight [numel] or [..., numel] -> [..., dim_out]; leading dimensions
        broadcast."""
        weight = self._weights(weight)
        per_row = weight is not None and weight.ndim > 1
        lead = torch.broadcast_shapes(x.shape[:-1], y.shape[:-1], weight.shape[:-1] if per_row else ())

        def rows(t):
            return as_rows(t.expand(*lead, t.shape[-1]))

        out = tensor_product(rows(x), rows(y), rows(weight) if per_row else weight, self.plan, self.backend)
        return out.reshape(*lead, self.plan.dim_out)

    def __repr__(self) -> str:
        p, paths = self.plan, sum(prod(path.path_shape) for path in self.plan.paths)
        product = f"{p.irreps_in1.simplify()} x {p.irreps_in2.simplify()} -> {p.irreps_out.simplify()}"
        return f"{type(self).__name__}({product} | {paths} paths | {p.weight_numel} weights)"


class TensorProductConv(TensorProduct):
    """Tensor product convolution: `TensorProduct` of each edge's source features with its edge features, summed over
    the edges into each destination.

    Constructor and state_dict as `TensorProduct`; by default the weights come from outside, one set per edge.
    """

    def __init__(
        self,
        irreps_in1,
        irreps_in2,
        irreps_out,
        instructions: Iterable[tuple],
        in1_var=None,
        in2_var=None,
        out_var=None,
        irrep_normalization: str | None = None,
        path_normalization: str | None = None,
        internal_weights: bool | None = False,
        shared_weights: bool | None = False,
        *args,
        **kwargs,
    ):
        product = irreps_in1, irreps_in2, irreps_out, instructions
        options = in1_var, in2_var, out_var, irrep_normalization, path_normalization
        super().__init__(*product, *options, internal_weights, shared_weights, *args, **kwargs)

    def _check_rows(self, weight: torch.Tensor) -> None:
        """One set for all edges or one set each, whatever shared_weights says."""

    def forward(
        self,
        x: torch.Tensor,
        y: torch.Tensor,
        weight: torch.Tensor | None = None,
        edge_src: torch.Tensor | None = None,
        edge_dst: torch.Tensor | None = None,
        num_dst: int | None = None,
        graph: Graph | None = None,
    ) -> torch.Tensor:
        """x [num_src, dim_in1], y [e, dim_in2], weight [e, numel] or [numel] -> [num_dst, dim_out].

        The edges are edge_src, edge_dst [e] (int32 or int64; num_dst is x's length by default), or a `Graph`.
        """
        if graph is None:
            if edge_src is None or edge_dst is None:
                raise ValueError("TensorProductConv: give edge_src and edge_dst, or a graph")
            graph = shared(edge_src, edge_dst, x.shape[0], x.shape[0] if num_dst is None else num_dst)
        return tensor_product_conv(x, y, self._weights(weight), self.plan, graph, self.backend)


class SphericalHarmonics(Module):
    """Spherical harmonics of vectors [..., 3], as `eqtp.spherical_harmonics`. Source: e3nn.o3.SphericalHarmonics.

    irreps_out: int, list of ints, or irreps. normalize: use the direction only. normalization: "integral", "component"
    or "norm". irreps_in: "1o" for vectors, "1e" for pseudovectors; by default "1e" if an odd degree of irreps_out is
    even under inversion, else "1o".

    Raises ValueError for another irreps_in or normalization, or an irrep that is no harmonic of irreps_in.
    """

    def __init__(
        self, irreps_out, normalize: bool, normalization: str = "integral", irreps_in=None, backend: str = "auto"
    ):
        super().__init__()
        if normalization not in NORMALIZATIONS:
            known = ", ".join(map(repr, NORMALIZATIONS))
            raise ValueError(f"SphericalHarmonics: normalization must be one of {known}, got {normalization!r}")
        degrees = integer_degrees(irreps_out)
        if degrees is None:
            irreps_out = Irreps(irreps_out)
            if irreps_in is None and any(ir.l % 2 == 1 and ir.p == 1 for _, ir in irreps_out):
                irreps_in = "1e"
        self.irreps_in = Irreps("1o" if irreps_in is None else irreps_in)
        if str(self.irreps_in) not in ("1x1o", "1x1e"):
            raise ValueError(f"SphericalHarmonics: irreps_in must be 1o or 1e, got {irreps_in}")
        parity = self.irreps_in[0].ir.p
        if degrees is None:
            for _, ir in irreps_out:
                if ir.p != parity**ir.l:
                    raise ValueError(f"SphericalHarmonics: a vector of parity {parity} has no spherical harmonic {ir}")
            degrees = [ir.l for mul, ir in irreps_out for _ in range(mul)]
        self.degrees = list(degrees)
        self.irreps_out = Irreps([(1, (l, parity**l)) for l in degrees]).simplify()
        self.normalize, self.normalization, self.backend = normalize, normalization, backend

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """x [..., 3] -> [..., irreps_out.dim]"""
        return spherical_harmonics(self.degrees, x, self.normalize, self.normalization, self.backend)

    def extra_repr(self) -> str:
        return f"{self.irreps_out}, normalize={self.normalize}, normalization={self.normalization!r}"

"""Products and harmonics with e3nn's constructor arguments and state_dict, on eqtp's ops."""

from __future__ import annotations

from collections.abc import Iterable

import torch

from eqtp.math.irreps import Irreps
from eqtp.math.so3 import wigner_3j
from eqtp.ops.coefficients import as_rows
from eqtp.ops.graph import Graph, shared
from eqtp.ops.spherical_harmonics import spherical_harmonics
from eqtp.ops.tensor_product import tensor_product
from eqtp.ops.tensor_product_conv import tensor_product_conv
from eqtp.plans.plan import TensorProductPlan


class TensorProduct(torch.nn.Module):
    """Tensor product with e3nn's constructor, call and state_dict (`weight`, `output_mask`).

    instructions: (i_in1, i_in2, i_out, mode, has_weight[, path_weight]). internal_weights: the module owns its weights
    (one set, shared by all rows); by default if the weights are shared and there are any. shared_weights: one set for
    all rows; by default True. backend: see `eqtp.backends`.

    Raises ValueError for instructions that are not a tensor product, or internal weights that are not shared.

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
        backend: str = "auto",
    ):
        super().__init__()
        plan = TensorProductPlan(
            irreps_in1,
            irreps_in2,
            irreps_out,
            instructions,
            irrep_normalization or "component",
            path_normalization or "element",
            in1_var=in1_var,
            in2_var=in2_var,
            out_var=out_var,
        )
        if shared_weights is None:
            shared_weights = True
        if internal_weights is None:
            internal_weights = shared_weights and plan.weight_numel > 0
        if internal_weights and not shared_weights:
            raise ValueError(
                f"{type(self).__name__}: internal weights are shared by all rows; shared_weights must not be False"
            )
        self._set_plan(plan, internal_weights, shared_weights, backend)
        if internal_weights and plan.weight_numel:
            self.weight = torch.nn.Parameter(torch.randn(plan.weight_numel))
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

    def _load_from_state_dict(
        self, state_dict, prefix, local_metadata, strict, missing_keys, unexpected_keys, error_msgs
    ):
        """The coupling tables in an e3nn state_dict are compared with ours (their signs changed in e3nn 0.5), not
        loaded."""
        for key in [k for k in state_dict if k.startswith(f"{prefix}_compiled_main_") and "._w3j_" in k]:
            table, degrees = state_dict.pop(key), [int(l) for l in key.rpartition("_w3j_")[2].split("_")]
            if (table.cpu().double() - torch.tensor(wigner_3j(*degrees))).abs().max() > 1e-5:
                error_msgs.append(
                    f"{key} is not the coupling of e3nn >= 0.5; the weights were trained with other signs"
                )
        super()._load_from_state_dict(
            state_dict, prefix, local_metadata, strict, missing_keys, unexpected_keys, error_msgs
        )

    def _weights(self, weight: torch.Tensor | None) -> torch.Tensor | None:
        """[..., numel] given by the caller, or the module's own [numel]."""
        name = type(self).__name__
        if weight is None:
            if self.weight_numel and not self.internal_weights:
                raise ValueError(
                    f"{name}: weight must be given, [..., {self.weight_numel}]; the module has none of its own"
                )
            return self.weight if self.weight_numel else None
        if weight.ndim < 1 or weight.shape[-1] != self.weight_numel:
            raise ValueError(f"{name}: weight must be [..., {self.weight_numel}], got {list(weight.shape)}")
        return weight

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

    def extra_repr(self) -> str:
        p = self.plan
        return f"{p.irreps_in1} x {p.irreps_in2} -> {p.irreps_out} | {len(p.paths)} paths | {p.weight_numel} weights"


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
        instructions,
        *args,
        internal_weights=False,
        shared_weights=False,
        **kwargs,
    ):
        super().__init__(
            irreps_in1,
            irreps_in2,
            irreps_out,
            instructions,
            *args,
            internal_weights=internal_weights,
            shared_weights=shared_weights,
            **kwargs,
        )

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


class SphericalHarmonics(torch.nn.Module):
    """Spherical harmonics of vectors [..., 3], as `eqtp.spherical_harmonics`. Source: e3nn.o3.SphericalHarmonics.

    irreps_out: int, list of ints, or irreps. normalize: use the direction only. normalization: "integral", "component"
    or "norm".
    """

    def __init__(
        self, irreps_out, normalize: bool, normalization: str = "integral", irreps_in=None, backend: str = "auto"
    ):
        super().__init__()
        parity = -1 if irreps_in is None else Irreps(irreps_in)[0].ir.p
        if isinstance(irreps_out, int):
            irreps_out = [irreps_out]
        if type(irreps_out) in (list, tuple) and all(isinstance(l, int) for l in irreps_out):
            irreps_out = [(1, (l, parity**l)) for l in irreps_out]
        self.irreps_in, self.irreps_out = Irreps([(1, (1, parity))]), Irreps(irreps_out)
        for _, ir in self.irreps_out:
            if ir.p != parity**ir.l:
                raise ValueError(f"SphericalHarmonics: a vector of parity {parity} has no spherical harmonic {ir}")
        self.degrees = [ir.l for mul, ir in self.irreps_out for _ in range(mul)]
        self.normalize, self.normalization, self.backend = normalize, normalization, backend

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """x [..., 3] -> [..., irreps_out.dim]"""
        return spherical_harmonics(self.degrees, x, self.normalize, self.normalization, self.backend)

    def extra_repr(self) -> str:
        return f"{self.irreps_out}, normalize={self.normalize}, normalization={self.normalization!r}"

"""From e3nn modules to eqtp's: the same function, the same parameter and buffer objects, the same state_dict.

e3nn is not a dependency: it is imported only inside functions that are handed an object of it.
"""

from __future__ import annotations

import torch

import eqtp.nn
from eqtp.integrations.seam import Seam, own_forward, seam_of, seams
from eqtp.math.so3 import wigner_3j
from eqtp.nn.tables import FORWARD, RIGHT, KeptTables
from eqtp.plans.plan import TensorProductPlan

LIBRARY = "e3nn"
# of TensorProduct
SUBCLASSES = (
    "FullyConnectedTensorProduct",
    "FullTensorProduct",
    "ElementwiseTensorProduct",
    "TensorSquare",
)


class TensorSquare(eqtp.nn.TensorProduct):
    """Tensor product of x [..., dim_in1] with itself, as e3nn.o3.TensorSquare."""

    def forward(self, x, weight=None):
        return super().forward(x, x, weight)

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.irreps_in1} -> {super().__repr__().partition(' -> ')[2]}"


def plan_from_e3nn(tp) -> TensorProductPlan:
    """The plan of an e3nn.o3.TensorProduct (or subclass), with the coefficients that it has.

    e3nn keeps the final coefficient of each path in ``instructions``; its square is the path weight of a plan
    without normalization. Raises TypeError for anything else.
    """
    if not hasattr(tp, "instructions") or not hasattr(tp, "irreps_in2"):
        raise TypeError(f"plan_from_e3nn: expected an e3nn TensorProduct, got {type(tp).__name__}")
    instructions = [
        (ins.i_in1, ins.i_in2, ins.i_out, ins.connection_mode, ins.has_weight, float(ins.path_weight) ** 2)
        for ins in tp.instructions
    ]
    return TensorProductPlan(tp.irreps_in1, tp.irreps_in2, tp.irreps_out, instructions, "none", "none")


def from_e3nn(module, backend: str = "auto") -> torch.nn.Module:
    """The eqtp module that does what this module of e3nn does: a product, harmonics, or one of `e3nn_layers`.

    It holds the same Parameter and buffer objects under the same names, and the attributes that users read
    (``irreps_in1``, ``irreps_out``, ``instructions``, ``weight_numel``, ...). Raises TypeError for other
    modules, ValueError for what eqtp cannot do (a subclass with its own ``forward`` or other methods).
    """
    seam = seam_of(module)
    known = {name: found for (library, name), found in seams().items() if library == LIBRARY}
    if seam not in known.values():
        raise TypeError(f"from_e3nn: expected one of e3nn's {', '.join(known)}, got {type(module).__name__}")
    reason = seam.reason(module)
    if reason:
        raise ValueError(f"from_e3nn: {type(module).__name__} cannot be converted: {reason}")
    return seam.convert(module, backend)


def share_state(source: torch.nn.Module, target: torch.nn.Module) -> None:
    """Give ``target`` the Parameters and buffers of ``source``; raises KeyError if one is missing."""
    for kind in ("_parameters", "_buffers"):
        for path, module in target.named_modules():
            store = getattr(module, kind)  # of a scripted module: a wrapper that accepts item assignment
            for name in [name for name, tensor in store.items() if tensor is not None]:
                store[name] = getattr(source.get_submodule(path), kind)[name]


def exact_tables(module: torch.nn.Module) -> list[str]:
    """Write exact Clebsch-Gordan coefficients into the float64 buffers of the e3nn products in ``module``.

    A model that was built or saved in float32 and then cast to float64 carries an error of 6e-8 otherwise. A
    buffer holds the coefficients alone, or (in a copy of an e3nn module) times a path's factor; only one that
    agrees with that to 1e-6 is touched. Returns the names of the others: they follow another convention.
    """
    others = []
    for path, tp in module.named_modules():
        if seam_of(tp) is not SEAMS["TensorProduct"]:
            continue
        factors = {1.0, *(float(ins.path_weight) for ins in tp.instructions)}
        for name, buffer in tp.named_buffers(prefix=path):
            if buffer.ndim != 3 or buffer.dtype != torch.float64:
                continue
            exact = _exact_table(buffer, factors)
            if exact is None:
                others.append(name)
            else:
                with torch.no_grad():
                    buffer.copy_(exact)
    return others


def _exact_table(buffer: torch.Tensor, factors: set[float]) -> torch.Tensor | None:
    """The coefficients, times one of the factors, that the buffer [2*l1+1, 2*l2+1, 2*l3+1] holds rounded."""
    l1, l2, l3 = ((n - 1) // 2 for n in buffer.shape)
    if tuple(buffer.shape) != (2 * l1 + 1, 2 * l2 + 1, 2 * l3 + 1) or not abs(l1 - l2) <= l3 <= l1 + l2:
        return None
    table = torch.tensor(wigner_3j(l1, l2, l3), device=buffer.device)
    close = (f * table for f in factors if (f * table - buffer).abs().max() < 1e-6 * max(1.0, f))
    return next(close, None)


def convert_tensor_product(tp, backend: str = "auto", cls: type | None = None) -> torch.nn.Module:
    """eqtp module of class ``cls`` with the plan and the state of an e3nn TensorProduct."""
    square = type(tp).__name__ == "TensorSquare"
    cls = cls or (TensorSquare if square else eqtp.nn.TensorProduct)
    plan = plan_from_e3nn(tp)
    instructions = [(p.i1, p.i2, p.io, p.mode, p.has_weight, p.path_weight) for p in plan.paths]
    module = cls(
        tp.irreps_in1, tp.irreps_in2, tp.irreps_out, instructions,
        irrep_normalization="none", path_normalization="none",
        internal_weights=tp.internal_weights, shared_weights=tp.shared_weights, backend=backend,
        compile_left_right=False, compile_right=getattr(tp, "_did_compile_right", False),
    )  # fmt: skip
    for name, child in tp.named_children():
        module.add_module(name, KeptTables(dict(child.named_buffers())))
    return convert_with(tp, module)


def convert_with(original: torch.nn.Module, module: torch.nn.Module) -> torch.nn.Module:
    """The replacement ``module`` with state, attributes, hooks and mode of the original."""
    share_state(original, module)
    keep_attributes(original, module)
    return module


def keep_attributes(original: torch.nn.Module, module: torch.nn.Module) -> None:
    """Carry over the training flag, the hooks on forward and backward, and the public attributes."""
    for name, value in original.__dict__.items():
        hook = "ward_" in name and "hook" in name
        if hook or not (name.startswith("_") or callable(value)):
            module.__dict__[name] = value


def own_methods(module) -> str | None:
    """Why a module does or offers what e3nn's does not, as a phrase, or None."""
    if reason := own_forward(module):
        return reason
    classes = [
        cls for cls in type(module).__mro__ if cls.__module__.split(".")[0] not in (LIBRARY, "torch", "builtins")
    ]
    for name, value in ((name, value) for cls in classes for name, value in vars(cls).items()):
        method = callable(value) or isinstance(value, (property, classmethod, staticmethod))
        if method and (not name.startswith("_") or name == "_get_weights"):
            return f"its class {type(module).__name__} has its own {name}"
    return None


def _reason_tensor_product(tp) -> str | None:
    if reason := own_methods(tp):
        return reason
    known = {"weight", "output_mask", FORWARD, RIGHT}
    extra = [name for name in (*tp._parameters, *tp._buffers, *tp._modules) if name not in known]
    if extra:
        return f"it holds something of its own: {', '.join(extra)}"
    if not tp.instructions:
        return "it has no paths, there is nothing to compute"
    if "is not compiled" in getattr(getattr(tp, FORWARD, None), "code", ""):
        return "it was built with compile_left_right=False and has no forward to compare with"
    return None


def _probe_tensor_product(tp, generator: torch.Generator) -> list[torch.Tensor]:
    rows, where = 6, {"generator": generator, "device": generator.device}
    inputs = [torch.randn(rows, irreps.dim, **where) for irreps in (tp.irreps_in1, tp.irreps_in2)]
    if type(tp).__name__ == "TensorSquare":
        del inputs[1]
    if not tp.internal_weights and tp.weight_numel > 0:
        shape = (tp.weight_numel,) if tp.shared_weights else (rows, tp.weight_numel)
        inputs.append(torch.randn(shape, **where))  # [numel] or [z, numel]
    return inputs


def _convert_spherical_harmonics(sh, backend: str = "auto") -> torch.nn.Module:
    module = eqtp.nn.SphericalHarmonics(sh.irreps_out, sh.normalize, sh.normalization, sh.irreps_in, backend=backend)
    keep_attributes(sh, module)
    return module


def _reason_spherical_harmonics(sh) -> str | None:
    return own_methods(sh)


def _probe_spherical_harmonics(sh, generator: torch.Generator) -> list[torch.Tensor]:
    return [torch.randn(6, 3, generator=generator, device=generator.device)]  # [z, 3]


def _call(module, inputs):
    return module(*inputs)


SEAMS = {
    "TensorProduct": Seam(
        "tensor_product", _reason_tensor_product, plan_from_e3nn, convert_tensor_product, _probe_tensor_product, _call
    ),
    "SphericalHarmonics": Seam(
        "spherical_harmonics",
        _reason_spherical_harmonics,
        lambda sh: None,
        _convert_spherical_harmonics,
        _probe_spherical_harmonics,
        _call,
    ),
}

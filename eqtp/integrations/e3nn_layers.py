"""e3nn's layers around the product, as eqtp's: `Linear`, `Gate`, `NormActivation`, `Activation`, `Extract`, and the
`FullyConnectedNet` that makes radial weights. Plain torch with fewer passes over the data; what is not faster is kept.
"""

from __future__ import annotations

from itertools import pairwise

import torch

import eqtp.nn
from eqtp.integrations.e3nn import convert_with, keep_attributes, own_methods
from eqtp.integrations.seam import Seam, has_hooks, seam_of
from eqtp.nn.activation import Normalized
from eqtp.nn.tables import KeptTables
from eqtp.plans.plan import TensorProductPlan

LIBRARY = "e3nn"
ROWS = 6  # of a probe


def _foreign(module: torch.nn.Module, name: str) -> str | None:
    """Why a part of an e3nn module cannot be taken over with it, as a phrase, or None."""
    if type(module).__module__.split(".")[0] != LIBRARY:
        return f"its {name} is a {type(module).__name__} of {type(module).__module__}"
    if has_hooks(module):
        return f"its {name} has hooks"
    reason = own_methods(module)
    return reason and f"its {name} has something of its own: {reason}"


def _foreign_parts(module: torch.nn.Module, names: tuple[str, ...]) -> str | None:
    parts = ((name, module.get_submodule(name)) for name in names)
    return next((reason for name, part in parts if (reason := _foreign(part, name))), None)


def _foreign_acts(acts, name: str) -> str | None:
    return next((reason for act in acts if act is not None and (reason := _foreign(act, name))), None)


def _normalized(act) -> Normalized | None:
    """e3nn's normalize2mom: the function and the constant that it has."""
    return None if act is None else Normalized(act.f, act.cst)


def _keep_tables(product, kept: torch.nn.Module) -> None:
    """The tables of a product of e3nn, for the state_dict."""
    for name, child in product.named_children():
        kept.add_module(name, KeptTables(dict(child.named_buffers())))


def _random(generator: torch.Generator, *shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=generator, device=generator.device)


def _probe(module, generator: torch.Generator) -> list[torch.Tensor]:
    return [_random(generator, ROWS, module.irreps_in.dim)]  # [z, dim_in]


def _call(module, inputs) -> torch.Tensor:
    out = module(*inputs)
    return torch.cat(out, -1) if isinstance(out, tuple) else out


# ------------------------------------------------------------------------ Linear
def plan_of_linear(linear) -> TensorProductPlan:
    """A linear layer as a product with one scalar: its slots and where the weights of its paths lie."""
    paths = [(ins.i_in, 0, ins.i_out, "uvw", True) for ins in linear.instructions if ins.i_in >= 0]
    return TensorProductPlan(linear.irreps_in, "0e", linear.irreps_out, paths, "none", "none")


def _reason_linear(linear) -> str | None:
    if reason := own_methods(linear):
        return reason
    known = {"weight", "bias", "output_mask", "_compiled_main"}
    extra = [name for name in (*linear._parameters, *linear._buffers, *linear._modules) if name not in known]
    if extra:
        return f"it holds something of its own: {', '.join(extra)}"
    if all(0 in ins.path_shape for ins in linear.instructions):
        return "it has no paths, there is nothing to compute"
    if linear.weight.ndim > 1:
        return "it has f_in and f_out, which eqtp.nn.Linear does not"
    if linear.bias_numel or not linear.internal_weights:
        like = linear.output_mask
        inputs = [t.to(like) for t in _probe_linear(linear, torch.Generator().manual_seed(0))]
        try:
            linear(*inputs)
        except (RuntimeError, ValueError, IndexError):  # it has f_in, which e3nn does not keep, or a bias alone
            return f"it cannot be called with {ROWS} rows of features"
    return None


def _convert_linear(linear, backend: str) -> torch.nn.Module:
    biased = {ins.i_out for ins in linear.instructions if ins.i_in < 0}
    module = eqtp.nn.Linear(
        linear.irreps_in, linear.irreps_out,
        internal_weights=linear.internal_weights, shared_weights=linear.shared_weights,
        instructions=[ins[:2] for ins in linear.instructions if ins.i_in >= 0],
        biases=[i in biased for i in range(len(linear.irreps_out))],
    )  # fmt: skip
    module = convert_with(linear, module)
    module._set_instructions(linear.instructions)  # with the factors that it has
    return module


def _probe_linear(linear, generator: torch.Generator) -> list[torch.Tensor]:
    inputs = _probe(linear, generator)
    if not linear.internal_weights:
        lead = () if linear.shared_weights else (ROWS,)
        inputs += [_random(generator, *lead, linear.weight_numel), _random(generator, linear.bias_numel)]
    return inputs


# ------------------------------------------------------------------------ activations, gates
def _reason_activation(module) -> str | None:
    if reason := own_methods(module) or _foreign_acts(module.acts, "acts"):
        return reason
    acts = [_normalized(act) for act in module.acts]
    if not any(a is b or (a is not None and a.same_as(b)) for a, b in pairwise(acts)):
        return "e3nn's is as fast: no neighbours have the same function"
    return None


def _convert_activation(module, backend: str) -> torch.nn.Module:
    acts = [_normalized(act) for act in module.acts]
    return convert_with(module, eqtp.nn.Activation(module.irreps_in, acts))


def _reason_gate(gate) -> str | None:
    parts = "sc", "act_scalars", "act_gates", "mul"
    acts = (*gate.act_scalars.acts, *gate.act_gates.acts)
    return own_methods(gate) or _foreign_parts(gate, parts) or _foreign_acts(acts, "acts")


def _convert_gate(gate, backend: str) -> torch.nn.Module:
    scalars, gates = gate.act_scalars, gate.act_gates
    acts = [[_normalized(act) for act in part.acts] for part in (scalars, gates)]
    module = eqtp.nn.Gate(scalars.irreps_in, acts[0], gates.irreps_in, acts[1], gate.irreps_gated)
    _keep_tables(gate.mul, module.mul)
    module.irreps_in, module.irreps_out = gate.irreps_in, gate.irreps_out  # properties there
    return convert_with(gate, module)


def _reason_norm_activation(module) -> str | None:
    return own_methods(module) or _foreign_parts(module, ("norm", "norm.tp", "scalar_multiplier"))


def _convert_norm_activation(module, backend: str) -> torch.nn.Module:
    options = module.scalar_nonlinearity, module.normalize, module.epsilon, module.bias
    converted = eqtp.nn.NormActivation(module.irreps_in, *options)
    _keep_tables(module.norm.tp, converted.norm.tp)
    _keep_tables(module.scalar_multiplier, converted.scalar_multiplier)
    return convert_with(module, converted)


def _reason_extract(module) -> str | None:
    if not module.irreps_outs:
        return "it has no outputs, there is nothing to compute"
    if tuple(range(len(module.irreps_in))) in module.instructions:
        return "e3nn's is as fast: an output is the whole input"
    return own_methods(module)


def _convert_extract(module, backend: str) -> torch.nn.Module:
    squeeze = isinstance(module(torch.zeros(1, module.irreps_in.dim)), torch.Tensor)
    made = eqtp.nn.Extract(module.irreps_in, module.irreps_outs, module.instructions, squeeze)
    return convert_with(module, made)


# ------------------------------------------------------------------------ FullyConnectedNet
def reason_radial(net) -> str | None:
    """Why a FullyConnectedNet of e3nn is kept, as a phrase, or None."""
    if reason := own_methods(net):
        return reason
    names = [f"layer{n}" for n in range(len(net.hs) - 1)]
    if not names or list(net._modules) != names:
        return "its layers are not those that e3nn makes"
    acts = [net.get_submodule(name).act for name in names]
    return _foreign_parts(net, tuple(names)) or _foreign_acts(acts, "act")


def radial(net, backend: str = "auto"):
    """`convert_radial` where that can be done; other networks as they are."""
    known = seam_of(net) is SEAMS["FullyConnectedNet"] and reason_radial(net) is None
    return convert_radial(net, backend) if known else net


def convert_radial(net, backend: str = "auto") -> torch.nn.Module:
    """The eqtp module that does what this FullyConnectedNet of e3nn does, with its parameters."""
    module = eqtp.nn.FullyConnectedNet(net.hs)
    for ours, theirs in zip(module, net, strict=True):
        ours.act = _normalized(theirs.act)
        keep_attributes(theirs, ours)
    return convert_with(net, module)


def _probe_radial(net, generator: torch.Generator) -> list[torch.Tensor]:
    return [_random(generator, ROWS, net.hs[0])]  # [z, hs[0]]


def _no_plan(module) -> None:
    return None


SEAMS = {
    "Linear": Seam(None, _reason_linear, plan_of_linear, _convert_linear, _probe_linear, _call),
    "Activation": Seam(None, _reason_activation, _no_plan, _convert_activation, _probe, _call),
    "Gate": Seam(None, _reason_gate, _no_plan, _convert_gate, _probe, _call),
    "NormActivation": Seam(None, _reason_norm_activation, _no_plan, _convert_norm_activation, _probe, _call),
    "Extract": Seam(None, _reason_extract, _no_plan, _convert_extract, _probe, _call),
    "FullyConnectedNet": Seam(None, reason_radial, _no_plan, convert_radial, _probe_radial, _call),
}

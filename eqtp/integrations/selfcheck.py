"""The self-check of `eqtp.accelerate`: a replacement is accepted only if its numbers agree (R1, R3, R24)."""

from __future__ import annotations

import copy
from collections.abc import Iterator

import torch

from eqtp.integrations.e3nn import exact_tables

# Largest difference from the original in float64 that a module may show, relative to the scale of a tensor.
# float64: what e3nn's own coefficients of high degree are worth. float32: rounding of the sums.
TOLERANCE = {torch.float64: 1e-10, torch.float32: 1e-5}


def check_module(seam, original, replacement, path: str, like: torch.Tensor) -> dict[str, float]:
    """Output and gradients (inputs and parameters) of both on random inputs.

    The reference is the original in float64, with exact coefficients. The replacement is run in float64 and
    in the dtype of ``like``. Of a product, the output, the gradients of its operands and those of its weights are
    compared slot by slot and path by path, each against its own largest entry: one wrong path among twenty hides in
    a whole tensor. Returns dtype -> largest relative difference. Raises RuntimeError with the module's name, the
    tensor and the difference.
    """
    generator = torch.Generator().manual_seed(0)
    inputs = [t.to(like.device, like.dtype) for t in seam.probe(original, generator)]
    reference = _bare_copy(original).double()
    tolerance = dict(TOLERANCE)
    if exact_tables(reference):  # coefficients that stay as they are, rounded to float32 perhaps
        tolerance[torch.float64] = 1e-6
    expected = _evaluate(seam, reference, [t.double() for t in inputs])
    found = {}
    for dtype in dict.fromkeys((torch.float64, like.dtype)):
        module = _bare_copy(replacement).to(dtype)
        name = str(dtype).removeprefix("torch.")
        got = _evaluate(seam, module, [t.to(dtype) for t in inputs])
        differences = {
            f"{key}{where}": _difference(got[key], expected[key], columns)
            for key in expected
            for where, columns in _pieces(seam.plan(original), key, expected[key])
        }
        key = max(differences, key=differences.get)
        found[name] = differences[key]
        if not differences[key] <= tolerance[dtype]:
            raise RuntimeError(
                f"accelerate: {path} ({type(original).__name__}) does not agree with its replacement: "
                f"{key} differs by {differences[key]:.1e} of its scale in {name} "
                f"(allowed {tolerance[dtype]:.0e}); nothing was replaced"
            )
    return found


def _bare_copy(module: torch.nn.Module) -> torch.nn.Module:
    """A copy without forward and backward hooks: the user's should not see the self-check."""
    module = copy.deepcopy(module)
    for child in module.modules():
        for name, value in child.__dict__.items():
            if "ward_" in name and name.endswith("_hooks"):
                value.clear()
    return module


def _evaluate(seam, module, inputs: list[torch.Tensor]) -> dict[str, torch.Tensor]:
    """Output of the module, and the gradients of <cotangent, output> for its inputs and parameters."""
    module.requires_grad_(True)
    inputs = [t.clone().requires_grad_() for t in inputs]
    parameters = {name: p for name, p in module.named_parameters() if p.numel()}
    with torch.enable_grad():
        out = seam.call(module, inputs)
        generator = torch.Generator().manual_seed(1)
        cotangent = torch.randn(out.shape, generator=generator, dtype=torch.float64, device="cpu").to(out)
        leaves = [*inputs, *parameters.values()]
        gradients = [None] * len(leaves)  # an output that depends on nothing
        if out.requires_grad:
            gradients = torch.autograd.grad(out, leaves, cotangent, allow_unused=True)
    names = ["output", *(f"gradient of input {n}" for n in range(len(inputs)))]
    names += [f"gradient of {name}" for name in parameters]
    tensors = [
        out,
        *(torch.zeros_like(p) if g is None else g for g, p in zip(gradients, leaves, strict=True)),
    ]
    return dict(zip(names, (t.detach() for t in tensors), strict=True))


def _pieces(plan, key: str, t: torch.Tensor) -> list[tuple[str, slice]]:
    """Name and columns of the parts of a tensor [..., n] that are compared by themselves: the slots of an output or of
    an operand, the weights of a path, else the whole tensor."""
    if plan is None or t.ndim == 0:
        return [("", slice(None))]
    at1, at2, out = plan.offsets
    slots = {"output": (plan.irreps_out, out), "gradient of input 0": (plan.irreps_in1, at1)}
    slots["gradient of input 1"] = (plan.irreps_in2, at2)
    irreps, columns = slots.get(key, (None, ()))
    n = t.shape[-1]
    if irreps is not None and irreps.dim == n:
        return [(f", slot {i} ({irreps[i]})", s) for i, s in enumerate(columns) if s.stop > s.start]
    if (
        key != "output" and plan.weight_numel == n
    ):  # of an operand, of the module's own, or of the layer that makes them
        paths = [(i, p) for i, p in enumerate(plan.paths) if p.has_weight]
        return [(f", path {i}", slice(p.weight_offset, p.weight_offset + p.weight_numel)) for i, p in paths]
    return [("", slice(None))]


def _difference(a: torch.Tensor, b: torch.Tensor, columns: slice) -> float:
    """Largest difference in these columns, relative to the largest entry of b there, or to a thousandth of that of all
    of b where these nearly cancel; infinite for other shapes or NaN."""
    if a.shape != b.shape:
        return float("inf")
    if b.numel() == 0:
        return 0.0
    whole = b.double().abs().max().item()
    a, b = (t[..., columns].double() if t.ndim else t.double() for t in (a, b))
    scale, difference = max(b.abs().max().item(), 1e-3 * whole), (a - b).abs().max().item()
    if not difference >= 0:
        return float("inf")
    return difference / scale if scale > 0 else (0.0 if difference == 0 else float("inf"))


class ModelCheck:
    """Outputs of the whole model on an example, before; `compare` runs it again after.

    A difference is allowed up to the module tolerance relative to the output's scale, plus ``NOISE`` times
    what a change of the example's last digits does to the output of the original: forces that cancel to
    nothing have no scale of their own. What is NaN or infinite before must be so after (the stress of a molecule
    without a cell); the other entries are compared.

    Raises ValueError if the model has no finite output for the example.
    """

    NOISE = 30

    def __init__(self, model: torch.nn.Module, example):
        self.example = example
        reference = model
        if any(b.dtype == torch.float64 for b in model.buffers()):
            reference = copy.deepcopy(model)
            exact_tables(reference)
        self.expected = _run(reference, example)
        if all(v.numel() and not v.isfinite().any() for v in self.expected.values()):
            raise ValueError("accelerate: all outputs of the model are NaN or infinite for this example; give another")
        moved = _run(reference, _map_floats(example, _last_digits))
        self.noise = {k: _largest_change(moved[k], v) for k, v in self.expected.items()}

    def compare(self, model: torch.nn.Module) -> dict[str, float]:
        """Output name -> difference relative to scale. Raises RuntimeError if one is too large or missing."""
        got, found = _run(model, self.example), {}
        for name, expected in self.expected.items():
            if name not in got or got[name].shape != expected.shape:
                raise RuntimeError(f"accelerate: output {name} of the model is missing or has another shape; undone")
            before, after = expected.isfinite(), got[name].isfinite()
            if not torch.equal(before, after):
                lost, won = int((before & ~after).sum()), int((after & ~before).sum())
                raise RuntimeError(
                    f"accelerate: output {name} of the whole model became NaN or infinite at {lost} entries, and "
                    f"finite at {won} that were not; everything was undone"
                )
            difference = _largest_change(got[name], expected)
            scale = _largest_change(expected, torch.zeros_like(expected))
            allowed = TOLERANCE.get(expected.dtype, 1e-2) * scale + self.NOISE * self.noise[name]
            if not difference <= allowed:
                raise RuntimeError(
                    f"accelerate: output {name} of the whole model changed by {difference:.1e} "
                    f"(largest entry {scale:.1e}, allowed {allowed:.1e}); everything was undone"
                )
            found[name] = difference / scale if scale > 0 else 0.0
        return found


def _largest_change(a: torch.Tensor, b: torch.Tensor) -> float:
    """Largest |a - b| of the entries that are finite in both; 0 of none."""
    a, b = a.double(), b.double()
    both = a.isfinite() & b.isfinite()
    return (a - b)[both].abs().max().item() if both.any() else 0.0


def _run(model, example) -> dict[str, torch.Tensor]:
    """Floating-point outputs by name; random numbers and buffers of the model are as before afterwards."""
    example = _map_floats(example, lambda t: t)
    buffers = {name: b.clone() for name, b in model.named_buffers()}
    with torch.random.fork_rng(devices=[]), torch.enable_grad():
        torch.manual_seed(0)
        out = model(*example) if isinstance(example, tuple) else model(example)
    with torch.no_grad():
        for name, buffer in model.named_buffers():
            if name in buffers and buffer.shape == buffers[name].shape:
                buffer.copy_(buffers[name])
    outputs = {name: t.detach().clone() for name, t in _tensors(out, "output") if t.is_floating_point()}
    if not outputs:
        raise ValueError("accelerate: the model returned no floating-point tensor for the example, nothing to compare")
    return outputs


def _last_digits(t: torch.Tensor) -> torch.Tensor:
    generator = torch.Generator().manual_seed(2)
    sign = torch.randn(t.shape, generator=generator, dtype=torch.float64, device="cpu").sign().to(t.device)
    return (t.double() * (1 + torch.finfo(t.dtype).eps * sign)).to(t.dtype)


def _map_floats(value, function):
    """A copy of a nest of tensors with ``function`` applied to its floating-point tensors."""
    if isinstance(value, torch.Tensor):
        new = value.detach().clone()
        new = function(new) if value.is_floating_point() else new
        return new.requires_grad_(value.requires_grad)
    if isinstance(value, dict):
        return type(value)((k, _map_floats(v, function)) for k, v in value.items())
    if isinstance(value, tuple) and hasattr(value, "_fields"):
        return type(value)(*(_map_floats(v, function) for v in value))
    if isinstance(value, (list, tuple)):
        return type(value)(_map_floats(v, function) for v in value)
    new = copy.copy(value)
    if hasattr(value, "keys") and hasattr(value, "__getitem__"):  # torch_geometric's Data
        for key in list(value.keys() if callable(value.keys) else value.keys):
            new[key] = _map_floats(value[key], function)
    return new


def _tensors(value, name: str) -> Iterator[tuple[str, torch.Tensor]]:
    if isinstance(value, torch.Tensor):
        yield name, value
    elif isinstance(value, (list, tuple)):
        for n, item in enumerate(value):
            yield from _tensors(item, f"{name}[{n}]")
    elif hasattr(value, "keys") and hasattr(value, "__getitem__"):
        for key in list(value.keys() if callable(value.keys) else value.keys):
            yield from _tensors(value[key], f"{name}[{key!r}]" if isinstance(value, dict) else f"{name}.{key}")

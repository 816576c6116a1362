"""Drop-in replacement: `accelerate(model)` puts eqtp's kernels into a model written with other libraries."""

from __future__ import annotations

from typing import NamedTuple

import torch

from eqtp.backends import registry
from eqtp.integrations.e3nn import SUBCLASSES, share_state
from eqtp.integrations.seam import seam_of, seams
from eqtp.integrations.selfcheck import ModelCheck, check_module
from eqtp.nn.tables import KeptTables


class Entry(NamedTuple):
    """One module of the model that was looked at."""

    name: str  # path in the model, as in model.get_submodule
    kind: str  # class that was found there
    reason: str  # replaced: the kernel family that runs; kept: why
    difference: dict[str, float]  # dtype -> largest difference that the self-check saw, relative to scale


class Report:
    """What `accelerate` did. ``print(report)`` is a table; ``report.undo()`` puts every original module back.

    replaced, kept: lists of `Entry`. max: dtype -> largest relative difference of any module in the
    self-check. model_difference: output name -> relative difference of the whole model, where an example was
    given.
    """

    def __init__(self, model: torch.nn.Module, changes: _Changes):
        self.model, self.replaced, self.kept = model, changes.replaced, changes.kept
        self.model_difference: dict[str, float] = {}
        self._slots = changes.slots

    @property
    def max(self) -> dict[str, float]:
        dtypes = sorted({dtype for entry in self.replaced for dtype in entry.difference})
        return {d: max(e.difference[d] for e in self.replaced if d in e.difference) for d in dtypes}

    def undo(self) -> None:
        """Put the original modules back, with the present parameters and buffers. Twice is once.

        Raises RuntimeError, and changes nothing, if a replacement was itself replaced since.
        """
        for parent, name, _, replacement in self._slots:
            if parent._modules.get(name) is not replacement:
                raise RuntimeError(f"undo: module {name!r} of a {type(parent).__name__} was replaced since")
        while self._slots:
            parent, name, original, replacement = self._slots.pop()
            share_state(replacement, original)
            original.train(replacement.training)
            parent._modules[name] = original

    def __repr__(self) -> str:
        return f"Report({len(self.replaced)} replaced, {len(self.kept)} kept)"

    def __str__(self) -> str:
        rows = [("replaced", *entry[:3]) for entry in self.replaced] + [("kept", *entry[:3]) for entry in self.kept]
        widths = [max((len(row[i]) for row in rows), default=0) for i in range(3)]
        lines = [f"eqtp.accelerate: {len(self.replaced)} modules replaced, {len(self.kept)} kept"]
        lines += [f"  {a:<{widths[0]}}  {b:<{widths[1]}}  {c:<{widths[2]}}  {reason}" for a, b, c, reason in rows]
        if self.max:
            found = ", ".join(f"{difference:.1e} in {dtype}" for dtype, difference in self.max.items())
            lines.append(f"  self-check of each module, largest difference relative to scale: {found}")
        if self.model_difference:
            name = max(self.model_difference, key=self.model_difference.get)
            lines.append(f"  whole model on the example: {self.model_difference[name]:.1e} (in {name})")
        return "\n".join(lines)


def accelerate(model: torch.nn.Module, example=None, verify: bool = True) -> Report:
    """Replace, in place, what eqtp does faster.

    That is SevenNet's convolutions; e3nn's TensorProduct (with its subclasses) and SphericalHarmonics anywhere in the
    module tree; and the layers around them (Linear, Gate, ...), where plain torch does better than e3nn. Parameters,
    buffers and state_dict stay the same objects.

    example
        an input of the model; a tuple is passed as positional arguments, anything else as the only one. With
        it the whole model is run before and after, and all its floating-point outputs are compared. It is
        copied, not changed.
    verify
        run each replaced module and its replacement on random inputs: output and gradients, in float64 and in
        the module's dtype. On a mismatch everything is undone.

    Returns a `Report` with what was replaced, what was kept and why, and ``undo()``. Raises TypeError if
    ``model`` is not a torch module, ValueError if nothing in it can be replaced, RuntimeError with the
    module's name and the difference if a result does not agree.
    """
    if not isinstance(model, torch.nn.Module):
        hint = "; pass its .model" if isinstance(getattr(model, "model", None), torch.nn.Module) else ""
        raise TypeError(f"accelerate: model must be a torch.nn.Module, got {type(model).__name__}{hint}")
    changes = _Changes(model, verify)
    if not changes.replaced:
        raise ValueError(_nothing_replaced(model, changes.kept))
    check = ModelCheck(model, example) if verify and example is not None else None
    for parent, name, _, replacement in changes.slots:
        parent._modules[name] = replacement
    report = Report(model, changes)
    if check is not None:
        try:
            report.model_difference = check.compare(model)
        except BaseException:
            report.undo()
            raise
    return report


class _Changes:
    """Walks a model and prepares the replacements, checked; the model itself is not touched."""

    def __init__(self, model: torch.nn.Module, verify: bool):
        self.replaced: list[Entry] = []
        self.kept: list[Entry] = []
        self.slots: list[tuple] = []  # (parent, name, original, replacement)
        self.verify = verify
        self.default = _first_float(model)
        self._done: dict[int, torch.nn.Module | None] = {}  # a module used in several places stays one module
        if isinstance(model, torch.jit.ScriptModule):
            self.kept += _scripted("", model)
        elif seam_of(model) is not None:
            reason = "it is the model itself and cannot be replaced in place: use eqtp.e3nn.from_e3nn(module)"
            self.kept.append(Entry("", type(model).__name__, reason, {}))
        else:
            self._prepare(model)
            self._walk(model, "")

    def _prepare(self, model: torch.nn.Module) -> None:
        """Has all kernels compiled at once, where kernels are compiled at run time."""
        found = ((m, seam) for m in model.modules() if (seam := seam_of(m)) is not None and seam.op is not None)
        plans = (plan for m, seam in found if seam.reason(m) is None and (plan := seam.plan(m)) is not None)
        registry.prepare(
            plans, self.default.device, {self.default.dtype, torch.float64} if self.verify else {self.default.dtype}
        )

    def _walk(self, parent: torch.nn.Module, prefix: str) -> None:
        for name, child in parent._modules.items():
            if child is None:
                continue
            path = f"{prefix}{name}"
            if isinstance(child, torch.jit.ScriptModule):
                self.kept += _scripted(path, child)
                continue
            if id(child) not in self._done:
                self._done[id(child)] = self._convert(child, path)
            if self._done[id(child)] is None:
                self._walk(child, f"{path}.")
            else:
                self.slots.append((parent, name, child, self._done[id(child)]))

    def _convert(self, module: torch.nn.Module, path: str) -> torch.nn.Module | None:
        kind, seam = type(module).__name__, seam_of(module)
        if seam is None:
            if type(module).__module__.startswith("eqtp.") and not isinstance(module, KeptTables):
                self.kept.append(Entry(path, kind, "it is eqtp's already", {}))
            return None
        like = _first_float(module, self.default)
        family, reason = None, seam.reason(module)
        if reason is None:
            family, reason = _family(seam.op, seam.plan(module), like) if seam.op else ("plain torch", None)
        if reason is not None:
            self.kept.append(Entry(path, kind, reason, {}))
            return None
        replacement = seam.convert(module, "auto")
        difference = check_module(seam, module, replacement, path, like) if self.verify else {}
        self.replaced.append(Entry(path, kind, family, difference))
        return replacement


def _first_float(module: torch.nn.Module, default: torch.Tensor | None = None) -> torch.Tensor:
    """A tensor that tells the device and the floating-point dtype of a module; of one without parameters, `default`, or
    torch's defaults (the CPU, where these say meta)."""
    tensors = (t for t in module.parameters() if t.is_floating_point() and t.numel())
    if default is None:
        default = torch.empty(0)
        default = torch.empty(0, device="cpu") if default.is_meta else default
    return next(tensors, default)


def _family(op: str, plan, like: torch.Tensor) -> tuple[str | None, str | None]:
    """(kernel family that runs the plan, None), or (None, why there is no kernel for it)."""
    try:
        family = registry.resolve("auto", op, plan, like.device, like.dtype)
    except RuntimeError as error:  # a family named by the user that cannot run
        return None, str(error)
    if family != "reference":
        return family, None
    reasons = [
        registry.why_not(f, op, plan, like.device, like.dtype)
        for f in registry.candidates(like.device, registry.engine_of(op))
        if f != "reference"
    ]
    return None, "; ".join(r for r in reasons if r) or "the reference backend was asked for"


def _scripted(path: str, module: torch.jit.ScriptModule) -> list[Entry]:
    """Entries for the modules inside a scripted one that could have been replaced before scripting."""
    reason = "it is scripted (torch.jit): accelerate the model before scripting it"
    known = {*seams(), *(("e3nn", cls) for cls in SUBCLASSES)}  # by name: the Python class is gone
    found = []
    for name, m in module.named_modules():
        library = m._c._type().qualified_name().removeprefix("__torch__.").partition(".")[0]
        if (library, m.original_name) in known:
            found.append(Entry(".".join(filter(None, (path, name))), m.original_name, reason, {}))
    return found


def _nothing_replaced(model: torch.nn.Module, kept: list[Entry]) -> str:
    text = f"accelerate: nothing to replace in {type(model).__name__}"
    if not kept:
        known = ", ".join(".".join(name) for name in seams())
        return f"{text}: it contains no module that eqtp knows ({known})"
    entry, more = kept[0], len(kept) - 1
    where = f"{entry.name} ({entry.kind})" if entry.name else entry.kind
    return f"{text}: {where}: {entry.reason}" + (f", and {more} more" if more else "")

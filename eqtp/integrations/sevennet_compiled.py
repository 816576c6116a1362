"""SevenNet for `eqtp.compile`: energy, energies of atoms, forces and stress of a structure or a batch, as a function of
species, edge index, edge vectors and volume."""

from __future__ import annotations

import copy

import torch

from eqtp.integrations.adapter import Adapter, Tolerance, padding
from eqtp.integrations.seam import replace_parts, seam_of

LIBRARY = "sevenn"
ENERGY, FORCE, STRESS = 1e-6, 1e-5, 1e-6  # eV/atom, eV/A, eV/A^3: float32


def _species(model) -> str:
    """The key of the species [n]: atomic numbers, or their indices."""
    return model.key_atomic_numbers if model.eval_type_map else model.key_node_feature


def _inputs(model) -> dict[str, tuple]:
    import sevenn._keys as KEY

    found = {_species(model): ("atoms",), KEY.EDGE_IDX: (None, "edges"), KEY.EDGE_VEC: ("edges", None)}
    if model.is_batch_data:
        return found | {KEY.CELL_VOLUME: ("structures",), KEY.NUM_ATOMS: ("structures",), KEY.BATCH: ("atoms",)}
    return found | {KEY.CELL_VOLUME: ()}


def _outputs(model) -> dict[str, Tolerance]:
    import sevenn._keys as KEY

    of_atoms = Tolerance(FORCE, rows="atoms")
    found = {KEY.PRED_TOTAL_ENERGY: Tolerance(ENERGY, "atoms"), KEY.ATOMIC_ENERGY: of_atoms}
    found |= {KEY.PRED_FORCE: of_atoms, KEY.PRED_STRESS: Tolerance(STRESS)}
    if getattr(model._modules.get("force_output"), "use_atomic_virial", False):
        found[KEY.PRED_ATOMIC_VIRIAL] = of_atoms
    return found


def _prepare(model, training: bool) -> torch.nn.Module:
    if model.training != training:
        found, call = ("evaluation", "train") if training else ("training", "eval")
        raise ValueError(f"the model is in {found} mode: call model.{call}() first")
    if getattr(model, "eval_modal_map", False):
        raise ValueError("models with several modalities are not supported yet")
    if type(model._modules.get("force_output")).__name__ != "ForceStressOutputFromEdge":
        raise ValueError("only models with forces from edges (ForceStressOutputFromEdge) are supported")
    model = copy.deepcopy(model)
    if not training:
        model.requires_grad_(False)
    model.eval_type_map = bool(model.eval_type_map)  # SevenNet's calculator makes it a tensor
    for name, module in model._modules.items():  # sevenn's own read numbers and sizes on the host
        seam = seam_of(module) if type(module).__module__.split(".")[0] == LIBRARY else None
        if seam is not None:
            if reason := seam.reason(module):
                raise ValueError(f"{name} ({type(module).__name__}) cannot be replaced: {reason}")
            model._modules[name] = seam.convert(module, "auto")
    replace_parts(model, "e3nn")
    return model


def _call(model, tensors: dict[str, torch.Tensor]) -> dict:
    import sevenn._keys as KEY

    data = dict(tensors)
    data[KEY.EDGE_VEC] = data[KEY.EDGE_VEC].detach()
    return model(data)


def _padded(model, tensors: dict[str, torch.Tensor], counts: torch.Tensor) -> dict:
    """Atoms and edges that do not count are a structure of their own, the last of a batch."""
    import sevenn._keys as KEY

    species, index, vectors = (tensors[key] for key in (_species(model), KEY.EDGE_IDX, KEY.EDGE_VEC))
    volume, batch = tensors[KEY.CELL_VOLUME], tensors.get(KEY.BATCH)  # [structures] or []
    pad = padding(counts, species.shape[0], index.shape[1])
    structures = volume.reshape(-1).shape[0]
    known = next(iter(model.type_map)) if model.eval_type_map else 0
    model.set_is_batch_data(True)
    out = _call(
        model,
        {
            _species(model): torch.where(pad.atoms, species, known),
            KEY.EDGE_IDX: torch.where(pad.edges, index, pad.ends),
            KEY.EDGE_VEC: torch.where(pad.edges.unsqueeze(1), vectors, 1.0),
            KEY.CELL_VOLUME: torch.cat([volume.reshape(-1), volume.new_ones(1)]),
            KEY.BATCH: torch.where(pad.atoms, torch.zeros_like(species) if batch is None else batch, structures),
            KEY.NUM_ATOMS: species.new_zeros(structures + 1),  # only its shape is read
        },
    )
    for key in (KEY.PRED_TOTAL_ENERGY, KEY.PRED_STRESS):
        out[key] = out[key][0] if batch is None else out[key][:-1]
    return out


def _small(tensors: dict[str, torch.Tensor]) -> list[dict]:
    """The first atom alone, with up to three edges to its images, and without edges."""
    import sevenn._keys as KEY

    found = []
    for edges in (3, 1, 0):
        alone = {key: t if t.ndim == 0 else t[:1] for key, t in tensors.items()}
        vectors = tensors[KEY.EDGE_VEC][:edges]  # [edges, 3]
        index = tensors[KEY.EDGE_IDX].new_zeros(2, len(vectors))
        alone |= {KEY.EDGE_IDX: index, KEY.EDGE_VEC: vectors}
        if KEY.NUM_ATOMS in alone:
            alone |= {KEY.NUM_ATOMS: torch.ones_like(alone[KEY.NUM_ATOMS]), KEY.BATCH: tensors[KEY.BATCH][:1] * 0}
        found.append(alone)
    return found


ADAPTERS = {"AtomGraphSequential": Adapter(_inputs, _outputs, _prepare, _call, _small, _padded)}

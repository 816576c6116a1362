"""MACE for `eqtp.compile`: energy, energies of atoms, forces, virials and stress of a batch, as a function of
positions, one-hot species, edges, shifts and cells."""

from __future__ import annotations

import copy
import types

import torch

from eqtp.integrations.adapter import Adapter, Tolerance, padding
from eqtp.integrations.seam import replace_parts

LIBRARY = "mace"
CLASSES = ("MACE", "ScaleShiftMACE")
ENERGY, FORCE, STRESS = 1e-6, 1e-5, 1e-6  # eV/atom, eV/A, eV/A^3: float32


def _inputs(model) -> dict[str, tuple]:
    found = {"positions": ("atoms", None), "node_attrs": ("atoms", None), "batch": ("atoms",)}
    found |= {"edge_index": (None, "edges"), "unit_shifts": ("edges", None), "cell": ("structures", None, None)}
    return found | ({"head": ("structures",)} if len(model.heads) > 1 else {})


def _outputs(model) -> dict[str, Tolerance]:
    of_atoms = Tolerance(FORCE, rows="atoms")
    return {
        "energy": Tolerance(ENERGY, "atoms"),  # [structures]
        "node_energy": of_atoms,  # [atoms]
        "forces": of_atoms,  # [atoms, 3]
        "virials": Tolerance(ENERGY, "atoms"),  # [structures, 3, 3], eV
        "stress": Tolerance(STRESS),  # [structures, 3, 3]
    }


def _prepare(model, training: bool) -> torch.nn.Module:
    import mace.modules.models as models

    if type(model).__name__ not in CLASSES:
        raise ValueError(f"only {' and '.join(CLASSES)} themselves are supported")
    if getattr(model, "lammps_mliap", False) or hasattr(model, "joint_embedding"):
        raise ValueError("models for LAMMPS and models with further embeddings are not supported")
    if not hasattr(models, "prepare_graph"):
        raise ValueError("this version of mace has no prepare_graph: 0.3.16 was tried")
    model = copy.deepcopy(model).train(training)
    if not training:
        model.requires_grad_(False)
    replace_parts(model, "e3nn")  # TorchScript, which makes a constant of the number of atoms
    # the model's own forward, but for a function in it that makes a constant of the number of structures
    forward = type(model).forward
    names = forward.__globals__ | {"prepare_graph": _prepare_graph}
    rebound = types.FunctionType(forward.__code__, names, forward.__name__, forward.__defaults__, forward.__closure__)
    model.forward = types.MethodType(rebound, model)
    return model


def _prepare_graph(data, compute_virials, compute_stress, compute_displacement, lammps_mliap):
    """As mace.modules.utils.prepare_graph with stress, for any number of structures."""
    import mace.modules.utils as utils

    positions, cell, batch = data["positions"].requires_grad_(), data["cell"], data["batch"]
    structures = cell.shape[0]
    strained, shifts, displacement = utils.get_symmetric_displacement(
        positions, data["unit_shifts"], cell, data["edge_index"], structures, batch
    )
    vectors, lengths = utils.get_edge_vectors_and_lengths(strained, data["edge_index"], shifts)
    heads = data["head"][batch] if "head" in data else torch.zeros_like(batch)
    return utils.GraphContext(
        is_lammps=False,
        num_graphs=structures,
        num_atoms_arange=torch.arange(positions.shape[0], device=positions.device),
        displacement=displacement,
        positions=positions,
        vectors=vectors,
        lengths=lengths,
        cell=cell,
        node_heads=heads,
        interaction_kwargs=utils.InteractionKwargs(None, (0, 0)),
    )


def _options(training: bool) -> dict:
    return {"compute_force": True, "compute_virials": True, "compute_stress": True, "training": training}


def _call(model, tensors: dict[str, torch.Tensor]) -> dict:
    data = tensors | {"positions": tensors["positions"].detach()}
    return model(data, **_options(model.training))


def _padded(model, tensors: dict[str, torch.Tensor], counts: torch.Tensor) -> dict:
    """Atoms and edges that do not count are a structure of their own, the last."""
    positions, species, index, cell = (tensors[key] for key in ("positions", "node_attrs", "edge_index", "cell"))
    pad = padding(counts, positions.shape[0], index.shape[1])
    structures, atoms, edges = cell.shape[0], pad.atoms.unsqueeze(1), pad.edges.unsqueeze(1)
    first = torch.arange(species.shape[1], device=species.device) == 0  # [elements]
    unit = torch.eye(3, dtype=cell.dtype, device=cell.device).unsqueeze(0)
    data = {
        "positions": torch.where(atoms, positions, 0.0),
        "node_attrs": torch.where(atoms, species, first.to(species.dtype)),
        "batch": torch.where(pad.atoms, tensors["batch"], structures),
        "edge_index": torch.where(pad.edges, index, pad.ends),
        "unit_shifts": torch.where(edges, tensors["unit_shifts"], 1.0),
        "cell": torch.cat([cell, unit]),
    }
    if "head" in tensors:
        data["head"] = torch.cat([tensors["head"], tensors["head"][:1]])
    out = _call(model, data)
    return out | {key: out[key][:-1] for key in ("energy", "virials", "stress")}


def _small(tensors: dict[str, torch.Tensor]) -> list[dict]:
    """The first atom alone in a cell of 2 A, with three edges to its images, one, and none."""
    found = []
    for edges in (3, 1, 0):
        alone = {key: t[:1] for key, t in tensors.items()}
        unit = torch.eye(3, dtype=alone["cell"].dtype, device=alone["cell"].device)
        index = tensors["edge_index"].new_zeros(2, edges)
        alone |= {"edge_index": index, "unit_shifts": unit[:edges], "cell": 2 * unit.unsqueeze(0)}
        found.append(alone | {"batch": tensors["batch"][:1] * 0})
    return found


ADAPTER = Adapter(
    _inputs, _outputs, _prepare, _call, _small, _padded, _options, reshape={"cell": (-1, 3, 3)}, writes=False
)
ADAPTERS = dict.fromkeys(CLASSES, ADAPTER)

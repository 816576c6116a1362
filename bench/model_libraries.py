"""Whole models of other libraries: how they are loaded, given a structure and called. `MODELS` has them by name.

A model is loaded as it comes, or through its library's own switch for a peer. It is on its device, in float32, in
evaluation mode, and computes energy, forces and stress at every call.
"""

from __future__ import annotations

import contextlib
import importlib.util
import io
import os
from collections.abc import Callable
from typing import NamedTuple

import torch

from bench import peers
from bench.harness import Missing


class Library(NamedTuple):
    """name: in results, and the package that must be installed. load raises Missing."""

    name: str
    load: Callable  # (model's name, device, peer or "e3nn") -> model
    data: Callable  # (model, [ase.Atoms, ...], device) -> its input, with the key edge_index [2, e]
    predict: Callable  # (model, input) -> energy [] eV, forces [n, 3] eV/A, stress eV/A^3; the input is not changed
    structures: int = 1  # in the example for eqtp.compile


# ------------------------------------------------------------------------ SevenNet
# peer -> argument of sevenn's build_model, and the modules without which sevenn would take e3nn without an error
SEVENNET_SWITCHES = {
    "openequivariance": ("enable_oeq", ("openequivariance",)),
    "cueq": ("enable_cueq", ("cuequivariance_torch", "cuequivariance_ops_torch")),
    "flashtp": ("enable_flash", ("flashTP_e3nn",)),
}


def _sevennet(name: str, device: str, peer: str):
    from sevenn.util import load_checkpoint

    from eqtp.integrations.sevennet import load

    if peer == "e3nn":
        return load(name).to(device)
    if device == "cpu":
        raise Missing(peers.NO_CPU.get(peer, f"sevenn uses {peer} on GPUs only"))
    switch, modules = SEVENNET_SWITCHES[peer]
    for module in modules:
        if importlib.util.find_spec(module) is None:
            raise Missing(f"{module} is not installed")
    with contextlib.redirect_stdout(io.StringIO()):  # that it converts the weights
        model = load_checkpoint(name).build_model(**{switch: True})
    model.set_is_batch_data(False)
    return model.to(device).eval()


def _sevennet_data(model, structures: list, device: str):
    from eqtp.integrations.sevennet import graph_data

    (atoms,) = structures
    return graph_data(atoms, float(model.cutoff)).to(device)


def _sevennet_predict(model, data) -> dict[str, torch.Tensor]:
    from eqtp.integrations.sevennet import predict

    return predict(model, data)


# ------------------------------------------------------------------------ MACE
def _mace(name: str, device: str, peer: str):
    """The architecture of MACE-MP-0 medium with random weights: the trained ones are a download."""
    os.environ.setdefault("TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD", "1")  # e3nn 0.4.4, which mace pins, loads its tables
    import numpy as np
    from e3nn import o3
    from mace import modules

    if peer != "e3nn":
        raise Missing(f"this benchmark does not call the switch of mace for {peer}")
    torch.manual_seed(0)
    block = modules.interaction_classes["RealAgnosticResidualInteractionBlock"]
    model = modules.ScaleShiftMACE(
        r_max=6.0,
        num_bessel=10,
        num_polynomial_cutoff=5,
        max_ell=3,
        interaction_cls=block,
        interaction_cls_first=block,
        num_interactions=2,
        num_elements=89,
        hidden_irreps=o3.Irreps("128x0e + 128x1o"),
        MLP_irreps=o3.Irreps("16x0e"),
        gate=torch.nn.functional.silu,
        atomic_energies=np.zeros(89),
        avg_num_neighbors=62.0,
        atomic_numbers=list(range(1, 90)),
        correlation=3,
        atomic_inter_scale=100.0,  # forces of some tenths of eV/A, as trained models have
        atomic_inter_shift=0.0,
    )
    return model.to(device).eval()


def _mace_data(model, structures: list, device: str) -> dict:
    from mace.data import AtomicData, config_from_atoms
    from mace.tools import AtomicNumberTable, torch_geometric

    table = AtomicNumberTable(model.atomic_numbers.tolist())
    cutoff = float(model.r_max)
    data = [AtomicData.from_config(config_from_atoms(atoms), z_table=table, cutoff=cutoff) for atoms in structures]
    batch = next(iter(torch_geometric.dataloader.DataLoader(data, batch_size=len(data), shuffle=False)))
    return batch.to(device).to_dict()


def _mace_predict(model, data: dict) -> dict[str, torch.Tensor]:
    given = {key: t.clone() if torch.is_tensor(t) else t for key, t in data.items()}
    out = model(given, compute_stress=True)
    return {"energy": out["energy"][0].detach(), **{key: out[key].detach() for key in ("forces", "stress")}}


# ------------------------------------------------------------------------ NequIP
NEQUIP_CUTOFF = 6.0  # A


def _nequip(name: str, device: str, peer: str):
    """NequIP's preset L, the architecture of OAM-L, with random weights: the trained ones are a download."""
    from ase.data import chemical_symbols
    from nequip.model import PresetNequIPGNNModel
    from nequip.utils.global_state import set_global_state

    if peer != "e3nn":
        raise Missing(f"this benchmark does not call the switch of nequip for {peer}")
    default = torch.get_default_dtype()
    try:
        set_global_state()  # which nequip asks for; makes float64 the default
        model = PresetNequIPGNNModel(
            preset="L",
            seed=0,
            model_dtype="float32",
            r_max=NEQUIP_CUTOFF,
            type_names=chemical_symbols[1:90],
            num_bessels=8,
            avg_num_neighbors=62.0,
            per_type_energy_scales=1.0,
        )
    finally:
        torch.set_default_dtype(default)
    return model.to(device).eval()


def _nequip_data(model, structures: list, device: str) -> dict:
    from ase.data import chemical_symbols
    from nequip.data import AtomicDataDict
    from nequip.data.ase import from_ase
    from nequip.data.transforms import ChemicalSpeciesToAtomTypeMapper, NeighborListTransform

    (atoms,) = structures
    names, data = chemical_symbols[1:90], from_ase(atoms)
    for step in (ChemicalSpeciesToAtomTypeMapper(names), NeighborListTransform(NEQUIP_CUTOFF, type_names=names)):
        data = step(data)
    data = {key: t.double() if t.is_floating_point() else t for key, t in data.items()}  # positions, as nequip has them
    return AtomicDataDict.to_(data, device)


def _nequip_predict(model, data: dict) -> dict[str, torch.Tensor]:
    out = model({key: t.clone() for key, t in data.items()})
    return {"energy": out["total_energy"][0, 0].detach(), **{key: out[key].detach() for key in ("forces", "stress")}}


SEVENNET = Library("sevenn", _sevennet, _sevennet_data, _sevennet_predict)
MACE = Library("mace", _mace, _mace_data, _mace_predict, structures=2)
NEQUIP = Library("nequip", _nequip, _nequip_data, _nequip_predict)
MODELS = {"7net-0": SEVENNET, "7net-l3i5": SEVENNET, "mace-medium": MACE, "nequip-l": NEQUIP}

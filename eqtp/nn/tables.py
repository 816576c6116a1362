"""The tables that a product of e3nn keeps in its state_dict: written for e3nn, compared when read, never computed with.

e3nn compiles a program for `forward` and one for `right`. Each is a submodule whose buffers are the couplings and the
lists of pairs of channels that the program reads; paths with code of their own (a scalar among the irreps, a cross
product) read no coupling.
"""

from __future__ import annotations

import re

import torch

from eqtp.math.so3 import wigner_3j
from eqtp.plans.plan import Path, TensorProductPlan

FORWARD, RIGHT = "_compiled_main_left_right", "_compiled_main_right"  # e3nn's names of the submodules


class KeptTables(torch.nn.Module):
    """Buffers of one of e3nn's programs, by their names there: `_w3j_1_2_3`, `_triu_indices_4`.

    A state_dict that is loaded may lack them, and may have others, those of a copied program included: products of its
    tables, `_tensor_constant0`. A coupling that is not that of e3nn >= 0.5 is an error: the weights beside it mean
    something else.
    """

    def __init__(self, tables: dict[str, torch.Tensor]):
        super().__init__()
        for name, table in tables.items():
            self.register_buffer(name, table)

    def _load_from_state_dict(
        self, state_dict, prefix, local_metadata, strict, missing_keys, unexpected_keys, error_msgs
    ):
        for key in [key for key in state_dict if key.startswith(prefix)]:
            name, table = key.removeprefix(prefix), state_dict[key]
            expected = None if table.is_meta else _expected(name)
            if expected is not None and not _same(table, expected):
                error_msgs.append(
                    f"{key} is not the coupling of e3nn >= 0.5; the weights were trained with other signs"
                )
            elif name not in self._buffers and (expected is not None or re.fullmatch(r"_tensor_constant\d+", name)):
                del state_dict[key]
        super()._load_from_state_dict(state_dict, prefix, local_metadata, strict, [], unexpected_keys, error_msgs)


def _expected(name: str) -> torch.Tensor | None:
    """The table of this name, float64, or None if it is no name of a table."""
    if found := re.fullmatch(r"_w3j_(\d+)_(\d+)_(\d+)", name):
        return torch.tensor(wigner_3j(*map(int, found.groups())), device="cpu")  # [2*l1+1, 2*l2+1, 2*l3+1]
    if found := re.fullmatch(r"_triu_indices_(\d+)", name):
        mul = int(found[1])
        return torch.triu_indices(mul, mul, 1, device="cpu").double()  # [2, pairs u < v]
    return None


def _same(table: torch.Tensor, expected: torch.Tensor) -> bool:
    if table.shape != expected.shape:
        return False
    return table.numel() == 0 or bool((table.cpu().double() - expected).abs().max() < 1e-5)


def tables_of(plan: TensorProductPlan, specialised: bool = True, right: bool = False) -> dict[str, torch.Tensor]:
    """The buffers of e3nn's program for `forward`, or for `right`, in torch's default dtype (pairs: int64).

    specialised: e3nn's `_specialized_code`; without it every path reads its coupling.
    """
    tables = {}
    for p in plan.paths:
        if 0 in (p.mul1, p.mul2, p.mul3) or 0 in p.path_shape:
            continue
        if not (specialised and _has_code_of_its_own(p, right)):
            table = torch.tensor(wigner_3j(p.l1, p.l2, p.l3), dtype=torch.get_default_dtype())
            tables[f"_w3j_{p.l1}_{p.l2}_{p.l3}"] = table  # [2*l1+1, 2*l2+1, 2*l3+1]
        if p.mode in ("uvu<v", "u<vw") and not right:
            tables[f"_triu_indices_{p.mul1}"] = torch.triu_indices(p.mul1, p.mul1, 1)  # [2, pairs u < v]
    return tables


def _has_code_of_its_own(p: Path, right: bool) -> bool:
    """Whether e3nn's specialised code for a path needs no coupling."""
    degrees = (p.l1, p.l2, p.l3)
    if p.mode == "uuu":
        return 0 in degrees or (degrees == (1, 1, 1) and not right)
    needs_weight = {"uvw": True, "uvu": True, "uvv": right, "uuw": True}
    if p.mode not in needs_weight or (p.mode == "uuw" and right):
        return False
    return 0 in degrees and (p.has_weight or not needs_weight[p.mode])

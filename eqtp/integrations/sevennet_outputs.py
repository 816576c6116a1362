"""SevenNet's modules that read a number on the host, for which it waits for a GPU: the one-hot embedding, and the
energies, forces and stress at the end. The same without a wait, forces by `eqtp.segment_sum`."""

from __future__ import annotations

import torch

from eqtp.integrations.e3nn import keep_attributes
from eqtp.integrations.seam import Seam, own_forward
from eqtp.integrations.sevennet import edge_graph
from eqtp.ops.segment_sum import segment_sum, wide

LIBRARY = "sevenn"
LEAST_VOLUME = 1e-3  # A^3, sevenn's, of structures without a cell


class _Replacement(torch.nn.Module):
    """Attributes of the original, and its flag that says whether inputs are batches, which sevenn sets."""

    def __init__(self, original):
        super().__init__()
        keep_attributes(original, self)
        self._originals = [original]  # a list: no child module

    @property
    def _is_batch_data(self) -> bool:
        return self._originals[0]._is_batch_data

    @_is_batch_data.setter
    def _is_batch_data(self, flag: bool) -> None:
        self._originals[0]._is_batch_data = flag


class OnehotEmbedding(_Replacement):
    """In the place of sevenn.nn.node_embedding.OnehotEmbedding: species [n] -> [n, num_classes]."""

    def forward(self, data):
        species = data[self.key_x]  # [n]
        hot = species.unsqueeze(-1) == torch.arange(self.num_classes, device=species.device)  # [n, num_classes]
        data[self.key_output] = hot.float()
        if self.key_additional_output is not None:
            data[self.key_additional_output] = data[self.key_output]
        if self.key_save is not None:
            data[self.key_save] = species
        return data


class AtomReduce(_Replacement):
    """In the place of sevenn.nn.linear.AtomReduce: energies of atoms [n, 1] -> of structures [batch], or of the only
    one []."""

    def forward(self, data):
        energies = data[self.key_input]
        total = _of_structures(energies, data) if self._is_batch_data else energies.sum()
        data[self.key_output] = (total.squeeze(-1) if self._is_batch_data else total) * self.constant
        return data


class ForceStressOutputFromEdge(_Replacement):
    """In the place of sevenn.nn.force_output.ForceStressOutputFromEdge: forces [n, 3], stress [6] or [batch, 6] and
    perhaps virials of atoms [n, 6], from the gradient of the energy by the edge vectors [e, 3]."""

    def get_grad_key(self) -> str:
        return self.key_edge

    def forward(self, data):
        import sevenn._keys as KEY

        r, edge_index = data[self.key_edge], data[self.key_edge_idx]  # [e, 3], [2, e]
        (f,) = torch.autograd.grad([data[self.key_energy].sum()], [r], create_graph=self.training, allow_unused=True)
        if f is None:
            return data
        graph = edge_graph(edge_index, data[KEY.ATOMIC_ENERGY].shape[0])  # receivers: row 0
        back = graph.transpose()
        data[self.key_force] = segment_sum(f, graph) - segment_sum(f, back)
        pairs = torch.stack(
            [r[:, i] * f[:, j] for i, j in ((0, 0), (1, 1), (2, 2), (0, 1), (1, 2), (2, 0))], -1
        )  # [e, 6]
        atomic = segment_sum(pairs, back)  # [n, 6]
        if self.use_atomic_virial:
            data[self.key_atomic_virial] = -atomic
        virial = _of_structures(atomic, data) if self._is_batch_data else atomic.sum(0)
        volume = data[self.key_cell_volume].clamp(min=LEAST_VOLUME)
        data[self.key_stress] = -virial / volume.unsqueeze(-1)
        return data


def _of_structures(rows: torch.Tensor, data) -> torch.Tensor:
    """Sums of rows [n, c] of atoms over each structure of a batch: [batch, c]."""
    import sevenn._keys as KEY

    total = wide(rows)  # of any number of atoms
    total = total.new_zeros(data[KEY.NUM_ATOMS].shape[0], rows.shape[1]).index_add(0, data[KEY.BATCH], total)
    return total.to(rows.dtype)


def _convert(cls: type):
    return lambda module, backend: cls(module)


# ------------------------------------------------------------------------ probes of the self-check
NODES, EDGES = 5, 9
EDGE_INDEX = ((0, 2, 2, 4, 1, 0, 2, 4, 4), (1, 0, 3, 2, 0, 4, 2, 3, 1))


def _structures(like: torch.Tensor) -> dict:
    """Two structures, of two and three atoms; as one, if the module does not take batches."""
    import sevenn._keys as KEY

    counts = torch.tensor([2, 3], device=like.device)
    return {KEY.NUM_ATOMS: counts, KEY.BATCH: torch.repeat_interleave(counts)}


def _call_embedding(module, inputs):
    species = (inputs[0] * module.num_classes).long().abs() % module.num_classes  # [n]
    return module({module.key_x: species})[module.key_output]


def _call_reduce(module, inputs):
    return module(_structures(inputs[0]) | {module.key_input: inputs[0]})[module.key_output].reshape(-1)


def _call_forces(module, inputs):
    import sevenn._keys as KEY

    r, volume = inputs  # [e, 3], [2]
    data = _structures(r) | {
        module.key_edge: r,
        module.key_edge_idx: torch.tensor(EDGE_INDEX, device=r.device),
        module.key_energy: (r.pow(2).sum(1) * r.sin().sum(1)).sum(),
        KEY.ATOMIC_ENERGY: r.new_zeros(NODES, 1),
        module.key_cell_volume: 1 + volume.square() if module._is_batch_data else 1 + volume[0].square(),
    }
    trained, module.training = module.training, True  # gradients of the forces are compared, too
    out = module(data)
    module.training = trained
    names = [module.key_force, module.key_stress, *([module.key_atomic_virial] * module.use_atomic_virial)]
    return torch.cat([out[name].reshape(-1) for name in names])


def _seam(op: str | None, cls: type, shapes: tuple, call) -> Seam:
    def probe(module, generator):
        return [torch.randn(shape, generator=generator, device=generator.device) for shape in shapes]

    return Seam(op, own_forward, lambda module: None, _convert(cls), probe, call)


SEAMS = {
    "OnehotEmbedding": _seam(None, OnehotEmbedding, ((7,),), _call_embedding),
    "AtomReduce": _seam(None, AtomReduce, ((NODES, 1),), _call_reduce),
    "ForceStressOutputFromEdge": _seam("segment_sum", ForceStressOutputFromEdge, ((EDGES, 3), (2,)), _call_forces),
}

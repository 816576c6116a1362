"""SevenNet (package ``sevenn``): its convolution as one call of `eqtp.tensor_product_conv`.

A layer of SevenNet gathers node features over the edges, multiplies them with the spherical harmonics of the
edge, one weight per path and channel, and sums over the edges of a node. Here the three are one call, and the
edge list is sorted once per forward for all layers. Loading helpers for the trained models that the package
carries are here too.
"""

from __future__ import annotations

import torch

import eqtp.nn
from eqtp.integrations.e3nn import convert_tensor_product, exact_tables, keep_attributes, plan_from_e3nn
from eqtp.integrations.e3nn_layers import radial
from eqtp.integrations.seam import Seam, own_forward, seam_of
from eqtp.nn.module import Module
from eqtp.ops.graph import shared

LIBRARY = "sevenn"


class Convolution(Module):
    """Takes the place of sevenn.nn.convolution.IrrepsConvolution, with its state_dict and its keys.

    ``forward(data)`` reads node features x [n, dim_in1], edge attributes [e, dim_in2], the radial embedding
    [e, num_basis] and the edge index [2, e] (row 1: the node a message comes from, row 0: the node that
    receives it), and writes x [n, dim_out]. With ``is_parallel`` the ghost atoms' features are appended first
    and their rows dropped last.
    """

    def __init__(self, original, backend: str = "auto"):
        super().__init__()
        import sevenn._keys as KEY

        keep_attributes(original, self)
        self.key_ghost, self.key_num_local = KEY.NODE_FEATURE_GHOST, KEY.NLOCAL
        self.denominator = original.denominator  # [1]
        self.convolution = convert_tensor_product(original.convolution, backend, eqtp.nn.TensorProductConv)
        self.weight_nn = radial(original.weight_nn, backend)

    def forward(self, data):
        weight = self.weight_nn(data[self.key_weight_input])  # [e, weight_numel]
        x = data[self.key_x]  # [n, dim_in1]
        if self.is_parallel:
            x = torch.cat([x, data[self.key_ghost]])  # [n + ghosts, dim_in1]
        graph = edge_graph(data[self.key_edge_idx], x.shape[0])
        y = data[self.key_filter] / self.denominator  # [e, dim_in2], smaller than the output
        x = self.convolution(x, y, weight, graph=graph)  # [n, dim_out]
        if self.is_parallel:
            x = torch.tensor_split(x, data[self.key_num_local])[0]
        data[self.key_x] = x
        return data


def edge_graph(edge_index: torch.Tensor, num_nodes: int):
    """`eqtp.Graph` of SevenNet's edge index [2, e]; built once for all layers that see the same tensor."""
    return shared(edge_index[1], edge_index[0], num_nodes, num_nodes)


def load(name: str = "7net-0", dtype: torch.dtype = torch.float32):
    """A trained SevenNet as an eager module, from the checkpoint inside the ``sevenn`` package; no network.

    ``name``: "7net-0", "7net-l3i5", or whatever `sevenn.util.load_checkpoint` takes. The model expects one
    structure at a time (see `graph_data`), and gives energy [eV], forces [eV/A] and stress [eV/A^3]. Raises
    ImportError without sevenn.
    """
    from sevenn.util import load_checkpoint

    model = load_checkpoint(name).build_model()
    model.set_is_batch_data(False)
    model.eval()
    return to_float64(model) if dtype == torch.float64 else model


def to_float64(model):
    """Make a SevenNet model compute in float64, in place.

    Its one-hot embedding is float32 by construction, its Clebsch-Gordan coefficients come rounded to float32.
    """
    model.double()
    exact_tables(model)
    for module in model.modules():
        if type(module).__name__ == "OnehotEmbedding":
            module.register_forward_hook(_embedding_to_float64)
    return model


def _embedding_to_float64(module, args, data):
    for key in (module.key_output, module.key_additional_output):
        if key is not None:
            data[key] = data[key].double()
    return data


def graph_data(atoms, cutoff: float, dtype: torch.dtype = torch.float32):
    """SevenNet's input for one ase.Atoms, as its calculator has it: neighbour list within ``cutoff`` [A]."""
    from sevenn.atom_graph_data import AtomGraphData
    from sevenn.train.dataload import unlabeled_atoms_to_graph

    arrays = unlabeled_atoms_to_graph(atoms, cutoff, with_shift=False)
    data = AtomGraphData.from_numpy_dict(dict(arrays))
    for key in ("pos", "edge_vec", "cell_volume"):
        data[key] = torch.as_tensor(arrays[key], dtype=dtype, device=data[key].device)
    return data


def predict(model, data) -> dict[str, torch.Tensor]:
    """Energy [] in eV, forces [n, 3] in eV/A and stress [6] in eV/A^3 of one structure; ``data`` is not
    changed.

    Stress has ASE's sign and order, xx yy zz yz xz xy.
    """
    import sevenn._keys as KEY

    out = model(data.clone())
    return {
        "energy": out[KEY.PRED_TOTAL_ENERGY].detach(),
        "forces": out[KEY.PRED_FORCE].detach(),
        "stress": -out[KEY.PRED_STRESS].detach()[[0, 1, 2, 4, 5, 3]],  # SevenNet: xx yy zz xy yz zx
    }


def _reason(module) -> str | None:
    if reason := own_forward(module):
        return reason
    if module.convolution is None:
        return "it is not instantiated yet: build the model first"
    seam = seam_of(module.convolution)
    if seam is None or isinstance(module.convolution, torch.jit.ScriptModule):
        return f"its product is a {type(module.convolution).__name__}, not a TensorProduct of e3nn"
    return seam.reason(module.convolution)


def _probe(module, generator: torch.Generator) -> list[torch.Tensor]:
    tp, basis = module.convolution, module.weight_nn.hs[0]
    nodes, edges = 5, 9
    where = {"generator": generator, "device": generator.device}
    return [
        torch.randn(nodes, tp.irreps_in1.dim, **where),  # x [n, dim_in1]
        torch.randn(edges, tp.irreps_in2.dim, **where),  # edge attributes [e, dim_in2]
        torch.randn(edges, basis, **where),  # radial embedding [e, num_basis]
    ]


def _call(module, inputs) -> torch.Tensor:
    x, y, embedding = inputs
    import sevenn._keys as KEY

    dst, src = [0, 2, 2, 4, 1, 0, 2, 4, 4], [1, 0, 3, 2, 0, 4, 2, 3, 1]
    data = {
        module.key_x: x, module.key_filter: y, module.key_weight_input: embedding,
        module.key_edge_idx: torch.tensor([dst, src], device=x.device),  # [2, e]
    }  # fmt: skip
    if module.is_parallel:  # the last two nodes are ghosts
        data |= {module.key_x: x[:3], KEY.NODE_FEATURE_GHOST: x[3:], KEY.NLOCAL: torch.tensor([3], device="cpu")}
    return module(data)[module.key_x]


SEAMS = {
    "IrrepsConvolution": Seam(
        "tensor_product_conv", _reason, lambda module: plan_from_e3nn(module.convolution), Convolution, _probe, _call
    ),
}

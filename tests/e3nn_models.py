"""Models and products of e3nn for the tests of what takes their place, and how their numbers are compared."""

import pytest
import torch

import eqtp
from eqtp import testing
from eqtp.integrations.e3nn import exact_tables

o3 = pytest.importorskip("e3nn.o3", reason="e3nn is not installed")

TOLERANCE = {torch.float64: 1e-12, torch.float32: 1e-5}
UVU = [
    (0, 0, 0, "uvu", True),
    (1, 1, 0, "uvu", True),
    (0, 1, 1, "uvu", True),
    (1, 1, 1, "uvu", True, 2.0),
    (1, 2, 1, "uvu", True),
]


def uvu_product(**options):
    irreps = "5x0e + 3x1e"
    instructions = [(*ins[:2], n, *ins[3:]) for n, ins in enumerate(UVU)]
    return o3.TensorProduct(irreps, "0e + 1e + 2e", "5x0e + 3x0e + 5x1e + 3x1e + 3x1e", instructions, **options)


class Message(torch.nn.Module):
    """A convolution as it is written with e3nn: harmonics, radial weights, product, sum over edges."""

    def __init__(self):
        super().__init__()
        self.harmonics = o3.SphericalHarmonics("0e + 1e + 2e", True, "component", irreps_in="1e")
        self.product = uvu_product(shared_weights=False, internal_weights=False)
        self.radial = torch.nn.Linear(2, self.product.weight_numel)
        self.mix = o3.FullyConnectedTensorProduct(self.product.irreps_out, "0e + 1e", "4x0e + 2x1e")

    def forward(self, x, vectors, radial, edges):
        y = self.harmonics(vectors)
        messages = self.product(x[edges[0]], y, self.radial(radial))
        nodes = x.new_zeros(len(x), messages.shape[1]).index_add(0, edges[1], messages)
        return {"nodes": self.mix(nodes, y.new_ones(len(x), 4)), "norm": nodes.square().sum()}


def message():
    """The model."""
    torch.manual_seed(0)
    return Message()


def message_inputs():
    """Node features, vectors, radial features and edges for it."""
    torch.manual_seed(1)
    return torch.randn(4, 14), torch.randn(9, 3), torch.randn(9, 2), torch.randint(0, 4, (2, 9))


def exact(module):
    """The module in float64, with coefficients that did not go through float32."""
    module.double()
    assert exact_tables(module) == []
    return module


def relative(a, b):
    return ((a - b).abs().max() / b.abs().max()).item()


# mode -> arguments of a product with a cross product, scalars, and a path of degree 2
MODES = {
    "uvw": ("3x0e+3x1o", "2x0e+2x1o", "4x1o+2x1e+2x2e", [(0, 1, 0), (1, 1, 1), (1, 1, 2)]),
    "uvu": ("3x0e+3x1o", "2x0e+2x1o", "3x1o+3x1e+3x2e", [(0, 1, 0), (1, 1, 1), (1, 1, 2)]),
    "uvv": ("3x0e+3x1o", "2x0e+2x1o", "2x1o+2x1e+2x2e", [(0, 1, 0), (1, 1, 1), (1, 1, 2)]),
    "uuw": ("3x0e+3x1o", "3x0e+3x1o", "4x1o+2x1e+2x2e", [(0, 1, 0), (1, 1, 1), (1, 1, 2)]),
    "uuu": ("3x0e+3x1o", "3x0e+3x1o", "3x1o+3x1e+3x2e", [(0, 1, 0), (1, 1, 1), (1, 1, 2)]),
    "uvuv": ("3x0e+3x1o", "2x0e+2x1o", "6x1o+6x1e+6x2e", [(0, 1, 0), (1, 1, 1), (1, 1, 2)]),
    "uvu<v": ("4x0e+4x1o", "4x0e+4x1o", "6x1o+6x1e+6x2e", [(0, 1, 0), (1, 1, 1), (1, 1, 2)]),
    "u<vw": ("4x0e+4x1o", "4x0e+4x1o", "2x1o+2x1e+3x2e", [(0, 1, 0), (1, 1, 1), (1, 1, 2)]),
}
WITH_RIGHT = [mode for mode in MODES if "<" not in mode]  # e3nn has no right() for pairs of channels
UNWEIGHTED = ["uvu", "uvv", "uuu", "uvuv", "uvu<v"]
ROWS = 5


def arguments(mode, weighted=(True, True, True)):
    *irreps, paths = MODES[mode]
    return *irreps, [(*path, mode, w, 1.0 + n) for n, (path, w) in enumerate(zip(paths, weighted, strict=True))]


def pair(mode, weighted=(True, True, True), **options):
    """(e3nn's product, ours), with the same weights."""
    theirs, ours = (cls(*arguments(mode, weighted), **options) for cls in (o3.TensorProduct, eqtp.nn.TensorProduct))
    ours.load_state_dict(theirs.state_dict(), strict=True)
    return theirs, ours


def operands(product, *lead):
    return [testing.random(*lead, i.dim, seed=n) for n, i in enumerate((product.irreps_in1, product.irreps_in2))]


def outside_weights(product, *lead):
    return testing.random(*(() if product.shared_weights else lead), product.weight_numel, seed=7)


def path_by_path(product, weight):
    """The list of weights [..., *path_shape] that makes up this tensor."""
    sizes = [torch.Size(ins.path_shape) for ins in product.instructions if ins.has_weight]
    parts = weight.split([size.numel() for size in sizes], dim=-1)
    return [part.reshape(*weight.shape[:-1], *size) for part, size in zip(parts, sizes, strict=True)]

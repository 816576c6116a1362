"""A small MACE-like force field for acetylacetone, with Clebsch-Gordan or Gaunt products: errors and time side by side.

    python examples/acac.py [--products cg gaunt gaunt+odd] [--epochs N] [--channels N] [--batch N] [--device cpu|cuda]
      [--threads N]
                            [--seed 0] [--data PATH] [--full]

Trained on energies and forces of molecules at 300 K, tested on others at 300 K and at 600 K (data/acac; PBE-D3).
Without options it takes less than three minutes on one core and 100 frames: enough to compare products, far from
converged. --full: a larger network, trained for hours on a GPU (its settings are untested); give the folder of the
whole data set, github.com/davkovacs/BOTNet-datasets, as --data.

The network, per layer: convolution of the neighbours' features with the harmonics of the edges and learned radial
functions; products of the result with itself up to the third power, with weights of each element; a linear map.
Features are true tensors, parity (-1)^l; what the products make of the wrong parity (odd l1 + l2 + l3) is used within a
layer, where a second such product turns it into true tensors again.
"""

from __future__ import annotations

import argparse
import math
import re
import time
from pathlib import Path
from typing import NamedTuple

import torch
from tqdm import tqdm

import eqtp
from eqtp.ops.cg_tensor_product import cg_tensor_product
from eqtp.ops.gaunt_convolution import so2_paths

HERE = Path(__file__).resolve().parent
FILES = {"train": "train_300K.xyz", "300 K": "test_MD_300K.xyz", "600 K": "test_MD_600K.xyz"}
PRODUCTS = {"cg": "Clebsch-Gordan", "gaunt": "Gaunt", "gaunt+odd": "Gaunt + odd"}
LMAX, CUTOFF, BESSEL = 2, 5.0, 8


# ---- data


class Frames(NamedTuple):
    """Frames of one molecule: the same atoms in all."""

    elements: list[str]  # [n]
    positions: torch.Tensor  # [f, n, 3] A
    energy: torch.Tensor  # [f] eV, float64, less that of the isolated atoms
    forces: torch.Tensor  # [f, n, 3] eV/A

    def batch(self, index: torch.Tensor) -> Frames:
        return Frames(self.elements, *(t[index.to(t.device)] for t in self[1:]))

    def to(self, device: str) -> Frames:
        return Frames(self.elements, *(t.to(device) for t in self[1:]))


def read_xyz(path: Path) -> list[tuple[list[str], float, torch.Tensor]]:
    """Elements, energy and numbers [n, 3 or 6] (positions, forces) of each frame."""
    lines, frames = path.read_text().splitlines(), []
    while lines:
        n = int(lines[0])
        rows = [line.split() for line in lines[2 : n + 2]]
        numbers = torch.tensor([[float(v) for v in row[1:]] for row in rows], dtype=torch.float64)
        frames.append(([row[0] for row in rows], float(re.search(r"\benergy=(\S+)", lines[1])[1]), numbers))
        lines = lines[n + 2 :]
    return frames


def load(folder: Path) -> dict[str, Frames]:
    atoms = {elements[0]: energy for elements, energy, _ in read_xyz(folder / "isolated_atoms.xyz")}
    found = {}
    for key, name in FILES.items():
        frames = read_xyz(folder / name)
        elements = frames[0][0]
        if any(f[0] != elements for f in frames):
            raise ValueError(f"{folder / name}: the frames have different atoms")
        energy = torch.tensor([f[1] for f in frames], dtype=torch.float64) - sum(atoms[e] for e in elements)
        numbers = torch.stack([f[2] for f in frames])  # [f, n, 6]
        found[key] = Frames(elements, numbers[..., :3].float(), energy, numbers[..., 3:].float())
    return found


# ---- the network; features [atoms, channels, (l+1)^2]


def spread(w: torch.Tensor) -> torch.Tensor:
    """A number for each degree -> for each component: [..., l+1] -> [..., (l+1)^2]"""
    degree = torch.arange(w.shape[-1], device=w.device)
    return w.repeat_interleave(2 * degree + 1, -1, output_size=w.shape[-1] ** 2)


class Linear(torch.nn.Module):
    """Mixes the channels of each degree, [n, c, (lmax+1)^2] to the same."""

    def __init__(self, channels: int, lmax: int):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.randn(lmax + 1, channels, channels) / channels**0.5)

    def forward(self, x):
        return torch.cat(
            [torch.einsum("ncm,cd->ndm", x[..., l * l : (l + 1) ** 2], w) for l, w in enumerate(self.weight)], -1
        )


class ClebschGordanConvolution(torch.nn.Module):
    """The convolution of eqtp.nn.TensorProductConv (e3nn's "uvu"): radial weights for each path."""

    def __init__(self, lmax: int, channels: int, neighbors: float):
        super().__init__()

        def irreps(mul, l):
            return [(mul, (n, (-1) ** n)) for n in range(l + 1)]

        paths = [(*path, "uvu", True) for path in so2_paths(lmax, LMAX, LMAX) if sum(path) % 2 == 0]
        self.product = eqtp.nn.TensorProductConv(irreps(channels, lmax), irreps(1, LMAX), irreps(channels, LMAX), paths)
        self.lmax, self.channels, self.neighbors, self.weights = lmax, channels, neighbors, len(paths)

    def forward(self, x, r, h, graph):
        """x [n, c, (lmax+1)^2], r [e, 3], h [e, c, paths]"""
        blocks = torch.cat([x[..., l * l : (l + 1) ** 2].flatten(1) for l in range(self.lmax + 1)], 1)
        y = eqtp.spherical_harmonics(list(range(LMAX + 1)), r, True, "component")
        out = self.product(blocks, y, h.mT.flatten(1), graph=graph) / self.neighbors**0.5
        return torch.cat(
            [
                t.unflatten(1, (self.channels, -1))
                for t in out.split([self.channels * (2 * l + 1) for l in range(LMAX + 1)], 1)
            ],
            -1,
        )


class GauntConvolution(eqtp.nn.GauntConvolution):
    """Radial weights for each degree of the filter."""

    def __init__(self, lmax: int, channels: int, neighbors: float):
        super().__init__(lmax, LMAX, LMAX, channels, num_neighbors=neighbors)
        self.weights = LMAX + 1


class ClebschGordan(torch.nn.Module):
    """Product with a weight for each path, channelwise: a list with the sums of the paths with even (half 0) or odd
    (half 1) l1 + l2 + l3."""

    def __init__(self, channels: int, lmax_out: int, halves: tuple[int, ...]):
        super().__init__()
        paths = so2_paths(LMAX, lmax_out, LMAX)
        # paths that are added with this one
        same = [sum(p[2] == q[2] and sum(p) % 2 == sum(q) % 2 for p in paths) for q in paths]
        used = torch.tensor([[sum(path) % 2 == half for path in paths] for half in halves])
        self.weight = torch.nn.Parameter(torch.randn(channels, len(paths)))
        self.register_buffer("used", used / torch.tensor(same) ** 0.5, persistent=False)  # [halves, paths]
        self.lmax_out = lmax_out

    def forward(self, x1, x2):
        return [cg_tensor_product(x1, x2, self.lmax_out, self.weight * used) for used in self.used]


class Gaunt(eqtp.nn.GauntTensorProduct):
    """The same with the product (half 0) and the bracket (half 1), a weight for each degree."""

    def __init__(self, channels: int, lmax_out: int, halves: tuple[int, ...]):
        super().__init__(LMAX, LMAX, lmax_out, channels, odd=1 in halves)
        self.halves = halves
        self.w3.requires_grad_(0 in halves)

    def forward(self, x1, x2):
        out = super().forward(x1, x2)
        return [out[half] for half in self.halves] if self.odd else [out]


class ManyBody(torch.nn.Module):
    """Weighted sum of x, x x and x x x, with all paths to true tensors; otherwise as eqtp.nn.GauntManyBody. No odd path
    leads to a scalar."""

    def __init__(self, product: str, lmax_out: int, channels: int, elements: int):
        super().__init__()
        make = ClebschGordan if product == "cg" else Gaunt
        self.second, self.third = make(channels, LMAX, (0, 1) if lmax_out else (0,)), make(channels, lmax_out, (0,))
        self.odd_third = make(channels, lmax_out, (1,)) if lmax_out else None
        self.weight = torch.nn.Parameter(torch.randn(3, elements, channels, lmax_out + 1) / 3**0.5)

    def forward(self, x, element):
        second = self.second(x, x)
        third = self.third(second[0], x)[0]
        if self.odd_third is not None:
            third = (third + self.odd_third(second[1], x)[0]) / 2**0.5
        return sum(
            power[..., : third.shape[-1]] * spread(w[element])
            for power, w in zip((x, second[0], third), self.weight, strict=True)
        )


class Layer(torch.nn.Module):
    """Convolution, many-body product, linear map; and what it keeps of its input."""

    def __init__(self, product: str, lmax: int, lmax_out: int, channels: int, elements: int, neighbors: float):
        super().__init__()
        self.convolution = (ClebschGordanConvolution if product == "cg" else GauntConvolution)(
            lmax, channels, neighbors
        )
        silu, wide = torch.nn.SiLU, 32
        last = torch.nn.Linear(wide, channels * self.convolution.weights, bias=False)
        self.radial = torch.nn.Sequential(
            torch.nn.Linear(BESSEL, wide, bias=False), silu(), torch.nn.Linear(wide, wide), silu(), last
        )
        torch.nn.init.normal_(last.weight, std=2 / wide**0.5)
        self.before, self.after = Linear(channels, LMAX), Linear(channels, lmax_out)

        def gaunt():
            return eqtp.nn.GauntManyBody(LMAX, lmax_out, channels, 3, elements)

        self.product = gaunt() if product == "gaunt" else ManyBody(product, lmax_out, channels, elements)
        self.kept = torch.nn.Parameter(torch.ones(elements, channels, 1))

    def forward(self, x, element, r, radial, cutoff, graph):
        h = (self.radial(radial) * cutoff).unflatten(-1, (x.shape[1], -1))  # [e, c, weights]
        out = self.after(self.product(self.before(self.convolution(x, r, h, graph)), element))
        kept = x[..., :1] * self.kept[element]  # [n, c, 1]
        return torch.cat((out[..., :1] + kept, out[..., 1:]), -1)


class Network(torch.nn.Module):
    """Energy of molecules: a sum over atoms, read from the scalars of two layers."""

    def __init__(self, product: str, channels: int, elements: list[str], shift: float, scale: float, neighbors: float):
        super().__init__()
        kinds = sorted(set(elements))
        self.register_buffer("element", torch.tensor([kinds.index(e) for e in elements]))  # [n]
        # eV: mean energy of an atom; energies are learned in units of the forces' root mean square
        self.shift, self.scale = (
            shift,
            scale,
        )
        self.embed = torch.nn.Embedding(len(kinds), channels)
        self.layers = torch.nn.ModuleList(
            Layer(product, *lmaxes, channels, len(kinds), neighbors) for lmaxes in ((0, LMAX), (LMAX, 0))
        )
        self.first = torch.nn.Linear(channels, 1)
        self.second = torch.nn.Sequential(torch.nn.Linear(channels, 16), torch.nn.SiLU(), torch.nn.Linear(16, 1))

    def forward(self, positions: torch.Tensor, edges: tuple[torch.Tensor, torch.Tensor]) -> torch.Tensor:
        """positions [f, n, 3], edges (src, dst) of all frames' atoms in a row -> energies [f], less `shift` per atom"""
        frames, n, _ = positions.shape
        points, (src, dst) = positions.flatten(0, 1), edges
        graph = eqtp.Graph(src, dst, len(points), len(points))
        r = points[src] - points[dst]  # [e, 3]
        d = r.norm(dim=-1, keepdim=True) / CUTOFF
        order = torch.arange(1, BESSEL + 1, device=d.device) * math.pi
        radial = torch.sin(order * d) / d  # [e, BESSEL]
        cutoff = 1 - 21 * d**5 + 35 * d**6 - 15 * d**7  # two smooth derivatives at the cutoff
        element = self.element.repeat(frames)
        x = self.embed(element)[..., None]  # [f n, c, 1]
        out = 0
        for layer, read in zip(self.layers, (self.first, self.second), strict=True):
            x = layer(x, element, r, radial, cutoff, graph)
            out = out + read(x[..., 0])
        return out.view(frames, n).sum(1) * self.scale


def edges_of(positions: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Pairs of atoms of one frame closer than the cutoff: src and dst, counted over all frames."""
    n = positions.shape[1]
    near = (torch.cdist(positions, positions) < CUTOFF) & ~torch.eye(n, dtype=torch.bool, device=positions.device)
    frame, dst, src = near.nonzero(as_tuple=True)
    return frame * n + src, frame * n + dst


def evaluate(network: Network, frames: Frames, train: bool = False) -> tuple[torch.Tensor, torch.Tensor]:
    """Errors of the energy [f] in eV and of the forces [f, n, 3] in eV/A."""
    positions = frames.positions.detach().requires_grad_()
    energy = network(positions, edges_of(frames.positions))
    (gradient,) = torch.autograd.grad(energy.sum(), positions, create_graph=train)
    expected = (frames.energy - network.shift * len(frames.elements)).to(energy)
    return energy - expected, -gradient - frames.forces


# ---- training


def rmse(parts: list[torch.Tensor]) -> float:
    """Root mean square in thousandths."""
    return 1000 * torch.cat([p.detach().flatten() for p in parts]).square().mean().sqrt().item()


def train(product: str, data: dict[str, Frames], args: argparse.Namespace) -> dict:
    """Trains one network; returns errors, seconds per epoch and the number of parameters."""
    torch.manual_seed(args.seed)
    frames = data["train"]
    count, atoms = frames.positions.shape[:2]
    neighbors = len(edges_of(frames.positions)[0]) / (count * atoms)
    shift, scale = frames.energy.mean().item() / atoms, frames.forces.square().mean().sqrt().item()
    network = Network(product, args.channels, frames.elements, shift, scale, neighbors).to(args.device)
    optimizer = torch.optim.Adam(network.parameters(), lr=args.rate)
    steps = args.epochs * math.ceil(count / args.batch)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, args.rate, steps, pct_start=0.1)
    seconds = 0.0
    for _ in tqdm(range(args.epochs), desc=PRODUCTS[product], leave=False, disable=None):
        start = time.perf_counter()
        for index in torch.randperm(count).split(args.batch):
            energy, forces = evaluate(network, frames.batch(index), train=True)
            loss = (forces / scale).square().mean() + args.energy_weight * (energy / scale).square().mean() / atoms
            optimizer.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(network.parameters(), 10.0)
            optimizer.step()
            schedule.step()
        if args.device != "cpu":
            torch.cuda.synchronize()
        seconds += time.perf_counter() - start
    result = {
        "seconds": seconds / args.epochs,
        "parameters": sum(p.numel() for p in network.parameters() if p.requires_grad),
    }
    for key, part in data.items():
        errors = [evaluate(network, part.batch(index)) for index in torch.arange(len(part.energy)).split(50)]
        result[key] = rmse([e for e, _ in errors]), rmse([f for _, f in errors])
    return result


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--products", nargs="+", choices=list(PRODUCTS), default=list(PRODUCTS), help="what to compare")
    parser.add_argument(
        "--full",
        action="store_true",
        help="128 channels, 1,000 epochs, on a GPU if there is one; with --data for hours",
    )
    parser.add_argument(
        "--data", type=Path, default=HERE / "data" / "acac", help="folder with the xyz files, by default a part of them"
    )
    for name, kind, text in (
        ("epochs", int, "passes over the training frames"),
        ("channels", int, "of every degree"),
        ("device", str, "of torch"),
    ):
        parser.add_argument(f"--{name}", type=kind, help=text)
    parser.add_argument("--batch", type=int, default=5, help="frames in a step")
    parser.add_argument("--rate", type=float, help="largest learning rate")
    parser.add_argument(
        "--energy-weight", type=float, default=1.0, help="of the energy per atom^(1/2) beside the forces in the loss"
    )
    parser.add_argument(
        "--threads",
        type=int,
        default=1,
        help="of torch and of eqtp; the tensors of the short run are too small for more",
    )
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    defaults = (
        {"epochs": 1000, "channels": 128, "device": "cuda" if torch.cuda.is_available() else "cpu", "rate": 0.01}
        if args.full
        else {}
    )
    for name, value in ({"epochs": 50, "channels": 16, "device": "cpu", "rate": 0.02} | defaults).items():
        if getattr(args, name) is None:
            setattr(args, name, value)
    return args


def main() -> dict[str, dict]:
    args = arguments()
    torch.set_num_threads(args.threads)
    data = {key: frames.to(args.device) for key, frames in load(args.data).items()}
    sizes = ", ".join(f"{len(frames.energy)} {key}" for key, frames in data.items())
    model = f"{args.channels} channels, l <= {LMAX}"
    print(f"frames: {sizes}; {model}; {args.epochs} epochs; {args.device}, {args.threads} threads\n")
    columns = ("E train", "F train", "E 300 K", "F 300 K", "E 600 K", "F 600 K", "s/epoch", "weights")
    print(f"{'RMSE in meV, meV/A':<20}" + "".join(f"{column:>9}" for column in columns))

    def line(title, errors, rest):
        return print(f"{title:<20}" + "".join(f"{e:>9.1f}{f:>9.1f}" for e, f in errors) + rest, flush=True)

    mean = data["train"].energy.mean()
    line("(mean energy)", [(rmse([frames.energy - mean]), rmse([frames.forces])) for frames in data.values()], "")
    results = {}
    for product, title in PRODUCTS.items():
        if product in args.products:
            r = results[product] = train(product, data, args)
            line(title, [r[key] for key in data], f"{r['seconds']:>9.2f}{r['parameters']:>9,}")
    print(
        "\nE: energy of a molecule. After a short run errors change by 20 % and more from one --seed to the next: "
        "smaller differences mean nothing."
    )
    return results


if __name__ == "__main__":
    main()

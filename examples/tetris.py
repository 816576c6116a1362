"""Eight Tetris pieces, two of them mirror images of each other: what a product must have to tell them apart.

    python examples/tetris.py [--steps 150] [--rotations 50] [--seed 0]

The same tiny network is trained with each of three products: Clebsch-Gordan, Gaunt, and Gaunt with its odd half, the
bracket. It sees each piece in one orientation and is tested in random ones. All features have a definite parity, so a
number that changes sign in the mirror must come from a path with l1 + l2 + l3 odd; a plain Gaunt product has none: to
it the first two pieces are one. Takes seconds on one core; needs no data.
"""

from __future__ import annotations

import argparse
import time

import torch

import eqtp
from eqtp.ops.cg_tensor_product import cg_tensor_product
from eqtp.ops.gaunt_convolution import so2_paths

PIECES = {
    "chiral, left": [(0, 0, 0), (0, 0, 1), (1, 0, 0), (1, 1, 0)],
    "chiral, right": [(0, 0, 0), (0, 0, 1), (1, 0, 0), (1, -1, 0)],
    "square": [(0, 0, 0), (1, 0, 0), (0, 1, 0), (1, 1, 0)],
    "line": [(0, 0, 0), (0, 0, 1), (0, 0, 2), (0, 0, 3)],
    "corner": [(0, 0, 0), (0, 0, 1), (0, 1, 0), (1, 0, 0)],
    "L": [(0, 0, 0), (0, 0, 1), (0, 0, 2), (0, 1, 0)],
    "T": [(0, 0, 0), (0, 0, 1), (0, 0, 2), (0, 1, 1)],
    "zigzag": [(0, 0, 0), (1, 0, 0), (1, 1, 0), (2, 1, 0)],
}
PRODUCTS = {"cg": "Clebsch-Gordan", "gaunt": "Gaunt", "gaunt+odd": "Gaunt + odd"}
LMAX, CHANNELS = 2, 8


class ClebschGordan(torch.nn.Module):
    """Channelwise, a weight for each path: [n, c, 9] x [n, c, 9] -> the sums of the paths with even and with odd l1 +
    l2 + l3, [n, c, 9] each."""

    def __init__(self):
        super().__init__()
        paths = so2_paths(LMAX, LMAX, LMAX)
        self.register_buffer("odd", torch.tensor([sum(path) % 2 for path in paths]))
        self.weight = torch.nn.Parameter(torch.randn(CHANNELS, len(paths)) / 2)

    def forward(self, x1, x2):
        return tuple(cg_tensor_product(x1, x2, LMAX, self.weight * half) for half in (1 - self.odd, self.odd))


def make_product(name: str) -> torch.nn.Module:
    return (
        ClebschGordan()
        if name == "cg"
        else eqtp.nn.GauntTensorProduct(LMAX, LMAX, LMAX, CHANNELS, odd=name == "gaunt+odd")
    )


def dots(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """Scalar products of each degree: [n, c, 9], [n, c, 9] -> [n, 3 c]"""
    return torch.cat([(a * b)[..., l * l : (l + 1) ** 2].sum(-1) for l in range(LMAX + 1)], -1)


class Network(torch.nn.Module):
    """Cubes -> features of their surroundings -> product of two, scalar product with a third -> one logit per piece."""

    def __init__(self, product: str):
        super().__init__()
        self.product = make_product(product)
        self.radial = torch.nn.Linear(4, CHANNELS * (LMAX + 1))
        self.mix = torch.nn.Parameter(torch.randn(2, CHANNELS, CHANNELS) / CHANNELS**0.5)
        self.scalars = torch.nn.Sequential(
            torch.nn.Linear(CHANNELS * 4, 32), torch.nn.SiLU(), torch.nn.Linear(32, len(PIECES))
        )
        self.pseudo = torch.nn.Linear(CHANNELS * 3, 1, bias=False)

    def forward(self, positions: torch.Tensor) -> torch.Tensor:
        """positions [pieces, 4, 3] -> logits [pieces, 8]"""
        pieces, cubes, _ = positions.shape
        # [pieces, 4, 4, 3]; a cube also sees itself, at r = 0: harmonics are defined there
        r = positions[:, :, None] - positions[:, None]
        squares = r.square().sum(-1, keepdim=True)
        basis = torch.exp(-((squares - torch.tensor([1.0, 2.0, 3.0, 4.0])) ** 2))  # [pieces, 4, 4, 4]
        y = eqtp.spherical_harmonics([0, 1, 2], r, True, "component")  # [pieces, 4, 4, 9]
        h = self.radial(basis).unflatten(-1, (CHANNELS, LMAX + 1)).repeat_interleave(torch.tensor([1, 3, 5]), -1)
        a = torch.einsum("pijcm,pijm->picm", h, y).flatten(0, 1)  # [n, c, 9], true tensors of parity (-1)^l
        b, c = torch.einsum("kcd,ndm->kncm", self.mix, a)
        out = self.product(a, b)
        product, bracket = out if isinstance(out, tuple) else (out, None)
        logits = self.scalars(torch.cat([a[..., 0], dots(product, c)], -1)).view(pieces, cubes, -1).sum(1)
        if bracket is None:
            return logits
        # changes sign in the mirror, where the first two pieces change places
        sign = self.pseudo(dots(bracket, c)).view(pieces, cubes).sum(1)
        return logits + torch.stack([sign, -sign, *[torch.zeros_like(sign)] * 6], -1)


def random_rotations(n: int) -> torch.Tensor:
    q, _ = torch.linalg.qr(torch.randn(n, 3, 3, dtype=torch.float64))
    return (q * torch.linalg.det(q)[:, None, None]).float()


def train(product: str, steps: int, rotations: int, seed: int) -> dict:
    """Trains a network and returns what the table shows."""
    torch.manual_seed(seed)
    pieces = torch.tensor(list(PIECES.values()), dtype=torch.float32)  # [8, 4, 3]
    network, names = Network(product), torch.arange(len(pieces))
    optimizer = torch.optim.Adam(network.parameters(), lr=0.01)
    start = time.perf_counter()
    for _ in range(steps):
        optimizer.zero_grad()
        loss = torch.nn.functional.cross_entropy(network(pieces), names)
        loss.backward()
        optimizer.step()
    seconds = time.perf_counter() - start
    with torch.no_grad():
        turned = torch.einsum("kij,pcj->kpci", random_rotations(rotations), pieces)  # [rotations, 8, 4, 3]
        logits = network(turned.flatten(0, 1)).view(rotations, len(pieces), -1)
        still = network(pieces)
    right = (logits.argmax(-1) == names).all(0)  # in every orientation
    gap = (still[0] - still[1]).abs().max().item()
    return {
        "right": right,
        "loss": loss.item(),
        "gap": gap,
        "turn": (logits - still).abs().max().item(),
        "seconds": seconds,
    }


def main() -> dict[str, dict]:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=150, help="of training")
    parser.add_argument("--rotations", type=int, default=50, help="random orientations of each piece in the test")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    torch.set_num_threads(1)  # the tensors are too small for more
    columns = f"{'product':<16}{'right':>7}{'loss':>10}{'left - right':>15}{'by rotation':>14}{'seconds':>9}"
    print(f"{columns}   wrong in some orientation")
    results = {}
    for name, title in PRODUCTS.items():
        results[name] = r = train(name, args.steps, args.rotations, args.seed)
        wrong = ", ".join(piece for piece, ok in zip(PIECES, r["right"], strict=True) if not ok) or "-"
        figures = f"{int(r['right'].sum()):>5}/8{r['loss']:>10.1e}{r['gap']:>15.1e}{r['turn']:>14.1e}"
        print(f"{title:<16}{figures}{r['seconds']:>9.1f}   {wrong}")
    print(
        f"\nright: pieces named correctly in all of {args.rotations} random orientations. left - right: largest\n"
        "difference of the logits of the chiral pair. by rotation: largest change of a logit (rounding).\n"
        "A plain Gaunt product gives the pair the same logits: it has to guess."
    )
    return results


if __name__ == "__main__":
    main()

"""Every way to multiply two features that `python -m bench products` times, behind one interface; layouts, degrees of
freedom, errors.

Layouts, as in Price of Freedom (Xie et al., 2506.13523): which degrees the operands and the result have.

    siso    degree l by degree l to degree l: one path; a plain Gaunt product has none if l is odd, the vector-signal
            product none if it is even
    simo    degree l by degree l to all degrees 0 .. 2 l
    mimo    all degrees 0 .. l of both to all degrees 0 .. 2 l

All methods but those of e3nn take all degrees to l: in siso and simo the others are zeros, which costs time but is not
counted as bytes.

    gaunt, -sparse, -grid, -fourier   eqtp.gaunt_tensor_product by the route "auto" or by name
    gaunt+odd                         the same, "auto", with the bracket: the paths with an odd sum
    matrix                            eqtp.matrix_tensor_product
    vector-signal                     eqtp.vector_signal_tensor_product, its default legs
    cg-dense, cg-sparse               eqtp.cg_tensor_product, all paths
    e3nn-even, e3nn                   e3nn.o3.TensorProduct, mode uuu: the paths with an even sum (with Gaunt's
                                      coefficients), all paths
    published-*, dense-grid           bench/published.py
    pof-*                             bench/price_of_freedom.py

Degrees of freedom: dimension of the bilinear maps that weights reach (`eqtp.expressivity`), a weight for each degree of
each operand and of the result, for Clebsch-Gordan products for each path. The weights are not in the time.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from math import sqrt
from typing import NamedTuple

import numpy as np
import torch

import eqtp
from bench import harness, peers, price_of_freedom, published
from bench.harness import Missing
from eqtp.math.so3 import gaunt, wigner_3j
from eqtp.testing import random_rotation, relative_error, representation

LAYOUTS = ("siso", "simo", "mimo")
# method: the product that it calculates, which says its paths; "even": Clebsch-Gordan, paths with an even sum
OURS = {
    **dict.fromkeys(("gaunt", "gaunt-sparse", "gaunt-grid", "gaunt-fourier"), "gaunt"),
    "gaunt+odd": "gaunt+odd", "matrix": "matrix", "vector-signal": "vector-signal", "cg-dense": "cg", "cg-sparse": "cg",
}  # fmt: skip
PEERS = {
    "e3nn-even": "even", "e3nn": "cg", **dict.fromkeys(published.NAMES, "gaunt"),
    "pof-grid": "gaunt", "pof-cg-dense": "even", "pof-cg-sparse": "even", "pof-matrix": "matrix",
}  # fmt: skip
# pof-cg-sparse takes minutes to compile
GROUPS = {
    "published": published.NAMES,
    "pof": ("pof-grid", "pof-cg-dense", "pof-matrix"),
}
CHECK_ROWS, ROTATIONS = 20, 3


class Problem(NamedTuple):
    """Degrees of the operands and of the result. top: the largest degree of the result, if it is another than the
    layout's."""

    layout: str
    l: int
    top: int | None = None

    @property
    def lmax_out(self) -> int:
        if self.top is not None:
            return self.top
        return self.l if self.layout == "siso" else 2 * self.l

    @property
    def degrees_in(self) -> tuple[int, ...]:
        return tuple(range(self.l + 1)) if self.layout == "mimo" else (self.l,)

    @property
    def degrees_out(self) -> tuple[int, ...]:
        return (self.l,) if self.layout == "siso" else tuple(range(self.lmax_out + 1))

    def components(self, degrees: tuple[int, ...]) -> list[int]:
        """Of these degrees, in order."""
        return [k for l in degrees for k in range(l * l, (l + 1) ** 2)]


@cache
def paths(product: str, problem: Problem) -> tuple[tuple[int, int, int], ...]:
    """(l1, l2, l3) that the product couples in this layout, sorted."""
    if product in ("vector-signal", "even"):
        met = {
            p
            for p in eqtp.interactability("cg", problem.l, problem.lmax_out)
            if sum(p) % 2 == (product == "vector-signal")
        }
    else:
        met = eqtp.interactability(product, problem.l, problem.lmax_out)
    inside = [
        p for p in met if p[0] in problem.degrees_in and p[1] in problem.degrees_in and p[2] in problem.degrees_out
    ]
    return tuple(sorted(inside))


def halves(problem: Problem) -> list[int]:
    """Which results of gaunt+odd have a path in this layout: 0 the product, 1 the bracket."""
    return sorted({sum(path) % 2 for path in paths("gaunt+odd", problem)})


@cache
def degrees_of_freedom(product: str, problem: Problem) -> int:
    """The same count as `eqtp.expressivity`, of the paths of this layout. Each half of "gaunt+odd" has its own weights
    of the result."""
    found = paths(product, problem)
    if product in ("cg", "even"):
        return len(found)
    weights = [(("x1", a), ("x2", b), ("out", c, product == "gaunt+odd" and (a + b + c) % 2)) for a, b, c in found]
    columns = {w: n for n, w in enumerate(dict.fromkeys(w for row in weights for w in row))}
    incidence = np.zeros((len(found), len(columns)))  # [paths, weights]
    for row, used in zip(incidence, weights, strict=True):
        row[[columns[w] for w in used]] = 1
    return int(np.linalg.matrix_rank(incidence)) if found else 0


@dataclass
class Method:
    """One way to multiply x1 and x2 [b, c, (l+1)^2] to [b, c, components of the result]; see `published.Published`.

    pack: operands to what `call` takes. timed: makes what is clocked from the packed operands and the name of the pass.
    """

    call: Callable
    pack: Callable = lambda x: x
    unpack: Callable = lambda out: out
    bytes: int = 0  # of the largest tensor on the way, for one (b, c)
    timed: Callable | None = None

    def clocked(self, x1: torch.Tensor, x2: torch.Tensor, pass_: str) -> Callable[[], object]:
        """A call of the pass, all that comes before made."""
        if self.timed:
            return self.timed(x1, x2, pass_)
        inputs = tuple(self.pack(x).detach().requires_grad_(pass_ != "fwd") for x in (x1, x2))
        with torch.no_grad():
            cotangent = torch.randn_like(self.call(*inputs))
        return harness.call_of(self.call, inputs, cotangent, pass_)

    def __call__(self, x1: torch.Tensor, x2: torch.Tensor) -> torch.Tensor:
        return self.unpack(self.call(self.pack(x1), self.pack(x2)))


def op(name: str) -> Callable:
    """eqtp's op of this name; raises Missing."""
    try:
        return getattr(importlib.import_module(f"eqtp.ops.{name}"), name)
    except (ImportError, AttributeError):
        raise Missing(f"this eqtp has no {name}") from None


def _ours(name: str, problem: Problem, dtype: torch.dtype, backend: str) -> Method:
    kind, _, route = name.partition("-")
    title = {"gaunt+odd": "gaunt", "vector": "vector_signal"}.get(kind, kind) + "_tensor_product"
    f = op(title)
    own = "reference" if name == "cg-dense" else backend
    harness.require(own, title, None, dtype, torch.device("cpu"))
    options = {"method": route} if kind == "cg" or (kind == "gaunt" and route) else {}
    keep = problem.components(problem.degrees_out)
    if kind == "gaunt+odd":
        return Method(
            lambda x1, x2: torch.cat(f(x1, x2, problem.lmax_out, odd=True, backend=own), -1),
            unpack=lambda out: torch.cat([out.chunk(2, -1)[half][..., keep] for half in halves(problem)], -1),
        )
    return Method(lambda x1, x2: f(x1, x2, problem.lmax_out, backend=own, **options), unpack=lambda out: out[..., keep])


@cache
def _e3nn(product: str, problem: Problem, dtype: torch.dtype) -> Method:
    """Channels are rows: quicker than as multiplicities."""
    o3 = peers._import("e3nn.o3")
    irreps = [
        o3.Irreps([(1, (l, (-1) ** l)) for l in degrees])
        for degrees in (problem.degrees_in, problem.degrees_in, problem.degrees_out)
    ]
    if product == "cg":  # parities would forbid the paths with an odd sum
        irreps = [o3.Irreps([(mul, (ir.l, 1)) for mul, ir in each]) for each in irreps]

    def at(degrees, l):
        return degrees.index(l)

    instructions = []
    for l1, l2, l3 in paths(product, problem):
        factor = sqrt(2 * l3 + 1) if product == "cg" else (gaunt(l1, l2, l3) * wigner_3j(l1, l2, l3)).sum()
        place = at(problem.degrees_in, l1), at(problem.degrees_in, l2), at(problem.degrees_out, l3)
        instructions.append((*place, "uuu", False, factor**2))  # e3nn takes the root
    with peers._e3nn_mode("eager", dtype):
        module = o3.TensorProduct(*irreps, instructions, irrep_normalization="none", path_normalization="none")
    columns = problem.components(problem.degrees_in)
    return Method(
        lambda x1, x2: module(x1.flatten(0, 1), x2.flatten(0, 1)).unflatten(0, x1.shape[:2]),
        lambda x: x[..., columns].contiguous(),
    )


def _published(name: str, problem: Problem, dtype: torch.dtype) -> Method:
    p = published.product(name, problem.l, problem.l, problem.lmax_out, dtype)
    keep = problem.components(problem.degrees_out)
    return Method(p.call, p.pack1, lambda out: p.unpack(out)[..., keep], p.bytes)


def method(name: str, problem: Problem, dtype: torch.dtype, backend: str = "auto", pof: str | None = None) -> Method:
    """One of OURS or PEERS; raises Missing with the reason."""
    product = OURS.get(name) or PEERS[name]
    if not paths(product, problem):
        l = problem.l
        raise Missing(f"it has no path {l} x {l} -> {l}: the sum is {'odd' if l % 2 else 'even'}")
    if name in OURS:
        return _ours(name, problem, dtype, backend)
    if name.startswith("e3nn"):
        return _e3nn(product, problem, dtype)
    if name.startswith("pof-"):
        return Method(**price_of_freedom.method(name, problem, dtype, pof))
    return _published(name, problem, dtype)


def operands(problem: Problem, batch: int, channels: int, dtype: torch.dtype) -> list[torch.Tensor]:
    """x1 and x2 [batch, channels, (l+1)^2], zero at degrees that the layout has not."""
    keep = torch.zeros((problem.l + 1) ** 2, dtype=dtype)
    keep[problem.components(problem.degrees_in)] = 1
    return [harness.random(batch, channels, len(keep), dtype=dtype, seed=seed, grad=False) * keep for seed in (1, 2)]


def truth(name: str, problem: Problem, x1: torch.Tensor, x2: torch.Tensor) -> torch.Tensor | None:
    """What the method must give, from the reference in float64; None for a product of others that has another scale
    than ours."""
    ours = {"gaunt": "gaunt-grid", "even": "gaunt-grid", "cg": "cg-dense"}.get(OURS.get(name) or PEERS[name], name)
    if name.startswith("pof-") and name != "pof-grid":
        return None
    return method(ours, problem, torch.float64, "reference")(x1, x2)


def _rotation(degrees: tuple[int, ...], seed: int) -> torch.Tensor:
    irreps = " + ".join(f"1x{l}e" for l in degrees)
    return torch.from_numpy(representation(irreps, random_rotation(seed)))


@cache
def _turn(problem: Problem, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Matrices of a rotation, float64: of the operands, with all degrees, and of the result."""
    return _rotation(tuple(range(problem.l + 1)), seed), _rotation(problem.degrees_out, seed)


def errors(
    name: str, problem: Problem, f: Method, dtype: torch.dtype, channels: int = 1
) -> tuple[float | None, float | None]:
    """Largest error against `truth`, and of f(D x1, D x2) = D f(x1, x2) for random rotations D, relative to the largest
    value (each half of a pair to its own). None where the result of another code has a scale or an order of its own."""
    x1, x2 = (x.double() for x in operands(problem, CHECK_ROWS, channels, dtype))

    def f64(a, b):
        return f(a.to(dtype), b.to(dtype)).double()

    out, n = f64(x1, x2), len(problem.components(problem.degrees_out))

    def worst(got, want):
        return max(relative_error(a, b) for a, b in zip(got.split(n, -1), want.split(n, -1), strict=True))

    expected = truth(name, problem, x1, x2)
    error = None if expected is None else worst(out, expected)
    if expected is None and out.shape[-1] != n:
        return error, None
    turned = []
    for seed in range(ROTATIONS):
        d_in, d_out = _turn(problem, seed)
        turned.append(
            worst(f64(x1 @ d_in.T, x2 @ d_in.T), torch.cat([part @ d_out.T for part in out.split(n, -1)], -1))
        )
    return error, max(turned)

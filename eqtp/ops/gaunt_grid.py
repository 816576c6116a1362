"""The grid route of the Gaunt product in plain torch: values on a folded grid, whose symmetries `eqtp.math.sphere`
explains. The batch is the last dimension, so that each of the eight kinds of components is one matrix product."""

from __future__ import annotations

from math import prod

import torch

from eqtp.math import sphere as tables
from eqtp.ops.coefficients import as_rows, degree_of
from eqtp.ops.constants import constants


def by_kind(x: torch.Tensor, octant: tables.Octant) -> torch.Tensor:
    """[b, (lmax+1)^2] -> [8, N, b]"""
    return torch.nn.functional.pad(x.mT, (0, 0, 0, 1))[octant.take]


def butterflies(t: torch.Tensor) -> torch.Tensor:
    """[8, P, b], kinds -> images or back"""
    return (constants("hadamard", like=t) @ t.flatten(1)).view_as(t)


def project(values: torch.Tensor, octant: tables.Octant) -> torch.Tensor:
    """Values at the images of the octant [8, P, b] -> components [b, (lmax+1)^2]"""
    return (octant.projection @ butterflies(values)).flatten(0, 1)[octant.place].mT


def grid(x1: torch.Tensor, x2: torch.Tensor, lmax_out: int, odd: bool) -> tuple[torch.Tensor, ...]:
    """By values on a folded grid. x1 [..., (lmax1+1)^2], x2 [..., (lmax2+1)^2] -> (product,) or (product, bracket),
    [..., (lmax_out+1)^2]."""
    size = tables.folded_size(degree_of(x1) + degree_of(x2) + lmax_out)
    lead = torch.broadcast_shapes(x1.shape[:-1], x2.shape[:-1])
    flip_y, flip_x = (torch.arange(8, device=x1.device) ^ bit for bit in (1, 4))
    fields = []
    for x in (x1, x2):
        t = constants("octant", degree_of(x), *size, like=x1)
        shape = (1,) * (len(lead) - x.ndim + 1) + x.shape[:-1]  # of as many dimensions as the result
        kinds = by_kind(as_rows(x), t)
        parts = [t.values @ kinds]
        if odd:  # d/dbeta and d/dalpha / sin(beta)
            parts += [t.down @ kinds[flip_y], t.east @ kinds[flip_x]]
        fields.append([butterflies(part).view(*part.shape[:2], *shape) for part in parts])
    f, g = fields
    values = [f[0] * g[0]]  # [8, P, *lead]
    if odd:
        values.append(f[1] * g[2] - f[2] * g[1])
    out = constants("octant", lmax_out, *size, like=x1)
    return tuple(project(v.reshape(*v.shape[:2], prod(lead)), out).view(*lead, (lmax_out + 1) ** 2) for v in values)

"""A plan as the columns that the table-driven CUDA kernels read (csrc/channelwise), for one walk."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from eqtp.plans.plan import TensorProductPlan


class WalkColumns(NamedTuple):
    """Tables for the walk over destinations or over sources; the structs of csrc/channelwise/table_driven.cuh say what
    the columns mean."""

    units: np.ndarray  # int32 [units, 10]
    paths: np.ndarray  # int32 [paths, 4]
    columns: np.ndarray  # int32 [entries, 2]
    terms: np.ndarray  # float64 [entries, 2]
    y_ptr: np.ndarray  # int32 [blocks (dim2 + 1)]
    y_entry: np.ndarray  # int32 [terms]
    y_term: np.ndarray  # float64 [terms]
    # number of units; the most components of a unit, components of a block across from it, entries of M
    sizes: tuple[int, int, int, int]


def _entries(p: TensorProductPlan, q) -> tuple[np.ndarray, np.ndarray]:
    """The entries of M of path q, each a sum of at most two terms: columns of y and coefficients, [d1, d3, 2] each."""
    c = p.coefficients(q)  # [d1, d2, d3]
    if (c != 0).sum(axis=1).max() > 2:
        raise ValueError("tensor_product: more than two coefficients couple one component of x1 with one of the output")
    # a column of zeros, as the second term of a path with one column
    c = np.concatenate([c, np.zeros((c.shape[0], 1, c.shape[2]))], axis=1)
    first = np.argsort(c == 0, axis=1, kind="stable")[:, :2]  # [d1, 2, d3], non-zero ones first
    terms = np.take_along_axis(c, first, axis=1)
    columns = p.irreps_in2.slices()[q.i2].start + np.where(terms != 0, first, 0)
    return np.moveaxis(columns, 1, 2), np.moveaxis(terms, 1, 2)


def _lane_tiles(a: np.ndarray) -> list[np.ndarray]:
    """[rows, d, 2] in tiles of the components that a lane holds: [rows, K, 2] each, K = 1, 4 or 8, padded with
    zeros."""
    d = a.shape[1]
    size = 1 if d == 1 else 4 if d == 3 else 8
    a = np.pad(a, ((0, 0), (0, -d % size), (0, 0)))
    return np.split(a, a.shape[1] // size, axis=1)


def walk_columns(p: TensorProductPlan, forward: bool) -> WalkColumns:
    """Tables of a walk. A unit is 32 channels of a block of the output (forward) or of x; forward, blocks of more than
    8 components are split."""
    own, across = (p.irreps_out, p.irreps_in1) if forward else (p.irreps_in1, p.irreps_out)
    starts = [s.start for s in across.slices()]
    units, paths, columns, terms, y_ptr, y_entry, y_term = [], [], [], [], [], [], []
    entries = 0  # so far
    for slot, (s, (mul, ir)) in enumerate(zip(own.slices(), own, strict=True)):
        mine = [q for q in p.paths if (q.io if forward else q.i1) == slot]
        pairs = [[np.swapaxes(a, 0, 1) if not forward else a for a in _entries(p, q)] for q in mine]
        tiles = [[_lane_tiles(a) for a in pair] for pair in pairs]  # [path][columns, terms][tile]
        count = -(-ir.dim // 8)  # tiles
        for part in [[k] for k in range(count)] if forward else [range(count)]:
            first_path, first_entry = len(paths), entries
            for q, pair in zip(mine, tiles, strict=True):
                a, b = (np.concatenate([tile[k].reshape(-1, 2) for k in part]) for tile in pair)
                other = q.i1 if forward else q.io
                paths.append((starts[other], across[other].ir.dim, q.weight_offset, entries - first_entry))
                columns.append(a)
                terms.append(b)
                entries += len(a)
            position = first_path, len(paths), first_entry, entries - first_entry, len(y_ptr)
            units += [(s.start, ir.dim, mul, u, 8 * part[0], *position) for u in range(0, mul, 32)]
        if not forward:  # the terms of the block's entries again, by column of y
            a, b = (np.concatenate([np.zeros((0, 2)), *t[len(t) - len(mine) :]]).ravel() for t in (columns, terms))
            order = np.argsort(a, kind="stable")
            order = order[b[order] != 0]
            y_ptr += (
                sum(map(len, y_term))
                + np.concatenate([[0], np.bincount(a[order].astype(int), minlength=p.dim_in2).cumsum()])
            ).tolist()
            y_entry.append(order // 2)
            y_term.append(b[order])

    def table(rows, width):
        return np.array(rows, np.int32).reshape(-1, width)

    def join(parts, width, dtype):
        return np.concatenate([np.zeros((0, *width)), *parts]).astype(dtype)

    sizes = (
        len(units),
        *(max((row[n] for row in rows), default=0) for rows, n in ((units, 1), (paths, 1), (units, 8))),
    )
    tables = table(units, 10), table(paths, 4), join(columns, (2,), np.int32), join(terms, (2,), np.float64)
    return WalkColumns(
        *tables, np.array(y_ptr, np.int32), join(y_entry, (), np.int32), join(y_term, (), np.float64), sizes
    )

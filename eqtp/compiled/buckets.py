"""Buckets: capacities of atoms and edges to which inputs are padded, so that a program sees few sizes, as a CUDA graph
needs, which is a program of one size.

A bucket is chosen by the sizes of the tensors, which the host knows: nothing waits for a device, and what does not fit
into one bucket goes into the next. The program itself is told how much counts, and replaces what stands behind.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch

from eqtp.compiled.signature import Input, Signature

GROWTH = 1.25  # from a capacity to the next
ATOMS, EDGES = 16, 64  # the smallest capacities
EDGES_PER_ATOM = 64  # of padding: as long a walk as that of an atom of a crystal


class Bucket(NamedTuple):
    """Capacities."""

    atoms: int
    edges: int


def bucket_of(atoms: int, edges: int, growth: float) -> Bucket:
    """The smallest bucket that holds these, and the atoms to which edges of the padding go, at least one."""
    most = _capacity(edges, EDGES, growth)
    ends = max(1, math.ceil((most - edges) / EDGES_PER_ATOM))
    return Bucket(_capacity(atoms + ends, ATOMS, growth), most)


def _capacity(count: int, least: int, growth: float) -> int:
    while least < count:
        least = math.ceil(least * growth)  # larger, since growth > 1
    return least


def without_counts(signature: Signature) -> Signature:
    """The signature of a program with padding, as the caller sees it: without its first input.

    Raises ValueError if the program relies on sizes, which would be those of the bucket.
    """
    if signature.conditions:
        raise ValueError(f"compile: with buckets the model must do the same for all sizes: {signature.conditions[0]}")
    return signature._replace(inputs=signature.inputs[1:])


class Bucketed:
    """A program with padding as one without: (*tensors) -> outputs, cut to the size of the input.

    run: (counts [2] int64, *padded tensors) -> outputs. inputs: the tensors, without counts. rows: for each output
    "atoms" if it has a row for each, or None. cuda_graphs: a bucket is captured when it is first used, and replayed
    afterwards; then one call at a time.
    """

    def __init__(self, run: Callable, inputs: Sequence[Input], rows: Sequence[str | None], growth: float, cuda_graphs):
        self.run, self.inputs, self.rows, self.growth = run, inputs, rows, growth
        self._captured: dict | None = {} if cuda_graphs else None

    def __call__(self, *tensors: torch.Tensor) -> list[torch.Tensor]:
        shapes = [zip(given.shape, t.shape, strict=True) for given, t in zip(self.inputs, tensors, strict=True)]
        sizes = {name: size for shape in shapes for name, size in shape if isinstance(name, str)}
        bucket = bucket_of(sizes["atoms"], sizes["edges"], self.growth)
        if self._captured is None:
            outputs = self.run(*_fill(self._buffers(tensors, sizes | bucket._asdict()), tensors, sizes))
        else:
            key = (bucket, *(size for name, size in sizes.items() if name not in Bucket._fields))
            outputs = self._replay(key, tensors, sizes, sizes | bucket._asdict())
        return [out[: sizes[row]] if row else out for out, row in zip(outputs, self.rows, strict=True)]

    def _buffers(self, tensors, capacities: dict[str, int]) -> list[torch.Tensor]:
        shapes = [[capacities.get(size, size) for size in given.shape] for given in self.inputs]
        counts = tensors[0].new_empty(2, dtype=torch.int64)
        return [counts, *(t.new_empty(shape) for t, shape in zip(tensors, shapes, strict=True))]

    def _replay(self, key, tensors, sizes: dict, capacities: dict) -> list[torch.Tensor]:
        """Never run on a GPU so far."""
        if key not in self._captured:
            buffers = _fill(self._buffers(tensors, capacities), tensors, sizes)
            self._captured[key] = buffers, *_capture(self.run, buffers)
        buffers, graph, outputs = self._captured[key]
        _fill(buffers, tensors, sizes)
        graph.replay()
        return [out.clone() for out in outputs]  # the next replay writes to them


def _fill(buffers: list[torch.Tensor], tensors: Sequence[torch.Tensor], sizes: dict[str, int]) -> list[torch.Tensor]:
    """The buffers with counts and tensors in front; what stands behind is left."""
    counts, *rest = buffers
    counts[0], counts[1] = sizes["atoms"], sizes["edges"]
    for buffer, t in zip(rest, tensors, strict=True):
        buffer[tuple(slice(size) for size in t.shape)].copy_(t)
    return buffers


def _capture(run: Callable, buffers: list[torch.Tensor]) -> tuple:
    """The program on these buffers as a CUDA graph, and its outputs. Never run on a GPU so far."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):  # once before, so that libraries allocate what they keep
        run(*buffers)
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        outputs = run(*buffers)
    return graph, outputs

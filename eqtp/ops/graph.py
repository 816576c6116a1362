"""Graphs: the edges of a neighbour list, sorted once by destination (CSR), shared by all layers that use them."""

from __future__ import annotations

import threading

import torch

from eqtp.backends.native import library
from eqtp.ops.autograd import define


def _check_range(name: str, index: torch.Tensor, num: int) -> None:
    if index.numel():
        low, high = (int(v) for v in torch.aminmax(index))
        if low < 0 or high >= num:
            raise ValueError(f"Graph: {name} must be in [0, {num}), got {low if low < 0 else high}")


def _csr(index: torch.Tensor, num: int) -> tuple[torch.Tensor, torch.Tensor]:
    """ptr [num + 1] and order [e] of an index [e]; raises ValueError for a value out of range."""
    if index.device.type == "cpu" and library.why_not("csr", index.device, torch.float32) is None:
        ptr, order, bad = library.csr(index, num)
        if bad >= 0:
            raise ValueError(f"Graph: dst must be in [0, {num}), got {int(index[bad])} at edge {bad}")
        return ptr, order
    _check_range("dst", index, num)
    ordered, order = torch.sort(index, stable=True)
    return torch.searchsorted(ordered, torch.arange(num + 1, device=index.device)), order


def _int64_copy(index: torch.Tensor) -> torch.Tensor:
    """A contiguous int64 copy, so that a graph does not change with the caller's tensors."""
    return index.to(torch.int64, memory_format=torch.contiguous_format, copy=True)


def _build(src, dst, num_src, num_dst):
    _check_range("src", src, num_src)
    src, dst = _int64_copy(src), _int64_copy(dst)
    return src, dst, *_csr(dst, num_dst)


def _fake(src, dst, num_src, num_dst):
    e = src.shape[0]

    def column(n):
        return src.new_empty(n, dtype=torch.int64)

    return column(e), column(e), column(num_dst + 1), column(e)


_op = define(
    "graph",
    "(Tensor src, Tensor dst, SymInt num_src, SymInt num_dst) -> (Tensor, Tensor, Tensor, Tensor)",
    _build,
    _fake,
)


class Graph:
    """Edges from sources to destinations.

    src, dst: [e] int32 or int64, any order; edge n goes from source src[n] to destination dst[n] (dst receives).
    num_src, num_dst: rows of the source features and of the output; they are independent (ghost atoms, bipartite
    graphs), and zero is valid.

    sort: False for a neighbour list that serves a call or two: edges are then sorted only if a kernel needs it. Unless
    torch.use_deterministic_algorithms is on, the specialised convolution kernels then add with atomics: repeats
    differ in their last bits, and sums of very many edges lose digits.

    Attributes: src, dst [e] int64; ptr [num_dst + 1] and order [e] int64: the edges into n, in the order given, are
    order[ptr[n] : ptr[n + 1]]; num_src, num_dst, num_edges.

    Raises TypeError for a dtype other than int32 or int64, ValueError for a wrong shape, device or index range.
    """

    def __init__(self, src: torch.Tensor, dst: torch.Tensor, num_src: int, num_dst: int, sort: bool = True):
        for name, t in (("src", src), ("dst", dst)):
            if not isinstance(t, torch.Tensor):
                raise TypeError(f"Graph: {name} must be a tensor, got {type(t).__name__}")
            if t.dtype not in (torch.int32, torch.int64):
                raise TypeError(f"Graph: {name} must be int32 or int64, got {t.dtype}")
            if t.ndim != 1:
                raise ValueError(f"Graph: {name} must be [e], got {list(t.shape)}")
        if src.shape[0] != dst.shape[0]:
            raise ValueError(f"Graph: src and dst must have one length, got {src.shape[0]} and {dst.shape[0]}")
        if src.device != dst.device:
            raise ValueError(f"Graph: src and dst must be on one device, got {src.device} and {dst.device}")
        for name, n in (("num_src", num_src), ("num_dst", num_dst)):
            if isinstance(n, bool) or not isinstance(n, (int, torch.SymInt)):
                raise TypeError(f"Graph: {name} must be an int, got {type(n).__name__}")
            if n < 0:
                raise ValueError(f"Graph: {name} must not be negative, got {n}")
        self.num_src, self.num_dst, self.num_edges = num_src, num_dst, src.shape[0]
        self._transpose = None
        if sort:
            self.src, self.dst, self._ptr, self._order = _op(src, dst, num_src, num_dst)
        else:
            _check_range("src", src, num_src), _check_range("dst", dst, num_dst)
            self.src, self.dst = _int64_copy(src), _int64_copy(dst)
            self._ptr = self._order = None

    @property
    def is_sorted(self) -> bool:
        """Whether ptr and order have been computed."""
        return self._ptr is not None

    @property
    def ptr(self) -> torch.Tensor:
        """[num_dst + 1] int64: where the edges into each destination begin in `order`."""
        return self._sort()._ptr

    @property
    def order(self) -> torch.Tensor:
        """[e] int64: the edges sorted by destination."""
        return self._sort()._order

    def _sort(self) -> Graph:
        if self._ptr is None:
            _, _, self._ptr, self._order = _op(self.src, self.dst, self.num_src, self.num_dst)
        return self

    def transpose(self) -> Graph:
        """The transposed graph, every edge reversed; built once."""
        if self._transpose is None:
            self._transpose = Graph(self.dst, self.src, self.num_dst, self.num_src)
            self._transpose._transpose = self
        return self._transpose

    def to(self, device) -> Graph:
        """The graph on another device, without sorting again; itself if it is already there."""
        if self.src.device == torch.device(device):
            return self
        pair = []  # this graph and its transpose, if it has been built
        for graph in filter(None, (self, self._transpose)):
            pair.append(Graph.__new__(Graph))
            pair[-1].__dict__ = {
                name: v.to(device) if isinstance(v, torch.Tensor) else v for name, v in vars(graph).items()
            }
        pair[0]._transpose, pair[-1]._transpose = (pair[1], pair[0]) if len(pair) > 1 else (None, None)
        return pair[0]

    def __repr__(self) -> str:
        return f"Graph({self.num_edges} edges, {self.num_src} -> {self.num_dst} nodes, {self.src.device})"


_recent: list[Graph] = []  # newest last
_lock = threading.Lock()


def shared(src: torch.Tensor, dst: torch.Tensor, num_src: int, num_dst: int, keep: int = 4) -> Graph:
    """A Graph of these edges; the same object for the same edges, so that the layers of a model share one.

    The last `keep` graphs are cached and compared by value (never by address: a neighbour list changed in place is a
    different graph). Under torch.compile and torch.export nothing is cached.
    """
    if torch.compiler.is_compiling() or src.is_meta or torch._C._are_functorch_transforms_active():
        return Graph(src, dst, num_src, num_dst)
    with _lock:
        for n, g in enumerate(_recent):
            if (g.num_edges, g.num_src, g.num_dst, g.src.device) != (src.shape[0], num_src, num_dst, src.device):
                continue
            if torch.equal(g.dst, dst.to(torch.int64)) and torch.equal(g.src, src.to(torch.int64)):
                _recent.append(_recent.pop(n))
                return g
    g = Graph(src, dst, num_src, num_dst)
    with _lock:
        _recent.append(g)
        del _recent[:-keep]
    return g

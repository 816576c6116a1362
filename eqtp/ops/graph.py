"""Graphs: the edges of a neighbour list, sorted once by destination (CSR), shared by all layers that use them."""

from __future__ import annotations

import torch

from eqtp.backends.native import library, operators
from eqtp.ops.autograd import define
from eqtp.ops.coefficients import as_integer
from eqtp.ops.remembered import may_keep, remembered

CHECKS = (True, False, "async")


# ------------------------------------------------------------------------ columns
def _out_of_range(src, dst, valid, num_src: int, num_dst: int) -> torch.Tensor:
    """[2, e] bool: sources and destinations of valid edges that are out of range."""
    bad = torch.stack([(src < 0) | (src >= num_src), (dst < 0) | (dst >= num_dst)])
    return bad if valid is None else bad & valid


def _raise_out_of_range(e: int, is_dst: bool, index, num: int) -> None:
    name = "dst" if is_dst else "src"
    raise ValueError(f"Graph: {name} must be in [0, {num}), got {int(index[e])} at edge {e}")


def _check_edges(src, dst, valid, num_src: int, num_dst: int, check: str) -> None:
    """check: "now" waits for the device and raises ValueError, "async" lets the device fail."""
    bad = _out_of_range(src, dst, valid, num_src, num_dst)
    if check == "async":
        torch._assert_async(~bad.any(), f"Graph: src must be in [0, {num_src}), dst in [0, {num_dst})")
    elif check == "now" and bad.numel():
        first = int(torch.where(bad.any(), bad.flatten().int().argmax(), -1))  # the only wait
        if first >= 0:
            is_dst, e = divmod(first, bad.shape[1])
            _raise_out_of_range(e, bool(is_dst), dst if is_dst else src, num_dst if is_dst else num_src)


def _has_kernels(index: torch.Tensor) -> bool:
    return index.device.type == "cpu" and library.why_not("csr", index.device, torch.float32) is None


def _edges(src, dst, valid, num_src: int, num_dst: int, check: str):
    """int64 copies, so that a graph does not change with the caller's tensors; an edge that is not valid goes from
    source 0 to destination num_dst."""
    if src.dtype != dst.dtype:
        src, dst = src.long(), dst.long()
    if _has_kernels(src):
        *copies, bad = library.edges(src, dst, valid, num_src, num_dst)
        if bad >= 0:
            _raise_out_of_range(bad // 2, bad % 2 == 1, (src, dst)[bad % 2], (num_src, num_dst)[bad % 2])
        return tuple(copies)
    capturing = src.is_cuda and torch.cuda.is_current_stream_capturing()
    _check_edges(src, dst, valid, num_src, num_dst, "async" if check == "now" and capturing else check)
    copies = [t.to(torch.int64, memory_format=torch.contiguous_format, copy=True) for t in (src, dst)]
    if valid is not None:
        copies = [t.masked_fill_(~valid, n) for t, n in zip(copies, (0, num_dst), strict=True)]
    return tuple(copies)


def _csr(index, num: int):
    """ptr [num + 1] and order [e], by a stable sort, of an index [e] with values in [0, num]; num: in no segment."""
    if _has_kernels(index):
        return library.csr(index, num)
    # a radix sort of narrow keys has half the passes
    keys = index.to(torch.int32) if num < 2**31 else index
    ordered, order = torch.sort(keys, stable=True)
    bounds = torch.arange(num + 1, dtype=keys.dtype, device=index.device)
    return torch.searchsorted(ordered, bounds), order


# Numbers of nodes come to the ops as tensors [n, 0]: torch.jit.trace would make constants of integers
_edges_op = define(
    "graph_edges",
    "(Tensor src, Tensor dst, Tensor? valid, Tensor src_nodes, Tensor dst_nodes, str check) -> (Tensor, Tensor)",
    lambda src, dst, valid, src_nodes, dst_nodes, check: _edges(src, dst, valid, len(src_nodes), len(dst_nodes), check),
    lambda src, *_: tuple(src.new_empty(src.shape[0], dtype=torch.int64) for _ in range(2)),
)
_csr_op = define(
    "graph_csr",
    "(Tensor index, Tensor nodes) -> (Tensor, Tensor)",
    lambda index, nodes: _csr(index, len(nodes)),
    lambda index, nodes: (index.new_empty(nodes.shape[0] + 1), index.new_empty(index.shape[0])),
)


def _call(op, *args):
    """The columns that an op makes: in inference mode, too, of use in training."""
    if not torch.compiler.is_compiling() and torch.is_inference_mode_enabled():
        with torch.inference_mode(False):
            return op(*args)
    return op(*args)


def _sort(index: torch.Tensor, num: int):
    """ptr [num + 1] and order [e] of an index [e]."""
    return _call(_csr_op, index, index.new_empty(num, 0))


def transposed_csr(src: torch.Tensor, dst: torch.Tensor, num_src: int, num_dst: int, padded: bool):
    """ptr [num_src + 1] and order [e] of the edges by source, from a graph's src and dst [e]: sorted once for a graph,
    when the first backward asks."""

    def sort():
        return _sort(torch.where(dst == num_dst, num_src, src) if padded else src, num_src)

    return remembered((src, dst), ("transposed", num_src, num_dst, padded), sort)


# ------------------------------------------------------------------------ arguments
def _check_index(name: str, t) -> None:
    if not isinstance(t, torch.Tensor):
        raise TypeError(f"Graph: {name} must be a tensor, got {type(t).__name__}")
    if t.dtype not in (torch.int32, torch.int64):
        raise TypeError(f"Graph: {name} must be int32 or int64, got {t.dtype}")
    if t.ndim != 1:
        raise ValueError(f"Graph: {name} must be [e], got {list(t.shape)}")


def _count(name: str, n):
    """A number of nodes: an integer of any kind (of NumPy, too)."""
    if isinstance(n, torch.Tensor) and torch.jit.is_tracing() and n.ndim == 0:
        return n  # a size in torch.jit.trace
    symbol = isinstance(n, (int, torch.SymInt)) and not isinstance(n, bool)  # torch.compile's are ints
    count = n if symbol else None if isinstance(n, torch.Tensor) else as_integer(n)
    if count is None:
        raise TypeError(f"Graph: {name} must be an int, got {type(n).__name__}")
    if count < 0:
        raise ValueError(f"Graph: {name} must not be negative, got {count}")
    return count


def _valid_edges(e: int, device, num_edges, mask) -> torch.Tensor | None:
    """[e] bool: the edges that count; None: all."""
    if mask is not None:
        if num_edges is not None:
            raise ValueError("Graph: give num_edges or mask, not both")
        if not isinstance(mask, torch.Tensor) or mask.dtype != torch.bool:
            raise TypeError(f"Graph: mask must be a bool tensor, got {getattr(mask, 'dtype', type(mask).__name__)}")
        if mask.ndim != 1 or mask.shape[0] != e or mask.device != device:
            raise ValueError(f"Graph: mask must be [{e}] on {device}, got {list(mask.shape)} on {mask.device}")
        return mask
    if num_edges is None:
        return None
    if isinstance(num_edges, torch.Tensor):
        if num_edges.dtype not in (torch.int32, torch.int64) or num_edges.numel() != 1:
            got = f"{num_edges.dtype} {list(num_edges.shape)}"
            raise TypeError(f"Graph: num_edges must be one integer, got {got}")
        if num_edges.device != device:
            raise ValueError(f"Graph: num_edges must be on {device}, got {num_edges.device}")
        num_edges = num_edges.reshape(())
    else:
        num_edges = _count("num_edges", num_edges)
        if num_edges > e:
            raise ValueError(f"Graph: num_edges must be at most {e}, got {num_edges}")
    return torch.arange(e, device=device) < num_edges


def _check_ptr(ptr: torch.Tensor, e: int, padded: bool, how: str) -> None:
    if how == "no":
        return
    ends = ptr[-1] <= e if padded else ptr[-1] == e
    right = (ptr[0] == 0) & ends & (ptr.diff() >= 0).all()
    message = f"Graph: ptr must begin with 0, must not decrease and end with {e}{' or less' if padded else ''}"
    if how == "async":
        torch._assert_async(right, message)
    elif not bool(right):
        raise ValueError(message)


def _check_name(check) -> str:
    if not any(check is known for known in CHECKS):
        raise ValueError(f"Graph: check must be True, False or 'async', got {check!r}")
    return {True: "now", False: "no", "async": "async"}[check]


class Graph:
    """Edges from sources to destinations.

    src, dst: [e] int32 or int64, any order; edge n goes from source src[n] to destination dst[n] (dst receives).
    num_src, num_dst: rows of the source features and of the output; they are independent (bipartite graphs), and zero
    is valid. Ghost atoms: number the owned ones first, num_dst of them, and all num_src > num_dst as sources.

    sort: False for a neighbour list that serves a call or two: edges are then sorted only if a kernel needs it. Unless
    torch.use_deterministic_algorithms is on, the specialised convolution kernels then add with atomics: repeats
    differ in their last bits, and sums of very many edges lose digits.
    num_edges, mask: padding. Only the first num_edges edges count (an int, or one integer on the device), or those
    where mask [e] is True; the others have rows in every edge tensor, may hold anything, get zeros as output and as
    gradient, and add nothing.
    check: whether indices are in range. True raises ValueError, for which the host waits for a GPU once; "async" makes
    the GPU fail with an assertion, without a wait; False trusts them. On a CPU they are always checked, and while a
    CUDA graph is captured True is "async".

    Attributes: src, dst [e] int64; ptr [num_dst + 1] and order [e] int64: the edges into n, in the order given, are
    order[ptr[n] : ptr[n + 1]]; num_src, num_dst; num_edges = e, with padding; valid [e] bool, None without padding.
    Edges that do not count have src 0 and dst num_dst, and come last in order.

    Raises TypeError for a dtype other than int32 or int64, ValueError for a wrong shape, device or index range.
    """

    def __init__(
        self,
        src: torch.Tensor,
        dst: torch.Tensor,
        num_src: int,
        num_dst: int,
        sort: bool = True,
        *,
        num_edges: int | torch.Tensor | None = None,
        mask: torch.Tensor | None = None,
        check: bool | str = True,
    ):
        _check_index("src", src), _check_index("dst", dst)
        if src.shape[0] != dst.shape[0]:
            raise ValueError(f"Graph: src and dst must have one length, got {src.shape[0]} and {dst.shape[0]}")
        if src.device != dst.device:
            raise ValueError(f"Graph: src and dst must be on one device, got {src.device} and {dst.device}")
        self.num_src, self.num_dst = _count("num_src", num_src), _count("num_dst", num_dst)
        self.num_edges = src.shape[0]
        self.valid = _valid_edges(self.num_edges, src.device, num_edges, mask)
        self._set_edges(src, dst, _check_name(check))
        self._ptr, self._order = _sort(self.dst, self.num_dst) if sort else (None, None)

    def _set_edges(self, src: torch.Tensor, dst: torch.Tensor, check: str) -> None:
        nodes = [src.new_empty(n, 0) for n in (self.num_src, self.num_dst)]
        try:
            self.src, self.dst = _call(_edges_op, src, dst, self.valid, *nodes, check)
        except RuntimeError as error:
            if (said := operators.value_error(error)) is None:
                raise
            raise ValueError(said) from None

    @classmethod
    def from_csr(
        cls,
        ptr: torch.Tensor,
        src: torch.Tensor,
        num_src: int | None = None,
        *,
        padded: bool = False,
        check: bool | str = True,
    ) -> Graph:
        """The graph of edges that are sorted by destination: those into n are ptr[n], .., ptr[n + 1] - 1.

        ptr: [num_dst + 1], src: [e], int32 or int64. num_src: by default num_dst. padded: the edges from ptr[num_dst]
        on are padding. Nothing is sorted. check and errors as for `Graph`; ptr must begin with 0, not decrease, and end
        with e, or before if padded.
        """
        _check_index("ptr", ptr), _check_index("src", src)
        if ptr.device != src.device:
            raise ValueError(f"Graph: ptr and src must be on one device, got {ptr.device} and {src.device}")
        if ptr.shape[0] < 1:
            raise ValueError("Graph: ptr must be [num_dst + 1], got [0]")
        self, how, e = cls.__new__(cls), _check_name(check), src.shape[0]
        self.num_edges, self.num_dst = e, ptr.shape[0] - 1
        self.num_src = _count("num_src", self.num_dst if num_src is None else num_src)
        self._ptr = ptr.to(torch.int64, memory_format=torch.contiguous_format, copy=True)
        self._order = torch.arange(e, device=src.device)
        _check_ptr(self._ptr, e, padded, how)
        dst = torch.searchsorted(self._ptr, self._order, right=True) - 1  # num_dst: in no segment
        self.valid = dst < self.num_dst if padded else None
        self._set_edges(src, dst, how)
        return self

    @property
    def padded(self) -> bool:
        """Whether there may be edges that do not count."""
        return self.valid is not None

    @property
    def is_sorted(self) -> bool:
        """Whether ptr and order have been computed."""
        return self._ptr is not None

    @property
    def ptr(self) -> torch.Tensor:
        """[num_dst + 1] int64: where the edges into each destination begin in `order`."""
        return self.csr()[0]

    @property
    def order(self) -> torch.Tensor:
        """[e] int64: the edges sorted by destination."""
        return self.csr()[1]

    def csr(self) -> tuple[torch.Tensor, torch.Tensor]:
        """ptr and order; computed now if the graph is not sorted, and kept if this is a plain call."""
        if self._ptr is not None:
            return self._ptr, self._order
        found = _sort(self.dst, self.num_dst)
        if may_keep(self.dst):
            self._ptr, self._order = found
        return found

    def transpose(self) -> Graph:
        """The transposed graph, every edge reversed. Sorted once; nothing is checked or copied again."""
        back = Graph.__new__(Graph)
        back.num_src, back.num_dst, back.num_edges, back.valid = self.num_dst, self.num_src, self.num_edges, self.valid
        back.src, back.dst = self.dst, self.src
        if self.valid is not None:
            back.src, back.dst = torch.where(self.valid, self.dst, 0), torch.where(self.valid, self.src, self.num_src)
        back._ptr, back._order = transposed_csr(self.src, self.dst, self.num_src, self.num_dst, self.padded)
        return back

    def zero_padding(self, rows: torch.Tensor) -> torch.Tensor:
        """rows [e, ...] with zeros where an edge does not count, whatever stood there; no gradient comes from these."""
        return rows if self.valid is None else torch.where(self.valid.reshape(-1, *[1] * (rows.ndim - 1)), rows, 0)

    def to(self, device) -> Graph:
        """The graph on another device, without sorting again; itself if it is already there."""
        if self.src.device == torch.device(device):
            return self
        there = Graph.__new__(Graph)
        there.__dict__ = {name: v.to(device) if isinstance(v, torch.Tensor) else v for name, v in vars(self).items()}
        return there

    def __repr__(self) -> str:
        padding = ", padded" if self.padded else ""
        return f"Graph({self.num_edges} edges, {self.num_src} -> {self.num_dst} nodes, {self.src.device}{padding})"


def shared(src: torch.Tensor, dst: torch.Tensor, num_src: int, num_dst: int, *, check: bool | str = "async") -> Graph:
    """A Graph of these edges; the same object for the same edges, so that the layers of a model share one.

    The edges are the same if the tensors are (`eqtp.ops.remembered`); the graph lives as long as they do. Nothing is
    kept in torch.compile, torch.export, torch.jit.trace, transforms of torch.func, under dispatch modes or in inference
    mode.
    """
    return remembered(
        (src, dst), ("graph", num_src, num_dst, check), lambda: Graph(src, dst, num_src, num_dst, check=check)
    )

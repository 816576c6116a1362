"""R21: what is wrong is said in one sentence that names the op, the argument, what was expected and what
came; before any kernel."""

import calls
import pytest
import torch

import eqtp
from eqtp.backends.native import library
from eqtp.ops import graph as graphs
from eqtp.plans.plan import TensorProductPlan

PLAN = TensorProductPlan("2x0e+1o", "0e+1o", "2x0e+2x1o", [(0, 0, 0, "uvu", True), (0, 1, 1, "uvu", True)])
MIXING = TensorProductPlan("2x0e", "2x0e", "3x0e", [(0, 0, 0, "uvw", True)])
GRAPH = eqtp.Graph(torch.tensor([0, 1, 2, 0]), torch.tensor([1, 0, 1, 1]), 3, 2)
UNWEIGHTED = TensorProductPlan("2x0e", "1o", "2x1o", [(0, 0, 0, "uvu", False)])


@pytest.fixture(autouse=True)
def no_kernel(monkeypatch):
    """No kernel may run in a test of this file, unless it asks for it."""

    def ran(*_):
        raise AssertionError("a kernel ran")

    for engine in ("channelwise", "segments"):
        calls.wrap(monkeypatch, engine, ran)
    monkeypatch.setattr(library, "csr", ran)


def rows(**changes):
    """Arguments of tensor_product, with changes."""
    a = {"x1": torch.zeros(4, 5), "x2": torch.zeros(4, 4), "w": torch.zeros(4, 4), "plan": PLAN} | changes
    return lambda: eqtp.tensor_product(**a)


def conv(**changes):
    a = {"x": torch.zeros(3, 5), "y": torch.zeros(4, 4), "w": torch.zeros(4, 4), "plan": PLAN, "graph": GRAPH}
    return lambda: eqtp.tensor_product_conv(**(a | changes))


def graph(**changes):
    a = {"src": torch.tensor([0, 1]), "dst": torch.tensor([1, 0]), "num_src": 2, "num_dst": 2} | changes
    return lambda: eqtp.Graph(**a)


def total(op=eqtp.segment_sum, **changes):
    return lambda: op(**({"x": torch.zeros(4, 2), "graph": GRAPH} | changes))


def meta(*shape):
    return torch.zeros(*shape, device="meta")


INT = torch.zeros(4, 5, dtype=torch.int64)
F64 = torch.float64

CASES = [
    # shapes
    (rows(x1=torch.zeros(4, 6)), ValueError, "tensor_product: x1 must be [4, 5], got [4, 6]"),
    (rows(x1=torch.zeros(5)), ValueError, "tensor_product: x1 must be [5, 5], got [5]"),
    (rows(x1=torch.zeros(())), ValueError, "tensor_product: x1 must be [0, 5], got []"),
    (rows(x1=torch.zeros(2, 4, 5)), ValueError, "tensor_product: x1 must be [2, 5], got [2, 4, 5]"),
    (rows(x2=torch.zeros(4, 3)), ValueError, "tensor_product: x2 must be [4, 4], got [4, 3]"),
    (rows(x2=torch.zeros(3, 4)), ValueError, "tensor_product: x2 must be [4, 4], got [3, 4]"),
    (rows(w=torch.zeros(4, 5)), ValueError, "tensor_product: w must be [4, 4] or [4], got [4, 5]"),
    (rows(w=torch.zeros(3, 4)), ValueError, "tensor_product: w must be [4, 4] or [4], got [3, 4]"),
    (rows(w=torch.zeros(1, 4)), ValueError, "tensor_product: w must be [4, 4] or [4], got [1, 4]"),
    (rows(w=torch.zeros(5)), ValueError, "tensor_product: w must be [4, 4] or [4], got [5]"),
    (rows(w=torch.zeros(())), ValueError, "tensor_product: w must be [4, 4] or [4], got []"),
    (rows(w=None), ValueError, "tensor_product: w must be [4, 4] or [4], got None"),
    (
        rows(x1=torch.zeros(4, 2), x2=torch.zeros(4, 3), w=torch.zeros(4, 2), plan=UNWEIGHTED),
        ValueError,
        "tensor_product: w must be [4, 0] or [0], got [4, 2]",
    ),
    (conv(x=torch.zeros(2, 5)), ValueError, "tensor_product_conv: x must be [3, 5], got [2, 5]"),
    (conv(x=torch.zeros(3, 4)), ValueError, "tensor_product_conv: x must be [3, 5], got [3, 4]"),
    (conv(y=torch.zeros(3, 4)), ValueError, "tensor_product_conv: y must be [4, 4], got [3, 4]"),
    (conv(w=torch.zeros(3, 4)), ValueError, "tensor_product_conv: w must be [4, 4] or [4], got [3, 4]"),
    (conv(w=None), ValueError, "tensor_product_conv: w must be [4, 4] or [4], got None"),
    (total(x=torch.zeros(3, 2)), ValueError, "segment_sum: x must be [4, ...], got [3, 2]"),
    (total(eqtp.segment_max, x=torch.zeros(3, 2)), ValueError, "segment_max: x must be [4, ...], got [3, 2]"),
    (total(eqtp.segment_softmax, x=torch.zeros(3, 2)), ValueError, "segment_softmax: x must be [4, ...], got [3, 2]"),
    (total(x=torch.zeros(())), ValueError, "segment_sum: x must be [4, ...], got []"),
    (total(eqtp.segment_max, x=torch.zeros(())), ValueError, "segment_max: x must be [4, ...], got []"),
    (total(eqtp.segment_softmax, x=torch.zeros(())), ValueError, "segment_softmax: x must be [4, ...], got []"),
    (graph(src=torch.zeros(2, 2, dtype=torch.int64)), ValueError, "Graph: src must be [e], got [2, 2]"),
    (graph(dst=torch.zeros((), dtype=torch.int64)), ValueError, "Graph: dst must be [e], got []"),
    (graph(src=torch.zeros(3, dtype=torch.int64)), ValueError, "Graph: src and dst must have one length, got 3 and 2"),
    # dtypes
    (rows(x1=INT), TypeError, "tensor_product: x1 must be floating point, got torch.int64"),
    (rows(x2=torch.zeros(4, 4, dtype=F64)),
     TypeError, "tensor_product: x2 must have the dtype of x1, torch.float32, got torch.float64"),
    (rows(w=torch.zeros(4, dtype=F64)),
     TypeError, "tensor_product: w must have the dtype of x1, torch.float32, got torch.float64"),
    (rows(x1=torch.zeros(4, 5, dtype=torch.complex64)),
     TypeError, "tensor_product: x1 must be floating point, got torch.complex64"),
    (conv(y=torch.zeros(4, 4, dtype=F64)),
     TypeError, "tensor_product_conv: y must have the dtype of x, torch.float32, got torch.float64"),
    (total(x=INT), TypeError, "segment_sum: x must be a floating point tensor, got torch.int64"),
    (total(eqtp.segment_max, x=INT), TypeError, "segment_max: x must be a floating point tensor, got torch.int64"),
    (total(eqtp.segment_softmax, x=INT),
     TypeError, "segment_softmax: x must be a floating point tensor, got torch.int64"),
    (graph(src=torch.zeros(2)), TypeError, "Graph: src must be int32 or int64, got torch.float32"),
    (graph(dst=torch.zeros(2, dtype=torch.int16)), TypeError, "Graph: dst must be int32 or int64, got torch.int16"),
    # no tensors
    (rows(x1=[1.0]), TypeError, "tensor_product: x1 must be a tensor, got list"),
    (rows(x2=None), TypeError, "tensor_product: x2 must be a tensor, got NoneType"),
    (rows(w=1.0), TypeError, "tensor_product: w must be a tensor, got float"),
    (conv(x=None), TypeError, "tensor_product_conv: x must be a tensor, got NoneType"),
    (total(x=None), TypeError, "segment_sum: x must be a floating point tensor, got NoneType"),
    (total(eqtp.segment_max, x=None), TypeError, "segment_max: x must be a floating point tensor, got NoneType"),
    (total(eqtp.segment_softmax, x=None),
     TypeError, "segment_softmax: x must be a floating point tensor, got NoneType"),
    (graph(src=[0, 1]), TypeError, "Graph: src must be a tensor, got list"),
    (graph(num_src=2.0), TypeError, "Graph: num_src must be an int, got float"),
    (graph(num_dst=torch.tensor(2)), TypeError, "Graph: num_dst must be an int, got Tensor"),
    (graph(num_dst=True), TypeError, "Graph: num_dst must be an int, got bool"),
    (graph(num_src=-1), ValueError, "Graph: num_src must not be negative, got -1"),
    # plan and graph of a wrong kind
    (rows(plan=PLAN.key), TypeError, "tensor_product: plan must be a TensorProductPlan, got str"),
    (conv(plan=None), TypeError, "tensor_product_conv: plan must be a TensorProductPlan, got NoneType"),
    (conv(graph=(GRAPH.src, GRAPH.dst)), TypeError, "tensor_product_conv: graph must be an eqtp.Graph, got tuple"),
    (total(graph=GRAPH.dst), TypeError, "segment_sum: graph must be an eqtp.Graph, got Tensor"),
    (total(eqtp.segment_mean, graph=GRAPH.dst), TypeError, "graph must be an eqtp.Graph, got Tensor"),
    # devices
    (rows(x2=meta(4, 4)), ValueError, "tensor_product: x2 must be on the device of x1, cpu, got meta"),
    (rows(w=meta(4, 4)), ValueError, "tensor_product: w must be on the device of x1, cpu, got meta"),
    (rows(x1=meta(4, 5)), ValueError, "tensor_product: x2 must be on the device of x1, meta, got cpu"),
    (
        conv(x=meta(3, 5), y=meta(4, 4), w=meta(4, 4)),
        ValueError,
        "tensor_product_conv: graph is on cpu, x is on meta",
    ),
    (total(x=meta(4, 2)), ValueError, "segment_sum: graph is on cpu, x is on meta"),
    (total(eqtp.segment_max, x=meta(4, 2)), ValueError, "segment_max: graph is on cpu, x is on meta"),
    (total(eqtp.segment_softmax, x=meta(4, 2)), ValueError, "segment_softmax: graph is on cpu, x is on meta"),
    (graph(src=torch.zeros(2, dtype=torch.int64, device="meta")),
     ValueError, "Graph: src and dst must be on one device, got meta and cpu"),
    # index range
    (graph(src=torch.tensor([0, 2])), ValueError, "Graph: src must be in [0, 2), got 2 at edge 1"),
    (graph(src=torch.tensor([-1, 0])), ValueError, "Graph: src must be in [0, 2), got -1 at edge 0"),
    (graph(src=torch.tensor([0, 2**40])), ValueError, f"Graph: src must be in [0, 2), got {2**40} at edge 1"),
    (graph(num_src=0), ValueError, "Graph: src must be in [0, 0), got 0 at edge 0"),
    # backends
    (rows(backend="cuda"), ValueError, "backend must be one of auto, jit, native, triton, reference, got 'cuda'"),
    (conv(backend="Native"), ValueError, "backend must be one of auto, jit, native, triton, reference, got 'Native'"),
    (total(backend=""), ValueError, "backend must be one of auto, jit, native, triton, reference, got ''"),
    (lambda: eqtp.set_backend("fast"),
     ValueError, "backend must be one of auto, jit, native, triton, reference, got 'fast'"),
    (
        rows(x1=torch.zeros(4, 2), x2=torch.zeros(4, 2), w=torch.zeros(4, 12), plan=MIXING, backend="native"),
        RuntimeError,
        "backend 'native' cannot run this: path 0 (2x0e x 2x0e -> 3x0e) has mode uvw; the channelwise kernels do uvu",
    ),
    (
        rows(x1=meta(4, 5), x2=meta(4, 4), w=meta(4, 4), backend="native"),
        RuntimeError,
        "backend 'native' cannot run this: the native kernels run on CPUs and NVIDIA GPUs, the tensors are on meta",
    ),
    # irreps, instructions, layout
    (lambda: eqtp.Irreps("2x1x"), ValueError, "1x"),
    (lambda: eqtp.Irrep("o1"), ValueError, "o1"),
    (lambda: TensorProductPlan("1o", "1o", "0e", [(0, 0, 0, "uvu")]),
     ValueError, "instruction 0 must be (i_in1, i_in2"),
    (lambda: TensorProductPlan("1o", "1o", "0e", [(0, 0, 0, "wvu", True)]), ValueError, "mode must be one of uvw, uvu"),
    (lambda: TensorProductPlan("1o", "1o", "0e", [(1, 0, 0, "uvu", True)]), ValueError, "instruction 0"),
    (lambda: TensorProductPlan("1o", "1o", "0o", [(0, 0, 0, "uvu", True)]),
     ValueError, "0o does not occur in 1o x 1o = 0e + 1e + 2e"),
    (lambda: TensorProductPlan("2x1o", "1o", "0e", [(0, 0, 0, "uvu", True)]),
     ValueError, "needs output multiplicity 2, got 1"),
    (lambda: TensorProductPlan("1o", "1o", "0e", [], layout="ir_mul"),
     ValueError, "layout must be one of 'mul_ir', got 'ir_mul'"),
    (lambda: TensorProductPlan.from_key("[]"), ValueError, "not the key of a plan: '[]'"),
    # modules
    (
        lambda: eqtp.nn.TensorProduct("1o", "1o", "0e", [(0, 0, 0, "uvu", True)], internal_weights=False)(
            torch.zeros(3), torch.zeros(3)
        ),
        ValueError,
        "TensorProduct: weight must be given, [..., 1]; the module has none of its own",
    ),
    (
        lambda: eqtp.nn.TensorProduct("1o", "1o", "0e", [(0, 0, 0, "uvu", True)])(
            torch.zeros(3), torch.zeros(3), torch.zeros(2)
        ),
        ValueError,
        "TensorProduct: weight must be [..., 1], got [2]",
    ),
    (
        lambda: eqtp.nn.TensorProductConv("1o", "1o", "0e", [(0, 0, 0, "uvu", False)])(
            torch.zeros(3, 3), torch.zeros(3, 3)
        ),
        ValueError,
        "TensorProductConv: give edge_src and edge_dst, or a graph",
    ),
    (
        lambda: eqtp.nn.SphericalHarmonics("1e", True, irreps_in="1o"),
        ValueError,
        "a vector of parity -1 has no spherical harmonic 1e",
    ),
]  # fmt: skip


@pytest.mark.parametrize(("call", "kind", "text"), CASES, ids=[text for _, _, text in CASES])
def test_one_clear_sentence(call, kind, text):
    with pytest.raises(kind) as caught:
        call()
    message = str(caught.value)
    assert type(caught.value) is kind
    assert text in message and "\n" not in message and len(message) < 250


@pytest.mark.parametrize("dtype", [torch.int32, torch.int64], ids=str)
@pytest.mark.parametrize("bad", [3, -1, -(2**31), 2**31 - 1])
def test_destination_out_of_range(monkeypatch, dtype, bad):
    monkeypatch.undo()  # the check is part of the sorting kernel
    dst = torch.tensor([0, 2, bad, 1], dtype=dtype)
    with pytest.raises(ValueError, match=rf"^Graph: dst must be in \[0, 3\), got {bad} at edge 2$"):
        eqtp.Graph(torch.zeros_like(dst), dst, 1, 3)


def test_a_graph_out_of_range_is_not_kept(monkeypatch):
    monkeypatch.undo()
    src, dst = torch.tensor([0, 1]), torch.tensor([0, 5])
    for _ in range(2):
        with pytest.raises(ValueError, match="dst must be in"):
            graphs.shared(src, dst, 2, 2)


def fine():
    """A call that runs the native kernel by default."""
    return rows(x1=torch.ones(4, 5), x2=torch.ones(4, 4), w=torch.ones(4))()


def test_backend_of_the_environment(monkeypatch):
    with pytest.raises(AssertionError, match="a kernel ran"):
        fine()
    monkeypatch.setenv("EQTP_BACKEND", "reference")
    assert fine().shape == (4, 8)
    assert eqtp.explain(PLAN).endswith("auto       reference")
    with pytest.raises(AssertionError, match="a kernel ran"):
        rows(backend="native")()
    monkeypatch.setenv("EQTP_BACKEND", "native")
    with pytest.raises(RuntimeError, match=r"backend 'native' cannot run this: path 0 .* has mode uvw"):
        rows(x1=torch.zeros(4, 2), x2=torch.zeros(4, 2), w=torch.zeros(4, 12), plan=MIXING)()
    monkeypatch.setenv("EQTP_BACKEND", "quick")
    with pytest.raises(ValueError, match="backend must be one of auto, jit, native, triton, reference, got 'quick'"):
        fine()


def test_set_backend_overrides_the_environment(monkeypatch):
    monkeypatch.setenv("EQTP_BACKEND", "native")
    eqtp.set_backend("reference")
    assert fine().shape == (4, 8)
    eqtp.set_backend("auto")
    with pytest.raises(AssertionError, match="a kernel ran"):
        fine()
    eqtp.set_backend(None)
    monkeypatch.setenv("EQTP_BACKEND", "reference")
    assert fine().shape == (4, 8)


def test_missing_kernels_are_named(monkeypatch):
    """R12: a source tree that was never built works through the reference and says what to do."""
    from eqtp.backends import registry

    registry._resolve.cache_clear()
    monkeypatch.setattr(library, "_missing", "eqtp._native is not built (reason); run: pip install .")
    assert fine().shape == (4, 8)
    assert "native     no: eqtp._native is not built (reason); run: pip install ." in eqtp.explain(PLAN)
    with pytest.raises(RuntimeError, match=r"cannot run this: eqtp\._native is not built"):
        rows(backend="native")()
    registry._resolve.cache_clear()


def test_meta_tensors_give_shapes():
    """Without a device to run on, shapes are right and no kernel is touched."""
    assert rows(x1=meta(4, 5), x2=meta(4, 4), w=meta(4, 4))().shape == (4, 8)

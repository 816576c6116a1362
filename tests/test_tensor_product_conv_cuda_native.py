"""The table-driven CUDA kernels (csrc/channelwise/table_driven.cuh) with their launchers and binding, compiled as C++
and run on CPU tensors; where there is a GPU, by nvcc and on it."""

import ctypes
import itertools
from pathlib import Path
from unittest import mock

import calls
import emulation
import pytest
import torch

import eqtp
from eqtp import testing
from eqtp.backends import registry
from eqtp.backends.native import channelwise, library
from eqtp.backends.tensors import contiguous_rows
from eqtp.math.so3 import wigner_3j
from eqtp.ops import tensor_product as rows_op
from eqtp.ops import tensor_product_conv as conv_op
from eqtp.plans import channelwise as plans
from eqtp.plans.calls import Operands, Outputs, Pass
from eqtp.plans.plan import TensorProductPlan
from eqtp.testing import problems

CSRC = Path(__file__).parents[1] / "csrc"
RUNTIME = """
using cudaError_t = int;
enum { cudaSuccess, cudaFuncAttributeMaxDynamicSharedMemorySize };
static int cudaGetLastError() { return 0; }
static const char* cudaGetErrorString(int) { return ""; }
static int cudaGetDevice(int* d) { return *d = 0; }
static int cudaSetDevice(int) { return 0; }
static int cudaGetDeviceCount(int* n) { return *n = 0; }
static int cudaDriverGetVersion(int* v) { return *v = 0; }
template <class K> static int cudaFuncSetAttribute(K*, int, int) { return 0; }
"""
ENTRY = """
using namespace eqtp;
extern "C" __attribute__((visibility("default")))
const char* convolve(const table_driven::Address* a, const Index* n, int graph, int inputs) {
  static std::string error;
  auto take = [](auto& from, int count) { from += count; return from - count; };
  auto list = [&](int count) { auto p = take(a, count); return std::vector<table_driven::Address>(p, p + count); };
  auto sizes = [&] { auto p = take(n, 4); return p; };
  try {
    const table_driven::Address *fwd = take(a, 7), *bwd = take(a, 7);
    const Index *f = sizes(), *b = sizes(), *d = sizes(), *rest = take(n, 4 + inputs);
    table_driven::Call c{rest[0], rest[1], rest[2], list(graph), {}, {}, 0, {d, d + 4}};
    for (int i = 0; i < inputs; ++i) c.in.push_back({list(1)[0], rest[4 + i]});
    c.out = list(4), c.shares = list(1)[0];
    table_driven::convolve({{fwd, fwd + 7}, int(f[0]), int(f[1]), int(f[2]), int(f[3])},
                     {{bwd, bwd + 7}, int(b[0]), int(b[1]), int(b[2]), int(b[3])}, c, int(rest[3]), 0, 0);
    return nullptr;
  } catch (const std::exception& e) {
    return (error = e.what()).c_str();
  }
}
"""


class Launchers:
    """What the binding in csrc/channelwise/channelwise.cu offers, by another way: the emulation cannot bear pybind11's
    thread-local variables."""

    def __init__(self):
        text = RUNTIME + "".join(
            (CSRC / f"{name}.cu").read_text().partition("#ifndef __CUDA_ARCH__")[0]
            for name in ("common/cuda", "channelwise/channelwise")
        )
        self.run = ctypes.CDLL(str(emulation._compile(text + ENTRY, None, "convolve.so", "-fPIC", "-shared"))).convolve
        self.run.restype = ctypes.c_char_p

    def tensor_product_conv_cuda(
        self,
        fwd,
        fwd_sizes,
        bwd,
        bwd_sizes,
        num_src,
        num_dst,
        num_edges,
        graph,
        inputs,
        out,
        shares,
        dims,
        dtype,
        *place,
    ):
        addresses = [*fwd, *bwd, *graph, *(a for a, _ in inputs), *out, shares]
        numbers = [*fwd_sizes, *bwd_sizes, *dims, num_src, num_dst, num_edges, dtype, *(stride for _, stride in inputs)]

        def array(values):
            return (ctypes.c_longlong * len(values))(*values)

        error = self.run(array(addresses), array(numbers), len(graph), len(inputs))
        if error:
            raise RuntimeError(error.decode())


def emulated_kernel(module) -> registry.Kernel:
    """The native channelwise kernels as they are on CUDA tensors, on CPU tensors."""

    def run(key, pass_, inputs, outputs):
        with (
            mock.patch.object(library, "_native", module),
            mock.patch.object(library, "device_and_stream", lambda device: (0, 0)),
        ):
            channelwise._run_cuda(key, pass_, inputs.map(contiguous_rows), outputs)

    return registry.Kernel(
        engine="channelwise",
        family="emulated-native",
        devices=("cpu",),
        why_not=lambda plan, device, dtype: plans.why_not(plan),
        run=run,
        sources=(),
        transposes=("cpu",),
    )


@pytest.fixture(scope="module")
def emulated():
    """Name of the family."""
    if emulation.why_not(None):
        pytest.skip(emulation.why_not(None))
    yield registry.register(emulated_kernel(Launchers())).family
    del registry._kernels["emulated-native", "channelwise"]
    registry._resolve.cache_clear()


# shared output slots, a slot without a path, paths without weights, more than 7 components
UNEVEN = TensorProductPlan(
    "33x0e+5x1o+2x2e+3x4e",
    "0e+1o+2e+4e",
    "5x1o+33x1o+2x2e+5x0e+3x5o+7x0e+3x0e",
    [
        (1, 0, 0, "uvu", True),
        (1, 2, 0, "uvu", False),
        (0, 1, 1, "uvu", True),
        (2, 2, 2, "uvu", False),
        (1, 1, 3, "uvu", True),
        (3, 1, 4, "uvu", True),
        (3, 3, 6, "uvu", True),
    ],
)
UNWEIGHTED = TensorProductPlan("4x0e+3x1o", "0e+1o", "3x1o+4x1o", [(1, 0, 0, "uvu", False), (0, 1, 1, "uvu", False)])
# More shared memory than a kernel gets without asking
HIGH = TensorProductPlan("2x8e+1x3o", "6o", "2x8o+1x9e", [(0, 0, 0, "uvu", True), (1, 0, 1, "uvu", True)])
PLANS = {
    "mace-medium": None,
    "sevennet-0": None,
    "nequip-l": None,
    "uneven": UNEVEN,
    "unweighted": UNWEIGHTED,
    "high": HIGH,
}


def plan_of(name: str) -> TensorProductPlan:
    return PLANS[name] or problems.plan(name)


@pytest.mark.parametrize("name", PLANS)
def test_against_the_reference(emulated, name):
    """R1, R2, R22: output, first and second order, per path, with poisoned memory; bipartite, with nodes without
    edges."""
    testing.check_tensor_product_conv(plan_of(name), emulated)
    testing.check_tensor_product(plan_of(name), emulated, dtypes=(torch.float32,))


@pytest.mark.gpu
@pytest.mark.parametrize("name", PLANS)
def test_against_the_reference_on_a_gpu(name):
    plan = plan_of(name)
    case, graph = testing.conv_case(plan)
    on_gpu = eqtp.Graph(graph.src.cuda(), graph.dst.cuda(), graph.num_src, graph.num_dst)

    def cuda(*operands):
        return [None if t is None else t.cuda() for t in operands]

    def conv(x, y, w=None):
        return eqtp.tensor_product_conv(*cuda(x, y, w), plan, on_gpu, "native").cpu()

    testing.check_op(conv, lambda x, y, w=None: conv_op.reference(x, y, w, plan, graph), case)

    def rows(x, y, w=None):
        return eqtp.tensor_product(*cuda(x, y, w), plan, "native").cpu()

    testing.check_op(rows, lambda x, y, w=None: rows_op.reference(x, y, w, plan), testing.rows_case(plan))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_half_precision_rounds_once(emulated, dtype):
    """Numbers in memory are halves, sums are not: each result is off by one rounding at most, to second order."""
    case, graph = testing.conv_case(UNEVEN)

    def half(d):
        return {n: t.to(dtype).double() for n, t in d.items()}

    case = case._replace(operands=half(case.operands), g=case.g.to(dtype).double(), cotangents=half(case.cotangents))

    def conv(x, y, w):
        return eqtp.tensor_product_conv(x, y, w, UNEVEN, graph, emulated)

    expected = testing.derivatives(lambda x, y, w: conv_op.reference(x, y, w, UNEVEN, graph), case, torch.float64)
    for name, t in testing.derivatives(conv, case, dtype).items():
        testing.assert_close(t, expected[name], name, 0.51 * torch.finfo(dtype).eps)


def all_passes(family, plan, graph, rows, edges, shared, dtype=torch.float32):
    """Outputs of the three passes of a family, in one list; operands are rows of wider tensors, weights perhaps one row
    for all."""
    dims = (plan.dim_in1, plan.dim_in2, plan.weight_numel)

    def wide(n, dim, seed):
        return testing.random(n, dim + 3, seed=seed).to(dtype)[:, 1 : dim + 1]

    def draw(seed):
        return [
            wide(n, dim, seed + k)
            for k, (n, dim) in enumerate(zip((rows[0], edges, 1 if shared else edges), dims, strict=True))
        ]

    x, y, w = draw(0)
    cx, cy, cw = draw(10)
    w, cw = (t.expand(edges, -1) for t in (w, cw))
    g = wide(rows[1], plan.dim_out, 20)
    results = []
    for inputs, wanted in (((x, y, w), "o"), ((x, y, w, g), "xyw"), ((x, y, w, g, cx, cy, cw), "oxyw")):
        outputs = [
            torch.full(t.shape, torch.nan, dtype=dtype) if n in wanted else None
            for n, t in zip("oxyw", (g, x, y, w), strict=True)
        ]
        calls.convolve(family, plan.key, graph, inputs, outputs)
        results += [t for t in outputs if t is not None]
    return results


def columns(graph: eqtp.Graph) -> tuple:
    t = graph.transpose()
    return graph.src, graph.dst, graph.ptr, graph.order, t.ptr, t.order


@pytest.mark.parametrize("shared", [False, True], ids=["weights per edge", "one row of weights"])
@pytest.mark.parametrize(
    "nodes, edges", [((0, 0), 0), ((3, 0), 0), ((0, 2), 0), ((1, 1), 1), ((2, 5), 37), ((9, 3), 33)]
)
def test_sizes(emulated, random_graph, nodes, edges, shared):
    """R19: any number of nodes and edges; operands with any row stride. The C++ kernels are the measure."""
    graph = columns(random_graph(*nodes, edges))
    for plan in (UNEVEN, UNWEIGHTED):
        ours, theirs = (all_passes(f, plan, graph, nodes, edges, shared) for f in (emulated, "native"))
        for a, b in zip(ours, theirs, strict=True):
            testing.assert_close(a, b.double())


@pytest.mark.parametrize("count", [0, 1, 3, 4, 6])
def test_rows(emulated, count):
    ours, theirs = (all_passes(f, UNEVEN, (), (count, count), count, False) for f in (emulated, "native"))
    for a, b in zip(ours, theirs, strict=True):
        testing.assert_close(a, b.double())


@pytest.mark.parametrize(
    "plan",
    [TensorProductPlan("2x0e", "1o", "2x0e", []), TensorProductPlan("", "1o", "", [])],
    ids=["no paths", "nothing"],
)
def test_plans_without_paths_give_zeros(emulated, random_graph, plan):
    results = all_passes(emulated, plan, columns(random_graph(3, 4, 9)), (3, 4), 9, False)
    assert all((t == 0).all() for t in results)


def test_only_what_is_wanted(emulated, random_graph):
    """Outputs that are None are left out and change nothing."""
    graph, family = columns(random_graph(3, 4, 9)), emulated
    x, y, w, g = (
        testing.random(n, d).float()
        for n, d in ((3, UNEVEN.dim_in1), (9, UNEVEN.dim_in2), (9, UNEVEN.weight_numel), (4, UNEVEN.dim_out))
    )
    every = [torch.empty_like(t) for t in (x, y, w)]
    calls.convolve(family, UNEVEN.key, graph, (x, y, w, g), (None, *every))
    for n, t in enumerate((x, y, w)):
        alone = [torch.empty_like(t) if k == n else None for k in range(3)]
        calls.convolve(family, UNEVEN.key, graph, (x, y, w, g), (None, *alone))
        assert torch.equal(alone[n], every[n])


@pytest.mark.parametrize("order", ["reverse", "random"])
def test_any_order_of_threads(emulated, random_graph, monkeypatch, order):
    """Deterministic: the same bits whichever thread runs first, which a missing barrier would change."""
    graph = columns(random_graph(3, 4, 30))

    def run():
        return all_passes(emulated, UNEVEN, graph, (3, 4), 30, False)

    first = run()
    monkeypatch.setenv("EQTP_CPU_ORDER", order)
    assert all(torch.equal(a, b) for a, b in zip(run(), first, strict=True))


def test_two_columns_couple_at_most():
    """What the tables stand on: for given components of x1 and of the output, two of x2 have a coefficient."""
    for l1, l2 in itertools.product(range(7), repeat=2):
        for l3 in range(abs(l1 - l2), l1 + l2 + 1):
            assert (wigner_3j(l1, l2, l3) != 0).sum(axis=1).max() <= 2


def test_the_binding_is_called_as_it_asks():
    """Without a GPU all arguments are converted, and then the runtime says what is missing; TypeError would mean that
    they do not fit."""
    if not getattr(library._native, "has_cuda", False):
        pytest.skip("built without CUDA")
    if library._native.cuda_device_count()[0]:
        pytest.skip("there is a GPU")
    x, y = torch.zeros(2, UNWEIGHTED.dim_in1), torch.zeros(2, UNWEIGHTED.dim_in2)
    with (
        mock.patch.object(library, "device_and_stream", lambda device: (0, 0)),
        pytest.raises(RuntimeError, match=r"tensor_product_conv: .*(driver|device)"),
    ):
        outputs = Outputs(torch.zeros(2, UNWEIGHTED.dim_out))
        channelwise._run_cuda(UNWEIGHTED.key, Pass.FWD, Operands(x, y, x[:, :0]), outputs)


@pytest.mark.parametrize("op", ["tensor_product", "tensor_product_conv"])
def test_why_not(op):
    """A sentence that says what to do, on machines and builds without CUDA; None where it runs."""

    def why_not(dtype):
        return registry.why_not("native", op, UNEVEN, torch.device("cuda"), dtype)

    build = mock.Mock(has_cuda=False)
    with mock.patch.object(library, "_native", build):
        assert "built without CUDA; install nvcc" in why_not(torch.float32)
        build.has_cuda = True
        with mock.patch.object(library, "_no_gpu", lambda: "no NVIDIA driver"):
            assert why_not(torch.float32) == "no NVIDIA driver"
        with mock.patch.object(library, "_no_gpu", lambda: None):
            assert all(why_not(dtype) is None for dtype in library.CUDA_DTYPES)
            assert why_not(torch.int32) == "the native kernels know float32, float64, float16 and bfloat16, not int32"

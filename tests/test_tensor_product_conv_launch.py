"""Launches of the specialised kernels (csrc/channelwise/channelwise.cuh): sizes beyond 32 bits, and what only a GPU
has: streams, graphs, devices."""

import functools
import itertools

import calls
import emulated
import emulation
import numpy as np
import pytest
import torch
from test_tensor_product_conv import all_orders, all_tensors
from test_tensor_product_conv_cuda import PLANS, SMALL, on, ours

import eqtp
from eqtp import testing
from eqtp.backends.jit import channelwise
from eqtp.backends.jit.runtime import Struct
from eqtp.backends.jit.toolchain import Toolchain
from eqtp.ops import tensor_product_conv as conv_op
from eqtp.plans.plan import TensorProductPlan
from eqtp.testing import problems


# ------------------------------------------------------------------------ large sizes (R20)
def passes(convolve, plan, graph, sizes, new):
    """Runs all kernels: forward, backward, both along a direction. sizes: sources, destinations, edges; new(rows,
    columns) makes a tensor."""
    num_src, num_dst, edges = sizes
    shapes = {
        "x": (num_src, plan.dim_in1),
        "y": (edges, plan.dim_in2),
        "w": (edges, plan.weight_numel),
        "g": (num_dst, plan.dim_out),
    }
    x, y, w, g = (new(*shape) for shape in shapes.values())
    outputs = []
    for inputs, wanted in (((x, y, w), "g"), ((x, y, w, g), "xyw"), ((x, y, w, g, x, y, w), "gxyw")):
        results = [torch.empty(shapes[n], dtype=x.dtype, device=x.device) if n in wanted else None for n in "gxyw"]
        convolve(plan.key, graph, inputs, results)
        outputs += [t for t in results if t is not None]
    return outputs


@pytest.mark.parametrize("rows", [False, True], ids=["graph", "rows"])
@pytest.mark.parametrize("size", [1000, 2**31 + 5, 2**33])
def test_launches_are_never_too_large(size, rows):
    """Grids within CUDA's limit however many rows there are; sizes and strides are passed as 64 bits. Nothing is run,
    nothing allocated."""
    launches = []
    kernels = channelwise.kernel(
        Toolchain(
            lambda file, text, names, device: {n: n for n in names},
            lambda *launch: launches.append(launch),
            lambda device: None,
        )
    )
    plan = TensorProductPlan("256x0e", "0e+1o+2e", "256x1o+256x2e", [(0, 1, 0, "uvu", True), (0, 2, 1, "uvu", True)])

    def index(n):
        return torch.empty(n, dtype=torch.int64, device="meta")

    graph = () if rows else (index(size), index(size), index(size + 1), index(size), index(size + 1), index(size))
    passes(
        functools.partial(calls.convolve, kernels),
        plan,
        graph,
        (size,) * 3,
        lambda *shape: torch.empty(shape, device="meta"),
    )
    launched = {kernel.split("::")[1].split("<")[0] for kernel, *_ in launches}
    graphs = ["planar_kernel", "conv_bwd_by_destination_kernel", "sum_sources_kernel"]
    assert launched == {"conv_fwd_kernel", "sum_units_kernel", *(["conv_bwd_kernel"] if rows else graphs)}
    for kernel, grid, block, _, *arguments in launches:
        units = -(-size * plan.dim_in2 // 128)
        blocks = {"conv": -(-size // 4) if rows else size, "plan": size, "sum_": units if "units" in kernel else size}
        wanted, (width, *chunks) = blocks[kernel.split("::")[1][:4]], grid
        assert block == (128,) and width < 2**31 and len(chunks) == ("conv" in kernel)
        if chunks:  # of the channels, 2 or 4, which lie along y
            assert chunks[0] <= 4 and (width * chunks[0] in (2 * wanted, 4 * wanted) or width > 2**31 - 5)
        else:
            assert width == min(wanted, 2**31 - 1)
        if isinstance(arguments[0], Struct):
            arguments = arguments[0].values
        numbers = [a for a in arguments if a is not None and not isinstance(a, torch.Tensor)]
        assert all(type(a) is np.int64 for a in numbers) and numbers[-1] == size


def test_kernels_are_built_beforehand():
    """prepare builds forward and backward of each plan, once."""
    built = []
    toolchain = Toolchain(lambda file, text, names, device: built.append(names), None, lambda device: None)
    channelwise.kernel(toolchain).prepare([SMALL, SMALL], torch.device("cpu"), torch.float32)
    assert sorted(names[0].split("::")[1][:8] for names in built) == ["conv_bwd", "conv_fwd"]


@pytest.mark.parametrize("rows", [False, True], ids=["graph", "rows"])
def test_fewer_blocks_than_work(random_graph, monkeypatch, rows):
    """The kernels go round when the grid is not large enough for one block per piece of work: the same bits."""
    if emulation.why_not(None):
        pytest.skip(emulation.why_not(None))
    family, sizes = emulated.family(), (40, 40, 40)
    graph = (
        ()
        if rows
        else (g := random_graph(*sizes), t := g.transpose()) and (g.src, g.dst, g.ptr, g.order, t.ptr, t.order)
    )
    for name in ("small", "two"):

        def run(plan=PLANS[name]):
            return passes(family.convolve, plan, graph, sizes, lambda *shape: testing.random(*shape).float())

        whole = run()
        for blocks in (1, 7):
            with monkeypatch.context() as limit:
                limit.setattr(channelwise, "MAX_BLOCKS", blocks)
                assert all(torch.equal(a, b) for a, b in zip(run(), whole, strict=True))


@pytest.fixture
def sparse(tmp_path):
    """sparse(rows, columns, dtype=float32, stride=columns): zeros that take no memory until they are written; stride:
    distance of rows."""
    count = itertools.count()

    def make(rows, columns, dtype=torch.float32, stride=None):
        memory = torch.from_file(str(tmp_path / str(next(count))), True, rows * (stride or columns), dtype=dtype)
        return memory.as_strided((rows, columns), (stride or columns, 1))

    return make


@pytest.mark.parametrize("rows", [False, True], ids=["graph", "rows"])
def test_offsets_beyond_32_bits(random_graph, sparse, rows):
    """Rows of all operands lie further apart than 32 bits reach."""
    if emulation.why_not(None):
        pytest.skip(emulation.why_not(None))
    family, sizes = emulated.family(), (4, 4, 4)
    graph = (
        ()
        if rows
        else (g := random_graph(*sizes), t := g.transpose()) and (g.src, g.dst, g.ptr, g.order, t.ptr, t.order)
    )

    def near(*shape):
        return testing.random(*shape).float()

    def far(*shape):
        return sparse(*shape, stride=2**30 + 4).copy_(near(*shape))

    for a, b in zip(
        passes(family.convolve, SMALL, graph, sizes, far),
        passes(family.convolve, SMALL, graph, sizes, near),
        strict=True,
    ):
        assert torch.equal(a, b)


def test_outputs_beyond_32_bits(sparse):
    """Edges whose weights and their gradients lie beyond 2^31 elements; the others have no place in the graph."""
    if emulation.why_not(None):
        pytest.skip(emulation.why_not(None))
    plan, edges = problems.plan("mace-l1"), 2**23
    assert edges * plan.weight_numel > 2**31
    chosen = torch.tensor([edges - 1, 5, edges - 7])
    x, y, w, g = (
        testing.random(*shape).float()
        for shape in ((1, plan.dim_in1), (3, plan.dim_in2), (3, plan.weight_numel), (2, plan.dim_out))
    )
    dst = sparse(edges, 1, torch.int64)[:, 0]
    dst[chosen] = torch.tensor([1, 0, 1])
    many_y, many_w, many_gw = (sparse(edges, t.shape[1]) for t in (y, w, w))
    many_y[chosen], many_w[chosen] = y, w
    src, ptr, order, tptr = (
        sparse(edges, 1, torch.int64)[:, 0],
        torch.tensor([0, 1, 3]),
        [1, 0, 2],
        torch.tensor([0, 3]),
    )
    graph = (src, dst, ptr, chosen[order], tptr, chosen)
    emulated.family().convolve(plan.key, graph, (x, many_y, many_w, g), (None, None, None, many_gw))
    gw, graph = torch.empty_like(w), (src[:3], dst[chosen], ptr, torch.tensor(order), tptr, torch.arange(3))
    emulated.family().convolve(plan.key, graph, (x, y, w, g), (None, None, None, gw))
    assert torch.equal(many_gw[chosen], gw) and gw.abs().min() > 0


# ------------------------------------------------------------------------ on a GPU
FAMILIES = pytest.mark.parametrize("family", ["jit", "native"])


def first_order(conv, inputs, g):
    out = conv(*inputs)
    return [out.detach(), *torch.autograd.grad(out, inputs, g)]


@pytest.mark.gpu
@FAMILIES
def test_streams(random_graph, family):
    """The kernels run on torch's current stream: operands are ready there only."""
    graph = on(random_graph(6, 5, 40), "cuda")
    graph.transpose()
    tensors = [t.cuda() for t in all_tensors(graph, torch.float32, SMALL)[:4]]

    def conv(x, y, w):
        return eqtp.tensor_product_conv(x, y, w, SMALL, graph, family)

    expected = first_order(conv, [t.clone().requires_grad_() for t in tensors[:3]], tensors[3])
    torch.cuda.synchronize()
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        late = [torch.full_like(t, torch.nan) for t in tensors]
        torch.cuda._sleep(10**8)
        for to, t in zip(late, tensors, strict=True):
            to.copy_(t)
        actual = first_order(conv, [t.requires_grad_() for t in late[:3]], late[3])
    stream.synchronize()
    assert all(torch.equal(a, b) for a, b in zip(actual, expected, strict=True))


@pytest.mark.gpu
@FAMILIES
def test_two_devices(random_graph, family):
    """Tensors say where a kernel runs, not the current device."""
    if torch.cuda.device_count() < 2:
        pytest.skip("one GPU")
    graph = random_graph(6, 5, 40)
    runs = [
        ours((family, f"cuda:{n}"), [t.to(f"cuda:{n}") for t in all_tensors(graph, torch.float32, SMALL)], graph)
        for n in (0, 1, 0)
    ]
    expected = all_orders(
        conv_op.reference, [t.double() for t in all_tensors(graph, torch.float32, SMALL)], graph, SMALL
    )
    for run in runs:
        for a, b in zip(run, expected, strict=True):
            testing.assert_close(a, b)


@pytest.mark.gpu
@FAMILIES
def test_cuda_graph(random_graph, family):
    """Forward and backward are captured and replayed with other numbers in the same places."""
    graph = on(random_graph(6, 5, 40), "cuda")
    inputs = [t.cuda().requires_grad_() for t in all_tensors(graph, torch.float32, SMALL)[:3]]
    g = testing.random(5, SMALL.dim_out).float().cuda()

    def conv(x, y, w):
        return eqtp.tensor_product_conv(x, y, w, SMALL, graph, family)

    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        first_order(conv, inputs, g)  # compiles and loads
    torch.cuda.current_stream().wait_stream(stream)
    captured = torch.cuda.CUDAGraph()
    with torch.cuda.graph(captured):
        results = first_order(conv, inputs, g)
    for seed in (1, 2):
        with torch.no_grad():
            for n, t in enumerate((*inputs, g)):
                t.copy_(testing.random(*t.shape, seed=seed + n))
        captured.replay()
        expected = first_order(conv, [t.detach().clone().requires_grad_() for t in inputs], g)
        assert all(torch.equal(a, b) for a, b in zip(results, expected, strict=True))


@pytest.mark.gpu
@FAMILIES
def test_more_than_2_to_the_31_elements(family):
    """R20, for real: weights [e, numel] and their gradient have more elements than 32 bits count."""
    plan, nodes = problems.plan("mace-l1"), 1000
    edges = 2**31 // plan.weight_numel + 1000
    if torch.cuda.mem_get_info()[0] < 4 * edges * plan.weight_numel * 4:
        pytest.skip("too little memory")
    dst = torch.arange(edges, device="cuda") * nodes // edges
    graph = eqtp.Graph((dst * 7 + 1) % nodes, dst, nodes, nodes)

    def numbers(*shape):
        return torch.rand(shape, device="cuda", generator=torch.Generator("cuda").manual_seed(shape[1])) - 0.5

    inputs = [
        numbers(*s).requires_grad_() for s in ((nodes, plan.dim_in1), (edges, plan.dim_in2), (edges, plan.weight_numel))
    ]
    g = numbers(nodes, plan.dim_out)
    out, gx, gy, gw = first_order(lambda x, y, w: eqtp.tensor_product_conv(x, y, w, plan, graph, family), inputs, g)
    last = dst == nodes - 1  # the edges at the end of memory
    few = eqtp.Graph(graph.src[last], torch.zeros(int(last.sum()), dtype=torch.int64, device="cuda"), nodes, 1)
    some = [t.detach().double().requires_grad_() for t in (inputs[0], inputs[1][last], inputs[2][last])]
    expected = first_order(lambda x, y, w: conv_op.reference(x, y, w, plan, few), some, g[-1:].double())
    for a, b in zip((out[-1:], gy[last], gw[last]), (expected[0], *expected[2:]), strict=True):
        testing.assert_close(a, b)
    assert gx.isfinite().all()

"""The fused convolutions of other libraries, as far as a CPU can check them: the calls, and the operator."""

import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

sys.path.append(str(Path(__file__).parents[1]))  # bench is not part of the installed package

import eqtp
from bench import harness, peers
from eqtp.testing import assert_close, problems, random


def operands(problem_id: str, nodes=5, edges=17):
    """x [n, dim1], y [e, dim2], w [e, numel], plan, unsorted graph."""
    plan = problems.plan(problem_id)
    sizes = (nodes, plan.dim_in1), (edges, plan.dim_in2), (edges, plan.weight_numel)
    x, y, w = (random(*size, seed=seed) for seed, size in enumerate(sizes))
    ends = torch.randint(nodes, (2, edges), generator=torch.Generator().manual_seed(3))
    return x, y, w, plan, eqtp.Graph(*ends, nodes, nodes)


def other_layout(t, irreps, to_ir_mul: bool):
    """[n, dim] in mul_ir <-> ir_mul."""
    blocks, begin = [], 0
    for mul, ir in irreps:
        block = t[:, begin : (begin := begin + mul * ir.dim)]
        shape = (mul, ir.dim) if to_ir_mul else (ir.dim, mul)
        blocks.append(block.unflatten(1, shape).transpose(1, 2).flatten(1))
    return torch.cat(blocks, 1)


@pytest.mark.parametrize("problem_id", ["mace-medium", "sevennet-0"], ids=["even", "uneven"])
def test_fused_cueq_is_the_same_operator(problem_id):
    """By its plain torch path, with the polynomial and the indices that its kernel gets on a GPU."""
    pytest.importorskip("cuequivariance_torch", reason="cuequivariance_torch is not installed")
    x, y, w, plan, graph = operands(problem_id)
    expected = eqtp.tensor_product_conv(x, y, w, plan, graph, backend="reference")
    f = peers.cueq_fused(problem_id, torch.float64, graph, "naive")
    paths = sorted(plan.paths, key=lambda path: path.io)
    theirs = torch.cat([w[:, path.weight_offset :][:, : path.mul1] for path in paths], 1)  # [e, numel]
    out = f(other_layout(x, plan.irreps_in1, True), y, theirs)
    assert_close(other_layout(out, plan.irreps_out, False), expected, "cueq-fused", 1e-12)


def test_fused_cueq_without_its_kernels_is_missing():
    """It would take its plain torch path without an error."""
    cuet = pytest.importorskip("cuequivariance_torch", reason="cuequivariance_torch is not installed")
    if cuet.primitives.segmented_polynomial.HAS_CUE_OPS:
        pytest.skip("the closed kernels are installed")
    *_, graph = operands("mace-medium")
    with pytest.raises(harness.Missing, match="no method uniform_1d here"):
        peers.cueq_fused("mace-medium", torch.float32, graph, "uniform_1d")


class Conv:
    """As openequivariance.TensorProductConv is documented: the sum into rows of products of x[columns]."""

    def __init__(self, problem, *, deterministic):
        self.problem, self.deterministic = problem, deterministic

    def __call__(self, x, y, w, rows, columns, transposed=None):
        assert rows.dtype == columns.dtype == torch.int64 and (transposed is not None) == self.deterministic
        if self.deterministic:  # row-major; the permutation gives column-major
            pairs = list(zip(rows.tolist(), columns.tolist(), strict=True))
            assert pairs == sorted(pairs)
            turned = [(columns[n].item(), rows[n].item()) for n in transposed]
            assert turned == sorted(turned) and sorted(transposed.tolist()) == list(range(len(rows)))
        plan = eqtp.TensorProductPlan(*self.problem.irreps, self.problem.instructions)
        graph = eqtp.Graph(columns, rows, len(x), len(x))
        return eqtp.tensor_product_conv(x, y, w, plan, graph, backend="reference")


def problem_of(in1, in2, out, instructions, *, irrep_dtype, weight_dtype, shared_weights, internal_weights):
    assert irrep_dtype == weight_dtype == "float64" and not shared_weights and not internal_weights
    return SimpleNamespace(irreps=(in1, in2, out), instructions=instructions)


@pytest.mark.parametrize("deterministic", [False, True])
def test_openequivariance_gets_what_it_documents(monkeypatch, deterministic):
    library = SimpleNamespace(
        TensorProductConv=Conv, TPProblem=problem_of, torch_to_oeq_dtype=lambda dtype: str(dtype)[6:]
    )
    monkeypatch.setitem(sys.modules, "openequivariance", library)
    x, y, w, plan, graph = operands("sevennet-0")
    f = peers._openequivariance("sevennet-0", torch.float64, graph, deterministic)
    order = torch.argsort(graph.dst * graph.num_src + graph.src) if deterministic else slice(None)
    expected = eqtp.tensor_product_conv(x, y, w, plan, graph, backend="reference")
    assert_close(f(x, y[order], w[order]), expected, "openequivariance", 1e-12)


@pytest.mark.parametrize("name", peers.CONVOLUTIONS)
def test_fused_peers_need_a_gpu(name):
    *_, graph = operands("mace-medium")
    with pytest.raises(harness.Missing, match="not run on a CPU"):
        peers.convolution(name, "mace-medium", torch.float32, graph)


@pytest.mark.gpu
@pytest.mark.parametrize("name", peers.CONVOLUTIONS)
def test_fused_peers_run(name):
    """Where they are installed. Values are compared of the one that has our order of weights and edges."""
    x, y, w, plan, graph = operands("mace-medium")
    graph = eqtp.Graph(graph.src.cuda(), graph.dst.cuda(), graph.num_src, graph.num_dst)
    inputs = [t.float().cuda() for t in (x, y, w)]
    try:
        f = peers.convolution(name, "mace-medium", torch.float32, graph)
    except harness.Missing as reason:
        pytest.skip(str(reason))
    out = f(*inputs)
    expected = eqtp.tensor_product_conv(*inputs, plan, graph, backend="reference")
    assert out.shape == expected.shape
    if name in peers.SAME_VALUES:
        assert_close(out, expected, name, 1e-4)

"""torch.func.vmap over a batch of size 0: shapes and dtypes are those of any other size, derivatives are zero."""

import pytest
import torch
from every_call import OPS, PLAN, all_calls, edges, tensors
from torch.func import grad, jvp, vmap

import eqtp
from eqtp.ops.segment_max import max_rows

CALLS = all_calls()


def nothing_like(tensors):
    return [t.new_empty(0, *t.shape) for t in tensors]


def assert_empty(actual, like):
    assert actual.shape == (0, *like.shape) and actual.dtype == like.dtype


@pytest.mark.parametrize("name", CALLS)
def test_vmap_of_nothing(name):
    call, inputs = CALLS[name]
    empty, out, every = nothing_like(inputs), call(*inputs), tuple(range(len(inputs)))

    def energy(*a):
        return call(*a).sin().sum()

    def slope(*a):
        return torch.cat([g.flatten() for g in grad(energy, every)(*a)]).sin().sum()

    assert_empty(vmap(call)(*empty), out)
    assert_empty(vmap(lambda *a: jvp(call, a, a)[1])(*empty), out)
    assert_empty(jvp(vmap(call), tuple(empty), tuple(empty))[1], out)
    for f in (energy, slope):
        for g, t in zip(vmap(grad(f, every))(*empty), inputs, strict=True):
            assert_empty(g, t)
    for k in every:  # one operand has the batch, the others are shared
        mixed = [empty[i] if i == k else t for i, t in enumerate(inputs)]
        mapped = vmap(call, tuple(0 if i == k else None for i in every))
        assert_empty(mapped(*mixed), out)
        for g, t in zip(grad(lambda *a, mapped=mapped: mapped(*a).sum(), every)(*mixed), mixed, strict=True):
            assert g.shape == t.shape and not g.any()


@pytest.mark.parametrize("name", [name for name in OPS if name.split()[0] not in ("tensor_product", "rank_weights")])
def test_vmap_of_nothing_over_rows_without_a_batch(name):
    """[n] each, so that a single component has no dimension: torch cannot add a number to it."""
    call, shapes = OPS[name]
    inputs = [t[0] for t in tensors([shape[-1:] for shape in shapes], 1)]
    empty, every = nothing_like(inputs), tuple(range(len(inputs)))
    assert_empty(vmap(call)(*empty), call(*inputs))
    for g, t in zip(vmap(grad(lambda *a: call(*a).sin().sum(), every))(*empty), inputs, strict=True):
        assert_empty(g, t)


def test_of_an_op_with_two_outputs():
    """Of different dtypes; the batch is not the first dimension; tensors of plain autograd need gradients."""
    graph = eqtp.Graph(*edges(5, 4), 4, 4)
    columns = graph.ptr, graph.order

    def call(x):
        return max_rows(x, *columns, "native")

    x = torch.randn(5, 0, 3, requires_grad=True)
    largest, where = vmap(call, 1)(x)
    assert largest.shape == (0, 4, 3) and largest.dtype == torch.float32 and largest.requires_grad
    assert where.shape == (0, 4, 3) and where.dtype == torch.int64
    assert torch.autograd.grad(largest.sum(), x)[0].shape == x.shape


def test_a_shared_operand_gets_zeros():
    """Plain autograd through vmap."""
    x, w = torch.zeros(0, 5, PLAN.dim_in1), torch.randn(5, PLAN.weight_numel, requires_grad=True)
    y = torch.randn(5, PLAN.dim_in2)
    out = vmap(lambda x, w: eqtp.tensor_product(x, y, w, PLAN), (0, None))(x, w)
    assert out.requires_grad and torch.equal(torch.autograd.grad(out.sum(), w)[0], torch.zeros_like(w))

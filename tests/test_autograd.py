"""Derivatives through every machinery of torch: any order, forward mode, torch.func. tests/test_opcheck.py: the ops.

The routes that are known to give silent zeros or wrong numbers with custom ops are tests here and in
test_compile.py.
"""

import pytest
import torch
from torch.autograd import forward_ad

import eqtp
from eqtp import testing
from eqtp.ops import tensor_product as rows_op
from eqtp.ops import tensor_product_conv as conv_op
from eqtp.plans.plan import TensorProductPlan

PLAN = TensorProductPlan(
    "2x0e+3x1o",
    "0e+1o",
    "2x0e+2x1o+3x0e+3x1e",
    [
        (0, 0, 0, "uvu", True),
        (0, 1, 1, "uvu", False),
        (1, 1, 2, "uvu", True),
        (1, 1, 3, "uvu", True),
        (0, 0, 0, "uvu", False, 0.5),
    ],
)
GRAPH = eqtp.Graph(torch.tensor([0, 2, 1, 0, 2]), torch.tensor([1, 0, 1, 1, 3]), 3, 4)
SHAPES = {
    "rows": ((5, PLAN.dim_in1), (5, PLAN.dim_in2), (5, PLAN.weight_numel)),
    "conv": ((3, PLAN.dim_in1), (5, PLAN.dim_in2), (5, PLAN.weight_numel)),
}
OPS = {
    "rows": lambda x, y, w: eqtp.tensor_product(x, y, w, PLAN, backend="native"),
    "conv": lambda x, y, w: eqtp.tensor_product_conv(x, y, w, PLAN, GRAPH, backend="native"),
}
REFERENCES = {
    "rows": lambda x, y, w: rows_op.reference(x, y, w, PLAN),
    "conv": lambda x, y, w: conv_op.reference(x, y, w, PLAN, GRAPH),
}
both = pytest.mark.parametrize("name", ["rows", "conv"])


def operands(name, seed=0, dtype=torch.float64):
    return [testing.random(*s, seed=seed + k).to(dtype) for k, s in enumerate(SHAPES[name])]


@both
def test_gradcheck(name):
    inputs = [t.requires_grad_() for t in operands(name)]
    assert torch.autograd.gradcheck(
        OPS[name], inputs, check_forward_ad=True, check_batched_grad=True, check_batched_forward_grad=True
    )


@both
def test_gradgradcheck(name):
    inputs = [t.requires_grad_() for t in operands(name)]
    assert torch.autograd.gradgradcheck(OPS[name], inputs, check_fwd_over_rev=True, check_rev_over_rev=True)


@both
@pytest.mark.parametrize("which", range(3), ids="xyw")
def test_gradcheck_of_one_operand(name, which):
    """Only one operand needs a gradient: no kernel computes more, and the second order is right too."""
    inputs = operands(name)
    inputs[which].requires_grad_()
    assert torch.autograd.gradcheck(OPS[name], inputs)
    assert torch.autograd.gradgradcheck(lambda *a: OPS[name](*a).sin(), inputs)


def nested(op, inputs, orders):
    """Gradients of gradients of gradients: each order a random-looking functional of all gradients before
    it."""
    results, value = [], op(*inputs).sin().sum()
    for order in range(orders):
        grads = torch.autograd.grad(value, inputs, create_graph=order < orders - 1)
        results += grads
        value = sum((t * torch.linspace(0.1, 0.2, t.numel()).reshape(t.shape)).sin().sum() for t in grads)
    return results


@both
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
def test_fourth_order(name, dtype):
    inputs = [0.3 * t for t in operands(name, dtype=dtype)]
    ours = nested(OPS[name], [t.detach().requires_grad_() for t in inputs], 4)
    theirs = nested(REFERENCES[name], [t.detach().double().requires_grad_() for t in inputs], 4)
    for order in range(4):
        for a, b in zip(ours[3 * order : 3 * order + 3], theirs[3 * order : 3 * order + 3], strict=True):
            testing.assert_close(a, b, f"order {order + 1}")


@both
def test_forces_and_their_gradients(name):
    """Training on forces: d/dw of |dE/dx|^2, with only some operands differentiable."""
    for needs in ((True, False, True), (True, True, True), (False, True, True)):
        results = []
        for op in (OPS[name], REFERENCES[name]):
            x, y, w = (t.requires_grad_(n) for t, n in zip(operands(name), needs, strict=True))
            positions = [t for t, n in zip((x, y), needs, strict=False) if n]
            forces = torch.autograd.grad(op(x, y, w).pow(2).sum(), positions, create_graph=True)
            loss = sum(f.pow(2).sum() for f in forces)
            loss.backward()
            results.append([*forces, w.grad, *(p.grad for p in positions)])
        for a, b in zip(*results, strict=True):
            testing.assert_close(a, b)


def test_no_gradient_no_graph():
    assert not OPS["conv"](*operands("conv")).requires_grad
    inputs = [t.requires_grad_() for t in operands("conv")]
    with torch.no_grad():
        assert not OPS["conv"](*inputs).requires_grad


def test_a_saved_operand_that_changes_is_caught():
    x, y, w = (t.requires_grad_() for t in operands("rows"))
    scratch = w * 1
    out = OPS["rows"](x, y, scratch)
    scratch.mul_(2)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        out.sum().backward()


def test_one_tensor_as_two_operands():
    plan = TensorProductPlan("1o", "1o", "1e+0e", [(0, 0, 1, "uvu", True), (0, 0, 0, "uvu", True)])
    x, w = testing.random(4, 3).requires_grad_(), testing.random(4, 2, seed=1)
    ours, theirs = eqtp.tensor_product(x, x, w, plan), rows_op.reference(x, x, w, plan)
    for order in range(2):
        testing.assert_close(ours, theirs)
        ours, theirs = (torch.autograd.grad(t.sin().sum(), x, create_graph=True)[0] for t in (ours, theirs))
        assert ours.abs().max() > 0.1, order
    testing.assert_close(ours, theirs)


def test_checkpoint():
    x, y, w = (t.requires_grad_() for t in operands("conv"))
    plain = torch.autograd.grad(OPS["conv"](x, y, w).sin().sum(), (x, y, w))
    out = torch.utils.checkpoint.checkpoint(lambda *a: OPS["conv"](*a).sin(), x, y, w, use_reentrant=False)
    again = torch.autograd.grad(out.sum(), (x, y, w))
    assert all(torch.equal(a, b) for a, b in zip(plain, again, strict=True))


# forward mode and torch.func: registered ops alone give silent zeros or errors here


def product_rule(name, inputs, tangents):
    """The tangent by the formula, from the reference: linear in x, in y and in the weighted paths' w."""
    op, total = REFERENCES[name], 0
    for s, t in enumerate(tangents):
        moved, zero = list(inputs), list(inputs)
        moved[s], zero[s] = t, torch.zeros_like(t)
        total = total + op(*moved) - op(*zero)
    return total


@both
def test_jvp(name):
    inputs, tangents = operands(name), operands(name, seed=10)
    out, tangent = torch.func.jvp(OPS[name], tuple(inputs), tuple(tangents))
    testing.assert_close(out, REFERENCES[name](*inputs))
    testing.assert_close(tangent, product_rule(name, inputs, tangents))
    assert tangent.abs().max() > 0.1


@both
@pytest.mark.parametrize("which", range(3), ids="xyw")
def test_forward_mode_of_one_operand(name, which):
    inputs, t = operands(name), operands(name, seed=10)[which]
    with forward_ad.dual_level():
        dual = list(inputs)
        dual[which] = forward_ad.make_dual(inputs[which], t)
        out, tangent = forward_ad.unpack_dual(OPS[name](*dual))
    testing.assert_close(out, REFERENCES[name](*inputs))
    zeros = [torch.zeros_like(a) for a in inputs]
    zeros[which] = t
    testing.assert_close(tangent, product_rule(name, inputs, zeros))
    assert tangent.abs().max() > 0.1


@both
def test_forward_over_reverse_and_reverse_over_forward(name):
    """Hessian times vector both ways, against the reference."""
    inputs, tangents = tuple(operands(name)), tuple(operands(name, seed=10))
    energy = {op: (lambda *a, op=op: op(*a).sin().sum()) for op in (OPS[name], REFERENCES[name])}
    ours, theirs = energy.values()
    expected = torch.autograd.functional.hvp(theirs, inputs, tangents)[1]
    _, forward_over_reverse = torch.func.jvp(torch.func.grad(ours, argnums=(0, 1, 2)), inputs, tangents)
    for a, b in zip(forward_over_reverse, expected, strict=True):
        testing.assert_close(a, b)

    def first(*a):
        return torch.func.jvp(ours, a, tangents)[1]

    for a, b in zip(torch.func.grad(first, argnums=(0, 1, 2))(*inputs), expected, strict=True):
        testing.assert_close(a, b)


@both
def test_third_order_in_mixed_modes(name):
    """d/dt of the Hessian times vector, with forward mode outermost, in the middle and innermost."""
    inputs, tangents = tuple(operands(name)), tuple(operands(name, seed=10))

    def dot(a, b):
        return sum((s * t).sum() for s, t in zip(a, b, strict=True))

    every = {"argnums": (0, 1, 2)}

    def thirds(op):
        def energy(*a):
            return op(*a).sin().sum()

        def slope(f):
            return lambda *a: dot(torch.func.grad(f, **every)(*a), tangents)

        def forward(f):
            return lambda *a: torch.func.jvp(f, a, tangents)[1]

        yield torch.func.grad(slope(slope(energy)), **every)(*inputs)
        yield forward(torch.func.grad(slope(energy), **every))(*inputs)
        yield torch.func.grad(forward(slope(energy)), **every)(*inputs)
        yield torch.func.grad(slope(forward(energy)), **every)(*inputs)

    expected = next(thirds(REFERENCES[name]))
    for ours in thirds(OPS[name]):
        for a, b in zip(ours, expected, strict=True):
            testing.assert_close(a, b)


@both
def test_forward_inside_forward_raises(name):
    """torch loses a tangent there without an error; a sentence is better than a wrong number."""
    inputs, tangents = tuple(operands(name)), tuple(operands(name, seed=10))

    def first(*a):
        return torch.func.jvp(OPS[name], a, tangents)[1]

    with pytest.raises(NotImplementedError, match=r"eqtp::.*: forward mode inside forward mode is not supported"):
        torch.func.jvp(first, inputs, tangents)
    x, y, w = inputs
    with pytest.raises(NotImplementedError, match="forward mode inside forward mode"):
        torch.func.jacfwd(torch.func.jacfwd(lambda y: OPS[name](x, y, w).sin().sum()))(y)


@both
def test_func_grad_and_vjp(name):
    inputs = tuple(operands(name))
    needing = [t.clone().requires_grad_() for t in inputs]
    expected = torch.autograd.grad(REFERENCES[name](*needing).sin().sum(), needing)
    ours = torch.func.grad(lambda *a: OPS[name](*a).sin().sum(), argnums=(0, 1, 2))(*inputs)
    out, pull = torch.func.vjp(OPS[name], *inputs)
    for a, b, c in zip(ours, expected, pull(out.cos()), strict=True):
        testing.assert_close(a, b)
        testing.assert_close(c, b)


IN_DIMS = [(0, 0, 0), (0, None, None), (None, 1, None), (None, None, 2), (2, 0, 1)]


@both
@pytest.mark.parametrize("in_dims", IN_DIMS, ids=str)
def test_vmap(name, in_dims):
    inputs = [
        t if d is None else torch.stack([t, 2 * t.flip(0), t - 1], dim=d)
        for t, d in zip(operands(name), in_dims, strict=True)
    ]
    rows = [[t if d is None else t.select(d, n) for t, d in zip(inputs, in_dims, strict=True)] for n in range(3)]
    testing.assert_close(
        torch.func.vmap(OPS[name], in_dims)(*inputs), torch.stack([REFERENCES[name](*r) for r in rows])
    )

    def energy(*a):
        return OPS[name](*a).sin().sum()

    grads = torch.func.vmap(torch.func.grad(energy, argnums=(0, 1, 2)), in_dims)(*inputs)
    for n, r in enumerate(rows):
        r = [t.detach().clone().requires_grad_() for t in r]
        expected = torch.autograd.grad(REFERENCES[name](*r).sin().sum(), r)
        for a, b in zip(grads, expected, strict=True):
            testing.assert_close(a[n], b)


@both
def test_hessians(name):
    x, y, w = (0.5 * t for t in operands(name))

    def energy(op):
        return lambda y: op(x, y, w).sin().sum()

    expected = torch.autograd.functional.hessian(energy(REFERENCES[name]), y)
    ours = energy(OPS[name])
    rev = torch.func.jacrev
    for hessian in (torch.func.hessian(ours), rev(rev(ours)), rev(torch.func.jacfwd(ours))):
        testing.assert_close(hessian(y), expected)
    testing.assert_close(torch.autograd.functional.hessian(ours, y), expected)
    testing.assert_close(torch.autograd.functional.hessian(ours, y, vectorize=True), expected)


@both
def test_jacobian_is_that_of_the_reference(name):
    inputs = tuple(operands(name))
    expected = torch.autograd.functional.jacobian(REFERENCES[name], inputs)
    for jacobian in (torch.func.jacrev, torch.func.jacfwd):
        for a, b in zip(jacobian(OPS[name], argnums=(0, 1, 2))(*inputs), expected, strict=True):
            testing.assert_close(a, b)

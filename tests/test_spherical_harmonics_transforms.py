"""Spherical harmonics in torch's transforms: registered ops, torch.compile, torch.export, torch.func, forward mode."""

import io

import calls
import pytest
import torch
from test_spherical_harmonics import (
    DTYPES,
    assert_all_close,
    by_normalize,
    energy,
    harmonics,
    plain,
    third_order,
    vectors,
)
from torch.autograd import forward_ad

import eqtp
from eqtp import testing
from eqtp.ops.spherical_harmonics import _table

# registered ops


@by_normalize
def test_gradcheck(normalize):
    xyz = vectors(4).requires_grad_()
    op = harmonics([2, 0, 1, 1, 3], normalize)
    assert torch.autograd.gradcheck(op, xyz, check_forward_ad=True)
    assert torch.autograd.gradgradcheck(op, xyz)


def test_kernels_run(monkeypatch):
    """One call of the kernel for the value, one for the gradient, one for the second order."""
    made = calls.count_calls(monkeypatch, "harmonics")
    x = vectors(5).requires_grad_()
    out = eqtp.spherical_harmonics([0, 1, 2], x, True)
    assert len(made) == 1
    (g,) = torch.autograd.grad(out.sin().sum(), x, create_graph=True)
    assert len(made) == 2
    torch.autograd.grad(g.sum(), x)
    assert len(made) == 4  # the second order, and the gradient of the sine's derivative


def test_opcheck():
    xyz, c = vectors(5).requires_grad_(), testing.random(5, 3, seed=2)
    constants = ([2, 0, 1], True, _table((2, 0, 1), "component"), "native")
    g = testing.random(5, 9, seed=1).requires_grad_()
    ops = torch.ops.eqtp
    torch.library.opcheck(ops.spherical_harmonics.default, (xyz, *constants))
    torch.library.opcheck(ops.spherical_harmonics_bwd.default, (g, xyz, *constants))
    torch.library.opcheck(
        ops.spherical_harmonics_bwdbwd.default, (g.detach(), xyz.detach(), c, [True, True], *constants)
    )
    torch.library.opcheck(
        ops.spherical_harmonics_bwdbwd.default, (g.detach(), xyz.detach(), c, [False, True], *constants)
    )


def test_every_registered_op_is_checked_here():
    names = {"spherical_harmonics", "spherical_harmonics_bwd", "spherical_harmonics_bwdbwd"}
    assert {n for n in dir(torch.ops.eqtp) if n.startswith("spherical")} == names


# torch.compile and torch.export


@pytest.fixture
def fresh_compiler():
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


class Embedding(torch.nn.Module):
    def forward(self, xyz):
        return eqtp.spherical_harmonics([0, 1, 2], xyz, True, "component", backend="native") + xyz.sum(-1, keepdim=True)


def assert_same_embedding(f, n):
    x, e = vectors(n).requires_grad_(), Embedding()
    out, expected = f(x), plain([0, 1, 2])(x) + x.sum(-1, keepdim=True)
    testing.assert_close(out, expected)
    assert_all_close(*([torch.autograd.grad(t.sin().sum(), x)[0]] for t in (out, expected)))
    assert not f(x.detach()).requires_grad and e(x).requires_grad


def test_compile(fresh_compiler):
    assert_same_embedding(torch.compile(Embedding(), fullgraph=True, backend="aot_eager"), 7)


def test_compile_dynamic_batch(fresh_compiler):
    counter = torch._dynamo.testing.CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(Embedding(), fullgraph=True, dynamic=True, backend=counter)
    for n in (7, 11, 40):
        assert_same_embedding(compiled, n)
    assert counter.frame_count <= 2  # with and without gradients


def test_compile_of_the_forces(fresh_compiler):
    """The gradient is taken inside the compiled region and differentiated outside."""

    def energy_and_forces(x):
        out = energy(eqtp.spherical_harmonics([0, 1, 2], x, True, "component"))
        return out, torch.autograd.grad(out, x, create_graph=True)[0]

    x = vectors(7).requires_grad_()
    with torch._dynamo.config.patch(trace_autograd_ops=True):
        _, forces = torch.compile(energy_and_forces, fullgraph=True, backend="aot_eager")(x)
        (g,) = torch.autograd.grad(energy(forces), x)
    assert_all_close([forces, g], third_order(plain([0, 1, 2]), x.detach())[1:3])


def test_export_round_trip(fresh_compiler):
    dynamic = ({0: torch.export.Dim("points", min=2, max=10**6)},)
    program = torch.export.export(Embedding(), (vectors(7),), dynamic_shapes=dynamic)
    buffer = io.BytesIO()
    torch.export.save(program, buffer)
    buffer.seek(0)
    loaded = torch.export.load(buffer).module()
    for n in (7, 11, 40):
        assert_same_embedding(loaded, n)


# forward mode and torch.func


def duals(op, t):
    """xyz -> derivative of op along t, by both entries to forward mode."""

    def dual(x):
        with forward_ad.dual_level():
            return forward_ad.unpack_dual(op(forward_ad.make_dual(x, t))).tangent

    return [lambda x: torch.func.jvp(op, (x,), (t,))[1], dual]


@by_normalize
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_forward_mode(normalize, dtype):
    """Of the value and of the gradient, against reverse mode of the reference and, roughly, a difference quotient."""
    xyz, t, g = vectors(7), testing.random(7, 3, seed=1), testing.random(7, 17, seed=2)
    op, ref = harmonics([1, 0, 2, 3, 0], normalize), plain([1, 0, 2, 3, 0], normalize)

    def gradient(f):
        return lambda x: torch.func.vjp(f, x)[1](g.to(x))[0]

    for ours, theirs in ((op, ref), (gradient(op), gradient(ref))):
        jacobian = torch.func.jacrev(theirs)(xyz)  # [n, c, n, 3]
        expected = torch.einsum("icja,ja->ic", jacobian, t)
        quotient = (theirs(xyz + 1e-5 * t) - theirs(xyz - 1e-5 * t)) / 2e-5
        testing.assert_close(quotient, expected, tolerance=1e-6)
        for f in duals(ours, t.to(dtype)) if ours is op else duals(ours, t.to(dtype))[:1]:
            testing.assert_close(f(xyz.to(dtype)), expected)


def test_forward_mode_of_the_compiled_is_right_or_raises(fresh_compiler):
    """Never a silent zero."""
    xyz, t = vectors(5), testing.random(5, 3, seed=1)
    op = harmonics([0, 1, 2])
    expected = duals(plain([0, 1, 2]), t)[0](xyz)
    for f in duals(op, t):
        testing.assert_close(f(xyz), expected)
        with pytest.raises(
            Exception, match=r"eqtp::spherical_harmonics: forward-mode differentiation inside torch\.compile"
        ):
            torch.compile(f, fullgraph=True, backend="aot_eager")(xyz)
    compiled = torch.compile(op, fullgraph=True, backend="aot_eager")
    for f in duals(compiled, t):
        try:
            got = f(xyz)
        except Exception as error:
            assert "forward" in str(error) or "functorch" in str(error), error
        else:
            testing.assert_close(got, expected)


def test_forward_mode_in_forward_mode_raises():
    op, x = harmonics(2), vectors(3)
    with pytest.raises(NotImplementedError, match="forward mode inside forward mode is not supported"):
        torch.func.jacfwd(torch.func.jacfwd(op))(x)


@by_normalize
def test_vmap(normalize):
    op, ref, batch = harmonics([2, 1, 0], normalize), plain([2, 1, 0], normalize), testing.random(4, 5, 3)

    def energy_of(f):
        return lambda x: energy(f(x))

    for dim in (0, 1, 2):
        testing.assert_close(torch.func.vmap(op, in_dims=dim)(batch.movedim(0, dim)), ref(batch))
    testing.assert_close(torch.func.vmap(op)(batch[:0]), ref(batch[:0]))
    testing.assert_close(torch.func.vmap(op)(batch[:, :0]), ref(batch[:, :0]))
    x = batch.clone().requires_grad_()
    (g,) = torch.autograd.grad(energy_of(ref)(x), x)
    testing.assert_close(torch.func.vmap(torch.func.grad(energy_of(op)))(batch), g)
    cotangents = testing.random(6, 5, 9)  # one point set, several cotangents: the batch is in g only

    def pull(f):
        return torch.func.vmap(lambda c: torch.func.vjp(f, batch[0])[1](c)[0])(cotangents)

    testing.assert_close(pull(op), pull(ref))


@by_normalize
@pytest.mark.parametrize("outer", [torch.func.jacrev, torch.func.jacfwd], ids=["jacrev", "jacfwd"])
def test_hessian(normalize, outer):
    x, compose = vectors(2), lambda f: lambda x: energy(f(x))
    ours, theirs = (compose(f([1, 0, 3], normalize)) for f in (harmonics, plain))
    expected = torch.func.jacrev(torch.func.jacrev(theirs))(x)
    testing.assert_close(outer(torch.func.jacrev(ours))(x), expected)
    third = [torch.func.jacrev(outer(torch.func.jacrev(f)))(x) for f in (ours, theirs)]
    testing.assert_close(*third)

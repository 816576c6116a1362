"""Harmonics, segment ops and graphs on a GPU, every family that runs there, against the float64 reference on the
CPU."""

import pytest
import torch

import eqtp
from eqtp import testing
from eqtp.backends import registry

pytestmark = pytest.mark.gpu
FAMILIES = [family for family in registry.FAMILIES if family != "reference"]
TOLERANCE = {torch.float64: 1e-12, torch.float32: 1e-5, torch.float16: 4e-3, torch.bfloat16: 3e-2}


def run_or_skip(family: str, op: str, dtype: torch.dtype):
    """Skips, with the family's reason, what it cannot run here."""
    reason = registry.why_not(family, op, None, torch.device("cuda"), dtype)
    if reason:
        pytest.skip(reason)


def orders(f, x, g, c):
    """f(x), its gradient for the cotangent g, and the gradients of <c, gradient> for g and x; in float64 on the CPU."""
    x, g = x.clone().requires_grad_(), g.clone().requires_grad_()
    out = f(x)
    (gx,) = torch.autograd.grad(out, x, g, create_graph=True)
    second = torch.autograd.grad(gx, (g, x), c, materialize_grads=True)
    return [t.detach().double().cpu() for t in (out, gx, *second)]


def check(family, op, f, x, g, c, dtype):
    """f(x, backend): the family on the GPU against the reference, both from inputs rounded to dtype."""
    run_or_skip(family, op, dtype)
    rounded = [t.to(dtype) for t in (x, g, c)]
    expected = orders(lambda x: f(x, "reference"), *(t.double() for t in rounded))
    with testing.poisoned():
        actual = orders(lambda x: f(x, family), *(t.cuda() for t in rounded))
    for a, e in zip(actual, expected, strict=True):
        testing.assert_close(a, e, f"{family} {op}", TOLERANCE[dtype])


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize("degrees", [[0, 1, 2, 3], [2, 0, 2], list(range(7)), [9]], ids=str)
@pytest.mark.parametrize("family", FAMILIES)
def test_spherical_harmonics(family, degrees, dtype):
    n, columns = 333, sum(2 * l + 1 for l in degrees)
    xyz = torch.nn.functional.normalize(testing.random(n, 3), dim=1) * (1 + testing.random(n, 1, seed=5).abs())

    def f(x, b):
        return eqtp.spherical_harmonics(degrees, x, True, "component", backend=b)

    check(
        family, "spherical_harmonics", f, xyz, testing.random(n, columns, seed=1), testing.random(n, 3, seed=2), dtype
    )


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize("op", ["segment_sum", "segment_mean", "segment_max", "segment_softmax"])
@pytest.mark.parametrize("family", FAMILIES)
def test_segments(random_graph, family, op, dtype):
    graph = random_graph(40, 50, 400)
    on = {"cpu": graph, "cuda": eqtp.Graph(graph.src.cuda(), graph.dst.cuda(), 40, 50)}
    for columns in (1, 7, 64):
        rows = 400 if op == "segment_softmax" else 50

        def f(x, b):
            return getattr(eqtp, op)(x, on[x.device.type], backend=b)

        # with ties
        x = (testing.random(400, columns) * 4).round() / 4 if op == "segment_max" else testing.random(400, columns)
        check(
            family,
            op.replace("mean", "sum"),
            f,
            x,
            testing.random(rows, columns, seed=1),
            testing.random(400, columns, seed=2),
            dtype,
        )


@pytest.mark.parametrize("dtype", [torch.int32, torch.int64], ids=str)
def test_graphs(random_graph, dtype):
    """Built on the GPU they are those of the CPU; what is out of range is an error there too."""
    graph = random_graph(6, 5, 40)
    other = eqtp.Graph(graph.src.to("cuda", dtype), graph.dst.to("cuda", dtype), 6, 5)
    for a, b in ((graph, other), (graph.transpose(), other.transpose())):
        assert (
            torch.equal(a.ptr, b.ptr.cpu()) and torch.equal(a.order, b.order.cpu()) and torch.equal(a.src, b.src.cpu())
        )
    with pytest.raises(ValueError, match=r"dst must be in \[0, 4\)"):
        eqtp.Graph(other.src, other.dst, 6, 4)


def test_auto_takes_kernels():
    assert registry.resolve("auto", "spherical_harmonics", None, torch.device("cuda"), torch.float32) != "reference"

"""The Triton kernels run as NumPy on a node with thousands of edges, in float32, as tests/test_long_sums.py has them.

Not collected by itself: tests/test_triton.py runs it, as it does tests/triton_interpreter.py.
"""

import pytest
import torch
import triton_interpreter  # noqa: F401  mends the interpreter
from sweeps import sweep
from test_long_sums import SCALARS, TOLERANCE, VECTORS, check_conv, constant, error, star, summed

import eqtp
from eqtp.ops import segment_softmax


@pytest.mark.parametrize("into", [True, False], ids=["giant destination", "giant source"])
@sweep("arguments", [SCALARS, VECTORS], [SCALARS], ids=["scalars", "vectors"])
def test_convolution(arguments, into):
    check_conv("triton", arguments, star(1000, into), constant)


def test_sum():
    graph, x = star(6003, into=True), constant(6003, 128).float()
    assert error(eqtp.segment_sum(x, graph, "triton"), summed(x, graph)) < TOLERANCE


def test_softmax():
    """Forward, and backward: y (g - sum of y g), which is 0 where g is the same for all edges."""
    graph, x = star(2503, into=True), constant(2503, 128)
    leaf = x.float().requires_grad_()
    y = eqtp.segment_softmax(leaf, graph, "triton")
    assert error(y.detach(), segment_softmax.reference(x, graph)) < TOLERANCE
    (gx,) = torch.autograd.grad(y, leaf, torch.ones_like(y) * 3)
    assert (gx.abs() < 3e-6 * y.abs()).all()  # 3 - 3


@pytest.mark.parametrize("value", [torch.inf, torch.nan])
def test_what_is_not_finite(value):
    graph, x = star(503, into=True), torch.ones(503, 128)
    x[[50, 450], 2] = value
    total = eqtp.segment_sum(x, graph, "triton")[2]
    assert total[2] == value or (total[2].isnan() and value != value)
    assert (total[[0, 1, 3]] == 500).all()

"""The linear layer that is traced in place of e3nn's: the same numbers and gradients, parameters that are the same."""

import pytest
import torch

from eqtp import testing
from eqtp.integrations.e3nn_linear import Linear, replace_linears


@pytest.mark.parametrize("biases", [False, True])
@pytest.mark.parametrize("rows", [(7,), (2, 3), (0,)], ids=str)
def test_as_e3nn(e3nn64, biases, rows):
    """Several blocks into one, one that nothing goes into, scalars with a bias."""
    from e3nn import o3

    theirs = o3.Linear("8x0e + 3x1o + 4x0e + 2x2e", "5x1o + 6x0e + 2x0e + 1x3o", biases=biases)
    if biases:
        torch.nn.init.normal_(theirs.bias)
    ours = Linear(theirs)
    assert ours.weight is theirs.weight and ours.bias is theirs.bias
    x = testing.random(*rows, theirs.irreps_in.dim, seed=1).requires_grad_()
    found = []
    for module in (ours, theirs):
        out = module(x)
        found.append([out, *torch.autograd.grad(out.sin().sum(), [x, *theirs.parameters()])])
    for a, b in zip(*found, strict=True):
        testing.assert_close(a.detach(), b.detach())


def test_others_are_refused(e3nn64):
    from e3nn import o3

    outside = o3.Linear("4x0e", "4x0e", internal_weights=False)
    with pytest.raises(ValueError, match="weights from outside"):
        replace_linears(torch.nn.Sequential(outside))
    with pytest.raises(ValueError, match="with f_in is not supported"):
        Linear(o3.Linear("4x0e", "4x0e", f_in=2, f_out=2))

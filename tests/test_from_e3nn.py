"""`eqtp.e3nn.from_e3nn`: any e3nn TensorProduct or SphericalHarmonics, one module at a time."""

import pytest
import torch
from e3nn_models import exact, o3, relative

from eqtp.integrations.e3nn import from_e3nn, plan_from_e3nn


class Own(o3.TensorProduct):
    def forward(self, x, y, weight=None):
        return 2 * super().forward(x, y, weight)


@pytest.mark.parametrize("normalization", ["integral", "component", "norm"])
@pytest.mark.parametrize("irreps", [[0, 1, 2], [2, 0, 1, 1], "0e + 1o + 2e + 3o", "2x1o"])
def test_spherical_harmonics_from_e3nn(irreps, normalization):
    old = o3.SphericalHarmonics(irreps, normalization != "norm", normalization)
    new, xyz = from_e3nn(old), torch.randn(3, 5, 3, dtype=torch.float64)
    assert relative(new(xyz), old(xyz)) < 1e-12 and new.irreps_out == old.irreps_out


@pytest.mark.parametrize(
    "make",
    [
        lambda: o3.FullyConnectedTensorProduct("2x0e + 3x1o", "2x0e + 1o", "4x0e + 2x1o + 1e"),
        lambda: o3.FullTensorProduct("2x0e + 1o", "0e + 3x1o"),
        lambda: o3.ElementwiseTensorProduct("2x0e + 2x1o", "3x0e + 1o", irrep_normalization="norm"),
        lambda: o3.TensorProduct(
            "2x1o", "3x1o", "2x1e", [(0, 0, 0, "uvu", True, 0.3)], in1_var=[2.0], path_normalization="path"
        ),
    ],
)
def test_from_e3nn_every_mode(make):
    old = exact(make())
    new = from_e3nn(old)
    x, y = (torch.randn(7, irreps.dim, dtype=torch.float64) for irreps in (old.irreps_in1, old.irreps_in2))
    assert relative(new(x, y), old(x, y)) < 1e-12
    assert list(new.state_dict()) == list(old.state_dict())
    assert plan_from_e3nn(old) == new.plan


def test_from_e3nn_tensor_square():
    old = exact(o3.TensorSquare("3x0e + 2x1o", "2x0e + 2e"))
    x = torch.randn(7, 9, dtype=torch.float64)
    assert relative(from_e3nn(old)(x), old(x)) < 1e-12 and repr(from_e3nn(old)) == repr(old)


def test_from_e3nn_refuses():
    with pytest.raises(TypeError, match=r"expected one of e3nn's TensorProduct, SphericalHarmonics, .*got Linear"):
        from_e3nn(torch.nn.Linear(1, 1))
    with pytest.raises(TypeError, match="plan_from_e3nn: expected an e3nn TensorProduct, got Linear"):
        plan_from_e3nn(torch.nn.Linear(1, 1))
    with pytest.raises(ValueError, match="Own cannot be converted: its class Own has its own forward"):
        from_e3nn(Own("4x0e", "0e", "4x0e", [(0, 0, 0, "uvu", True)]))

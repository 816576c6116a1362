"""Modules with e3nn's constructor arguments and state_dict, on eqtp's ops; layers of the Gaunt product."""

from eqtp.nn.activation import Activation, Extract, ExtractIr
from eqtp.nn.gate import Gate, Norm, NormActivation
from eqtp.nn.gaunt import GauntConvolution, GauntManyBody, GauntTensorProduct
from eqtp.nn.linear import Linear
from eqtp.nn.products import SphericalHarmonics, TensorProduct, TensorProductConv
from eqtp.nn.radial import FullyConnectedNet

__all__ = [
    "Activation",
    "Extract",
    "ExtractIr",
    "FullyConnectedNet",
    "Gate",
    "GauntConvolution",
    "GauntManyBody",
    "GauntTensorProduct",
    "Linear",
    "Norm",
    "NormActivation",
    "SphericalHarmonics",
    "TensorProduct",
    "TensorProductConv",
]

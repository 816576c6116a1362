"""Modules with e3nn's constructor arguments and state_dict, on eqtp's ops; layers of the Gaunt product."""

from eqtp.nn.gaunt import GauntConvolution, GauntManyBody, GauntTensorProduct
from eqtp.nn.products import SphericalHarmonics, TensorProduct, TensorProductConv

__all__ = [
    "GauntConvolution",
    "GauntManyBody",
    "GauntTensorProduct",
    "SphericalHarmonics",
    "TensorProduct",
    "TensorProductConv",
]

"""Spherical harmonics: kernels/harmonics.py."""

from eqtp.backends import triton
from eqtp.backends.tensors import contiguous_rows

triton.register("harmonics", lambda inputs: (inputs[0], *map(contiguous_rows, inputs[1:])))

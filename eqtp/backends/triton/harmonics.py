"""Spherical harmonics: kernels/harmonics.py."""

from eqtp.backends import triton
from eqtp.backends.tensors import contiguous_rows

triton.register("harmonics", lambda inputs: (inputs[0], *(t if t is None else contiguous_rows(t) for t in inputs[1:])))

"""Products of matrices that represent functions on the sphere: kernels/matrices.py."""

from eqtp.backends import triton

triton.register("matrices")

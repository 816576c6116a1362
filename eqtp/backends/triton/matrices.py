"""Products of the matrices that stand for functions on the sphere: kernels/matrices.py."""

from eqtp.backends import triton

triton.register("matrices")

"""Sums of products by a table of couplings: kernels/couplings.py."""

from eqtp.backends import triton

triton.register("couplings")

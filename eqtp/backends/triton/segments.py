"""Sums, maxima and softmaxes over the edges into each node: kernels/segments.py."""

from eqtp.backends import triton
from eqtp.backends.tensors import contiguous_rows

triton.register(
    "segments", lambda inputs: (*map(contiguous_rows, inputs[:-2]), *inputs[-2:])
)  # the last two: ptr, order

"""Programs of signals on a folded grid: kernels/signals.py."""

from eqtp.backends import triton

triton.register("signals")

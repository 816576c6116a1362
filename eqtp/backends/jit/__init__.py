"""The family "jit": the CUDA sources of csrc/, compiled at run time with a plan as constants (NVRTC), launched through
CuPy."""

"""The family "native": eqtp._native, compiled ahead of time: C++ for CPU tensors, CUDA for GPU tensors."""

"""The family "native": eqtp._native, C++ for tensors on the CPU and CUDA, compiled ahead of time, for those on a
GPU."""

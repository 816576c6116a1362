"""The family "triton": the kernels of the folder kernels/, on every GPU that Triton knows."""

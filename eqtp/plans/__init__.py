"""Computations as data that every kernel reads: paths, coefficients, offsets. NumPy and float64; no torch."""

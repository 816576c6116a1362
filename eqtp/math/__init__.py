"""The mathematics: irreps, couplings, harmonics, grids. NumPy and float64; no torch."""

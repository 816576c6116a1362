"""Which kernels there are (`registry`), and how each family runs its own: `native`, `jit`, `triton`.

The attribute `eqtp.backends` is the function that lists the families, so import from this package by `from
eqtp.backends import ...`.
"""

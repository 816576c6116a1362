"""Which kernels there are (`registry`), and how each family runs its own: `native`, `jit`, `triton`.

`eqtp.backends` as an attribute is the function that lists the families: import from this package by `from eqtp.backends
import ...`.
"""

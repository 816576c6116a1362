"""The Triton family: one file per op, with the stem of eqtp/ops. Installed as eqtp.kernels; `import eqtp` does not import it.

There are no Triton kernels in this version.
"""

"""Whole models compiled: `eqtp.compile`, `eqtp.load`."""

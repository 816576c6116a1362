"""Benchmarks: `python -m bench <op>`; see `bench/__main__.py`."""

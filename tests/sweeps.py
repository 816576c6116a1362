"""Sweeps of which every run takes a part: see `markers` in pyproject.toml."""

import pytest


def sweep(names: str, values, every_run, ids=None):
    """pytest.mark.parametrize(names, values), where all values but those of every_run are marked long."""
    values, every_run = list(values), list(every_run)
    assert all(value in values for value in every_run)
    single = "," not in names
    parameters = [
        value if value in every_run else pytest.param(*([value] if single else value), marks=pytest.mark.long)
        for value in values
    ]
    return pytest.mark.parametrize(names, parameters, ids=ids)

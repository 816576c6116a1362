"""200 random cases of tests/fuzz.py, the same ones every time; `make fuzz` runs 10,000."""

import pytest

pytest.importorskip("hypothesis", reason="hypothesis is not installed")
pytest.importorskip("e3nn", reason="e3nn is not installed")

import fuzz


@pytest.mark.parametrize("seed", range(8))
def test_random_cases(seed):
    fuzz.run(25, seed)

"""The tunings of the specialised convolution: what is tried, kept and taken."""

import json

import pytest
import torch

from bench import tune
from eqtp.backends.jit import channelwise_tables as tables
from eqtp.plans import channelwise
from eqtp.testing import problems

PLAN = problems.plan("sevennet-0-last")
SHARED = 227 << 10  # bytes, of an H200


def test_candidates_are_different_kernels_that_fit():
    found = tune.candidates(PLAN, torch.float32, SHARED, chosen=False)
    assert all(len(choices) > 2 for choices in found.values()) and set(found) == set(tune.PASSES)
    fewer = tune.candidates(PLAN, torch.float32, 32 << 10, chosen=False)
    assert 0 < sum(map(len, fewer.values())) < sum(map(len, found.values()))
    (now,) = tune.candidates(PLAN, torch.float32, SHARED, chosen=True)["fwd"]
    assert now == {"fwd": tables.chosen_tuning(PLAN.key, "fwd", torch.float32, SHARED)}


def test_the_fastest_is_kept_and_taken(tmp_path, monkeypatch):
    file = tmp_path / "tunings.json"
    file.write_text(json.dumps({"plans": {"another": {"fwd": [2, 1, 1, 32]}}}))
    rows = [
        {
            "problem": "sevennet-0-last",
            "pass": "fwd",
            "ms": ms,
            "tuning": {"fwd": list(tables.Tuning(stages, 2, 2, 16))},
        }
        for ms, stages in ((2.0, 2), (1.0, 4), (3.0, 3))
    ]
    tune.choose(rows, file, {"gpu": "none"})
    kept = json.loads(file.read_text())
    assert kept["measured"] == {"gpu": "none"} and "another" in kept["plans"]
    monkeypatch.setattr(tables, "TUNINGS", file)
    for cache in (tables._measured, tables.chosen_tuning):
        cache.cache_clear()
    try:
        assert tables.chosen_tuning(PLAN.key, "fwd", torch.float32, SHARED).stages == 4
        assert tables.chosen_tuning(PLAN.key, "fwd", torch.float64, SHARED).stages == tables.FORWARD[0].stages
    finally:
        for cache in (tables._measured, tables.chosen_tuning):
            cache.cache_clear()


@pytest.mark.parametrize("name", ["mace-medium", "sevennet-0", "nequip-l", "mace-large", "sevennet-l3i5"])
def test_measured_plans_are_known(name):
    """The file that is shipped: its plans are those of the workloads, its tunings fit the GPU they are of."""
    plan = problems.plan(name)
    measured = tables._measured()[tables.shape_of(plan)]
    for pass_ in {"fwd", "bwd", "second"}:
        tuning = tables.Tuning(*measured[pass_])
        assert tables.chosen_tuning(plan.key, pass_, torch.float32, SHARED) == tuning


@pytest.mark.parametrize("shared", [99 << 10, 48 << 10], ids=str)
@pytest.mark.parametrize("name", [n for n in problems.TENSOR_PRODUCTS if not channelwise.why_not(problems.plan(n))])
def test_smaller_gpus(name, shared):
    """Every workload fits the shared memory of consumer cards; what does not fit is a sentence."""
    plan = problems.plan(name)
    for pass_ in tables.KERNEL_PASSES:
        tuning = tables.chosen_tuning(plan.key, pass_, torch.float32, shared)
        assert tables.shared_bytes(plan, pass_, torch.float32, tuning) < shared or pass_ == "second"

"""What the benchmark harness measures: time, memory, the machine."""

import sys
import time
from pathlib import Path

import pytest
import torch

sys.path.append(str(Path(__file__).parents[1]))  # bench is not part of the installed package

from bench import harness, machine


def test_quantiles():
    timing = harness.Timing([5.0, 1.0, 2.0, 4.0, 3.0, 6.0])
    assert (timing.ms, timing.quantile(0.2), timing.quantile(0.8)) == (3.5, 2.0, 5.0)
    assert harness.Timing([7.0]).quantile(0.8) == 7.0


def test_contestants_take_turns_and_quick_ones_are_called_more_often():
    calls = []
    timings, failed = harness.time_together(
        {"slow": lambda: (calls.append("slow"), time.sleep(0.02)), "quick": lambda: calls.append("quick"),
         "broken": lambda: 1 / 0},
        rounds=3, min_time=0.03, warmup=2,
    )  # fmt: skip
    assert failed == {"broken": "ZeroDivisionError: division by zero"}
    assert calls[:4] == ["slow", "slow", "quick", "quick"]  # warm-up
    turns = calls[4:]
    assert turns == (["slow"] + ["quick"] * (len(timings["quick"].calls) // 3)) * 3
    assert len(timings["slow"].calls) == 3 < len(timings["quick"].calls)
    assert timings["slow"].ms >= 20


def test_peak_memory_of_a_call():
    """64 MB that a call takes and gives back are seen, and those that were there before are not."""
    kept = torch.ones(16 << 20)
    peak = harness.peak_mb(lambda: torch.ones(16 << 20).sum() + kept[0])
    if peak is None:
        pytest.skip("this system does not let a process reset its high-water mark")
    assert 60 < peak < 80
    assert harness.peak_mb(lambda: kept.sum()) < 8


def test_measured_rates_are_of_this_world(monkeypatch):
    monkeypatch.setattr(machine, "BUFFER_BYTES", 1 << 24)
    for dtype in (torch.float32, torch.float64):
        rates = machine.measure(dtype, repeats=2)
        assert rates.threads == torch.get_num_threads()
        assert 0.5 < rates.read_gb_s < 2000 and 0.5 < rates.copy_gb_s < 4000 and 0.5 < rates.gflop_s < 20000
        assert f"read {rates.read_gb_s:.1f} GB/s" in str(rates)

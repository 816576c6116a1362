"""Compiled models in a process of their own."""

import os
import subprocess
import sys

import torch

LOAD = """
import sys, torch, eqtp
inputs, expected = torch.load(sys.argv[2])
model = eqtp.load(sys.argv[1])
got = model(*inputs)
for name, t in expected.items():
    assert (got[name] - t).abs().max() <= float(sys.argv[3]) * t.abs().max(), name
assert not {"sevenn", "e3nn", "torch._dynamo", "torch._inductor.compile_fx"} & set(sys.modules)
print("same", model.report.from_disk)
"""


def assert_loads_elsewhere(file, arguments, expected, tolerance):
    """In a new process, which imports no model library and no compiler."""
    data = file.with_suffix(".data")
    torch.save((arguments, expected), data)
    command = [sys.executable, "-c", LOAD, str(file), str(data), str(tolerance)]
    done = subprocess.run(command, env=os.environ, capture_output=True, text=True, timeout=120)
    assert done.stdout == "same True\n", done.stderr[-2000:]

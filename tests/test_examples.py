"""The examples run, and show what they say."""

import importlib.util
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

EXAMPLES = Path(__file__).parents[1] / "examples"


def run(name, *arguments) -> str:
    result = subprocess.run(
        [sys.executable, str(EXAMPLES / name), *arguments], capture_output=True, text=True, timeout=250
    )
    assert result.returncode == 0, result.stderr
    return result.stdout


def test_tetris():
    """Clebsch-Gordan and Gaunt with its odd half: 8 of 8 in any orientation; plain Gaunt: 7 at most, and one of the
    mirror images is wrong."""
    out = run("tetris.py")
    right = {title: int(n) for title, n in re.findall(r"^(\S.*?) +(\d)/8 ", out, re.MULTILINE)}
    assert right["Clebsch-Gordan"] == right["Gaunt + odd"] == 8 and right["Gaunt"] <= 7
    plain = re.search(r"^Gaunt  .*$", out, re.MULTILINE)[0]
    assert "chiral" in plain and not re.search("square|line|corner|zigzag", plain)


@pytest.fixture(scope="module")
def acac():
    spec = importlib.util.spec_from_file_location("acac", EXAMPLES / "acac.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules["acac"] = module
    spec.loader.exec_module(module)
    yield module
    del sys.modules["acac"]


@pytest.mark.parametrize("product", ["cg", "gaunt", "gaunt+odd"])
def test_acac_forces_are_right(acac, product):
    """Energies do not change under O(3); forces are equivariant and equal to differences of energies; gradients of the
    loss reach every weight."""
    torch.manual_seed(0)
    data = acac.load(EXAMPLES / "data" / "acac")["train"].batch(torch.arange(2))
    network = acac.Network(product, 4, data.elements, -5.0, 1.0, 13.0).double()
    data = data._replace(positions=data.positions.double(), forces=data.forces.double())
    energy, forces = acac.evaluate(network, data, train=True)
    q, _ = torch.linalg.qr(torch.randn(3, 3, dtype=torch.float64))
    for turn in (q, -q):
        turned = data._replace(positions=data.positions @ turn.T, forces=data.forces @ turn.T)
        e, f = acac.evaluate(network, turned)
        # numbers of order 1, some hundred roundings of 2e-16
        torch.testing.assert_close(e, energy, rtol=1e-13, atol=1e-13)
        torch.testing.assert_close(f, forces @ turn.T, rtol=1e-13, atol=1e-13)
    step = torch.zeros_like(data.positions)
    step[1, 3, 2] = 1e-5
    high, low = (network(data.positions + s * step, acac.edges_of(data.positions))[1].item() for s in (1, -1))
    assert -(high - low) / 2e-5 == pytest.approx((forces + data.forces)[1, 3, 2].item(), rel=1e-6, abs=1e-7)
    (energy.square().mean() + forces.square().mean()).backward()
    silent = {
        name for name, p in network.named_parameters() if p.requires_grad and (p.grad is None or not p.grad.any())
    }
    assert not silent


def test_acac_learns():
    """A short run with every product: smaller force errors than those of no force at all."""
    out = run("acac.py", "--epochs", "1", "--channels", "4")
    rows = {
        line[:20].strip(): [float(v.replace(",", "")) for v in line[20:].split()]
        for line in out.splitlines()
        if re.search(r"\d\.\d$|\d,\d{3}$", line)
    }
    assert set(rows) == {"(mean energy)", "Clebsch-Gordan", "Gaunt", "Gaunt + odd"}
    for name, row in rows.items():
        assert name == "(mean energy)" or row[3] < 0.9 * rows["(mean energy)"][3]


def test_acac_data(acac):
    data = acac.load(EXAMPLES / "data" / "acac")
    assert {key: len(frames.energy) for key, frames in data.items()} == {"train": 100, "300 K": 50, "600 K": 50}
    assert "".join(sorted(data["train"].elements)) == "CCCCCHHHHHHHHOO"
    for frames in data.values():
        assert -75 < frames.energy.mean() < -70  # eV, binding energy of the molecule
        assert frames.forces.sum(1).abs().max() < 0.1
    assert sum(path.stat().st_size for path in (EXAMPLES / "data" / "acac").iterdir()) < 400_000


@pytest.mark.parametrize("compiled", [False, pytest.param(True, marks=pytest.mark.long)])
def test_demo(tmp_path, compiled):
    """All ways give the same numbers, and the picture is there."""
    pytest.importorskip("sevenn", reason="sevenn is not installed")
    pytest.importorskip("matplotlib", reason="matplotlib is not installed")
    small = "--frames", "2", "--repeat", "1", "--threads", "1", "--out", str(tmp_path)
    out = run("sevennet_dropin.py", *small, *([] if compiled else ["--no-compile"]))
    found = json.loads((tmp_path / "sevennet_dropin.json").read_text())
    ways = ["before", "after", "compiled"] if compiled else ["before", "after"]
    assert found["ways"] == ways and found["frames"] == 2 and set(found["speedup"]) == set(ways[1:])
    assert all(0 <= change < 2e-6 for change in found["max_de_ev_per_atom"].values())
    assert all(0 < change < 1e-5 for change in found["max_df_ev_per_a"].values())
    assert all(found[f"seconds_{way}"] > 0 for way in ways)
    assert re.search(r"^ 0 As4Na5 +9 +164 \|", out, re.MULTILINE) and ("eqtp.compile" in out) == compiled
    assert (tmp_path / "sevennet_dropin.png").stat().st_size > 50_000

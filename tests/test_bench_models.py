"""`python -m bench models`: what it prints is what it measured; wrong models are not timed, missing ones are named."""

import json
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

ROOT = Path(__file__).parents[1]
sys.path.append(str(ROOT))  # bench is not part of the installed package

import eqtp  # noqa: E402
from bench import __main__ as bench  # noqa: E402
from bench import harness, machine, model_libraries, models  # noqa: E402

pytestmark = pytest.mark.usefixtures("threads", "frozen_heap")
RATES = machine.Machine("a processor", threads=1, read_gb_s=10.0, copy_gb_s=10.0, gflop_s=100.0)
QUICK = ["--repeat", "2", "--min-time", "0.001"]


@pytest.fixture
def run(monkeypatch, tmp_path, capfd):
    """`python -m bench models ...` without measuring the machine: exit code, stdout, stderr, lines of the JSON file."""
    monkeypatch.setattr(machine, "measure", lambda dtype, **_: RATES)

    def call(*arguments: str):
        file = tmp_path / "models.json"
        code = bench.main(["models", *arguments, *QUICK, "--json", str(file)])
        out, err = capfd.readouterr()
        return code, out, err, [json.loads(line) for line in file.read_text().splitlines()]

    return call


class Springs:
    """A model of a library that does not exist: energy of the positions, stiffer by a factor for a wrong one."""

    def __init__(self, factor: float = 1.0):
        self.factor, self.report = factor, SimpleNamespace(from_disk=True)


def springs_predict(model, data):
    x = data["positions"].clone().requires_grad_()  # [n, 3]
    energy = model.factor * x.square().sum()
    (gx,) = torch.autograd.grad(energy, x)
    return {"energy": energy.detach(), "forces": -gx, "stress": torch.zeros(6)}


@pytest.fixture
def springs(monkeypatch):
    """The library, whose accelerated, compiled and cueq models are off by these factors; an exception: raised."""
    factors = {"accelerate": 1.0, "compile": 1.0, "cueq": 1.0, "e3nn": 1.0}

    def load(name, device, peer):
        return Springs(factors[peer]) if peer in factors else missing(f"{peer} is away")

    def missing(text):
        raise harness.Missing(text)

    def stiffer(what):
        def apply(model, *_):
            if isinstance(factors[what], Exception):
                raise factors[what]
            model.factor *= factors[what]
            return model

        return apply

    def data(model, structures, device):
        positions = torch.cat([torch.from_numpy(atoms.positions).float() for atoms in structures]) / 3
        return {"positions": positions, "edge_index": torch.zeros(2, 7)}

    library = model_libraries.Library("json", load, data, springs_predict)  # a package that is there
    monkeypatch.setitem(models.MODELS, "springs", library)
    monkeypatch.setattr(eqtp, "accelerate", stiffer("accelerate"))
    monkeypatch.setattr(eqtp, "compile", stiffer("compile"))
    return factors


ARGUMENTS = ("--model", "springs", "--atoms", "8,4", "--against", "e3nn,cueq,openequivariance")


def test_all_contestants_in_one_run(run, springs):
    pytest.importorskip("ase")
    code, out, err, lines = run(*ARGUMENTS)
    assert code == 0
    who = ["eqtp", "eqtp-compiled", "e3nn", "cueq"]
    assert [(line["problem"], line["backend"]) for line in lines] == [
        (f"springs-{n}-atoms", name) for n in (8, 4) for name in who
    ]
    for at in (0, 4):
        by = {line["backend"]: line for line in lines[at : at + 4]}
        for ours in who[:2]:
            assert by[ours]["ratio_to"] == {p: pytest.approx(by[p]["ms"] / by[ours]["ms"]) for p in who[2:]}
        for name, line in by.items():
            assert line["ratio_to"] or name in who[2:]
            assert line["missing"] == {"openequivariance": "openequivariance is away"}
            assert line["atoms_s"] == pytest.approx(1e3 * line["size"]["nodes"] / line["ms"]) and line["start_s"] > 0
            assert line["de_ev_per_atom"] == line["df_ev_per_a"] == 0 and line["size"]["edges"] == 7
            assert (line["op"], line["pass"], line["threads"]) == ("json", "energy+forces", 1)
            assert line["from_disk"] is (True if name == "eqtp-compiled" else None)
            assert f"  {name:18}{line['ms']:10.4g} " in out
    assert out.count("openequivariance  missing: openequivariance is away") == 2 and "eqtp-compiled" in err


@pytest.mark.parametrize("what, who", [("accelerate", "eqtp"), ("compile", "eqtp-compiled")])
@pytest.mark.parametrize("factor", [1.0001, float("nan")])
def test_a_wrong_model_is_not_timed(run, springs, monkeypatch, what, who, factor):
    pytest.importorskip("ase")
    springs[what] = factor
    monkeypatch.setattr(harness, "time_together", lambda *_, **__: pytest.fail("it was timed"))
    code, _, err, lines = run(*ARGUMENTS)
    assert code == 1 and lines == []
    assert f"refused to time a wrong model: springs: {who}: energy off by" in err


def test_a_peer_that_is_off_is_not_compared(run, springs):
    pytest.importorskip("ase")
    springs["cueq"] = 1.01
    code, _, _, lines = run(*ARGUMENTS, "--without", "eqtp-compiled")
    assert code == 0 and [line["backend"] for line in lines] == ["eqtp", "e3nn"] * 2
    why = "not compared: energy off by 1.3e-02 from the plain model, allowed 2e-05"
    assert lines[0]["missing"]["cueq"] == why


@pytest.mark.parametrize(
    "error, code, said",
    [
        (ValueError("not this model"), 0, "missing: ValueError: not this model"),  # what compile does not take
        (RuntimeError("no compiler\nat all"), 1, "missing: RuntimeError: no compiler"),
    ],
)
def test_what_cannot_be_compiled_is_named(run, springs, error, code, said):
    pytest.importorskip("ase")
    springs["compile"] = error
    got, out, err, lines = run(*ARGUMENTS)
    assert got == code and f"eqtp-compiled     {said}" in out
    assert ("failed: springs: eqtp-compiled: RuntimeError" in err) == (code == 1)
    assert [line["backend"] for line in lines] == ["eqtp", "e3nn", "cueq"] * 2


def test_a_plain_model_that_cannot_run_ends_its_sizes(run, springs, monkeypatch):
    """What was timed before stays."""
    pytest.importorskip("ase")

    def too_large(model, data):
        if len(data["positions"]) > 4:
            raise MemoryError("no memory for this")
        return springs_predict(model, data)

    monkeypatch.setitem(models.MODELS, "springs", models.MODELS["springs"]._replace(predict=too_large))
    code, out, _, lines = run("--model", "springs", "--atoms", "4,8", "--against", "e3nn")
    assert code == 0 and {line["problem"] for line in lines} == {"springs-4-atoms"}
    assert "springs: left out: the plain model of 8 atoms: MemoryError: no memory for this" in out


def test_models_that_are_not_installed_are_left_out(run, monkeypatch):
    monkeypatch.setattr(models.importlib.util, "find_spec", lambda name: None)
    code, out, err, lines = run("--model", "7net-0,mace-medium,nequip-l")
    assert code == 1 and lines == [] and "no model could be timed" in err
    assert "7net-0: left out: the package sevenn is not installed" in out
    assert "mace-medium: left out: the package mace is not installed" in out
    assert "nequip-l: left out: the package nequip is not installed" in out


def test_structures_have_the_atoms_that_are_asked_for():
    pytest.importorskip("ase")
    found = {n: models.crystal(n) for n in (1, 8, 64, 100, 864)}
    assert {n: len(atoms) for n, atoms in found.items()} == {1: 8, 8: 8, 64: 64, 100: 216, 864: 864}
    assert set(found[64].symbols) == {"Na", "Cl"} and set(found[864].symbols) == {"Cu"}


def test_sevennet_and_its_switches(run):
    """Trained SevenNet-0, eager: the numbers of the plain model; on a CPU the peers are named, none is e3nn itself."""
    pytest.importorskip("sevenn", reason="sevenn is not installed")
    peers = ["openequivariance", "cueq", "flashtp"]
    code, _, _, lines = run("--atoms", "8", "--against", ",".join(["e3nn", *peers]), "--without", "eqtp-compiled")
    assert code == 0 and [line["backend"] for line in lines] == ["eqtp", "e3nn"]
    assert set(lines[0]["versions"]) >= {"eqtp", "torch", "e3nn", "sevenn"}
    assert lines[0]["problem"] == "7net-0-8-atoms" and lines[0]["op"] == "sevennet"
    assert 0 < lines[0]["df_ev_per_a"] < 1e-5 and set(lines[0]["missing"]) == set(peers)
    assert lines[0]["missing"]["openequivariance"] == "OpenEquivariance does not run on a CPU"


@pytest.mark.gpu
@pytest.mark.parametrize("peer", model_libraries.SEVENNET_SWITCHES)
def test_switches_of_sevennet_on_a_gpu(run, peer):
    """Each peer that is installed gives the numbers of the plain model."""
    pytest.importorskip("sevenn", reason="sevenn is not installed")
    _, _, _, lines = run("--atoms", "64", "--against", peer, "--without", "eqtp-compiled", "--device", "cuda")
    why = lines[0]["missing"].get(peer, "")
    if "is not installed" in why:
        pytest.skip(why)
    assert [line["backend"] for line in lines] == ["eqtp", peer], why


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["--model", "chgnet"], "--model: unknown name 'chgnet'; known: 7net-0, 7net-l3i5, mace-medium, nequip-l"),
        (["--against", "jax"], "--against: unknown name 'jax'; known: e3nn"),
        (["--without", "e3nn"], "--without: unknown name 'e3nn'; known: eqtp, eqtp-compiled"),
        (["--atoms", "64,few"], "--atoms must be whole numbers of at least 1"),
        (["--atoms", "0"], "--atoms must be whole numbers of at least 1"),
        (["--repeat", "0"], "--repeat must be at least 1, got 0"),
    ],
)
def test_wrong_arguments_are_named(capsys, arguments, message):
    with pytest.raises(SystemExit) as stop:
        bench.main(["models", *arguments])
    assert stop.value.code == 2 and message in capsys.readouterr().err

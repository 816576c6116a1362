"""eqtp.compile of SevenNet: energy, forces and stress at sizes that were not traced, in its calculator, in dynamics,
from a file where sevenn is not imported."""

import copy
import os
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from compiled_elsewhere import assert_loads_elsewhere

import eqtp
from eqtp.backends.native import operators
from eqtp.compiled import model as compiled_model
from eqtp.compiled import package
from eqtp.integrations import sevennet

pytestmark = pytest.mark.usefixtures("own_cache")


def small_sevennet(layers=2):
    """A SevenNet with random weights, for all elements of SevenNet-0. One structure at a time."""
    pytest.importorskip("sevenn", reason="sevenn is not installed")
    import sevenn._keys as KEY
    from sevenn.model_build import build_E3_equivariant_model
    from sevenn.util import load_checkpoint

    smaller = {KEY.NODE_FEATURE_MULTIPLICITY: 4, KEY.LMAX: 1, KEY.NUM_CONVOLUTION: layers, KEY.CONV_DENOMINATOR: 30.0}
    smaller |= {KEY.CONVOLUTION_WEIGHT_NN_HIDDEN_NEURONS: [8], KEY.IRREPS_MANUAL: False}
    torch.manual_seed(0)
    model = build_E3_equivariant_model({**load_checkpoint("7net-0").config, **smaller})
    with torch.no_grad():
        for p in model.parameters():  # forces of some tenths of an eV/A
            p.mul_(1.6)
    model.set_is_batch_data(False)
    return model.eval()


def crystal(atoms):
    """A rattled cell of at least so many atoms."""
    from bench.models import crystal

    return crystal(atoms)


def structure(atoms, model, dtype=torch.float32):
    return sevennet.graph_data(atoms, float(model.cutoff), dtype)


def batch(model, *sizes, dtype=torch.float32):
    """Crystals of at least so many atoms each, as SevenNet takes them together."""
    from torch_geometric.data import Batch

    structures = [structure(crystal(n), model, dtype) for n in sizes]
    for data in structures:
        data["cell_volume"] = data["cell_volume"].reshape(1)
    return Batch.from_data_list(structures)


def calculated(atoms, model, run):
    """A crystal with SevenNet's calculator of a model, which runs that model or the same compiled."""
    from sevenn.calculator import SevenNetCalculator

    calculator = SevenNetCalculator(model, file_type="model_instance", device="cpu")
    calculator.model = run
    result = crystal(atoms)
    result.calc = calculator
    return result


def assert_same(compiled, model, data, tolerance=(1e-6, 1e-5, 1e-6)):
    """Energy per atom, forces, stress (eV, eV/A, eV/A^3; by default for float32), and the energy of each atom, which is
    of some eV, as closely as forces; all outputs of the model are there."""
    import sevenn._keys as KEY

    expected, got = model(data.clone()), data.clone()
    assert compiled(got) is got
    keys = KEY.PRED_TOTAL_ENERGY, KEY.PRED_FORCE, KEY.PRED_STRESS
    energy, *rest = [(got[key] - expected[key]).detach().abs().max().item() for key in keys]
    assert energy / len(expected[KEY.PRED_FORCE]) <= tolerance[0]
    assert all(a <= b for a, b in zip(rest, tolerance[1:], strict=True)), rest
    assert torch.allclose(got[KEY.ATOMIC_ENERGY], expected[KEY.ATOMIC_ENERGY], rtol=0, atol=tolerance[1])


@pytest.fixture(scope="module")
def sevennet_pair(own_cache):
    """(accelerated model, the same compiled)."""
    model = small_sevennet()
    eqtp.accelerate(model)
    return model, eqtp.compile(model, structure(crystal(8), model))


def test_sevennet_at_other_sizes(sevennet_pair, no_compiler):
    model, compiled = sevennet_pair
    assert compiled.signature.least == 0 and not compiled.signature.conditions
    for atoms in (64, 216):
        assert_same(compiled, model, structure(crystal(atoms), model))


def test_sevennet_of_an_atom_and_of_a_molecule(sevennet_pair, no_compiler):
    """Sizes 1 and 0, of which a compiler may make constants: an atom with its images, and two without edges."""
    import ase

    model, compiled = sevennet_pair
    alone = ase.Atoms("Na", positions=[[0, 0, 0]], cell=[3, 3.1, 3.2], pbc=True)
    apart = ase.Atoms("NaCl", positions=[[0, 0, 0], [0, 0, 20]], cell=[30] * 3)
    for atoms, edges in ((alone, 1), (apart, 0)):
        data = structure(atoms, model)
        assert (data["edge_index"].shape[1] > 0) == edges
        assert_same(compiled, model, data)


def test_sevennet_on_two_threads(sevennet_pair, no_compiler):
    """Compiled on one thread, called on two."""
    model, compiled = sevennet_pair
    torch.set_num_threads(2)
    assert_same(compiled, model, structure(crystal(64), model))


def test_sevennet_in_its_calculator(sevennet_pair, no_compiler):
    model, compiled = sevennet_pair
    found = []
    for m in (model, compiled):
        atoms = calculated(8, model, m)
        found.append((atoms.get_potential_energy(), atoms.get_forces(), atoms.get_stress()))
    assert abs(found[0][0] - found[1][0]) < 8e-6 and abs(found[0][1] - found[1][1]).max() < 1e-5
    assert abs(found[0][1]).max() > 0.1 and abs(found[0][2] - found[1][2]).max() < 1e-6


def test_a_known_sevennet_is_not_traced(sevennet_pair, monkeypatch):
    """It is recognised by weights, code and options; what does not agree with the model is traced again."""

    def refuse(*_):
        raise AssertionError("traced")

    model, _ = sevennet_pair
    eqtp.compile(model, structure(crystal(8), model))  # a calculator may have changed its settings
    monkeypatch.setattr(compiled_model, "trace", refuse)
    again = eqtp.compile(model, structure(crystal(8), model))
    assert again.report.trace_seconds == 0 and "not traced again" in str(again.report)
    assert_same(again, model, structure(crystal(64), model))
    changed = copy.deepcopy(model)
    with torch.no_grad():
        next(changed.parameters()).add_(1e-3)
    remembered = package.remembered

    def wrong(*key):
        found = remembered(*key)
        return found._replace(run=lambda *inputs: [1.01 * t for t in found.run(*inputs)])

    for instance, patch in ((changed, remembered), (model, wrong)):
        monkeypatch.setattr(package, "remembered", patch)
        with pytest.raises(AssertionError, match="traced"):
            eqtp.compile(instance, structure(crystal(8), model))


def test_sevennet_in_cpp(sevennet_pair, tmp_path):
    """R17: a C++ program loads the ops and the package, without Python."""
    import shutil

    from examples import sevennet_cpp

    if reason := operators.why_not():
        pytest.skip(f"the ops are in Python: {reason}")
    if not shutil.which("cmake", path=f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"):
        pytest.skip("cmake is not installed")
    model, compiled = sevennet_pair
    atoms, package, written = crystal(8), tmp_path / "small.pt2", tmp_path / "crystal.txt"
    compiled.save(package)
    sevennet_cpp.write(atoms, float(model.cutoff), written)
    program = sevennet_cpp.build(tmp_path / "build")
    _, energy, forces = sevennet_cpp.run(program, package, written)
    expected = sevennet.predict(model, structure(atoms, model))
    assert abs(energy - expected["energy"].item()) <= 1e-6 * len(atoms)
    assert (forces - expected["forces"]).abs().max() <= 1e-5 and forces.abs().max() > 0.1


def test_sevennet_bad_input(sevennet_pair):
    model, compiled = sevennet_pair
    data = structure(crystal(8), model)
    with pytest.raises(TypeError, match="the input must be a mapping with atomic_numbers, edge_index"):
        compiled(torch.zeros(3))
    with pytest.raises(ValueError, match="the input has no 'edge_vec'; needed are atomic_numbers, edge_index"):
        compiled({key: data[key] for key in ("atomic_numbers", "edge_index")})
    with pytest.raises(TypeError, match="edge_vec must be float32, got float64"):
        compiled(structure(crystal(8), model, torch.float64))
    data["edge_vec"] = data["edge_vec"][1:]
    with pytest.raises(ValueError, match=r"edge_vec \[edges, 3\] float32 expected \(atoms = 8, edges = "):
        compiled(data)


def test_sevennet_that_is_not_compiled(sevennet_pair):
    import copy

    model, _ = sevennet_pair
    data = structure(crystal(8), model)
    training = copy.deepcopy(model).train()
    with pytest.raises(ValueError, match=r"AtomGraphSequential: the model is in training mode: call model.eval"):
        eqtp.compile(training, data)
    without = copy.deepcopy(model)
    without.delete_module_by_key("force_output")
    with pytest.raises(ValueError, match="only models with forces from edges"):
        eqtp.compile(without, data)
    with pytest.raises(TypeError, match="dynamic must be True or False for a AtomGraphSequential"):
        eqtp.compile(model, data, dynamic=("atoms",))
    one = data.clone()
    one["atomic_numbers"] = one["atomic_numbers"][:1]
    one["edge_index"], one["edge_vec"] = one["edge_index"][:, :4] * 0, one["edge_vec"][:4]
    with pytest.raises(ValueError, match="the example must have at least 2 atoms, got 1"):
        eqtp.compile(model, one)


def test_saved_sevennet(sevennet_pair, tmp_path):
    """It runs where neither sevenn nor e3nn is imported, on a plain dict."""
    model, compiled = sevennet_pair
    data = structure(crystal(27), model)
    expected = model(data.clone())
    expected = {
        name: expected[name].detach() for name in ("inferred_total_energy", "inferred_force", "inferred_stress")
    }
    compiled.save(tmp_path / "model.pt2")
    given = ({name: data[name] for name in ("atomic_numbers", "edge_index", "edge_vec", "cell_volume")},)
    assert_loads_elsewhere(tmp_path / "model.pt2", given, expected, 1e-5)


@pytest.mark.long
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("accelerated", [True, False])
def test_trained_sevennet(dtype, accelerated):
    """SevenNet-0, accelerated or not, at three sizes that were not traced."""
    from eqtp.integrations import sevennet

    model = sevennet.load("7net-0", dtype)
    if accelerated:
        eqtp.accelerate(model)
    compiled = eqtp.compile(model, structure(crystal(8), model, dtype))
    tolerance = (1e-10,) * 3 if dtype == torch.float64 else (1e-6, 1e-5, 1e-6) if accelerated else (2e-6, 1e-5, 1e-6)
    for atoms in (27, 64, 216):
        assert_same(compiled, model, structure(crystal(atoms), model, dtype), tolerance)


@pytest.mark.long
def test_sevennet_of_one_size():
    """dynamic=False: the atoms and edges of the example, other positions."""
    model = small_sevennet()
    data = structure(crystal(8), model)
    compiled = eqtp.compile(model, data, dynamic=False)
    moved = data.clone()
    moved["edge_vec"] = data["edge_vec"] * 1.01
    assert_same(compiled, model, moved)
    with pytest.raises(ValueError, match=r"atomic_numbers \[8\] int64 expected, got \[64\]"):
        compiled(structure(crystal(64), model))


@pytest.mark.long
def test_dynamics_stay_together():
    """200 steps of 2 fs at constant energy from 300 K: compiled and eager end at the same place."""
    from ase import units
    from ase.md.verlet import VelocityVerlet

    from eqtp.integrations import sevennet

    model = sevennet.load("7net-0")
    eqtp.accelerate(model)
    compiled = eqtp.compile(model, structure(crystal(8), model))
    ends = []
    for m in (model, compiled):
        atoms = calculated(8, model, m)
        thermal = np.sqrt(300 * units.kB * atoms.get_masses())[:, None]  # [n, 1]
        atoms.set_momenta(thermal * np.random.default_rng(0).standard_normal((len(atoms), 3)))
        before = atoms.get_total_energy()
        VelocityVerlet(atoms, 2 * units.fs).run(200)
        assert abs(atoms.get_total_energy() - before) / len(atoms) < 1e-3
        ends.append((atoms.positions, atoms.get_total_energy() / len(atoms)))
    (positions, energy), (compiled_positions, compiled_energy) = ends
    assert abs(positions - crystal(8).positions).max() > 0.1
    assert abs(positions - compiled_positions).max() < 1e-3 and abs(energy - compiled_energy) < 1e-5


@pytest.mark.long
def test_batches_of_structures():
    """Three structures at a time, compiled for two."""
    model = small_sevennet()
    model.set_is_batch_data(True)
    eqtp.accelerate(model)
    assert_same(eqtp.compile(model, batch(model, 8, 8)), model, batch(model, 8, 64, 27))

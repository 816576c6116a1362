"""eqtp.compile of MACE: energy, forces, stress at sizes that were not traced, batches, padding. docs/compile.md says in
which environment this runs: mace-torch pins an e3nn that eqtp's other tests do not use."""

import numpy as np
import pytest
import torch
from test_compiled_buckets import as_model, poison
from test_compiled_training import assert_same_step

import eqtp
from eqtp.compiled.case import case_of
from eqtp.compiled.training import training_case

pytest.importorskip("mace", reason="mace-torch is not installed")
pytestmark = pytest.mark.usefixtures("own_cache")


def mace(dtype=torch.float32):
    """A small MACE with random weights, for four elements."""
    from e3nn import o3
    from mace import modules

    torch.set_default_dtype(dtype)
    torch.manual_seed(0)
    block = modules.interaction_classes["RealAgnosticResidualInteractionBlock"]
    model = modules.ScaleShiftMACE(
        r_max=4.0,
        num_bessel=4,
        num_polynomial_cutoff=6,
        max_ell=2,
        interaction_cls=block,
        interaction_cls_first=block,
        num_interactions=2,
        num_elements=4,
        hidden_irreps=o3.Irreps("8x0e+8x1o"),
        MLP_irreps=o3.Irreps("4x0e"),
        gate=torch.nn.functional.silu,
        atomic_energies=np.array([-1.0, -2.0, -3.0, -4.0]),
        avg_num_neighbors=12.0,
        atomic_numbers=[1, 6, 7, 8],
        correlation=3,
        radial_MLP=[8],
        atomic_inter_scale=1.0,
        atomic_inter_shift=0.0,
    )
    torch.set_default_dtype(torch.float32)
    return model.to(dtype).eval()


def crystal(repeat, seed=0):
    """A rattled diamond of carbon and oxygen, 8 atoms times repeat."""
    from ase.build import bulk

    atoms = bulk("C", "diamond", a=3.567, cubic=True) * repeat
    atoms.symbols[:: seed + 2] = "O"
    atoms.rattle(0.1, seed=seed)
    return atoms


def batch(dtype, *structures):
    """MACE's input, as its calculator makes it."""
    from mace.data import AtomicData, config_from_atoms
    from mace.tools import AtomicNumberTable, torch_geometric

    table = AtomicNumberTable([1, 6, 7, 8])
    torch.set_default_dtype(dtype)
    data = [AtomicData.from_config(config_from_atoms(a), z_table=table, cutoff=4.0) for a in structures]
    loader = torch_geometric.dataloader.DataLoader(data, batch_size=len(data), shuffle=False)
    found = next(iter(loader)).to_dict()
    torch.set_default_dtype(torch.float32)
    return found


def clone(data):
    return {key: t.clone() if isinstance(t, torch.Tensor) else t for key, t in data.items()}


def assert_same(compiled, model, data, tolerance):
    """eV/atom, eV/A, eV/A^3."""
    expected = model(clone(data), compute_virials=True, compute_stress=True)
    got = compiled(data)
    counts = torch.bincount(data["batch"])  # [structures]
    assert expected["forces"].abs().max() > 0.01
    assert ((got["energy"] - expected["energy"]).abs() / counts).max() <= tolerance[0]
    assert (got["forces"] - expected["forces"]).abs().max() <= tolerance[1]
    assert (got["node_energy"] - expected["node_energy"]).abs().max() <= tolerance[1]
    assert (got["stress"] - expected["stress"]).abs().max() <= tolerance[2]
    assert got["stress"].shape == (len(counts), 3, 3)


SIZES = [(1, 1, 1)], [(2, 1, 1)], [(2, 2, 2)], [(1, 1, 1), (2, 1, 1), (1, 2, 3)]
TOLERANCE = {torch.float32: (1e-6, 1e-5, 1e-6), torch.float64: (1e-10,) * 3}


@pytest.fixture(scope="module", params=[torch.float32, torch.float64], ids=str)
def pair(request, own_cache):
    """(accelerated MACE, the same compiled for two structures, dtype)."""
    model = mace(request.param)
    eqtp.accelerate(model)
    return model, eqtp.compile(model, batch(request.param, crystal((1, 1, 1)), crystal((1, 1, 1), 1))), request.param


@pytest.mark.parametrize("sizes", SIZES, ids=str)
def test_other_sizes(pair, sizes, no_compiler):
    model, compiled, dtype = pair
    assert compiled.signature.least == 0 and not compiled.signature.conditions
    data = batch(dtype, *(crystal(size, n) for n, size in enumerate(sizes)))
    assert_same(compiled, model, data, TOLERANCE[dtype])
    assert data["energy"] is None or not data["energy"].any()  # the targets of the input are not overwritten


def test_options_of_the_call(pair):
    """What was compiled can be asked for, as MACE's calculator does; what was not, cannot."""
    _, compiled, dtype = pair
    data = batch(dtype, crystal((1, 1, 1)), crystal((1, 1, 1)))
    asked = compiled(data, compute_stress=True, training=False, compute_hessian=False)
    assert set(asked) == {"energy", "node_energy", "forces", "virials", "stress"}
    with pytest.raises(ValueError, match="compute_hessian=True is not what it was compiled for"):
        compiled(data, compute_hessian=True)


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
def test_padding(dtype, monkeypatch):
    """As it is compiled, but not compiled: NaN in what does not count."""
    model = mace(dtype)
    case = case_of(model, batch(dtype, crystal((1, 1, 1)), crystal((1, 1, 1), 1)), True, buckets=True)
    poison(monkeypatch)
    for structures in ([crystal((2, 1, 1))], [crystal((1, 1, 1)), crystal((2, 2, 1), 2)]):
        assert_same(as_model(case, case.padded), model, batch(dtype, *structures), TOLERANCE[dtype])


def test_training():
    """The function that is compiled, before it is: the gradients of a loss of energies, forces and stress."""
    model = mace(torch.float64)

    def loss(out, targets):
        return sum((out[key] - t).square().mean() for key, t in targets.items())

    data = batch(torch.float64, crystal((1, 1, 1)), crystal((2, 1, 1), 1))
    targets = {"energy": torch.ones(2).double(), "forces": torch.zeros(24, 3).double()}
    targets["stress"] = torch.full((2, 3, 3), 0.1).double()
    case, names, _ = training_case(model, (data, targets), loss, True)
    out = model(clone(data), compute_stress=True, training=True)
    value = loss(out, targets)
    gradients = torch.autograd.grad(value, [model.get_parameter(name) for name in names])
    assert len(names) > 20
    for name, a, b in zip(case.outputs, case.function(*case.tensors), [value, *gradients], strict=True):
        assert (a - b).abs().max() <= 1e-10 * max(b.abs().max(), 1e-3), name


@pytest.mark.long
def test_a_step_of_training():
    """Compiled; at three sizes that were not traced."""
    model = mace(torch.float64)

    def loss(out, targets):
        return sum((out[key] - t).square().mean() for key, t in targets.items())

    def labelled(*repeats):
        data = batch(torch.float64, *(crystal(size, n) for n, size in enumerate(repeats)))
        atoms = len(data["positions"])
        return data, {"energy": torch.ones(len(repeats)).double(), "forces": torch.ones(atoms, 3).double()}

    step = eqtp.compile(model, labelled((1, 1, 1), (2, 1, 1)), loss=loss)
    for sizes in ([(2, 2, 1)], [(1, 1, 1), (2, 2, 1), (1, 2, 1)], [(1, 1, 3), (1, 1, 1)]):
        data, targets = labelled(*sizes)
        run = lambda m, data=data: m(clone(data), compute_stress=True, training=True)  # noqa: E731
        assert_same_step(step, model, data, targets, loss, run)

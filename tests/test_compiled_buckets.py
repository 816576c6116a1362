"""Padding to buckets: which bucket, what stands in the padding does not matter, few sizes, replayed graphs, files."""

import itertools

import pytest
import torch
from test_compiled_sevennet import assert_same, batch, crystal, small_sevennet, structure

import eqtp
from eqtp.compiled import buckets, package
from eqtp.compiled.buckets import ATOMS, EDGES, EDGES_PER_ATOM, Bucketed, bucket_of
from eqtp.compiled.case import case_of
from eqtp.compiled.model import CompiledModel, CompileReport
from eqtp.compiled.signature import Input, Signature

pytestmark = pytest.mark.usefixtures("own_cache")


def test_choice_of_the_bucket():
    """The smallest one that holds the atoms, the edges, and atoms for the edges that are padding."""
    assert bucket_of(0, 0, 2.0) == (ATOMS, EDGES)
    assert bucket_of(ATOMS - 1, EDGES, 2.0) == (ATOMS, EDGES)  # an atom of padding, always
    assert bucket_of(ATOMS, EDGES, 2.0) == (2 * ATOMS, EDGES)
    assert bucket_of(1, EDGES + 1, 2.0) == (ATOMS, 2 * EDGES)  # overflow: the next
    seen = set()
    for atoms, edges in itertools.product(range(0, 3000, 37), range(0, 90_000, 1111)):
        bucket = bucket_of(atoms, edges, 1.25)
        assert bucket.atoms > atoms and bucket.edges >= edges
        assert bucket.edges - edges <= EDGES_PER_ATOM * (bucket.atoms - atoms)
        assert bucket.edges <= max(EDGES, 1.25 * edges + 1)  # no more than a step too large
        seen.add(bucket)
    assert len(seen) < 800  # of 6,000 sizes


# ------------------------------------------------------------------------ the program with padding, not compiled
@pytest.fixture(scope="module")
def padded():
    """(accelerated SevenNet, the case of the same with padding)."""
    model = small_sevennet()
    eqtp.accelerate(model)
    return model, case_of(model, structure(crystal(8), model), True, buckets=True)


def as_model(case, run, cuda_graphs=False, growth=1.25):
    """A CompiledModel that runs `run`, a program with padding."""
    kinds = [(name, str(t.dtype)[6:], "cpu") for name, t in zip(case.names, case.tensors, strict=True)]
    shapes = [
        tuple(name or size for name, size in zip(dims, t.shape, strict=True))
        for dims, t in zip(case.dims, case.tensors, strict=True)
    ]
    inputs = tuple(Input(*kind, shape) for kind, shape in zip(kinds, shapes, strict=True))
    rows = [given.rows for given in case.outputs.values()]
    record = {"signature": Signature(inputs, 0, ())._asdict(), "outputs": list(case.outputs), "tree": None}
    record |= {"options": {}, "reshape": case.adapter.reshape, "writes": case.adapter.writes}
    report = CompileReport(0.0, 0.0, False, 0, {})
    run = torch.enable_grad()(run)  # the forces are taken inside
    return CompiledModel(None, Bucketed(run, inputs, rows, growth, cuda_graphs), record, report)


def poison(monkeypatch):
    """NaN, and indices out of range, in everything that is allocated for inputs."""
    empty = Bucketed._buffers

    def poisoned(self, tensors, capacities):
        made = empty(self, tensors, capacities)
        return [t.fill_(float("nan") if t.is_floating_point() else -(10**6)) for t in made]

    monkeypatch.setattr(Bucketed, "_buffers", poisoned)


def one_atom():
    import ase

    return ase.Atoms("Na", positions=[[0, 0, 0]], cell=[3, 3.1, 3.2], pbc=True)


def no_edges():
    import ase

    return ase.Atoms("NaCl", positions=[[0, 0, 0], [0, 0, 20]], cell=[30] * 3)


def test_padding_changes_nothing(padded, monkeypatch):
    """Energy, forces and stress are those without padding, whatever stands in it."""
    model, case = padded
    poison(monkeypatch)
    shapes = []

    def run(counts, *tensors):
        shapes.append(tensors[2].shape[0])
        assert not any(t.isfinite().all() for t in tensors if t.ndim == 2 and t.is_floating_point())
        return case.padded(counts, *tensors)

    ours = as_model(case, run)
    for atoms in (crystal(8), crystal(64), one_atom(), no_edges()):
        data = structure(atoms, model)
        assert_same(ours, model, data)
        assert shapes[-1] == bucket_of(len(atoms), len(data["edge_vec"]), 1.25).edges


def test_what_does_not_count_is_not_counted(padded):
    """The counts decide: the same tensors with one edge fewer give the model without that edge, and not with it."""
    model, case = padded
    tensors = [t.detach() for t in case.tensors]
    names = case.names
    data = structure(crystal(8), model)
    edges = data["edge_vec"].shape[0] - 1
    fewer = data.clone()
    fewer["edge_vec"], fewer["edge_index"] = data["edge_vec"][:edges], data["edge_index"][:, :edges]
    extra = [
        torch.cat([t, t[:2]]) if dims and dims[0] == "atoms" else t for t, dims in zip(tensors, case.dims, strict=True)
    ]
    got = dict(zip(case.outputs, case.padded(torch.tensor([8, edges]), *extra), strict=True))
    expected, whole = model(fewer), model(data)
    # eV/A: what float32 is promised to keep (eqtp.integrations.sevennet_compiled), and a hundred times that
    assert torch.allclose(got["inferred_force"][:8], expected["inferred_force"], rtol=0, atol=1e-5)
    assert not torch.allclose(got["inferred_force"][:8], whole["inferred_force"], rtol=0, atol=1e-3)
    assert "edge_vec" in names and abs(got["inferred_total_energy"] - expected["inferred_total_energy"]) < 8e-6


def test_batches_with_padding(monkeypatch):
    """Three structures, of which none is that of the padding."""
    model = small_sevennet(1)
    model.set_is_batch_data(True)
    case = case_of(model, batch(model, 8, 8), True, buckets=True)
    poison(monkeypatch)
    assert_same(as_model(case, case.padded), model, batch(model, 8, 64, 27))


class Recorded:
    """In the place of a CUDA graph: runs the program again, on the buffers that it was captured with, and writes to the
    outputs that it returned then."""

    def __init__(self, run, kept):
        self.run, self.kept = run, kept
        self.outputs = run(*kept)
        self.replays = 0

    def replay(self):
        self.replays += 1
        for old, t in zip(self.outputs, self.run(*self.kept), strict=True):
            old.copy_(t)


def test_graphs_are_captured_once_for_a_bucket(padded, monkeypatch):
    """Replayed with what a larger structure left in the buffers, without writing to results given before."""
    model, case = padded
    made = []

    def capture(run, kept):
        made.append(Recorded(run, kept))
        return made[-1], made[-1].outputs

    monkeypatch.setattr(buckets, "_capture", capture)
    ours = as_model(case, case.padded, cuda_graphs=True, growth=1000.0)
    small, large = structure(crystal(8), model), structure(crystal(64), model)
    first = ours(large.clone())
    before = first["inferred_force"].clone()
    for data in (small, large, structure(one_atom(), model)):
        assert_same(ours, model, data)
    assert [graph.replays for graph in made] == [3, 1]  # the atom alone has less than 64 edges
    assert torch.equal(first["inferred_force"], before)


ARGUMENTS = {
    "below": (dict(buckets=1.0), "buckets must be None or a number above 1, got 1.0"),
    "bool": (dict(buckets=True), "buckets must be None or a number above 1, got True"),
    "fixed": (dict(buckets=1.5, dynamic=False), "buckets need dynamic=True"),
    "graphs": (dict(cuda_graphs=True), "cuda_graphs=True needs a model on a GPU, this one is on cpu"),
}


@pytest.mark.parametrize("name", ARGUMENTS)
def test_bad_arguments(padded, name):
    model, _ = padded
    arguments, message = ARGUMENTS[name]
    with pytest.raises(ValueError, match=message):
        eqtp.compile(model, structure(crystal(8), model), **arguments)


def test_callables_have_no_buckets():
    with pytest.raises(ValueError, match="buckets are there for models of a library that eqtp knows"):
        eqtp.compile(torch.sin, torch.ones(3), buckets=2)
    with pytest.raises(ValueError, match=r"with buckets the model must do the same for all sizes: atoms > 3"):
        buckets.without_counts(Signature((Input("counts", "int64", "cpu", (2,)),), 2, ("atoms > 3",)))


# ------------------------------------------------------------------------ compiled
def test_compiled_with_buckets(tmp_path, monkeypatch):
    """From a file, too: the same program for every bucket."""
    model = small_sevennet(1)
    compiled = eqtp.compile(model, structure(crystal(8), model), buckets=1.5)
    assert compiled.signature.least == 0 and "counts" not in str(compiled.signature)
    compiled.save(tmp_path / "model.pt2")
    loaded = eqtp.load(tmp_path / "model.pt2")
    poison(monkeypatch)
    for atoms in (crystal(64), crystal(27), one_atom(), no_edges()):
        for m in (compiled, loaded):
            assert_same(m, model, structure(atoms, model))
    assert package.read_record(tmp_path / "model.pt2")["growth"] == 1.5


@pytest.mark.gpu
def test_cuda_graphs():
    """As above, on a GPU: four structures, some of them in one bucket, twice."""
    model = small_sevennet().cuda()
    eqtp.accelerate(model)
    compiled = eqtp.compile(model, structure(crystal(8), model).to("cuda"), cuda_graphs=True)
    for atoms in 2 * [crystal(8), crystal(64), one_atom(), no_edges()]:
        assert_same(compiled, model, structure(atoms, model).to("cuda"))

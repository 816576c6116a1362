"""eqtp.compile and eqtp.load: the numbers of the model at sizes that were not traced, no compilation after the first,
refusals, files that load without the model's code."""

import pytest
import torch
from compiled_elsewhere import assert_loads_elsewhere

import eqtp
from eqtp import testing
from eqtp.compiled import package
from eqtp.compiled.case import Case, case_of
from eqtp.compiled.compare import Mismatch, differences
from eqtp.compiled.signature import Input, Signature
from eqtp.compiled.trace import trace
from eqtp.integrations.adapter import Tolerance

PLAN = eqtp.TensorProductPlan("4x0e", "0e + 1o", "4x0e + 4x1o", [(0, 0, 0, "uvu", True), (0, 1, 1, "uvu", True)])
NAMES = ("positions", "x", "edge_index")
pytestmark = pytest.mark.usefixtures("own_cache")


# ------------------------------------------------------------------------ a callable
def forces(positions, x, edge_index):
    """Energy [], forces [n, 3] of a small potential with one convolution: what a caller may write."""
    positions = positions.detach().requires_grad_()  # [n, 3]
    graph = eqtp.Graph(edge_index[1], edge_index[0], x.shape[0], x.shape[0])
    vectors = positions[edge_index[0]] - positions[edge_index[1]]  # [e, 3]
    y = eqtp.spherical_harmonics([0, 1], vectors, normalize=False)  # [e, 4]
    w = vectors.square().sum(1, keepdim=True).neg().exp().expand(-1, PLAN.weight_numel)
    energy = eqtp.tensor_product_conv(x, y, w.contiguous(), PLAN, graph).square().sum()
    return {"energy": energy, "forces": -torch.autograd.grad(energy, positions)[0]}


def inputs(nodes, edges):
    index = torch.randint(nodes, (2, edges), generator=torch.Generator().manual_seed(nodes))
    return testing.random(nodes, 3, seed=1), testing.random(nodes, 4, seed=2), index


@pytest.fixture(scope="module")
def compiled(own_cache):
    """`forces`, compiled for five nodes and twenty edges and any other number."""
    return eqtp.compile(forces, inputs(5, 20))


SIZES = [(7, 31), (2, 2), (40, 300)]


@pytest.mark.parametrize("size", SIZES)
def test_a_callable_at_other_sizes(compiled, size, no_compiler):
    a = inputs(*size)
    got, expected = compiled(*a), forces(*a)
    assert set(got) == set(expected)
    for name, t in expected.items():
        testing.assert_close(got[name], t)


def test_sizes_get_names_and_conditions(compiled):
    """Sizes that must be equal have one name, those that the function fixes are numbers."""
    signature = compiled.signature
    assert [given.name for given in signature.inputs] == list(NAMES)
    positions, x, index = (given.shape for given in signature.inputs)
    assert positions == ("positions_0", 3) and x == ("x_0", 4) and index == ("edge_index_0", "edge_index_1")
    assert signature.least == 2 and not signature.conditions


BAD = {
    "argument": (lambda p, x, i: (p, x), TypeError, r"3 tensors \(positions, x, edge_index\) expected, got 2"),
    "kind": (lambda p, x, i: (p, x.numpy(), i), TypeError, "x must be a tensor, got ndarray"),
    "dtype": (lambda p, x, i: (p, x.float(), i), TypeError, "x must be float64, got float32"),
    "meta": (lambda p, x, i: (p, x.to("meta"), i), TypeError, "x must be on cpu, got meta"),
    "dimensions": (lambda p, x, i: (p, x[0], i), ValueError, r"x \[\w+, 4\] float64 expected, got \[4\]"),
    "columns": (lambda p, x, i: (p, x[:, :3], i), ValueError, r"x \[\w+, 4\] float64 expected .*, got \[6, 3\]"),
    "small": (lambda p, x, i: (p, x, i[:, :1]), ValueError, "edge_index_1 must be at least 2, got 1"),
    "index": (lambda p, x, i: (p, x, i + 1), ValueError, r"Graph: \w+ must be in \[0, 6\), got 6 at edge"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_input(compiled, name):
    change, error, message = BAD[name]
    with pytest.raises(error, match=message):
        compiled(*change(*inputs(6, 40)))


def test_strides_and_gradients_of_the_input(compiled):
    """Slices are taken as they are, an input that requires gradients gives outputs without."""
    a = inputs(9, 40)
    wide = [torch.stack([t, t], -1)[..., 0].requires_grad_(t.is_floating_point()) for t in a]
    assert not wide[0].is_contiguous()
    got, expected = compiled(*wide), forces(*a)
    assert not got["forces"].requires_grad
    testing.assert_close(got["forces"], expected["forces"])


# ------------------------------------------------------------------------ files
def test_saved_callable(compiled, tmp_path):
    file = tmp_path / "forces.pt2"
    compiled.save(file)
    a = inputs(8, 50)
    assert_loads_elsewhere(file, a, forces(*a), 1e-12)
    loaded = eqtp.load(file)
    assert loaded.signature == compiled.signature and "loaded" in repr(loaded)
    loaded.save(tmp_path / "again.pt2")  # what was loaded can be saved
    testing.assert_close(eqtp.load(tmp_path / "again.pt2")(*a)["forces"], forces(*a)["forces"])


def test_files_that_are_refused(compiled, tmp_path, monkeypatch):
    file = tmp_path / "forces.pt2"
    with pytest.raises(FileNotFoundError, match="there is no file"):
        eqtp.load(file)
    file.write_bytes(b"something else")
    with pytest.raises(ValueError, match="was not written by save"):
        eqtp.load(file)
    compiled.save(file)
    here = package.machine()
    for what, other in (("torch", "1.0"), ("platform", "Plan9 vax"), ("instructions", "sse")):
        monkeypatch.setattr(package, "machine", lambda what=what, other=other: here | {what: other})
        with pytest.raises(RuntimeError, match=f"was compiled for {what} .* \\(it has {other}\\)"):
            eqtp.load(file)


def test_the_second_process_does_not_compile(compiled, no_compiler):
    """The package is found on disk by what the program is, and what it holds."""
    model = eqtp.compile(forces, inputs(6, 25))
    assert model.report.from_disk and "found compiled on disk" in str(model.report)
    assert "positions" in repr(model) and "->" in repr(model)


def test_a_cache_that_cannot_be_used(monkeypatch, tmp_path):
    """A damaged package is compiled again; without a folder there is a warning."""
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("EQTP_CACHE_DIR", str(tmp_path / "file"))
    with pytest.warns(RuntimeWarning, match="cannot keep compiled models in"):
        folder = package._folder()
    assert folder.is_dir()
    monkeypatch.setenv("EQTP_CACHE_DIR", str(tmp_path / "cache"))
    made = []
    monkeypatch.setattr(package, "compile_package", lambda traced, example, path: made.append(path))
    monkeypatch.setattr(package, "key_of", lambda traced: "key")
    (tmp_path / "cache" / "compiled").mkdir(parents=True)
    (tmp_path / "cache" / "compiled" / "key.pt2").write_bytes(b"damaged")
    with pytest.raises(RuntimeError):  # torch: there is none, since nothing was compiled
        package.cached_package(None, [])
    assert made == [tmp_path / "cache" / "compiled" / "key.pt2"]


# ------------------------------------------------------------------------ refusals
def test_a_mismatch_is_refused(compiled, monkeypatch):
    """One wrong force among all is an error that names the output, not a model."""
    run_package = package.run_package

    def wrong(path, alone):
        run = run_package(path, alone)

        def changed(*tensors):
            energy, found = run(*tensors)
            return energy, found.index_put((torch.tensor(1), torch.tensor(2)), found[1, 2] + 1e-6)

        return changed

    monkeypatch.setattr(package, "run_package", wrong)
    with pytest.raises(RuntimeError, match=r"output\['forces'\] differs from that of the model by 1.0e-06, allowed"):
        eqtp.compile(forces, inputs(5, 20))


def test_tolerances():
    """Energies per atom, forces per component, in their units; last digits of large numbers; NaN where NaN was."""
    outputs = {"energy": Tolerance(1e-6, "atoms"), "forces": Tolerance(1e-5)}
    atoms, labels = torch.zeros(50, 3), [("atoms", None)]
    case = Case(["x"], [atoms], labels, labels, True, None, [], outputs, None, [])

    def differ(energy, force, nan=0.0, dtype=torch.float32, size=1.0):
        right = torch.tensor(size, dtype=dtype), torch.full((50, 3), nan, dtype=dtype)
        wrong = right[0] + energy, right[1] + force
        return differences(case, [atoms.to(dtype)], right, wrong)

    assert differ(4e-5, 8e-6) == pytest.approx({"energy": 8e-7, "forces": 8e-6}, rel=0.1)
    assert differ(3.2e-2, 0, size=2.5e5)["energy"] > 1e-6  # two units of the last place
    for arguments, message in (
        ((6e-5, 0), "energy differs from that of the model by 1.2e-06, allowed are 1.0e-06"),
        ((0, 1.2e-5), "forces differs from that of the model by 1.2e-05, allowed are 1.0e-05"),
        ((0, 2e-10, 0.0, torch.float64), "forces differs from that of the model by 2.0e-10, allowed are 1.0e-10"),
        ((0, float("nan")), "forces is not NaN or infinite where that of the model is"),
    ):
        with pytest.raises(Mismatch, match=message):
            differ(*arguments)
    assert differ(0, 0, nan=float("nan"))["forces"] == 0
    mixed = torch.tensor(1.0, dtype=torch.float64), torch.zeros(50, 3, dtype=torch.float64)  # of a model in float32
    assert differences(case, [atoms], mixed, (mixed[0], mixed[1] + 8e-6))["forces"] > 0


def test_what_torch_cannot_compile(monkeypatch, tmp_path):
    """An error in the words of torch, and nothing in the cache."""

    def fail(*_, **__):
        raise OSError("no compiler")

    monkeypatch.setenv("EQTP_CACHE_DIR", str(tmp_path))
    monkeypatch.setattr(torch._inductor, "aoti_compile_and_package", fail)
    with pytest.raises(RuntimeError, match="compile: torch cannot compile it: OSError: no compiler"):
        eqtp.compile(lambda x: x.sin(), torch.ones(3))
    assert not list((tmp_path / "compiled").iterdir())


ARGUMENTS = {
    "model": (lambda: eqtp.compile(3, inputs(5, 20)), TypeError, "model must be callable, got int"),
    "example": (lambda: eqtp.compile(forces, (1, 2, 3)), TypeError, "positions of the example must be a tensor"),
    "graphs": (lambda: eqtp.compile(forces, inputs(5, 20), cuda_graphs=1), ValueError, "cuda_graphs must be 'auto'"),
    "no gpu": (lambda: eqtp.compile(forces, inputs(5, 20), cuda_graphs=True), ValueError, "needs a model on a GPU"),
    "dynamic": (lambda: eqtp.compile(forces, inputs(5, 20), dynamic=("n",)), TypeError, "a tuple of 3 tuples"),
    "names": (
        lambda: eqtp.compile(forces, inputs(5, 20), dynamic=(("n",), ("n", None), (None, "e"))),
        ValueError,
        "dynamic of positions must have 2 names",
    ),
    "unequal": (
        lambda: eqtp.compile(forces, inputs(5, 20), dynamic=(("n", None), ("n", None), (None, "n"))),
        ValueError,
        "edge_index of the example has 20 n, positions has 5",
    ),
    "one": (
        lambda: eqtp.compile(lambda x: 2 * x, torch.ones(1, 2), dynamic=(("n", None),)),
        ValueError,
        "must have at least 2 n, got 1 in x",
    ),
    "fixed": (
        lambda: eqtp.compile(lambda x: x + torch.ones(5), torch.ones(5), dynamic=(("n",),)),
        ValueError,
        "does not leave the number of n free",
    ),
    "output": (lambda: eqtp.compile(lambda x: x.tolist(), torch.ones(2)), TypeError, "must return tensors, got float"),
    "nothing": (lambda: eqtp.compile(lambda x: {}, torch.ones(2)), TypeError, "returned no tensor"),
    "in place": (lambda: eqtp.compile(lambda x: x.add_(1), torch.ones(2)), ValueError, "writes to its input x"),
    "host": (
        lambda: eqtp.compile(lambda x: x * 2 if x.sum() > 0 else x, torch.ones(2)),
        RuntimeError,
        "the model could not be traced",
    ),
}


@pytest.mark.parametrize("name", ARGUMENTS)
def test_arguments(name):
    call, error, message = ARGUMENTS[name]
    with pytest.raises(error, match=message):
        call()


def test_a_condition_of_the_trace_is_kept():
    """A function that does one thing for few rows and another for many is compiled for one of them, and says so."""

    def function(x):
        return x.sin() if x.shape[0] > 10 else x.cos()

    model = eqtp.compile(function, torch.linspace(0, 1, 20))
    assert model.signature.conditions
    assert torch.allclose(model(torch.ones(11)), torch.ones(11).sin())
    with pytest.raises(ValueError, match=r"it was compiled for sizes with .*10.*: compile again"):
        model(torch.ones(10))


def test_signature():
    """Sizes as expressions of others."""
    inputs = (Input("ptr", "int64", "cpu", ("n + 1",)), Input("x", "float32", "cpu", ("n", 3)))
    signature = Signature(inputs, 0, ())
    assert len(signature.check([torch.zeros(3, dtype=torch.int64), torch.zeros(2, 3)])) == 2
    with pytest.raises(ValueError, match=r"ptr \[n \+ 1\] int64 expected \(n = 2\), got \[2\]"):
        signature.check([torch.zeros(2, dtype=torch.int64), torch.zeros(2, 3)])


def test_layers_share_one_graph(compiled):
    """Three calls for the same edges, one op."""

    def function(x, y, index):
        nodes = [x, 2 * x, 3 * x]
        graphs = [eqtp.Graph(index[1], index[0], t.shape[0], t.shape[0]) for t in nodes]
        return sum(eqtp.segment_sum(y, graph) for graph in graphs) + x

    x, _, index = inputs(5, 20)
    case = case_of(function, (x, testing.random(20, 3), index), True)
    module = trace(case.function, case.names, case.tensors, case.dims, case.strict).module
    ops = [str(node.target) for node in module.graph.nodes]
    assert ops.count("eqtp.graph_edges.default") == ops.count("eqtp.graph_csr.default") == 1
    testing.assert_close(module(*case.tensors)[0], case.expected[0])

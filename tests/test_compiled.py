"""eqtp.compile and eqtp.load: the numbers of the model at sizes that were not traced, no compilation after the first,
refusals, files that load without the model's code."""

import os
import subprocess
import sys
from functools import cache

import pytest
import torch

import eqtp
from eqtp import testing
from eqtp.compiled import package
from eqtp.compiled.signature import Input, Signature

PLAN = eqtp.TensorProductPlan("4x0e", "0e + 1o", "4x0e + 4x1o", [(0, 0, 0, "uvu", True), (0, 1, 1, "uvu", True)])
NAMES = ("positions", "x", "edge_index")


@pytest.fixture(autouse=True, scope="module")
def own_cache(tmp_path_factory):
    """An empty cache of compiled models, for all tests of this file."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("EQTP_CACHE_DIR", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture
def no_compiler(monkeypatch):
    """Compiling, tracing included, is an error from here on."""

    def refuse(*_, **__):
        raise AssertionError("something was compiled")

    monkeypatch.setattr(torch._inductor, "aoti_compile_and_package", refuse)
    monkeypatch.setattr(torch.export, "export", refuse)
    monkeypatch.setattr(torch._dynamo, "optimize", refuse)


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


def inputs(nodes, edges, dtype=torch.float64):
    index = torch.randint(nodes, (2, edges), generator=torch.Generator().manual_seed(nodes))
    return testing.random(nodes, 3, seed=1, dtype=dtype), testing.random(nodes, 4, seed=2, dtype=dtype), index


@cache
def compiled_forces():
    return eqtp.compile(forces, inputs(5, 20))


SIZES = [(7, 31), (2, 2), (40, 300)]


@pytest.mark.parametrize("size", SIZES)
def test_a_callable_at_other_sizes(size, no_compiler):
    a = inputs(*size)
    compiled_forces_result, expected = compiled_forces()(*a), forces(*a)
    assert set(compiled_forces_result) == set(expected)
    for name, t in expected.items():
        testing.assert_close(compiled_forces_result[name], t)


def test_sizes_get_names_and_conditions():
    """Sizes that must be equal have one name, those that the function fixes are numbers."""
    signature = compiled_forces().signature
    assert [given.name for given in signature.inputs] == list(NAMES)
    positions, x, index = (given.shape for given in signature.inputs)
    assert positions[1] == 3 and x[1] == 4 and isinstance(x[0], str) and isinstance(index[1], str)
    assert signature.least == 2 and len({x[0], index[1]}) == 2


BAD = {
    "argument": (lambda p, x, i: (p, x), TypeError, r"3 tensors \(positions, x, edge_index\) expected, got 2"),
    "kind": (lambda p, x, i: (p, x.numpy(), i), TypeError, "x must be a tensor, got ndarray"),
    "dtype": (lambda p, x, i: (p, x.float(), i), TypeError, "x must be float64, got float32"),
    "meta": (lambda p, x, i: (p, x.to("meta"), i), TypeError, "x must be on cpu, got meta"),
    "dimensions": (lambda p, x, i: (p, x[0], i), ValueError, r"x \[\w+, 4\] float64 expected, got \[4\]"),
    "columns": (lambda p, x, i: (p, x[:, :3], i), ValueError, r"x \[\w+, 4\] float64 expected .*, got \[6, 3\]"),
    "small": (lambda p, x, i: (p, x, i[:, :1]), ValueError, "must be at least 2, got 1"),
    "index": (lambda p, x, i: (p, x, i + 1), ValueError, r"Graph: \w+ must be in \[0, 6\), got 6 at edge"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_input(name):
    change, error, message = BAD[name]
    with pytest.raises(error, match=message):
        compiled_forces()(*change(*inputs(6, 40)))


def test_strides_and_gradients_of_the_input():
    """Slices are taken as they are, an input that requires gradients gives outputs without."""
    a = inputs(9, 40)
    wide = [torch.stack([t, t], -1)[..., 0].requires_grad_(t.is_floating_point()) for t in a]
    assert not wide[0].is_contiguous()
    got, expected = compiled_forces()(*wide), forces(*a)
    assert not got["forces"].requires_grad
    testing.assert_close(got["forces"], expected["forces"])


# ------------------------------------------------------------------------ files
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


def test_saved_callable(tmp_path):
    file = tmp_path / "forces.pt2"
    compiled_forces().save(file)
    a = inputs(8, 50)
    assert_loads_elsewhere(file, a, forces(*a), 1e-12)
    loaded = eqtp.load(file)
    assert loaded.signature == compiled_forces().signature and "loaded" in repr(loaded)
    loaded.save(tmp_path / "again.pt2")  # what was loaded can be saved
    testing.assert_close(eqtp.load(tmp_path / "again.pt2")(*a)["forces"], forces(*a)["forces"])


def test_files_that_are_refused(tmp_path, monkeypatch):
    file = tmp_path / "forces.pt2"
    with pytest.raises(FileNotFoundError, match="there is no file"):
        eqtp.load(file)
    file.write_bytes(b"something else")
    with pytest.raises(ValueError, match="was not written by save"):
        eqtp.load(file)
    compiled_forces().save(file)
    here = package.machine()
    for what, other in (("torch", "1.0"), ("platform", "Plan9 vax"), ("instructions", "sse")):
        monkeypatch.setattr(package, "machine", lambda what=what, other=other: here | {what: other})
        with pytest.raises(RuntimeError, match=f"was compiled for {what} .* \\(it has {other}\\)"):
            eqtp.load(file)


def test_the_second_process_does_not_compile(no_compiler):
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
def test_a_mismatch_is_refused(monkeypatch):
    """One wrong force among all is an error that names the output, not a model."""
    run_package = package.run_package

    def wrong(path):
        run = run_package(path)

        def changed(*tensors):
            energy, found = run(*tensors)
            return energy, found.index_put((torch.tensor(1), torch.tensor(2)), found[1, 2] + 1e-6)

        return changed

    monkeypatch.setattr(package, "run_package", wrong)
    with pytest.raises(RuntimeError, match=r"output\['forces'\] differs from that of the model by 1.0e-06, allowed"):
        eqtp.compile(forces, inputs(5, 20))


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
    with pytest.raises(ValueError, match="it was compiled for sizes with .*10.*: compile again"):
        model(torch.ones(10))


def test_signature():
    """Sizes as expressions of others."""
    inputs = (Input("ptr", "int64", "cpu", ("n + 1",)), Input("x", "float32", "cpu", ("n", 3)))
    signature = Signature(inputs, 0, ())
    assert len(signature.check([torch.zeros(3, dtype=torch.int64), torch.zeros(2, 3)])) == 2
    with pytest.raises(ValueError, match=r"ptr \[n \+ 1\] int64 expected \(n = 2\), got \[2\]"):
        signature.check([torch.zeros(2, dtype=torch.int64), torch.zeros(2, 3)])

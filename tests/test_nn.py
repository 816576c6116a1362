"""Modules: e3nn's constructor, call, defaults and state_dict on eqtp's ops."""

import copy
import pickle

import e3nn.o3 as o3
import numpy as np
import pytest
import torch

import eqtp
from eqtp import testing
from eqtp.ops import graph as graphs

ARGUMENTS = (
    "17x0e+3x1o",
    "0e+1o",
    "17x0e+17x1o+3x0e+3x1e",
    [(0, 0, 0, "uvu", True), (0, 1, 1, "uvu", False), (1, 1, 2, "uvu", True), (1, 1, 3, "uvu", True)],
)
MIXING = ("4x0e+3x1o", "2x0e+2x1o", "5x0e+6x1o", [(0, 0, 0, "uvw", True), (0, 1, 1, "uvw", True)])


def options():
    for shared in (None, True, False):
        for internal in (None, True, False):
            yield {"shared_weights": shared, "internal_weights": internal}


@pytest.mark.parametrize("option", list(options()), ids=lambda o: "-".join(map(str, o.values())))
@pytest.mark.parametrize("arguments", [ARGUMENTS, MIXING, ("2x0e", "0e", "2x0e", [(0, 0, 0, "uvu", False)])])
def test_weights_are_owned_as_in_e3nn(arguments, option):
    try:
        theirs = o3.TensorProduct(*arguments, **option)
    except AssertionError:
        with pytest.raises(ValueError, match="internal weights are shared by all rows"):
            eqtp.nn.TensorProduct(*arguments, **option)
        return
    ours = eqtp.nn.TensorProduct(*arguments, **option)
    for name in ("shared_weights", "internal_weights", "weight_numel"):
        assert getattr(ours, name) == getattr(theirs, name), name
    state = theirs.state_dict()
    assert {n: t.shape for n, t in ours.state_dict().items()} == {n: t.shape for n, t in state.items()}
    assert [n for n, _ in ours.named_parameters()] == [n for n, _ in theirs.named_parameters()]
    assert torch.equal(ours.output_mask, theirs.output_mask)
    for name in ("irreps_in1", "irreps_in2", "irreps_out"):
        assert str(getattr(ours, name)) == str(getattr(theirs, name))


@pytest.mark.parametrize("arguments", [ARGUMENTS, MIXING], ids=["native", "reference"])
@pytest.mark.parametrize("normalisation", ["component", "norm"])
def test_e3nn_state_dict_gives_the_same_numbers(e3nn64, arguments, normalisation):
    theirs = o3.TensorProduct(*arguments, irrep_normalization=normalisation, path_normalization="path")
    ours = eqtp.nn.TensorProduct(*arguments, irrep_normalization=normalisation, path_normalization="path")
    ours.load_state_dict(theirs.state_dict(), strict=True)
    x, y = testing.random(6, theirs.irreps_in1.dim), testing.random(6, theirs.irreps_in2.dim, seed=1)
    testing.assert_close(ours(x, y), theirs(x, y))
    parent = torch.nn.ModuleDict({"layer": ours})
    parent.load_state_dict({f"layer.{n}": t for n, t in theirs.state_dict().items()}, strict=True)
    testing.assert_close(parent["layer"](x, y), theirs(x, y))


def test_tables_with_other_signs_are_refused(e3nn64):
    """R24: weights that were trained with the couplings of e3nn < 0.5 mean something else."""
    state = o3.TensorProduct(*ARGUMENTS).state_dict()
    table = next(n for n in state if "_w3j_" in n)
    ours = eqtp.nn.TensorProduct(*ARGUMENTS)
    ours.load_state_dict(state)
    state[table] = -state[table]
    with pytest.raises(RuntimeError, match=rf"{table} is not the coupling of e3nn >= 0.5"):
        ours.load_state_dict(state)


def test_strict_loading_still_means_something():
    ours = eqtp.nn.TensorProduct(*ARGUMENTS)
    state = ours.state_dict()
    with pytest.raises(RuntimeError, match="Unexpected key"):
        ours.load_state_dict({**state, "other": torch.zeros(1)})
    with pytest.raises(RuntimeError, match="Missing key"):
        ours.load_state_dict({"output_mask": state["output_mask"]})
    with pytest.raises(RuntimeError, match="size mismatch for weight"):
        ours.load_state_dict({**state, "weight": torch.zeros(3)})


def test_state_dict_is_the_same_for_every_backend():
    """R25."""
    torch.manual_seed(0)
    modules = {b: eqtp.nn.TensorProduct(*ARGUMENTS, backend=b) for b in ("auto", "native", "reference")}
    x, y = testing.random(4, 26).float(), testing.random(4, 4).float()
    for module in modules.values():
        module.load_state_dict(modules["auto"].state_dict())
    for module in modules.values():
        testing.assert_close(module(x, y), modules["reference"](x, y).double())


LEADS = [
    ((), (), ()),
    ((5,), (5,), (5,)),
    ((2, 3), (3,), (2, 1)),
    ((2, 3), (2, 3), None),
    ((1,), (4,), (4,)),
    ((0,), (0,), (0,)),
]


@pytest.mark.parametrize("leads", LEADS, ids=str)
def test_leading_dimensions_broadcast_as_in_e3nn(e3nn64, leads):
    shared = leads[2] is None or leads[2] == ()
    option = {"shared_weights": shared, "internal_weights": False}
    theirs, ours = o3.TensorProduct(*ARGUMENTS, **option), eqtp.nn.TensorProduct(*ARGUMENTS, **option)
    x, y = testing.random(*leads[0], 26), testing.random(*leads[1], 4, seed=1)
    w = testing.random(*(() if shared else leads[2]), ours.weight_numel, seed=2)
    out, expected = ours(x, y, w), theirs(x, y, w)
    assert out.shape == expected.shape
    if expected.numel():
        testing.assert_close(out, expected)


@pytest.mark.parametrize("how", ["deepcopy", "pickle", "save"])
def test_modules_are_copied_and_saved_whole(how, tmp_path):
    module = eqtp.nn.TensorProduct(*ARGUMENTS)
    x, y = testing.random(4, 26).float(), testing.random(4, 4).float()
    if how == "save":
        torch.save(module, tmp_path / "module.pt")
        other = torch.load(tmp_path / "module.pt", weights_only=False)
    else:
        other = copy.deepcopy(module) if how == "deepcopy" else pickle.loads(pickle.dumps(module))
    assert other.plan == module.plan and torch.equal(other(x, y), module(x, y))


def test_dtype_follows_the_module():
    module = eqtp.nn.TensorProduct(*ARGUMENTS).double()
    out = module(testing.random(4, 26), testing.random(4, 4))
    assert out.dtype == torch.float64 and module.output_mask.dtype == torch.float64
    out.sum().backward()
    assert module.weight.grad.shape == module.weight.shape and module.weight.grad.abs().max() > 0


def test_training_step_is_that_of_e3nn(e3nn64):
    """R30: the same weights after ten steps of gradient descent."""
    theirs, ours = o3.TensorProduct(*ARGUMENTS), eqtp.nn.TensorProduct(*ARGUMENTS)
    ours.load_state_dict(theirs.state_dict())
    x, y = testing.random(6, 26), testing.random(6, 4, seed=1)
    for module in (theirs, ours):
        optimiser = torch.optim.SGD(module.parameters(), lr=0.01)
        for _ in range(10):
            optimiser.zero_grad()
            module(x, y).pow(2).mean().backward()
            optimiser.step()
    testing.assert_close(ours.weight, theirs.weight.detach())


def test_conv_gives_the_same_for_edges_and_graph(random_graph):
    module = eqtp.nn.TensorProductConv(*ARGUMENTS)
    graph = random_graph(6, 5, 20)
    x, y, w = (testing.random(*s).float() for s in ((6, module.irreps_in1.dim), (20, 4), (20, module.weight_numel)))
    out = module(x, y, w, graph=graph)
    expected = eqtp.nn.TensorProduct(*ARGUMENTS, shared_weights=False)(x[graph.src], y, w)
    testing.assert_close(out, torch.zeros(5, out.shape[1]).index_add(0, graph.dst, expected).double())
    assert torch.equal(module(x, y, w, graph.src, graph.dst, num_dst=5), out)
    assert torch.equal(module(x, y, w, graph.src.int(), graph.dst.int(), num_dst=5), out)
    square = module(x, y, w, graph.src, graph.dst)
    assert square.shape[0] == 6 and torch.equal(square[:5], out) and (square[5] == 0).all()


def test_conv_layers_share_one_graph(monkeypatch):
    built, Graph = [], graphs.Graph
    monkeypatch.setattr(graphs, "Graph", lambda *a, **options: built.append(1) or Graph(*a, **options))
    layers = [eqtp.nn.TensorProductConv(*ARGUMENTS) for _ in range(3)]
    edge_index = torch.tensor([[0, 1, 2, 0], [1, 0, 1, 2]])
    x, y, w = (testing.random(*s).float() for s in ((3, 26), (4, 4), (4, layers[0].weight_numel)))
    for layer in layers:
        layer(x, y, w, edge_index[0], edge_index[1])  # new views of one tensor
    assert built == [1]


def test_conv_with_weights_of_its_own(random_graph):
    module = eqtp.nn.TensorProductConv(*ARGUMENTS, internal_weights=True, shared_weights=True)
    graph = random_graph(6, 5, 20)
    x, y = testing.random(6, 26).float(), testing.random(20, 4).float()
    module(x, y, graph=graph).sum().backward()
    assert module.weight.grad.abs().max() > 0


SH = [(3, None), ([0, 1, 2], None), ("0e+1o+2e", None), ("2x1o+0e", None), ("1e+2e", "1e"), ([2, 1], "1e")]
SH += [("0e+1e+2e", None), (o3.Irreps("2e+3e"), None), ([2, 1, 1, 0], None), (range(4), None)]


@pytest.mark.parametrize("normalization", ["integral", "component", "norm"])
@pytest.mark.parametrize("normalize", [True, False])
@pytest.mark.parametrize(("irreps", "irreps_in"), SH)
def test_spherical_harmonics_are_those_of_e3nn(e3nn64, irreps, irreps_in, normalize, normalization):
    theirs = o3.SphericalHarmonics(irreps, normalize, normalization, irreps_in=irreps_in)
    ours = eqtp.nn.SphericalHarmonics(irreps, normalize, normalization, irreps_in=irreps_in)
    assert str(ours.irreps_out) == str(theirs.irreps_out) and str(ours.irreps_in) == str(theirs.irreps_in)
    assert not ours.state_dict()
    xyz = testing.random(2, 5, 3)
    testing.assert_close(ours(xyz), theirs(xyz))


def test_repr_says_what_it_is():
    for arguments in (ARGUMENTS, MIXING):
        assert repr(eqtp.nn.TensorProduct(*arguments)) == repr(o3.TensorProduct(*arguments))
    assert "17x0e+3x1o x 1x0e+1x1o -> " in repr(eqtp.nn.TensorProductConv(*ARGUMENTS))
    assert "normalize=True" in repr(eqtp.nn.SphericalHarmonics([0, 1], True))


def test_variances_reach_the_plan(e3nn64):
    var = {"in1_var": [2.0, 0.5], "in2_var": [1.0, 3.0], "out_var": [1.0, 0.2, 1.0, 2.0]}
    theirs, ours = o3.TensorProduct(*ARGUMENTS, **var), eqtp.nn.TensorProduct(*ARGUMENTS, **var)
    ours.load_state_dict(theirs.state_dict())
    x, y = testing.random(3, 26), testing.random(3, 4)
    testing.assert_close(ours(x, y), theirs(x, y))
    np.testing.assert_allclose(ours.plan.in1_var, var["in1_var"])

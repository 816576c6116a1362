"""eqtp.compile with a loss: loss and gradients of a compiled step of training are those of the eager one, at sizes that
were not traced, as the parameters change."""

import copy

import pytest
import torch
from test_compiled_sevennet import batch, crystal, small_sevennet, structure

import eqtp
from eqtp import testing
from eqtp.compiled.training import training_case

pytestmark = pytest.mark.usefixtures("own_cache")
RELATIVE = {torch.float32: 1e-5, torch.float64: 1e-10}


def assert_same_step(step, model, data, targets, loss, run):
    """Loss and every gradient, relative to its largest entry."""
    eager = copy.deepcopy(model)
    model.zero_grad(), eager.zero_grad()
    got = step(data, targets)
    expected = loss(run(eager), targets)
    expected.backward()
    assert not got.requires_grad
    found = [("loss", got, expected)]
    for (name, p), theirs in zip(model.named_parameters(), eager.parameters(), strict=True):
        assert (p.grad is None) == (theirs.grad is None), name
        if p.grad is not None:
            found.append((name, p.grad, theirs.grad))
    for name, a, b in found:
        assert (a - b).abs().max() <= RELATIVE[a.dtype] * b.abs().max(), name


# ------------------------------------------------------------------------ any module
class Potential(torch.nn.Module):
    """Energy [] and forces [n, 3], whose gradients reach the parameters; one parameter is not used."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        paths = [(0, 0, 0, "uvu", True), (0, 1, 1, "uvu", True)]
        self.plan = eqtp.TensorProductPlan("4x0e", "0e + 1o", "4x0e + 4x1o", paths)
        self.radial = torch.nn.Linear(1, self.plan.weight_numel, dtype=torch.float64)
        self.readout = torch.nn.Linear(self.plan.dim_out, 1, dtype=torch.float64)
        self.other = torch.nn.Parameter(torch.ones(2))
        self.scale = torch.nn.Parameter(torch.tensor(2.0), requires_grad=False)

    def forward(self, positions, x, edge_index):  # [n, 3], [n, 4], [2, e]
        positions = positions.detach().requires_grad_()
        graph = eqtp.Graph(edge_index[1], edge_index[0], x.shape[0], x.shape[0])
        vectors = positions[edge_index[0]] - positions[edge_index[1]]  # [e, 3]
        y = eqtp.spherical_harmonics([0, 1], vectors, normalize=False)  # [e, 4]
        w = self.radial(vectors.square().sum(1, keepdim=True)).tanh()  # [e, numel]
        features = eqtp.tensor_product_conv(x, y, w, self.plan, graph)
        energy = self.scale * self.readout(features.tanh()).sum()
        return energy, -torch.autograd.grad(energy, positions, create_graph=True)[0]


def of_both(out, targets):
    energy, forces = out
    return (energy - targets["energy"]).square() + (forces - targets["forces"]).square().mean()


def inputs(nodes, edges):
    index = torch.randint(nodes, (2, edges), generator=torch.Generator().manual_seed(nodes))
    data = testing.random(nodes, 3, seed=1), testing.random(nodes, 4, seed=2), index
    return data, {"energy": testing.random(1, seed=3)[0], "forces": testing.random(nodes, 3, seed=4)}


@pytest.fixture(scope="module")
def trained(own_cache):
    """(model, its compiled step)."""
    model = Potential()
    return model, eqtp.compile(model, inputs(5, 20), loss=of_both)


def test_a_module_at_other_sizes(trained, no_compiler):
    model, step = trained
    for size in ((7, 31), (2, 2), (40, 300)):
        data, targets = inputs(*size)
        assert_same_step(step, model, data, targets, of_both, lambda m, data=data: m(*data))
    assert model.other.grad is None and model.scale.grad is None
    sizes = {given.name: given.shape for given in step.signature.inputs}
    assert sizes["targets['forces']"] == sizes["positions"] and "gradients of 4 parameters" in repr(step)


def test_training_goes_the_same_way(trained, no_compiler):
    """Ten steps of Adam, two structures in each: the program sees the parameters change, gradients add up (R30)."""
    model, step = trained
    eager = copy.deepcopy(model)
    start = eager.readout.weight.detach().clone()
    optimizers = [torch.optim.Adam(m.parameters(), lr=0.01) for m in (model, eager)]
    for _ in range(10):
        for optimizer in optimizers:
            optimizer.zero_grad()
        for size in ((7, 31), (9, 40)):
            data, targets = inputs(*size)
            step(data, targets)
            of_both(eager(*data), targets).backward()
        for optimizer in optimizers:
            optimizer.step()
    for a, b in zip(model.parameters(), eager.parameters(), strict=True):
        testing.assert_close(a.detach(), b.detach())
    assert (model.readout.weight - start).abs().max() > 0.05


def test_bad_calls_of_a_step(trained):
    _, step = trained
    data, targets = inputs(6, 40)
    with pytest.raises(ValueError, match=r"targets\['forces'\] \[\w+, 3\] float64 expected .*, got \[5, 3\]"):
        step(data, targets | {"forces": targets["forces"][:5]})
    with pytest.raises(TypeError, match="edge_index must be int64, got int32"):
        step((*data[:2], data[2].int()), targets)
    with pytest.raises(TypeError, match=r"step: 3 inputs \(positions, x, edge_index\) and targets.* got 3 and targets"):
        step(data, {"energy": targets["energy"]})
    assert torch.equal(step(data, dict(reversed(targets.items()))), step(data, targets))  # by name, not by order


ARGUMENTS = {
    "model": (torch.sin, inputs(5, 20), of_both, TypeError, "loss= needs a torch.nn.Module"),
    "loss": (Potential(), inputs(5, 20), 1, TypeError, "and a function, got Potential, 1"),
    "example": (Potential(), inputs(5, 20)[0], of_both, TypeError, r"must be \(input, targets\), got tuple of 3"),
    "frozen": (Potential().requires_grad_(False), inputs(5, 20), of_both, ValueError, "parameters that require"),
    "number": (Potential(), inputs(5, 20), lambda out, t: out[1], TypeError, "loss must return one number"),
}


@pytest.mark.parametrize("name", ARGUMENTS)
def test_bad_arguments(name):
    model, example, loss, error, message = ARGUMENTS[name]
    with pytest.raises(error, match=message):
        eqtp.compile(model, example, loss=loss)
    with pytest.raises(ValueError, match="a step of training has no buckets"):
        eqtp.compile(model, example, loss=loss, buckets=2)


# ------------------------------------------------------------------------ SevenNet
def of_energies_and_forces(out, targets):
    """SevenNet's: energy per atom, forces."""
    forces = out["inferred_force"]  # [n, 3]
    energy = (out["inferred_total_energy"] - targets["energy"]).div(forces.shape[0])
    return energy.square().mean() + 10 * (forces - targets["forces"]).square().mean()


def labelled(model, atoms, dtype):
    """A structure, or a batch of several, with random targets about the model's own energy."""
    if model.is_batch_data:
        data = batch(model, *atoms, dtype=dtype)
    else:
        (only,) = atoms
        data = structure(crystal(only), model, dtype)
    energy = model(data.clone())["inferred_total_energy"].detach() + 1
    return data, {"energy": energy, "forces": testing.random(len(data["atomic_numbers"]), 3, seed=1).to(dtype)}


def in_training(model, dtype):
    from eqtp.integrations import sevennet

    model = (sevennet.to_float64(model) if dtype == torch.float64 else model).train()
    eqtp.accelerate(model)
    return model


def check_sevennet(model, dtype, sizes):
    model = in_training(model, dtype)
    step = eqtp.compile(model, labelled(model, sizes[0], dtype), loss=of_energies_and_forces)
    for atoms in sizes[1:]:
        data, targets = labelled(model, atoms, dtype)
        run = lambda m, data=data: m(data.clone())  # noqa: E731
        assert_same_step(step, model, data, targets, of_energies_and_forces, run)


def test_sevennet():
    """The function that is compiled, before it is: loss and gradients of parameters that it is given."""
    model = in_training(small_sevennet(1), torch.float64)
    example = labelled(model, (8,), torch.float64)
    case, names, inputs = training_case(model, example, of_energies_and_forces, True)
    assert len(case.names) == len(names) + inputs + 2 and len(names) > 5
    changed = [1.01 * t if n < len(names) else t for n, t in enumerate(case.tensors)]
    for tensors in (case.tensors, changed):
        model.load_state_dict(dict(zip(names, tensors, strict=False)), strict=False)
        value = of_energies_and_forces(model(example[0].clone()), example[1])
        gradients = torch.autograd.grad(value, [model.get_parameter(name) for name in names])
        for a, b in zip(case.function(*tensors), [value, *gradients], strict=True):
            testing.assert_close(a, b.detach())


@pytest.mark.long
def test_compiled_sevennet():
    """One structure at a time, in float64."""
    check_sevennet(small_sevennet(1), torch.float64, [(8,), (64,), (27,), (125,)])


def test_sevennet_that_is_not_trained():
    model = small_sevennet(1)
    with pytest.raises(ValueError, match=r"the model is in evaluation mode: call model.train\(\) first"):
        eqtp.compile(model, labelled(model, (8,), torch.float32), loss=of_energies_and_forces)


@pytest.mark.long
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_sevennet_in_batches(dtype):
    """Two layers; three structures, one, and two others, compiled for two."""
    model = small_sevennet(2)
    model.set_is_batch_data(True)
    check_sevennet(model, dtype, [(8, 8), (8, 64, 27), (27,), (64, 8)])


@pytest.mark.long
def test_trained_sevennet():
    """SevenNet-0 in float64."""
    from eqtp.integrations import sevennet

    check_sevennet(sevennet.load("7net-0"), torch.float64, [(8,), (64,), (27,), (125,)])

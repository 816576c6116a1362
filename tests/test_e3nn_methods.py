"""The methods of e3nn's products: weights flat and path by path and their views, right, visualize; and TorchScript."""

import contextlib
import sys

import e3nn
import pytest
import torch
from e3nn_models import (
    MODES,
    ROWS,
    WITH_RIGHT,
    arguments,
    o3,
    operands,
    outside_weights,
    pair,
    path_by_path,
)

import eqtp
from eqtp import testing
from eqtp.integrations.accelerate import accelerate
from eqtp.integrations.e3nn import from_e3nn


# ------------------------------------------------------------------------ weights
@pytest.mark.parametrize("kept", [False, True], ids=["ours", "converted"])
@pytest.mark.parametrize("shared", [True, False])
@pytest.mark.parametrize("mode", MODES)
def test_weights_flat_or_path_by_path(e3nn64, mode, shared, kept):
    theirs, ours = pair(mode, shared_weights=shared, internal_weights=False)
    ours = from_e3nn(theirs) if kept else ours
    x, y = operands(theirs, ROWS)
    weight = outside_weights(theirs, ROWS)
    weights = path_by_path(theirs, weight)
    for given in (weight, weights, [w.reshape(*weight.shape[:-1], -1) for w in weights]):
        testing.assert_close(ours(x, y, given), theirs(x, y, given))
        for with_instruction in (False, True):
            found, expected = (list(m.weight_views(given, with_instruction)) for m in (ours, theirs))
            for a, b in zip(found, expected, strict=True):
                a, b = (v if with_instruction else (None, None, v) for v in (a, b))
                assert a[0] == b[0] and a[2].shape == b[2].shape and torch.equal(a[2], b[2])
                assert not with_instruction or a[1].path_shape == b[1].path_shape
        for n in range(3):
            a, b = (m.weight_view_for_instruction(n, given) for m in (ours, theirs))
            assert torch.equal(a, b)
    assert all(v.data_ptr() >= weight.data_ptr() and v._base is weight for v in ours.weight_views(weight))


def test_views_write_to_the_parameter():
    """As in e3nn's example of an initialisation."""
    module = eqtp.nn.TensorProduct(*arguments("uvw"))
    with torch.no_grad():
        for n, view in enumerate(module.weight_views()):
            view[:] = n
    assert module.weight.tolist() == [n for n, p in enumerate(module.plan.paths) for _ in range(p.weight_numel)]
    view = module.weight_view_for_instruction(1)
    assert view.shape == (3, 2, 2) and (view == 1).all()
    view.sum().backward()
    assert module.weight.grad.sum() == 12


def test_view_after_a_path_without_weight():
    """e3nn counts that path's weights, too, and shows those of the wrong path."""
    module = eqtp.nn.TensorProduct(*arguments("uvu", (False, True, True)))
    for n, _, view in module.weight_views(yield_instruction=True):
        assert torch.equal(module.weight_view_for_instruction(n), view)
    with pytest.raises(ValueError, match="instruction 0 has no weight"):
        module.weight_view_for_instruction(0)
    with pytest.raises(ValueError):
        o3.TensorProduct(*arguments("uvu", (False, True, True))).weight_view_for_instruction(0)


def test_no_weights_no_views():
    module = eqtp.nn.TensorProduct(*arguments("uuu", (False,) * 3))
    assert list(module.weight_views()) == []
    x, y = operands(module, ROWS)
    testing.assert_close(module(x.float(), y.float(), []), module(x.float(), y.float()).double())


def test_conv_takes_weights_path_by_path(random_graph):
    module, graph = eqtp.nn.TensorProductConv(*arguments("uvu")).double(), random_graph(6, 5, 20)
    x, y, w = (testing.random(*s) for s in ((6, 12), (20, 8), (20, module.weight_numel)))
    expected = module(x, y, w, graph=graph)
    testing.assert_close(module(x, y, path_by_path(module, w), graph=graph), expected)
    testing.assert_close(module(x, y, path_by_path(module, w[0]), graph=graph), module(x, y, w[0], graph=graph))


@pytest.mark.parametrize("shared", [True, False])
@pytest.mark.parametrize("shape", [(17,), (18,), (5, 18), (1, 18), (5, 17), "list"])
def test_weights_that_e3nn_refuses(e3nn64, shape, shared):
    """By the same decision; ours says what it expected."""
    theirs, ours = pair("uvu", shared_weights=shared, internal_weights=False)
    x, y = operands(theirs, ROWS)
    weight = [testing.random(3, 2)] * 4 if shape == "list" else testing.random(*shape)
    try:
        expected = theirs(x, y, weight)
    except (AssertionError, RuntimeError, IndexError):
        with pytest.raises(ValueError, match=r"^TensorProduct: weight must be "):
            ours(x, y, weight)
    else:
        if shape != "list":  # of which e3nn drops the last
            testing.assert_close(ours(x, y, weight), expected)


def test_lists_of_weights_that_do_not_fit():
    module = eqtp.nn.TensorProduct(*arguments("uvu"))
    x, y = (t.float() for t in operands(module, ROWS))
    with pytest.raises(ValueError, match="must be a tensor or a list of 3, one for each path with a weight, got 2"):
        module(x, y, [torch.zeros(3, 2)] * 2)
    with pytest.raises(ValueError, match=r"TensorProduct: weight\[1\] must be \[3, 2\], got \[3, 3\]"):
        module(x, y, [torch.zeros(3, 2), torch.zeros(3, 3), torch.zeros(3, 2)])
    module = eqtp.nn.TensorProduct(*arguments("uvu"), shared_weights=False)
    with pytest.raises(ValueError, match=r"weight\[0\] must be \[..., 3, 2\], got \[5, 3, 3\]"):
        module(x, y, [torch.zeros(5, 3, 3)] * 3)


# ------------------------------------------------------------------------ right
@pytest.mark.parametrize("how", ["inside", "shared", "rows"])
@pytest.mark.parametrize("mode", WITH_RIGHT)
def test_right_is_that_of_e3nn(e3nn64, mode, how):
    shared, inside = how != "rows", how == "inside"
    theirs, ours = pair(mode, shared_weights=shared, internal_weights=inside, compile_right=True)
    for lead in ((), (ROWS,), (2, 3)):
        x, y = operands(theirs, *lead)
        given = [] if inside else [outside_weights(theirs, *(lead or (1,)))]
        expected = theirs.right(y, *given)
        for module in (ours, from_e3nn(theirs)):
            found = module.right(y, *given)
            assert found.shape == expected.shape
            testing.assert_close(found, expected)
        testing.assert_close(torch.einsum("...i,...ik->...k", x, ours.right(y, *given)), ours(x, y, *given))
    if not inside:
        _, y = operands(theirs, ROWS)
        weight = outside_weights(theirs, ROWS)
        testing.assert_close(ours.right(y, path_by_path(ours, weight)), theirs.right(y, weight))


def test_right_for_pairs_of_channels():
    """Which e3nn does not have."""
    ours = eqtp.nn.TensorProduct(*arguments("u<vw"), compile_right=True).double()
    x, y = operands(ours, ROWS)
    testing.assert_close(torch.einsum("zi,zik->zk", x, ours.right(y)), ours(x, y))


def test_right_has_derivatives(e3nn64):
    theirs, ours = pair("uvu", compile_right=True)
    _, y = operands(theirs, ROWS)
    y.requires_grad_()
    for wanted in ("y", "weight"):
        grads = [
            torch.autograd.grad(m.right(y).sin().sum(), y if wanted == "y" else m.weight)[0] for m in (ours, theirs)
        ]
        testing.assert_close(*grads)


def test_right_that_was_not_asked_for():
    y = torch.randn(ROWS, 8)
    with pytest.raises(AssertionError):
        o3.TensorProduct(*arguments("uvu")).right(y)
    for module in (eqtp.nn.TensorProduct(*arguments("uvu")), from_e3nn(o3.TensorProduct(*arguments("uvu")))):
        with pytest.raises(RuntimeError, match=r"TensorProduct: for right\(\) make the module with compile_right=True"):
            module.right(y)


def test_accelerate_keeps_right():
    product = o3.TensorProduct("4x0e", "0e+1o", "4x0e+4x1o", [(0, 0, 0, "uvu", True), (0, 1, 1, "uvu", True)],
                               compile_right=True)  # fmt: skip
    tree, y = torch.nn.ModuleList([product]), torch.randn(ROWS, 4)
    expected, state = product.right(y), {name: t.clone() for name, t in tree.state_dict().items()}
    report = accelerate(tree)
    assert isinstance(tree[0], eqtp.nn.TensorProduct) and list(tree.state_dict()) == list(state)
    testing.assert_close(tree[0].right(y), expected.double())
    tree.load_state_dict({name: t * 2 if name == "0.weight" else t for name, t in state.items()}, strict=True)
    testing.assert_close(tree[0].right(y), 2 * expected.double())
    report.undo()
    testing.assert_close(product.right(y), 2 * expected.double())


def test_converting_a_product_without_forward():
    product = o3.TensorProduct(*arguments("uvu"), compile_left_right=False, compile_right=True)
    with pytest.raises(ValueError, match="compile_left_right=False and has no forward"):
        from_e3nn(product)


# ------------------------------------------------------------------------ visualize
@pytest.fixture
def axes():
    matplotlib = pytest.importorskip("matplotlib", reason="matplotlib is not installed")
    matplotlib.use("Agg")
    from matplotlib import pyplot

    yield pyplot.subplots()[1]
    pyplot.close("all")


@pytest.mark.parametrize("given", [{}, {"plot_weight": False}, {"aspect_ratio": "auto"}, {"aspect_ratio": 2.0}])
def test_visualize(axes, given):
    """The same kind of objects, and the same names at the blocks; a line for each path."""
    theirs, ours = pair("uvw")
    theirs.visualize(ax=axes, **given)
    expected = sorted(text.get_text() for text in axes.texts)
    axes.clear()
    figure, drawn = ours.visualize(ax=axes, **given)
    assert drawn is axes and figure is axes.get_figure()
    assert sorted(text.get_text() for text in axes.texts) == expected
    paths = axes.lines[3:]
    assert len(axes.lines[:3]) == 3 and len(paths) == 3
    colors = {str(line.get_color()) for line in paths}
    assert (colors == {"green"}) == (given == {"plot_weight": False})
    figure.canvas.draw()


def test_visualize_on_the_current_axes(axes):
    module = eqtp.nn.TensorProduct(*arguments("uvu", (True, False, True)), internal_weights=False)
    _, drawn = module.visualize()
    assert drawn is axes and [line.get_color() for line in axes.lines[3:]] == ["green", "black", "green"]
    axes.clear()
    weight = torch.ones(12)
    module.visualize([weight[:6], 2 * weight[6:]])
    shades = [line.get_color() for line in axes.lines[3:]]
    assert shades[1] == "black" and sum(shades[2][:3]) < sum(shades[0][:3])  # the larger weight is the darker
    with pytest.raises(ValueError, match="aspect_ratio must be a number or 'auto', got 'wide'"):
        module.visualize(aspect_ratio="wide")


def test_visualize_without_matplotlib(monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(ImportError, match="visualize draws with matplotlib, which is not installed"):
        eqtp.nn.TensorProduct(*arguments("uvu")).visualize()


# ------------------------------------------------------------------------ TorchScript
@pytest.mark.parametrize(
    "make",
    [
        lambda: eqtp.nn.TensorProduct(*arguments("uvu")),
        lambda: eqtp.nn.TensorProductConv(*arguments("uvu")),
        lambda: eqtp.nn.SphericalHarmonics([0, 1], True),
        lambda: eqtp.nn.GauntTensorProduct(2, 2, 2, 4),
        lambda: from_e3nn(o3.TensorSquare("2x0e + 1o")),
    ],
)
def test_script_says_what_to_do(make):
    """Anywhere in a model, through torch or through e3nn, and the model stays as it is."""
    inner = make()
    model = torch.nn.Sequential(torch.nn.Linear(1, 1), torch.nn.Sequential(inner))
    modules = dict(model.named_modules())
    expected = rf"^torch\.jit\.script: {type(inner).__name__} of eqtp cannot be scripted, .* torch\.compile or"
    for script, module in ((torch.jit.script, inner), (torch.jit.script, model), (e3nn.util.jit.script, model)):
        with pytest.raises(NotImplementedError, match=expected), contextlib.redirect_stdout(None):
            script(module)
    assert dict(model.named_modules()) == modules

"""What a caller of e3nn's products and harmonics can see: arguments, attributes, state_dict."""

import copy
import inspect
import warnings

import pytest
import torch
from e3nn_models import (
    MODES,
    ROWS,
    UNWEIGHTED,
    WITH_RIGHT,
    arguments,
    o3,
    operands,
    pair,
)

import eqtp
from eqtp import testing
from eqtp.integrations.e3nn import from_e3nn

# ------------------------------------------------------------------------ arguments
PAIRS = [
    (o3.TensorProduct, eqtp.nn.TensorProduct, ()),
    (o3.SphericalHarmonics, eqtp.nn.SphericalHarmonics, ()),
    (o3.TensorProduct.forward, eqtp.nn.TensorProduct.forward, ()),
    (o3.TensorProduct.right, eqtp.nn.TensorProduct.right, ()),
    (o3.TensorProduct.weight_views, eqtp.nn.TensorProduct.weight_views, ()),
    (o3.TensorProduct.weight_view_for_instruction, eqtp.nn.TensorProduct.weight_view_for_instruction, ()),
    (o3.TensorProduct.visualize, eqtp.nn.TensorProduct.visualize, ()),
    (o3.SphericalHarmonics.forward, eqtp.nn.SphericalHarmonics.forward, ()),
]


@pytest.mark.parametrize(("theirs", "ours", "other"), PAIRS, ids=lambda f: getattr(f, "__qualname__", ""))
def test_same_arguments_in_the_same_order_with_the_same_defaults(theirs, ours, other):
    """Ours may have more, after e3nn's."""
    expected, found = ([(p.name, p.default) for p in inspect.signature(f).parameters.values()] for f in (theirs, ours))
    assert found[: len(expected)] == expected
    assert all(default is not inspect.Parameter.empty for _, default in found[len(expected) :])


def test_conv_takes_the_arguments_of_the_product():
    """But that its weights are not shared by default."""
    values = {p.name: p.default for p in inspect.signature(o3.TensorProduct).parameters.values()}
    given = {name: value for name, value in values.items() if value is not inspect.Parameter.empty}
    given |= {"internal_weights": True, "compile_right": True}
    module = eqtp.nn.TensorProductConv(*arguments("uvu"), **given)
    assert module.internal_weights and module.shared_weights and len(module.right(torch.randn(8))) == 12
    positional = eqtp.nn.TensorProductConv(*arguments("uvu"), *given.values())
    assert positional.state_dict().keys() == module.state_dict().keys()
    assert not eqtp.nn.TensorProductConv(*arguments("uvu")).shared_weights


@pytest.mark.parametrize("normalization", ["component", "norm", "none"])
def test_normalization_is_the_older_name_of_irrep_normalization(e3nn64, normalization):
    options = {"normalization": normalization, "irrep_normalization": "component"}
    results = []
    for cls in (o3.TensorProduct, eqtp.nn.TensorProduct):
        with pytest.warns(DeprecationWarning, match="`normalization` is deprecated"):
            results.append(cls(*arguments("uvw"), **options))
    theirs, ours = results
    assert [ins.path_weight for ins in ours.instructions] == pytest.approx(
        [ins.path_weight for ins in theirs.instructions], rel=1e-14
    )
    with pytest.raises(ValueError, match="irrep_normalization must be one of"), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        eqtp.nn.TensorProduct(*arguments("uvw"), normalization="nonsense")


# ------------------------------------------------------------------------ attributes
@pytest.mark.parametrize("kept", [False, True], ids=["ours", "converted"])
@pytest.mark.parametrize("mode", MODES)
def test_public_attributes(e3nn64, mode, kept):
    theirs, ours = pair(mode, (True, mode not in UNWEIGHTED, True))
    ours = from_e3nn(theirs) if kept else ours
    names = {name for name in dir(theirs) if not name.startswith("_")}
    assert not {name for name in names if not hasattr(ours, name)}
    for name in names:
        value = getattr(theirs, name)
        if isinstance(value, int | str | float | list | tuple) and not name.startswith(("irreps", "instructions")):
            assert getattr(ours, name) == value, name
    for found, expected in zip(ours.instructions, theirs.instructions, strict=True):
        assert found._fields == type(expected)._fields
        assert found.path_weight == pytest.approx(expected.path_weight, rel=1e-14)
        assert found._replace(path_weight=0) == expected._replace(path_weight=0)
    assert repr(ours) == repr(theirs)
    assert torch.equal(ours.output_mask, theirs.output_mask) and torch.equal(ours.weight, theirs.weight)


def test_public_attributes_of_harmonics():
    theirs = o3.SphericalHarmonics([2, 0, 1, 1], True)
    for ours in (eqtp.nn.SphericalHarmonics([2, 0, 1, 1], True), from_e3nn(theirs)):
        names = {name for name in dir(theirs) if not name.startswith("_")} - {"sph_func"}  # e3nn's compiled function
        assert not {name for name in names if not hasattr(ours, name)}
        for name in ("irreps_in", "irreps_out", "normalize", "normalization"):
            assert str(getattr(ours, name)) == str(getattr(theirs, name))


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        (("1o", True, "nonsense"), "normalization must be one of"),
        (("1o", True, "norm", "2x1o"), "irreps_in must be 1o or 1e"),
        (("1o", True, "norm", "0e"), "irreps_in must be 1o or 1e"),
        (("0e+1e", True, "norm", "1o"), "has no spherical harmonic 1e"),
        (("1o+1e", True), "has no spherical harmonic 1o"),
    ],
)
def test_harmonics_that_e3nn_refuses(given, expected):
    with pytest.raises((ValueError, AssertionError)):
        o3.SphericalHarmonics(*given)
    with pytest.raises(ValueError, match=f"SphericalHarmonics: .*{expected}"):
        eqtp.nn.SphericalHarmonics(*given)


# ------------------------------------------------------------------------ state_dict
@pytest.mark.parametrize("specialised", [None, True, False])
@pytest.mark.parametrize("compiled", [(True, False), (True, True), (False, True)])
@pytest.mark.parametrize("mode", MODES)
def test_state_dict_has_the_keys_of_e3nn(e3nn64, mode, compiled, specialised):
    left, right = compiled
    if right and mode not in WITH_RIGHT:
        right = False
    for weighted in ((True,) * 3, (True, mode not in UNWEIGHTED, mode not in UNWEIGHTED)):
        given = {"compile_left_right": left, "compile_right": right, "_specialized_code": specialised}
        theirs, ours = (cls(*arguments(mode, weighted), **given) for cls in (o3.TensorProduct, eqtp.nn.TensorProduct))
        expected, found = theirs.state_dict(), ours.state_dict()
        assert {n: (t.shape, t.dtype) for n, t in found.items()} == {n: (t.shape, t.dtype) for n, t in expected.items()}
        for name, table in expected.items():
            if name != "weight":
                testing.assert_close(found[name].double(), table.double())


@pytest.mark.parametrize("mode", MODES)
def test_state_dict_travels_both_ways(e3nn64, mode):
    """Strictly, and by way of a converted module; results to 1e-12."""
    theirs, ours = pair(mode)
    x, y = operands(theirs, ROWS)
    testing.assert_close(ours(x, y), theirs(x, y))
    torch.nn.init.normal_(ours.weight)
    theirs.load_state_dict(ours.state_dict(), strict=True)
    testing.assert_close(theirs(x, y), ours(x, y))
    converted = from_e3nn(o3.TensorProduct(*arguments(mode)))
    torch.nn.init.normal_(converted.weight)
    for module in (theirs, ours):
        module.load_state_dict(converted.state_dict(), strict=True)
        testing.assert_close(module(x, y), converted(x, y))
    torch.nn.init.normal_(theirs.weight)
    converted.load_state_dict(theirs.state_dict(), strict=True)
    testing.assert_close(converted(x, y), theirs(x, y))


def test_state_dict_of_other_settings_and_of_older_modules_loads():
    """Tables that the module does not have, or that the checkpoint does not have, are no error; unknown keys are."""
    ours = eqtp.nn.TensorProduct(*arguments("uuu"))
    more = o3.TensorProduct(*arguments("uuu"), compile_right=True, _specialized_code=False).state_dict()
    assert set(more) > set(ours.state_dict())
    ours.load_state_dict(more, strict=True)
    ours.load_state_dict({name: more[name] for name in ("weight", "output_mask")}, strict=True)
    for name in ("_compiled_main_left_right.other", "_compiled_main_left_right._w3j_1", "_compiled_other._w3j_1_1_1"):
        with pytest.raises(RuntimeError, match="Unexpected key"):
            ours.load_state_dict({**more, name: torch.zeros(3, 3, 3)}, strict=True)


def test_state_dict_of_a_copy_of_e3nn(e3nn64):
    """An uncompiled e3nn module that was copied has products of its tables, beside them: `_tensor_constant0`, ..."""
    theirs, ours = pair("uvu<v")
    torch.nn.init.normal_(theirs.weight)
    state = copy.deepcopy(theirs).state_dict()
    assert any("_tensor_constant" in name for name in state)
    ours.load_state_dict(state, strict=True)
    x, y = operands(theirs, ROWS)
    testing.assert_close(ours(x, y), theirs(x, y))


@pytest.mark.parametrize("name", ["_w3j_1_1_1", "_triu_indices_4"])
def test_other_tables_are_refused(name):
    ours = eqtp.nn.TensorProduct(*arguments("uvu<v"))
    state, key = ours.state_dict(), f"_compiled_main_left_right.{name}"
    for wrong in (-state[key], state[key][:2, :2]):
        with pytest.raises(RuntimeError, match=rf"{name} is not the coupling of e3nn >= 0\.5"):
            ours.load_state_dict({**state, key: wrong})
        with pytest.raises(RuntimeError, match=rf"{name} is not the coupling of e3nn >= 0\.5"):
            eqtp.nn.TensorProduct(*arguments("uvu")).load_state_dict({**state, key: wrong}, strict=False)


def test_state_dict_from_the_meta_device():
    with torch.device("meta"):
        ours = eqtp.nn.TensorProduct(*arguments("uvu<v"))
    expected = eqtp.nn.TensorProduct(*arguments("uvu<v")).state_dict()
    ours.load_state_dict(expected, strict=True, assign=True)
    assert all(torch.equal(t, expected[name]) for name, t in ours.state_dict().items())

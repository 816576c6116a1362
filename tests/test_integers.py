"""Integers of any kind where an op or a module takes one: NumPy's, and what else Python takes as an index; no bools."""

import operator

import numpy as np
import pytest
import torch
from every_call import PLAN, joined, tensors

import eqtp
from eqtp import testing
from eqtp.ops.coefficients import as_integer
from eqtp.ops.spherical_harmonics import parse_degrees

X1, X2, R, W = tensors([(2, 4), (2, 9), (1, 3), (2, 10)], 3)
ELEMENT = torch.tensor([0, 1, 1])
GRAPH = eqtp.Graph(torch.tensor([0, 1, 2]), torch.tensor([2, 0, 0]), 3, 3)


def layer(make):
    torch.manual_seed(0)
    return make().double()


# functions of a kind of integer
CALLS = {
    "gaunt_tensor_product": lambda n: eqtp.gaunt_tensor_product(X1, X2, n(2)),
    "matrix_tensor_product": lambda n: eqtp.matrix_tensor_product(X1, X2, n(2)),
    "cg_tensor_product": lambda n: eqtp.cg_tensor_product(X1, X2, n(2)),
    "cg_tensor_product dense": lambda n: eqtp.cg_tensor_product(X1, X2, n(2), method="dense"),
    "vector_signal_tensor_product": lambda n: eqtp.vector_signal_tensor_product(X1, X2, n(2), legs=(n(0), n(1), n(1))),
    "gaunt_many_body": lambda n: eqtp.gaunt_many_body(X1, n(2), n(3)),
    "gaunt_many_body reference": lambda n: eqtp.gaunt_many_body(X1, n(2), n(3), backend="reference"),
    "gaunt_convolution": lambda n: eqtp.gaunt_convolution(X1, R, n(2), lmax_filter=n(1)),
    "gaunt_convolution rotated": lambda n: eqtp.gaunt_convolution(X1, R, n(2), lmax_filter=n(1), method="rotated"),
    "so2_convolution": lambda n: eqtp.so2_convolution(X1, R, W, n(2)),
    "so2_weights": lambda n: eqtp.so2_weights(W[..., :9], n(1), n(2), n(2)),
    "so2_path_weights": lambda n: eqtp.so2_path_weights(W, n(1), n(2)),
    "so2_paths": lambda n: torch.tensor(eqtp.so2_paths(n(1), n(2), n(2))),
    "spherical_harmonics": lambda n: eqtp.spherical_harmonics(n(2), R, True),
    "spherical_harmonics list": lambda n: eqtp.spherical_harmonics([n(2), n(0)], R, True),
    "GauntTensorProduct": lambda n: layer(lambda: eqtp.nn.GauntTensorProduct(n(1), n(2), n(2), n(2), rank=n(2)))(
        X1, X2
    ),
    "GauntManyBody": lambda n: layer(lambda: eqtp.nn.GauntManyBody(n(1), n(2), n(2), n(3), n(2)))(X1, ELEMENT),
    "GauntConvolution": lambda n: layer(
        lambda: eqtp.nn.GauntConvolution(n(1), n(2), n(2), n(2), num_neighbors=n(5)),
    )(X1, R[:, 0], X2[..., :3], GRAPH),
    "TensorProduct": lambda n: layer(
        lambda: eqtp.nn.TensorProduct(
            [(n(2), (n(0), n(1))), (n(1), (n(1), n(-1)))],
            PLAN.irreps_in2,
            PLAN.irreps_out,
            [(n(0), n(0), n(0), "uvu", True), (n(0), n(1), n(1), "uvu", True)],
        )
    )(*tensors([(PLAN.dim_in1,), (PLAN.dim_in2,)], 3)),
    "SphericalHarmonics": lambda n: eqtp.nn.SphericalHarmonics([n(2), n(1)], True)(R),
    "expressivity": lambda n: torch.tensor(eqtp.expressivity("gaunt", n(2), n(2))),
}


@pytest.mark.parametrize("name", CALLS)
@pytest.mark.parametrize("kind", [np.int64, np.int8, np.array], ids=lambda kind: kind.__name__)
def test_kinds_of_integers(name, kind):
    testing.assert_close(joined(CALLS[name])(kind).double(), joined(CALLS[name])(int).double(), tolerance=1e-12)


def test_what_is_an_integer():
    class Index:
        def __index__(self):
            return 3

    for value in (3, np.uint8(3), np.array(3), torch.tensor(3), Index()):
        assert as_integer(value) == 3 and type(as_integer(value)) is int
    for value in (True, np.True_, 3.0, np.float64(3), np.array([1, 2]), "3", None, [3]):
        assert as_integer(value) is None
    assert operator.index(True) == 1  # which is why bools are looked for


@pytest.mark.parametrize(
    "degrees", [range(3), np.arange(3), (np.int64(0), 1, np.int8(2)), [0, 1, 2], torch.arange(3), "0e+1o+2e"], ids=repr
)
def test_kinds_of_lists_of_degrees(degrees):
    assert parse_degrees(degrees) == (0, 1, 2) and {type(l) for l in parse_degrees(degrees)} == {int}
    expected = eqtp.spherical_harmonics([0, 1, 2], R, True)
    testing.assert_close(eqtp.spherical_harmonics(degrees, R, True), expected)
    testing.assert_close(eqtp.nn.SphericalHarmonics(degrees, True)(R), expected)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: eqtp.gaunt_tensor_product(X1, X2, True), "lmax_out must be an integer, got bool"),
        (lambda: eqtp.gaunt_many_body(X1, 2, np.float64(2)), "degree must be an integer, got float64"),
        (lambda: eqtp.so2_weights(W, 1, np.True_), "lmax_out must be an integer, got bool"),
        (lambda: eqtp.nn.GauntTensorProduct(1, 1, 1, np.array([2])), "channels must be an integer, got ndarray"),
        (lambda: eqtp.spherical_harmonics(np.array([1.0]), R, True), r'Irreps: cannot read "\[1\.\]"'),
        (lambda: eqtp.spherical_harmonics([True], R, True), "Irreps: cannot read the block True"),
        (lambda: eqtp.nn.SphericalHarmonics(True, True), 'Irreps: cannot read "True"'),
        (lambda: eqtp.spherical_harmonics(np.arange(-1, 1), R, True), "l must not be negative, got -1"),
        (lambda: eqtp.vector_signal_tensor_product(X1, X2, 2, legs=(True, 0, 1)), "legs must be three of -1, 0 and 1"),
        (lambda: eqtp.vector_signal_tensor_product(X1, X2, 2, legs=2), "legs must be three of -1, 0 and 1, got 2"),
    ],
)
def test_errors(call, message):
    with pytest.raises((TypeError, ValueError), match=message):
        call()

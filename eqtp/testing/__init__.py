"""For tests, benchmarks and users' own tests: checks of an op (`checks`) and the shapes of published models
(`problems`)."""

from eqtp.testing.checks import (
    DENSE_ROWS,
    ROWS_PER_SLOT,
    TOLERANCE,
    Block,
    Case,
    assert_close,
    assert_equivariant,
    check_op,
    check_tensor_product,
    check_tensor_product_conv,
    conv_case,
    derivatives,
    poisoned,
    random,
    random_rotation,
    relative_error,
    representation,
    rows_case,
)

__all__ = [
    "DENSE_ROWS",
    "ROWS_PER_SLOT",
    "TOLERANCE",
    "Block",
    "Case",
    "assert_close",
    "assert_equivariant",
    "check_op",
    "check_tensor_product",
    "check_tensor_product_conv",
    "conv_case",
    "derivatives",
    "poisoned",
    "random",
    "random_rotation",
    "relative_error",
    "representation",
    "rows_case",
]

"""Floating-point operations and bytes of a tensor product per row (edge): a lower bound for every kernel."""

from __future__ import annotations

from functools import cache

from eqtp.math.so3 import wigner_3j

PASSES = ("fwd", "bwd", "bwdbwd")


@cache
def nonzeros(l1: int, l2: int, l3: int) -> tuple[int, int]:
    """Number of non-zero (i, j, k) of the coupling of three degrees, and of distinct (i, k) among them."""
    nonzero = wigner_3j(l1, l2, l3) != 0
    return int(nonzero.sum()), int(nonzero.any(axis=1).sum())


def path_flops(path, pass_: str) -> int:
    """Operations of one `eqtp.plans.plan.Path` in a channelwise kernel; a multiply-add counts 2.

    Per channel of x2: M[i, k] = sum_j C[i, j, k] x2[j]. Per pair of channels: products with M, then the
    weight. fwd: M; one product. bwd: M; one product with gy (gives gx1, and gw by a dot product); the outer
    product of x1 and gy, contracted with C for gx2; a mixing weight needs the forward product again. bwdbwd:
    M of x2 and of its cotangent; three products for ggy, two for gx1, one outer product for gx2. A weight
    costs one multiplication per component of the smaller side, unless it mixes the output channels: then it
    is a matrix product.
    """
    nnz, nnz_ik = nonzeros(path.l1, path.l2, path.l3)
    if path.num_pairs == 0 or path.mul3 == 0:
        return 0
    weight = min(2 * path.l1 + 1, 2 * path.l3 + 1)
    if not path.has_weight:
        products, weights = (1, 2, 4), (0, 0, 0)
    elif path.mixes:
        products, weights = (1, 3, 6), (1, 2, 5)
        weight = 2 * path.mul3 * (2 * path.l3 + 1)
    else:
        products, weights = (1, 2, 6), (1, 4, 8)
    n = PASSES.index(pass_)
    return 2 * nnz * path.mul2 * (n + 1) + path.num_pairs * (2 * nnz_ik * products[n] + weight * weights[n])


def row_bytes(num_inputs: int, num_outputs: int, pass_: str, itemsize: int) -> int:
    """Every operand read and every result written once; ``num_inputs`` counts x1, x2 and w."""
    inputs, outputs = {"fwd": (1, 1), "bwd": (2, 1), "bwdbwd": (3, 2)}[pass_]
    return itemsize * (inputs * num_inputs + outputs * num_outputs)

"""Products of functions on the sphere as data: which values are multiplied at each point of a grid. No torch here.

A `SignalProgram` transforms its inputs, sets of spherical-harmonic coefficients, to values on a grid, sums products of
values at every point, and transforms each sum back. The Gaunt product, its odd half (the bracket), the cross product of
vector signals, powers, and all derivatives of these are programs on a grid that is exact for them, so a family of
kernels need only run programs.

Derivatives. Phi = <g, a b> = integral of g a b is symmetric in its operands, so the gradient by a is the product of b
and g. The bracket {a, b} = r . (grad a x grad b) is antisymmetric in all three: integral of g {a, b} =
integral of a {b, g} = integral of b {g, a}.
"""

from __future__ import annotations

from functools import lru_cache
from math import perm
from typing import NamedTuple

from eqtp.math import sphere

VALUE, DOWN, EAST = range(3)  # fields of an input: f, df / dbeta, df / dalpha / sin(beta)


class Term(NamedTuple):
    """A coefficient times a product of fields."""

    coefficient: float
    factors: tuple[tuple[int, int], ...]  # (input, field), at least one


class SignalProgram(NamedTuple):
    """Output o = projection, to degree lmax_out[o], of the sum of terms[o] at the points of the folded grid of `rows` x
    `columns` (`eqtp.math.sphere`)."""

    lmax_in: tuple[int, ...]
    lmax_out: tuple[int, ...]
    rows: int
    columns: int
    terms: tuple[tuple[Term, ...], ...]  # of each output

    def fields(self, n: int) -> tuple[int, ...]:
        """The fields of input n that the terms use, in order."""
        return tuple(sorted({field for terms in self.terms for t in terms for i, field in t.factors if i == n}))


# (output signal, signal of x1, signal of x2, sign, whether it is the bracket of the two)
KINDS = {
    "product": ((0, 0, 0, 1, False),),
    "odd": ((0, 0, 0, 1, False), (1, 0, 0, 1, True)),
    "cross": tuple((o, (o + s) % 3, (o - s) % 3, s, False) for o in range(3) for s in (1, -1)),
}
SIGNALS = {"product": (1, 1, 1), "odd": (1, 1, 2), "cross": (3, 3, 3)}  # of x1, x2 and the output
OPERANDS = {"fwd": 2, "bwd": 3, "bwdbwd": 5}  # of x1, x2, g and the cotangents of the gradients of x1 and x2
OUTPUTS = {"fwd": (2,), "bwd": (0, 1), "bwdbwd": (2, 0, 1)}  # the operand whose gradient it is; 2 for the product


def _pair(a: int, b: int, sign: int, bracket: bool) -> list[Term]:
    if not bracket:
        return [Term(sign, ((a, VALUE), (b, VALUE)))]
    return [Term(sign, ((a, DOWN), (b, EAST))), Term(-sign, ((a, EAST), (b, DOWN)))]


def forms(kind: str, pass_: str):
    """The bilinear terms of every output: {(operand, signal): [(a, b, sign, bracket)]}, a and b (operand, signal).

    Operands 0..4 are x1, x2, then g (bwd), then the cotangents c1, c2 of the gradients of x1 and x2 (bwdbwd). An output
    is named by the operand whose gradient it is; the product itself is 2, being the gradient of g.
    """
    found: dict[tuple[int, int], list] = {}

    def add(out, a, b, sign, bracket):
        found.setdefault(out, []).append((a, b, sign, bracket))

    for o, a, b, sign, bracket in KINDS[kind]:
        if pass_ == "fwd":
            add((2, o), (0, a), (1, b), sign, bracket)
        elif pass_ == "bwd":
            add((0, a), (1, b), (2, o), sign, bracket)
            add((1, b), (2, o), (0, a), sign, bracket)
        else:  # of <g, c1 x2> + <g, x1 c2>
            add((2, o), (3, a), (1, b), sign, bracket)
            add((2, o), (0, a), (4, b), sign, bracket)
            add((0, a), (4, b), (2, o), sign, bracket)
            add((1, b), (2, o), (3, a), sign, bracket)
    return found


def signal_counts(kind: str, pass_: str, wanted: tuple[bool, ...]) -> tuple[list[int], list[int]]:
    """Number of signals of each of the five operands, and the wanted outputs of a pass, as in OUTPUTS."""
    return [*SIGNALS[kind], *SIGNALS[kind][:2]], [o for o, w in zip(OUTPUTS[pass_], wanted, strict=True) if w]


@lru_cache(maxsize=1024)
def product(kind: str, lmax1: int, lmax2: int, lmax_out: int, pass_: str, wanted: tuple[bool, ...]) -> SignalProgram:
    """The program of a pass ("fwd", "bwd", "bwdbwd") of the product of two operands.

    Inputs: the signals of x1, x2 [, g [, c1, c2]], concatenated. Outputs: the signals of the product (fwd), or of the
    wanted gradients: of x1 and x2 (bwd), of g, x1 and x2 (bwdbwd).
    """
    degree, operands = (lmax1, lmax2, lmax_out, lmax1, lmax2), OPERANDS[pass_]
    count, outputs = signal_counts(kind, pass_, wanted)
    start = [sum(count[:n]) for n in range(operands)]
    pairs = forms(kind, pass_)
    terms = [
        tuple(
            t for (i, a), (j, b), sign, bracket in pairs[o, s] for t in _pair(start[i] + a, start[j] + b, sign, bracket)
        )
        for o in outputs
        for s in range(count[o])
    ]
    lmax_in = tuple(degree[n] for n in range(operands) for _ in range(count[n]))
    return SignalProgram(
        lmax_in,
        tuple(degree[o] for o in outputs for _ in range(count[o])),
        *sphere.folded_size(lmax1 + lmax2 + lmax_out),
        tuple(terms),
    )


@lru_cache(maxsize=1024)
def powers(lmax: int, lmax_out: int, degree: int, tangents: int) -> SignalProgram:
    """Derivatives of f, f^2 .. f^degree along some tangents. Inputs: f and the tangents, all of degree lmax.

    Output n: n! / (n - tangents)! f^(n - tangents) times the tangents.
    """
    along = tuple((1 + t, VALUE) for t in range(tangents))
    terms = tuple(_power(n, tangents, along) for n in range(1, degree + 1))
    return SignalProgram(
        (lmax,) * (1 + tangents), (lmax_out,) * degree, *sphere.folded_size(degree * lmax + lmax_out), terms
    )


@lru_cache(maxsize=1024)
def powers_adjoint(lmax: int, lmax_out: int, degree: int, tangents: int) -> SignalProgram:
    """Gradient by one more tangent of <g, powers(.., tangents + 1)>. Inputs: f, the tangents, and g for each power; one
    output, of degree lmax."""
    along = tuple((1 + t, VALUE) for t in range(tangents))
    terms = [t for n in range(1, degree + 1) for t in _power(n, tangents + 1, (*along, (tangents + n, VALUE)))]
    return SignalProgram(
        (lmax,) * (1 + tangents) + (lmax_out,) * degree,
        (lmax,),
        *sphere.folded_size(degree * lmax + lmax_out),
        (tuple(terms),),
    )


def _power(n: int, derivatives: int, factors: tuple[tuple[int, int], ...]) -> tuple[Term, ...]:
    if n < derivatives:
        return ()
    return (Term(float(perm(n, derivatives)), ((0, VALUE),) * (n - derivatives) + factors),)

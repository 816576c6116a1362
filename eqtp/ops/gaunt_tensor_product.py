"""Gaunt product: spherical-harmonic coefficients of the pointwise product of two functions on the sphere.

    f(r) = sum over l, m of x[l, m] Y_lm(r)              out[l, m] = integral of f1 f2 Y_lm
    bracket[l, m] = integral of r . (grad f1 x grad f2) Y_lm

    f1 f2:   coefficients gaunt(l1, l2, l3), the paths with l1 + l2 + l3 even;   bracket: `eqtp.math.sphere.bracket`,
             those with an odd sum.

Three routes to the same numbers: a table of the couplings (`sparse`), values at the points of a folded grid (`grid`),
or a Fourier series on the torus that covers the sphere twice (`fourier`). The tables are in `eqtp.math.sphere`, where
the symmetries they use are explained. The first two have kernels, which run the tables and programs of
`eqtp.plans.couplings` and `eqtp.plans.signals`, derivatives too; here all three are in plain torch.

Source: Luo, Chen, Krishnapriyan, ICLR 2024 (Gaunt product, Fourier); Xie et al., 2506.13523 (grid); 2605.15073
(bracket).
"""

from __future__ import annotations

from math import prod

import torch

from eqtp.backends import registry as backends
from eqtp.math import sphere as tables
from eqtp.ops.autograd import passes, register_multilinear
from eqtp.ops.constants import constants
from eqtp.plans import couplings, signals

METHODS = ("sparse", "grid", "fourier")
# method="auto" takes the table where both degrees are at most the first number, or one of them at most the second; else
# the grid. Source: for native `python -m bench products --rule` (AMD EPYC with AVX-512, one thread, batch 1,000, 1 and
# 32 channels, forward and with backward), for reference a timing of this plain torch code; for families not named here
# (those of GPUs) nothing was timed yet: as the reference.
AUTO = {"native": (3, 1), "reference": (2, 0)}
# fourier: terms of the convolution of two series up to which it is summed directly, without FFT; timed likewise
DIRECT_TERMS = 100


def degree_of(x: torch.Tensor) -> int:
    """lmax of [..., (lmax+1)^2], or the largest with at most that many. By comparisons: torch.compile understands them
    for sizes that may change."""
    lmax = 0
    while (lmax + 2) ** 2 <= x.shape[-1]:
        lmax += 1
    return lmax


def _padded(x: torch.Tensor, index: torch.Tensor) -> torch.Tensor:
    """x [..., n], index [...] with n where a zero is wanted -> [..., *index.shape]"""
    return torch.nn.functional.pad(x, (0, 1))[..., index]


# sparse: the table, here as a matrix for the outer product


def sparse(x1: torch.Tensor, x2: torch.Tensor, lmax_out: int, odd: bool) -> tuple[torch.Tensor, ...]:
    """By the table of couplings. Arguments as of `grid`."""
    pairs = (x1.unsqueeze(-1) * x2.unsqueeze(-2)).flatten(-2)  # [..., (lmax1+1)^2 (lmax2+1)^2]

    def matrix(odd):
        return constants("coupling", degree_of(x1), degree_of(x2), lmax_out, odd, like=x1).flatten(0, 1)

    return tuple(pairs @ matrix(half) for half in ((False, True) if odd else (False,)))


# grid: the batch comes last, so that what the eight kinds of components share are rows of matrices


def by_kind(x: torch.Tensor, octant: tables.Octant) -> torch.Tensor:
    """[b, (lmax+1)^2] -> [8, N, b]"""
    return torch.nn.functional.pad(x.mT, (0, 0, 0, 1))[octant.take]


def butterflies(t: torch.Tensor) -> torch.Tensor:
    """[8, P, b], kinds -> images or back"""
    return (constants("hadamard", like=t) @ t.flatten(1)).view_as(t)


def project(values: torch.Tensor, octant: tables.Octant) -> torch.Tensor:
    """Values at the images of the octant [8, P, b] -> components [b, (lmax+1)^2]"""
    return (octant.projection @ butterflies(values)).flatten(0, 1)[octant.place].mT


def grid(x1: torch.Tensor, x2: torch.Tensor, lmax_out: int, odd: bool) -> tuple[torch.Tensor, ...]:
    """By values on a folded grid. x1 [..., (lmax1+1)^2], x2 [..., (lmax2+1)^2] -> (product,) or (product, bracket),
    [..., (lmax_out+1)^2]."""
    size = tables.folded_size(degree_of(x1) + degree_of(x2) + lmax_out)
    lead = torch.broadcast_shapes(x1.shape[:-1], x2.shape[:-1])
    flip_y, flip_x = (torch.arange(8, device=x1.device) ^ bit for bit in (1, 4))
    fields = []
    for x in (x1, x2):
        t = constants("octant", degree_of(x), *size, like=x1)
        shape = (1,) * (len(lead) - x.ndim + 1) + x.shape[:-1]  # of as many dimensions as the result
        kinds = by_kind(x.reshape(-1, x.shape[-1]), t)
        parts = [t.values @ kinds]
        if odd:  # d/dbeta and d/dalpha / sin(beta)
            parts += [t.down @ kinds[flip_y], t.east @ kinds[flip_x]]
        fields.append([butterflies(part).view(*part.shape[:2], *shape) for part in parts])
    f, g = fields
    values = [f[0] * g[0]]  # [8, P, *lead]
    if odd:
        values.append(f[1] * g[2] - f[2] * g[1])
    out = constants("octant", lmax_out, *size, like=x1)
    return tuple(project(v.reshape(*v.shape[:2], prod(lead)), out).view(*lead, (lmax_out + 1) ** 2) for v in values)


# fourier


def _in_blocks(x: torch.Tensor) -> torch.Tensor:
    """[..., (lmax+1)^2] -> [..., 2, M, 2, K]"""
    return _padded(x, constants("blocks", degree_of(x), like=x).take)


def _series(x: torch.Tensor, count: int, odd: bool) -> list[torch.Tensor]:
    """Half spectrum [..., count (u), lmax+1 (v >= 0)] of f, and (odd) of its derivatives by beta and alpha."""
    lmax = degree_of(x)
    parts = torch.einsum("...xmyk,mykq->...xmyq", _in_blocks(x), constants("to_fourier", lmax, like=x)).flatten(-3)
    s = constants("spectrum", lmax, count, like=x)
    c, minus = parts[..., s.places].unbind(-3)
    f = torch.complex(c, -minus) * s.phases
    return [f, f * s.down, f * s.east] if odd else [f]


def _from_series(c: torch.Tensor, lmax: int, shift: int) -> torch.Tensor:
    """[..., umax+1, lmax+1] -> components [..., (lmax+1)^2]; shift 1: of the bracket times sin(beta)."""
    umax = c.shape[-2] - 1
    like = c.real
    g = constants("series", lmax, umax, shift, like=like)
    c = c * g.factor
    waves = _padded(torch.stack((c.real, -c.imag), -3).flatten(-2), g.places)  # [..., 2, M, 2, umax // 2 + 1]
    x = torch.einsum("...xmyq,mykq->...xmyk", waves, constants("from_fourier", lmax, umax, shift, like=like))
    return x.flatten(-4)[..., constants("blocks", lmax, like=like).place]


def _both_sides(c: torch.Tensor) -> torch.Tensor:
    """Half spectrum of a real function [..., 2 lmax+1 (u as in an FFT), lmax+1] -> [..., (2 lmax+1) (2 lmax+1)], v from
    -lmax."""
    other = c[..., 1:].flip((-2, -1)).roll(1, -2).conj()  # at -u, -v
    return torch.cat((other, c), -1).flatten(-2)


def _direct(c1: torch.Tensor, c2: torch.Tensor, lmax_out: int) -> torch.Tensor:
    lmax1, lmax2 = c1.shape[-1] - 1, c2.shape[-1] - 1
    shifts = constants("shifts", lmax1, lmax2, lmax_out, like=c1.real)
    met = _padded(_both_sides(c2), shifts)  # [..., (lmax1+lmax2+1) (lmax_out+1), (2 lmax1+1)^2]
    return (met * _both_sides(c1).unsqueeze(-2)).sum(-1).unflatten(-1, (-1, lmax_out + 1))


def _length(n: int) -> int:
    """The smallest length >= n without a prime factor above 5."""
    while True:
        rest = n
        for p in (2, 3, 5):
            while rest % p == 0:
                rest //= p
        if rest == 1:
            return n
        n += 1


def fourier(x1: torch.Tensor, x2: torch.Tensor, lmax_out: int, odd: bool) -> tuple[torch.Tensor, ...]:
    """By a double Fourier series, convolved directly or by FFT. Arguments as of `grid`."""
    lmax1, lmax2 = degree_of(x1), degree_of(x2)
    umax = lmax1 + lmax2
    empty = 0 in (x1.numel(), x2.numel())  # which MKL does not transform
    if empty or (umax + 1) * (lmax_out + 1) * (2 * lmax1 + 1) ** 2 <= DIRECT_TERMS:
        c1, c2 = (_series(x, 2 * degree_of(x) + 1, odd) for x in (x1, x2))

        def product(a, b):
            return _direct(c1[a], c2[b], lmax_out)

        def spectrum(c):
            return c
    else:  # all frequencies in beta are kept, the projection needs them; in alpha those above lmax_out may alias
        size = _length(2 * umax + 1), _length(umax + lmax_out + 1)
        f1, f2 = ([torch.fft.irfft2(c, size, norm="forward") for c in _series(x, size[0], odd)] for x in (x1, x2))

        def product(a, b):
            return f1[a] * f2[b]

        def spectrum(f):
            return torch.fft.rfft2(f, norm="forward")[..., : umax + 1, : lmax_out + 1]

    even = _from_series(spectrum(product(0, 0)), lmax_out, 0)
    return (even, _from_series(spectrum(product(1, 2) - product(2, 1)), lmax_out, 1)) if odd else (even,)


ROUTES = {"sparse": sparse, "grid": grid, "fourier": fourier}


def _crossed(route, x1: torch.Tensor, x2: torch.Tensor, lmax_out: int) -> torch.Tensor:
    """x1 [..., 3, (lmax1+1)^2], x2 [..., 3, (lmax2+1)^2] -> their cross product at every point, [..., 3,
    (lmax_out+1)^2]"""
    up, down = [1, 2, 0], [2, 0, 1]
    return (
        route(x1[..., up, :], x2[..., down, :], lmax_out, False)[0]
        - route(x1[..., down, :], x2[..., up, :], lmax_out, False)[0]
    )


# kernels: operands [b, c, signals, n], where a signal is a function on the sphere (`eqtp.plans.signals.SIGNALS`)


def lined(t: torch.Tensor) -> torch.Tensor:
    """The tensor with contiguous numbers in its last dimension; the other strides are free."""
    return t if t.shape[-1] == 1 or t.stride(-1) == 1 else t.contiguous()


def leading(*operands: torch.Tensor) -> torch.Size:
    """What the dimensions before the last broadcast to."""
    shapes = [t.shape[:-1] for t in operands]
    alike = all(
        len(shape) == len(shapes[0]) and shape == shapes[0] for shape in shapes[1:]
    )  # lengths first: what differs in them is not compared
    return shapes[0] if alike else torch.broadcast_shapes(*shapes)  # which is slow


def rows(*operands: torch.Tensor) -> list[torch.Tensor]:
    """Tensors [..., n] with leading dimensions that broadcast -> [b, c, n] each, the same b and c; what is shared by
    rows is not copied if it is shared by all of b or of c."""
    lead = leading(*operands)
    size = (prod(lead[:-1]), lead[-1]) if len(lead) > 1 else (*lead, *(1,) * (2 - len(lead)))
    return [(t if t.shape[:-1] == lead else t.expand(*lead, t.shape[-1])).reshape(*size, t.shape[-1]) for t in operands]


def _run(pass_: str, operands, outputs, lmax_out: int, kind: str, method: str, family: str) -> None:
    degrees = degree_of(operands[0]), degree_of(operands[1]), lmax_out
    wanted = tuple(t is not None for t in outputs)
    if not any(wanted):
        return
    inputs = [s for t in operands for s in lined(t).unbind(-2)]
    outputs = [s for t in outputs if t is not None for s in t.unbind(-2)]
    kernels, data = backends.family(family), (kind, *degrees, pass_, wanted)
    if method == "sparse":
        kernels.couple(couplings.gaunt(*data), inputs, outputs)
    else:
        kernels.signals(signals.product(*data), inputs, outputs)


def _fake(x1, x2, lmax_out, kind, method, family):
    return x1.new_empty(*x1.shape[:2], signals.SIGNALS[kind][2], (lmax_out + 1) ** 2)


_op = register_multilinear(
    "gaunt_tensor_product",
    ("x1", "x2"),
    "int lmax_out, str kind, str method, str family",
    *passes(2, _run, _fake),
    _fake,
)


def choose(op: str, method: str, backend: str, degrees: tuple[int, int], x: torch.Tensor) -> tuple[str, str]:
    """Checks a method and a backend; returns the method and the family that run for x1 and x2 of these degrees."""
    if method not in (*METHODS, "auto"):
        raise ValueError(f"{op}: method must be one of auto, {', '.join(METHODS)}, got {method!r}")
    if method == "fourier":
        if backends.resolve(backend, op, None, x.device, x.dtype) != "reference" and backend not in (
            "auto",
            "reference",
        ):
            raise RuntimeError(
                f"{op}: there are no kernels for the method 'fourier'; it is plain torch, backend 'reference'"
            )
        return method, "reference"
    family = backends.resolve(backend, op, None, x.device, x.dtype)
    if method == "auto":
        both, one = AUTO.get(family, AUTO["reference"])
        method = "sparse" if max(degrees) <= both or min(degrees) <= one else "grid"
    return method, family


def single(*tensors: torch.Tensor | None) -> list[torch.Tensor | None]:
    """Half precision as float32, in which it is calculated; None and other dtypes as they are."""
    return [t.float() if t is not None and t.dtype in (torch.float16, torch.bfloat16) else t for t in tensors]


def for_kernels(x: torch.Tensor, *others: torch.Tensor | None) -> list[torch.Tensor | None]:
    """What kernels are given: on the CPU no half precision; those of GPUs read it themselves."""
    return single(x, *others) if x.device.type == "cpu" else [x, *others]


# public functions


def lmax_of(op: str, name: str, x) -> int:
    """Checks that x is a tensor of coefficients [..., (lmax+1)^2]; returns lmax."""
    if not isinstance(x, torch.Tensor):
        raise TypeError(f"{op}: {name} must be a tensor, got {type(x).__name__}")
    if not x.is_floating_point():
        raise TypeError(f"{op}: {name} must be floating point, got {x.dtype}")
    n = x.shape[-1] if x.ndim else 0
    if n < 1 or (degree_of(x) + 1) ** 2 != n:
        raise ValueError(f"{op}: {name} must be [..., (lmax+1)^2], got {list(x.shape)}")
    return degree_of(x)


def check_natural(op: str, name: str, value, least: int = 0) -> int:
    """Raises TypeError or ValueError unless the value is an integer of at least `least`."""
    if not isinstance(value, int) or isinstance(value, bool):
        raise TypeError(f"{op}: {name} must be an integer, got {type(value).__name__}")
    if value < least:
        raise ValueError(f"{op}: {name} must be at least {least}, got {value}")
    return value


def check_alike(op: str, given: dict[str, torch.Tensor]) -> None:
    """Checks that tensors, by the names of their arguments, have the dtype and device of the first, and leading
    dimensions that broadcast."""
    (first, like), *_ = given.items()
    for name, t in given.items():
        if t.dtype != like.dtype:
            raise TypeError(f"{op}: {name} must have the dtype of {first}, {like.dtype}, got {t.dtype}")
        if t.device != like.device:
            raise ValueError(f"{op}: {name} must be on the device of {first}, {like.device}, got {t.device}")
    try:
        leading(*given.values())
    except RuntimeError:
        shapes = ", ".join(f"{name} {list(t.shape)}" for name, t in given.items())
        raise ValueError(f"{op}: the leading dimensions do not broadcast: {shapes}") from None


def check_operands(op: str, x1, x2, lmax_out: int, w1, w2, w3) -> tuple[int, int]:
    """Checks the operands of a product of two functions for `op`; returns lmax1 and lmax2."""
    lmax1, lmax2 = lmax_of(op, "x1", x1), lmax_of(op, "x2", x2)
    check_natural(op, "lmax_out", lmax_out)
    for name, w, degree in (("w1", w1, lmax1), ("w2", w2, lmax2), ("w3", w3, lmax_out)):
        if w is not None and not isinstance(w, torch.Tensor):
            raise TypeError(f"{op}: {name} must be a tensor or None, got {type(w).__name__}")
        if w is not None and (w.ndim == 0 or w.shape[-1] != degree + 1):
            raise ValueError(f"{op}: {name} must be [..., {degree + 1}], got {list(w.shape)}")
    given = {name: t for name, t in (("x1", x1), ("x2", x2), ("w1", w1), ("w2", w2), ("w3", w3)) if t is not None}
    check_alike(op, given)
    return lmax1, lmax2


def scaled(x: torch.Tensor, w: torch.Tensor | None) -> torch.Tensor:
    """x [..., (lmax+1)^2] times w [..., lmax+1], degree by degree."""
    if w is None:
        return x
    degree = torch.arange(w.shape[-1], device=w.device)
    return x * w.repeat_interleave(2 * degree + 1, -1, output_size=x.shape[-1])


def widened(x: torch.Tensor, lmax: int) -> torch.Tensor:
    """[..., n] -> [..., (lmax+1)^2], zeros after the n components there are."""
    more = (lmax + 1) ** 2 - x.shape[-1]
    return torch.nn.functional.pad(x, (0, more)) if more else x


def gaunt_tensor_product(
    x1: torch.Tensor,
    x2: torch.Tensor,
    lmax_out: int,
    *,
    method: str = "auto",
    w1: torch.Tensor | None = None,
    w2: torch.Tensor | None = None,
    w3: torch.Tensor | None = None,
    odd: bool = False,
    backend: str = "auto",
) -> torch.Tensor | tuple[torch.Tensor, torch.Tensor]:
    """Coefficients of the pointwise product of two functions on the sphere.

    x1: [..., (lmax1+1)^2], x2: [..., (lmax2+1)^2] real spherical-harmonic coefficients in e3nn's order, normalization
    "integral"; leading dimensions (batch, channels) broadcast. lmax_out: the result is cut there, or filled with zeros.
    w1 [..., lmax1+1], w2 [..., lmax2+1], w3 [..., lmax_out+1] scale each degree of x1, x2 and of what is returned.
    method: "sparse", "grid", "fourier" or "auto": the same numbers. Returns [..., (lmax_out+1)^2]; with odd=True the
    pair (product, bracket), bracket = r . (grad f1 x grad f2): the paths with l1 + l2 + l3 odd, which a plain Gaunt
    product lacks. Both are exact (no aliasing). Half precision is calculated in float32.

    O(3): inputs with parities p (-1)^l and q (-1)^l (p, q = 1 for a function of the direction) give a product with p q
    (-1)^l and a bracket with -p q (-1)^l. For l = 1 x 1 -> 1 the bracket is sqrt(3 / 4 pi) times the cross product.

    Differentiable to every order. Raises TypeError or ValueError, naming the argument; RuntimeError for a backend
    without kernels for this.
    """
    op = "gaunt_tensor_product"
    lmax1, lmax2 = check_operands(op, x1, x2, lmax_out, w1, w2, w3)
    dtype = x1.dtype
    x1, x2, w1, w2, w3 = for_kernels(x1, x2, w1, w2, w3)
    method, family = choose(op, method, backend, (lmax1, lmax2), x1)
    if family == "reference":
        x1, x2, w1, w2, w3 = single(x1, x2, w1, w2, w3)
    x1, x2, reach = scaled(x1, w1), scaled(x2, w2), min(lmax_out, lmax1 + lmax2)
    if family == "reference":
        out = ROUTES[method](x1, x2, reach, odd)
    else:
        lead = leading(x1, x2)
        both = _op(*(t.unsqueeze(-2) for t in rows(x1, x2)), reach, "odd" if odd else "product", method, family)
        out = both.reshape(*lead, 1 + odd, both.shape[-1]).unbind(-2)
    out = tuple(scaled(widened(t, lmax_out), w3).to(dtype) for t in out)
    return out if odd else out[0]


def cross_signals(
    x1: torch.Tensor, x2: torch.Tensor, lmax_out: int, method: str, backend: str, op: str
) -> torch.Tensor:
    """Cross product, at every point, of vector signals in Cartesian components, for `op`: x1 [..., 3, (lmax1+1)^2], x2
    [..., 3, (lmax2+1)^2] -> [..., 3, (lmax_out+1)^2], lmax_out at most lmax1 + lmax2."""
    method, family = choose(op, method, backend, (degree_of(x1), degree_of(x2)), x1)
    if family == "reference":
        return _crossed(ROUTES[method], x1, x2, lmax_out)
    lead = torch.broadcast_shapes(x1.shape[:-2], x2.shape[:-2])
    vectors = [t.unflatten(-1, (3, -1)) for t in rows(x1.flatten(-2), x2.flatten(-2))]
    out = _op(*vectors, lmax_out, "cross", method, family)
    return out.reshape(*lead, 3, out.shape[-1])

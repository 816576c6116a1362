"""Products of Price of Freedom's own code (JAX), run from a checkout of github.com/atomicarchitects/PriceofFreedom that
the user names; nothing of it is in this repository. As its own benchmark calls them: s2 irreps, a Gauss-Legendre grid
of (2 l + 1) x (4 l + 2) points, compiled, on the CPU. With one thread JAX is asked for one too (XLA_FLAGS; `taskset -c
0 python -m bench products ...` leaves it no other).
"""

from __future__ import annotations

import contextlib
import importlib
import importlib.metadata
import os
import sys
from functools import cache
from math import pi, sqrt
from pathlib import Path

import torch

from bench.harness import Missing

FUNCTIONS = {
    "pof-grid": "gaunt_tensor_product_s2grid",
    "pof-cg-dense": "clebsch_gordan_tensor_product_dense",
    "pof-cg-sparse": "clebsch_gordan_tensor_product_sparse",
    "pof-matrix": "matrix_tensor_product",
}


def versions() -> dict[str, str]:
    """Installed versions of what it stands on."""
    found = {}
    for name in ("jax", "e3nn-jax"):
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            found[name] = importlib.metadata.version(name)
    return found


@cache
def load(checkout: str | None):
    """Its module of functions, jax and e3nn_jax; raises Missing with what is not there."""
    if checkout is None:
        raise Missing("give the checkout of github.com/atomicarchitects/PriceofFreedom: --pof PATH")
    if not (Path(checkout) / "freedom" / "tensor_products" / "functional.py").exists():
        raise Missing(f"{checkout} is no checkout of PriceofFreedom: it has no freedom/tensor_products/functional.py")
    if torch.get_num_threads() == 1:  # read when jax starts
        os.environ.setdefault("XLA_FLAGS", "--xla_cpu_multi_thread_eigen=false")
    try:
        jax, e3nn = importlib.import_module("jax"), importlib.import_module("e3nn_jax")
    except ImportError as error:
        raise Missing(f"pip install jax e3nn-jax flax: {error}") from None
    jax.config.update("jax_platforms", "cpu")
    sys.path.insert(0, str(checkout))
    try:
        return importlib.import_module("freedom.tensor_products.functional"), jax, e3nn
    except ImportError as error:
        raise Missing(f"PriceofFreedom could not be imported: {error}") from None
    finally:
        sys.path.remove(str(checkout))


def method(name: str, problem, dtype: torch.dtype, checkout: str | None) -> dict:
    """The fields of `product_methods.Method`. Raises Missing."""
    functional, jax, e3nn = load(checkout)
    if dtype == torch.float64:
        jax.config.update("jax_enable_x64", True)

    def irreps(degrees):
        return e3nn.Irreps([(1, (l, (-1) ** l)) for l in degrees])

    product = getattr(functional, FUNCTIONS[name])
    if name == "pof-matrix":
        options = {"irrep_normalization": "norm"}
    else:
        options = {"filter_ir_out": irreps(problem.degrees_out)}
        size = {
            "res_beta": 2 * problem.l + 1,
            "res_alpha": 2 * (2 * problem.l + 1),
            "quadrature": "gausslegendre",
            "p_val1": 1,
            "p_val2": 1,
        }
        options |= size if name == "pof-grid" else {"irrep_normalization": "norm"}

    columns = problem.components(problem.degrees_in)

    def pack(x):
        return e3nn.IrrepsArray(irreps(problem.degrees_in), jax.numpy.asarray(x[..., columns].numpy()))

    call = jax.jit(lambda x1, x2: product(x1, x2, **options).array)

    def backward(x1, x2, g):
        out, pull = jax.vjp(call, x1, x2)
        return out, *(t.array for t in pull(g))

    def timed(x1, x2, pass_):
        a, b = pack(x1), pack(x2)
        if pass_ == "fwd":
            return lambda: call(a, b).block_until_ready()
        if pass_ != "bwd":
            raise Missing("second derivatives of this code are not timed")
        g, both = jax.numpy.ones_like(call(a, b)), jax.jit(backward)
        return lambda: jax.block_until_ready(both(a, b, g))

    scale = sqrt(4 * pi) if name == "pof-grid" else 1.0  # of its signals on the sphere

    def unpack(out):
        return torch.tensor(jax.device_get(out)) / scale

    return {"call": call, "pack": pack, "unpack": unpack, "timed": timed}

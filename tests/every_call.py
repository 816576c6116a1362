"""A small call of every op by every route on a CPU, and of every module: what the tests of torch's machinery run."""

import torch

import eqtp
from eqtp import testing
from eqtp.plans.plan import TensorProductPlan

PLAN = TensorProductPlan("2x0e+1o", "0e+1o", "2x0e+2x1o", [(0, 0, 0, "uvu", True), (0, 1, 1, "uvu", True)])
ROWS = (PLAN.dim_in1,), (PLAN.dim_in2,), (PLAN.weight_numel,)
X1, X2 = (2, 4), (1, 9)  # two channels of degrees 0, 1, and one of degrees 0, 1, 2
FAMILIES = ("native", "reference")


def product(op, **options):
    """A product of X1 and X2; of a pair of outputs, both."""

    def call(x1, x2, *w):
        out = op(x1, x2, 2, *w, **options)
        return torch.cat(out, -1) if isinstance(out, tuple) else out

    return call


def _products():
    for family in FAMILIES:
        for method in ("sparse", "grid"):
            options = {"method": method, "backend": family}
            yield f"gaunt_tensor_product {method} {family}", product(eqtp.gaunt_tensor_product, odd=True, **options)
            yield (
                f"vector_signal_tensor_product {method} {family}",
                product(eqtp.vector_signal_tensor_product, **options),
            )
        yield f"matrix_tensor_product {family}", product(eqtp.matrix_tensor_product, split=True, backend=family)
    yield "gaunt_tensor_product fourier", product(eqtp.gaunt_tensor_product, method="fourier", odd=True)
    yield "gaunt_tensor_product fft", lambda x1, x2: eqtp.gaunt_tensor_product(x2, x2, 4, method="fourier")
    yield "vector_signal_tensor_product fourier", product(eqtp.vector_signal_tensor_product, method="fourier")


def _ops():
    """name -> (function, shapes of its inputs without the first dimension)"""
    ops = {name: (call, (X1, X2)) for name, call in _products()}
    for f in FAMILIES:
        ops |= {
            f"spherical_harmonics {f}": (
                lambda r, f=f: eqtp.spherical_harmonics([2, 0, 1], r, True, "norm", f),
                [(2, 3)],
            ),
            f"tensor_product {f}": (lambda x1, x2, w, f=f: eqtp.tensor_product(x1, x2, w, PLAN, f), ROWS),
            f"gaunt_many_body {f}": (lambda x, f=f: eqtp.gaunt_many_body(x, 2, 3, backend=f), [X1]),
        }
    for method in ("dense", "sparse"):
        ops[f"cg_tensor_product {method}"] = product(eqtp.cg_tensor_product, method=method), (X1, X2, (2, 9))
    for method in ("product", "rotated"):
        ops[f"gaunt_convolution {method}"] = (
            lambda x, r, h, m=method: eqtp.gaunt_convolution(x, r, 2, h=h, method=m),
            (X1, (1, 3), (1, 3)),
        )
    ops |= {
        "so2_convolution": (lambda x, r, w: eqtp.so2_convolution(x, r, w, 2), (X1, (1, 3), (2, 10))),
        "so2_weights": (lambda w: eqtp.so2_weights(w, 1, 2), [(2, 10)]),
        "so2_path_weights": (lambda w: eqtp.so2_path_weights(w, 1, 2), [(2, 10)]),
        "rank_weights": (lambda a, b, c: eqtp.rank_weights(a, b, c, True), ((3, 2), (3, 3), (3, 4))),
    }
    return ops


OPS = _ops()


def _graph_ops():
    """Of edges [e]: (function of their graph and of rows, shapes of rows of the sources, shapes of rows of the
    edges)"""
    ops = {}
    for f in FAMILIES:
        ops |= {
            f"segment_sum {f}": (lambda g, x, f=f: eqtp.segment_sum(x, g, f), [], [(2, 3)]),
            f"segment_mean {f}": (lambda g, x, f=f: eqtp.segment_mean(x, g, f), [], [(2, 3)]),
            f"segment_max {f}": (lambda g, x, f=f: eqtp.segment_max(x, g, f), [], [(2, 3)]),
            f"segment_softmax {f}": (lambda g, x, f=f: eqtp.segment_softmax(x, g, f), [], [(2, 3)]),
            f"tensor_product_conv {f}": (
                lambda g, x, y, w, f=f: eqtp.tensor_product_conv(x, y, w, PLAN, g, f),
                ROWS[:1],
                ROWS[1:],
            ),
        }
    return ops


GRAPH_OPS = _graph_ops()


def tensors(shapes, n: int, dtype=torch.float64) -> list[torch.Tensor]:
    """[n, *shape] each."""
    return [testing.random(n, *shape, seed=k).to(dtype) for k, shape in enumerate(shapes)]


def edges(num_edges: int, num_nodes: int) -> list[torch.Tensor]:
    """src and dst [e], of nodes of which the last has no edges."""
    index = torch.arange(num_edges, device="cpu")
    return [index * 3 % max(num_nodes, 1), index % max(num_nodes - 1, 1)]


def modules():
    """name -> (module in float64, shapes of its inputs without the first dimension)"""
    irreps, paths = (PLAN.irreps_in1, PLAN.irreps_in2, PLAN.irreps_out), [p[:5] for p in PLAN.paths]
    made = {
        "TensorProduct": (eqtp.nn.TensorProduct(*irreps, paths), [(3, n) for (n,) in ROWS[:2]]),
        "TensorProduct per row": (
            eqtp.nn.TensorProduct(*irreps, paths, shared_weights=False),
            [(3, n) for (n,) in ROWS],
        ),
        "SphericalHarmonics": (eqtp.nn.SphericalHarmonics([0, 1, 3], True), [(2, 3)]),
        "GauntTensorProduct": (eqtp.nn.GauntTensorProduct(1, 2, 3, 2), ((2, 4), (2, 9))),
        "GauntTensorProduct rank 2": (eqtp.nn.GauntTensorProduct(1, 2, 3, 2, odd=True, rank=2), ((2, 4), (2, 9))),
    }
    return {name: (module.double(), shapes) for name, (module, shapes) in made.items()}

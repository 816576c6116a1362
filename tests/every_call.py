"""A small call of every op by every route that a CPU has, and every module: for tests of what torch does with calls."""

import torch

import eqtp
from eqtp import testing
from eqtp.plans.plan import TensorProductPlan

PLAN = TensorProductPlan("2x0e+1o", "0e+1o", "2x0e+2x1o", [(0, 0, 0, "uvu", True), (0, 1, 1, "uvu", True)])
ROWS = (PLAN.dim_in1,), (PLAN.dim_in2,), (PLAN.weight_numel,)
X1, X2 = (2, 4), (1, 9)  # two channels of degrees 0, 1, and one of degrees 0, 1, 2
FAMILIES = ("native", "reference")


def joined(call):
    """With one output: the tensors of a pair, one after the other."""

    def one(*arguments):
        out = call(*arguments)
        return torch.cat(out, -1) if isinstance(out, tuple) else out

    return one


def _product(op, **options):
    return joined(lambda x1, x2, *w: op(x1, x2, 2, *w, **options)), (X1, X2)


def _products():
    gaunt, vector = eqtp.gaunt_tensor_product, eqtp.vector_signal_tensor_product
    for family in FAMILIES:
        for method in ("sparse", "grid"):
            options = {"method": method, "backend": family}
            yield f"gaunt_tensor_product {method} {family}", _product(gaunt, odd=True, **options)
            yield f"vector_signal_tensor_product {method} {family}", _product(vector, **options)
        yield f"matrix_tensor_product {family}", _product(eqtp.matrix_tensor_product, split=True, backend=family)
    yield "gaunt_tensor_product fourier", _product(gaunt, method="fourier", odd=True)
    yield "gaunt_tensor_product FFT", (lambda x1, x2: gaunt(x1, x2, 4, method="fourier"), ((2, 9), (1, 9)))
    yield "vector_signal_tensor_product fourier", _product(vector, method="fourier")
    for method in ("dense", "sparse"):
        call, shapes = _product(eqtp.cg_tensor_product, method=method)
        yield f"cg_tensor_product {method}", (call, (*shapes, (2, 9)))


def _ops():
    yield from _products()
    for f in FAMILIES:
        yield (
            f"spherical_harmonics {f}",
            (lambda r, f=f: eqtp.spherical_harmonics([2, 0], r, True, "norm", f), [(2, 3)]),
        )
        yield f"tensor_product {f}", (lambda x1, x2, w, f=f: eqtp.tensor_product(x1, x2, w, PLAN, f), ROWS)
        yield f"gaunt_many_body {f}", (lambda x, f=f: eqtp.gaunt_many_body(x, 2, 3, backend=f), [X1])
    for method in ("product", "rotated"):
        yield (
            f"gaunt_convolution {method}",
            (lambda x, r, h, m=method: eqtp.gaunt_convolution(x, r, 2, h=h, method=m), (X1, (1, 3), (1, 3))),
        )
    yield "so2_convolution", (lambda x, r, w: eqtp.so2_convolution(x, r, w, 2), (X1, (1, 3), (2, 10)))
    yield "so2_weights", (lambda w: eqtp.so2_weights(w, 1, 2), [(2, 10)])
    yield "so2_path_weights", (lambda w: eqtp.so2_path_weights(w, 1, 2), [(2, 10)])
    yield "rank_weights", (lambda a, b, c: eqtp.rank_weights(a, b, c, True), ((3, 2), (3, 3), (3, 4)))


def _graph_ops():
    for f in FAMILIES:
        for op in (eqtp.segment_sum, eqtp.segment_mean, eqtp.segment_max, eqtp.segment_softmax):
            yield f"{op.__name__} {f}", (lambda g, x, f=f, op=op: op(x, g, f), [], [(2, 3)])
        yield (
            f"tensor_product_conv {f}",
            (lambda g, x, y, w, f=f: eqtp.tensor_product_conv(x, y, w, PLAN, g, f), ROWS[:1], ROWS[1:]),
        )


OPS = dict(_ops())  # name -> (function, shapes of its inputs without the first dimension)
# name -> (function of a graph and tensors, shapes of rows of its nodes, shapes of rows of its edges)
GRAPH_OPS = dict(_graph_ops())


def tensors(shapes, n: int) -> list[torch.Tensor]:
    """[n, *shape] each."""
    return [testing.random(n, *shape, seed=k) for k, shape in enumerate(shapes)]


def edges(num_edges: int, num_nodes: int) -> list[torch.Tensor]:
    """src and dst [e], of nodes of which the last has no edge into it."""
    index = torch.arange(num_edges, device="cpu")
    return [index * 3 % max(num_nodes, 1), index % max(num_nodes - 1, 1)]


def all_calls() -> dict:
    """name -> (function, its inputs): those of OPS for 3 rows, those of GRAPH_OPS for one graph."""
    graph = eqtp.Graph(*edges(5, 4), 4, 4)
    calls = {name: (call, tensors(shapes, 3)) for name, (call, shapes) in OPS.items()}
    for name, (call, nodes, rows) in GRAPH_OPS.items():
        calls[name] = (lambda *a, call=call: call(graph, *a)), [*tensors(nodes, 4), *tensors(rows, 5)]
    return calls


class OnEdges(torch.nn.Module):
    """A module of x [n, ..], rows of edges [n, ..], and their src and dst [n]."""

    def __init__(self, layer, argument):
        super().__init__()
        self.layer, self.argument = layer, argument

    def forward(self, x, *rows_and_edges):
        *rows, src, dst = rows_and_edges
        return self.layer(x, *rows, **{self.argument: eqtp.Graph(src, dst, x.shape[0], x.shape[0])})


def modules() -> dict:
    """name -> (module, inputs): inputs(n) all have n rows."""
    irreps, paths = (PLAN.irreps_in1, PLAN.irreps_in2, PLAN.irreps_out), [p[:5] for p in PLAN.paths]
    gaunt = (2, 4), (2, 9)

    def given(*shapes):
        return lambda n: tensors(shapes, n)

    def on_edges(*shapes):
        return lambda n: [*tensors(shapes, n), *edges(n, n)]

    return {
        "TensorProduct": (eqtp.nn.TensorProduct(*irreps, paths), given((3, *ROWS[0]), (3, *ROWS[1]))),
        "TensorProductConv": (OnEdges(eqtp.nn.TensorProductConv(*irreps, paths), "graph"), on_edges(*ROWS)),
        "SphericalHarmonics": (eqtp.nn.SphericalHarmonics([0, 1, 3], True), given((2, 3))),
        "GauntTensorProduct": (eqtp.nn.GauntTensorProduct(1, 2, 3, 2), given(*gaunt)),
        "GauntTensorProduct odd": (eqtp.nn.GauntTensorProduct(1, 2, 3, 2, odd=True, rank=2), given(*gaunt)),
        "GauntManyBody": (
            eqtp.nn.GauntManyBody(1, 2, 2, 3, 2),
            lambda n: [*tensors([(2, 4)], n), torch.arange(n, device="cpu") % 2],
        ),
        "GauntConvolution": (
            OnEdges(eqtp.nn.GauntConvolution(1, 2, 3, 2, odd=True, num_neighbors=7), "graph"),
            on_edges((2, 4), (3,), (2, 3)),
        ),
    }

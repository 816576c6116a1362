"""The peers: what users run today. A builder returns a function of our operands, or raises Missing with why.

    e3nn            o3.TensorProduct and o3.SphericalHarmonics as they come on this torch (eager)
    e3nn-script     the same through TorchScript, e3nn's older default
    e3nn-compile    the same through torch.compile
    cueq            cuequivariance_torch, data in mul_ir layout; method "naive", on a GPU "uniform_1d" where all
                    multiplicities are equal
    cueq-irmul      the same, data kept in ir_mul layout
    sphericart      sphericart.torch.SphericalHarmonics
    sphericart-solid  sphericart.torch.SolidHarmonics: r^l Y, no normalisation of the input
    torch, pyg      index_add_ and torch_geometric.utils.scatter, for sums over edges

Of the convolution, on a GPU: gather, product and sum in one call. These lines have not run on a GPU yet; the figures
of docs/benchmarks.md are of a script that made the same calls.

    openequivariance                openequivariance.TensorProductConv, sums by atomics
    openequivariance-deterministic  the same without atomics, edges in row-major order
    cueq-fused      cuequivariance_torch.SegmentedPolynomial with indices, method "uniform_1d", data in ir_mul layout

cuEquivariance orders its outputs and weights differently, openequivariance-deterministic numbers the edges
differently, which changes values but neither sizes nor time.
"""

from __future__ import annotations

import contextlib
import importlib
import importlib.metadata
import math
import warnings
from collections.abc import Callable, Iterator
from functools import cache

import torch

import eqtp
from bench.harness import Missing
from eqtp.testing import problems

E3NN = (
    "e3nn",
    "e3nn-script",
    "e3nn-compile",
)
CUEQ = ("cueq", "cueq-irmul")
CONVOLUTIONS = ("openequivariance", "openequivariance-deterministic", "cueq-fused")
# same operator, order and weights as ours: values can be compared
SAME_VALUES = (*E3NN, "openequivariance")
CUEQ_LMAX = 5  # from 6 on, 0.13 works for minutes and then raises "Unsupported number of inputs: 6"
SPHERICART = ("sphericart", "sphericart-solid")
SUMS = ("torch", "pyg")
NO_CPU = {
    "openequivariance": "OpenEquivariance does not run on a CPU",
    "openequivariance-deterministic": "OpenEquivariance does not run on a CPU",
    "cueq-fused": "the fused kernels of cuEquivariance do not run on a CPU",
    "flashtp": "FlashTP does not run on a CPU",
}
MODULES = {
    "openequivariance": "openequivariance",
    "openequivariance-deterministic": "openequivariance",
    "cueq-fused": "cuequivariance_torch",
    "flashtp": "flashTP_e3nn",
}
NAMES = (*E3NN, *CUEQ, *SPHERICART, *SUMS, *NO_CPU)
DISTRIBUTIONS = ("torch", "e3nn", "cuequivariance-torch", "sphericart-torch", "torch-geometric")
ON_GPU = (
    "triton",
    "cupy-cuda12x",
    "cupy-cuda13x",
    "cuequivariance-ops-torch-cu12",
    "cuequivariance-ops-torch-cu13",
    "openequivariance",
)


def versions(device: str = "cpu") -> dict[str, str]:
    """Installed version of each peer's distribution, and on a GPU of what our kernels are made with; those not
    installed are left out."""
    found = {}
    if device == "cuda":
        found["cuda"] = str(torch.version.cuda)
    for name in (*DISTRIBUTIONS, *(ON_GPU if device == "cuda" else ())):
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            found[name] = importlib.metadata.version(name)
    return found


def note(name: str, problem: str) -> str:
    """What a peer does differently, if its time is not for quite the same work."""
    different = name == "sphericart-solid" and not problem.endswith("-solid")
    return "does not normalise its input: less work" if different else ""


def _import(module: str):
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise Missing(f"{module} is not installed ({error})") from None


def _refuse(name: str, op: str, device: str = "cpu"):
    if name in NO_CPU and device == "cpu":
        raise Missing(NO_CPU[name])
    if name in NO_CPU:
        _import(MODULES[name])
        raise Missing(f"{name} is installed, but this benchmark does not call its {op}")
    raise Missing(f"{name} has no {op}")


@contextlib.contextmanager
def _e3nn_mode(mode: str, dtype: torch.dtype) -> Iterator[None]:
    """Constants born in `dtype`, code generated in `mode`."""
    e3nn = _import("e3nn")
    before, default = e3nn.get_optimization_defaults(), torch.get_default_dtype()
    if "jit_mode" not in before and mode == "eager":
        raise Missing("this e3nn has no eager mode")
    torch.set_default_dtype(dtype)
    e3nn.set_optimization_defaults(**({"jit_mode": mode} if "jit_mode" in before else {}))
    try:
        yield
    finally:
        torch.set_default_dtype(default)
        e3nn.set_optimization_defaults(**({"jit_mode": before["jit_mode"]} if "jit_mode" in before else {}))


def _e3nn_product(name: str, problem: problems.TensorProductProblem, dtype: torch.dtype, device: str) -> Callable:
    o3 = _import("e3nn.o3")
    plan = problems.plan(problem.id)
    irreps = [o3.Irreps(str(i)) for i in (plan.irreps_in1, plan.irreps_in2, plan.irreps_out)]
    instructions = [(p.i1, p.i2, p.io, p.mode, p.has_weight, p.path_weight) for p in plan.paths]
    with _e3nn_mode("script" if name == "e3nn-script" else "eager", dtype):
        module = o3.TensorProduct(
            *irreps, instructions, shared_weights=problem.weights == "shared", internal_weights=False
        ).to(device)
    return torch.compile(module) if name == "e3nn-compile" else module


def _cueq_product(name: str, problem: problems.TensorProductProblem, dtype: torch.dtype, device: str) -> Callable:
    cue, cuet = _import("cuequivariance"), _import("cuequivariance_torch")
    in1, in2 = cue.Irreps("O3", problem.irreps_in1), cue.Irreps("O3", problem.irreps_in2)
    out = in1 if problem.out == "in1" else cue.Irreps("O3", problem.out)
    shared = problem.weights == "shared"
    even = len({mul for mul, _ in in1}) == 1 and problem.mode == "uvu"
    options = {
        "layout": cue.mul_ir if name == "cueq" else cue.ir_mul,
        "shared_weights": shared,
        "internal_weights": False,
        "method": "uniform_1d" if device == "cuda" and even else "naive",
        "dtype": dtype,
        "math_dtype": dtype,
        "device": device,
    }
    if problem.mode == "uvu":
        module = cuet.ChannelWiseTensorProduct(in1, in2, [ir for _, ir in out], **options)
    else:
        module = cuet.FullyConnectedTensorProduct(in1, in2, out, **options)
    if (module.irreps_out.dim, module.weight_numel) != (problem.dim_out, problem.weight_numel):
        raise Missing(f"it computes another product: {module.irreps_out} with {module.weight_numel} weights")
    return (lambda x1, x2, w: module(x1, x2, w.unsqueeze(0))) if shared else module


@cache
def product(name: str, problem_id: str, dtype: torch.dtype, device: str = "cpu") -> Callable:
    """f(x1 [z, dim1], x2 [z, dim2], w [z, numel] or [numel]) -> [z, dim_out] of a problem; raises Missing."""
    problem = problems.tensor_product(problem_id)
    if name in E3NN:
        return _e3nn_product(name, problem, dtype, device)
    if name in CUEQ:
        return _cueq_product(name, problem, dtype, device)
    return _refuse(name, "tensor product", device)


def convolution(name: str, problem_id: str, dtype: torch.dtype, graph: eqtp.Graph) -> Callable:
    """f(x [n, dim1], y [e, dim2], w [e, numel]) -> [n, dim_out] of a name in CONVOLUTIONS; raises Missing."""
    if graph.dst.device.type == "cpu":
        raise Missing(NO_CPU[name])
    if (problem := problems.tensor_product(problem_id)).weights == "shared" or problem.mode != "uvu":
        raise Missing(f"not called for mode {problem.mode} with weights {problem.weights}")
    if name == "cueq-fused":
        return cueq_fused(problem_id, dtype, graph, "uniform_1d")
    return _openequivariance(problem_id, dtype, graph, name.endswith("deterministic"))


def _openequivariance(problem_id: str, dtype: torch.dtype, graph: eqtp.Graph, deterministic: bool) -> Callable:
    oeq = _import("openequivariance")
    plan, number = problems.plan(problem_id), oeq.torch_to_oeq_dtype(dtype)
    instructions = [(p.i1, p.i2, p.io, p.mode, p.has_weight, p.path_weight) for p in plan.paths]
    irreps = [str(i) for i in (plan.irreps_in1, plan.irreps_in2, plan.irreps_out)]
    problem = oeq.TPProblem(
        *irreps,
        instructions,
        irrep_dtype=number,
        weight_dtype=number,
        shared_weights=False,
        internal_weights=False,
    )
    module = oeq.TensorProductConv(problem, deterministic=deterministic)
    rows, columns = graph.dst.long(), graph.src.long()  # [e], [e]
    if not deterministic:
        return lambda x, y, w: module(x, y, w, rows, columns)
    order = torch.argsort(rows * graph.num_src + columns)  # [e]
    rows, columns = rows[order], columns[order]
    transposed = torch.argsort(columns * graph.num_dst + rows)  # [e]
    return lambda x, y, w: module(x, y, w, rows, columns, transposed)


def cueq_fused(problem_id: str, dtype: torch.dtype, graph: eqtp.Graph, method: str) -> Callable:
    """f(x [n, dim1], y [e, dim2], w [e, numel]) -> [n, dim_out], x and the result in ir_mul layout, the weights in the
    order of the result's irreps. Uneven multiplicities are cut into pieces of their common divisor, as the kernel wants
    them. Raises Missing."""
    cue, cuet = _import("cuequivariance"), _import("cuequivariance_torch")
    problem = problems.tensor_product(problem_id)
    in1, in2 = cue.Irreps("O3", problem.irreps_in1), cue.Irreps("O3", problem.irreps_in2)
    out = in1 if problem.out == "in1" else cue.Irreps("O3", problem.out)
    common = math.gcd(*(mul for mul, _ in in1))
    product = cue.descriptors.channelwise_tensor_product(in1, in2, out).polynomial
    product = product.flatten_modes("ijk").squeeze_modes("v")
    product = product.apply_fn(lambda operand, d: (operand, d.split_mode("u", common)))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that it takes another method, if it does
        module = cuet.SegmentedPolynomial(product, math_dtype=dtype, method=method).to(graph.dst.device)
    if module.method != method:
        raise Missing(f"cuequivariance_torch has no method {method} here: are its closed kernels installed?")
    src, dst = graph.src.long(), graph.dst.long()  # [e], [e]
    return lambda x, y, w: module([w, x, y], {1: src}, {0: x}, {0: dst})[0]


@cache
def harmonics(name: str, lmax: int, normalize: bool, dtype: torch.dtype, device: str = "cpu") -> Callable:
    """f(xyz [n, 3]) -> [n, (lmax+1)**2], all degrees to lmax; raises Missing."""
    if name in E3NN:
        o3 = _import("e3nn.o3")
        with _e3nn_mode("script" if name == "e3nn-script" else "eager", dtype):
            try:
                module = o3.SphericalHarmonics(list(range(lmax + 1)), normalize, "component").to(device)
            except NotImplementedError as error:
                raise Missing(str(error).partition(",")[0]) from None
        return torch.compile(module) if name == "e3nn-compile" else module
    if name == "cueq":
        cuet = _import("cuequivariance_torch")
        if lmax > CUEQ_LMAX and device == "cpu":
            raise Missing(f"its CPU path stops at lmax {CUEQ_LMAX}")
        return cuet.SphericalHarmonics(list(range(lmax + 1)), normalize, method="naive", math_dtype=dtype).to(device)
    if name in SPHERICART:
        if name == "sphericart" and not normalize:
            raise Missing("it normalises its input: see sphericart-solid")
        sphericart = _import("sphericart.torch")
        return (sphericart.SphericalHarmonics if name == "sphericart" else sphericart.SolidHarmonics)(l_max=lmax).to(
            device
        )
    return _refuse(name, "spherical harmonics", device)


def summation(name: str, dst: torch.Tensor, num_dst: int) -> Callable:
    """f(x [e, c]) -> [num_dst, c], the sum of the rows of x by dst; raises Missing."""
    if name == "torch":
        return lambda x: x.new_zeros(num_dst, x.shape[1]).index_add_(0, dst, x)
    if name == "pyg":
        scatter = _import("torch_geometric.utils").scatter
        return lambda x: scatter(x, dst, dim=0, dim_size=num_dst, reduce="sum")
    return _refuse(name, "segment sum")

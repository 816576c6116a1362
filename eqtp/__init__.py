"""eqtp: equivariant tensor products, fast on the CPU, right to the last derivative.

    import eqtp
    report = eqtp.accelerate(model)      # a SevenNet, or any module tree with e3nn products: in place, reversible

Ops, plans and modules are listed in `__all__`; `python -m eqtp` says what this machine can run.
"""

import sys

from eqtp import nn
from eqtp.backends import registry
from eqtp.backends.registry import backends, explain, set_backend
from eqtp.compiled.model import CompiledModel, compile, load
from eqtp.compiled.training import TrainingStep
from eqtp.integrations import e3nn
from eqtp.integrations.accelerate import Report, accelerate
from eqtp.math import so3
from eqtp.math.expressivity import expressivity, interactability
from eqtp.math.irreps import Irrep, Irreps
from eqtp.ops.cg_tensor_product import cg_paths, cg_tensor_product, rank_weights
from eqtp.ops.gaunt_convolution import gaunt_convolution, so2_convolution, so2_path_weights, so2_paths, so2_weights
from eqtp.ops.gaunt_many_body import gaunt_many_body
from eqtp.ops.gaunt_tensor_product import gaunt_tensor_product
from eqtp.ops.graph import Graph
from eqtp.ops.matrix_tensor_product import matrix_tensor_product
from eqtp.ops.segment_max import segment_max
from eqtp.ops.segment_softmax import segment_softmax
from eqtp.ops.segment_sum import segment_mean, segment_sum
from eqtp.ops.spherical_harmonics import spherical_harmonics
from eqtp.ops.tensor_product import tensor_product
from eqtp.ops.tensor_product_conv import tensor_product_conv
from eqtp.ops.vector_signal_tensor_product import vector_signal_tensor_product
from eqtp.plans.plan import TensorProductPlan
from eqtp.testing import problems

__version__ = "0.1.0"

registry.load()
for _module in (so3, e3nn, problems):  # public modules that stand in a room: import eqtp.so3, from eqtp.so3 import ...
    sys.modules[f"eqtp.{_module.__name__.rpartition('.')[2]}"] = _module

__all__ = [
    "CompiledModel",
    "Graph",
    "Irrep",
    "Irreps",
    "Report",
    "TensorProductPlan",
    "TrainingStep",
    "accelerate",
    "backends",
    "cg_paths",
    "cg_tensor_product",
    "compile",
    "explain",
    "expressivity",
    "gaunt_convolution",
    "gaunt_many_body",
    "gaunt_tensor_product",
    "interactability",
    "load",
    "matrix_tensor_product",
    "nn",
    "rank_weights",
    "segment_max",
    "segment_mean",
    "segment_softmax",
    "segment_sum",
    "set_backend",
    "so2_convolution",
    "so2_path_weights",
    "so2_paths",
    "so2_weights",
    "so3",
    "spherical_harmonics",
    "tensor_product",
    "tensor_product_conv",
    "vector_signal_tensor_product",
]

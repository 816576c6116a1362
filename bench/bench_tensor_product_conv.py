"""The convolution: gather x[src], product with y and w of the edge, sum into dst. Peers: the same steps, or one call
where they have one.

The graph (CSR and its transpose) is built before the clock starts, as a model builds it once for all its
layers.
"""

from __future__ import annotations

from collections.abc import Callable

import torch

import eqtp
from bench import peers
from bench.bench_tensor_product import PASSES, PROBLEMS, pieces, plan_of, row_flops, weights
from bench.gpu_jobs import DIAMOND, FLASHTP, FUSED_PEERS, ORDERS, PEERS, TIMES, Job
from bench.harness import Case, multilinear_bytes, neighbours, random, require

__all__ = ["CHECK_SIZE", "GPU_JOBS", "PASSES", "PROBLEMS", "SMALL", "case"]

CHECK_SIZE = {"nodes": 7, "edges": 33, "graph": "random"}
CONVS = ("mace-medium", "mace-large", "nequip-l", "sevennet-0", "sevennet-l3i5", "nequip-lips")
SMALL = ("small",)
GPU_JOBS = [
    Job(10, "conv", "tensor_product_conv", CONVS, (*DIAMOND, *ORDERS), peers=FUSED_PEERS),
    Job(70, "conv-flashtp", "tensor_product_conv", CONVS, (*FLASHTP, *ORDERS), peers=(*PEERS, *FUSED_PEERS)),
    Job(100, "conv-float64", "tensor_product_conv", ("mace-medium",), (*DIAMOND, *ORDERS), dtype="float64"),
    Job(110, "conv-bfloat16", "tensor_product_conv", ("mace-medium",), (*DIAMOND, *ORDERS), dtype="bfloat16"),
    Job(
        120,
        "conv-reference",
        "tensor_product_conv",
        CONVS,
        (*DIAMOND, "--pass", "fwd,bwd,bwdbwd", *TIMES),
        families=("reference",),
    ),
]


def case(problem_id: str, dtype: torch.dtype, *, nodes: int, edges: int, graph: str, device: str = "cpu", **_) -> Case:
    plan = plan_of(problem_id)
    csr = neighbours(graph, nodes, edges, device)
    nodes, edges = csr.num_dst, csr.num_edges
    csr.transpose()
    inputs = {
        "x": random(nodes, plan.dim_in1, dtype=dtype, seed=1, device=device),
        "y": random(edges, plan.dim_in2, dtype=dtype, seed=2, device=device),
        "w": weights(problem_id, edges, dtype, device),
    }
    cotangent = random(nodes, plan.dim_out, dtype=dtype, seed=4, device=device, grad=False)

    def ours(backend: str) -> Callable:
        require(backend, "tensor_product_conv", plan, dtype, torch.device(device))
        return lambda x, y, w: eqtp.tensor_product_conv(x, y, w, plan, csr, backend=backend)

    def peer(name: str) -> Callable:
        if name in peers.CONVOLUTIONS:
            return peers.convolution(name, problem_id, dtype, csr)
        product = peers.product(name, problem_id, dtype, device)

        def zeros(x):
            return x.new_zeros(nodes, plan.dim_out)

        return lambda x, y, w: zeros(x).index_add_(0, csr.dst, product(x[csr.src], y, w))

    return Case(
        problem=problem_id,
        size={"nodes": nodes, "edges": edges},
        inputs=inputs,
        cotangent=cotangent,
        ours=ours,
        peer=peer,
        bytes=multilinear_bytes(inputs, cotangent, index_bytes=2 * 8 * edges),
        flops={
            stage: edges * count + (edges * plan.dim_out if stage == "fwd" else edges * plan.dim_in1)
            for stage, count in row_flops(plan).items()
        },
        pieces=pieces(plan, ("x", "y", "w")),
    )

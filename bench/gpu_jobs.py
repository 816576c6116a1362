"""What `make gpu` times: the GPU_JOBS of every bench_<op>.py, the most important first, and the same in small for its
rehearsal."""

from __future__ import annotations

from typing import NamedTuple

FAMILIES = ("jit", "native", "triton")
SAMPLES = ("jit", "triton")  # families with kernels for the products of signals on a GPU
PEERS = (("e3nn", "e3nn"), ("cueq", "cuequivariance_torch"), ("cueq-irmul", "cuequivariance_torch"))
FUSED_PEERS = (
    ("openequivariance", "openequivariance"),
    ("openequivariance-deterministic", "openequivariance"),
    ("cueq-fused", "cuequivariance_ops_torch"),
)
TIMES = ("--repeat", "5", "--min-time", "0.1", "--warmup", "3")
ORDERS = ("--pass", "fwd,bwd,bwdbwd,grad,gradgrad", *TIMES)
FIRST_ORDER = ("--pass", "fwd,grad", *TIMES)
DIAMOND, FLASHTP = ("--graph", "diamond:5"), ("--graph", "flashtp")  # 158,000 and 32,768 edges
SEGMENT_ROWS = ("sevennet-0", "nequip-water")  # 3,136 and 704 columns


class Job(NamedTuple):
    """One call of the harness for a group of problems; `name` names its files. rank: its place among all jobs."""

    rank: int
    name: str
    op: str
    problems: tuple[str, ...]
    options: tuple[str, ...]
    dtype: str = "float32"
    families: tuple[str, ...] = FAMILIES
    peers: tuple[tuple[str, str], ...] = ()  # name and module: timed too where the module is installed


FIRST_CALL = Job(30, "first", "first_call", ("",), ())  # bench/first_call.py, which is no op
# bench/models.py, no op either. Compiling takes minutes: last, and by itself
MODEL_PEERS = ("--against", "e3nn,openequivariance,cueq")
WHOLE_MODELS = (
    Job(15, "models", "models", ("7net-0",), ("--atoms", "864,4000", "--without", "eqtp-compiled", *MODEL_PEERS)),
    Job(140, "models-compiled", "models", ("7net-0",), ("--atoms", "864,4000", "--without", "eqtp", "--against", "")),
)

TINY = ("--repeat", "2", "--min-time", "0.001", "--warmup", "1", "--nodes", "10", "--edges", "30")
TINY_FIRST_CALL = ("--graph", "random", "--nodes", "10", "--edges", "30")
ALL_PASSES = ("--pass", "fwd,bwd,bwdbwd,grad,gradgrad", *TINY)
REHEARSAL = [
    Job(1, "conv", "tensor_product_conv", ("nequip-water",), ALL_PASSES, families=("jit", "native")),
    Job(2, "first", "first_call", ("",), TINY_FIRST_CALL, families=("native",)),
    Job(
        3,
        "reference",
        "segment_sum",
        ("nequip-water",),
        ("--pass", "fwd,grad", *TINY),
        families=("native", "reference"),
    ),
    Job(4, "models", "models", ("7net-0",), ("--atoms", "8", "--without", "eqtp-compiled", "--repeat", "2")),
]


def jobs(rehearse: bool) -> list[Job]:
    """What is timed."""
    if rehearse:
        return REHEARSAL
    from bench.registry import benchmarks  # whose files import this one

    found = [FIRST_CALL, *WHOLE_MODELS, *(job for module in benchmarks().values() for job in module.GPU_JOBS)]
    return sorted(found, key=lambda job: job.rank)

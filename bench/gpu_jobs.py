"""What `make gpu` times, the most important first, and the same in small for its rehearsal."""

from __future__ import annotations

from typing import NamedTuple

FAMILIES = ("jit", "native", "triton")
CONVS = ("mace-medium", "mace-large", "nequip-l", "sevennet-0", "sevennet-l3i5", "nequip-lips")
PEERS = (("e3nn", "e3nn"), ("cueq", "cuequivariance_torch"), ("cueq-irmul", "cuequivariance_torch"))
TIMES = ("--repeat", "5", "--min-time", "0.1", "--warmup", "3")
ALL = ("--pass", "fwd,bwd,bwdbwd,grad,gradgrad", *TIMES)


class Job(NamedTuple):
    """One call of the harness for a group of problems; `name` names its files."""

    name: str
    op: str
    problems: tuple[str, ...]
    options: tuple[str, ...]
    dtype: str = "float32"
    families: tuple[str, ...] = FAMILIES
    peers: tuple[tuple[str, str], ...] = ()  # name and module: timed too where the module is installed


DIAMOND, FLASHTP = ("--graph", "diamond:5"), ("--graph", "flashtp")  # 158,000 and 32,768 edges
GAUNT, SIGNALS = (
    ("2-2-2-c128", "3-3-3-c128", "4-4-4-c128", "6-6-6-c128", "4-4-8-c32", "4-4-4-c128-odd"),
    ("jit", "triton"),
)
ROWS = ("sevennet-0", "nequip-water")  # 3,136 and 704 columns

GPU = [
    Job("conv", "tensor_product_conv", CONVS, (*DIAMOND, *ALL)),
    Job(
        "harmonics",
        "spherical_harmonics",
        tuple(f"lmax{n}" for n in range(1, 11)),
        ("--points", "1000000", "--pass", "fwd,grad,gradgrad", *TIMES),
    ),
    Job("first", "first_call", ("",), ()),
    Job("sum", "segment_sum", ROWS, (*DIAMOND, "--pass", "fwd,grad", *TIMES)),
    Job("max", "segment_max", ROWS, (*DIAMOND, "--pass", "fwd,grad", *TIMES)),
    Job("softmax", "segment_softmax", ROWS, (*DIAMOND, "--pass", "fwd,grad", *TIMES)),
    Job("conv-flashtp", "tensor_product_conv", CONVS, (*FLASHTP, *ALL), peers=PEERS),
    Job("gaunt", "gaunt_tensor_product", GAUNT, ("--edges", "10000", "--pass", "fwd,grad", *TIMES), families=SIGNALS),
    Job(
        "many-body",
        "gaunt_many_body",
        ("3-1-n3-c128",),
        ("--edges", "1000", "--pass", "fwd,grad", *TIMES),
        families=SIGNALS,
    ),
    Job("conv-float64", "tensor_product_conv", ("mace-medium",), (*DIAMOND, *ALL), dtype="float64"),
    Job("conv-bfloat16", "tensor_product_conv", ("mace-medium",), (*DIAMOND, *ALL), dtype="bfloat16"),
    Job(
        "conv-reference",
        "tensor_product_conv",
        CONVS,
        (*DIAMOND, "--pass", "fwd,bwd,bwdbwd", *TIMES),
        families=("reference",),
    ),
]

TINY = ("--repeat", "2", "--min-time", "0.001", "--warmup", "1", "--nodes", "10", "--edges", "30")
REHEARSAL = [
    Job(
        "conv",
        "tensor_product_conv",
        ("nequip-water",),
        ("--pass", "fwd,bwd,bwdbwd,grad,gradgrad", *TINY),
        families=("jit", "native"),
    ),
    Job("first", "first_call", ("",), ("--graph", "random", "--nodes", "10", "--edges", "30"), families=("native",)),
    Job("reference", "segment_sum", ("nequip-water",), ("--pass", "fwd,grad", *TINY), families=("native", "reference")),
]


def jobs(rehearse: bool) -> list[Job]:
    """What is timed."""
    return REHEARSAL if rehearse else GPU

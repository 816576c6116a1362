"""The specialised kernels compiled for GPUs on a machine without one: every kernel of the named workloads, its
registers and spills.

pytest -rA shows the table."""

import re
import shutil
import subprocess
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from sweeps import sweep

from eqtp.backends.jit import channelwise, nvrtc, runtime
from eqtp.backends.jit import couplings as jit_couplings
from eqtp.backends.jit import matrices as jit_matrices
from eqtp.backends.jit import signals as jit_signals
from eqtp.backends.jit.channelwise_tables import (
    KERNEL_PASSES,
    ROWS,
    ROWS_FLOAT64,
    THREADS,
    chosen_tuning,
    thread_mapping,
    units,
)
from eqtp.backends.jit.toolchain import source
from eqtp.plans import couplings, matrices, signals
from eqtp.testing import problems

FILE = "channelwise/channelwise.cuh"
MAIN = ["mace-medium", "sevennet-0", "mace-large", "nequip-lips", "nequip-l", "sevennet-l3i5"]
QUICK = "mace-medium"  # in every run; the rest: make compile
CHANNELWISE = [problem for problem in problems.TENSOR_PRODUCTS.values() if problem.mode == "uvu"]
SIZE = {problem.id: problem.cg_nonzeros for problem in CHANNELWISE}
WITHOUT_SPILLS = {*MAIN, *(n for n in SIZE if SIZE[n] <= SIZE["nequip-l"])}
# Bytes that may spill: addresses that stay the same over the edges; the fastest of the measured tunings have some
FEW = 96
# Except what needs more registers than there are, even with one channel per thread
SPILL = {
    *((n, torch.float64, "bwd_tangent") for n in ("mace-large", "nequip-l", "sevennet-l3i5")),
}

pytestmark = pytest.mark.usefixtures("compiler")


def kernels_of(name: str, dtype: torch.dtype, mode: str) -> dict[str, channelwise.PlanKernels]:
    """The kernels of each pass that there are, as on an H200."""
    found, key = {}, problems.plan(name).key
    for pass_ in KERNEL_PASSES:
        tuning = ROWS_FLOAT64 if dtype == torch.float64 else ROWS
        if mode == "GRAPH":
            tuning = chosen_tuning(key, pass_, dtype, 227 << 10)
        if pass_ != "second" or tuning.by_destination:
            found[pass_] = channelwise.kernels_of(key, pass_, dtype, mode, tuning)
    return found


def stack_of_sums(name: str, pass_: str, dtype: torch.dtype, mode: str) -> int:
    """Bytes of stack for sums of many edges (csrc/common/long_sums.cuh): two numbers for each that a thread sums."""
    if dtype == torch.float64 or mode != "GRAPH":
        return 0
    plan = problems.plan(name)
    counts, tuning = [], chosen_tuning(plan.key, pass_, dtype, 227 << 10)
    for unit in units(plan):
        mapping = thread_mapping(plan, unit, pass_, dtype, tuning)
        for irreps, blocks in ((plan.irreps_in1, unit.in1), (plan.irreps_out, unit.out)):
            sizes = [mapping.lanes * mapping.channels * irreps[b].ir.dim for b in blocks]
            counts.append(sum(-(-size // THREADS) for size in sizes))
    return 8 * max(counts)


def table(name: str, arch: str, dtype: torch.dtype = torch.float32, mode: str = "GRAPH") -> dict[str, nvrtc.Usage]:
    """Registers and spills of the main kernel of each pass; prints them. The other kernels of the programs must not
    spill, and what does not spill has no stack but that of its sums."""
    programs = kernels_of(name, dtype, mode)
    with ThreadPoolExecutor(2) as pool:
        texts = [(source(FILE) + p.tables.text, p.names) for p in programs.values()]
        compiled = list(pool.map(lambda program: runtime.compile(*program, arch), texts))
    rows = {}
    for (pass_, p), c in zip(programs.items(), compiled, strict=True):
        usage = {u.kernel: u for u in runtime.usage(c.log)}
        assert set(usage) == {c.lowered[n] for n in p.names}
        main = usage.pop(c.lowered[p.main])
        assert not any(u.spill_stores or u.spill_loads for u in usage.values())
        words = f"{name:<22} {pass_:<11} {mode} sm_{arch} {dtype}"
        print(f"{words}: {main.registers} registers, {main.spill_stores} bytes spilled, {main.stack} bytes of stack")
        assert main.spill_stores or main.stack <= stack_of_sums(name, pass_, dtype, mode)
        rows[pass_] = main
    return rows


def assert_registers(name: str, rows: dict[str, nvrtc.Usage], dtype: torch.dtype = torch.float32):
    for pass_, row in rows.items():
        assert 0 < row.registers <= 255
        if name in WITHOUT_SPILLS and (name, dtype, pass_) not in SPILL:
            assert row.spill_stores <= FEW, pass_


@sweep("name", SIZE, [QUICK, *(n for n in SIZE if SIZE[n] <= 10)])
def test_registers(name):
    """Every kernel of every named workload compiles for sm_90; up to the size of nequip-l everything stays in
    registers."""
    assert_registers(name, table(name, "90"))


@sweep("name", MAIN, [QUICK])
def test_registers_in_float64(name):
    assert_registers(name, table(name, "90", torch.float64), torch.float64)


@pytest.mark.parametrize("arch", ["80", "100", "120"])
@sweep("name", MAIN, [QUICK])
def test_other_architectures(name, arch):
    assert_registers(name, table(name, arch))


@pytest.mark.long
@pytest.mark.parametrize("arch", ["80", "100", "120"])
@pytest.mark.parametrize("name", MAIN)
def test_other_architectures_in_float64(name, arch):
    assert_registers(name, table(name, arch, torch.float64), torch.float64)


@pytest.mark.parametrize("mode", ["ROWS", "EDGES"])
@sweep("name", MAIN[:2], [QUICK])
def test_other_modes(name, mode):
    """The product without a graph, and the convolution over edges in any order."""
    assert_registers(name, table(name, "90", mode=mode))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
@sweep("name", MAIN[:2], [QUICK])
def test_half_precision(name, dtype):
    assert not [row for row in table(name, "90", dtype).values() if row.spill_stores > FEW]


def test_the_table_shows_spills():
    """With a quarter of the registers there are some."""
    p = kernels_of("mace-medium", torch.float32, "GRAPH")["fwd"]
    squeezed = re.sub("RESIDENT = [34]", "RESIDENT = 12", p.tables.text)
    assert squeezed != p.tables.text
    (usage,) = runtime.usage(runtime.compile(source(FILE) + squeezed, (p.main,), "90").log)
    assert usage.spill_stores > 0 and usage.registers <= 40


def test_nvcc_takes_the_same_text(tmp_path):
    """The source with its tables is CUDA C++, not something that only NVRTC understands."""
    if not shutil.which("nvcc"):
        pytest.skip("nvcc is not installed")
    programs = [kernels_of("mace-medium", torch.float32, "GRAPH")[pass_] for pass_ in ("fwd", "bwd")]
    tables = [p.tables.text.replace("struct Plan", f"struct Plan{n}") for n, p in enumerate(programs)]
    names = [name.replace("eqtp::Plan", f"eqtp::Plan{n}") for n, p in enumerate(programs) for name in p.names]
    kernels = ", ".join(f"reinterpret_cast<const void*>(&{name})" for name in names)
    file_cu = tmp_path / "plan.cu"
    file_cu.write_text(source(FILE) + "".join(tables) + f"extern const void* const kernels[] = {{{kernels}}};\n")
    command = ["nvcc", "-std=c++20", "-arch=sm_90", "-c", file_cu, "-o", tmp_path / "plan.o"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=280)
    assert done.returncode == 0, done.stderr[-4000:]
    assert (tmp_path / "plan.o").stat().st_size > 10_000


# -------------------------------------------------------------- products of functions on the sphere
KINDS = ["product", "odd", "cross"]
WANTED = {"fwd": (True,), "bwd": (True,) * 2, "bwdbwd": (True,) * 3}
SAME = [(2, 2, 2), (4, 4, 4), (6, 6, 6)]
# What needs more than 255 registers: the fields of several signals, or their derivatives
SPILLED = {("cross", "bwdbwd", 2), ("odd", "bwdbwd", 4), ("cross", "bwd", 4), ("cross", "bwdbwd", 4)}
SPILLED |= {
    (kind, pass_, 6)
    for kind in KINDS
    for pass_ in WANTED
    if (kind, pass_) not in {("product", "fwd"), ("product", "bwd")}
}


def usage_of_signals(
    kind: str, degrees, pass_: str, arch: str = "90", dtype: torch.dtype = torch.float32
) -> nvrtc.Usage:
    """Registers and spills of the kernel; prints them."""
    kernel = jit_signals.specialise(signals.product(kind, *degrees, pass_, WANTED[pass_]), dtype)
    return usage_of(kernel, "signals/signals.cuh", f"signals {kind} {degrees} {pass_}", arch, dtype)


def usage_of(kernel, file, what, arch, dtype=torch.float32):
    (row,) = runtime.usage(runtime.compile(source(file) + kernel.text, (kernel.name,), arch).log)
    shape = f"{kernel.samples} samples, {kernel.threads} threads, {kernel.shared} bytes of shared memory"
    taken = f"{row.registers} registers, {row.spill_stores} bytes spilled, {row.stack} bytes of stack"
    print(f"{what} sm_{arch} {dtype}: {taken}; {shape}")
    return row


@pytest.mark.parametrize("pass_", WANTED)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.long  # tests/test_every_kernel.py compiles the small ones in every run
@pytest.mark.parametrize("degrees", SAME, ids=str)
def test_registers_of_signals(kind, pass_, degrees):
    row = usage_of_signals(kind, degrees, pass_)
    if (kind, pass_, degrees[0]) in SPILLED:
        assert row.registers == 255  # not given up
    else:
        assert not (row.spill_stores or row.spill_loads or row.stack)


@pytest.mark.parametrize("arch", ["80", "90", "100", "120"])
def test_other_architectures_of_signals(arch):
    row = usage_of_signals("product", (4, 4, 8), "fwd", arch)
    assert not (row.spill_stores or row.spill_loads or row.stack)


def test_halves_of_signals():
    assert not usage_of_signals("product", (4, 4, 8), "fwd", dtype=torch.bfloat16).stack


@pytest.mark.long
@pytest.mark.parametrize("arch", ["80", "90", "100", "120"])
@pytest.mark.parametrize(
    "kind, degrees, pass_",
    [("product", (2, 2, 2), "fwd"), ("cross", (2, 2, 2), "bwdbwd"), ("odd", (6, 6, 6), "fwd")],
    ids=str,
)
def test_registers_of_couplings(kind, degrees, pass_, arch):
    """Short tables as instructions, a long one as data."""
    kernel = jit_couplings.specialise(couplings.gaunt(kind, *degrees, pass_, WANTED[pass_]), torch.float32)
    row = usage_of(kernel, "couplings/couplings.cuh", f"couple {kind} {degrees} {pass_}", arch)
    assert not (row.spill_stores or row.spill_loads or row.stack)


@sweep("dtype", [torch.float32, torch.float64], [torch.float32], ids=str)
@sweep("pass_", WANTED, ["bwd"])
@pytest.mark.parametrize("split", [False, True])
@sweep("lmax", [2, 4, 8, 12, 20], [8])
def test_registers_of_matrices(lmax, split, pass_, dtype):
    row = usage_of_matrices((lmax,) * 3, split, pass_, dtype=dtype)
    assert not (row.spill_stores or row.spill_loads or row.stack)


@pytest.mark.parametrize("arch", ["80", "100", "120"])
@pytest.mark.parametrize("degrees, dtype", [((4, 4, 8), torch.float32), ((4, 4, 4), torch.bfloat16)], ids=str)
def test_other_architectures_of_matrices(degrees, dtype, arch):
    row = usage_of_matrices(degrees, True, "bwd", arch, dtype)
    assert not (row.spill_stores or row.spill_loads or row.stack)


def usage_of_matrices(
    degrees, split: bool, pass_: str, arch: str = "90", dtype: torch.dtype = torch.float32
) -> nvrtc.Usage:
    """Registers and spills of the kernel; prints them."""
    kernel = jit_matrices.specialise(matrices.product(*degrees, split, pass_, WANTED[pass_]), dtype)
    return usage_of(kernel, "matrices/matrices.cuh", f"matrices {degrees} {'split ' * split}{pass_}", arch, dtype)


@pytest.mark.parametrize("file", ["signals/signals.cuh", "couplings/couplings.cuh", "matrices/matrices.cuh"])
def test_nvcc_takes_the_text_of_products(file, tmp_path):
    if not shutil.which("nvcc"):
        pytest.skip("nvcc is not installed")
    arguments = "odd", 2, 2, 2, "fwd", (True,)
    if file == "couplings/couplings.cuh":
        kernel = jit_couplings.specialise(couplings.gaunt(*arguments), torch.float32)
    elif file == "matrices/matrices.cuh":
        kernel = jit_matrices.specialise(matrices.product(2, 2, 2, True, "bwd", (True,) * 2), torch.float32)
    else:
        kernel = jit_signals.specialise(signals.product(*arguments), torch.float32)
    file_cu = tmp_path / "plan.cu"
    file_cu.write_text(source(file) + kernel.text)
    command = ["nvcc", "-std=c++20", "-arch=sm_90", "-c", file_cu, "-o", tmp_path / "plan.o"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=280)
    assert done.returncode == 0, done.stderr[-4000:]

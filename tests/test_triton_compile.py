"""Triton kernels compiled for GPUs on a machine without one: every kernel of the named workloads, its registers and
spills.

Compiling runs in a process of its own, as a process either compiles or interprets: python tests/test_triton_compile.py
TARGET REAL NAME .. prints the table of the workloads NAME (names of `eqtp.problems`, with ":rows" the row-wise product;
"lmax3"; "segments"; of PROGRAMS, TABLES and MATRICES).
"""

import json
import os
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pytest
from sweeps import sweep

from eqtp.plans import couplings, matrices, signals
from eqtp.testing import problems

PASSES = ("fwd", "bwd", "fwd2", "bwd2")
WITHOUT_SPILLS = [
    "mace-l1",
    "mace-medium",
    "mace-large",
    "nequip-s",
    "nequip-m",
    "nequip-l",
    "sevennet-0",
    "mace-l1:rows",
]
QUICK = ["mace-l1", "mace-l1:rows", "lmax3", "segments"]
CHANNELWISE = [problem.id for problem in problems.TENSOR_PRODUCTS.values() if problem.mode == "uvu"]
OTHERS = [n for n in (*CHANNELWISE, *(f"lmax{l}" for l in (1, 2, 4, 6, 8, 10))) if n not in QUICK]  # lmax15: minutes
MANY_VALUES = ("lmax8", "lmax10")  # more than a lane has registers
# of int64; other pointers are of numbers
POINTERS = {
    "far",
    "ptr",
    "at",
    "order",
    "arg",
    "out_ptr",
    "group_ptr",
    "scale",
    "a",
    "b",
}
PROGRAMS = {
    "gaunt": lambda: signals.product("product", 4, 4, 8, "fwd", (True,)),
    "gaunt:bwd": lambda: signals.product("product", 4, 4, 8, "bwd", (True,) * 2),
    "gaunt:bwdbwd": lambda: signals.product("product", 4, 4, 8, "bwdbwd", (True,) * 3),
    "gaunt-l6": lambda: signals.product("product", 6, 6, 6, "fwd", (True,)),
    "gaunt-l8": lambda: signals.product("product", 8, 8, 16, "fwd", (True,)),
    "gaunt-odd": lambda: signals.product("odd", 4, 4, 8, "fwd", (True,)),
    "gaunt-odd:bwd": lambda: signals.product("odd", 4, 4, 8, "bwd", (True,) * 2),
    "gaunt-cross": lambda: signals.product("cross", 3, 3, 3, "bwdbwd", (True,) * 3),
    "many-body": lambda: signals.powers(3, 3, 3, 0),
    "many-body:bwd": lambda: signals.powers_adjoint(3, 3, 3, 0),
}
QUICK_PROGRAMS = ["gaunt", "gaunt:bwd", "many-body", "many-body:bwd"]
TABLES = {
    "table": lambda: couplings.gaunt("product", 2, 2, 4, "bwd", (True,) * 2),
    "table-long": lambda: couplings.gaunt("product", 4, 4, 8, "fwd", (True,)),
}
MATRICES = {
    "matrix": lambda: matrices.product(3, 3, 3, False, "fwd", (True,)),
    "matrix-split:bwd": lambda: matrices.product(4, 4, 4, True, "bwd", (True,) * 2),
    "matrix-split:bwdbwd": lambda: matrices.product(4, 4, 4, True, "bwdbwd", (True,) * 3),
    "matrix-l6": lambda: matrices.product(6, 6, 6, False, "fwd", (True,)),
    "matrix-l6-split:bwdbwd": lambda: matrices.product(6, 6, 6, True, "bwdbwd", (True,) * 3),
    "matrix-l15:bwd": lambda: matrices.product(15, 15, 15, False, "bwd", (True,) * 2),
}
QUICK_MATRICES = ["matrix", "matrix-l6"]


def run(target: str, real: str, *names: str) -> list[dict]:
    """Rows of the table, one per kernel."""
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    done = subprocess.run(
        [sys.executable, __file__, target, real, *names], env=environment, capture_output=True, text=True, timeout=280
    )
    print(done.stdout)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    return [json.loads(line.split("|")[1]) for line in done.stdout.splitlines()]


@sweep("names", [QUICK, *([name] for name in OTHERS)], [QUICK], ids=" ".join)
def test_registers(names):
    """Every kernel compiles for sm_90; those of the usual workloads keep everything in registers."""
    pytest.importorskip("triton")
    table = run("sm_90", "float32", *names)
    assert {row["name"] for row in table} == {*names} and all(0 < row["registers"] <= 255 for row in table)
    may_spill = {*CHANNELWISE, *MANY_VALUES}.difference(WITHOUT_SPILLS)
    assert not [row for row in table if row["spills"] and row["name"] not in may_spill]


OTHER_PROGRAMS = [name for name in (*PROGRAMS, *MATRICES) if name not in (*QUICK_PROGRAMS, *QUICK_MATRICES)]


@sweep(
    "names",
    [QUICK_PROGRAMS, [*TABLES, *QUICK_MATRICES], *([name] for name in OTHER_PROGRAMS)],
    every_run=[QUICK_PROGRAMS, [*TABLES, *QUICK_MATRICES]],
    ids=" ".join,
)
def test_registers_of_programs(names):
    """Every kernel of a program or a table keeps everything in registers."""
    pytest.importorskip("triton")
    table = run("sm_90", "float32", *names)
    assert {row["name"] for row in table} == {*names}
    assert not [row for row in table if row["spills"] or not 0 < row["registers"] <= 255]


@sweep("real", ["float64", "bfloat16", "float16"], ["float64", "bfloat16"])
@sweep("size", ["small", "large"], ["small"])
def test_other_types(real, size):
    """float64 and storage in half precision; nothing is calculated in less than the type says."""
    pytest.importorskip("triton")
    if size == "small":
        table = run("sm_90", real, "mace-l1", "lmax2", "many-body", "table", "matrix")
        assert not [row for row in table if row["spills"]]
    else:
        table = run("sm_90", real, "matrix-l6")
        assert not [row for row in table if row["spills"]]
        table += run("sm_90", real, "segments", "table-long")
    assert {width for row in table for width in row["arithmetic"]} == {"f64" if real == "float64" else "f32"}


SMALL = ["mace-l1", "lmax2", "many-body", "table", "matrix"]


@sweep("names", [SMALL, ["segments", "gaunt", "gaunt:bwd", "table-long", "matrix-l6"]], [SMALL], ids=["small", "large"])
def test_amd(names):
    """The same kernels for an MI300."""
    pytest.importorskip("triton.backends.amd")
    table = run("gfx942", "float32", *names)
    assert table and not [row for row in table if row["spills"]]


def test_spills_are_seen():
    """By the same way to the table, where a lane gets 16 points."""
    pytest.importorskip("triton")
    assert run("sm_90", "float32", "too-wide")[0]["spills"] > 100


# ------------------------------------------------------------------------ in the other process
def sources(name: str, real: str, lanes: int):
    """(kernel name, function, outputs and inputs that are not None, constants, warps); lanes: of a warp"""
    import triton

    from eqtp import kernels
    from eqtp.kernels import channelwise, couplings, harmonics, matrices, segments, signals

    wide = "float64" if real == "float64" else "float32"
    if name == "segments":
        for f, configurations in segments.FUNCTIONS.values():
            for columns in (1, 128):
                for constants, warps in configurations(columns):
                    yield f.__name__, f, {*f.arg_names}, {**constants, "REAL": getattr(triton.language, wide)}, warps
    elif name in PROGRAMS:
        for kernel, text, _ in signals.source(PROGRAMS[name](), wide):
            yield kernel, kernels.function(kernel, text, None), set(), {"B": lanes}, 1
    elif name in MATRICES:
        for kernel, text, _ in matrices.source(MATRICES[name](), wide):
            yield kernel, kernels.function(kernel, text, None), {"ptr", "at"}, {"B": lanes}, 1
    elif name == "table":
        kernel, text = couplings.source(TABLES[name](), wide)
        yield kernel, kernels.function(kernel, text, None), set(), {"B": lanes}, 1
    elif name == "table-long":
        assert not couplings.is_text(TABLES[name](), wide)
        yield (
            name,
            couplings._couple_by_table,
            {*couplings._couple_by_table.arg_names},
            {"B": couplings.BLOCK_SIZE},
            couplings.WARPS,
        )
    elif name == "too-wide":
        kernel, text = harmonics.source((0, 1, 2, 3), True, "component", False, True, False, wide, 1e-38)
        yield kernel, kernels.function(kernel, text), {"xyz", "out"}, {"B": 512}, 1
    elif name.startswith("lmax"):
        degrees = tuple(range(int(name.removeprefix("lmax")) + 1))
        for second, out, gxyz in ((False, True, False), (False, False, True), (True, True, True)):
            kernel, text = harmonics.source(degrees, True, "component", second, out, gxyz, wide, 1e-38)
            used = {"xyz", *(["g", "gxyz"] if gxyz else []), *(["out"] if out else []), *(["c"] if second else [])}
            yield kernel, kernels.function(kernel, text), used, *harmonics.CONFIGURATIONS[0]
    else:
        name, _, rows = name.partition(":")
        for pass_ in PASSES:
            forward, second = pass_.startswith("fwd"), pass_.endswith("2")
            used = {
                "x",
                "y",
                "w",
                *(["out"] if forward else ["g", "gx", "gy", "gw"]),
                *(["cx", "cy", "cw"] if second else []),
            }
            used |= set() if rows else {"far", "ptr", "order"}
            for kernel, text, unit in channelwise.source(
                problems.plan(name).key, pass_, wide, not rows, (not forward,) * 3
            ):
                yield kernel, kernels.function(kernel, text), used, *channelwise.configurations(unit, pass_)[0]


def compiled(function, used, constants, warps, real, target):
    """A kernel as the JIT compiles it: pointers of torch are divisible by 16 bytes, and so are the strides of these
    workloads."""
    import triton
    from triton.compiler import ASTSource

    number = {"float32": "*fp32", "float64": "*fp64", "float16": "*fp16", "bfloat16": "*bf16"}[real]
    pointers = {"x", "y", "w", "g", "cx", "cy", "cw", "out", "gx", "gy", "gw", "xyz", "c", "gxyz", *POINTERS}
    signature, values, attributes = {}, {}, {}
    for n, name in enumerate(function.arg_names):
        if re.fullmatch(
            r"(in|out)\d+|table|azimuth|rows|sums|coefficient|scratch", name
        ):  # not compiled again for another alignment
            signature[name] = number if name[-1].isdigit() or real == "float64" else "*fp32"
        elif name in constants or (name in pointers and name not in used):
            signature[name], values[n,] = "constexpr", constants.get(name)
        elif name in pointers:
            wide = name == "gy" and real != "float64"  # sums are never in half precision
            signature[name], attributes[n,] = (
                "*i64" if name in POINTERS else "*fp32" if wide else number,
                [["tt.divisibility", 16]],
            )
        else:
            signature[name] = "i32"
            if re.match(r"s[xywg]|sc|\w+_row", name):
                attributes[n,] = [["tt.divisibility", 16]]
    source = ASTSource(fn=function, signature=signature, constexprs=values, attrs=attributes)
    return triton.compile(source, target=target, options={"num_warps": warps, "num_stages": 2})


def resources(kernel) -> dict:
    """Registers, bytes of spills, and the types of arithmetic: by ptxas for NVIDIA, by what the assembly says of itself
    for AMD."""
    if "amdgcn" in kernel.asm:

        def found(key):
            return int(re.search(rf"\.{key}:\s+(\d+)", kernel.asm["amdgcn"])[1])

        return {"registers": found("vgpr_count"), "spills": found("vgpr_spill_count"), "arithmetic": []}
    from triton.backends.nvidia.compiler import get_ptxas

    ptx = kernel.asm["ptx"]
    architecture = re.search(r"\.target (sm_(\d+)\w*)", ptx)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "kernel.ptx")
        path.write_text(ptx)
        command = [
            get_ptxas(int(architecture[2])).path,
            "-v",
            f"-arch={architecture[1]}",
            str(path),
            "-o",
            f"{path}.cubin",
        ]
        report = subprocess.run(command, capture_output=True, text=True, check=True).stderr
    spills = re.findall(r"(\d+) bytes spill", report)
    arithmetic = sorted(set(re.findall(r"\b(?:fma|add|mul|sub)\.(?:rn\.)?(?:ftz\.)?(b?f\d+)", ptx)))
    return {
        "registers": int(re.search(r"Used (\d+) registers", report)[1]),
        "spills": sum(map(int, spills)),
        "arithmetic": arithmetic,
    }


def main(target: str, real: str, *names: str) -> None:
    from triton.backends.compiler import GPUTarget

    chip = GPUTarget("cuda", int(target[3:]), 32) if target.startswith("sm_") else GPUTarget("hip", target, 64)
    for name in names:
        for kernel, function, used, constants, warps in sources(name, real, chip.warp_size):
            start = time.perf_counter()
            row = {"name": name, **resources(compiled(function, used, constants, warps, real, chip))}
            blocks = " ".join(f"{k}{v}" for k, v in constants.items() if k != "REAL")
            seconds = time.perf_counter() - start
            print(f"{name:<22} {kernel:<34} {blocks:<9} {warps} warps {seconds:5.1f} s |{json.dumps(row)}", flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])

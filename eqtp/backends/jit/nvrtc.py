"""NVRTC, CUDA's run-time compiler, through ctypes: csrc/*.cuh to machine code. Needs no GPU, no driver and no CuPy.

CuPy's own compiler is not used: it adds -ftz=true, so its code would differ from nvcc's and from the code that is
checked without a GPU.
"""

from __future__ import annotations

import ctypes as C
import importlib.util
import os
import re
import sys
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

import torch

TEGRA = (72, 87, 101)  # other GPUs of the same generation cannot run their machine code
OPTIONS = ("-std=c++20", "-default-device", "--ptxas-options=-v")


# ------------------------------------------------------------------------ what this machine has
def major_version() -> str | None:
    """Major CUDA version of torch; None for a torch without CUDA."""
    return torch.version.cuda.split(".")[0] if torch.version.cuda else None


def remedy(missing: str) -> str:
    """The command that installs NVRTC ("nvrtc") or CuPy ("cupy") for torch's CUDA version."""
    major = major_version() or "13"
    nvrtc = "nvidia-cuda-nvrtc-cu12" if major == "12" else f"'nvidia-cuda-nvrtc=={major}.*'"
    return f"pip install {nvrtc if missing == 'nvrtc' else f'cupy-cuda{major}x'}"


def _folders(major: str) -> list[Path]:
    """Where libnvrtc may be, besides the places that the system's loader searches."""
    spec = importlib.util.find_spec("nvidia")  # the namespace of NVIDIA's wheels; finding it imports nothing
    wheels = [Path(p) for p in (spec.submodule_search_locations or ())] if spec else []
    toolkits = [Path(p) for p in (os.environ.get("CUDA_HOME"), os.environ.get("CUDA_PATH"), "/usr/local/cuda") if p]
    inside = [p / f for p in wheels for f in (f"cu{major}/lib", "cuda_nvrtc/lib")]
    return [*inside, *(p / f for p in toolkits for f in ("lib64", "lib")), Path(sys.prefix, "lib")]


def _open(major: str) -> C.CDLL:
    """libnvrtc of one major version. Raises OSError."""
    for folder in _folders(major):
        if (folder / f"libnvrtc.so.{major}").exists():
            # NVRTC opens its builtins by their bare name: load them first
            for builtins in folder.glob(f"libnvrtc-builtins.so.{major}.*"):
                C.CDLL(str(builtins))
            return C.CDLL(str(folder / f"libnvrtc.so.{major}"))
    return C.CDLL(f"libnvrtc.so.{major}")


@lru_cache
def library() -> C.CDLL:
    """NVRTC, of torch's own CUDA version if it has one, because the driver can load that. Raises RuntimeError."""
    errors = []
    for major in (major_version(),) if major_version() else ("13", "12"):
        try:
            found = _open(major)
        except OSError as error:
            errors.append(str(error))
            continue
        found.nvrtcGetErrorString.restype = C.c_char_p
        return found
    raise RuntimeError(f"NVRTC, the run-time compiler of CUDA, is missing ({'; '.join(errors)}): {remedy('nvrtc')}")


# ------------------------------------------------------------------------ source
def folder() -> Path:
    """Folder of the kernel sources: inside an installed package, beside it in a source tree."""
    package = Path(__file__).resolve().parents[2]
    for place in (package / "csrc", package.parent / "csrc"):
        if (place / "common/device.cuh").exists():
            return place
    raise FileNotFoundError(
        f"eqtp's kernel sources (csrc/*.cuh) are missing in {package} and beside it: install eqtp again"
    )


def source(*files: str) -> str:
    """Text of files of csrc/ with their local #includes expanded, each once; #line keeps file names and line numbers in
    error messages. Raises FileNotFoundError."""
    place, seen, lines = folder(), set(), []

    def inline(name: str, wanted_by: str) -> None:
        if name in seen:
            return
        seen.add(name)
        if not (place / name).exists():
            raise FileNotFoundError(f"eqtp: {name}, wanted by {wanted_by}, is not in {place}")
        lines.append(f'#line 1 "{name}"')
        for n, line in enumerate((place / name).read_text(encoding="utf-8").splitlines(), 1):
            if include := re.match(r'\s*#\s*include\s*"([^"]+)"', line):
                inline(include[1], name)
                lines.append(f'#line {n + 1} "{name}"')
            else:
                lines.append("" if re.match(r"\s*#\s*pragma\s+once", line) else line)

    for file in files:
        inline(file, "source()")
    return "\n".join([*lines, '#line 1 "eqtp.cu"', ""])


# ------------------------------------------------------------------------ NVRTC
class Compiled(NamedTuple):
    """Machine code of one program: the cubin, the symbol of each requested name, and the compiler's log."""

    cubin: bytes
    lowered: dict[str, str]
    log: str


class Usage(NamedTuple):
    """What ptxas reports for a kernel: registers of a thread, bytes of stack and of register spills.

    Functions that were not inlined follow the kernels in the log; theirs count for the last kernel, so no spill is
    lost.
    """

    kernel: str
    registers: int
    stack: int
    spill_stores: int
    spill_loads: int


def _call(function: str, *args) -> None:
    status = getattr(library(), function)(*args)
    if status:
        raise RuntimeError(f"eqtp: {function}: {library().nvrtcGetErrorString(status).decode()}")


def version() -> tuple[int, int]:
    """(major, minor) of NVRTC."""
    major, minor = C.c_int(), C.c_int()
    _call("nvrtcVersion", C.byref(major), C.byref(minor))
    return major.value, minor.value


def architecture(device: torch.device) -> str:
    """Number of the sm_ architecture to compile for: the GPU's own or, if NVRTC does not know it, an older one of its
    generation. Raises RuntimeError if there is none."""
    capability = torch.cuda.get_device_capability(device)
    wanted, count = 10 * capability[0] + capability[1], C.c_int()
    _call("nvrtcGetNumSupportedArchs", C.byref(count))
    known = (C.c_int * count.value)()
    _call("nvrtcGetSupportedArchs", known)
    if wanted in known:
        return str(wanted)
    near = [n for n in known if n // 10 == capability[0] and n < wanted and n not in TEGRA]
    if not near:
        raise RuntimeError(
            f"eqtp: NVRTC {'.'.join(map(str, version()))} knows no code for {torch.cuda.get_device_name(device)} "
            f"(sm_{wanted})"
        )
    return str(max(near))


def _fetch(program: C.c_void_p, what: str) -> bytes:
    """The result `what` of a program: ProgramLog or CUBIN."""
    size = C.c_size_t()
    _call(f"nvrtcGet{what}Size", program, C.byref(size))
    buffer = C.create_string_buffer(size.value)
    _call(f"nvrtcGet{what}", program, buffer)
    return buffer.raw


def compile(text: str, names: Sequence[str], arch: str, options: Sequence[str] = ()) -> Compiled:
    """One call of NVRTC, not cached. names: kernels as written in C++, templates with their arguments; arch: "90" for
    sm_90. Raises RuntimeError with the compiler's log."""
    program, lowered = C.c_void_p(), {}
    _call("nvrtcCreateProgram", C.byref(program), text.encode(), b"eqtp.cu", 0, None, None)
    try:
        for name in names:
            _call("nvrtcAddNameExpression", program, name.encode())
        flags = [flag.encode() for flag in (f"-arch=sm_{arch}", *OPTIONS, *options)]
        status = library().nvrtcCompileProgram(program, len(flags), (C.c_char_p * len(flags))(*flags))
        messages = _fetch(program, "ProgramLog").rstrip(b"\0\n").decode(errors="replace")
        if status:
            raise RuntimeError(
                f"eqtp: NVRTC cannot compile {', '.join(names) or 'the program'} for sm_{arch}:\n{messages}"
            )
        for name in names:
            symbol = C.c_char_p()
            _call("nvrtcGetLoweredName", program, name.encode(), C.byref(symbol))
            lowered[name] = symbol.value.decode()
        return Compiled(_fetch(program, "CUBIN"), lowered, messages)
    finally:
        _call("nvrtcDestroyProgram", C.byref(program))


def usage(log: str) -> list[Usage]:
    """Registers, stack and spills of every kernel in the log of `compile`."""
    kernels = []
    for block in log.split("Compiling entry function ")[1:]:
        frames = re.findall(r"(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads", block)
        registers = re.search(r"Used (\d+) registers", block)
        kernels.append(
            Usage(
                block.split("'")[1], int(registers[1]), *(sum(map(int, column)) for column in zip(*frames, strict=True))
            )
        )
    return kernels

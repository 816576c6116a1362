"""CUDA kernels without a GPU: builds them as C++ behind cuda_cpu.h and calls them on CPU tensors, or runs whole
programs under a sanitizer.

How they run is set by the environment variables EQTP_CPU_ORDER, EQTP_CPU_SEED and EQTP_CPU_THREADS (see cuda_cpu.h),
read at every launch.
"""

import ctypes
import functools
import hashlib
import os
import shutil
import struct
import subprocess
import tempfile
from pathlib import Path

import numpy as np
import torch

from eqtp.backends.jit.runtime import Struct

HEADER = Path(__file__).with_name("cuda_cpu.h")
CSRC = Path(__file__).parents[1] / "csrc"
# libraries must not share the statics of equal names
FLAGS = [
    "-std=c++20",
    "-O1",
    "-w",
    "-pthread",
    "-fvisibility=hidden",
    "-fno-gnu-unique",
]
SANITIZERS = {
    None: [],
    "address": ["-g", "-fsanitize=address,bounds,alignment", "-fno-sanitize-recover=all"],
    "thread": ["-g", "-fsanitize=thread"],
}
SCALARS = {
    "bool": (ctypes.c_bool, "?"),
    "int": (ctypes.c_int, "i"),
    "unsigned": (ctypes.c_uint, "I"),
    "long long": (ctypes.c_longlong, "q"),
    "eqtp::Index": (ctypes.c_longlong, "q"),
    "float": (ctypes.c_float, "f"),
    "double": (ctypes.c_double, "d"),
}
STRUCTS = ("eqtp::ConvParams", "eqtp::HarmonicsArrays")  # that kernels take by value
LIBRARY = """
extern "C" __attribute__((visibility("default"))) const char* {symbol}(dim3* d, size_t shared, void** a) {{
  static std::string error;
  try {{
    eqtp::launch({name}, d[0], d[1], shared, nullptr{arguments});
    return nullptr;
  }} catch (const std::exception& e) {{
    return (error = e.what()).c_str();
  }}
}}
"""
# Reads what Kernel._run_apart wrote, gives each tensor a piece of the heap of just its size, runs the kernel and writes
# the tensors back.
PROGRAM = """
#include <cstdio>
int main(int, char** argv) {
  FILE* in = std::fopen(argv[1], "rb");
  dim3 d[2];
  long long head[4];  // kernel, shared memory, arguments, pointers in structs
  if (!in || !std::fread(d, sizeof d, 1, in) || !std::fread(head, sizeof head, 1, in)) return 2;
  std::vector<void*> a(head[2]);
  std::vector<size_t> bytes(head[2]);
  for (long long i = 0, size; i < head[2]; ++i) {  // >= 0: bytes, which follow; < 0: the same as argument -1 - size
    if (!std::fread(&size, sizeof size, 1, in)) return 2;
    if (size < 0) { a[i] = a[-1 - size]; continue; }
    bytes[i] = size, a[i] = size ? std::malloc(size) : nullptr;
    if (size && !std::fread(a[i], size, 1, in)) return 2;
  }
  for (long long n = 0, at[3]; n < head[3]; ++n) {  // argument, byte in it, argument whose address stands there
    if (!std::fread(at, sizeof at, 1, in)) return 2;
    std::memcpy(static_cast<char*>(a[at[0]]) + at[1], &a[at[2]], sizeof(void*));
  }
  std::fclose(in);
  const char* (*const kernels[])(dim3*, size_t, void**) = {%s};
  if (const char* error = kernels[head[0]](d, head[1], a.data())) return std::puts(error), 1;
  FILE* out = std::fopen(argv[2], "wb");
  for (size_t i = 0; i < a.size(); ++i)
    if (bytes[i]) std::fwrite(a[i], bytes[i], 1, out);
  return std::fclose(out);
}
"""


def _run(command: list, **options) -> str:
    """Standard output of a command; RuntimeError with all that it printed where it fails."""
    result = subprocess.run(
        [str(part) for part in command], capture_output=True, text=True, errors="replace", **options
    )
    if result.returncode:
        raise RuntimeError(f"{Path(command[0]).name} ended with {result.returncode}\n{result.stdout}{result.stderr}")
    return result.stdout


def _cached(name: str, command: list, source: str | None = None) -> Path:
    """Folder with the file `name` that the compiler makes by `command`, of `source` if given; keyed by all that it
    depends on."""
    base = Path(os.environ.get("EQTP_EMULATION_CACHE") or f"{tempfile.gettempdir()}/eqtp-emulation-{os.getuid()}")
    base.mkdir(mode=0o700, parents=True, exist_ok=True)
    if base.stat().st_uid != os.getuid():
        raise RuntimeError(f"{base} belongs to another user; set EQTP_EMULATION_CACHE")
    key = hashlib.sha256(_compiler().encode())
    headers = _headers() if source is None else [*_headers(), *_sources()]
    for text in (*command, source or "", *(path.read_text() for path in headers)):
        key.update(str(text).encode() + b"\0")
    folder = base / key.hexdigest()[:24]
    if not (folder / name).exists():
        folder.mkdir(exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder) as scratch:
            if source is not None:
                command = [*command, Path(scratch) / "source.cpp"]
                command[-1].write_text(source)
            made = Path(scratch) / name
            _run([*command, "-o", made])
            os.replace(made, folder / name)
    return folder


@functools.cache
def _compiler() -> str:
    if not shutil.which("g++"):
        raise RuntimeError("g++ is not installed")
    return _run(["g++", "--version"])


def _headers() -> list[Path]:
    return [HEADER, *sorted(HEADER.parent.glob("cuda/*.h"))]


def _sources() -> list[Path]:
    """All that a kernel source may include."""
    return sorted([*CSRC.glob("*/*.cuh"), *CSRC.glob("*/*.h"), *HEADER.parent.glob("cuda/*.cuh")])


def _compile(source: str, kind: str | None, name: str, *flags: str) -> Path:
    if kind not in SANITIZERS:
        raise ValueError(f"sanitize must be one of {list(SANITIZERS)}, got {kind!r}")
    flags = ["g++", *FLAGS, *SANITIZERS[kind], *flags]
    header = _cached("cuda_cpu.h.gch", [*flags, "-x", "c++-header", HEADER])
    return (
        _cached(name, [*flags, "-I", header, "-I", HEADER.parent, "-I", CSRC], f'#include "cuda_cpu.h"\n{source}')
        / name
    )


def run_program(source: str, sanitize: str | None = None, *arguments, timeout: float = 120) -> str:
    """Builds a C++ program (cuda_cpu.h is included already; sanitize: None, "address" or "thread"), runs it and returns
    what it prints.

    Raises RuntimeError with the compiler's errors, or with all that the program printed if it fails or a sanitizer
    reports.
    """
    program = _compile(source, sanitize, "program", "-fPIE")
    # TSan bears little randomness
    fixed = ["setarch", "-R"] if sanitize == "thread" and _addresses_can_be_fixed() else []
    environment = os.environ | {"ASAN_OPTIONS": "detect_leaks=0", "TSAN_OPTIONS": "exitcode=66"}
    return _run([*fixed, program, *arguments], env=environment, timeout=timeout)


@functools.cache
def _addresses_can_be_fixed() -> bool:
    return (
        bool(shutil.which("setarch")) and subprocess.run(["setarch", "-R", "true"], capture_output=True).returncode == 0
    )


@functools.cache
def why_not(sanitize: str | None) -> str | None:
    """None if kernels can be built and run here with this sanitizer, otherwise the reason."""
    try:
        run_program("int main() {}", sanitize)
    except (RuntimeError, OSError) as error:
        return f"{sanitize or 'plain'} build: {error}"


def build(source: str, entry_points: dict[str, list[str]], sanitize: str | None = None) -> "dict[str, Kernel]":
    """Kernels of a CUDA source as callables on CPU tensors.

    source: C++/CUDA text; csrc and tests are include folders. entry_points: for each kernel, written as in C++
    ("eqtp::segment_sum_kernel<float>"), the C++ types of its parameters: pointers or bool, int, unsigned, long long,
    eqtp::Index, float, double, or one of STRUCTS, in place of which a `Struct` is passed. With sanitize="address" or
    "thread" every call runs in a process of its own, on copies that have exactly the size of the tensors. Raises
    RuntimeError with the compiler's errors, ValueError for other types.
    """
    functions = ""
    for number, (name, types) in enumerate(entry_points.items()):
        for kind in types:
            if not kind.rstrip().endswith("*") and kind not in SCALARS and not kind.startswith(STRUCTS):
                raise ValueError(f"{name}: parameters must be pointers or one of {sorted(SCALARS)}, got {kind!r}")
        arguments = "".join(
            f", ({kind})a[{i}]" if "*" in kind else f", *({kind}*)a[{i}]" for i, kind in enumerate(types)
        )
        functions += LIBRARY.format(symbol=f"eqtp_kernel_{number}", name=name, arguments=arguments)
    library = None
    if sanitize is None:
        library = ctypes.CDLL(str(_compile(source + functions, None, "kernels.so", "-fPIC", "-shared")))
    text = source + functions + PROGRAM % ", ".join(f"eqtp_kernel_{number}" for number in range(len(entry_points)))
    return {
        name: Kernel(name, types, number, library, text, sanitize)
        for number, (name, types) in enumerate(entry_points.items())
    }


class Kernel:
    """kernel(grid, block, shared_bytes, *arguments): grid and block are ints or tuples, arguments contiguous CPU
    tensors, None or numbers.

    Raises RuntimeError where a barrier is not reached by all threads, the launch is impossible or a sanitizer reports.
    """

    def __init__(self, name, types, number, library, text, sanitize):
        self.name, self.types, self.number, self.text, self.sanitize = name, types, number, text, sanitize
        if library is not None:
            self.function = library[f"eqtp_kernel_{number}"]
            self.function.restype = ctypes.c_char_p
            self.function.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_void_p]

    def __call__(self, grid, block, shared_bytes, *arguments):
        if len(arguments) != len(self.types):
            raise TypeError(f"{self.name} takes {len(self.types)} arguments, got {len(arguments)}")
        sizes = [*self._three(grid), *self._three(block)]
        for kind, value in zip(self.types, arguments, strict=True):
            self._check(kind, value)
        if self.sanitize:
            return self._run_apart(sizes, shared_bytes, arguments)
        cells = [
            _packed(value) if isinstance(value, Struct) else value if "*" in kind else SCALARS[kind][0](value)
            for kind, value in zip(self.types, arguments, strict=True)
        ]
        pointers = [
            v.data_ptr()
            if isinstance(v, torch.Tensor)
            else v.ctypes.data
            if isinstance(v, np.ndarray)
            else v
            if v is None
            else ctypes.addressof(v)
            for v in cells
        ]
        error = self.function((ctypes.c_uint * 6)(*sizes), shared_bytes, (ctypes.c_void_p * len(pointers))(*pointers))
        if error:
            raise RuntimeError(f"{self.name}: {error.decode()}")

    def _check(self, kind: str, value) -> None:
        tensor = isinstance(value, torch.Tensor)
        if kind.startswith(STRUCTS) != isinstance(value, Struct):
            raise TypeError(f"{self.name}: {kind} must be a Struct, got {value!r}")
        pointer = "*" in kind
        if (tensor or value is None) != pointer or (
            tensor and (value.device.type != "cpu" or not value.is_contiguous())
        ):
            wanted = "contiguous CPU tensor or None" if pointer else "number"
            raise TypeError(f"{self.name}: {kind} must be a {wanted}, got {value!r}")

    @staticmethod
    def _three(size) -> tuple:
        return (*(size if isinstance(size, tuple | list) else (size,)), 1, 1)[:3]

    def _run_apart(self, sizes, shared_bytes, arguments):
        """The same in a process of its own; tensors that begin at one address are one there too. Tensors of structs
        follow the arguments."""
        inside = [
            (i, value.layout.fields[name][1], member)
            for i, value in enumerate(arguments)
            if isinstance(value, Struct)
            for name, member in zip(value.layout.names, value.values, strict=True)
            if isinstance(member, torch.Tensor)
        ]
        links = [(i, byte, len(arguments) + n) for n, (i, byte, _) in enumerate(inside)]
        arguments = [*arguments, *(member for _, _, member in inside)]
        head, first, raws = struct.pack("6I4q", *sizes, self.number, shared_bytes, len(arguments), len(links)), {}, []
        for i, (kind, value) in enumerate(zip([*self.types, *"*" * len(inside)], arguments, strict=True)):
            raws.append(_bytes(kind, value))
            if isinstance(value, torch.Tensor) and value.numel():
                seen = first.setdefault(value.data_ptr(), i)
                head += struct.pack("q", -1 - seen) if seen != i else struct.pack("q", len(raws[i])) + raws[i]
            else:
                head += struct.pack("q", len(raws[i])) + raws[i]
        head += b"".join(struct.pack("3q", *link) for link in links)
        with tempfile.TemporaryDirectory() as folder:
            paths = [Path(folder) / name for name in ("in", "out")]
            paths[0].write_bytes(head)
            try:
                run_program(self.text, self.sanitize, *paths)
            except RuntimeError as error:
                raise RuntimeError(f"{self.name}: {error}") from None
            data = paths[1].read_bytes()
        for i, value in enumerate(arguments):
            if isinstance(value, torch.Tensor) and value.numel() and first[value.data_ptr()] != i:
                continue
            if isinstance(value, torch.Tensor) and value.numel():
                flat = value.detach().view(-1).view(torch.uint8)
                flat.copy_(torch.frombuffer(bytearray(data[: flat.numel()]), dtype=torch.uint8))
            data = data[len(raws[i]) :]


def _packed(value: Struct) -> np.ndarray:
    """The bytes of a struct, [], with the addresses of its tensors."""
    return value.pack(lambda v: v if isinstance(v, np.generic) else np.uint64(0 if v is None else v.data_ptr()))


def _bytes(kind: str, value) -> bytes:
    """What an argument is made from."""
    if isinstance(value, torch.Tensor):
        return value.detach().view(-1).view(torch.uint8).numpy().tobytes() if value.numel() else b""
    if isinstance(value, Struct):
        return _packed(value).tobytes()
    return b"" if "*" in kind else struct.pack(SCALARS[kind][1], value)

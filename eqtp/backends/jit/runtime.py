"""Kernels compiled at run time: NVRTC compiles csrc/*.cuh to machine code, which is cached on disk, loaded and launched
through CuPy.

    text = source("segments/sum.cuh")  # keep it: the text alone determines the kernel and is its key
    kernel = kernels(text, ("scale<float>",), x.device)["scale<float>"]  # warm: one dict lookup
    launch(kernel, (blocks,), (128,), 0, x, None, np.int64(n))

Importing this module loads neither NVRTC nor CuPy and touches no GPU. Everything up to `compile_all` needs NVRTC only.
"""

from __future__ import annotations

import fcntl
import hashlib
import importlib.util
import json
import logging
import os
import sys
import threading
import time
import warnings
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch

from eqtp.backends.jit import nvrtc
from eqtp.backends.jit.nvrtc import OPTIONS, Compiled, architecture, compile, source, usage, version

__all__ = [
    "Compiled",
    "Kernel",
    "Struct",
    "cache_folder",
    "cached",
    "compile",
    "compile_all",
    "kernels",
    "launch",
    "load",
    "source",
    "usage",
    "why_not",
]

CACHE_FORMAT = 1  # of the files in the cache, part of every key
NOTICE_SECONDS = 1.0  # of compiling or waiting, after which a line on stderr says so
POLL_SECONDS = 0.05  # between two attempts to take a lock
MAX_GRID = (2**31 - 1, 65535, 65535)  # blocks of threads in x, y, z
DEFAULT_SHARED = (
    48 * 1024
)  # bytes of shared memory, static and dynamic, that a kernel may use without opting in to more
log = logging.getLogger("eqtp")


def why_not() -> str | None:
    """None if kernels can be compiled and launched here, else a sentence: what is missing and how to get it."""
    if not torch.version.cuda:
        return "this torch is built without CUDA; install one with it: https://pytorch.org/get-started/locally"
    if not torch.cuda.is_available():
        return (
            "torch finds no NVIDIA GPU (torch.cuda.is_available() is False): "
            "none is there or visible, or its driver is missing or too old"
        )
    try:
        nvrtc.library()
        nvrtc.folder()
    except (RuntimeError, FileNotFoundError) as error:
        return str(error)
    if importlib.util.find_spec("cupy") is None:
        return f"CuPy, which launches the kernels, is missing: {nvrtc.remedy('cupy')}"
    try:
        import cupy.cuda.function  # noqa: F401
    except Exception as error:  # whatever a broken installation raises, other families must still run
        return (
            f"CuPy is installed but cannot be imported ({error}); perhaps another CUDA version: {nvrtc.remedy('cupy')}"
        )
    return None


why_not._dynamo_marked_constant = True  # torch.compiler.assume_constant_result, which would import the compiler


# ------------------------------------------------------------------------ messages
def _notice(message: str) -> None:
    log.info(message)
    if os.environ.get("EQTP_QUIET", "0") in ("", "0"):
        print(f"eqtp: {message}", file=sys.stderr, flush=True)


@contextmanager
def _notice_if_slow(message: str):
    """Prints the message if the body takes longer than NOTICE_SECONDS, so that nobody wonders why nothing happens."""
    log.debug(message)
    timer = threading.Timer(NOTICE_SECONDS, _notice, (message,))
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()


@lru_cache  # once per folder
def _warn_no_cache(folder: Path, reason: str) -> None:
    message = (
        f"eqtp cannot keep compiled kernels in {folder} ({reason}): every process will compile them again; "
        "name another folder in EQTP_CACHE_DIR"
    )
    warnings.warn(message, RuntimeWarning, stacklevel=2)


# ------------------------------------------------------------------------ cache
_compiled: dict[str, Compiled] = {}
_key_locks: dict[str, threading.Lock] = {}  # entry -> held by the thread that reads or compiles it


def cache_folder() -> Path:
    """EQTP_CACHE_DIR, or eqtp in XDG_CACHE_HOME, or ~/.cache/eqtp. Its files may be deleted at any time."""
    named, base = os.environ.get("EQTP_CACHE_DIR"), os.environ.get("XDG_CACHE_HOME")
    return Path(named).expanduser() if named else Path(base or os.path.expanduser("~/.cache"), "eqtp")


def _read(path: Path) -> Compiled | None:
    """An entry: a line with the checksum of the rest, a line of JSON, the cubin. None if missing or damaged."""
    try:
        checksum, _, rest = path.read_bytes().partition(b"\n")
    except FileNotFoundError:
        return None
    if checksum == hashlib.sha256(rest).hexdigest().encode():
        head, _, cubin = rest.partition(b"\n")
        head = json.loads(head)
        if head["key"] == path.stem:
            return Compiled(cubin, head["lowered"], head["log"])
    _notice(f"{path} is damaged; it is deleted and its kernels are compiled again")
    path.unlink(missing_ok=True)
    return None


def _write(path: Path, compiled: Compiled) -> None:
    """Writes an entry atomically: a reader sees all of it or none."""
    head = {"key": path.stem, "lowered": compiled.lowered, "log": compiled.log}
    rest = json.dumps(head).encode() + b"\n" + compiled.cubin
    temporary = path.with_suffix(f".{os.getpid()}.{threading.get_ident()}.tmp")
    try:
        temporary.write_bytes(hashlib.sha256(rest).hexdigest().encode() + b"\n" + rest)
        os.replace(temporary, path)
    except OSError:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)
        raise


def _lock_seconds() -> float:
    text = os.environ.get("EQTP_LOCK_SECONDS", "60")
    try:
        return float(text)
    except ValueError:
        raise ValueError(f"EQTP_LOCK_SECONDS must be a number of seconds, got {text!r}") from None


def _try_lock(handle: int) -> bool:
    """Tries to take a lock."""
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:  # a file system without locks: at worst two processes do the same work
        pass
    return True


@contextmanager
def _lock(path: Path):
    """Keeps other processes from compiling the same kernels, for EQTP_LOCK_SECONDS at most. The system frees the lock
    of a process that died."""
    limit, taken = time.monotonic() + _lock_seconds(), False
    handle = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
    try:
        with _notice_if_slow(f"waiting for another process that compiles the same kernels (it holds {path})"):
            while not (taken := _try_lock(handle)) and time.monotonic() < limit:
                time.sleep(POLL_SECONDS)
        if not taken:
            _notice(
                f"another process holds {path} for more than {_lock_seconds():g} s (EQTP_LOCK_SECONDS); "
                "compiling here too"
            )
        yield
    finally:
        if taken:
            path.unlink(missing_ok=True)  # a process that waits on the old file will find the entry written
            fcntl.flock(handle, fcntl.LOCK_UN)  # closing is not enough: a forked child may have it open
        os.close(handle)


def _from_disk(key: str, make) -> Compiled:
    """The entry `key`, made and stored if there is none. A folder that cannot be used is not an error."""
    folder, made = cache_folder(), None
    path = folder / f"{key}.cubin"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        found = _read(path)
        if found is None:
            with _lock(path.with_suffix(".lock")):
                found = _read(path)  # perhaps another process has just written it
                if found is None:
                    found = made = make()
                    _write(path, made)
        return found
    except OSError as error:
        _warn_no_cache(folder, error.strerror or str(error))
        return made or make()


def cached(text: str, names: Sequence[str], arch: str, options: Sequence[str] = ()) -> Compiled:
    """`compile`, once per machine: cached in this process and in `cache_folder()`. Safe with several threads and
    processes; a damaged entry is compiled again. Raises RuntimeError with the compiler's log."""
    words = [text, list(names), arch, [*OPTIONS, *options], version(), CACHE_FORMAT]
    key = hashlib.sha256(json.dumps(words).encode()).hexdigest()
    found = _compiled.get(key)
    if found is None:

        def make() -> Compiled:
            more = f" and {len(names) - 1} more" if len(names) > 1 else ""
            with _notice_if_slow(
                f"compiling {names[0] if names else 'kernels'}{more} for sm_{arch} (kept in {cache_folder()})"
            ):
                return compile(text, names, arch, options)

        with _key_locks.setdefault(key, threading.Lock()):
            found = _compiled.get(key)
            if found is None:
                found = _compiled[key] = _from_disk(key, make)
    return found


def compile_all(
    programs: Iterable[tuple[str, Sequence[str]]], arch: str, options: Sequence[str] = ()
) -> list[Compiled]:
    """`cached` for many (text, names) at once, one thread per processor: NVRTC runs without Python's lock."""
    with ThreadPoolExecutor(os.cpu_count() or 1) as pool:
        return list(pool.map(lambda program: cached(*program, arch, options), programs))


# ------------------------------------------------------------------------ launch
class Kernel:
    """A kernel in the memory of one GPU."""

    def __init__(self, name: str, function, device: torch.device):
        self.name = name
        self.function = function  # cupy.cuda.function.Function, which keeps its module loaded
        self.device = device
        self.shared = 0  # bytes of dynamic shared memory that it has been allowed to use


_loaded: dict[tuple, dict[str, Kernel]] = {}
_streams: dict[tuple[int, int], object] = {}  # (device, handle of torch's stream) -> CuPy's object


def load(compiled: Compiled, device: torch.device) -> dict[str, Kernel]:
    """Loads machine code into a GPU: name -> kernel. Raises RuntimeError during CUDA graph capture."""
    from cupy.cuda.function import Module

    with torch.cuda.device(device):
        _not_while_capturing(tuple(compiled.lowered))
        module = Module()
        module.load(compiled.cubin)
        return {name: Kernel(name, module.get_function(symbol), device) for name, symbol in compiled.lowered.items()}


def _not_while_capturing(names: Sequence[str]) -> None:
    if torch.cuda.is_current_stream_capturing():
        raise RuntimeError(
            f"eqtp: {', '.join(names)} cannot be loaded during CUDA graph capture: run the same call once before it"
        )


def kernels(
    text: str, names: tuple[str, ...], device: torch.device, options: tuple[str, ...] = ()
) -> dict[str, Kernel]:
    """Kernels of a program on a GPU, compiled and loaded at the first call: name -> kernel. Raises RuntimeError with
    the compiler's log, or if the first call comes during CUDA graph capture."""
    found = _loaded.get((text, names, device, options))
    if found is None:
        if device.index is None:
            return kernels(text, names, torch.device(device.type, torch.cuda.current_device()), options)
        with torch.cuda.device(device):
            _not_while_capturing(names)  # before time is spent on compiling
        found = load(cached(text, names, architecture(device), options), device)
        found = _loaded.setdefault((text, names, device, options), found)  # another thread may have been faster
    return found


def _stream(device: torch.device):
    """CuPy's view of torch's current stream."""
    current = torch.cuda.current_stream(device)
    key = (device.index, current.cuda_stream)
    if key not in _streams:
        from cupy import cuda

        if hasattr(cuda.Stream, "from_external") and hasattr(current, "__cuda_stream__"):
            _streams[key] = cuda.Stream.from_external(current)
        else:  # CuPy before 14, torch before 2.7
            _streams[key] = cuda.ExternalStream(current.cuda_stream, device.index)
    return _streams[key]


class Struct(NamedTuple):
    """A struct that a kernel takes by value. layout: its members in order, pointers as uint64 (a structured dtype with
    align=True); values: one per member, as for `launch`."""

    layout: np.dtype
    values: tuple

    def pack(self, argument: Callable) -> np.ndarray:
        """The struct as C++ lays it out, []; argument(value) -> the NumPy value of a tensor, None or a number."""
        packed = np.zeros((), self.layout)
        for name, value in zip(self.layout.names, self.values, strict=True):
            member = argument(value)
            if member.dtype != self.layout[name]:
                raise TypeError(f"member {name} must be {self.layout[name]}, got {member.dtype}")
            packed[name] = member
        return packed


def _argument(kernel: Kernel, n: int, value) -> np.generic | np.ndarray:
    """An argument as the kernel receives it: an 8-byte address, a NumPy scalar by its type's size, or a struct, whose
    bytes CuPy copies."""
    if isinstance(value, Struct):
        return value.pack(lambda member: _argument(kernel, n, member))
    if value is None:
        return np.uint64(0)
    if isinstance(value, torch.Tensor):
        if value.device != kernel.device:
            raise ValueError(f"{kernel.name}: argument {n} must be on {kernel.device}, got a tensor on {value.device}")
        return np.uint64(value.data_ptr())
    if isinstance(value, np.generic):
        return value
    raise TypeError(
        f"{kernel.name}: argument {n} must be a tensor, None or a NumPy scalar of the parameter's type, "
        f"got {type(value).__name__}"
    )


def launch(kernel: Kernel, grid: tuple[int, ...], block: tuple[int, ...], shared: int, *args) -> None:
    """Launches on torch's current stream of the kernel's GPU and does not wait. An empty grid launches nothing.

    shared: bytes of dynamic shared memory. args: tensors (the address of the first element) or None (a null pointer)
    for pointers, NumPy scalars of exactly the parameter's type for numbers, `Struct` for structs. Raises TypeError for
    other arguments, ValueError for a tensor on another device or a grid beyond CUDA's limits.
    """
    if any(n > limit for n, limit in zip(grid, MAX_GRID, strict=False)):
        raise ValueError(f"{kernel.name}: grid must be at most {MAX_GRID}, got {grid}")
    packed = [_argument(kernel, n, value) for n, value in enumerate(args)]
    if 0 in grid:  # CuPy would make it 1
        return
    with torch.cuda.device(kernel.device):
        if shared > kernel.shared:
            from cupy.cuda import driver

            driver.funcSetAttribute(kernel.function.ptr, driver.CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES, shared)
            kernel.shared = shared
        kernel.function(grid, block, packed, shared, _stream(kernel.device))

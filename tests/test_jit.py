"""Kernels compiled at run time (R15, R16): the cache on disk, its locks, its messages."""

import fcntl
import os
import subprocess
import sys
import threading
import time
from contextlib import contextmanager

import pytest
from conftest import forget

from eqtp.backends.jit import runtime

pytestmark = pytest.mark.usefixtures("jit_cache")
TEXT = """
template <class T> __global__ void scale(T* x, T a, long long n) {
  const long long i = blockIdx.x * (long long)blockDim.x + threadIdx.x;
  if (i < n) x[i] *= a;
}
"""
NAMES = ("scale<float>", "scale<double>")


def entries(folder):
    return sorted(folder.glob("*"))


# ------------------------------------------------------------------------ the cache
def test_compiled_once(compiles, jit_cache):
    first = runtime.cached(TEXT, NAMES, "90")
    assert runtime.cached(TEXT, list(NAMES), "90") is first  # from memory
    forget()
    assert runtime.cached(TEXT, NAMES, "90") == first  # from disk, every byte
    assert len(compiles) == 1
    assert [path.suffix for path in entries(jit_cache)] == [".cubin"]  # no lock and no temporary file is left


def test_real_code_from_disk(compiler, jit_cache):
    first = runtime.cached(TEXT, NAMES, "90")
    forget()
    assert runtime.cached(TEXT, NAMES, "90") == first and len(runtime.usage(first.log)) == 2


@pytest.mark.parametrize("what", ["text", "names", "arch", "options", "NVRTC", "format"])
def test_other_key_other_entry(compiles, jit_cache, monkeypatch, what):
    runtime.cached(TEXT, NAMES, "90")
    forget()
    if what == "NVRTC":
        monkeypatch.setattr(runtime, "version", lambda: (13, 1))
    if what == "format":
        monkeypatch.setattr(runtime, "CACHE_FORMAT", runtime.CACHE_FORMAT + 1)
    changed = {
        "text": (TEXT + "\n", NAMES, "90"),
        "names": (TEXT, NAMES[:1], "90"),
        "arch": (TEXT, NAMES, "100"),
        "options": (TEXT, NAMES, "90", ("-G",)),
    }
    runtime.cached(*changed.get(what, (TEXT, NAMES, "90")))
    assert len(compiles) == len(entries(jit_cache)) == 2


def flip(data, at):
    return data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :]


DAMAGE = {
    "empty": lambda data: b"",
    "truncated": lambda data: data[:-5],
    "checksum only": lambda data: data[:65],
    "bit in the checksum": lambda data: flip(data, 3),
    "bit in the header": lambda data: flip(data, 80),
    "bit in the code": lambda data: flip(data, len(data) - 10),
    "something else": lambda data: b"\x7fELF" + bytes(1000),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_damaged_entry_is_made_again(compiles, jit_cache, capfd, damage):
    first = runtime.cached(TEXT, NAMES, "90")
    (path,) = entries(jit_cache)
    good = path.read_bytes()
    path.write_bytes(DAMAGE[damage](good))
    forget()
    assert runtime.cached(TEXT, NAMES, "90") == first
    assert len(compiles) == 2 and entries(jit_cache) == [path] and path.read_bytes() == good
    assert f"eqtp: {path} is damaged" in capfd.readouterr().err


def test_entry_of_another_program(compiles, jit_cache):
    """A file under the name of another one is whole, and still not taken."""
    runtime.cached(TEXT, NAMES, "90")
    (path,) = entries(jit_cache)
    runtime.cached(TEXT, NAMES, "100")
    (other,) = set(entries(jit_cache)) - {path}
    other.replace(path)
    forget()
    assert runtime.cached(TEXT, NAMES, "90").cubin.endswith(b"90") and len(compiles) == 3


@pytest.mark.parametrize(
    "environment, folder",
    [
        ({"EQTP_CACHE_DIR": "/a", "XDG_CACHE_HOME": "/b"}, "/a"),
        ({"XDG_CACHE_HOME": "/b"}, "/b/eqtp"),
        ({"HOME": "/c"}, "/c/.cache/eqtp"),
        ({"HOME": "/c", "EQTP_CACHE_DIR": "~/d"}, "/c/d"),
    ],
)
def test_cache_folder(monkeypatch, environment, folder):
    for name in ("EQTP_CACHE_DIR", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert str(runtime.cache_folder()) == folder


def test_folder_that_cannot_be_used(compiles, tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    monkeypatch.setenv("EQTP_CACHE_DIR", str(tmp_path / "file" / "cache"))
    with pytest.warns(
        RuntimeWarning, match=r"cannot keep compiled kernels in .*file/cache \(Not a directory\).*EQTP_CACHE_DIR"
    ) as caught:
        for arch in ("80", "90", "90"):
            runtime.cached(TEXT, NAMES, arch)
    assert len(caught) == 1 and len(compiles) == 2


def test_entry_that_cannot_be_written(compiles, jit_cache, monkeypatch):
    def full(source, target):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "replace", full)
    with pytest.warns(RuntimeWarning, match=r"No space left on device"):
        made = runtime.cached(TEXT, NAMES, "90")
    assert made.cubin and len(compiles) == 1  # not compiled a second time for it
    assert entries(jit_cache) == []


# ------------------------------------------------------------------------ many at once
@pytest.mark.filterwarnings("ignore:eqtp cannot keep compiled kernels")
@pytest.mark.parametrize("usable", [True, False])
def test_threads_compile_once(compiles, jit_cache, monkeypatch, usable):
    """With the cache's lock and without it."""
    if not usable:
        jit_cache.touch()  # a file where the folder should be
    pretend = runtime.compile
    monkeypatch.setattr(runtime, "compile", lambda *a: (time.sleep(0.1), pretend(*a))[1])
    threads = [threading.Thread(target=runtime.cached, args=(TEXT, NAMES, "90")) for _ in range(8)]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    assert len(compiles) == 1


def test_compile_all(compiles, monkeypatch):
    """In the order they were given, and at the same time."""
    monkeypatch.setattr(os, "cpu_count", lambda: 4)
    pretend, together = runtime.compile, threading.Barrier(4, timeout=20)
    monkeypatch.setattr(runtime, "compile", lambda *a: (together.wait(), pretend(*a))[1])
    programs = [(f"{TEXT}// {n}", NAMES) for n in range(4)]
    made = runtime.compile_all(programs, "90")
    assert [m.cubin for m in made] == [b"cubin\n\0" + text.encode() + b"90" for text, _ in programs]
    assert runtime.compile_all(programs, "90") == made and len(compiles) == 4


PROCESS = """
import sys, time
from eqtp.backends.jit import runtime
calls, seconds = [], float(sys.argv[1])
def pretend(text, names, arch, options=()):
    calls.append(text)
    time.sleep(seconds)
    return runtime.Compiled(b"code", {}, "")
runtime.compile, runtime.version = pretend, lambda: (13, 0)
print("ready", flush=True)
sys.stdin.readline()
made = runtime.cached("text", (), "90")
print(len(calls), made.cubin.decode())
"""


def start(seconds):
    """A process that compiles "text", in so many seconds, as soon as it is told to."""
    pipe = subprocess.PIPE
    process = subprocess.Popen(
        [sys.executable, "-c", PROCESS, str(seconds)], stdin=pipe, stdout=pipe, stderr=pipe, text=True
    )
    assert process.stdout.readline() == "ready\n"
    return process


def test_processes_compile_once(jit_cache):
    processes = [start(1.5), start(1.5)]
    for process in processes:
        process.stdin.write("\n")
        process.stdin.flush()
    results = [process.communicate(timeout=60) for process in processes]
    assert sorted(out for out, _ in results) == ["0 code\n", "1 code\n"]
    said = "".join(error for _, error in results)  # after a second both say why they stand still
    assert (
        f"eqtp: compiling kernels for sm_90 (kept in {jit_cache})" in said
        and "eqtp: waiting for another process" in said
    )
    assert [path.suffix for path in entries(jit_cache)] == [".cubin"]


def test_lock_of_a_dead_process(compiles, jit_cache):
    process = start(1000)
    process.stdin.write("\n")
    process.stdin.flush()
    deadline = time.monotonic() + 20
    while not list(jit_cache.glob("*.lock")) and time.monotonic() < deadline:
        time.sleep(0.02)
    process.kill()
    process.communicate()
    assert [path.suffix for path in entries(jit_cache)] == [".lock"]
    begin = time.monotonic()
    runtime.cached("text", (), "90")
    assert time.monotonic() - begin < 1 and len(compiles) == 1
    assert [path.suffix for path in entries(jit_cache)] == [".cubin"]


@contextmanager
def held(path):
    """The lock of an entry in the hands of someone who never finishes."""
    path.parent.mkdir(exist_ok=True)
    with open(path, "w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def test_time_limit_of_a_lock(compiles, jit_cache, monkeypatch, capfd):
    runtime.cached(TEXT, NAMES, "90")
    (path,) = entries(jit_cache)
    path.unlink()
    forget()
    monkeypatch.setenv("EQTP_LOCK_SECONDS", "0.3")
    lock = path.with_suffix(".lock")
    with held(lock):
        begin = time.monotonic()
        runtime.cached(TEXT, NAMES, "90")
        assert 0.3 <= time.monotonic() - begin < 2 and len(compiles) == 2
        assert lock.exists()  # it is not ours
    assert f"eqtp: another process holds {lock} for more than 0.3 s (EQTP_LOCK_SECONDS)" in capfd.readouterr().err
    monkeypatch.setenv("EQTP_LOCK_SECONDS", "soon")
    path.unlink()
    forget()
    with pytest.raises(ValueError, match="EQTP_LOCK_SECONDS must be a number of seconds, got 'soon'"):
        runtime.cached(TEXT, NAMES, "90")


@pytest.mark.parametrize("seconds, quiet, said", [(0.3, "0", True), (0.0, "0", False), (0.3, "1", False)])
def test_message_while_compiling(compiles, jit_cache, monkeypatch, capfd, caplog, seconds, quiet, said):
    monkeypatch.setattr(runtime, "NOTICE_SECONDS", 0.1)
    monkeypatch.setenv("EQTP_QUIET", quiet)
    caplog.set_level("INFO", logger="eqtp")
    pretend = runtime.compile
    monkeypatch.setattr(runtime, "compile", lambda *a: (time.sleep(seconds), pretend(*a))[1])
    runtime.cached(TEXT, NAMES, "90")
    message = f"compiling scale<float> and 1 more for sm_90 (kept in {jit_cache})"
    assert capfd.readouterr().err == (f"eqtp: {message}\n" if said else "")
    assert (message in caplog.messages) == (seconds > 0)

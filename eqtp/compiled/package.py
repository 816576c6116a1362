"""Traced graphs as AOTInductor packages: compiled once per machine, kept on disk, loaded without the model's code.

A package is a .pt2 file of torch with one more entry, `eqtp.json`: what the program takes and returns, and for which
machine it was compiled.
"""

from __future__ import annotations

import hashlib
import json
import os
import platform
import re
import tempfile
import warnings
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import torch

from eqtp.backends.jit.runtime import cache_folder
from eqtp.compiled.signature import Input, Signature
from eqtp.compiled.trace import Traced

FORMAT = 2
ENTRY = "eqtp.json"
# threads: as many as torch has at the call. freezing: weights of linear layers are laid out for the processor.
SETTINGS = {"cpp.dynamic_threads": True, "freezing": True}
INSTRUCTIONS = re.compile(r"(avx|sse|ssse|fma|f16c|bmi|amx|vaes|vpcl|gfni|adx|movbe|abm|sve|asimd)\w*$")


def machine() -> dict[str, str]:
    """For what a package is compiled: it runs only where all of this is there."""
    try:
        text = Path("/proc/cpuinfo").read_text()
    except OSError:
        text = ""
    flags = re.search(r"^(?:flags|Features)\s*:(.*)$", text, re.MULTILINE)
    instructions = sorted(filter(INSTRUCTIONS.match, flags[1].split())) if flags else []
    return {
        "torch": ".".join(torch.__version__.split(".")[:2]),
        "platform": f"{platform.system()} {platform.machine()}",
        "instructions": " ".join(instructions),
    }


# ------------------------------------------------------------------------ compiling
def key_of(traced: Traced) -> str:
    """Equal for programs whose packages are equal: the code, the constants, what it takes, torch, the processor."""
    words = [FORMAT, traced.module.code, traced.signature, SETTINGS, torch.__version__, machine()]
    digest = hashlib.sha256(json.dumps(words, default=str).encode())
    for name, t in _constants(traced.module):
        digest.update(f"{name} {t.dtype} {list(t.shape)} {t.device}".encode())
        digest.update(t.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def _constants(module: torch.fx.GraphModule) -> list[tuple[str, torch.Tensor]]:
    names = dict.fromkeys(node.target for node in module.graph.nodes if node.op == "get_attr")
    return [(name, getattr(module, name)) for name in names]


def compile_package(traced: Traced, example: list[torch.Tensor], path: Path) -> None:
    """Exports and compiles the program into a package at this path, at once or not at all.

    Raises RuntimeError, with torch's words, if torch cannot.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=path.parent) as folder, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        made = os.path.join(folder, "package.pt2")
        try:
            with torch.no_grad():
                program = torch.export.export(traced.module, tuple(example), dynamic_shapes=_dynamic(traced.signature))
                torch._inductor.aoti_compile_and_package(program, package_path=made, inductor_configs=dict(SETTINGS))
        except Exception as error:
            raise RuntimeError(f"compile: torch cannot compile it: {type(error).__name__}: {error}") from error
        os.replace(made, path)


def _dynamic(signature: Signature) -> tuple:
    """The sizes in the form of torch.export: one Dim per free size, expressions of them, nothing for fixed sizes."""
    texts = [size for given in signature.inputs for size in given.shape if isinstance(size, str)]
    dims = {name: torch.export.Dim(name) for name in texts if name.isidentifier()}
    return tuple(
        {n: eval(size, {"__builtins__": {}}, dims) for n, size in enumerate(given.shape) if isinstance(size, str)}
        for given in signature.inputs
    )


def cached_package(traced: Traced, example: list[torch.Tensor], alone: bool = False) -> tuple[Path, Callable, bool]:
    """The package of this program, the loaded program, and whether it was on disk before; a damaged one is made
    again. alone: see `run_package`."""
    path = _folder() / f"{key_of(traced)}.pt2"
    if path.exists():
        try:
            return path, run_package(path, alone), True
        except RuntimeError:
            path.unlink()
    compile_package(traced, example, path)
    return path, run_package(path, alone), False


class Program(NamedTuple):
    """A package that is loaded."""

    path: Path
    run: Callable
    signature: Signature  # as it was traced, of what the caller gives
    ops: int


def remember(key: str | None, program: Program) -> None:
    """Writes down which package a model (`eqtp.compiled.known`) has."""
    if key is not None:
        path = _folder() / f"{key}.json"
        found = {"package": program.path.name, "signature": program.signature._asdict(), "ops": program.ops}
        temporary = path.with_suffix(f".{os.getpid()}")
        temporary.write_text(json.dumps(found))
        os.replace(temporary, path)


def remembered(key: str | None, alone: bool = False) -> Program | None:
    """The package of a model, loaded; None if it has none, or that is gone or damaged."""
    if key is None:
        return None
    folder = _folder()
    try:
        found = json.loads((folder / f"{key}.json").read_text())
        path = folder / found["package"]
        return Program(path, run_package(path, alone), signature_of(found), found["ops"])
    except (OSError, ValueError, RuntimeError):  # RuntimeError: of a package, or that there is none
        return None


def _folder() -> Path:
    """Where packages are kept: in eqtp's cache, or, with a warning, in a folder of this process."""
    folder = cache_folder() / "compiled"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if os.access(folder, os.W_OK):
            return folder
        reason = "it cannot be written to"
    except OSError as error:
        reason = str(error)
    warnings.warn(
        f"eqtp cannot keep compiled models in {folder} ({reason}): every process will compile them again; name another "
        "folder in EQTP_CACHE_DIR",
        RuntimeWarning,
        stacklevel=2,
    )
    return Path(tempfile.mkdtemp(prefix="eqtp-"))


# ------------------------------------------------------------------------ loading
def run_package(path: Path, alone: bool = False) -> Callable:
    """The program of a package: a callable that takes tensors and returns a list of tensors. alone: one call at a
    time, without the locks and events that a CUDA graph cannot hold.

    Raises RuntimeError if torch cannot load it.
    """
    try:  # what aoti_load_package returns holds one; this does not import torch's compilers, which takes seconds
        loader = torch._C._aoti.AOTIModelPackageLoader(str(path), "model", alone, 1, -1)
    except (AttributeError, TypeError):  # another torch
        return torch._inductor.aoti_load_package(str(path), run_single_threaded=alone)
    return lambda *tensors: loader.run(list(tensors))


def write_record(path: Path, record: dict) -> None:
    """Adds the entry `eqtp.json`, with the machine, to a package that has none yet."""
    with zipfile.ZipFile(path, "a", zipfile.ZIP_STORED) as archive:
        names = archive.namelist()
        entry = f"{names[0].split('/')[0]}/extra/{ENTRY}"
        if entry not in names:
            archive.writestr(entry, json.dumps({"format": FORMAT, "machine": machine()} | record))


def read_record(path: Path) -> dict:
    """The entry `eqtp.json` of a package, checked.

    Raises FileNotFoundError, ValueError for another kind of file, RuntimeError, which says what differs, for a package
    that was made for another torch or processor.
    """
    if not path.exists():
        raise FileNotFoundError(f"load: there is no file {path}")
    entries = []
    if zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            entries = [archive.read(name) for name in archive.namelist() if name.endswith(f"/{ENTRY}")]
    if not entries:
        raise ValueError(f"load: {path} was not written by save of a model that eqtp compiled")
    record = json.loads(entries[0])
    if record["format"] != FORMAT:
        raise RuntimeError(f"load: {path} has format {record['format']}, this eqtp reads {FORMAT}: compile it again")
    for what, made in record["machine"].items():
        here = machine()[what]
        missing = set(made.split()) - set(here.split()) if what == "instructions" else {made} - {here}
        if missing:
            raise RuntimeError(
                f"load: {path} was compiled for {what} {' '.join(sorted(missing))}, which this machine does not have "
                f"(it has {here}): compile the model again here"
            )
    return record


def signature_of(record: dict) -> Signature:
    """The signature in a record."""
    found = record["signature"]
    inputs = tuple(Input(name, dtype, device, tuple(shape)) for name, dtype, device, shape in found["inputs"])
    return Signature(inputs, found["least"], tuple(found["conditions"]))

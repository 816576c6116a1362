"""`eqtp.compile`: a model with its forces as one compiled program; `eqtp.load`: such a program from a file."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import torch
from torch.utils import _pytree

from eqtp.backends.native import operators
from eqtp.compiled import known, package
from eqtp.compiled.buckets import GROWTH, Bucketed, without_counts
from eqtp.compiled.case import Case, case_of, read
from eqtp.compiled.compare import Mismatch, differences
from eqtp.compiled.signature import Signature
from eqtp.compiled.trace import check_example, trace, without_stack_traces
from eqtp.compiled.training import TrainingStep, training_case


class CompileReport(NamedTuple):
    """How a model was compiled. ``print(report)`` says it in four lines.

    differences: output -> largest difference from the eager model on the example, in the output's unit.
    """

    trace_seconds: float
    compile_seconds: float  # or loading it from disk
    from_disk: bool
    ops: int
    differences: dict[str, float]

    def __str__(self) -> str:
        found = ", ".join(f"{name} {value:.1e}" for name, value in self.differences.items())
        how = "found compiled on disk, loaded" if self.from_disk else "compiled"
        traced = f"traced in {self.trace_seconds:.1f} s" if self.trace_seconds else "known: not traced again"
        return (
            f"eqtp.compile: {self.ops} ops in one graph\n"
            f"  {traced}\n"
            f"  {how} in {self.compile_seconds:.1f} s\n"
            f"  differences from the eager model on the example: {found}"
        )


class CompiledModel:
    """A compiled program that is called as the model was.

    A model of a library is called with a mapping, reads what it needs, and writes its outputs into it, as SevenNet
    does; another one with tensors. Outputs have no gradients: those that the model takes are inside.

    Any sizes where ``signature`` has a name; no call compiles anything. report: `CompileReport`. Raises TypeError for a
    wrong kind, dtype or device of an input, ValueError for a wrong shape or a missing one.
    """

    def __init__(self, path: Path, run: Callable, record: dict, report: CompileReport):
        self.signature: Signature = package.signature_of(record)
        self.report = report
        self._path, self._run, self._record = path, run, record
        self._tree = None if record["tree"] is None else _pytree.treespec_loads(record["tree"])

    def __call__(self, *inputs, **options):
        known = self._record["options"]
        for name, value in options.items():
            if value and value != known.get(name):
                raise ValueError(f"compiled model: {name}={value!r} is not what it was compiled for; it has {known}")
        names = [given.name for given in self.signature.inputs]
        if len(inputs) != (1 if self._tree is None else len(names)):
            expected = "one mapping" if self._tree is None else f"{len(names)} tensors ({', '.join(names)})"
            raise TypeError(f"compiled model: {expected} expected, got {len(inputs)} arguments")
        if self._tree is not None:
            return _pytree.tree_unflatten(self._outputs(self.signature.check(inputs)), self._tree)
        tensors = read(inputs[0], names, "compiled model: the input", self._record["reshape"])
        outputs = dict(zip(self._record["outputs"], self._outputs(self.signature.check(tensors)), strict=True))
        if not self._record["writes"]:
            return outputs
        for name, t in outputs.items():
            inputs[0][name] = t
        return inputs[0]

    def _outputs(self, tensors: list[torch.Tensor]):
        try:
            with torch.no_grad():
                return self._run(*tensors)
        except RuntimeError as error:
            if (said := operators.value_error(error)) is None:
                raise
            raise ValueError(f"compiled model: {said}") from None

    def save(self, path) -> None:
        """Writes the program, with all weights, to a file for `eqtp.load`.

        The file is an AOTInductor package (torch's .pt2), compiled for this version of torch and this processor. What
        loads it must have eqtp's ops: `import eqtp` in Python, libeqtp_torch.so in C++; it does not need the model's
        code or library. Raises FileNotFoundError if the cache folder was emptied since.
        """
        if not self._path.exists():
            raise FileNotFoundError(f"save: {self._path} was deleted since the model was compiled; compile it again")
        shutil.copyfile(self._path, path)
        package.write_record(Path(path), self._record)

    def __repr__(self) -> str:
        given = ", ".join(map(str, self.signature.inputs))
        how = "loaded" if self.report.from_disk else "compiled"
        seconds = self.report.trace_seconds + self.report.compile_seconds
        return f"CompiledModel({given} -> {', '.join(self._record['outputs'])}; {how} in {seconds:.1f} s)"


def compile(
    model, example, *, cuda_graphs="auto", dynamic=True, buckets=None, loss=None
) -> CompiledModel | TrainingStep:
    """Energy, forces and stress of a model, or any function of tensors, as one compiled program.

    The model is traced with the derivatives that it takes into one graph of ops, for any number of atoms and edges,
    and compiled by AOTInductor (the C++ compiler of torch.compile is needed). Weights are those of now: compile again
    after training. Compiled programs are kept on disk, in EQTP_CACHE_DIR: a second process only loads them.

    model
        a SevenNet in evaluation mode or a MACE, accelerated (`eqtp.accelerate`) or not; or any callable f(*tensors)
        that returns tensors, or tuples and dicts of them, and may take derivatives by `torch.autograd.grad` inside.
    example
        an input, with at least two of all that may vary: atoms, edges. For a callable a tensor, or a tuple of them. It
        is not changed. With a loss: (input, targets).
    cuda_graphs
        True: on a GPU, one CUDA graph for each bucket. "auto", False: none.
    dynamic
        True: any number of atoms and edges; of a callable, any size of first dimensions, and of last ones of integer
        tensors, as far as the function leaves them free. False: the sizes of the example. For a callable also a tuple
        with a tuple per tensor: a name for each free dimension (equal names, equal sizes), None for each fixed one.
    buckets
        None: no padding, but 1.25 with cuda_graphs=True. A number above 1: inputs are padded to capacities of atoms and
        edges, of which each is so many times the one before. Not for a callable.
    loss
        loss(outputs, targets) -> []: a step of training is compiled, for a SevenNet in training mode, a MACE, or any
        torch.nn.Module. outputs: of a model of a library a dict, of another module what it returns.

    Returns a `CompiledModel`, with a loss a `TrainingStep`. Its result for the example, and for an atom alone, is
    compared with that of the model before: 1e-6 eV/atom, 1e-5 eV/A, 1e-6 eV/A^3 in float32, 1e-10 in float64, or the
    last two digits of larger numbers; of other callables, losses and gradients 1e-5 and 1e-10, relative to scale.
    Raises RuntimeError, with output and difference, on a mismatch, and for a model that cannot be traced or compiled;
    TypeError or ValueError for arguments of a wrong kind.
    """
    growth = _growth(buckets, cuda_graphs)
    if loss is not None:
        if growth is not None:
            raise ValueError("compile: a step of training has no buckets and no CUDA graphs")
        case, names, inputs = training_case(model, example, loss, dynamic)
        _, run, record, report = _compiled(case, None, False)
        return TrainingStep(model, names, inputs, run, package.signature_of(record), report)
    case = case_of(model, example, dynamic, growth is not None)
    _check_padding(case, growth, cuda_graphs)
    return CompiledModel(*_compiled(case, growth, cuda_graphs is True))


def _compiled(case: Case, growth: float | None, cuda_graphs: bool) -> tuple[Path, Callable, dict, CompileReport]:
    """Path and program of the package, padding included, what `save` writes, and the report."""
    names, tensors, dims = case.names, [t.detach() for t in case.tensors], case.dims
    if growth is not None:
        sizes = {dim: size for t, of in zip(tensors, dims, strict=True) for size, dim in zip(t.shape, of, strict=True)}
        counts = torch.tensor([sizes["atoms"], sizes["edges"]], device=tensors[0].device)  # [2]
        names, tensors, dims = ["counts", *names], [counts, *tensors], [(None,), *dims]
    check_example(names, tensors, dims)
    record = {"growth": growth, "cuda_graphs": cuda_graphs, "outputs": list(case.outputs), "tree": case.tree}
    record["options"] = {}
    record["rows"] = [given and given.rows for given in case.outputs.values()]
    if case.adapter is not None:
        options = case.adapter.options(False)
        record |= {"options": options, "reshape": case.adapter.reshape, "writes": case.adapter.writes}
    with torch.inference_mode(False), without_stack_traces():
        start = time.perf_counter()
        key = known.key_of(case, growth, cuda_graphs)
        program = package.remembered(key, cuda_graphs)
        if program is not None:
            try:
                return _checked(case, record, program, 0.0, time.perf_counter() - start, True)
            except RuntimeError:  # it is traced again, and compared again
                pass
        traced = trace(case.function if growth is None else case.padded, names, tensors, dims, case.strict)
        between = time.perf_counter()
        path, run, from_disk = package.cached_package(traced, tensors, cuda_graphs)
        end = time.perf_counter()
        signature = traced.signature if growth is None else without_counts(traced.signature)
        ops = sum(node.op == "call_function" for node in traced.module.graph.nodes)
        program = package.Program(path, run, signature, ops)
        checked = _checked(case, record, program, between - start, end - between, from_disk)
        package.remember(key, program)
    return checked


def _checked(case: Case, record: dict, program: package.Program, tracing: float, compiling: float, from_disk: bool):
    """As `_compiled`. Raises RuntimeError if the program gives other numbers than the model."""
    run = _with_padding(program.run, program.signature, record)
    found, signature = _compare(case, program.signature, run)
    report = CompileReport(tracing, compiling, from_disk, program.ops, found)
    return program.path, run, record | {"signature": signature._asdict(), "report": report._asdict()}, report


def load(path) -> CompiledModel:
    """The compiled model that `CompiledModel.save` wrote, without the model's code or library.

    Raises FileNotFoundError; ValueError for another kind of file; RuntimeError, which says what differs, if it was
    compiled for another version of torch or another processor.
    """
    path = Path(path)
    record = package.read_record(path)
    start = time.perf_counter()
    run = package.run_package(path, record["cuda_graphs"])
    run = _with_padding(run, package.signature_of(record), record)
    report = CompileReport(**record["report"])._replace(
        trace_seconds=0.0, compile_seconds=time.perf_counter() - start, from_disk=True
    )
    return CompiledModel(path, run, record, report)


# ------------------------------------------------------------------------ padding
def _growth(buckets, cuda_graphs) -> float | None:
    """From a bucket to the next; None: there are none."""
    if cuda_graphs is not True and cuda_graphs is not False and cuda_graphs != "auto":
        raise ValueError(f"compile: cuda_graphs must be 'auto', True or False, got {cuda_graphs!r}")
    if buckets is None:
        return GROWTH if cuda_graphs is True else None
    if isinstance(buckets, bool) or not isinstance(buckets, (int, float)) or not 1 < buckets < float("inf"):
        raise ValueError(f"compile: buckets must be None or a number above 1, got {buckets!r}")
    return float(buckets)


def _check_padding(case: Case, growth: float | None, cuda_graphs) -> None:
    device = case.tensors[0].device
    if cuda_graphs is True and device.type != "cuda":
        raise ValueError(f"compile: cuda_graphs=True needs a model on a GPU, this one is on {device}")
    if growth is not None and case.padded is None:
        raise ValueError("compile: buckets are there for models of a library that eqtp knows, not for any callable")


def _with_padding(run: Callable, signature: Signature, record: dict) -> Callable:
    if record["growth"] is None:
        return run
    return Bucketed(run, signature.inputs, record["rows"], record["growth"], record["cuda_graphs"])


def _compare(case: Case, signature: Signature, run: Callable) -> tuple[dict[str, float], Signature]:
    """Differences on the example, and the signature, with sizes 0 and 1 allowed if these are right as well.

    Raises RuntimeError if the compiled program gives other numbers for the example.
    """
    sizes = dict.fromkeys(size for given in signature.inputs for size in given.shape if isinstance(size, str))
    try:
        found = differences(case, case.tensors, case.expected, run(*signature.check(case.tensors)))
    except Mismatch as error:
        raise RuntimeError(f"compile: {error}; the compiled model is not returned") from None
    if case.small and sizes:
        smallest = signature._replace(least=0)
        try:
            for tensors in case.small:
                with torch.enable_grad():
                    expected = [t.detach() for t in case.function(*tensors)]
                differences(case, tensors, expected, run(*smallest.check(tensors)))
        except (Mismatch, RuntimeError, ValueError):
            return found, signature
        return found, smallest
    return found, signature

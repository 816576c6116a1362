"""The rules of CONTRIBUTING.md that a program can check: packages, dependencies, sizes, names, imports."""

import ast
import importlib.util
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from eqtp.backends import registry

ROOT = Path(__file__).parents[1]
PACKAGE = sorted(ROOT.glob("eqtp/**/*.py"))
KERNELS = sorted(ROOT.glob("kernels/*.py"))
PYTHON = sorted(
    path
    for folder in ("eqtp", "kernels", "bench", "examples", "docs", "tests")
    for path in ROOT.glob(f"{folder}/**/*.py")
)
NATIVE = sorted(path for path in ROOT.glob("csrc/*/*") if path.suffix in (".h", ".cpp", ".cu", ".cuh"))
# room -> rooms that it may import from; eqtp/__init__.py and __main__.py see everything
ROOMS = {
    "math": set(),
    "plans": {"math"},
    "kernels": {"plans", "math"},
    "backends": {"kernels", "plans", "math"},
    "ops": {"backends", "plans", "math"},
    "nn": {"ops", "plans", "math"},
    "testing": {"ops", "backends", "plans", "math"},
    "integrations": {"nn", "ops", "backends", "plans", "math"},
    "compiled": {"integrations", "nn", "ops", "backends", "plans", "math"},
}
WITHOUT_TORCH = {"math", "plans"}
# files of a family that serve several engines
SHARED = {"__init__", "library", "samples", "long_sums", "runtime", "nvrtc", "toolchain", "operators"}
OTHERS = {
    "e3nn",
    "sevenn",
    "mace",
    "nequip",
    "cuequivariance",
    "cuequivariance_torch",
    "sphericart",
    "ase",
    "scipy",
    "sympy",
}
COMPILERS = {"triton", "cupy"}  # imported by the kernels that need them, when they are asked for


def relative(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def module_of(path: Path) -> str:
    """eqtp/ops/graph.py -> eqtp.ops.graph; kernels/signals.py -> eqtp.kernels.signals"""
    parts = path.relative_to(ROOT).with_suffix("").parts
    parts = ("eqtp", *parts) if parts[0] == "kernels" else parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def room(module: str) -> str:
    """eqtp.ops.tensor_product -> ops"""
    return module.split(".")[1] if "." in module else "eqtp"


def imports(tree: ast.AST) -> set[str]:
    """Full names of what these statements import: of `from a import b`, a.b."""
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
    return found


def at_import(tree: ast.Module) -> ast.Module:
    """What runs when the module is imported: everything outside functions."""

    class Strip(ast.NodeTransformer):
        def visit_FunctionDef(self, node):
            return None

        visit_AsyncFunctionDef = visit_Lambda = visit_FunctionDef

    return Strip().visit(tree)


MODULES = {module_of(path): path for path in [*PACKAGE, *KERNELS]}


def dependencies(path: Path) -> set[str]:
    """The modules of eqtp that a file imports, anywhere in it."""
    found = set()
    for name in imports(ast.parse(path.read_text())):
        while name.startswith("eqtp.") and name not in MODULES:  # a name inside a module
            name = name.rpartition(".")[0]
        found |= {name} & set(MODULES)
    return found - {module_of(path)}


@pytest.mark.parametrize("path", [*PACKAGE, *KERNELS], ids=relative)
def test_dependencies_point_one_way(path):
    own = module_of(path)
    if own in {"eqtp", "eqtp.__main__"}:
        return
    here = room(own)
    assert {room(name) for name in dependencies(path)} - {here, "eqtp"} <= ROOMS[here]
    tree = ast.parse(path.read_text())
    roots = {name.split(".")[0] for name in imports(tree)}
    if here in WITHOUT_TORCH:
        assert "torch" not in roots
    if here != "integrations":
        assert not roots & OTHERS
    forbidden = OTHERS | (set() if here == "kernels" else COMPILERS)
    assert not {name.split(".")[0] for name in imports(at_import(tree))} & forbidden
    assert ("eqtp._native" in imports(tree)) == (own == "eqtp.backends.native.library")


def test_there_are_no_cycles():
    """Each module can be imported after all that it imports."""
    left = {
        name: dependencies(path) - {"eqtp"} for name, path in MODULES.items() if name not in {"eqtp", "eqtp.__main__"}
    }
    while ready := {name for name, needed in left.items() if not needed & set(left)}:
        left = {name: needed for name, needed in left.items() if name not in ready}
    assert not left


def test_every_module_has_a_room():
    """And nothing stands beside the rooms."""
    assert {path.name for path in ROOT.glob("eqtp/*.py")} == {"__init__.py", "__main__.py"}
    assert {room(name) for name in MODULES} - {"eqtp", "__main__"} == set(ROOMS)


def test_package_list():
    tomllib = pytest.importorskip("tomllib", reason="Python 3.10 has no tomllib")
    listed = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]
    found = {".".join(path.parent.relative_to(ROOT).parts) for path in PACKAGE if path.name == "__init__.py"}
    assert set(listed["packages"]) == found | {"eqtp.kernels"}
    assert listed["package-dir"] == {"eqtp.kernels": "kernels"}
    assert all((path.parent / "__init__.py").exists() for path in PACKAGE)


@pytest.mark.parametrize("path", NATIVE, ids=relative)
def test_native_code_knows_no_torch(path):
    included = re.findall(r"#\s*include\s*[<\"]([^>\"]+)", path.read_text())
    assert not [name for name in included if re.match(r"torch|ATen|c10|Python\.h", name)]
    if path.suffix == ".h" and path.name != "module.h":  # interfaces: pointers and sizes
        assert not [name for name in included if name.startswith("pybind11")]


def test_engines_are_independent():
    """No engine's file imports a file of another engine; what they share has a file of its own, or the package's."""
    engines = {kernel.engine for kernel in registry.kernels()}

    def engine_of(module: str) -> str | None:
        stem = module.rpartition(".")[2]
        return next((engine for engine in engines if stem == engine or stem.startswith(f"{engine}_")), None)

    kernels = {
        name: path for name, path in MODULES.items() if room(name) in {"kernels", "backends"} and engine_of(name)
    }
    assert {engine_of(name) for name in kernels} == engines
    for name, path in kernels.items():
        assert {engine_of(other) for other in dependencies(path) & set(kernels)} <= {engine_of(name)}, name


def test_one_stem_per_engine():
    """Knowing an engine's name is knowing the files of its kernels; knowing an op's, its test and its benchmark."""
    engines = {kernel.engine for kernel in registry.kernels()}

    def belongs(stem):
        return any(stem == engine or stem.startswith(f"{engine}_") for engine in engines)

    assert {path.name for path in ROOT.glob("csrc/*")} == engines | {"common"}
    for engine in engines:
        assert (ROOT / "csrc" / engine / f"{engine}.cpp").exists() and (ROOT / "kernels" / f"{engine}.py").exists()
    for folder in ("kernels", *(f"eqtp/backends/{family}" for family in registry.FAMILIES[:-1])):
        stems = {path.stem for path in ROOT.glob(f"{folder}/*.py")}
        assert [stem for stem in stems - SHARED if not belongs(stem)] == []
    ops = set(registry.ops()) - {"so2_convolution"}  # which stands with gaunt_convolution
    for op in ops:
        assert (ROOT / "eqtp" / "ops" / f"{op}.py").exists() and (ROOT / "tests" / f"test_{op}.py").exists()
    assert {path.stem.removeprefix("bench_") for path in ROOT.glob("bench/bench_*.py")} == ops


@pytest.mark.parametrize("path", [*PYTHON, *NATIVE], ids=relative)
def test_sizes(path):
    text = path.read_text()
    assert len(text.splitlines()) <= 400, "lines in a file"
    if path.suffix == ".py":
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.FunctionDef):
                assert node.end_lineno - node.lineno < 60, f"lines in {node.name}"


def cpp_functions(text: str) -> list[tuple[str, int, int]]:
    """Name, first and last line of every C++ function with a body; what is inside one, like a lambda, is part of it."""

    def blank(found: re.Match) -> str:
        return re.sub(r"[^\n]", " ", found[0])

    text = re.sub(r"//[^\n]*|/\*.*?\*/|\"(?:\\.|[^\"\\\n])*\"|'(?:\\.|[^'\\\n])'", blank, text, flags=re.DOTALL)
    text = re.sub(r"^[ \t]*#(?:[^\n]*\\\n)*[^\n]*", blank, text, flags=re.MULTILINE)  # preprocessor lines
    found, nested, begin = [], [], 0
    for at in (brace.start() for brace in re.finditer(r"[{};]", text)):
        if text[at] == "{":
            head = re.sub(r"(alignas|__align__|__launch_bounds__)\s*\((\([^()]*\)|[^()])*\)", blank, text[begin:at])
            name = re.search(r"([\w~]+|operator[^\w\s]+)\s*\(", head)
            scope = re.search(r"\b(namespace|struct|class|union|enum)\b[^()<>]*$|=\s*$", head)
            inside = any(outer for outer, _ in nested)
            first = text.count("\n", 0, at - len(head.lstrip())) + 1
            nested.append((name[1] if name and not scope and not inside else "", first))
        elif text[at] == "}":
            name, first = nested.pop()
            if name:
                found.append((name, first, text.count("\n", 0, at) + 1))
        begin = at + 1
    assert not nested, "braces"
    return found


def test_cpp_functions():
    """The measure itself: templates, members, constructors, operators, kernels; not structs, tables or lambdas."""
    text = """namespace a {
template <class T, int N = (1 < 2)>
struct alignas(16) S : B<T> {
  int x[2] = {1, 2};  // {
  S(int y) : x{y} {}
  T operator+(T b) const {
    return [&](T c) { if (c) { return "}"; } }(b);
  }
};
__global__ void __launch_bounds__(A, f(2))
    kernel(S<int> s) {
}
static constexpr int TABLE[] = {1, 2};
enum Mode { ON, OFF };
}"""
    found = {name: lines for name, *lines in cpp_functions(text)}
    assert found["operator+"] == [6, 8] and found["kernel"] == [10, 12] and "S" in found
    assert set(found) == {"S", "operator+", "kernel"}


@pytest.mark.parametrize("path", NATIVE, ids=relative)
def test_sizes_of_native_code(path):
    text = path.read_text()
    assert max(map(len, text.splitlines())) <= 120, "columns"
    for name, first, last in cpp_functions(text):
        assert last - first < 60, f"lines in {name}"


@pytest.mark.parametrize("path", [*PYTHON, *NATIVE], ids=relative)
def test_names(path):
    assert not re.search(r"(^|_)(v\d|opt|fast|new|utils?)(_|$)", path.stem)
    if path.suffix == ".py":
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.FunctionDef | ast.ClassDef):
                assert not re.search(r"(^|_)(v\d|opt|fast|new|utils?)$", node.name.lower()), node.name


def public(tree: ast.Module):
    """Public functions, classes and methods; of a class the documented base is the class itself."""
    for node in tree.body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef) and not node.name.startswith("_"):
            yield node


@pytest.mark.parametrize("path", PACKAGE, ids=relative)
def test_docstrings(path):
    tree = ast.parse(path.read_text())
    if path.name == "__init__.py" and not tree.body:
        return
    assert ast.get_docstring(tree)
    undocumented = [node.name for node in public(tree) if not ast.get_docstring(node)]
    assert path.name == "__main__.py" or not undocumented


PROBE = """
import sys, torch, time
before, start = set(sys.modules), time.process_time()
import eqtp
seconds = time.process_time() - start
roots = {name.split(".")[0] for name in set(sys.modules) - before}
print(seconds, *sorted(roots & %r), torch.cuda.is_initialized())
"""


def test_import_is_quick_and_small():
    """After torch under 0.3 s of a processor (the best of five: the machine may be busy); no model library, no GPU
    (R13, R14)."""
    command = [sys.executable, "-c", PROBE % (OTHERS | COMPILERS)]
    cached = os.environ | {"PYTHONDONTWRITEBYTECODE": ""}  # bytecode, as an installed package has
    runs = [subprocess.run(command, capture_output=True, env=cached, text=True, check=True) for _ in range(5)]
    runs = [run.stdout.split() for run in runs]
    assert {tuple(run[1:]) for run in runs} == {("False",)}
    assert min(float(run[0]) for run in runs) < 0.3


def test_kernels_are_a_package():
    found = importlib.util.find_spec("eqtp.kernels")
    assert found is not None and Path(found.origin) == ROOT / "kernels" / "__init__.py"

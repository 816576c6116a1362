"""README.md and docs/: their programs run, the files they name exist, their numbers are those of the results."""

import importlib.util
import json
import re
import subprocess
import sys
import warnings
from functools import partial
from pathlib import Path

import pytest
import torch

import eqtp
from eqtp.backends import registry

ROOT = Path(__file__).parents[1]
PAGES = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/*.md"), *ROOT.glob("examples/*.md")])
FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
INDEPENDENT = {"README.md"}  # each program by itself; in other pages one continues the last


def programs(page: Path) -> list[str]:
    found = [code for language, code in FENCE.findall(page.read_text()) if language == "python"]
    return found if page.name in INDEPENDENT else ["\n".join(found)] * bool(found)


CASES = [pytest.param(page, code, id=f"{page.stem}-{n}") for page in PAGES for n, code in enumerate(programs(page))]


@pytest.mark.parametrize(("page", "code"), CASES)
def test_programs_run(page, code, monkeypatch, tmp_path):
    if "sevenn" in code:
        pytest.importorskip("sevenn", reason="sevenn is not installed")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend="aot_eager"))  # traces all, calls no compiler
    torch.manual_seed(0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        exec(compile(code, str(page), "exec"), {"__name__": "program"})


def test_there_are_programs():
    assert len(programs(ROOT / "README.md")) == 3
    assert {page.stem for page in PAGES if programs(page)} >= {
        "README",
        "drop_in",
        "backends",
        "autograd",
        "conventions",
    }


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_links_lead_to_files(page):
    text = FENCE.sub("", page.read_text())
    for target in re.findall(r"\]\(([^)#]+)\)", text):
        assert (page.parent / target).exists(), target
    for name in re.findall(r"`((?:eqtp|csrc|docs|tests|bench|examples|kernels)/[\w./-]*)`", text):
        made = name.startswith(("bench/results", "examples/out"))  # by make
        assert made or (ROOT / name).exists(), name


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_names_exist(page):
    """`eqtp.something` in the text, in code and in programs is something."""
    for name in set(re.findall(r"\beqtp((?:\.\w+)+)", page.read_text())):
        thing = eqtp
        for part in name[1:].split("."):
            path = f"{getattr(thing, '__name__', '')}.{part}"
            thing = getattr(thing, part, None) or importlib.import_module(path)


def test_requirements_that_are_cited_are_defined():
    """R<number> in tests and code is a line of docs/requirements.md."""
    page = (ROOT / "docs" / "requirements.md").read_text()
    defined = re.findall(r"^\| (R\d+) \|", page, re.MULTILINE)
    assert defined == [f"R{n}" for n in range(1, len(defined) + 1)]
    files = [path for folder in ("eqtp", "kernels", "tests", "bench") for path in ROOT.glob(f"{folder}/**/*.py")]
    for path in files:
        text = path.read_text()
        assert set(re.findall(r"\bR\d+\b", text)) <= set(defined), path
        for first, last in re.findall(r"\bR(\d+)-R(\d+)\b", text):
            assert int(first) < int(last) <= len(defined), path


def test_prose_is_wrapped():
    """Lines of at most 120 characters, but for tables and programs."""
    for page in PAGES:
        lines = FENCE.sub("", page.read_text()).splitlines()
        long = [line for line in lines if len(line) > 120 and not line.startswith("|")]
        assert not long, (page.name, long[0])


def test_make_targets_exist():
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    assert targets >= {"demo", "test", "lint", "fmt", "bench", "wheel", "setup", "clean"}
    for page in PAGES:
        assert set(re.findall(r"`make ([a-z-]+)", page.read_text())) <= targets
    assert "make test" in (ROOT / ".ci" / "run").read_text()


def test_what_explain_says_is_what_the_page_says():
    code = next(code for code in programs(ROOT / "docs" / "backends.md") if "explain" in code)
    said = "\n".join(line.removeprefix("# ") for line in code.splitlines() if line.startswith("# "))
    plan = eqtp.TensorProductPlan("8x0e + 8x1o", "1o", "8x1o", [(0, 0, 0, "uvw", True)])
    assert eqtp.explain(plan) == said


def test_version_is_one():
    texts = [(ROOT / name).read_text() for name in ("pyproject.toml", "CITATION.cff", "CHANGELOG.md")]
    found = [re.search(r'^(?:version ?[=:] ?"?|## )([\d.]+)', text, re.MULTILINE)[1] for text in texts]
    assert found == [eqtp.__version__] * 3


def run_module(*code: str, **environment) -> str:
    import os

    result = subprocess.run(
        [sys.executable, *code], capture_output=True, text=True, env=os.environ | environment, timeout=120
    )
    assert result.returncode == 0, result.stderr
    return result.stdout


def test_python_m_eqtp():
    out = run_module("-m", "eqtp", EQTP_BACKEND="reference", EQTP_SIMD="1")
    assert re.search(rf"eqtp +{re.escape(eqtp.__version__)} in ", out) and re.search(
        rf"torch +{re.escape(torch.__version__)}", out
    )
    assert (
        re.search(r"native +yes", out)
        and re.search(r"reference +yes", out)
        and re.search(r"auto +takes reference", out)
    )
    assert re.search(r"SIMD +plain C\+\+", out) and re.search(r"EQTP_BACKEND +reference", out)


def test_python_m_eqtp_without_kernels():
    out = run_module("-c", "import sys; sys.modules['eqtp._native'] = None\n"
                     "import runpy; sys.argv = ['eqtp']; runpy.run_module('eqtp.__main__')\n"
                     "from eqtp.__main__ import main; main()")  # fmt: skip
    assert re.search(r"native +no: eqtp\._native is not built .*pip install", out) and re.search(
        r"auto +takes reference", out
    )


def test_python_m_eqtp_with_a_wrong_variable():
    assert re.search(r"auto +raises an error: backend must be one of", run_module("-m", "eqtp", EQTP_BACKEND="nativ"))


def test_environment_variables_are_those_of_the_page():
    from eqtp.__main__ import VARIABLES

    sources = [*ROOT.glob("csrc/*/*"), *ROOT.glob("eqtp/**/*.py")]
    read = {
        v
        for path in sources
        if path.is_file()
        for v in re.findall(r"(?:getenv|environ\.get)\(\"(EQTP_\w+)\"", path.read_text())
    }
    page = (ROOT / "docs" / "backends.md").read_text()
    table = set(re.findall(r"^\| `(\w+)` \|", page, re.MULTILINE))
    assert {name for name in table if name.isupper()} == read == set(VARIABLES)
    assert {name for name in table if name.islower()} == {*registry.FAMILIES, *registry.ops()}


# ---- the speed-up


@pytest.fixture(scope="module")
def plot():
    spec = importlib.util.spec_from_file_location("plot_speedup", ROOT / "docs" / "plot_speedup.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def rows(**changes):
    """Lines of a results file: ours and a peer's."""
    row = {"op": "tensor_product_conv", "problem": "a", "pass": "fwd", "backend": "native", "dtype": "float32",
           "threads": 1, "ms": 2.0, "ratio_to": {"slow": 100.0, "best": 12.34}, "machine": {"cpu": "a processor"},
           "versions": {"torch": "2"}} | changes  # fmt: skip
    return [row, row | {"backend": "slow", "ratio_to": {}}]


def write(path: Path, *lines: dict) -> None:
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))


def test_speedup_of_results(plot, tmp_path):
    write(
        tmp_path / "b.json", *rows(), *rows(problem="b", **{"pass": "bwdbwd"}, ratio_to={"best": 0.5}), *rows(threads=2)
    )
    whole = {"op": "sevennet", "pass": "energy+forces"}
    write(tmp_path / "a.jsonl", *rows(**whole, backend="eqtp"), *rows(**whole, backend="eqtp-compiled", ms=1.0))
    write(tmp_path / "c.json", *rows(problem="mace-medium"))
    pages = {name: tmp_path / f"{name}.md" for name in ("readme", "page")}
    for page in pages.values():
        page.write_text(f"head\n{plot.BEGIN}\nold\n{plot.END}\ntail\n")
    options = [word for name, page in pages.items() for word in (f"--{name}", str(page))]
    assert plot.main(["--results", str(tmp_path), "--picture", str(tmp_path / "p.png"), *options]) == 0
    assert (tmp_path / "p.png").stat().st_size > 10_000
    short = [line for line in pages["readme"].read_text().splitlines() if line.startswith("| ")]
    assert short[1:] == ["| tensor_product_conv, mace-medium | forward | 2 | - | 12.3x (best) |"]
    text = pages["page"].read_text()
    assert text.startswith("head\n") and text.endswith("tail\n") and "old" not in text
    lines = [line for line in text.splitlines() if line.startswith("| ")]
    assert lines[0].endswith("| slow | best |")
    assert lines[1:] == [
        "| tensor_product_conv, a | forward | 2 | 100x | 12.3x |",
        "| tensor_product_conv, b | double backward | 2 | - | 0.5x |",
        "| tensor_product_conv, mace-medium | forward | 2 | 100x | 12.3x |",
        "| sevennet, a | energy + forces | 2 | 100x | 12.3x |",
        "| sevennet, a | energy + forces, compiled | 1 | 100x | 12.3x |",
    ]
    assert "a processor; 1 thread; float32; torch 2" in " ".join(text.split()) and "less work" not in text


def test_speedup_marks_a_peer_that_does_less(plot, tmp_path):
    write(
        tmp_path / "a.json",
        *rows(op="spherical_harmonics", problem="lmax3", ratio_to={"sphericart": 1.5, "sphericart-solid": 0.7}),
    )
    text = plot.table(plot.read(tmp_path))
    assert "| 1.5x | 0.7x |" in text and "sphericart-solid does not normalise its input: less work." in text


def test_speedup_says_what_cueq_is(plot, tmp_path):
    write(tmp_path / "a.json", *rows(problem="mace-medium", ratio_to={"e3nn": 3.0, "cueq": 2.0}))
    found = plot.read(tmp_path)
    for text in (plot.table(found), plot.short_table(found)):
        assert "plain torch path of cuequivariance-torch" in " ".join(text.split())
        assert all(len(line) <= 120 for line in text.splitlines() if not line.startswith("|"))
    assert "| forward | 2 | 3x | 2x (cueq) |" in plot.short_table(found)


def test_speedup_refuses_two_results_for_one_row(plot, tmp_path):
    write(tmp_path / "a.json", *rows())
    write(tmp_path / "b.json", *rows())
    with pytest.raises(ValueError, match=r"b.json: tensor_product_conv a fwd is in the results twice"):
        plot.read(tmp_path)


def test_speedup_without_results(plot, tmp_path, capsys):
    assert plot.main(["--results", str(tmp_path)]) == 1
    assert "run make bench" in capsys.readouterr().err


def test_numbers_of_the_pages_are_the_results(plot):
    """After new results: python docs/plot_speedup.py"""
    rows = plot.read(ROOT / "bench" / "results")
    for name, table in (("README.md", plot.short_table(rows)), ("docs/benchmarks.md", plot.table(rows))):
        text = (ROOT / name).read_text()
        assert plot.with_table(text, table) == text, name
    assert plot.short_table(rows).count("\n| ") == len(plot.SHORT)  # every row of the README has a result


def test_the_table_of_kernels_is_that_of_the_registry():
    """After a change: python docs/kernel_table.py"""
    spec = importlib.util.spec_from_file_location("kernel_table", ROOT / "docs" / "kernel_table.py")
    made = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(made)
    page = made.PAGE.read_text()
    assert made.with_table(page) == page and all(f"`{op}`" in page for op in registry.ops())

"""`python -m bench products`: its counts are right, what it prints is what it measured."""

import importlib.util
import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from sweeps import sweep

ROOT = Path(__file__).parents[1]
sys.path.append(str(ROOT))  # bench is not part of the installed package

import eqtp  # noqa: E402
from bench import __main__ as bench  # noqa: E402
from bench import harness, machine, product_targets, products  # noqa: E402
from bench import product_methods as methods  # noqa: E402
from eqtp.math.sphere import folded_flops, folded_size  # noqa: E402

pytestmark = pytest.mark.usefixtures("threads", "frozen_heap")
RATES = machine.Machine("a processor", threads=1, read_gb_s=10.0, copy_gb_s=8.0, gflop_s=100.0)
QUICK = ["--batch", "3", "--channels", "1,2", "--repeat", "2", "--min-time", "0.001", "--warmup", "1"]


@pytest.fixture
def run(monkeypatch, tmp_path, capfd):
    """`python -m bench products ...` without measuring the machine: exit code, stdout, stderr, conditions and lines of
    the JSON file."""
    monkeypatch.setattr(machine, "measure", lambda dtype, **_: RATES)

    def call(*arguments: str):
        file = tmp_path / "products.json"
        code = bench.main(["products", *arguments, *QUICK, "--json", str(file)])
        out, err = capfd.readouterr()
        conditions, *lines = [json.loads(line) for line in file.read_text().splitlines()]
        return code, out, err, conditions, lines

    return call


# ---- methods and counts


@pytest.mark.parametrize("layout", methods.LAYOUTS)
@pytest.mark.parametrize("name", [*methods.OURS, *(name for name in methods.PEERS if not name.startswith("pof"))])
def test_methods_calculate_their_product_in_every_layout(name, layout):
    there = 0
    for l in (1, 2, 3):
        problem = methods.Problem(layout, l)
        try:
            f = methods.method(name, problem, torch.float64)
        except harness.Missing as reason:
            assert layout == "siso" and f"it has no path {l} x {l} -> {l}" in str(reason)
            continue
        there += 1
        errors = methods.errors(name, problem, f, torch.float64, channels=2)
        assert max(errors) < 1e-12
        for pass_ in ("fwd", "bwd", "bwdbwd"):
            f.clocked(*methods.operands(problem, 2, 2, torch.float64), pass_)()
    assert there == 3 or (layout == "siso" and there in (1, 2))


def test_an_error_is_seen(monkeypatch):
    problem = methods.Problem("simo", 2)
    f = methods.method("gaunt", problem, torch.float64)
    wrong = methods.Method(f.call, unpack=lambda out: f.unpack(out) * torch.linspace(1, 1.001, 25, dtype=torch.float64))
    assert min(methods.errors("gaunt", problem, wrong, torch.float64)) > 1e-5


@pytest.mark.parametrize("l", [1, 2, 3, 4])
def test_degrees_of_freedom(l):
    def count(product, layout):
        return methods.degrees_of_freedom(product, methods.Problem(layout, l))

    for product in ("cg", "gaunt", "gaunt+odd", "matrix"):
        assert count(product, "mimo") == eqtp.expressivity(product, l)
    assert [count(product, "siso") for product in ("cg", "gaunt", "gaunt+odd", "matrix", "vector-signal")] == [
        1,
        1 - l % 2,
        1,
        1,
        l % 2,
    ]
    assert [count(product, "simo") for product in ("cg", "gaunt", "gaunt+odd", "matrix")] == [
        2 * l + 1,
        l + 1,
        2 * l + 1,
        2 * l + 1,
    ]
    assert count("even", "mimo") == (l + 1) * (l + 2) * (2 * l + 3) // 6  # 5, 14, 30, 55


def test_compulsory_bytes_by_hand():
    """3 rows, float32: siso 2 has 5 + 5 -> 5 components; the pair of a mimo 1 has 4 + 4 -> 9 + 9."""
    assert products.compulsory(methods.Problem("siso", 2), "cg", 3, "fwd", 4) == 3 * 4 * 15
    assert products.compulsory(methods.Problem("mimo", 1), "gaunt+odd", 3, "bwd", 4) == 3 * 4 * (3 * 8 + 2 * 18)
    assert products.compulsory(methods.Problem("siso", 1), "gaunt+odd", 3, "fwd", 4) == 3 * 4 * 9  # the bracket only


def test_operations_of_powers_are_those_of_products():
    """f^2 by powers: a product without the transform of the second operand, and a projection of f; the grid of the
    product."""
    from bench.bench_gaunt_many_body import row_flops, transform_flops

    for lmax, lmax_out in ((2, 4), (3, 1)):
        size = folded_size(2 * lmax + lmax_out)
        transforms = transform_flops(lmax_out, *size) - transform_flops(lmax, *size)
        assert row_flops(lmax, lmax_out, 2) == folded_flops(lmax, lmax, lmax_out) + transforms


# ---- the command


def test_command_line_end_to_end(tmp_path):
    file = tmp_path / "p.json"
    command = [
        sys.executable,
        "-m",
        "bench",
        "products",
        "--layout",
        "mimo",
        "--lmax",
        "1",
        "--products",
        "gaunt",
        *QUICK,
        "--json",
        str(file),
    ]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stderr
    conditions, *lines = [json.loads(line) for line in file.read_text().splitlines()]
    assert (
        conditions["command"].startswith("python -m bench products --layout mimo")
        and conditions["machine"]["copy_gb_s"] > 0.1
    )
    assert [line["channels"] for line in lines] == [
        1,
        2,
    ] and "mimo, l = 1, 2 channels, batch 3, fwd, float32" in done.stdout


@sweep("lmax", ["1", "1..2"], ["1"])
def test_a_sweep(run, lmax):
    arguments = (
        "--layout",
        "siso,mimo",
        "--lmax",
        lmax,
        "--passes",
        "fwd,bwd",
        "--against",
        "published,e3nn-even,pof",
    )
    code, out, _, conditions, lines = run(*arguments)
    assert code == 0 and conditions["machine"] == RATES.row() and set(conditions["versions"]) >= {"eqtp", "torch"}
    timed = {(line["layout"], line["lmax"], line["channels"], line["pass"], line["backend"]) for line in lines}
    for layout, l, who, there in (("mimo", 1, "gaunt", True), ("siso", 1, "gaunt", False),
                                  ("siso", 2, "gaunt-grid", True),
                                  ("siso", 1, "gaunt+odd", True), ("mimo", 2, "published-fft", True),
                                  ("mimo", 2, "pof-grid", False)):  # fmt: skip
        there = there and str(l) in lmax
        assert all(((layout, l, c, pass_, who) in timed) == there for c in (1, 2) for pass_ in ("fwd", "bwd"))
    for line in lines:
        assert line["us_per_dof"] == pytest.approx(1e3 * line["ms"] / line["dof"])
        assert line["floor_fraction"] == pytest.approx(line["gb_s"] / 8.0) and 0 < line["gb_s"]
        assert line["error"] < 1e-5 and line["equivariance_error"] < 1e-5 and line["ratio_to"] == {}
        assert (line["flop_fraction"] is not None) == (line["product"].startswith("gaunt") and line["layout"] == "mimo")
    assert "missing: pof-grid, pof-cg-dense, pof-matrix: give the checkout" in out
    assert "it has no path 1 x 1 -> 1: the sum is odd" in out


def test_a_wrong_product_is_not_timed(run, monkeypatch):
    right = methods.op("gaunt_tensor_product")

    def wrong(x1, x2, *a, backend, **k):
        return right(x1, x2, *a, backend=backend, **k) * (1 if backend == "reference" else 1.001)

    monkeypatch.setattr(methods, "op", lambda name: wrong)
    monkeypatch.setattr(harness, "time_together", lambda *_, **__: pytest.fail("it was timed"))
    code, _, err, _, lines = run("--layout", "mimo", "--lmax", "1", "--products", "gaunt")
    assert code == 1 and "refused to time a wrong product: gaunt, mimo, l = 1: off by 1.0e-03" in err and lines == []


def test_what_is_too_large_or_too_slow_is_left_out(run):
    arguments = ("--layout", "mimo", "--lmax", "1,2", "--products", "gaunt", "--against", "published-fft,dense-grid")
    _, out, _, _, lines = run(*arguments, "--max-gb", "1e-6")
    assert {line["backend"] for line in lines} == {"gaunt"} | {
        line["backend"] for line in lines if line["lmax"] == 1 and line["channels"] == 1
    }
    assert "it would hold a tensor of 0.0 GB (--max-gb)" in out
    _, out, _, _, lines = run(*arguments, "--max-seconds", "0")
    assert {line["lmax"] for line in lines} == {1} and "s at l = 1 (--max-seconds)" in out


def test_a_product_that_is_not_there_is_named(run, monkeypatch):
    monkeypatch.setitem(sys.modules, "eqtp.ops.matrix_tensor_product", None)
    code, out, err, _, lines = run("--layout", "mimo", "--lmax", "1", "--products", "matrix")
    assert (
        code == 1
        and lines == []
        and "missing: matrix: this eqtp has no matrix_tensor_product" in out
        and "nothing could be timed" in err
    )


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["--layout", "mimi"], "unknown layout 'mimi'; known: siso, simo, mimo"),
        (["--products", "gaunt,cg"], "unknown product 'cg'; known: gaunt, gaunt-sparse"),
        (["--against", "jax"], "unknown peer 'jax'; known: e3nn-even"),
        (["--passes", "forward"], "unknown pass 'forward'; known: fwd"),
        (["--backend", "cuda"], "unknown backend 'cuda'"),
        (["--lmax", "0..3"], "--lmax must be whole numbers of at least 1"),
        (["--lmax", "few"], "argument --lmax: invalid integers value: 'few'"),
        (["--lmax", "3..1"], "--lmax must be whole numbers of at least 1, such as 1..3,6, got []"),
        (["--channels", "1,-2"], "--channels must be whole numbers of at least 1"),
        (["--batch", "0"], "--batch must be at least 1, got 0"),
        (["--targets", "--rule"], "give one of --targets and --rule"),
    ],
)
def test_wrong_arguments_are_named(capsys, arguments, message):
    with pytest.raises(SystemExit) as stop:
        bench.main(["products", *arguments])
    assert stop.value.code == 2 and message in capsys.readouterr().err
    assert products.integers("1..3,6") == [1, 2, 3, 6]


# ---- goals and rule


def test_targets_as_a_rehearsal(run):
    code, out, _, _, lines = run("--targets", "--lmax", "1")
    assert code == 0
    goals = [line for line in lines if line["op"] == "target"]
    assert len([goal for goal in goals if goal["what"].startswith("many-body")]) == 4 and len(goals) == 19
    assert all("(rehearsal: l = 1)" in goal["what"] for goal in goals if goal["what"].startswith("Gaunt"))
    assert {goal["met"] for goal in goals if goal["what"].startswith("accuracy")} == {True}
    assert all(goal["target"] in out for goal in goals) and "crossover sparse / grid" in out


def test_goals_are_judged_by_hand():
    ms = {"gaunt": 0.2, "e3nn-even": 4.0, "published-fft": 3.0}
    goals = (product_targets.Goal("ms", 0.2), product_targets.Goal("times", 15, ("e3nn-even", "published-fft", "away")),
             product_targets.Goal("times", 16, ("e3nn-even", "published-fft")),
             product_targets.Goal("times", 5, ("away",)), product_targets.Goal("peak", 0.4))  # fmt: skip
    found = product_targets.judged("a", "fwd", goals, "gaunt", ms, 9e6, RATES)  # 9e6 in 0.2 ms: 45 of 100 GFLOP/s
    assert [goal["met"] for goal in found] == [True, True, False, None, True]
    assert [goal["reached"] for goal in found] == [
        "0.2 ms",
        "15.0 x (published-fft)",
        "15.0 x (published-fft)",
        "nobody there",
        "45%",
    ]


@pytest.mark.parametrize(
    "degree, used, timed, met",
    [
        (3, 3, [1, 2, 3, 4], True),
        (2, 3, [1, 2, 3, 4], False),
        (4, 3, [1, 2, 3, 4], False),
        (0, 3, [1], False),  # the grid wins where auto takes the table
        (1, 3, [1], None),  # nothing speaks against it, but 3 and 4 were not timed
        (3, 3, [1, 2, 3], None),
    ],
)
def test_a_missed_crossover_prints_no(degree, used, timed, met):
    goal = product_targets.judged_crossover(degree, used, timed)
    assert goal["met"] is met and goal["reached"] == f"sparse to {degree}; auto uses it to {used}"
    assert product_targets.summary([goal]).split()[-1] == {True: "yes", False: "NO", None: "?"}[met]


def test_the_rule_is_the_degree_that_loses_the_least(run, monkeypatch):
    """Sparse is quicker to degree 2, where its time is that of the degrees times one."""

    def timed(contestants, **_):
        l = round(contestants["sparse"].args[1][0].shape[-1] ** 0.5) - 1
        return {"sparse": harness.Timing([float(l)]), "grid": harness.Timing([2.5])}, {}

    monkeypatch.setattr(harness, "time_together", timed)
    code, out, _, _, lines = run("--rule", "--lmax", "1..5")
    assert code == 0 and "AUTO: (2, 0)" in out
    assert {line["problem"].partition(",")[0] for line in lines} >= {"1 x 1 -> 2", "5 x 3 -> 5", "5 x 3 -> 8"} and len(
        lines
    ) == 2 * 2 * 2 * 30
    code, out, *_ = run("--rule", "--lmax", "3..4")
    assert "AUTO: (0, 0)" in out


# ---- the page


@pytest.fixture(scope="module")
def plot():
    spec = importlib.util.spec_from_file_location("plot_products", ROOT / "docs" / "plot_products.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_pictures_and_tables_of_results(plot, run, tmp_path, capfd):
    run("--lmax", "1..2", "--products", "gaunt,gaunt-grid,cg-dense", "--against", "dense-grid")
    page = tmp_path / "page.md"
    page.write_text(f"head\n{plot.BEGIN}\nold\n{plot.END}\ntail\n")
    arguments = ["--results", str(tmp_path), "--page", str(page), "--channels"]
    assert plot.main([*arguments, "2"]) == 0
    for name in ("runtime", "per_dof", "error"):
        assert all((tmp_path / f"products_{name}{end}").stat().st_size > 5000 for end in (".png", ".svg"))
    text = page.read_text()
    assert text.startswith("head\n") and text.endswith("tail\n") and "old" not in text
    rows = [json.loads(line) for line in (tmp_path / "products.json").read_text().splitlines()]
    one = next(row for row in rows if row.get("problem") == "mimo-l2-c2" and row["backend"] == "gaunt")
    assert "| lmax | gaunt | dense-grid |" in text and "| lmax | gaunt-grid |" in text
    assert (
        f"| 2 | {plot.number(one['ms'])} ({plot.number(one['us_per_dof'])}) |" in text and "2 channels, batch 3" in text
    )
    assert plot.main([*arguments, "7"]) == 1 and "no results for these options" in capfd.readouterr().err


def test_the_page_is_what_the_results_say(plot):
    """After new results: python docs/plot_products.py"""
    page = (ROOT / "docs" / "products.md").read_text()
    assert plot.with_content(page, plot.read(ROOT / "bench" / "results")) == page
    with pytest.raises(ValueError, match="must have one"):
        plot.with_content("no marks", [])

"""Every shape listed in eqtp/testing/problems.py has the counts it must have, and every graph its edges (R2)."""

import numpy as np
import pytest

from eqtp.math.irreps import Irreps
from eqtp.testing import problems


@pytest.mark.parametrize("problem", problems.TENSOR_PRODUCTS.values(), ids=lambda problem: problem.id)
def test_counts_of_every_tensor_product(problem):
    plan = problems.plan(problem.id)
    assert plan.dim_in1 == Irreps(problem.irreps_in1).dim
    assert plan.dim_in2 == Irreps(problem.irreps_in2).dim
    assert plan.dim_out == problem.dim_out
    assert plan.weight_numel == problem.weight_numel
    assert len(plan.paths) == problem.num_paths
    assert plan.cg_nonzeros == problem.cg_nonzeros
    assert {path.mode for path in plan.paths} == {problem.mode}


@pytest.mark.parametrize("problem", problems.TENSOR_PRODUCTS.values(), ids=lambda problem: problem.id)
def test_output_slots_are_as_the_models_make_them(problem):
    plan = problems.plan(problem.id)
    slots = [path.io for path in plan.paths]
    if problem.mode == "uvu":
        assert sorted(slots) == list(range(len(plan.irreps_out)))  # one slot for each path
        irreps = [ir for _, ir in plan.irreps_out]
        assert irreps == sorted(irreps)
    else:
        out = problem.irreps_in1 if problem.out == "in1" else problem.out
        assert plan.irreps_out == Irreps(out)
        assert set(slots) == set(range(len(plan.irreps_out)))
    loop = [(path.i1, path.i2) for path in plan.paths]
    assert (slots if problem.order == "output" else loop) == sorted(slots if problem.order == "output" else loop)


def test_nequip_water_path_by_path():
    """Small enough to write down: 32x(0o+0e+1o+1e) with 0e+1o."""
    plan = problems.plan("nequip-water")
    assert str(plan.irreps_out) == "+".join(["32x0o"] * 2 + ["32x0e"] * 2 + ["32x1o"] * 3 + ["32x1e"] * 3)
    found = [(p.i1, p.i2, str(plan.irreps_out[p.io].ir)) for p in plan.paths]
    assert found == [
        (0, 0, "0o"), (0, 1, "1e"), (1, 0, "0e"), (1, 1, "1o"), (2, 0, "1o"),
        (2, 1, "0e"), (2, 1, "1e"), (3, 0, "1e"), (3, 1, "0o"), (3, 1, "1o"),
    ]  # fmt: skip


def test_plans_are_built_once():
    assert problems.plan("mace-l1") is problems.plan("mace-l1")


def test_unknown_names_are_refused():
    with pytest.raises(ValueError, match="unknown tensor product problem 'mace-huge'"):
        problems.plan("mace-huge")
    with pytest.raises(ValueError, match="unknown graph 'moebius'"):
        problems.graph("moebius")


GRAPH_SIZES = {
    "diamond:3": (216, 34_128),
    "diamond": (1_000, 158_000),
    "diamond:7": (2_744, 433_552),
    "diamond:9": (5_832, 921_456),
    "cueq-mp": (3_000, 160_000),
    "cueq-off": (4_000, 70_000),
    "cueq-tutorial": (1_000, 10_000),
    "flashtp": (512, 32_768),
    "nequip-lammps": (11_232, 425_088),
    "crystal-36k": (864, 36_288),
    "random": (1_000, 20_000),
    "sorted": (1_000, 20_000),
}


@pytest.mark.parametrize("name", sorted({*problems.GRAPHS, *GRAPH_SIZES}))
def test_size_of_every_graph(name):
    edges = problems.graph(name)
    nodes, num_edges = GRAPH_SIZES[name]
    assert (edges.num_nodes, edges.src.shape, edges.dst.shape) == (nodes, (num_edges,), (num_edges,))
    for ends in (edges.src, edges.dst):
        assert ends.dtype == np.int64
        assert ends.min() >= 0 and ends.max() < nodes


@pytest.mark.parametrize("name", ["diamond:3", "crystal-36k"])
def test_crystals_are_regular_and_symmetric(name):
    src, dst, nodes = problems.graph(name)
    degree = np.bincount(dst, minlength=nodes)
    assert (degree == degree[0]).all() and (np.diff(dst) >= 0).all()
    # every neighbour sees its neighbour back as often
    forth, back = np.zeros((2, nodes, nodes), dtype=int)
    np.add.at(forth, (src, dst), 1)
    np.add.at(back, (dst, src), 1)
    assert (forth == back).all()


def test_argyrodite_has_its_bonds():
    """Only P-S bonds are shorter than 2.2 A: four for each of the 4 P of a cell, counted both ways."""
    src, dst, _ = problems.crystal_graph(problems.ARGYRODITE, 10.2795, 1, 2.2)
    phosphorus = set(range(4, 8))
    assert len(src) == 2 * 4 * 4
    assert all((a in phosphorus) != (b in phosphorus) for a, b in zip(src.tolist(), dst.tolist(), strict=True))
    assert len(problems.crystal_graph(problems.ARGYRODITE, 10.2795, 1, 2.0).src) == 0


def test_flashtp_neighbours_are_distinct():
    src, dst, nodes = problems.graph("flashtp")
    neighbours = src.reshape(nodes, 64)
    assert all(len(set(row)) == 64 and node not in row for node, row in enumerate(neighbours.tolist()))
    assert (dst.reshape(nodes, 64) == np.arange(nodes)[:, None]).all()


def test_every_named_graph_of_a_problem_exists():
    for problem in problems.TENSOR_PRODUCTS.values():
        if problem.graph is not None:
            assert problem.graph.partition(":")[0] in problems.GRAPHS


def test_lists_for_the_other_ops():
    assert list(problems.SPHERICAL_HARMONICS.items())[:3] == [("lmax1", 1), ("lmax2", 2), ("lmax3", 3)]
    medium, large = problems.SYMMETRIC_CONTRACTIONS.values()
    assert (medium.irreps_out, large.irreps_out) == ("0e+1o", "0e+1o+2e")
    for problem in (medium, large):
        assert Irreps(problem.irreps_in).dim * problem.channels == 2048
    assert problems.GAUNT["many-body-nu"].nu == (3, 4, 5, 6, 7)

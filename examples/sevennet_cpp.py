"""SevenNet-0 in a C++ program: compiles the model, saves it, builds examples/cpp, compares its output with Python's.

    python examples/sevennet_cpp.py [--atoms 64] [--model 7net-0]

Needs CMake (`pip install cmake ninja`) and a C++ compiler; libtorch is that of the torch package. The first run takes
some minutes, as the model is compiled. Files go to examples/out/.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
from pathlib import Path

import torch
from ase.build import bulk

import eqtp
from eqtp.backends.native import operators
from eqtp.integrations.sevennet import graph_data, load, predict

HERE = Path(__file__).parent
ALLOWED = 1e-6, 1e-5  # eV/atom, eV/A: float32


def crystal(atoms: int):
    """Rattled rock salt of at least so many atoms."""
    n = next(n for n in range(1, 100) if 8 * n**3 >= atoms)
    found = bulk("NaCl", "rocksalt", a=5.64, cubic=True).repeat(n)
    found.rattle(0.05, seed=1)
    return found


def write(atoms, cutoff: float, path: Path) -> None:
    """What examples/cpp/sevennet.cpp reads."""
    rows = [
        (cutoff, len(atoms)),
        *atoms.cell.array,
        *((n, *p) for n, p in zip(atoms.numbers, atoms.positions, strict=True)),
    ]
    path.write_text("".join(" ".join(repr(x.item() if hasattr(x, "item") else x) for x in row) + "\n" for row in rows))


def build(folder: Path) -> Path:
    """Builds examples/cpp; returns the program."""
    environment = os.environ | {"PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"}
    prefix = f"-DCMAKE_PREFIX_PATH={torch.utils.cmake_prefix_path}"
    for command in (["cmake", "-S", HERE / "cpp", "-B", folder, prefix], ["cmake", "--build", folder]):
        done = subprocess.run(command, env=environment, capture_output=True, text=True)
        if done.returncode:
            raise RuntimeError(f"{' '.join(map(str, command))}:\n{done.stdout}{done.stderr}")
    return folder / "sevennet"


def run(program: Path, package: Path, structure: Path) -> tuple[str, float, torch.Tensor]:
    """What the program prints, and its energy in eV and forces [n, 3] in eV/A. Raises RuntimeError if it fails."""
    command = [program, operators.PATH, package, structure]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"{program.name}: {done.stderr}")
    _, energy, *atoms = (line.split() for line in done.stdout.splitlines())
    return done.stdout, float(energy[1]), torch.tensor([[float(x) for x in row[1:4]] for row in atoms])


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--atoms", type=int, default=64)
    parser.add_argument("--model", default="7net-0", choices=["7net-0", "7net-l3i5"])
    parser.add_argument("--out", type=Path, default=HERE / "out")
    options = parser.parse_args(argv)
    if reason := operators.why_not():
        print(f"eqtp's ops are not in C++ here: {reason}")
        return 1
    options.out.mkdir(parents=True, exist_ok=True)
    package, structure = options.out / f"{options.model}.pt2", options.out / "crystal.txt"
    model, atoms = load(options.model), crystal(options.atoms)
    cutoff = float(model.cutoff)
    eqtp.accelerate(model)
    print(f"compiling {options.model}; the first time this takes minutes", flush=True)
    compiled = eqtp.compile(model, graph_data(crystal(8), cutoff))
    print(compiled.report)
    compiled.save(package)
    write(atoms, cutoff, structure)
    print("building examples/cpp", flush=True)
    said, energy, forces = run(build(options.out / "cpp"), package, structure)
    print("".join(said.splitlines(keepends=True)[:5]) + "  ...")
    expected = predict(model, graph_data(atoms, cutoff))
    off = abs(energy - expected["energy"].item()) / len(atoms), (forces - expected["forces"]).abs().max().item()
    print(f"Python's, less these: energy {off[0]:.1e} eV/atom, forces {off[1]:.1e} eV/A")
    return 0 if all(a <= b for a, b in zip(off, ALLOWED, strict=True)) else 1


if __name__ == "__main__":
    sys.exit(main())

"""Structs that kernels take by value: NumPy's layout in eqtp/backends/jit is that of C++."""

import emulation
import pytest

from eqtp.backends.jit.channelwise import CONV_PARAMS
from eqtp.backends.jit.harmonics import HARMONICS_ARRAYS

STRUCTS = {
    "ConvParams": ("channelwise/channelwise.cuh", CONV_PARAMS),
    "HarmonicsArrays": ("harmonics/harmonics.cuh", HARMONICS_ARRAYS),
}


@pytest.mark.parametrize("number", ["float", "double", "eqtp::bf16"])
@pytest.mark.parametrize("struct", STRUCTS)
def test_layout(struct, number):
    if emulation.why_not(None):
        pytest.skip(emulation.why_not(None))
    file, layout = STRUCTS[struct]
    names = members = list(layout.names)
    if struct == "ConvParams":
        rows = ("x", "y", "w", "g", "tx", "ty", "tw")
        members = [f"{n[:-7]}.stride" if n.endswith("_stride") else f"{n}.p" if n in rows else n for n in names]
    lines = "".join(f'std::printf("%zu %zu\\n", size_t((char*)&s.{m} - (char*)&s), sizeof s.{m});' for m in members)
    printed = emulation.run_program(
        f'#include <cstdio>\n#include "{file}"\nint main() {{ eqtp::{struct}<{number}> s; {lines} '
        f'std::printf("%zu", sizeof s); }}'
    ).split()
    expected = [n for name in names for n in (layout.fields[name][1], layout[name].itemsize)]
    assert list(map(int, printed)) == [*expected, layout.itemsize]

"""What g++ makes of csrc/cpu/simd.h: vector instructions for each x86-64 instruction set.

Vectors wider than an instruction set's registers compile too, but g++ lowers their comparisons and
selections lane by lane, at several times the cost. These tests read the machine code.
"""

from __future__ import annotations

import platform
import re
import shutil
import subprocess

import pytest
from paths import CSRC

# The forward map and the sums of backward, on one vector.
SOURCE = """
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <type_traits>
#include <immintrin.h>
#include <torch/headeronly/util/Half.h>
#include "common/activation.h"
namespace ganfast::isa {
#define GANFAST_ISA isa
#include "cpu/simd.h"
namespace {
#include "common/pointwise.h"
}
using Element = ELEMENT;
using V = Vec<Element>;
void map(const Element* x, const V* k, Element* y) {
  const V in[1] = {load(x)};
  V result[1];
  Forward<Element, ACTIVATION, false>::Map::apply(in, k, k[3], result);
  store(y, result[0]);
}
void sums(const Element* x, const Element* dy, const V* k, V* sum) {
  const V in[2] = {load(x), load(dy)};
  V result[2];
  Backward<Element, ACTIVATION, false>::Sums::apply(in, k, k[3], result);
  for (int i = 0; i < 2; ++i) sum[i] += result[i];
}
}  // namespace ganfast::isa
"""


def defines_of(unit: str) -> list[str]:
    """Read the macros and the target of one of the kernels' translation units."""
    text = (CSRC / "cpu" / f"{unit}.cpp").read_text()
    target = re.search(r'#pragma GCC target\("(.*)"\)', text)
    flags = [f"-m{name}" for name in target[1].split(",")] if target else []
    macros = re.findall(r"^#define (GANFAST_\w+)(?: (\w+))?$", text, re.MULTILINE)
    chosen = [(n, v) for n, v in macros if n != "GANFAST_ISA"]
    return [*flags, *(f"-D{name}={value}" if value else f"-D{name}" for name, value in chosen)]


@pytest.mark.parametrize("activation", ["relu", "leaky_relu"])
@pytest.mark.parametrize("element", ["float", "BFloat16"])
@pytest.mark.parametrize("unit", ["baseline", "avx2", "avx512"])
def test_comparisons_and_selections_are_vector_instructions(unit, element, activation, tmp_path):
    if platform.machine() != "x86_64" or not shutil.which("g++") or not shutil.which("objdump"):
        pytest.skip("needs g++ and objdump for x86-64")
    from torch.utils.cpp_extension import include_paths

    (tmp_path / "code.cpp").write_text(SOURCE)
    includes = [flag for path in (CSRC, *include_paths()) for flag in ("-isystem", str(path))]
    types = [f"-DELEMENT={element}", f"-DACTIVATION=Activation::{activation}"]
    subprocess.run(
        ["g++", "-std=c++20", "-O3", "-ffp-contract=fast", "-fno-math-errno", "-fno-trapping-math",
         "-Wno-psabi", *defines_of(unit), *types, *includes, "-c", "code.cpp", "-o", "code.o"],
        cwd=tmp_path, check=True,
    )  # fmt: skip
    code = subprocess.run(
        ["objdump", "-d", "--no-show-raw-insn", "code.o"],
        cwd=tmp_path, check=True, capture_output=True, text=True,
    ).stdout  # fmt: skip
    instructions = [line.split("\t")[1].split()[0] for line in code.splitlines() if "\t" in line]
    lane_by_lane = (
        r"v?(mov|cmp\w*|ucomi|comi|mul|max|min)ss|v?p?(insr|extr)(b|w|d|q|actps)\w*|set\w+"
    )
    scalar = [name for name in instructions if re.fullmatch(lane_by_lane, name)]
    assert not scalar, scalar
    assert len(instructions) < 80, len(instructions)

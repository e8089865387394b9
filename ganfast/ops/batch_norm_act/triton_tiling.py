"""How the Triton kernels of ``batch_norm_act`` cut up a tensor: a table, and what follows.

Nothing is tuned while a model runs.
"""

from __future__ import annotations

import math
from functools import lru_cache
from typing import NamedTuple

import triton


class Row(NamedTuple):
    """What one op's kernels work on.

    Attributes:
        on_chip: values that a program holds in registers; 0 to always take two kernels.
        tile: values of a tile of the kernels that loop over tiles.
        per_lane: values of a tile in one lane of a warp.
        programs: how many looping programs are wanted, so that each multiprocessor has several.
        parts: how many parts a channel is cut into at most.
    """

    on_chip: int
    tile: int
    per_lane: int
    programs: int
    parts: int


TABLE = {
    "train": Row(on_chip=16384, tile=2048, per_lane=16, programs=528, parts=128),
    "train_cumulative": Row(on_chip=0, tile=2048, per_lane=16, programs=528, parts=128),
    "evaluate": Row(on_chip=0, tile=2048, per_lane=16, programs=2112, parts=4096),
    "backward": Row(on_chip=8192, tile=2048, per_lane=8, programs=528, parts=128),
    "double_backward": Row(on_chip=4096, tile=1024, per_lane=8, programs=528, parts=128),
}
"""For types of up to 4 bytes and images; half as much where a program has several channels, and of
float64. benchmarks/tune_triton.py times other numbers."""

MULTIPROCESSORS = 132
SECTOR_BYTES = 32
"""What memory gives at the least: narrower rows of a channels-last tile waste the rest."""

MERGED = 2048
"""How many numbers of each kind a program merges at most, in registers."""

MERGED_SHARE = 8
"""How many values of a part there are at least for each part: every program merges all of them."""


class Plan(NamedTuple):
    """The form and the blocks of one call.

    Attributes:
        on_chip: whether a program holds all values of its channels, in one kernel.
        block_m: values per channel in a tile.
        block_c: channels in a tile.
        warps: of 32 lanes, in a program.
        parts: how many a channel's values are cut into, one program each.
        tiles: in each part.
    """

    on_chip: bool
    block_m: int
    block_c: int
    warps: int
    parts: int
    tiles: int


@lru_cache(maxsize=4096)
def plan(op: str, itemsize: int, N: int, C: int, P: int) -> Plan:
    """Choose the blocks for a chunk of N images of P positions and C channels (of N rows, P 1).

    The number of chunks has no say, so that splits give the bits of separate calls.
    """
    row = TABLE[op]
    share = 2 if itemsize == 8 else 1
    on_chip = row.on_chip // share // (2 if P == 1 else 1)
    per_lane = row.per_lane // share
    values = triton.next_power_of_2(N * P)
    sector, channels = SECTOR_BYTES // itemsize, triton.next_power_of_2(C)
    narrow = 1 if P > 1 else min(channels, sector)
    if values * narrow <= on_chip:
        wide = narrow if P > 1 else min(channels, 2 * sector)
        fits = values * wide <= on_chip and wide * MULTIPROCESSORS <= C
        block_c = wide if fits else narrow
        return Plan(True, values, block_c, _warps(values * block_c, per_lane), 1, 1)
    block_c = 1 if P > 1 else min(channels, 2 * sector)
    block_m = min(values, row.tile // share // block_c)
    tiles = triton.cdiv(N * P, block_m)
    most = min(row.parts, tiles)
    if op != "evaluate":
        most = min(most, MERGED // block_c, 1 + int(math.sqrt(N * P / MERGED_SHARE)))
    parts = max(1, min(most, triton.cdiv(row.programs, triton.cdiv(C, block_c))))
    tiles_of_part = triton.cdiv(tiles, parts)
    parts = triton.cdiv(tiles, tiles_of_part)
    return Plan(False, block_m, block_c, _warps(block_m * block_c, per_lane), parts, tiles_of_part)


def _warps(values: int, per_lane: int) -> int:
    warps: int = triton.next_power_of_2(values // (32 * per_lane))
    return max(1, min(32, warps))

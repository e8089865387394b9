"""The launch configurations of ``batch_norm_act``'s Triton kernels: a table, and what follows.

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
        on_chip: most values that a program holds in registers; 0 to always take two kernels.
        tile: values of a tile of the kernels that loop over tiles.
        per_lane: values of a tile in one lane of a warp.
        programs: how many looping programs there should be, several for each multiprocessor.
        parts: most parts that a channel is cut into.
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
"""For types of up to 4 bytes, and one channel a program. benchmarks/tune_triton.py times other
numbers."""

MULTIPROCESSORS = 132
SECTOR_BYTES = 32
"""The smallest access to memory: a channels-last tile with narrower rows wastes the rest."""

MERGED = 2048
"""Most sums of one kind that a program merges, in registers."""

MERGED_SHARE = 8
"""Fewest values of a part for each part, since every program merges the sums of all parts."""


class Plan(NamedTuple):
    """The launch configuration of one call.

    Attributes:
        on_chip: whether a program holds all values of its channels, in one kernel.
        block_m: values of a channel in a tile.
        block_c: channels in a tile.
        warps: warps of 32 lanes in a program.
        parts: parts that a channel's values are cut into, one program each.
        tiles: tiles in each part.
    """

    on_chip: bool
    block_m: int
    block_c: int
    warps: int
    parts: int
    tiles: int


@lru_cache(maxsize=4096)
def plan(op: str, itemsize: int, N: int, C: int, P: int) -> Plan:
    """Choose the configuration for a chunk of N images of P positions and C channels.

    P is 1 for N rows of C channels. The number of chunks does not enter, so that splits give the
    bits of separate calls.
    """
    row, M = _row(op, itemsize, P), N * P
    values = triton.next_power_of_2(M)
    # Channels of a tile: one of an image; of rows, what one sector of memory holds, or two.
    narrow = wide = 1
    if P == 1:
        sector, channels = SECTOR_BYTES // itemsize, triton.next_power_of_2(C)
        narrow, wide = min(channels, sector), min(channels, 2 * sector)
    if values * narrow <= row.on_chip:
        enough = wide * MULTIPROCESSORS <= C and values * wide <= row.on_chip
        block_c = wide if enough else narrow
        return Plan(True, values, block_c, _warps(row, values * block_c), 1, 1)
    block_m = min(values, row.tile // wide)
    tiles = triton.cdiv(M, block_m)
    wanted = triton.cdiv(row.programs, triton.cdiv(C, wide))
    parts = max(1, min(wanted, tiles, _most_parts(op, row, M, wide)))
    tiles_of_part = triton.cdiv(tiles, parts)
    parts = triton.cdiv(tiles, tiles_of_part)
    return Plan(False, block_m, wide, _warps(row, block_m * wide), parts, tiles_of_part)


def _row(op: str, itemsize: int, P: int) -> Row:
    """Return an op's row for a dtype: float64 takes twice the registers, several channels more."""
    row = TABLE[op]
    if itemsize == 8:
        halves = (row.on_chip // 2, row.tile // 2, row.per_lane // 2)
        row = Row(*halves, row.programs, row.parts)
    return row._replace(on_chip=row.on_chip // 2) if P == 1 else row


def _most_parts(op: str, row: Row, M: int, block_c: int) -> int:
    """Return the most parts whose sums each program can merge, beside its own part of M values."""
    if op == "evaluate":  # there are no sums
        return row.parts
    return min(row.parts, MERGED // block_c, 1 + int(math.sqrt(M / MERGED_SHARE)))


def _warps(row: Row, values: int) -> int:
    warps: int = triton.next_power_of_2(values // (32 * row.per_lane))
    return max(1, min(32, warps))

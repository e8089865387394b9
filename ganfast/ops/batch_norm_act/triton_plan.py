"""How the Triton kernels of ``batch_norm_act`` cut up a tensor: the table, and what follows from it.

Nothing is tuned while a model runs; ``benchmarks/tune_triton.py`` times other numbers on a GPU.
"""

from __future__ import annotations

from functools import lru_cache
from typing import NamedTuple

import triton


class Row(NamedTuple):
    """What one op's kernels work on.

    Attributes:
        on_chip: values that a program holds in registers; 0 to always take two kernels.
        tile: values of a tile of the kernels that loop over tiles.
        programs: how many of those are wanted, so that every multiprocessor has several.
        parts: how many parts a channel is cut into at most.
    """

    on_chip: int
    tile: int
    programs: int
    parts: int


TABLE = {
    "train": Row(on_chip=16384, tile=2048, programs=528, parts=128),
    "train_cumulative": Row(on_chip=0, tile=2048, programs=528, parts=128),
    "evaluate": Row(on_chip=0, tile=4096, programs=2112, parts=4096),
    "backward": Row(on_chip=8192, tile=2048, programs=528, parts=128),
    "double_backward": Row(on_chip=4096, tile=1024, programs=528, parts=128),
}
"""For types of up to 4 bytes; of float64 half as many values fit."""

MULTIPROCESSORS = 132
SECTOR_BYTES = 32
"""What memory gives at the least: narrower rows of a channels-last tile waste the rest."""

VALUES_PER_LANE = 16


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
    values = triton.next_power_of_2(N * P)
    sector, channels = SECTOR_BYTES // itemsize, triton.next_power_of_2(C)
    narrow = 1 if P > 1 else min(channels, sector)
    if values * narrow <= row.on_chip // share:
        wider = 2 * narrow
        room = P == 1 and wider <= channels and values * wider <= row.on_chip // share
        block_c = wider if room and C >= wider * MULTIPROCESSORS else narrow
        return Plan(True, values, block_c, _warps(values * block_c), 1, 1)
    tile = row.tile // share
    block_c = 1 if P > 1 else min(channels, 4 * sector)
    block_m = min(values, tile // block_c)
    tiles = triton.cdiv(N * P, block_m)
    blocks = triton.cdiv(C, block_c)
    parts = max(1, min(row.parts, tiles, triton.cdiv(row.programs, blocks)))
    tiles_of_part = triton.cdiv(tiles, parts)
    return Plan(
        False, block_m, block_c, _warps(block_m * block_c),
        triton.cdiv(tiles, tiles_of_part), tiles_of_part,
    )  # fmt: skip


def _warps(values: int) -> int:
    return max(1, min(32, triton.next_power_of_2(values // (32 * VALUES_PER_LANE))))

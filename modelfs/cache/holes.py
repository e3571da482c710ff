"""Which whole blocks of a data file belong to no chunk that is present: the arithmetic of punching.

Rule: chunks are not aligned to blocks, so a block at the edge of two is freed with the last one of them.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from modelfs.cache.map_file import Rows


def hole_ranges(rows: Rows, present: Rows, offsets: npt.NDArray[np.uint64], block: int) -> list[tuple[int, int]]:
    """Start and length of the whole blocks that rows touch and no row of present does, few and in order.

    rows, present: sorted, disjoint. A block at the edge is freed with the last chunk in it, whichever that is.
    """
    at = offsets.view(np.int64)
    size = int(at[-1])
    before = np.searchsorted(present, rows)
    ends = np.concatenate(([0], at[present + 1]))
    starts = np.concatenate((at[present], [-(-size // block) * block]))
    low = np.maximum(-(-ends[before] // block) * block, at[rows] // block * block)
    high = np.minimum(starts[before] // block * block, -(-at[rows + 1] // block) * block)
    some = low < high
    low, high = low[some], high[some]
    if not len(low):
        return []
    reach = np.maximum.accumulate(high)
    first = np.concatenate(([True], low[1:] > reach[:-1]))
    last = np.concatenate((first[1:], [True]))
    return [(int(a), int(b - a)) for a, b in zip(low[first], reach[last], strict=True)]


def covered_bytes(present: Rows, offsets: npt.NDArray[np.uint64], block: int) -> int:
    """Bytes of the blocks that present rows touch."""
    if not len(present):
        return 0
    at = offsets.view(np.int64)
    low, high = at[present] // block * block, -(-at[present + 1] // block) * block
    reach = np.concatenate(([0], np.maximum.accumulate(high)[:-1]))
    return int(np.maximum(0, high - np.maximum(low, reach)).sum())

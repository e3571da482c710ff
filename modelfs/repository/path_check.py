"""All paths of a manifest at once: whether each may stand in a version, and whether they are in order.

Rule: `sound` says of all what manifest.check_path and path_key say of one. For a hundred thousand paths it takes 50 ms
and leaves the interpreter to others; a loop in Python took 0.7 s.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from modelfs.units import MiB

MAX_COMPONENT = 255
MAX_PATH = 4095
_SLAB_FILES, _SLAB_BYTES = 1 << 14, 1 * MiB  # what is made for a look at this many is small, and no call is long
_SLASH, _DOT = ord("/"), ord(".")
_END, _SEPARATOR = 0, 1

_SYMBOLS = np.arange(256, dtype=np.uint8)
"""A byte of a path → its rank in path_key's order, with 0 left for the end of a path: of a path's bytes neither NUL nor
the slash has a rank of its own, so one number is free for the separator."""
_SYMBOLS[:_SLASH] += 1
_SYMBOLS[_SLASH] = _SEPARATOR
_FIRST_BYTES = np.array([(1 << 8 * count) - 1 for count in range(9)], np.uint64)


def sound(paths: NDArray[np.uint8], ends: NDArray[np.uint64]) -> bool:
    """paths: all of them, one behind the other. ends [f]: where each ends, never falling; the last is len(paths)."""
    stops = ends.astype(np.int64)
    starts = np.concatenate([np.zeros(1, np.int64), stops[:-1]])
    lengths = stops - starts
    if len(lengths) and not 1 <= int(lengths.min()) <= int(lengths.max()) <= MAX_PATH:
        return False
    first = 0
    while first < len(stops):
        stop = int(np.searchsorted(stops, starts[first] + _SLAB_BYTES, side="right"))
        stop = min(max(stop, first + 1), first + _SLAB_FILES)
        begin = max(0, first - 1)  # the last one of the slab before: the order is between neighbours
        blob = paths[starts[begin]:stops[stop - 1]]
        own = starts[begin:stop] - starts[begin]
        if not _may_stand(blob, own) or not _in_order(blob, own, lengths[begin:stop]):
            return False
        first = stop
    return True


def _may_stand(blob: NDArray[np.uint8], starts: NDArray[np.int64]) -> bool:
    """blob: whole paths; starts: where each begins. A slash at either end of a path makes an empty part."""
    slashes = np.flatnonzero(blob == _SLASH)
    begins = np.sort(np.concatenate([starts, slashes + 1]), kind="stable")
    ends = np.sort(np.concatenate([slashes, starts[1:], np.array([len(blob)])]), kind="stable")
    sizes = ends - begins
    if not 1 <= int(sizes.min()) <= int(sizes.max()) <= MAX_COMPONENT or not blob.all():
        return False
    one, two = begins[sizes == 1], begins[sizes == 2]
    if (blob[one] == _DOT).any() or ((blob[two] == _DOT) & (blob[two + 1] == _DOT)).any():
        return False
    if int(blob.max()) < 0x80:
        return True
    if (blob[starts] & 0xC0 == 0x80).any():  # the path before ends within a character
        return False
    try:
        blob.tobytes().decode()
    except UnicodeDecodeError:
        return False
    return True


def _in_order(blob: NDArray[np.uint8], starts: NDArray[np.int64], lengths: NDArray[np.int64]) -> bool:
    """Whether the path_key of each is above that of the one before, and no path leads on from a file. Eight bytes of
    all pairs that are equal so far, at a time."""
    symbols = np.zeros(len(blob) + 8, np.uint8)
    symbols[:len(blob)] = _SYMBOLS.take(blob)
    words = np.ndarray((len(blob) + 1,), "<u8", symbols, strides=(1,))  # one a byte
    at, length, after, its_length = starts[:-1], lengths[:-1], starts[1:], lengths[1:]
    while len(at):
        ending = min(int(length.min()), int(its_length.min())) < 8
        old, new = words[np.minimum(at, len(blob))], words[np.minimum(after, len(blob))]
        if ending:
            old &= _FIRST_BYTES[np.clip(length, 0, 8)]
            new &= _FIRST_BYTES[np.clip(its_length, 0, 8)]
        differs = old != new
        if differs.any():
            if not _rises(old[differs], new[differs], ending):
                return False
            same = ~differs
            at, length, after, its_length = at[same], length[same], after[same], its_length[same]
        if ending and (length < 8).any():  # equal to the end
            return False
        at, length, after, its_length = at + 8, length - 8, after + 8, its_length - 8
    return True


def _rises(old: NDArray[np.uint64], new: NDArray[np.uint64], ending: bool) -> bool:
    """Of words that differ, their first byte lowest: whether the first byte that differs is the larger in new, and not
    a separator where old ends. ending: whether any does."""
    old, new = old.byteswap(), new.byteswap()
    if (old >= new).any():
        return False
    if not ending:
        return True
    differ = old ^ new
    for shift in np.arange(0, 64, 8, dtype=np.uint64):
        leads_on = (differ >> shift == _SEPARATOR) & ((old >> shift) & np.uint64(0xFF) == _END)
        if leads_on.any():
            return False
    return True

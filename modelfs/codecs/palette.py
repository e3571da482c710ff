"""Chunks of at most 256 different elements: the levels, and for each element which of them it is.

Stored: levels less 1 (u8), bits an index (1, 2, 4, 8) and method (raw, zstd) of the indexes, the levels as they rise,
the indexes packed from the lowest bit on, then what is left after the last whole element. Rule: levels are patterns
of bits, so NaN, -0.0 and denormals are levels like any other.
"""

from __future__ import annotations

import struct
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from modelfs.codecs.blocks import Bytes, Zstd, sample_of
from modelfs.codecs.codec import CodecError
from modelfs.codecs.parts import RAW, SLICES, ZSTD, Methods, Numbers, cheapest, numbers_of, spread
from modelfs.codecs.plain import RawCodec, ZstdCodec

MOST_LEVELS: Final = 256
_HEAD = struct.Struct("<BBB")
_SAMPLE = 1024
# Look-ups at a time: temporaries (8 bytes for each) stay in the processor's cache.
_BLOCK = 1 << 14
# Stored bytes from which on a table for two of them at once (65536 rows) is worth making.
_PAIRS = 1 << 17


class PaletteCodec:
    """width: bytes of one element, 1, 2, 4 or 8."""

    def __init__(self, name: str, width: int, zstd: Zstd) -> None:
        self.name: str = name
        self._width = width
        self._indexes = Methods({RAW: RawCodec(), ZSTD: ZstdCodec(zstd)})

    def fits(self, data: memoryview) -> bool:
        if len(data) < self._width:
            return False
        sample = np.sort(spread(numbers_of(data, self._width), _SAMPLE))
        return int(np.count_nonzero(sample[1:] != sample[:-1])) < MOST_LEVELS

    def encode(self, data: memoryview) -> bytes | None:
        elements = numbers_of(data, self._width)
        levels = _levels(elements) if self.fits(data) else elements[:0]
        if not 0 < len(levels) <= MOST_LEVELS:
            return None
        indexes = _indexes(elements, levels)
        narrow = next(bits for bits in (1, 2, 4, 8) if len(levels) <= 1 << bits)
        sample = sample_of(indexes, SLICES)
        (bits, method), _ = cheapest([((bits, method), stored) for bits in sorted({narrow, 8})
                                      for method, stored in self._indexes.tried(_packed(sample, bits))])
        method, stored = self._indexes.by(method, _packed(indexes, bits))
        whole = b"".join((_HEAD.pack(len(levels) - 1, bits, method), levels.tobytes(), stored,
                          data[elements.nbytes:]))
        return whole if len(whole) < len(data) else None

    def decode(self, stored: memoryview, out: memoryview) -> None:
        count = len(out) // self._width
        whole = count * self._width
        if not count or len(stored) < _HEAD.size:
            raise CodecError("too short for a palette")
        above, bits, method = _HEAD.unpack_from(stored)
        at, end = _HEAD.size + (above + 1) * self._width, len(stored) - (len(out) - whole)
        if bits not in (1, 2, 4, 8) or at > end:
            raise CodecError(f"a palette of {above + 1} levels with {bits} bits an index in {len(stored)} bytes")
        levels = np.frombuffer(stored[_HEAD.size:at], f"<u{self._width}")
        if not bool(np.all(levels[1:] > levels[:-1])):
            raise CodecError("the levels of a palette do not rise")
        packed = self._indexes.decode(method, stored[at:end], -(-count * bits // 8))
        if above + 1 < 1 << bits and _highest(packed, bits) > above:
            raise CodecError(f"an index beyond the {above + 1} levels of its palette")
        _fill(packed, levels, bits, np.frombuffer(out[:whole], levels.dtype))
        out[whole:] = stored[end:]


def _levels(elements: Numbers) -> Numbers:
    if elements.itemsize > 2:
        return np.unique(elements)
    there = np.zeros(1 << 8 * elements.itemsize, np.bool_)
    if elements.itemsize == 1:
        # A quarter of what marking each takes.
        for start in range(0, len(elements), _BLOCK):
            there |= np.bincount(elements[start:start + _BLOCK], minlength=256) > 0
    else:
        there[elements] = True
    return np.flatnonzero(there).astype(elements.dtype)


def _indexes(elements: Numbers, levels: Numbers) -> Bytes:
    if elements.itemsize > 2:
        return np.searchsorted(levels, elements).astype(np.uint8)
    table = np.zeros(1 << 8 * elements.itemsize, np.uint8)
    table[levels] = np.arange(len(levels))
    if elements.itemsize == 1:
        return np.frombuffer(elements.tobytes().translate(table.tobytes()), np.uint8)
    return np.take(table, elements)


def _packed(indexes: Bytes, bits: int) -> Bytes:
    share = 8 // bits
    if share == 1:
        return indexes
    padded = np.zeros((-(-len(indexes) // share), share), np.uint8)
    padded.reshape(-1)[:len(indexes)] = indexes
    packed = padded[:, 0].copy()
    for k in range(1, share):
        packed |= padded[:, k] << (k * bits)
    return packed


def _highest(packed: Bytes, bits: int) -> int:
    if bits == 8:
        return int(packed.max())
    return max(int((packed >> shift & (1 << bits) - 1).max()) for shift in range(0, 8, bits))


def _fill(packed: Bytes, levels: Numbers, bits: int, out: Numbers) -> None:
    """One look-up a stored byte, which gives all elements that it holds, or for a chunk of some size two bytes at a
    time: 1.9 and 3.6 GB/s of 2-byte elements where levels[indexes] does 0.8."""
    share = 8 // bits
    full = np.zeros(MOST_LEVELS, levels.dtype)
    full[:len(levels)] = levels
    codes = np.arange(256)
    table = np.stack([full[codes >> k * bits & (1 << bits) - 1] for k in range(share)], axis=1)
    bulk = len(out) // share
    rest = out[bulk * share:]
    rest[:] = table[packed[bulk:]].reshape(-1)[:len(rest)]
    wide: npt.NDArray[Any] = table.view(f"<u{min(8, share * levels.itemsize)}")
    keys: Numbers = packed[:bulk]
    if wide.shape[1] == 1 and wide.itemsize < 8 and bulk % 2 == 0 and bulk >= _PAIRS:
        half = 8 * wide.itemsize
        wide = wide.astype(f"<u{2 * wide.itemsize}")
        wide = (wide.reshape(1, 256) | wide << half).reshape(-1, 1)
        keys = keys.view("<u2")
    target: npt.NDArray[Any] = out[:bulk * share].view(wide.dtype).reshape(len(keys), wide.shape[1])
    if wide.shape[1] == 1:
        wide, target = wide[:, 0], target[:, 0]
    for start in range(0, len(keys), _BLOCK):
        block = slice(start, start + _BLOCK)
        # mode="clip": any other copies the target first. No key is out of its table.
        np.take(wide, keys[block], axis=0, out=target[block], mode="clip")

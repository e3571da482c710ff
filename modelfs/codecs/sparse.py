"""Chunks with many zeros: a bit for each element, and the elements that are not zero, through a codec of their own.

Stored: two parts, the bits (1: not zero) from the lowest bit of each byte on and the other elements in order, then what
is left after the last whole element. Rule: zero is the pattern without a bit; -0.0 is a value.
"""

from __future__ import annotations

from typing import Any, Final

import numpy as np
import numpy.typing as npt

from modelfs.codecs.blocks import Bytes, Zstd
from modelfs.codecs.codec import Codec, CodecError
from modelfs.codecs.parts import RAW, ZSTD, Methods, Numbers, apart, joined, numbers_of, spread
from modelfs.codecs.plain import RawCodec, ZstdCodec

LEAST_ZEROS: Final = 0.08
_SAMPLE = 2048
# Elements filled at a time, which bounds their indices (8 bytes for each).
_BLOCK = 1 << 17
# Up to a tenth of ones np.flatnonzero branches at each, and mispredicts: 1.2 ns a bit where it else takes 0.6. Ones
# behind a block's own spare it that; where there are fewer it is fast again.
_FEW, _SLOW = 0.03, 0.11
_ONES = np.full(_BLOCK // 64, 255, np.uint8)


class SparseCodec:
    """width: bytes of one element. values: method → codec of the elements that are not zero."""

    def __init__(self, name: str, width: int, zstd: Zstd, values: dict[int, Codec]) -> None:
        self.name: str = name
        self._width = width
        self._mask = Methods({RAW: RawCodec(), ZSTD: ZstdCodec(zstd)})
        self._values = Methods({RAW: RawCodec(), **values})

    def fits(self, data: memoryview) -> bool:
        if len(data) < self._width:
            return False
        sample = spread(numbers_of(data, self._width), _SAMPLE)
        return len(sample) - int(np.count_nonzero(sample)) >= LEAST_ZEROS * len(sample)

    def encode(self, data: memoryview) -> bytes | None:
        if not self.fits(data):
            return None
        elements = numbers_of(data, self._width)
        there = elements != 0
        parts = (self._mask.encode(np.packbits(there, bitorder="little")),
                 self._values.encode(elements[np.flatnonzero(there)]))
        stored = b"".join((*joined(parts), data[elements.nbytes:]))
        return stored if len(stored) < len(data) else None

    def decode(self, stored: memoryview, out: memoryview) -> None:
        count = len(out) // self._width
        whole = count * self._width
        if not count or len(stored) < len(out) - whole:
            raise CodecError("too short for a sparse chunk")
        end = len(stored) - (len(out) - whole)
        bits, others = apart(stored[:end], 2)
        mask = self._mask.decode(*bits, -(-count // 8))
        if count % 8 and int(mask[-1]) >> count % 8:
            raise CodecError("a bit for an element that is not there")
        values = self._values.decode(*others, _ones_in(mask) * self._width).view(f"<u{self._width}")
        _fill(mask, values, np.frombuffer(out[:whole], values.dtype))
        out[whole:] = stored[end:]


def _ones_in(mask: Bytes) -> int:
    whole = len(mask) & ~7
    return sum(int(np.bitwise_count(part).sum(dtype=np.int64)) for part in (mask[:whole].view(np.uint64), mask[whole:]))


def _fill(mask: Bytes, values: Numbers, out: npt.NDArray[Any]) -> None:
    """By index: out[there] = values takes four times as long where the bits are random (numpy 2.4)."""
    slow = _FEW * len(out) < len(values) <= _SLOW * len(out)
    there = np.unpackbits(mask[:0] if slow else mask, bitorder="little").view(np.bool_)
    done = 0
    for start in range(0, len(out), _BLOCK):
        if slow:
            bits = np.concatenate([mask[start // 8:(start + _BLOCK) // 8], _ONES])
            at = np.flatnonzero(np.unpackbits(bits, bitorder="little").view(np.bool_))[:-8 * len(_ONES)]
        else:
            at = np.flatnonzero(there[start:start + _BLOCK])
        block = out[start:start + _BLOCK]
        block.fill(0)
        block[at] = values[done:done + len(at)]
        done += len(at)

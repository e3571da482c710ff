"""What the compact codecs are made of: runs of numbers, each stored by another codec that is named by a number.

Stored: an entry a part (method byte, u32 LE length), then the parts' bytes in order. Rule: which methods a part may
have is fixed where it stands, so parts never nest deeper than the code says, and its decoded length is known before.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Mapping
from typing import Any, Final, Protocol, TypeAlias, TypeVar

import numpy as np
import numpy.typing as npt

from modelfs.codecs.blocks import Bytes, sample_of
from modelfs.codecs.codec import Codec, CodecError
from modelfs.codecs.plain import ZstdCodec

RAW: Final = 0
ZSTD: Final = 2
PLANES: Final = 3
PALETTE: Final = 4
SPARSE: Final = 5
# A part that is cheaper to decode is taken where it is at most so much larger than the smallest.
TOLERANCE: Final = 1.02
# The trial of a part sees so many slices of 4 KiB, which tell its size to a few percent.
SLICES: Final = 8
_WORSE = 1.05
_ENTRY = struct.Struct("<BI")

Numbers: TypeAlias = npt.NDArray[np.unsignedinteger[Any]]
Part: TypeAlias = tuple[int, bytes]
_Way = TypeVar("_Way")


class CompactCodec(Codec, Protocol):
    """A codec for chunks of a special kind."""

    def fits(self, data: memoryview) -> bool:
        """Whether data may be of that kind, found out in at most some ten microseconds. False may be an error, and
        costs a larger chunk; True may be one, too, and costs an encoding."""


class Methods:
    """The methods that one part may have, in the order of what they cost to decode."""

    def __init__(self, codecs: Mapping[int, Codec]) -> None:
        self._codecs = codecs

    def encode(self, numbers: npt.NDArray[Any]) -> Part:
        """By what wins on a sample; by trial on everything where that does worse than the sample promised."""
        data = numbers.view(np.uint8)
        sample = sample_of(data, SLICES)
        method, stored = cheapest(self.tried(sample))
        if len(sample) == len(data):
            return method, stored
        whole = self._codecs[method].encode(data.data)
        if whole is not None and len(whole) * len(sample) <= _WORSE * len(stored) * len(data):
            return method, whole
        return cheapest(self.tried(data))

    def tried(self, data: Bytes) -> list[Part]:
        """By every method that does not decline, the cheapest to decode first."""
        tried = ((method, codec.encode(data.data)) for method, codec in self._codecs.items())
        return [(method, stored) for method, stored in tried if stored is not None]

    def by(self, method: int, data: Bytes) -> Part:
        """As it is where the method declines."""
        stored = self._codecs[method].encode(data.data)
        return (RAW, data.tobytes()) if stored is None else (method, stored)

    def decode(self, method: int, stored: memoryview, length: int) -> Bytes:
        codec = self._codecs.get(method)
        if codec is None:
            raise CodecError(f"a part of method {method}")
        if method == RAW and len(stored) == length:
            return np.frombuffer(stored, np.uint8)
        if isinstance(codec, ZstdCodec) and length:
            return np.frombuffer(codec.decoded(stored, length), np.uint8)
        out = np.empty(length, np.uint8)
        codec.decode(stored, out.data)
        return out


def cheapest(parts: list[tuple[_Way, bytes]]) -> tuple[_Way, bytes]:
    """The first that comes near the smallest. Of each: how it was stored, and what came of it."""
    bar = TOLERANCE * min(len(stored) for _, stored in parts)
    return next(part for part in parts if len(part[1]) <= bar)


def joined(parts: Iterable[Part]) -> list[bytes]:
    kept = list(parts)
    return [*(_ENTRY.pack(method, len(stored)) for method, stored in kept), *(stored for _, stored in kept)]


def apart(stored: memoryview, count: int) -> list[tuple[int, memoryview]]:
    """Raises CodecError where the parts are not all of stored."""
    at = count * _ENTRY.size
    if len(stored) < at:
        raise CodecError("too short for a table of parts")
    entries = [_ENTRY.unpack_from(stored, k * _ENTRY.size) for k in range(count)]
    if at + sum(length for _, length in entries) != len(stored):
        raise CodecError("the parts' lengths do not add up")
    parts = []
    for method, length in entries:
        parts.append((method, stored[at:at + length]))
        at += length
    return parts


def numbers_of(data: memoryview, width: int) -> Numbers:
    """The whole elements of data as unsigned numbers."""
    return np.frombuffer(data, f"<u{width}", len(data) // width)


def spread(numbers: Numbers, count: int) -> Numbers:
    """About count of numbers, from all over them, at an odd distance: columns of a matrix are no sample."""
    return numbers[::max(1, len(numbers) // count) | 1]

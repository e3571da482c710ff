"""The codecs by their names, and which of them a chunk is stored with.

Rule: a name never changes its meaning (docs/format.md). The choice is by trial: the smallest wins, unless one that
is cheaper to decode comes within 2 % of it.
"""

from __future__ import annotations

from types import MappingProxyType

import numpy as np

from modelfs.codecs.blocks import Zstd, lz4_compress, lz4_decompress, sample_of
from modelfs.codecs.codec import Codec, CodecError
from modelfs.codecs.planes import LZ4, ZSTD, PlanesCodec
from modelfs.errors import Unsupported

TOLERANCE = 1.02
# The trial sees at most 8 slices of 4 KiB: benchmarks/codecs.py compares that with a trial on everything.
_SAMPLE_SLICES = 8


class RawCodec:
    name: str = "raw"

    def encode(self, data: memoryview) -> bytes:
        return bytes(data)

    def decode(self, stored: memoryview, out: memoryview) -> None:
        if len(stored) != len(out):
            raise CodecError(f"{len(stored)} raw bytes where {len(out)} were expected")
        out[:] = stored


class Lz4Codec:
    name: str = "lz4"

    def encode(self, data: memoryview) -> bytes | None:
        stored = lz4_compress(data) if len(data) else b""
        return stored if len(stored) < len(data) else None

    def decode(self, stored: memoryview, out: memoryview) -> None:
        if not len(out):
            raise CodecError("an empty chunk is stored raw")
        out[:] = lz4_decompress(stored, len(out))


class ZstdCodec:
    name: str = "zstd"

    def __init__(self, zstd: Zstd) -> None:
        self._zstd = zstd

    def encode(self, data: memoryview) -> bytes | None:
        stored = self._zstd.compress(data) if len(data) else b""
        return stored if len(stored) < len(data) else None

    def decode(self, stored: memoryview, out: memoryview) -> None:
        if not len(out):
            raise CodecError("an empty chunk is stored raw")
        out[:] = self._zstd.decompress(stored, len(out))


_ZSTD = Zstd()
CODECS: MappingProxyType[str, Codec] = MappingProxyType({codec.name: codec for codec in (
    RawCodec(), Lz4Codec(), PlanesCodec("planes2-lz4", 2, LZ4, _ZSTD), PlanesCodec("planes4-lz4", 4, LZ4, _ZSTD),
    ZstdCodec(_ZSTD), PlanesCodec("planes2-zstd", 2, ZSTD, _ZSTD), PlanesCodec("planes4-zstd", 4, ZSTD, _ZSTD))})
"""In the order of what they cost to decode, the cheapest first."""

_PLANES = {0: (2, 4), 1: (), 2: (2,), 4: (4,), 8: (2, 4)}
_CANDIDATES = MappingProxyType({width: tuple(
    name for name in CODECS if name != "raw" and (not name.startswith("planes") or int(name[6]) in widths))
    for width, widths in _PLANES.items()})


def codec_named(name: str) -> Codec:
    """Raises Unsupported, naming it, for a codec that this modelfs does not have."""
    codec = CODECS.get(name)
    if codec is None:
        raise Unsupported(f"codec {name[:80]!r}", why="this modelfs does not have it",
                          advice="Read it with the modelfs that wrote it, or a newer one.")
    return codec


def encode_chunk(data: memoryview, width: int) -> tuple[str, bytes]:
    """The codec's name and the stored bytes; ("raw", data) where nothing gains 2 %.

    width: bytes of one element: 1, 2, 4, 8, or 0 where it is not known (formats.Segment).
    """
    sample = sample_of(np.frombuffer(data, np.uint8), _SAMPLE_SLICES).data
    name, encoded = best_of(sample, width)
    if len(sample) == len(data):
        return name, encoded
    if name == "raw":
        # Slices cannot show a repeat that is longer than they are; a search passes noise at 4.8 GB/s, so look.
        name, encoded = "zstd", _ZSTD.search(data)
    else:
        encoded = CODECS[name].encode(data) or b""
    if not encoded or len(encoded) * TOLERANCE > len(data):
        return "raw", bytes(data)
    return name, encoded


def best_of(data: memoryview, width: int) -> tuple[str, bytes]:
    """As encode_chunk, by encoding all of data with every candidate."""
    results = {"raw": bytes(data)}
    for name in _CANDIDATES[width]:
        encoded = CODECS[name].encode(data)
        if encoded is not None:
            results[name] = encoded
    bar = min(len(encoded) for encoded in results.values()) * TOLERANCE
    return next((name, encoded) for name, encoded in results.items() if len(encoded) <= bar)

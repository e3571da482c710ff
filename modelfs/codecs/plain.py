"""The codecs that take a chunk as it is: raw, lz4, zstd.

Rule: each stores one run of bytes and nothing beside it.
"""

from __future__ import annotations

from modelfs.codecs.blocks import Zstd, lz4_compress, lz4_decompress
from modelfs.codecs.codec import CodecError


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
        out[:] = self.decoded(stored, len(out))

    def decoded(self, stored: memoryview, length: int) -> bytes:
        """As decode, for whoever needs no copy. length: above 0."""
        return self._zstd.decompress(stored, length)

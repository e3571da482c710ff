"""What a codec is: decoded bytes ↔ stored bytes, lossless, one chunk at a time."""

from __future__ import annotations

from typing import Protocol

from modelfs.errors import Unsupported

Buffer = bytes | bytearray | memoryview


class CodecError(Exception):
    """Stored bytes that this codec did not write."""


def unknown_codec(name: str, kind: str = "") -> Unsupported:
    """kind: what else there is to say of it."""
    return Unsupported(f"codec {name[:80]!r}{kind}", why="this modelfs does not have it",
                       advice="Read it with the modelfs that wrote it, or a newer one.")


class Codec(Protocol):
    """name stands in layouts and indexes (docs/format.md) and never changes its meaning."""

    name: str

    def encode(self, data: memoryview) -> bytes | None:
        """The stored bytes, or None where the codec declines (it would not come out smaller)."""

    def decode(self, stored: memoryview, out: memoryview) -> None:
        """Fill out, whose length is the chunk's decoded length.

        Allocates at most a small multiple of len(out), whatever stored claims.
        Raises CodecError; the content of out is undefined then.
        """

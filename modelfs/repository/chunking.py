"""Where a file is cut into chunks.

Rule: a large tensor is cut from its own start and shares no chunk, so unchanged it gives the same chunks wherever
it lies and whatever its neighbours do; every byte lies in exactly one cut, and no cut is longer than a chunk.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from modelfs.formats.format import Description, Segment
from modelfs.units import KiB

SMALL_FILE = 256 * KiB  # such files go to head packs whole, and come with the first touch of a model
_SHARING = 8  # a tensor of a chunk's eighth or more is cut by itself


@dataclass(frozen=True, slots=True)
class Cut:
    """width: bytes of one element (formats.Segment). head: it goes to a head pack."""

    offset: int
    length: int
    width: int
    head: bool


def cut(description: Description, size: int, chunk_size: int) -> Iterator[Cut]:
    """The cuts of a file of size bytes, in order, made as they are asked for.

    chunk_size: bytes, the most that a cut may have. description: of the whole file (formats.describe).
    """
    if size <= SMALL_FILE:
        yield from _pieces(0, size, 0, True, chunk_size)
        return
    shared: Segment | None = None
    for segment in description.segments:
        small = not segment.head and segment.length * _SHARING < chunk_size
        if shared is not None:
            if small and segment.width == shared.width and shared.length + segment.length <= chunk_size:
                shared = Segment(shared.offset, shared.length + segment.length, shared.width)
                continue
            yield from _pieces(shared.offset, shared.length, shared.width, False, chunk_size)
            shared = None
        if small:
            shared = segment
        else:
            yield from _pieces(segment.offset, segment.length, segment.width, segment.head, chunk_size)
    if shared is not None:
        yield from _pieces(shared.offset, shared.length, shared.width, False, chunk_size)


def _pieces(offset: int, length: int, width: int, head: bool, chunk_size: int) -> Iterator[Cut]:
    for start in range(offset, offset + length, chunk_size):
        yield Cut(start, min(chunk_size, offset + length - start), width, head)

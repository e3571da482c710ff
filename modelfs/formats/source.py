"""Reading a file's structure when nothing in it may be believed, and covering the file with what was found.

Rule: a parser raises NotThisFormat, and nothing else, for bytes that it does not understand or that contradict
themselves; no count or length that the file names is acted upon before it is held against the file's size.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace

from modelfs.formats.format import ReadAt, Segment

HEADER_LIMIT = 100_000_000  # what the safetensors library allows
_WINDOW = 1 << 18


class NotThisFormat(Exception):
    """The file is something else, or damaged, or a lie. Never leaves modelfs.formats."""


@dataclass(frozen=True, slots=True)
class Source:
    """read: (offset, length) → bytes. size: of the file, bytes."""

    read: ReadAt
    size: int

    def bytes_at(self, offset: int, length: int) -> bytes:
        """Exactly length bytes, at most HEADER_LIMIT. Raises NotThisFormat where the file has not so many there."""
        if not 0 <= offset <= self.size or not 0 <= length <= min(self.size - offset, HEADER_LIMIT):
            raise NotThisFormat(f"{length} bytes at {offset} of a file of {self.size}")
        data = self.read(offset, length)
        if len(data) != length:
            raise NotThisFormat("the file is shorter than it was")
        return data


class Cursor:
    """Walks forward through a header, in windows; at most limit bytes of it. For one thread."""

    def __init__(self, source: Source, limit: int) -> None:
        self._source, self._end = source, min(source.size, limit)
        self._window, self._at = b"", 0
        self.position = 0

    def remaining(self) -> int:
        return self._end - self.position

    def skip(self, length: int) -> None:
        if not 0 <= length <= self.remaining():
            raise NotThisFormat("the header goes beyond its end")
        self.position += length

    def take(self, length: int) -> bytes:
        start = self.position - self._at
        if not 0 <= start <= len(self._window) - length:
            if not 0 <= length <= self.remaining():
                raise NotThisFormat("the header goes beyond its end")
            self._at, start = self.position, 0
            self._window = self._source.bytes_at(self.position, min(max(length, _WINDOW), self.remaining()))
        self.position += length
        return self._window[start:start + length]

    def number(self, size: int) -> int:
        """An unsigned little-endian integer of size bytes."""
        return int.from_bytes(self.take(size), "little")


def element_count(shape: Iterable[int], most: int) -> int:
    """The product of shape. Raises NotThisFormat for a negative size or, zeros apart, more than most."""
    sizes = list(shape)
    if len(sizes) > 64 or any(size < 0 for size in sizes):
        raise NotThisFormat("not the shape of a tensor")
    count = 1
    for size in sizes if 0 not in sizes else [0]:
        count *= size
        if count > most:
            raise NotThisFormat("a tensor larger than its file")
    return count


def cover(size: int, found: list[Segment]) -> tuple[Segment, ...]:
    """found in order, without empty ones, and what lies between and after them as segments of no known width.

    Raises NotThisFormat where two of found overlap or one leaves the file of size bytes.
    """
    segments: list[Segment] = []
    at = 0
    for segment in sorted(found, key=lambda each: each.offset):
        if not segment.length:
            continue
        if segment.offset < at or segment.length < 0:
            raise NotThisFormat("two parts of the file overlap")
        if segment.offset > at:
            segments.append(Segment(at, segment.offset - at))
        last = segments[-1] if segments else None
        if last is not None and last.head and segment.head:
            segments[-1] = replace(last, length=last.length + segment.length)
        else:
            segments.append(segment)
        at = segment.offset + segment.length
    if at > size:
        raise NotThisFormat("a part lies beyond the file's end")
    if at < size:
        segments.append(Segment(at, size - at))
    return tuple(segments)

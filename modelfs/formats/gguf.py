"""GGUF versions 2 and 3, little-endian: typed metadata, a table of tensors, then their aligned data.

Rule: a tensor runs to where the next one begins, padding included, so quantised types need no table of sizes;
for plain types the size is held against the shape.
"""

from __future__ import annotations

from types import MappingProxyType

from modelfs.formats.format import Description, Segment, Tensor
from modelfs.formats.safetensors import WIDTHS
from modelfs.formats.source import Cursor, NotThisFormat, Source, cover, element_count

MAGIC = b"GGUF"
_LIMIT = 32 << 20  # of metadata and table; a vocabulary of 256 k tokens with its merges is about 12 MiB
_MOST_ENTRIES = 1 << 18
_ALIGNMENT_KEY = b"general.alignment"
_UINT32, _STRING, _ARRAY = 4, 8, 9
_SIZES = MappingProxyType({0: 1, 1: 1, 2: 2, 3: 2, 4: 4, 5: 4, 6: 4, 7: 1, 10: 8, 11: 8, 12: 8})
_DEEPEST = 4
_TYPES = MappingProxyType({
    0: "F32", 1: "F16", 2: "Q4_0", 3: "Q4_1", 6: "Q5_0", 7: "Q5_1", 8: "Q8_0", 9: "Q8_1", 10: "Q2_K", 11: "Q3_K",
    12: "Q4_K", 13: "Q5_K", 14: "Q6_K", 15: "Q8_K", 16: "IQ2_XXS", 17: "IQ2_XS", 18: "IQ3_XXS", 19: "IQ1_S",
    20: "IQ4_NL", 21: "IQ3_S", 22: "IQ2_S", 23: "IQ4_XS", 24: "I8", 25: "I16", 26: "I32", 27: "I64", 28: "F64",
    29: "IQ1_M", 30: "BF16", 34: "TQ1_0", 35: "TQ2_0", 39: "MXFP4"})
_BYTES = MappingProxyType({"F32": 4, "F16": 2, "I8": 1, "I16": 2, "I32": 4, "I64": 8, "F64": 8, "BF16": 2})


def parse_gguf(source: Source) -> Description:
    """Shapes are in the file's order, the fastest dimension first. Raises NotThisFormat."""
    cursor = Cursor(source, _LIMIT)
    if cursor.take(4) != MAGIC or cursor.number(4) not in (2, 3):
        raise NotThisFormat("not GGUF 2 or 3")
    tensor_count, pair_count = cursor.number(8), cursor.number(8)
    # The shortest pair is an empty key and one byte; the shortest entry an empty name and no dimension.
    if max(pair_count, tensor_count) > _MOST_ENTRIES or pair_count * 13 + tensor_count * 24 > cursor.remaining():
        raise NotThisFormat("more entries than the file has room for")
    alignment = _metadata(cursor, pair_count)
    entries = sorted((_entry(cursor) for _ in range(tensor_count)),
                     key=lambda entry: (entry.offset, entry.count))
    start = -(-cursor.position // alignment) * alignment
    if not entries:
        return Description("gguf", cover(source.size, [Segment(0, min(start, source.size), head=True)]))
    if start > source.size:
        raise NotThisFormat("the data begins beyond the file's end")
    segments, tensors = [Segment(0, start, head=True)], []
    ends = [entry.offset for entry in entries[1:]] + [source.size - start]
    for entry, end in zip(entries, ends, strict=True):
        span = end - entry.offset
        length = entry.length(span)
        if entry.offset % alignment or length > span:
            raise NotThisFormat(f"tensor {entry.name!r} is not aligned, or overlaps the next")
        segments.append(Segment(start + entry.offset, span, WIDTHS.get(entry.dtype, 0)))
        tensors.append(Tensor(entry.name, entry.dtype, entry.shape, start + entry.offset, length))
    return Description("gguf", cover(source.size, segments), tuple(tensors))


class _Entry:
    __slots__ = ("count", "dtype", "name", "offset", "shape")

    def __init__(self, name: str, shape: tuple[int, ...], dtype: str, offset: int, count: int) -> None:
        self.name, self.shape, self.dtype, self.offset, self.count = name, shape, dtype, offset, count

    def length(self, span: int) -> int:
        """Bytes without padding where the type is plain; else all that is there."""
        if not self.count:
            return 0
        size = _BYTES.get(self.dtype)
        length = self.count * size if size else span
        if length <= 0:
            raise NotThisFormat(f"tensor {self.name!r} has no room")
        return length


def _entry(cursor: Cursor) -> _Entry:
    name, dimensions = _string(cursor), cursor.number(4)
    if dimensions > 8:
        raise NotThisFormat("a tensor of too many dimensions")
    shape = tuple(cursor.number(8) for _ in range(dimensions))
    kind, offset = cursor.number(4), cursor.number(8)
    try:
        text = name.decode()
    except UnicodeDecodeError as error:
        raise NotThisFormat("a tensor's name is not UTF-8") from error
    return _Entry(text, shape, _TYPES.get(kind, f"GGML_{kind}"), offset, element_count(shape, 1 << 62))


def _metadata(cursor: Cursor, pairs: int) -> int:
    """Walks past the metadata; returns the alignment."""
    alignment = 32
    for _ in range(pairs):
        key, kind = _string(cursor), cursor.number(4)
        if key == _ALIGNMENT_KEY:
            if kind != _UINT32:
                raise NotThisFormat("an alignment that is no u32")
            alignment = cursor.number(4)
            if not 1 <= alignment <= 1 << 20 or alignment & (alignment - 1):
                raise NotThisFormat("an alignment that is no power of two")
        else:
            _skip(cursor, kind, 1, _DEEPEST)
    return alignment


def _skip(cursor: Cursor, kind: int, count: int, depth: int) -> None:
    if kind in _SIZES:
        cursor.skip(count * _SIZES[kind])
    elif kind == _STRING and count * 8 <= cursor.remaining():
        for _ in range(count):
            cursor.skip(cursor.number(8))
    elif kind == _ARRAY and depth and count * 12 <= cursor.remaining():
        for _ in range(count):
            inner, length = cursor.number(4), cursor.number(8)
            _skip(cursor, inner, length, depth - 1)
    else:
        raise NotThisFormat("metadata of no known type")


def _string(cursor: Cursor) -> bytes:
    length = cursor.number(8)
    if length > 1 << 16:
        raise NotThisFormat("a name of more than 64 KiB")
    return cursor.take(length)

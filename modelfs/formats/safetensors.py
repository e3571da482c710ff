"""safetensors: a u64 length, that much JSON, then the tensors back to back.

Rule: what the safetensors library refuses is refused here, so a description is of a file that loads: the
header's limit, offsets that cover the data exactly and without holes, sizes that agree with dtype and shape.
"""

from __future__ import annotations

import json
from types import MappingProxyType
from typing import TypeGuard

from modelfs.formats.format import Description, Segment, Tensor
from modelfs.formats.source import HEADER_LIMIT, NotThisFormat, Source, cover, element_count

BITS = MappingProxyType({
    "BOOL": 8, "U8": 8, "I8": 8, "F8_E5M2": 8, "F8_E4M3": 8, "F8_E8M0": 8, "F8_E4M3FNUZ": 8, "F8_E5M2FNUZ": 8,
    "F4": 4, "F6_E2M3": 6, "F6_E3M2": 6, "I16": 16, "U16": 16, "F16": 16, "BF16": 16, "I32": 32, "U32": 32,
    "F32": 32, "I64": 64, "U64": 64, "F64": 64, "C64": 64})
"""Bits of one element, by dtype."""

WIDTHS = MappingProxyType({name: bits // 8 for name, bits in BITS.items() if bits >= 8} | {"C64": 4})
"""Bytes of what repeats: a complex number is two of 4."""

_LARGE_HEADER = 4 << 20


def parse_safetensors(source: Source) -> Description:
    """Raises NotThisFormat."""
    length = int.from_bytes(source.bytes_at(0, 8), "little")
    start = 8 + length
    if not 2 <= length <= HEADER_LIMIT or start > source.size:
        raise NotThisFormat("no header of this length")
    tensors = sorted((_tensor(name, entry, start, source.size)
                      for name, entry in _header(source.bytes_at(8, length)).items() if name != "__metadata__"),
                     key=lambda tensor: (tensor.offset, tensor.length))
    at = start
    for tensor in tensors:
        if tensor.offset != at:
            raise NotThisFormat("the tensors do not follow each other")
        at += tensor.length
    if at != source.size:
        raise NotThisFormat("the tensors do not end where the file does")
    segments = [Segment(0, start, head=True)]
    segments += [Segment(each.offset, each.length, WIDTHS.get(each.dtype, 0)) for each in tensors]
    return Description("safetensors", cover(source.size, segments), tuple(tensors))


def _header(raw: bytes) -> dict[str, object]:
    # Python makes 56 bytes or more of each empty list: 100 MB of brackets would be gigabytes. A tensor's entry
    # has three brackets in more than 45 bytes.
    if raw[:1] != b"{" or (len(raw) > _LARGE_HEADER and raw.count(b"[") + raw.count(b"{") > len(raw) // 12):
        raise NotThisFormat("not a header of tensors")
    try:
        header = json.loads(raw.decode())
    except (ValueError, RecursionError) as error:
        raise NotThisFormat("the header is not JSON") from error
    if not isinstance(header, dict):
        raise NotThisFormat("the header is not an object")
    return header


def _tensor(name: str, entry: object, start: int, size: int) -> Tensor:
    if not isinstance(entry, dict) or not (name.isascii() or _is_text(name)):
        raise NotThisFormat(f"tensor {name!r} is not an object, or its name no Unicode text")
    dtype, shape, offsets = entry.get("dtype"), entry.get("shape"), entry.get("data_offsets")
    if not isinstance(dtype, str) or not _are_integers(shape) or not _are_integers(offsets) or len(offsets) != 2:
        raise NotThisFormat(f"tensor {name!r} lacks dtype, shape or data_offsets")
    begin, end = offsets
    if not 0 <= begin <= end <= size - start:
        raise NotThisFormat(f"tensor {name!r} is not in the file")
    count = element_count(shape, 8 * size)
    if dtype in BITS and count * BITS[dtype] != 8 * (end - begin):
        raise NotThisFormat(f"tensor {name!r} is not of its shape")
    return Tensor(name, dtype, tuple(shape), start + begin, end - begin)


def _are_integers(value: object) -> TypeGuard[list[int]]:
    return isinstance(value, list) and all(type(each) is int for each in value)


def _is_text(name: str) -> bool:
    """JSON can name half of a surrogate pair, which is no character and cannot be written as UTF-8."""
    return not any("\ud800" <= letter <= "\udfff" for letter in name)

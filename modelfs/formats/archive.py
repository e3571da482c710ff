"""Zip archives that hold tensors: what torch.save writes, and NumPy's npz.

Rule: the central directory is believed only where the local headers agree with it, so that every record lies
where a reader will look; records that are compressed are opaque, and nothing is ever unpickled.
"""

from __future__ import annotations

import re
import struct
from dataclasses import dataclass

from modelfs.errors import Malformed
from modelfs.formats.format import Description, ReadAt, Segment, Tensor
from modelfs.formats.npy import read_array
from modelfs.formats.source import HEADER_LIMIT, NotThisFormat, Source, cover

MAGIC = b"PK\x03\x04"
_END = struct.Struct("<4s4H2LH")
_END64_LOCATOR = struct.Struct("<4sLQL")
_END64 = struct.Struct("<4sQ2H2L4Q")
_ENTRY = struct.Struct("<4s6H3L5H2L")
_LOCAL = struct.Struct("<4s5H3L2H")
_STORED, _ENCRYPTED, _HAS_DESCRIPTOR = 0, 1, 8
_ENTRY_CRC, _LOCAL_CRC = 16, 14
_DESCRIPTOR = b"PK\x07\x08"
_NONE16, _NONE32 = 0xFFFF, 0xFFFFFFFF
_MOST_RECORDS = 1 << 18
_TORCH_DATA = re.compile(r"(?:.+/)?data/[0-9]+")
# The pickle and what stands around it come before the first tensor; a reader wants them first.
_HEAD_LIMIT = 4 << 20


@dataclass(frozen=True, slots=True)
class _Record:
    """header: offset of the local header. size: bytes as stored. data: offset of the first of them.

    entry: offset of the directory's entry. descriptor: whether one may follow the data.
    """

    name: str
    method: int
    size: int
    full_size: int
    header: int
    data: int
    entry: int
    descriptor: bool


@dataclass(frozen=True, slots=True)
class Member:
    """A record, for who rewrites its bytes in place. stored: not compressed. size: bytes as they lie in the archive.

    crc_at: all offsets in the archive at which the CRC-32 of its content stands, little-endian.
    """

    name: str
    stored: bool
    data: int
    size: int
    full_size: int
    crc_at: tuple[int, ...]


def members_of(read: ReadAt, size: int) -> tuple[Member, ...]:
    """Of an archive that describe knows as torch or npz, in the order of their data."""
    try:
        source = Source(read, size)
        return tuple(Member(each.name, each.method == _STORED, each.data, each.size, each.full_size,
                            _crc_places(source, each)) for each in _in_order(source)[0])
    except NotThisFormat as error:
        raise Malformed("an archive cannot be read", why=str(error)) from error


def parse_archive(source: Source) -> Description:
    """torch or npz, by the records' names. Raises NotThisFormat for any other archive."""
    records, start = _in_order(source)
    names = [record.name for record in records]
    if records and all(name.endswith(".npy") for name in names):
        return _npz(source, records, start)
    if any(name == "data.pkl" or name.endswith("/data.pkl") for name in names):
        return _torch(source, records, start)
    raise NotThisFormat("an archive of something else")


def _in_order(source: Source) -> tuple[list[_Record], int]:
    """And the directory's offset."""
    start, count, length = _directory(source)
    records = sorted(_records(source, start, count, length), key=lambda record: record.header)
    at = 0
    for record in records:
        if record.header < at or record.data + record.size > start:
            raise NotThisFormat("two records overlap")
        at = record.data + record.size
    return records, start


def _crc_places(source: Source, record: _Record) -> tuple[int, ...]:
    """The local header may have zero where a descriptor follows the data, and the descriptor a signature or none."""
    crc = source.bytes_at(record.entry + _ENTRY_CRC, 4)
    places = [record.entry + _ENTRY_CRC]
    if source.bytes_at(record.header + _LOCAL_CRC, 4) == crc:
        places.append(record.header + _LOCAL_CRC)
    elif not record.descriptor:
        raise NotThisFormat("a record of two checksums")
    if record.descriptor:
        end = record.data + record.size
        found = source.bytes_at(end, min(8, source.size - end))
        at = 4 if found[:4] == _DESCRIPTOR else 0
        if found[at:at + 4] == crc:
            places.append(end + at)
        elif at:
            raise NotThisFormat("a descriptor of another checksum")
    return tuple(places)


def _torch(source: Source, records: list[_Record], directory: int) -> Description:
    segments, tensors = [Segment(directory, source.size - directory, head=True)], []
    for record in records:
        if _TORCH_DATA.fullmatch(record.name):
            segments.append(Segment(record.data, record.size))
            if record.method == _STORED:
                tensors.append(Tensor(record.name, "U8", (record.size,), record.data, record.size))
    first = min((each.offset for each in segments), default=0)
    if 0 < first <= _HEAD_LIMIT:
        segments.append(Segment(0, first, head=True))
    return Description("torch", cover(source.size, segments), tuple(tensors))


def _npz(source: Source, records: list[_Record], directory: int) -> Description:
    segments = [Segment(directory, source.size - directory, head=True)]
    tensors: list[Tensor] = []
    for record in records:
        try:
            array = read_array(source, record.data, record.size) if record.method == _STORED else None
        except NotThisFormat:
            array = None
        if array is None or array.length is None:
            segments.append(Segment(record.data, record.size))
        else:
            segments.append(Segment(array.data, array.length, array.width))
            tensors += array.tensor(record.name.removesuffix(".npy"))
    return Description("npz", cover(source.size, segments), tuple(tensors))


def _directory(source: Source) -> tuple[int, int, int]:
    """Offset, number of entries, and bytes of the central directory."""
    tail_at = max(0, source.size - _END.size - _NONE16)
    tail = source.bytes_at(tail_at, source.size - tail_at)
    found = tail.rfind(b"PK\x05\x06")
    if found < 0 or len(tail) - found < _END.size:
        raise NotThisFormat("no end of a directory")
    _, disk, first_disk, here, count, length, start, comment = _END.unpack_from(tail, found)
    end = tail_at + found
    if end + _END.size + comment != source.size:
        raise NotThisFormat("the file does not end with the directory")
    if _NONE16 in (count, here) or _NONE32 in (length, start):
        locator = source.bytes_at(end - _END64_LOCATOR.size, _END64_LOCATOR.size)
        magic, _, end, _ = _END64_LOCATOR.unpack(locator)
        if magic != b"PK\x06\x07":
            raise NotThisFormat("no zip64 locator")
        magic, _, _, _, disk, first_disk, here, count, length, start = _END64.unpack(
            source.bytes_at(end, _END64.size))
        if magic != b"PK\x06\x06":
            raise NotThisFormat("no zip64 end of a directory")
    if disk or first_disk or here != count or start + length > end or length > HEADER_LIMIT or \
            count > _MOST_RECORDS or count * _ENTRY.size > length:
        raise NotThisFormat("a directory that is not there")
    return start, count, length


def _records(source: Source, start: int, count: int, length: int) -> list[_Record]:
    directory, at, records = source.bytes_at(start, length), 0, []
    for _ in range(count):
        if at + _ENTRY.size > length:
            raise NotThisFormat("the directory is too short")
        (magic, _, _, flags, method, _, _, _, size, full_size, name_length, extra_length, comment_length, disk, _, _,
         header) = _ENTRY.unpack_from(directory, at)
        extra_at = at + _ENTRY.size + name_length
        end = extra_at + extra_length + comment_length
        if magic != b"PK\x01\x02" or end > length or disk not in (0, _NONE16) or flags & _ENCRYPTED:
            raise NotThisFormat("an entry of the directory is damaged")
        raw_name = directory[at + _ENTRY.size:extra_at]
        if _NONE32 in (size, full_size, header):
            extra = directory[extra_at:extra_at + extra_length]
            full_size, size, header = _wide(extra, full_size, size, header)
        if method == _STORED and size != full_size:
            raise NotThisFormat("a stored record of two sizes")
        records.append(_Record(_text(raw_name), method, size, full_size, header,
                               _data_offset(source, header, raw_name, method), start + at,
                               bool(flags & _HAS_DESCRIPTOR)))
        at = end
    return records


def _wide(extra: bytes, *values: int) -> list[int]:
    """values, with those that say "see the zip64 field" taken from it."""
    at = 0
    while at + 4 <= len(extra):
        kind, length = struct.unpack_from("<2H", extra, at)
        field = extra[at + 4:at + 4 + length]
        if kind == 1:
            wide = list(struct.unpack(f"<{len(field) // 8}Q", field[:len(field) // 8 * 8]))
            if len(wide) < values.count(_NONE32):
                raise NotThisFormat("a zip64 field that is too short")
            return [wide.pop(0) if value == _NONE32 else value for value in values]
        at += 4 + length
    raise NotThisFormat("no zip64 field")


def _data_offset(source: Source, header: int, name: bytes, method: int) -> int:
    local = source.bytes_at(header, _LOCAL.size + len(name))
    magic, _, _, local_method, _, _, _, _, _, name_length, extra_length = _LOCAL.unpack_from(local)
    if magic != MAGIC or local_method != method or name_length != len(name) or local[_LOCAL.size:] != name:
        raise NotThisFormat("a local header that is not the directory's")
    return header + _LOCAL.size + int(name_length) + int(extra_length)


def _text(name: bytes) -> str:
    try:
        return name.decode()
    except UnicodeDecodeError:
        return name.decode("cp437")

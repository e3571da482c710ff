"""NumPy's array files, versions 1 to 3: a dictionary as Python source, then the array.

Rule: the header is read as a literal, never run, and an array must have room in its file; what numpy would
unpickle (dtype object) is only a run of bytes here.
"""

from __future__ import annotations

import ast
import re
from dataclasses import dataclass
from types import MappingProxyType

from modelfs.formats.format import Description, Segment, Tensor
from modelfs.formats.source import NotThisFormat, Source, cover, element_count

MAGIC = b"\x93NUMPY"
_LIMIT = 1 << 16
_DESCR = re.compile(r"([<>|=]?)([?bBiufcmMSUV])([0-9]{0,9})(\[[A-Za-z0-9]{1,16}\])?")
_NAMES = MappingProxyType({"f2": "F16", "f4": "F32", "f8": "F64", "i1": "I8", "i2": "I16", "i4": "I32", "i8": "I64",
                           "u1": "U8", "u2": "U16", "u4": "U32", "u8": "U64", "b1": "BOOL", "c8": "C64"})


@dataclass(frozen=True, slots=True)
class Array:
    """data: offset of the first element in the file. width: bytes of one element, 0 where unknown.

    length: bytes of all elements; None for a dtype whose size is not known here (structures, objects).
    """

    dtype: str
    shape: tuple[int, ...]
    data: int
    width: int
    length: int | None

    def tensor(self, name: str) -> tuple[Tensor, ...]:
        return () if self.length is None else (Tensor(name, self.dtype, self.shape, self.data, self.length),)


def parse_npy(source: Source) -> Description:
    """Raises NotThisFormat."""
    array = read_array(source, 0, source.size)
    length = source.size - array.data if array.length is None else array.length
    segments = [Segment(0, array.data, head=True), Segment(array.data, length, array.width)]
    return Description("npy", cover(source.size, segments), array.tensor(""))


def read_array(source: Source, offset: int, size: int) -> Array:
    """The array file of size bytes that begins at offset in source. Raises NotThisFormat."""
    prefix = source.bytes_at(offset, min(12, size))
    if prefix[:6] != MAGIC or len(prefix) < 12 or prefix[6] not in (1, 2, 3):
        raise NotThisFormat("not a NumPy array")
    start = 10 if prefix[6] == 1 else 12
    length = int.from_bytes(prefix[8:start], "little")
    if length > _LIMIT or start + length > size:
        raise NotThisFormat("no header of this length")
    descr, shape = _fields(source.bytes_at(offset + start, length))
    data = offset + start + length
    dtype, width, itemsize = _dtype(descr)
    if itemsize is None:
        return Array(dtype, shape, data, 0, None)
    array_bytes = element_count(shape, size) * itemsize
    if array_bytes > size - start - length:
        raise NotThisFormat("an array larger than its file")
    return Array(dtype, shape, data, width, array_bytes)


def _fields(header: bytes) -> tuple[object, tuple[int, ...]]:
    if b"\\" in header:  # numpy writes none, and Python warns of escapes that it does not know
        raise NotThisFormat("the header is none of numpy's")
    try:
        fields = ast.literal_eval(header.decode("latin-1").strip())
    except (ValueError, TypeError, SyntaxError, RecursionError, MemoryError) as error:
        raise NotThisFormat("the header is no literal") from error
    if not isinstance(fields, dict) or not {"descr", "fortran_order", "shape"} <= fields.keys():
        raise NotThisFormat("the header lacks descr, fortran_order or shape")
    shape = fields["shape"]
    if not isinstance(shape, tuple) or any(type(each) is not int for each in shape):
        raise NotThisFormat("not the shape of an array")
    return fields["descr"], shape


def _dtype(descr: object) -> tuple[str, int, int | None]:
    """dtype's name, bytes of what repeats, bytes of one element (None where not known)."""
    found = _DESCR.fullmatch(descr) if isinstance(descr, str) else None
    if not isinstance(descr, str) or not found:
        return str(descr)[:80], 0, None
    order, kind, digits = found[1], found[2], found[3]
    if not digits:
        return descr, 0, None
    itemsize = int(digits) * (4 if kind == "U" else 1)
    width = {"c": itemsize // 2, "U": 4}.get(kind, itemsize)
    name = descr if order == ">" and itemsize > 1 else _NAMES.get(kind + digits, descr)
    return name, width if width in (1, 2, 4, 8) and kind not in "SV" else 0, itemsize

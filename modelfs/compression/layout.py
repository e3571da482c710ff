"""Which bytes of a file are which tensor, and whether they can be replaced by others of the same length.

Rule: what is not understood, compressed in an archive, strided, or shared with another tensor in part stays as it is,
and is told with the reason; so a file rewritten in place is the old one but for its weights.
"""

from __future__ import annotations

import lzma
import os
import re
import zipfile
import zlib
from collections.abc import Iterable
from dataclasses import dataclass, replace

from modelfs.compression.torch_pickle import TorchTensor, read_tensors
from modelfs.errors import Malformed
from modelfs.formats import ReadAt, Tensor, describe
from modelfs.formats.archive import Member, members_of
from modelfs.formats.npy import read_array
from modelfs.formats.source import NotThisFormat, Source
from modelfs.transforms.dtypes import BITS, stored_as

_BIG = {">f2": "F16", ">f4": "F32", ">f8": "F64"}
_FORTRAN = re.compile(rb"'fortran_order'\s*:\s*True")
_HEADER_LIMIT = 1 << 17
_COMPRESSED = "compressed in its archive"


@dataclass(frozen=True, slots=True)
class ModelFile:
    """path: in the model. location: on the disk. mode: its execute bits count."""

    path: str
    location: str
    size: int
    mtime_ns: int
    mode: int


@dataclass(frozen=True, slots=True)
class StoredTensor:
    """dtype: as transforms name it. shape: as the format says it. rows: the shape that its elements lie in, the last
    axis fastest: another order for GGUF, Fortran order and transposed tensors.

    obstacle: why its bytes cannot be replaced, or None.
    """

    name: str
    dtype: str
    shape: tuple[int, ...]
    rows: tuple[int, ...]
    offset: int
    length: int
    big_endian: bool = False
    obstacle: str | None = None


@dataclass(frozen=True, slots=True)
class Layout:
    """members: of an archive, whose checksums change with their bytes. trouble: why a known format gave no tensors."""

    format: str | None
    tensors: tuple[StoredTensor, ...]
    members: tuple[Member, ...] = ()
    trouble: str | None = None


def layout_of(file: ModelFile) -> Layout:
    """Raises OSError."""
    fd = os.open(file.location, os.O_RDONLY | os.O_CLOEXEC)
    try:
        def read(offset: int, length: int) -> bytes:
            return os.pread(fd, length, offset)

        found = describe(read, file.size, file.path)
        members: tuple[Member, ...] = ()
        if found.format is None:
            return Layout(None, ())
        try:
            if found.format in ("torch", "npz"):
                members = members_of(read, file.size)
            tensors = _torch(read, members, file) if found.format == "torch" else [
                _tensor(read, each, found.format, members) for each in found.tensors]
        except Malformed as error:
            return Layout(found.format, (), members, str(error))
        if found.format == "npz":
            tensors += _deflated(file, members)
        return Layout(found.format, tuple(_without_overlaps(map(_of_its_length, tensors))), members)
    finally:
        os.close(fd)


def _tensor(read: ReadAt, tensor: Tensor, format: str, members: tuple[Member, ...]) -> StoredTensor:
    dtype, reverse = _BIG.get(tensor.dtype, tensor.dtype), format == "gguf"
    if format in ("npy", "npz"):
        start = max((each.data for each in members if each.data <= tensor.offset), default=0)
        reverse = bool(_FORTRAN.search(read(start, min(tensor.offset - start, _HEADER_LIMIT))))
    rows = tensor.shape[::-1] if reverse else tensor.shape
    return StoredTensor(tensor.name, dtype, tensor.shape, rows, tensor.offset, tensor.length, dtype != tensor.dtype)


def _torch(read: ReadAt, members: tuple[Member, ...], file: ModelFile) -> list[StoredTensor]:
    """Raises Malformed."""
    pickles = [each for each in members if each.name == "data.pkl" or each.name.endswith("/data.pkl")]
    if len(pickles) != 1 or not pickles[0].stored:
        raise Malformed("an archive of torch without one plain data.pkl", where=file.location)
    by_name = {each.name: each for each in members}
    prefix = pickles[0].name.removesuffix("data.pkl")
    order = by_name.get(f"{prefix}byteorder")
    big = order is not None and read(order.data, min(order.size, 16)).strip() == b"big"
    return [_torch_tensor(each, by_name.get(f"{prefix}data/{each.storage}"), big)
            for each in read_tensors(read(pickles[0].data, pickles[0].size), file.location)]


def _torch_tensor(tensor: TorchTensor, member: Member | None, big: bool) -> StoredTensor:
    obstacle = None
    if member is None or not member.stored:
        obstacle = "its storage is not in the file" if member is None else _COMPRESSED
    elif tensor.laid_out is None:
        obstacle = "strided in its storage"
    elif tensor.offset + tensor.length > member.size:
        obstacle = "larger than its storage"
    offset = tensor.offset + (member.data if member is not None else 0)
    return StoredTensor(tensor.name, tensor.dtype, tensor.shape, tensor.laid_out or tensor.shape, offset,
                        tensor.length, big, obstacle)


def _deflated(file: ModelFile, members: tuple[Member, ...]) -> list[StoredTensor]:
    """Told with dtype and shape, which stand in the first bytes of what they decompress to."""
    found = []
    for member in (each for each in members if not each.stored):
        dtype, shape = "unknown", tuple[int, ...]()
        try:
            with zipfile.ZipFile(file.location) as archive, archive.open(member.name) as content:
                head = content.read(_HEADER_LIMIT)
            array = read_array(Source(lambda offset, length, head=head: head[offset:offset + length],  # type: ignore[misc]
                                      member.full_size), 0, member.full_size)
            dtype, shape = _BIG.get(array.dtype, array.dtype), array.shape
        except (NotThisFormat, zipfile.BadZipFile, zlib.error, lzma.LZMAError, NotImplementedError, RuntimeError,
                EOFError, ValueError):
            pass  # it stays as it is in any case
        found.append(StoredTensor(member.name.removesuffix(".npy"), dtype, shape, shape, member.data, member.size,
                                  obstacle=_COMPRESSED))
    return found


def _of_its_length(tensor: StoredTensor) -> StoredTensor:
    """A GGUF tensor may be longer than its shape says, and then only its first part is known."""
    if tensor.obstacle is not None or tensor.dtype not in BITS:
        return tensor
    count = 1
    for size in tensor.shape:
        count *= size
    if count * stored_as(tensor.dtype).itemsize != tensor.length:
        return replace(tensor, obstacle="not of its shape's length")
    return tensor


def _without_overlaps(tensors: Iterable[StoredTensor]) -> list[StoredTensor]:
    """Those that share bytes with another get an obstacle, but for twins, which are the same bytes as the same type."""
    out = list(tensors)
    order = sorted((each for each in range(len(out)) if out[each].length and out[each].obstacle != _COMPRESSED),
                   key=lambda each: (out[each].offset, -out[each].length))
    clusters: list[list[int]] = []
    end = 0
    for number in order:
        tensor = out[number]
        if clusters and tensor.offset < end:
            clusters[-1].append(number)
        else:
            clusters.append([number])
        end = max(end, tensor.offset + tensor.length)
    for cluster in clusters:
        if len({(out[each].offset, out[each].length, out[each].dtype) for each in cluster}) == 1 \
                and all(out[each].obstacle is None for each in cluster):
            continue
        for number in cluster if len(cluster) > 1 else ():
            out[number] = replace(out[number], obstacle=out[number].obstacle or "shares bytes with another tensor")
    return out

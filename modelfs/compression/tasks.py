"""The pieces of work of a run, each done by one process from files to files: copy, survey, rewrite, spool, seal, join.

Rule: a task may be pickled, holds no more than a few blocks of a tensor in memory, and done again writes the same bytes
to the same places; so it may be repeated by anybody. What it wrote is on the disk when it returns.
"""

from __future__ import annotations

import errno
import os
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from modelfs.compression.layout import StoredTensor
from modelfs.compression.plan import Range, untouched_report
from modelfs.errors import NO_SPACE, BadInput, Conflict, Forbidden, ModelfsError, NoSpace, NotFound
from modelfs.formats.archive import Member
from modelfs.transforms import Choice, Comparison, LeftAlone, Part, ReadTensor, Survey, TensorReport, Transform
from modelfs.transforms.dtypes import decode_array, encode, stored_as
from modelfs.units import MiB

_PIECE = 4 * MiB


class Task(Protocol):
    def run(self) -> Any:
        """Raises ModelfsError."""


@dataclass(frozen=True, slots=True)
class Copy:
    """range of source to the same place of part."""

    source: str
    part: str
    range: Range

    def run(self) -> None:
        with _opened(self.source, os.O_RDONLY) as source, _opened(self.part, os.O_WRONLY) as part:
            _copy(source, self.range.offset, part, self.range.offset, self.range.length, self.source)
            os.fdatasync(part)


@dataclass(frozen=True, slots=True)
class SurveyTensors:
    """Magnitudes of several tensors, each with its file and its choice."""

    tensors: tuple[tuple[str, StoredTensor, Choice], ...]

    def run(self) -> Survey:
        survey = Survey()
        for location, tensor, choice in self.tensors:
            with _opened(location, os.O_RDONLY) as source:
                survey.add(choice, read_tensor(source, tensor, location))
        return survey


@dataclass(frozen=True, slots=True)
class Rewrite:
    """The tensor of source, transformed, to its place in part."""

    source: str
    part: str
    tensor: StoredTensor
    method: Transform

    def run(self) -> TensorReport:
        tensor = self.tensor
        with _opened(self.source, os.O_RDONLY) as source, _opened(self.part, os.O_WRONLY) as part:
            values = read_tensor(source, tensor, self.source)
            fitted = self.method.fit(values)
            if isinstance(fitted, LeftAlone):
                _copy(source, tensor.offset, part, tensor.offset, tensor.length, self.source)
                os.fdatasync(part)
                return untouched_report(tensor, fitted.reason)
            comparison = Comparison()
            width = stored_as(tensor.dtype).itemsize
            for block in values.blocks(self.method.unit):
                new = fitted.apply(block)
                comparison.add(block.values, new)
                stored = encode(new.reshape(-1), tensor.dtype)
                if tensor.big_endian:
                    stored = stored.byteswap()
                _write(part, stored, tensor.offset + block.start * width)
            os.fdatasync(part)
        return comparison.report(tensor.name, tensor.dtype, tensor.shape, self.method.name, fitted.bits)


@dataclass(frozen=True, slots=True)
class Spooled:
    """parts: what the spool file holds, one after the other; () where the tensor was left alone."""

    report: TensorReport
    parts: tuple[tuple[str, Part], ...]


@dataclass(frozen=True, slots=True)
class Spool:
    """The tensor's small parts, one after the other, to a file of their own."""

    source: str
    spool: str
    tensor: StoredTensor
    method: Transform

    def run(self) -> Spooled:
        tensor = self.tensor
        with _opened(self.source, os.O_RDONLY) as source, \
                _opened(self.spool, os.O_WRONLY | os.O_CREAT | os.O_TRUNC) as spool:
            values = read_tensor(source, tensor, self.source)
            fitted = self.method.fit(values)
            if isinstance(fitted, LeftAlone):
                return Spooled(untouched_report(tensor, fitted.reason), ())
            parts = tuple(fitted.parts.items())
            at, places = 0, dict[str, int]()
            for suffix, part in parts:
                places[suffix] = at
                at += part_bytes(part)
            comparison = Comparison()
            for block in values.blocks(self.method.unit):
                comparison.add(block.values, fitted.apply(block))
                for suffix, piece in fitted.encode(block).items():
                    places[suffix] += _write(spool, piece, places[suffix])
            os.fdatasync(spool)
        report = comparison.report(tensor.name, tensor.dtype, tensor.shape, self.method.name, fitted.bits)
        return Spooled(report, parts)


@dataclass(frozen=True, slots=True)
class Seal:
    """The checksums of an archive's members that were rewritten."""

    part: str
    members: tuple[Member, ...]

    def run(self) -> None:
        with _opened(self.part, os.O_RDWR) as part:
            for member in self.members:
                crc = 0
                for piece in _pieces(part, member.data, member.size, self.part):
                    crc = zlib.crc32(piece, crc)
                for place in member.crc_at:
                    _write(part, np.array([crc], "<u4"), place)
            os.fdatasync(part)


@dataclass(frozen=True, slots=True)
class Join:
    """head, then ranges of files, one after the other, as the file part."""

    part: str
    head: bytes
    pieces: tuple[tuple[str, Range], ...]

    def run(self) -> None:
        with _opened(self.part, os.O_WRONLY | os.O_CREAT | os.O_TRUNC) as part:
            at = _write(part, np.frombuffer(self.head, np.uint8), 0)
            for location, piece in self.pieces:
                with _opened(location, os.O_RDONLY) as source:
                    _copy(source, piece.offset, part, at, piece.length, location)
                at += piece.length
            os.fdatasync(part)


def part_bytes(part: Part) -> int:
    count = 1
    for size in part.shape:
        count *= size
    return count * _PART_WIDTHS[part.dtype]


_PART_WIDTHS = {"U8": 1, "I8": 1, "F8_E4M3": 1, "F16": 2, "BF16": 2, "F32": 4, "F64": 8}


def read_tensor(fd: int, tensor: StoredTensor, where: str) -> ReadTensor:
    """where: for errors. Its blocks raise Conflict where the file is shorter than it was."""
    stored = stored_as(tensor.dtype)
    width = stored.itemsize
    if tensor.big_endian:
        stored = stored.newbyteorder(">")

    def read(start: int, count: int) -> npt.NDArray[np.floating[Any]]:
        data = _read(fd, count * width, tensor.offset + start * width, where)
        return decode_array(np.frombuffer(data, stored), tensor.dtype)
    return ReadTensor(tensor.dtype, tensor.rows, read)


def disk_error(error: OSError, where: str) -> ModelfsError:
    """For OSErrors of sources and destinations."""
    where, why = str(error.filename or where), error.strerror or str(error)
    if error.errno in NO_SPACE:
        return NoSpace("no room to compress to", where=where, why=why,
                       advice="Make room and run it again: it goes on.")
    if isinstance(error, PermissionError):
        return Forbidden("cannot be read or written", where=where, why=why)
    if isinstance(error, FileNotFoundError):
        return NotFound("cannot be read or written", where=where, why=why)
    return BadInput("cannot be read or written", where=where, why=why)


@contextmanager
def _opened(path: str, flags: int) -> Iterator[int]:
    """Raises ModelfsError, also for OSErrors of what is done with it."""
    try:
        fd = os.open(path, flags | os.O_CLOEXEC, 0o644)
        try:
            yield fd
        finally:
            os.close(fd)
    except OSError as error:
        raise disk_error(error, path) from error


def _read(fd: int, length: int, offset: int, where: str) -> bytes | bytearray:
    data = os.pread(fd, length, offset)
    if len(data) == length:
        return data
    whole = bytearray(data)
    while data and len(whole) < length:
        data = os.pread(fd, length - len(whole), offset + len(whole))
        whole += data
    if len(whole) < length:
        raise Conflict("changed while it was read", where=where, why="it is shorter than it was")
    return whole


def _pieces(fd: int, offset: int, length: int, where: str) -> Iterator[bytes | bytearray]:
    for at in range(offset, offset + length, _PIECE):
        yield _read(fd, min(_PIECE, offset + length - at), at, where)


def _copy(source: int, offset: int, part: int, place: int, length: int, where: str) -> None:
    """In the kernel where it can, else through memory."""
    copy: Callable[[int, int, int, int, int], int] = os.copy_file_range
    end = offset + length
    while offset < end:
        try:
            copied = copy(source, part, end - offset, offset, place)
        except OSError as error:
            if error.errno not in (errno.EXDEV, errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP, errno.EBADF):
                raise
            for piece in _pieces(source, offset, end - offset, where):
                place += _write(part, np.frombuffer(piece, np.uint8), place)
            return
        if not copied:
            raise Conflict("changed while it was read", where=where, why="it is shorter than it was")
        offset, place = offset + copied, place + copied


def _write(fd: int, array: npt.NDArray[Any], offset: int) -> int:
    """The bytes written: all of array."""
    data = np.ascontiguousarray(array).reshape(-1).view(np.uint8).data
    length = len(data)
    while data:
        written = os.pwrite(fd, data, offset)
        data, offset = data[written:], offset + written
    return length

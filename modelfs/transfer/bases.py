"""What the chunks of a push may be stored as differences to: the chunks of one other version, of the same tensors.

Rule: only what looks alike is fetched (name, dtype, shape, where it is cut), and a base that cannot be had for its own
fault costs the saving, never the push.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass

from modelfs.errors import IntegrityError
from modelfs.formats import describe
from modelfs.formats.format import Description, Tensor
from modelfs.repository.chunk import ChunkRef
from modelfs.repository.chunking import Cut
from modelfs.repository.file_reader import FileReader
from modelfs.repository.layout import Layout
from modelfs.repository.manifest import Manifest
from modelfs.repository.places import Base
from modelfs.repository.repository import Repository
from modelfs.units import Deadline

_WIDTHS = (2, 4)
_Same = tuple[str, str, tuple[int, ...]]


@dataclass(frozen=True, slots=True)
class BaseChunk:
    """data: decoded."""

    base: Base
    data: memoryview


class Bases:
    """Of one version. For any thread."""

    def __init__(self, repository: Repository, manifest: Manifest, layout: Layout,
                 renew: Callable[[], Deadline]) -> None:
        """Reads the headers of all files. Raises Unavailable."""
        self._repository, self._manifest, self._layout, self._renew = repository, manifest, layout, renew
        self._tensors: dict[_Same, tuple[FileReader, int]] = {}
        for number in range(len(manifest)):
            if manifest.file(number).format is not None:
                with suppress(IntegrityError):
                    self._read_header(number)

    def like(self, described: Description, path: str) -> LikeFile:
        """For a file that is pushed."""
        number = self._manifest.find(path)
        return LikeFile(self, described, None if number is None else self._file(number))

    def tensor(self, like: Tensor) -> tuple[FileReader, int] | None:
        """The file and the offset of the one with the same name, dtype and shape."""
        return self._tensors.get(_same(like))

    def chunk(self, row: int) -> BaseChunk | None:
        """What a difference to this row is a difference to: where the row is one itself, to its base. Raises
        Unavailable."""
        id, length = self._manifest.chunk_id(row), int(self._manifest.chunk_lengths[row])
        place = self._layout.place(row)
        base = place.base or Base(id, place)
        try:
            return BaseChunk(base, self._repository.chunk_at(ChunkRef(base.id, length), base.place, self._renew()))
        except IntegrityError:
            return None

    def _read_header(self, number: int) -> None:
        entry, file = self._manifest.file(number), self._file(number)
        for tensor in describe(file.read, entry.size, entry.path).tensors:
            self._tensors.setdefault(_same(tensor), (file, tensor.offset))

    def _file(self, number: int) -> FileReader:
        return FileReader(self._manifest, self._manifest.file(number), lambda row: self._repository.read_chunk(
            self._manifest, self._layout, row, self._renew()))


class LikeFile:
    """Finds the base of each cut of one file. same: the file of that path, for what lies in no tensor."""

    def __init__(self, bases: Bases, described: Description, same: FileReader | None) -> None:
        self._bases, self._same = bases, same
        self._tensors = described.tensors
        self._offsets = [tensor.offset for tensor in described.tensors]

    def base(self, piece: Cut) -> BaseChunk | None:
        """Raises Unavailable."""
        if piece.width not in _WIDTHS or piece.head:
            return None
        file, offset = self._same, piece.offset
        at = bisect_right(self._offsets, piece.offset) - 1
        if at >= 0 and piece.offset < self._tensors[at].offset + self._tensors[at].length:
            tensor = self._tensors[at]
            file, start = self._bases.tensor(tensor) or (None, 0)
            offset = start + piece.offset - tensor.offset
        row = None if file is None else file.row_of(offset, piece.length)
        return None if row is None else self._bases.chunk(row)


def _same(tensor: Tensor) -> _Same:
    return tensor.name, tensor.dtype, tensor.shape

"""A manifest: what a version is. Every file, every chunk id, nothing of where the bytes lie.

Rule: a parsed manifest is sound: paths stay inside the tree and are unique, rows belong to one file each,
lengths add up to sizes. Whoever holds one need not check again.
"""

from __future__ import annotations

import bisect
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from blake3 import blake3
from numpy.typing import NDArray

from modelfs.errors import Malformed, Unsupported
from modelfs.ids import ChunkId, Digest, ObjectId
from modelfs.repository import columns, path_check
from modelfs.repository.columns import ids_column, texts_column
from modelfs.repository.path_check import MAX_COMPONENT, MAX_PATH

FEATURES: frozenset[str] = frozenset()
"""Features of a version that this modelfs can read (design section 4: refused by name where required)."""

EXECUTE_BITS = 0o111
_SUM_ROWS = 1 << 16


@dataclass(frozen=True, slots=True)
class FileEntry:
    """One file. mode: 0o444 with the execute bits. format: of formats.Description, or None.

    first_row, row_count: the file's rows of Manifest.chunk_ids and chunk_lengths, in file order.
    """

    path: str
    size: int
    mtime_ns: int
    mode: int
    digest: Digest
    sha256: bytes
    format: str | None
    first_row: int
    row_count: int


def path_key(path: str | bytes) -> bytes:
    """Sorts paths by their components, so that a directory's files stand together."""
    return _encoded(path).replace(b"/", b"\0")


def _encoded(path: str | bytes) -> bytes:
    """What the operating system could not decode is no file of ours, and no error either."""
    return path.encode(errors="surrogateescape") if isinstance(path, str) else path


def check_path(raw: bytes) -> str | None:
    """Why this cannot be the path of a file in a version, or None."""
    if not raw or b"\0" in raw:
        return "empty, or with a NUL"
    if len(raw) > MAX_PATH:
        return "longer than 4095 bytes"
    for part in raw.split(b"/"):
        if part in (b"", b".", b".."):
            return "absolute, or with an empty, . or .. part"
        if len(part) > MAX_COMPONENT:
            return "a part longer than 255 bytes"
    try:
        raw.decode()
    except UnicodeDecodeError:
        return "not UTF-8"
    return None


class Manifest:
    """n rows of chunks, f files sorted by path_key. chunk_ids [n, 32] u8, chunk_lengths [n] u32."""

    def __init__(self, id: ObjectId, table: columns.Columns, chunk_size: int) -> None:
        """Raises Malformed, Unsupported (a required feature, named)."""
        missing = [name for name in table.texts("features") if name not in FEATURES]
        if missing:
            raise Unsupported(table.what, why=f"it needs the feature {missing[0][:80]!r}",
                              advice="Use a newer modelfs.")
        self.id = id
        self.chunk_ids: NDArray[np.uint8] = table.get("chunk_id", "U8", 32)
        self.chunk_lengths: NDArray[np.uint32] = table.get("chunk_length", "U32", rows=len(self.chunk_ids))
        self._size = table.get("file_size", "U64")
        f = len(self._size)
        self._mtime = table.get("file_mtime", "I64", rows=f)
        self._first = table.get("file_first_row", "U64", rows=f)
        self._count = table.get("file_row_count", "U64", rows=f)
        self._path_end = table.get("path_end", "U64", rows=f)
        self._mode = table.get("file_mode", "U16", rows=f)
        self._format = table.get("file_format", "U16", rows=f)
        self._digest = table.get("file_digest", "U8", 32, rows=f)
        self._sha256 = table.get("file_sha256", "U8", 32, rows=f)
        self._formats = table.texts("formats")
        self._paths: NDArray[np.uint8] = table.get("paths", "U8")
        if why := self._unsound(chunk_size):
            raise Malformed(table.what, why=why)

    def _unsound(self, chunk_size: int) -> str | None:
        n, f = len(self.chunk_ids), len(self._size)
        if n and not 1 <= int(self.chunk_lengths.min()) <= int(self.chunk_lengths.max()) <= chunk_size:
            return "a chunk's length is not within 1 and the chunk size"
        ends = self._first + self._count
        if (f and (int(self._first[0]) != 0 or (self._first[1:] != ends[:-1]).any() or int(ends[-1]) != n
                  or (self._count > n).any())) or (not f and n):
            return "files do not share out the rows"
        if (self.offsets[ends.astype(np.int64)] - self.offsets[self._first.astype(np.int64)] != self._size).any():
            return "a file's chunks do not add up to its size"
        if f and int(self._format.max()) > len(self._formats):
            return "a format that is not there"
        if f and ((self._path_end[1:] < self._path_end[:-1]).any() or int(self._path_end[-1]) != len(self._paths)):
            return "paths overlap"
        return None if not f or path_check.sound(self._paths, self._path_end) else self._unsound_path()

    def _unsound_path(self) -> str:
        """What is wrong with the first path that is not as it should be: for a message, slowly."""
        before = None
        for number in range(len(self)):
            raw = self.path_bytes(number)
            if why := check_path(raw):
                return f"a path is {why}: {raw[:80]!r}"
            key = path_key(raw)
            if before is not None and (key <= before or key.startswith(before + b"\0")):
                return f"paths are not in order, double, or a file is a directory too: {raw[:80]!r}"
            before = key
        return "paths are not in order"

    @cached_property
    def offsets(self) -> NDArray[np.uint64]:
        """[n + 1]: where each row would begin were all files laid end to end."""
        out = np.zeros(len(self.chunk_lengths) + 1, np.uint64)
        for start in range(0, len(self.chunk_lengths), _SUM_ROWS):  # in one go it holds the interpreter for 2 to 15 ms
            rows = self.chunk_lengths[start:start + _SUM_ROWS]
            np.cumsum(rows, out=out[start + 1:start + 1 + len(rows)], dtype=np.uint64)
            out[start + 1:start + 1 + len(rows)] += out[start]
        return out

    @property
    def first_rows(self) -> NDArray[np.uint64]:
        """[f]: each file's first row; that of an empty file is the next file's."""
        return self._first

    def __len__(self) -> int:
        """How many files there are."""
        return len(self._size)

    def path_bytes(self, number: int) -> bytes:
        return self._paths[int(self._path_end[number - 1]) if number else 0:int(self._path_end[number])].tobytes()

    def file(self, number: int) -> FileEntry:
        code = int(self._format[number])
        return FileEntry(self.path_bytes(number).decode(), int(self._size[number]), int(self._mtime[number]),
                         int(self._mode[number]) & EXECUTE_BITS | 0o444, Digest(self._digest[number].tobytes()),
                         self._sha256[number].tobytes(), self._formats[code - 1] if code else None,
                         int(self._first[number]), int(self._count[number]))

    def files(self) -> Iterator[FileEntry]:
        return (self.file(number) for number in range(len(self)))

    def find(self, path: str) -> int | None:
        """The number of the file at path, or None."""
        number = self.position(path_key(path))
        return number if number < len(self) and self.path_bytes(number) == _encoded(path) else None

    def position(self, key: bytes, start: int = 0, stop: int | None = None) -> int:
        """The first file in start..stop whose path_key is not below key."""
        return bisect.bisect_left(range(len(self)), key, start, len(self) if stop is None else stop,
                                  key=lambda number: path_key(self.path_bytes(number)))

    def chunk_id(self, row: int) -> ChunkId:
        return ChunkId(self.chunk_ids[row].tobytes())

    @property
    def decoded_bytes(self) -> int:
        return int(self.offsets[-1])


def content_digest(files: Iterable[FileEntry]) -> Digest:
    """What makes a version: paths, bytes, execute bits. files: sorted by path_key."""
    hasher = blake3()
    for file in files:
        hasher.update(b"%s\0%c" % (file.path.encode(), bool(file.mode & EXECUTE_BITS)) + file.digest)
    return Digest(hasher.digest())


def serialise(files: list[FileEntry], ids: list[ChunkId], lengths: list[int], features: list[str]) -> bytes:
    """A manifest's bytes; its name is their digest. files: sorted by path_key, rows as FileEntry says."""
    formats = sorted({file.format for file in files if file.format})
    paths = [file.path.encode() for file in files]
    return columns.serialise({
        "chunk_id": ids_column(ids),
        "chunk_length": np.array(lengths, "<u4"),
        "features": texts_column(features),
        "file_digest": ids_column([file.digest for file in files]),
        "file_first_row": np.array([file.first_row for file in files], "<u8"),
        "file_format": np.array([formats.index(file.format) + 1 if file.format else 0 for file in files], "<u2"),
        "file_mode": np.array([file.mode for file in files], "<u2"),
        "file_mtime": np.array([file.mtime_ns for file in files], "<i8"),
        "file_row_count": np.array([file.row_count for file in files], "<u8"),
        "file_sha256": ids_column([file.sha256 for file in files]),
        "file_size": np.array([file.size for file in files], "<u8"),
        "formats": texts_column(formats),
        "path_end": np.cumsum([len(path) for path in paths], dtype=np.uint64),
        "paths": np.frombuffer(b"".join(paths), np.uint8),
    }, {"modelfs": "manifest"})


def parse(id: ObjectId, data: bytes | memoryview, chunk_size: int) -> Manifest:
    """Raises Malformed, Unsupported. data: already checked against id by the caller."""
    return Manifest(id, columns.parse(data, f"manifest {id.hex()[:16]}"), chunk_size)

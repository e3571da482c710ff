"""Files become chunks and packs: read, hashed, looked up, encoded by all cores, packed in file order.

Rule: a chunk that is known already is not encoded; a file that changes while it is read ends the push.
"""

from __future__ import annotations

import hashlib
import os
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field, replace

from blake3 import blake3

from modelfs.codecs import LEAST_GAIN, encode_chunk, encode_difference
from modelfs.errors import Conflict, ModelfsError
from modelfs.formats import describe
from modelfs.ids import ChunkId, Digest
from modelfs.repository.chunking import Cut, cut
from modelfs.repository.manifest import FileEntry
from modelfs.repository.pack import OpenPacks, SealedPack
from modelfs.repository.places import Base
from modelfs.transfer.bases import BaseChunk, Bases, LikeFile
from modelfs.transfer.scan import SourceFile, unreadable

Known = Callable[[ChunkId], bool]
"""Whether a chunk is stored already; from any thread."""


@dataclass(frozen=True, slots=True)
class Encoded:
    """A chunk of a file: its bytes, and what is to be stored of it (None: it is stored, or will be, already), which may
    be the difference to a base."""

    id: ChunkId
    data: bytes
    head: bool
    codec: str = ""
    stored: bytes | None = None
    base: Base | None = None


@dataclass(slots=True)
class Tree:
    """What the files came to: the manifest's files and rows. heads: chunks that belong into head packs."""

    files: list[FileEntry] = field(default_factory=list)
    ids: list[ChunkId] = field(default_factory=list)
    lengths: list[int] = field(default_factory=list)
    heads: set[ChunkId] = field(default_factory=set)


class Encoder:
    """Encodes files one after another; `packs` come out through `put`, called from this thread, in file order."""

    def __init__(self, chunk_size: int, jobs: int, known: Known, put: Callable[[SealedPack, bool], None],
                 advance: Callable[[int, int], None], bases: Bases | None = None) -> None:
        """put: as OpenPacks takes it. advance(decoded bytes, of which were known already). bases: what chunks may be
        differences to."""
        self._chunk_size, self._jobs, self._known = chunk_size, jobs, known
        self._packs = OpenPacks(put)
        self._advance, self._bases = advance, bases
        self._claimed: set[ChunkId] = set()  # guarded by _lock
        self._lock = threading.Lock()
        self.tree = Tree()

    def run(self, files: Iterable[SourceFile]) -> Tree:
        """Raises Conflict where a file changed meanwhile, whatever `put` raises."""
        with ThreadPoolExecutor(self._jobs, thread_name_prefix="encode") as pool:
            try:
                for file in files:
                    self._file(pool, file)
            except BaseException:
                pool.shutdown(wait=True, cancel_futures=True)
                raise
        self._packs.seal()
        return self.tree

    def _file(self, pool: ThreadPoolExecutor, file: SourceFile) -> None:
        first, whole, sha256 = len(self.tree.ids), blake3(), hashlib.sha256()
        fd = _open(file)
        try:
            before = os.fstat(fd)
            if (before.st_size, before.st_mtime_ns) != (file.size, file.mtime_ns):
                raise _changed(file)
            described = describe(lambda offset, length: _pread(fd, length, offset, file), file.size, file.path)
            cuts = cut(described, file.size, self._chunk_size)
            like = self._bases.like(described, file.path) if self._bases else None
            for chunk in self._in_order(pool, fd, cuts, file, like):
                whole.update(chunk.data)
                sha256.update(chunk.data)
                self.tree.ids.append(chunk.id)
                self.tree.lengths.append(len(chunk.data))
                if chunk.head:
                    self.tree.heads.add(chunk.id)
                self._advance(len(chunk.data), 0 if chunk.stored is not None else len(chunk.data))
                if chunk.stored is not None:
                    self._packs.add(chunk.id, len(chunk.data), chunk.codec, chunk.stored, chunk.base, head=chunk.head)
            after = os.fstat(fd)
            if (after.st_size, after.st_mtime_ns, after.st_ctime_ns) != \
                    (before.st_size, before.st_mtime_ns, before.st_ctime_ns):
                raise _changed(file)
        finally:
            os.close(fd)
        self.tree.files.append(FileEntry(file.path, file.size, file.mtime_ns, file.mode, Digest(whole.digest()),
                                         sha256.digest(), described.format, first, len(self.tree.ids) - first))

    def _in_order(self, pool: ThreadPoolExecutor, fd: int, cuts: Iterator[Cut], file: SourceFile,
                  like: LikeFile | None) -> Iterator[Encoded]:
        window: deque[Future[Encoded]] = deque()
        try:
            for piece in cuts:
                window.append(pool.submit(self._encode, fd, piece, file, like))
                if len(window) > 2 * self._jobs:
                    yield window.popleft().result()
            while window:
                yield window.popleft().result()
        finally:
            for future in window:  # the descriptor is closed next: nobody may read it any more
                if not future.cancel():
                    future.exception()

    def _encode(self, fd: int, piece: Cut, file: SourceFile, like: LikeFile | None) -> Encoded:
        data = _pread(fd, piece.length, piece.offset, file)
        if len(data) != piece.length:
            raise _changed(file)
        id = ChunkId.of(data)
        if self._known(id) or not self._claim(id):
            return Encoded(id, data, piece.head)
        whole = Encoded(id, data, piece.head, *encode_chunk(memoryview(data), piece.width))
        base = like.base(piece) if like is not None else None
        return whole if base is None else _smaller(whole, base, piece.width)

    def _claim(self, id: ChunkId) -> bool:
        with self._lock:
            if id in self._claimed:
                return False
            self._claimed.add(id)
            return True


def _smaller(whole: Encoded, base: BaseChunk, width: int) -> Encoded:
    """The chunk as a difference, where that saves enough for two chunks to be read for one."""
    found = encode_difference(memoryview(whole.data), base.data, width)
    if found is None or whole.stored is None or len(found[1]) > LEAST_GAIN * len(whole.stored):
        return whole
    return replace(whole, codec=found[0], stored=found[1], base=base.base)


def _open(file: SourceFile) -> int:
    """O_NONBLOCK: what stands there now may be a FIFO."""
    try:
        return os.open(file.location, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except (FileNotFoundError, NotADirectoryError) as error:
        raise _changed(file) from error
    except OSError as error:
        raise unreadable(file.location, error) from error


def _pread(fd: int, length: int, offset: int, file: SourceFile) -> bytes:
    """Fewer bytes only at the file's end."""
    try:
        data = os.pread(fd, length, offset)
        while data and len(data) < length and (more := os.pread(fd, length - len(data), offset + len(data))):
            data += more
    except OSError as error:
        raise unreadable(file.location, error) from error
    return data


def _changed(file: SourceFile) -> ModelfsError:
    return Conflict("a file changed while it was read", where=file.location,
                    advice="Push again once nobody writes it; no version was made.")

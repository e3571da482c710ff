"""Pull: a version becomes a plain directory.

Rule: a file stands under its own name only when every byte of it was checked; until then it is a hidden part
file beside it, and the next pull goes on from the chunks in it that hash as they should.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from pathlib import Path

from modelfs.errors import BadInput, Forbidden, ModelfsError, NoSpace, NotFound
from modelfs.ids import ChunkId
from modelfs.metrics import Metrics
from modelfs.reading.fetcher import Fetcher
from modelfs.reading.flights import Want
from modelfs.reading.versions import LoadedVersion, ModelFile
from modelfs.repository.manifest import FileEntry
from modelfs.units import MiB

_WINDOW = 64 * MiB
"""Decoded bytes asked for and not yet written: enough for several ranges at once."""
_BATCH = 16 * MiB
_NO_SPACE = frozenset({28, 122})  # ENOSPC, EDQUOT


@dataclass(frozen=True, slots=True)
class PullReport:
    """What `pull --json` shows, but for the model. bytes: of all files chosen."""

    files: int
    bytes: int
    downloaded_bytes: int
    resumed_bytes: int
    elapsed_s: float


def chosen(files: Sequence[FileEntry], include: Sequence[str], exclude: Sequence[str]) -> list[FileEntry]:
    """Those that match any of include (all where that is empty) and none of exclude; globs over the path or its
    last part, as huggingface_hub's allow_patterns and ignore_patterns."""
    def match(path: str, globs: Sequence[str]) -> bool:
        return any(fnmatchcase(path, glob) or fnmatchcase(path.rsplit("/", 1)[-1], glob) for glob in globs)
    return [file for file in files
            if (not include or match(file.path, include)) and not match(file.path, exclude)]


def pull(version: LoadedVersion, numbers: Sequence[int], destination: Path, fetcher: Fetcher, metrics: Metrics,
         advance: Callable[[int], None]) -> PullReport:
    """Write files `numbers` of the version below destination.

    Raises IntegrityError, Unavailable, NoSpace, Forbidden; the part files stay for the next pull.
    """
    started = time.monotonic()
    window = _Window(_WINDOW)
    resumed, total, open_files = 0, 0, []
    try:
        for number in numbers:
            file = version.file(number)
            total += file.entry.size
            out = _Output(file, destination, window, advance)
            resumed += out.have_bytes
            open_files.append(out)
            out.ask(fetcher)
            open_files = [other for other in open_files if not other.finish()]
        for out in open_files:
            out.wait()
    except OSError as error:
        raise _disk_error(error, destination) from error
    finally:
        window.close()
        for out in open_files:
            out.close()
    return PullReport(len(numbers), total, metrics.snapshot()["bytes_fetched"], resumed,
                      round(time.monotonic() - started, 3))


class _Window:
    """Bounds what is under way, over all files."""

    def __init__(self, size: int) -> None:
        self._changed = threading.Condition()
        self._free, self._size = size, size  # guarded by _changed
        self._closed = False

    def enter(self, size: int) -> None:
        with self._changed:
            self._changed.wait_for(lambda: self._closed or self._free >= min(size, self._size))
            self._free -= size

    def leave(self, size: int) -> None:
        with self._changed:
            self._free += size
            self._changed.notify_all()

    def close(self) -> None:
        with self._changed:
            self._closed = True
            self._changed.notify_all()


@dataclass(eq=False)
class _Output:
    """One file on its way to the disk; a Waiter of the fetcher."""

    file: ModelFile
    destination: Path
    window: _Window
    advance: Callable[[int], None]
    have_bytes: int = 0
    _error: ModelfsError | OSError | None = None
    _changed: threading.Condition = field(default_factory=threading.Condition)
    _missing: dict[ChunkId, list[int]] = field(default_factory=dict)
    _fd: int = -1

    def __post_init__(self) -> None:
        entry = self.file.entry
        self.path = self.destination / entry.path
        self.part = self.path.parent / f".{self.path.name[:200]}.modelfs-part"
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self._done = self._is_whole(self.path)
        if self._done:
            self.have_bytes = entry.size
            self.advance(entry.size)
            return
        self._fd = os.open(self.part, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o644)
        fresh = not os.fstat(self._fd).st_size
        os.ftruncate(self._fd, entry.size)
        for chunk in range(entry.row_count):
            ref = self.file.ref(chunk)
            if not fresh and self._holds(self._fd, chunk):
                self.have_bytes += ref.length
                self.advance(ref.length)
            else:
                self._missing.setdefault(ref.id, []).append(chunk)

    def _holds(self, fd: int, chunk: int) -> bool:
        ref = self.file.ref(chunk)
        return ChunkId.of(os.pread(fd, ref.length, int(self.file.offsets[chunk]))) == ref.id

    def _is_whole(self, path: Path) -> bool:
        try:
            fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        except OSError:
            return False
        try:
            return os.fstat(fd).st_size == self.file.entry.size and \
                all(self._holds(fd, chunk) for chunk in range(self.file.entry.row_count))
        finally:
            os.close(fd)

    def ask(self, fetcher: Fetcher) -> None:
        """Blocks while the window is full. Raises what went wrong with an earlier chunk."""
        batch: list[Want] = []
        size = 0
        for chunk in [chunks[0] for chunks in list(self._missing.values())]:
            length = self.file.ref(chunk).length
            if batch and size + length > _BATCH:
                fetcher.ensure(batch, self)
                batch, size = [], 0
            self.window.enter(length)
            self._raise()
            batch.append(Want(self.file, chunk))
            size += length
        if batch:
            fetcher.ensure(batch, self)

    def arrived(self, id: ChunkId, decoded: memoryview) -> None:
        with self._changed:
            chunks = self._missing.get(id, [])
        try:
            for chunk in chunks:
                _write(self._fd, decoded, int(self.file.offsets[chunk]))
        except OSError as error:
            self._end(id, error, len(decoded))
        else:
            self.advance(len(decoded) * len(chunks))
            self._end(id, None, len(decoded))

    def failed(self, id: ChunkId, error: ModelfsError) -> None:
        with self._changed:
            chunks = self._missing.get(id, [])
        self._end(id, error, self.file.ref(chunks[0]).length if chunks else 0)

    def _end(self, id: ChunkId, error: ModelfsError | OSError | None, length: int) -> None:
        with self._changed:
            self._error = self._error or error
            self._missing.pop(id, None)
            self._changed.notify_all()
        self.window.leave(length)

    def _raise(self) -> None:
        if self._error:
            raise self._error

    def wait(self) -> None:
        """Until the file stands under its name. Raises what went wrong."""
        with self._changed:
            self._changed.wait_for(lambda: self._error or not self._missing)
        self._raise()
        self.finish()

    def finish(self) -> bool:
        """Put the file under its name if all of it is there."""
        self._raise()
        if self._missing:
            return False
        if not self._done:
            entry = self.file.entry
            os.fchmod(self._fd, 0o644 | entry.mode & 0o111)
            os.utime(self._fd, ns=(entry.mtime_ns, entry.mtime_ns))
            os.replace(self.part, self.path)
            self._done = True
        self.close()
        return True

    def close(self) -> None:
        fd, self._fd = self._fd, -1
        if fd >= 0:
            with suppress(OSError):
                os.close(fd)


def _write(fd: int, data: memoryview, offset: int) -> None:
    while data:
        written = os.pwrite(fd, data, offset)
        data, offset = data[written:], offset + written


def _disk_error(error: OSError, destination: Path) -> ModelfsError:
    where, why = str(error.filename or destination), error.strerror or str(error)
    if error.errno in _NO_SPACE:
        return NoSpace("no room to pull to", where=where, why=why, advice="Make room and pull again: it goes on.")
    if isinstance(error, PermissionError):
        return Forbidden("cannot be written", where=where, why=why)
    if isinstance(error, FileNotFoundError):
        return NotFound("cannot be written", where=where, why=why)
    return BadInput("cannot be written", where=where, why=why)

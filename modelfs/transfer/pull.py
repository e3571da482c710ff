"""Pull: a version becomes a plain directory.

Rule: a file stands under its own name only when every byte of it was checked; until then it is a hidden part
file beside it, and the next pull goes on from the chunks in it that hash as they should.
"""

from __future__ import annotations

import fcntl
import os
import stat
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path

from modelfs.errors import NO_SPACE, BadInput, Conflict, Forbidden, ModelfsError, NoSpace, NotFound
from modelfs.ids import ChunkId, Digest
from modelfs.metrics import Metrics
from modelfs.reading.fetcher import Fetcher
from modelfs.reading.flights import Want
from modelfs.reading.versions import LoadedVersion, ModelFile
from modelfs.repository.manifest import EXECUTE_BITS, FileEntry
from modelfs.units import KiB, MiB

_WINDOW = 64 * MiB
"""Decoded bytes asked for and not yet written: enough for several ranges at once."""
_BATCH = 16 * MiB
_LEAST_COST = 256 * KiB  # 256 small files open at a time: within the usual limit of 1024 descriptors
_PART = ".modelfs-part"
_MAX_NAME = 255


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

    Raises IntegrityError, Unavailable, NoSpace, Forbidden, Conflict (another pull is at a file); the part files stay
    for the next pull.
    """
    started = time.monotonic()
    window = _Window(_WINDOW)
    resumed, total = 0, 0
    open_files: list[_Output] = []
    try:
        for number in numbers:
            file = version.file(number)
            total += file.entry.size
            out = _Output(file, destination, window, advance)
            open_files.append(out)
            out.prepare()
            resumed += out.have_bytes
            out.ask(fetcher)
            open_files = [other for other in open_files if not other.finish()]
        for out in open_files:
            out.wait()
    except OSError as error:
        raise _disk_error(error, destination) from error
    finally:
        for out in open_files:
            out.close()
    return PullReport(len(numbers), total, metrics.snapshot()["bytes_fetched"], resumed,
                      round(time.monotonic() - started, 3))


class _Window:
    """Bounds what is under way, over all files; the first thing that goes wrong ends all that enter later."""

    def __init__(self, size: int) -> None:
        self.changed = threading.Condition()
        self.error: ModelfsError | OSError | None = None  # guarded by changed
        self._free, self._size = size, size  # guarded by changed

    def enter(self, size: int) -> None:
        """Blocks while there is no room. Raises what went wrong with an earlier chunk."""
        with self.changed:
            self.changed.wait_for(lambda: self.error or self._free >= min(size, self._size))
            if self.error:
                raise self.error
            self._free -= size

    def leave(self, size: int, error: ModelfsError | OSError | None) -> None:
        """Under `changed`."""
        self._free += size
        self.error = self.error or error
        self.changed.notify_all()


class _Output:
    """One file on its way to the disk; a Waiter of the fetcher.

    A chunk leaves _missing when it was written or has failed, and _failed is set in the same step, under the window's
    lock: so an empty _missing without _failed is a whole file.
    """

    def __init__(self, file: ModelFile, destination: Path, window: _Window, advance: Callable[[int], None]) -> None:
        self.file, self.window, self.advance = file, window, advance
        self.path = destination / file.entry.path
        self.part = _part_path(self.path, file)
        self.have_bytes = 0
        self._missing: dict[ChunkId, list[int]] = {}  # guarded by window.changed, as the rest
        self._writing = 0
        self._fd = -1
        self._done = self._failed = False

    def prepare(self) -> None:
        """Open the part file and find out what is there already. Raises OSError, Conflict."""
        entry = self.file.entry
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self._done = self._is_whole()
        if self._done:
            self.have_bytes = entry.size
            self.advance(entry.size)
            return
        self._fd = _open_part(self.part)
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

    def _is_whole(self) -> bool:
        """Whether the file stands under its name; its mode and mtime are put right then."""
        entry = self.file.entry
        try:
            fd = os.open(self.path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        except OSError:
            return False
        try:
            found = os.fstat(fd)
            if not stat.S_ISREG(found.st_mode) or found.st_size != entry.size or \
                    not all(self._holds(fd, chunk) for chunk in range(entry.row_count)):
                return False
            if bool(found.st_mode & EXECUTE_BITS) != bool(entry.mode & EXECUTE_BITS):
                os.fchmod(fd, found.st_mode & 0o666 | _execute_bits(entry.mode))
            if found.st_mtime_ns != entry.mtime_ns:
                os.utime(fd, ns=(entry.mtime_ns, entry.mtime_ns))
            return True
        finally:
            os.close(fd)

    def ask(self, fetcher: Fetcher) -> None:
        """Blocks while the window is full. Raises what went wrong with an earlier chunk."""
        batch: list[Want] = []
        size = 0
        with self.window.changed:
            firsts = [chunks[0] for chunks in self._missing.values()]
        for chunk in firsts:
            cost = _cost(self.file.ref(chunk).length)
            if batch and size + cost > _BATCH:
                fetcher.ensure(batch, self)
                batch, size = [], 0
            self.window.enter(cost)
            batch.append(Want(self.file, chunk))
            size += cost
        if batch:
            fetcher.ensure(batch, self)

    def arrived(self, id: ChunkId, decoded: memoryview) -> None:
        with self.window.changed:
            chunks = self._missing.get(id, [])
            if self._fd < 0 or not chunks:
                return
            self._writing += 1
        error = None
        try:
            for chunk in chunks:
                _write(self._fd, decoded, int(self.file.offsets[chunk]))
        except OSError as failed:
            error = failed
        finally:
            with self.window.changed:
                self._writing -= 1
                self.window.changed.notify_all()
        self._end(id, error)
        if error is None:
            self.advance(len(decoded) * len(chunks))

    def failed(self, id: ChunkId, error: ModelfsError) -> None:
        self._end(id, error)

    def _end(self, id: ChunkId, error: ModelfsError | OSError | None) -> None:
        with self.window.changed:
            chunks = self._missing.pop(id, [])
            self._failed = self._failed or error is not None
            self.window.leave(_cost(self.file.ref(chunks[0]).length) if chunks else 0, error)

    def wait(self) -> None:
        """Until the file stands under its name. Raises what went wrong."""
        with self.window.changed:
            self.window.changed.wait_for(lambda: self.window.error or not self._missing)
        self.finish()

    def finish(self) -> bool:
        """Put the file under its name if all of it is there. Raises what went wrong, also with others."""
        with self.window.changed:
            whole = not self._missing and not self._failed
            if self.window.error and not whole:
                raise self.window.error
        if not whole:
            return False
        if not self._done:
            entry = self.file.entry
            os.fchmod(self._fd, 0o644 | _execute_bits(entry.mode))
            os.utime(self._fd, ns=(entry.mtime_ns, entry.mtime_ns))
            os.replace(self.part, self.path)
            self._done = True
        self.close()
        return True

    def close(self) -> None:
        """Nothing is written any more when this returns: the descriptor's number may be another file's next."""
        with self.window.changed:
            self.window.changed.wait_for(lambda: not self._writing)
            fd, self._fd = self._fd, -1
        if fd >= 0:
            with suppress(OSError):
                os.close(fd)


def _cost(length: int) -> int:
    """What a chunk counts in the window: small files are bounded by their open descriptors, not by their bytes."""
    return max(length, _LEAST_COST)


def _execute_bits(mode: int) -> int:
    return mode & EXECUTE_BITS


def _part_path(path: Path, file: ModelFile) -> Path:
    """Hidden, beside path; no name that another file of the version has or may have for its own part."""
    name = f".{path.name}{_PART}"
    if len(name.encode()) > _MAX_NAME:
        name = f".{Digest.of(path.name.encode()).hex()[:32]}{_PART}"
    above = file.entry.path.rpartition("/")[0]
    while file.version.manifest.find(f"{above}/{name}" if above else name) is not None:
        name = f".{name}"
    return path.parent / name


def _open_part(path: Path) -> int:
    """Open and locked: two pulls that wrote one part file could mix their versions. Raises OSError, Conflict."""
    while True:
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o644)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if os.path.samestat(os.fstat(fd), os.lstat(path)):
                return fd
        except BlockingIOError:
            os.close(fd)
            raise Conflict("another pull is at it", where=str(path), advice="Pull again when it has ended.") from None
        except FileNotFoundError:
            pass  # the pull that had it has just put it under its name
        except BaseException:
            os.close(fd)
            raise
        os.close(fd)


def _write(fd: int, data: memoryview, offset: int) -> None:
    while data:
        written = os.pwrite(fd, data, offset)
        data, offset = data[written:], offset + written


def _disk_error(error: OSError, destination: Path) -> ModelfsError:
    where, why = str(error.filename or destination), error.strerror or str(error)
    if error.errno in NO_SPACE:
        return NoSpace("no room to pull to", where=where, why=why, advice="Make room and pull again: it goes on.")
    if isinstance(error, PermissionError):
        return Forbidden("cannot be written", where=where, why=why)
    if isinstance(error, FileNotFoundError):
        return NotFound("cannot be written", where=where, why=why)
    if isinstance(error, FileExistsError | NotADirectoryError):
        return BadInput("cannot pull to there", where=where, why="a file stands where a directory is to be",
                        advice="Name another directory, or move the file away.")
    if isinstance(error, IsADirectoryError):
        return BadInput("cannot pull to there", where=where, why="a directory stands where a file is to be",
                        advice="Name another directory, or move that one away.")
    return BadInput("cannot be written", where=where, why=why)

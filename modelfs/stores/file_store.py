"""Objects as files below one directory: the repository on a local disk, or on a network file system.

Rule: an object appears under its key whole and durable or not at all, and is never written in place, so whoever
has it open keeps reading the bytes that he began with.
"""

from __future__ import annotations

import errno
import fcntl
import mmap
import os
import random
import re
import secrets
import stat
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from functools import partial
from pathlib import Path

from blake3 import blake3

from modelfs.errors import (
    NO_SPACE,
    DeadlinePassed,
    Forbidden,
    Malformed,
    ModelfsError,
    NoSpace,
    ObjectMissing,
    SwapLost,
    Unavailable,
)
from modelfs.stores.file_range import FileRange, pread_all
from modelfs.stores.names import check_key, check_prefix, check_range, is_key
from modelfs.stores.store import Buffer, Fetched, ObjectInfo, as_content, room_for
from modelfs.units import Deadline, MiB

_LOCK = ".lock"
_TEMPORARY = re.compile(r"\.[a-z0-9.]+\.[0-9a-f]{16}")
_PIECE = 8 * MiB  # between two looks at the deadline
_LOCK_WAIT_S = 0.01  # flock has no time limit of its own
_NO_LINKS = frozenset({errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK})
_REFUSED = frozenset({errno.EACCES, errno.EPERM, errno.EROFS})
_NO_OBJECT = frozenset({errno.EISDIR, errno.ELOOP, errno.ENXIO, errno.ENOTEMPTY, errno.EEXIST})


class FileStore:
    """The ObjectStore of a directory. An etag is the BLAKE3 of the content, hex.

    A file that is replaced gets a later whole second as its mtime than the one before: nginx, which may serve the
    same directory, makes its ETag of seconds and size, and two swaps within a second would look like one.
    """

    def __init__(self, root: Path) -> None:
        self.root = Path(os.path.abspath(root))
        self.url = self.root.as_uri()

    def get(self, key: str, deadline: Deadline, *, limit: int, etag: str | None = None,
            fresh: bool = False) -> Fetched | None:
        check_key(key)
        deadline.check("an object was not read in time", self._where(key))
        with self._errors(key):
            fd, size = self._open(key)
            try:
                if size > limit:
                    raise Malformed("an object is too large", where=self._where(key),
                                    why=f"{size} bytes where at most {limit} are expected")
                data = room_for(size)
                pread_all(fd, data, 0, self._where(key))
            finally:
                os.close(fd)
        content = as_content(data)
        if etag is None:
            return Fetched(content, partial(_etag_of, content))  # most who read a large object need none
        found = _etag_of(content)
        return None if found == etag else Fetched(content, found)

    def open_range(self, key: str, offset: int, length: int, deadline: Deadline) -> FileRange:
        check_key(key)
        check_range(key, offset, length)
        deadline.check("an object was not read in time", self._where(key))
        with self._errors(key):
            fd, size = self._open(key)
        if offset + length > size:
            os.close(fd)
            raise Malformed("an object is too short", where=self._where(key),
                            why=f"it has {size} bytes, and {length} at {offset} are asked for")
        return FileRange(fd, offset, length, deadline, self._where(key))

    def stat(self, key: str, deadline: Deadline) -> ObjectInfo:
        check_key(key)
        with self._errors(key):
            found = os.stat(self._path(key))
        if not stat.S_ISREG(found.st_mode):
            raise self._not_a_file(key)
        return ObjectInfo(key, found.st_size, found.st_mtime)

    def put(self, key: str, data: Buffer, deadline: Deadline, *, only_if_absent: bool = False) -> bool:
        check_key(key)
        path = self._path(key)
        with self._errors(key, writing=True):
            if only_if_absent and os.path.lexists(path):
                return False
            with self._written(path, data, deadline) as temporary:
                if not only_if_absent:
                    _date_after(temporary, path)
                    os.replace(temporary, path)
                elif not self._link(temporary, path, deadline):
                    return False
            _sync_directory(path.parent)
        return True

    def swap(self, key: str, expected: str | None, new: bytes, deadline: Deadline) -> str | None:
        check_key(key)
        path = self._path(key)
        with self._errors(key, writing=True), self._lock(deadline):
            found = self._etag(key)
            if found != expected:
                raise SwapLost("an object was changed meanwhile", where=self._where(key),
                               why="it is not what was read before", advice="Read it again and retry.")
            with self._written(path, new, deadline) as temporary:
                _date_after(temporary, path)
                os.replace(temporary, path)
            _sync_directory(path.parent)
        return _etag_of(new)

    def list(self, prefix: str, deadline: Deadline) -> Iterator[ObjectInfo]:
        check_prefix(prefix)
        top = prefix.rpartition("/")[0]
        for key in self._keys_below(top):
            if key.startswith(prefix):
                deadline.check("objects were not listed in time", self.url)
                with suppress(ObjectMissing):  # removed since its directory was read
                    yield self.stat(key, deadline)

    def delete(self, key: str, deadline: Deadline) -> None:
        check_key(key)
        with self._errors(key, writing=True), suppress(FileNotFoundError, NotADirectoryError):
            os.unlink(self._path(key))

    def touch(self, key: str) -> None:
        """As if it had been put again just now: gc goes by an object's age. Raises ObjectMissing."""
        check_key(key)
        with self._errors(key, writing=True):
            os.utime(self._path(key))

    def receive(self, key: str) -> Incoming:
        """Begin an object that comes in pieces. Raises NoSpace, Forbidden, Malformed."""
        check_key(key)
        path = self._path(key)
        with self._errors(key, writing=True):
            return Incoming(path, *_temporary_beside(path), lambda: self._errors(key, writing=True))

    def sweep(self, older_than_s: float) -> int:
        """Remove what writers that were killed left behind; the bytes freed.

        older_than_s: far more than the slowest put takes, since a put in progress looks the same.
        """
        freed = 0
        latest = time.time() - older_than_s
        for directory, _, names in os.walk(self.root):
            for name in names:
                if not _TEMPORARY.fullmatch(name):
                    continue
                path = os.path.join(directory, name)
                with self._errors(name, writing=True), suppress(FileNotFoundError):
                    found = os.lstat(path)
                    if stat.S_ISREG(found.st_mode) and found.st_mtime <= latest:
                        os.unlink(path)
                        freed += found.st_size
        return freed

    def _where(self, key: str) -> str:
        return f"{self.root}/{key}"

    def _path(self, key: str) -> Path:
        return self.root / key

    def _not_a_file(self, key: str) -> Malformed:
        return Malformed("an object is not a regular file", where=self._where(key))

    def _open(self, key: str) -> tuple[int, int]:
        """A descriptor to read from, and the size. O_NONBLOCK: a FIFO in an object's place must not hang."""
        fd = os.open(self._path(key), os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        found = os.fstat(fd)
        if not stat.S_ISREG(found.st_mode):
            os.close(fd)
            raise self._not_a_file(key)
        return fd, found.st_size

    def _etag(self, key: str) -> str | None:
        try:
            fd, size = self._open(key)
        except FileNotFoundError:
            return None
        try:
            data = bytearray(size)
            pread_all(fd, memoryview(data), 0, self._where(key))
        finally:
            os.close(fd)
        return _etag_of(data)

    def _keys_below(self, directory: str) -> Iterator[str]:
        """Every key below a directory ('' is the root), in order. Names that are no keys are not objects."""
        with self._errors(directory):
            try:
                with os.scandir(self.root / directory) as entries:
                    found = sorted((entry.name, entry.is_dir(), entry.is_file()) for entry in entries)
            except (FileNotFoundError, NotADirectoryError):
                return
        for name, is_directory, is_file in found:
            key = f"{directory}/{name}" if directory else name
            if is_key(key) and is_directory:
                yield from self._keys_below(key)
            elif is_key(key) and is_file:
                yield key

    @contextmanager
    def _written(self, path: Path, data: Buffer, deadline: Deadline) -> Iterator[Path]:
        """data in a synced temporary file beside path, gone afterwards unless it was renamed."""
        temporary, fd = _temporary_beside(path)
        try:
            try:
                view = memoryview(data).cast("B")
                while view:
                    deadline.check("an object was not written in time", str(path))
                    size = os.write(fd, view[:_PIECE])
                    view = view[size:]
                    deadline.moved(size)
                os.fsync(fd)
            finally:
                os.close(fd)
            yield temporary
        finally:
            with suppress(FileNotFoundError):
                os.unlink(temporary)

    def _link(self, temporary: Path, path: Path, deadline: Deadline) -> bool:
        """Name the file unless the name is taken; under the lock where the file system knows no hard links."""
        try:
            os.link(temporary, path)
        except FileExistsError:
            return False
        except OSError as error:
            if error.errno not in _NO_LINKS:
                raise
            with self._lock(deadline):
                if os.path.lexists(path):
                    return False
                os.rename(temporary, path)
        return True

    @contextmanager
    def _lock(self, deadline: Deadline) -> Iterator[None]:
        _make_directories(self.root)
        fd = os.open(self.root / _LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
        try:
            while True:
                try:
                    fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    break
                except BlockingIOError:
                    if deadline.passed:
                        raise DeadlinePassed("a repository is locked by another writer", where=self._where(_LOCK),
                                             why="it did not let go before the deadline") from None
                    time.sleep(min(random.uniform(0.5, 1.5) * _LOCK_WAIT_S, deadline.remaining()))
            yield
        finally:
            os.close(fd)

    @contextmanager
    def _errors(self, key: str, writing: bool = False) -> Iterator[None]:
        """What the operating system says, as one of our errors."""
        try:
            yield
        except OSError as error:
            raise self._translated(error, key, writing) from error

    def _translated(self, error: OSError, key: str, writing: bool) -> ModelfsError:
        where, why = self._where(key), error.strerror or str(error)
        doing = "written" if writing else "read"
        if error.errno in NO_SPACE:
            return NoSpace("an object cannot be written", where=where, why=why)
        if error.errno in _REFUSED:
            return Forbidden(f"an object may not be {doing}", where=where, why=why)
        if error.errno in _NO_OBJECT or (writing and error.errno == errno.ENOTDIR):
            return Malformed("something else stands in an object's place", where=where, why=why)
        if not writing and error.errno in (errno.ENOENT, errno.ENOTDIR):
            return ObjectMissing("an object is missing", where=where)
        return Unavailable(f"an object cannot be {doing}", where=where, why=why)


class Incoming:
    """An object that comes in pieces, in a temporary file until it is kept; `sweep` removes what a killed writer left.

    Raises NoSpace, Forbidden, Unavailable. Calls may come from different threads: a discard waits for a write.
    """

    def __init__(self, path: Path, temporary: Path, fd: int,
                 errors: Callable[[], AbstractContextManager[None]]) -> None:
        self._path, self._temporary, self._fd, self._errors = path, temporary, fd, errors
        self._hasher = blake3()
        self._lock = threading.Lock()  # guards all of it; _fd is -1 once the file has gone
        self.size = 0

    def write(self, piece: Buffer) -> None:
        with self._lock, self._errors():
            view = memoryview(piece).cast("B")
            self._hasher.update(view)
            self.size += len(view)
            while view:
                view = view[os.write(self._fd, view):]

    def digest(self) -> str:
        with self._lock:
            return self._hasher.hexdigest()

    def content(self) -> memoryview:
        """What was written so far, mapped."""
        with self._lock, self._errors():
            return memoryview(mmap.mmap(self._fd, self.size, access=mmap.ACCESS_READ) if self.size else b"")

    def keep(self) -> None:
        """Put the object in its place, durably."""
        with self._lock, self._errors():
            os.fsync(self._fd)
            _date_after(self._temporary, self._path)
            os.replace(self._temporary, self._path)
            _sync_directory(self._path.parent)

    def discard(self) -> None:
        """Remove what was not kept. Always call it at the end."""
        with self._lock:
            if self._fd >= 0:
                os.close(self._fd)
                self._fd = -1
                with suppress(OSError):  # kept, or on a disk that failed: the sweep comes by again
                    os.unlink(self._temporary)


def _etag_of(data: Buffer) -> str:
    return blake3(data).hexdigest()


def _temporary_beside(path: Path) -> tuple[Path, int]:
    """A new file and its descriptor, with a name that `sweep` knows."""
    _make_directories(path.parent)
    temporary = path.parent / f".{path.name}.{secrets.token_hex(8)}"
    return temporary, os.open(temporary, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o644)


def _date_after(temporary: Path, old: Path) -> None:
    """Give the new file a whole second that is later than the old one's, if there is an old one."""
    with suppress(FileNotFoundError):
        second = max(int(time.time()), int(os.stat(old).st_mtime) + 1)
        os.utime(temporary, (second, second))


def _make_directories(directory: Path) -> None:
    """Make a directory and those above it, durably: a synced file in a directory that is lost is lost, too."""
    if directory.is_dir():
        return
    _make_directories(directory.parent)
    with suppress(FileExistsError):
        directory.mkdir()
    _sync_directory(directory.parent)


def _sync_directory(directory: Path) -> None:
    fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)

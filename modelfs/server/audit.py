"""GET audit/…: what this server holds, said by itself: sizes of packs, or digests of every byte of them, made now.

Rule: it takes what others leave: one audit of a kind at a time, in a thread of low priority, a few MiB of memory, and
past the page cache, which keeps what readers need. Who asks and leaves has it ended within a second.
"""

from __future__ import annotations

import asyncio
import errno
import fcntl
import os
import re
import stat
import time
from collections.abc import Generator, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from aiohttp import web

from modelfs.cache.system import lower_priority, page_buffer
from modelfs.ids import ObjectId
from modelfs.logs import log_event, logger_for
from modelfs.maintenance.auditing import MOST_ROWS, Marking, Question, Writer, digest_row, size_row
from modelfs.repository import keys
from modelfs.server.downloads import end_where_nothing_is_read
from modelfs.server.pace import Pace
from modelfs.units import MiB

BUSY_S = 2
_STEP_S = 0.5
"""Between two signs of life: who waits for an answer takes a server that is silent for 4 s for dead."""
_PIECE = 4 * MiB
_PACK = re.compile(r"[0-9a-f]{64}")
_NOT_THERE = frozenset({errno.ENOENT, errno.ENOTDIR, errno.ELOOP})
_log = logger_for(__name__)


class Busy(Exception):
    """Another one's audit of this kind is under way."""


@dataclass(frozen=True, slots=True)
class _Step:
    """hashed_bytes: since the last. row: empty where a pack goes on. wrong: whether it is not what its name says."""

    hashed_bytes: int
    row: bytes = b""
    wrong: bool = False


class Audits:
    """Of one directory. Only the event loop's thread calls it."""

    def __init__(self, root: Path) -> None:
        self._root = root
        self._under_way: set[str] = set()

    async def answer(self, request: web.Request, question: Question, response: web.StreamResponse) -> None:
        """Send all of the answer as response's body. Raises Busy before it begins, ConnectionError where it broke off:
        the client has gone or does not read, or a disk of ours fails."""
        if question.what in self._under_way:
            raise Busy
        self._under_way.add(question.what)
        # A pool for each: what is still in it when the client leaves is over in _STEP_S, and holds up nobody.
        pool = ThreadPoolExecutor(1, thread_name_prefix="audit", initializer=lower_priority)
        work = _Work(self._root, question)
        try:
            await response.prepare(request)
            transport = request.transport
            if transport is not None:
                end_where_nothing_is_read(transport)
            pace, loop = Pace(), asyncio.get_running_loop()
            while part := await loop.run_in_executor(pool, work.go_on):
                async with pace.waiting(len(part)):
                    await response.write(part)
                pace.moved(len(part))
            await response.write_eof()
            log_event(_log, "info", "audit.done", peer=request.remote or "", what=question.what, packs=work.packs,
                      hashed_bytes=work.hashed_bytes, wrong=work.wrong)
        except OSError as error:
            if request.transport is not None:
                request.transport.abort()  # the client is to see that the answer is not whole
            if isinstance(error, ConnectionError):
                raise
            why = "the client is too slow" if isinstance(error, TimeoutError) else error.strerror or str(error)
            log_event(_log, "error", "audit.failed", key=question.what, peer=request.remote or "", why=why)
            raise ConnectionAbortedError(why) from error
        finally:
            self._under_way.discard(question.what)
            pool.submit(work.close)
            pool.shutdown(wait=False)


class _Work:
    """One audit, in steps, by one thread at a time."""

    def __init__(self, root: Path, question: Question) -> None:
        self._writer = Writer(question)
        self._steps = _sizes(root, question) if question.what == "sizes" else _digests(root, question)
        self._begun = self._ended = False
        self.packs = self.wrong = self.hashed_bytes = 0

    def go_on(self) -> bytes:
        """What is to be sent next, after about _STEP_S at the latest; nothing at the end."""
        if not self._begun:
            self._begun = True
            return self._writer.head()
        if self._ended:
            return b""
        until, rows = time.monotonic() + _STEP_S, list[bytes]()
        for step in self._steps:
            self.hashed_bytes += step.hashed_bytes
            self.wrong += step.wrong
            if step.row:
                rows.append(step.row)
            if len(rows) == MOST_ROWS or time.monotonic() > until:
                break
        else:
            self._ended = True
        self.packs += len(rows)
        out = self._writer.frame(self.hashed_bytes, b"".join(rows))
        return out + self._writer.end(self.hashed_bytes) if self._ended else out

    def close(self) -> None:
        self._steps.close()


def _sizes(root: Path, question: Question) -> Generator[_Step, None, None]:
    for directory, name in _packs(root, question):
        try:
            found = os.stat(name.hex(), dir_fd=directory, follow_symlinks=False)
        except OSError as error:
            if error.errno not in _NOT_THERE:
                raise
            continue  # removed since its directory was read
        if stat.S_ISREG(found.st_mode):
            yield _Step(0, size_row(name, found.st_size))


def _digests(root: Path, question: Question) -> Generator[_Step, None, None]:
    buffer = memoryview(page_buffer(_PIECE))
    for directory, name in _packs(root, question):
        try:
            # O_NONBLOCK: a FIFO in a pack's place must not hang it
            fd = os.open(name.hex(), os.O_RDONLY | os.O_NONBLOCK | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=directory)
        except OSError as error:
            if error.errno not in _NOT_THERE:
                yield _unreadable(name, 0, error)
            continue
        try:
            found = os.fstat(fd)
            if stat.S_ISREG(found.st_mode):
                yield from _digest(fd, name, found.st_size, question.nonce, buffer)
        finally:
            os.close(fd)


def _digest(fd: int, name: bytes, size: int, nonce: bytes, buffer: memoryview) -> Iterator[_Step]:
    marking, offset, file = Marking(nonce), 0, _PackFile(fd)
    try:
        while offset < size and (piece := file.read(buffer, offset)):
            marking.update(buffer[:piece])
            offset += piece
            yield _Step(piece)
    except OSError as error:
        yield _unreadable(name, size, error)
        return
    right, row = marking.row(name, offset)
    if not right:
        log_event(_log, "error", "pack.wrong", object=keys.pack(ObjectId(name)), size=offset)
    yield _Step(0, row, not right)


class _PackFile:
    """Read past the page cache where the filesystem lets us; elsewhere it is told to forget what it read for us.

    Not by RWF_NOWAIT, to spare what was there before: Linux 6.18 begins to read in what it then says is not there.
    """

    def __init__(self, fd: int) -> None:
        self._fd, self._direct = fd, _set_direct(fd, True)

    def read(self, view: memoryview, offset: int) -> int:
        """view: whole pages, offset: where one begins; shorter at the file's end. Raises OSError."""
        try:
            size = os.preadv(self._fd, [view], offset)
        except OSError as error:
            if error.errno != errno.EINVAL or not self._direct:
                raise
            self._direct = _set_direct(self._fd, False)  # it took the flag, and cannot do it
            size = os.preadv(self._fd, [view], offset)
        if not self._direct and hasattr(os, "posix_fadvise"):
            os.posix_fadvise(self._fd, offset, size, os.POSIX_FADV_DONTNEED)
        return size


def _set_direct(fd: int, on: bool) -> bool:
    """Whether it is on now."""
    flag: int = getattr(os, "O_DIRECT", 0)
    flags = fcntl.fcntl(fd, fcntl.F_GETFL)
    try:
        fcntl.fcntl(fd, fcntl.F_SETFL, flags | flag if on else flags & ~flag)
    except OSError:
        return False
    return on and bool(flag)


def _unreadable(name: bytes, size: int, error: OSError) -> _Step:
    """Wrong: who asked sees for himself what he gets of it."""
    key = keys.pack(ObjectId(name))
    log_event(_log, "error", "object.unreadable", key=key, object=key, why=error.strerror or str(error))
    return _Step(0, digest_row(name, size, bytes(len(name)), False), True)


def _packs(root: Path, question: Question) -> Iterator[tuple[int, bytes]]:
    """(descriptor of its directory, name) of every pack that is meant, in order; the list of one directory at a time is
    in memory. No symbolic link below root is followed."""
    for bucket in range(question.after[0], 256):
        directory = _open_directory(root, f"{bucket:02x}")
        if directory is None:
            continue
        try:
            names = sorted(bytes.fromhex(name) for name in os.listdir(directory)
                           if _PACK.fullmatch(name) and name.startswith(f"{bucket:02x}"))
            for name in names:
                if name > question.after and question.chooses(name):
                    yield directory, name
        finally:
            os.close(directory)


def _open_directory(root: Path, bucket: str) -> int | None:
    flags = os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
    try:
        packs = os.open(root / keys.PACKS.rstrip("/"), os.O_RDONLY | flags)
        try:
            return os.open(bucket, os.O_RDONLY | flags, dir_fd=packs)
        finally:
            os.close(packs)
    except OSError as error:
        if error.errno not in _NOT_THERE:
            raise
        return None

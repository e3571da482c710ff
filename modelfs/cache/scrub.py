"""Hashes everything in the cache directory once a period: disks change bytes that were checked when they were written.

Rule: one daemon of the host scrubs at a time, at most 50 MB/s (some 3 % of one core), from the disk and not from the
page cache where the filesystem can; a chunk that is wrong becomes a miss, also while the kernel holds the file. What
is only looked at does not count as used.

The file `scrub` in the directory: its lock is held by who scrubs; in it stand when a scrub was last done (or the first
one began to be due) and, of one that was broken off, the last file done.
"""

from __future__ import annotations

import errno
import math
import mmap
import os
import re
import threading
import time
from dataclasses import dataclass

from modelfs.cache.eviction import cache_files
from modelfs.cache.room import Room
from modelfs.cache.sparse_file import GoneError, SparseFile, open_sparse
from modelfs.cache.system import flock_within, lower_priority, write_all
from modelfs.cache.trouble import Trouble
from modelfs.errors import CorruptChunk, ModelfsError
from modelfs.ids import ChunkId
from modelfs.logs import log_event, logger_for
from modelfs.metrics import Metrics
from modelfs.repository.chunk import ChunkRef, check_chunk

_LOG = logger_for(__name__)
_BYTES_PER_S = 50e6
_LOOK_S = 60.0  # how soon a scrub that another daemon finished, or left, is noticed
_LINE = 128
_STATE = re.compile(rb"([0-9]{1,12}\.[0-9]{3}) ([0-9a-f]{64}|-) *\n")
_NO_FILE = "-"  # sorts before every name
_DIRECT = getattr(os, "O_DIRECT", 0)


@dataclass(slots=True)
class _Tally:
    files: int = 0
    chunks: int = 0
    bytes: int = 0
    corrupt: int = 0


class Scrubber:
    """A thread of its own. period_s: from the end of one scrub, by whichever daemon, to the next."""

    def __init__(self, room: Room, metrics: Metrics, trouble: Trouble, period_s: float) -> None:
        self._room, self._metrics, self._trouble, self._period_s = room, metrics, trouble, period_s
        self._stopped = threading.Event()
        self._next_s = 0.0  # before that nothing more is read
        self._thread = threading.Thread(target=self._run, name="modelfs-scrub", daemon=True)
        self._thread.start()

    def close(self) -> None:
        self._stopped.set()
        self._thread.join()

    def _run(self) -> None:
        lower_priority()
        wait_s = 0.0
        while not self._stopped.wait(wait_s):
            try:
                wait_s = self._look()
            except (OSError, ModelfsError) as error:
                self._trouble.note("scrub", error)
                wait_s = _LOOK_S

    def _look(self) -> float:
        """Scrub, if that is due and nobody does; for how many seconds then not to look again. Raises OSError."""
        fd = os.open(self._room.directory / "scrub", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            if not flock_within(fd, 0):
                return _LOOK_S
            now_s = time.time()
            done_s, after = _read_state(fd) or (math.inf, _NO_FILE)
            if done_s > now_s:  # none yet, or the clock was set back
                done_s = now_s
                _write_state(fd, done_s, after)
            due_in_s = done_s + self._period_s - now_s
            if due_in_s <= 0 and self._scrub(fd, done_s, after):
                _write_state(fd, time.time(), _NO_FILE)
                due_in_s = self._period_s
            return max(0.0, min(due_in_s, _LOOK_S))
        finally:
            os.close(fd)

    def _scrub(self, fd: int, done_s: float, after: str) -> bool:
        """All files whose names come after that one; False if it was stopped. Raises OSError."""
        tally, began_s = _Tally(), time.monotonic()
        for name in sorted(name for name, _ in cache_files(self._room.files) if name > after):
            try:
                self._scrub_file(name, tally)
            except (OSError, ModelfsError) as error:  # that file is for the next time
                self._trouble.note("scrub", error)
            if self._stopped.is_set():
                return False
            _write_state(fd, done_s, name)
        log_event(_LOG, "info", "scrub.done", directory=self._room.directory, files=tally.files, chunks=tally.chunks,
                  bytes=tally.bytes, corrupt=tally.corrupt, elapsed_s=round(time.monotonic() - began_s, 1))
        return True

    def _scrub_file(self, name: str, tally: _Tally) -> None:
        """Raises OSError."""
        opened = open_sparse(self._room, name)
        if opened is None:
            return
        tally.files += 1
        data = _DataReader(opened, self._room.block)
        try:
            for row in opened.present_rows().tolist():
                if self._stopped.wait(max(0.0, self._next_s - time.monotonic())):
                    return
                length = int(opened.chunks.lengths[row])
                self._next_s = time.monotonic() + length / _BYTES_PER_S
                count = opened.presence[row]
                if not count & 1:  # evicted meanwhile
                    continue
                ref = ChunkRef(ChunkId(opened.chunks.ids[row].tobytes()), length)
                if (why := _fault(ref, data, int(opened.chunks.offsets[row]))) is None:
                    self._metrics.add("chunks_verified")
                elif _drop(opened, row, count):
                    self._metrics.add("hash_failures")
                    log_event(_LOG, "warning", "scrub.corrupt", file=opened.path, chunk=ref.id.hex(), why=why)
                    tally.corrupt += 1
                tally.chunks += 1
                tally.bytes += length
        finally:
            data.close()


class _DataReader:
    """Reads chunks past the page cache: from the disk, and without pushing out what readers have there. Where the
    filesystem cannot do that, by the page cache."""

    def __init__(self, opened: SparseFile, block: int) -> None:
        """Raises OSError."""
        self._opened, self._align = opened, max(block, mmap.PAGESIZE)
        self._fd = -1
        longest = max(opened.chunks.lengths.tolist(), default=0)
        self._buffer = memoryview(mmap.mmap(-1, longest + 2 * self._align))  # pages: O_DIRECT wants it aligned
        try:
            self._fd = os.open(opened.path, os.O_RDONLY | os.O_CLOEXEC | _DIRECT)
        except OSError as error:
            if error.errno != errno.EINVAL:
                raise

    def read(self, start: int, length: int) -> memoryview:
        """Valid until the next call; fewer bytes where the file ends. Raises OSError."""
        if self._fd >= 0:
            low = start // self._align * self._align
            span = -(-(start + length) // self._align) * self._align - low
            try:
                done = os.preadv(self._fd, [self._buffer[:span]], low)
                return self._buffer[:done][start - low:start - low + length]
            except OSError as error:
                if error.errno != errno.EINVAL:
                    raise
                self.close()
        return self._buffer[:os.preadv(self._opened.data_fd, [self._buffer[:length]], start)]

    def close(self) -> None:
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1


def _fault(ref: ChunkRef, data: _DataReader, start: int) -> str | None:
    """What is wrong with the chunk that begins at start; None: nothing. Raises OSError, but not for a bad sector."""
    try:
        check_chunk(ref, data.read(start, ref.length))
        return None
    except CorruptChunk as error:
        return error.why
    except OSError as error:
        if error.errno != errno.EIO:
            raise
        return "the disk cannot read it"


def _drop(opened: SparseFile, row: int, count: int) -> bool:
    """Whether the chunk was still the one that was read. Raises OSError."""
    with opened.lock:
        if opened.presence[row] != count:
            return False
        try:
            opened.drop(row)
        except GoneError:
            return False
    return True


def _read_state(fd: int) -> tuple[float, str] | None:
    """None where there is none, or junk. Raises OSError."""
    found = _STATE.fullmatch(os.pread(fd, _LINE, 0))
    return (float(found[1]), found[2].decode()) if found else None


def _write_state(fd: int, done_s: float, after: str) -> None:
    """Raises OSError."""
    write_all(fd, f"{done_s:.3f} {after}".ljust(_LINE - 1).encode() + b"\n", 0)

"""One open cache file: a sparse data file, exactly as long as the model's file, and the map that says what is in it.

Rule: who changes either holds the map's lock. A fill writes and then steps the chunk's count to odd; a punch steps
it to even and then frees the blocks; so a reader that sees the same odd count before and after its pread has bytes
that a fill wrote, without any lock. A data file that the kernel was ever given is not made shorter and gets no holes:
a map of it may live when its last handle is closed, and holds no lock that tells. It is unlinked, and another begun.
"""

from __future__ import annotations

import errno
import fcntl
import os
import secrets
import time
from pathlib import Path

import numpy as np
import numpy.typing as npt

from modelfs.cache.holes import covered_bytes, hole_ranges
from modelfs.cache.map_file import (
    ACCOUNT,
    DEAD,
    HEADER,
    LENT,
    NONCE,
    PINNED,
    SEAL,
    UNSEALED,
    ChunkList,
    Rows,
    column_offsets,
    map_size,
    pack_head,
    read_chunks,
    seal_of,
)
from modelfs.cache.room import Room
from modelfs.cache.system import SharedLock, allocate, disk_bytes, map_shared, punch, write_all
from modelfs.cache.usage import Usage
from modelfs.errors import NoSpace

_SLACK = 16 << 10  # the filesystem's own blocks for a file of many extents are counted in st_blocks, too


class GoneError(Exception):
    """The file was removed or made anew by another; open it again."""


def use_clock() -> int:
    """Now, in 1/16 s, modulo 2**32 (8 years)."""
    return int(time.time() * 16) & 0xFFFFFFFF


class SparseFile:
    """Made by `open_sparse`. The methods from `fill` on are called with `lock` held.

    Descriptors and mapping go with the last reference, so a reader needs no lock against the closing of a handle.
    """

    def __init__(self, room: Room, chunks: ChunkList, path: Path, fds: tuple[int, int], lock: SharedLock,
                 shared: memoryview) -> None:
        self._room, self._path = room, path
        self._slot = int(chunks.name[:2], 16)
        self.chunks = chunks
        self.data_fd, self._map_fd = fds
        self.lock = lock
        _, _, last_use, presence = column_offsets(chunks.rows)
        rows = chunks.rows
        self._head = shared[:HEADER]
        self._account = shared[ACCOUNT:ACCOUNT + 8].cast("q")
        self.nonce: int = shared[NONCE:NONCE + 8].cast("Q")[0]
        # memoryviews for single rows (26 ns a look, numpy takes 68), arrays over the same bytes for many
        self.last_use = shared[last_use:last_use + 4 * rows].cast("I")
        self.presence = shared[presence:presence + rows]
        self._last_uses: npt.NDArray[np.uint32] = np.frombuffer(self.last_use, np.uint32)
        self._present: npt.NDArray[np.uint8] = np.frombuffer(self.presence, np.uint8)
        self.nowait: int = getattr(os, "RWF_NOWAIT", 0)  # the flag of preadv, if the filesystem knows it
        self.used = True  # since the table of handles last looked

    def __del__(self) -> None:
        if hasattr(self, "_map_fd"):
            os.close(self.data_fd)
            os.close(self._map_fd)

    @property
    def dead(self) -> bool:
        return self._head[DEAD] != 0

    @property
    def pinned(self) -> bool:
        return self._head[PINNED] != 0

    @property
    def lent(self) -> bool:
        """Whether the kernel was ever given this data file."""
        return self._head[LENT] != 0

    @property
    def path(self) -> Path:
        """Of the data."""
        return _data_path(self._path)

    def present_rows(self) -> Rows:
        return np.flatnonzero(self._present & 1)

    def use_all(self) -> None:
        """Every chunk was used just now."""
        self._last_uses[:] = use_clock()

    def check_current(self) -> None:
        """Raises GoneError if this is not what stands at the file's path any more."""
        if self.dead or not os.fstat(self._map_fd).st_nlink or not os.fstat(self.data_fd).st_nlink:
            raise GoneError(self.chunks.name)

    def sealed(self) -> bytes | None:
        """The counts at which all rows were checked and sealed, if nothing has changed since. Raises OSError."""
        seal = self._head[SEAL:SEAL + 32].tobytes()
        if seal == UNSEALED:
            return None
        counts = self.presence.tobytes()
        return counts if seal == seal_of(self.chunks.name, self.nonce, os.fstat(self.data_fd), counts) else None

    def seal(self, counts: bytes) -> None:
        """Write the data to the disk and, if it is still at these counts then, seal it. All rows are present, and
        were checked at them. Takes the lock itself, after the fsync, which may last. Raises GoneError, OSError."""
        if self.sealed() == counts:
            return
        before = os.fstat(self.data_fd)
        os.fsync(self.data_fd)
        with self.lock:
            self.check_current()
            now = os.fstat(self.data_fd)
            if self.presence == counts and now.st_ctime_ns == before.st_ctime_ns:
                self._head[SEAL:SEAL + 32] = seal_of(self.chunks.name, self.nonce, now, counts)

    def open_shared(self) -> int | None:
        """A descriptor of the data on which no chunk is punched as long as it is open anywhere; None while somebody
        punches. Raises GoneError, OSError."""
        try:
            fd = os.open(self.path, os.O_RDONLY | os.O_CLOEXEC)
        except FileNotFoundError:
            raise GoneError(self.chunks.name) from None
        try:
            fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
            self._head[LENT] = 1  # before who punches, and has to be alone for that, can look
            self.check_current()
            if not os.path.samestat(os.fstat(fd), os.fstat(self.data_fd)):
                raise GoneError(self.chunks.name)
        except BlockingIOError:
            os.close(fd)
            return None
        except (OSError, GoneError):
            os.close(fd)
            raise
        return fd

    def fill(self, row: int, data: memoryview) -> int:
        """Store one chunk; returns its count. Raises NoSpace where it does not fit, GoneError, OSError.

        Also where a kernel handle reads the file: a chunk that is absent then is a bad one (`drop`), and this mends it.
        """
        self.check_current()
        if self.presence[row] & 1:
            return self.presence[row]
        block, start = self._room.block, int(self.chunks.offsets[row])
        end = start + len(data)
        self._room.reserve(self._slot, _whole(end, block) - start // block * block, self._account)
        self._break_seal()
        try:
            write_all(self.data_fd, data, start)
        except OSError:
            self._free(np.array([row]))
            raise
        finally:
            self.settle()
        self.last_use[row] = use_clock()
        self.presence[row] = (self.presence[row] + 1) & 0xFF
        return self.presence[row]

    def punch(self, rows: Rows) -> int:
        """Drop those of rows that are present, if no kernel handle holds the file; how many, -1 if it is held. Of a
        file that the kernel had, all go.

        Raises GoneError, OSError.
        """
        self.check_current()
        rows = rows[self._present[rows] & 1 == 1]
        if not len(rows):
            return 0
        if not _try_alone(self.data_fd):
            return -1
        try:
            if self.lent:
                rows = self.present_rows()
                self._drop_all()
            else:
                self._break_seal()
                self._present[rows] += 1
                self._free(rows)
                self.settle()
        finally:
            fcntl.flock(self.data_fd, fcntl.LOCK_UN)
        return len(rows)

    def drop(self, row: int) -> None:
        """Make a chunk that was found bad a miss, whoever holds the file. A kernel handle keeps the bytes, until a
        fill mends them in place, and so does a map; else its blocks go. Raises GoneError, OSError."""
        self.check_current()
        self._break_seal()
        self.presence[row] = (self.presence[row] + 1) & 0xFF
        # A power cut must not bring back the seal: then the bad chunk would be believed.
        os.fdatasync(self._map_fd)
        if _try_alone(self.data_fd):
            try:
                self._free(np.array([row]))
                self.settle()
            finally:
                fcntl.flock(self.data_fd, fcntl.LOCK_UN)

    def remove(self) -> int:
        """Drop the whole file, if no kernel handle holds it; how many chunks that were, -1 if it is held.

        Raises GoneError, OSError.
        """
        self.check_current()
        if not _try_alone(self.data_fd):
            return -1
        rows = self.present_rows()
        try:
            self._drop_all()
        finally:
            fcntl.flock(self.data_fd, fcntl.LOCK_UN)
        return len(rows)

    def _drop_all(self) -> None:
        self._head[DEAD] = 1
        self._present[self.present_rows()] += 1
        # Data first, under the map's lock: a map without data is all absent. Emptied before it is unlinked, since
        # another daemon may have it open, and its blocks would stay.
        if not self.lent:
            os.ftruncate(self.data_fd, 0)
        _data_path(self._path).unlink(missing_ok=True)
        self._path.unlink(missing_ok=True)
        # Who has the map open keeps its blocks, too. Of these only what nobody reads by the mapping can go.
        _, _, last_use, _ = column_offsets(self.chunks.rows)
        first, end = _whole(HEADER, self._room.block), last_use // self._room.block * self._room.block
        if first < end:
            punch(self._map_fd, first, end - first)
        self._room.usage.settle(self._slot, self._account, 0)

    def set_pinned(self, pinned: bool) -> bool:
        """True. Raises GoneError."""
        self.check_current()
        self._head[PINNED] = pinned
        return True

    def settle(self, release: int = 0) -> None:
        """Make the account what the disk says; release: reserved for this file outside it. Raises OSError."""
        taken = disk_bytes(os.fstat(self.data_fd)) + disk_bytes(os.fstat(self._map_fd))
        self._room.usage.settle(self._slot, self._account, taken, release)

    def forget(self) -> None:
        """The data is not what the map speaks of: all chunks become absent, under another nonce. Raises OSError."""
        self._present[self.present_rows()] += 1
        self._head[LENT] = 0
        self._head[NONCE:NONCE + 8] = secrets.token_bytes(8)
        self.nonce = self._head[NONCE:NONCE + 8].cast("Q")[0]
        os.ftruncate(self.data_fd, 0)
        os.ftruncate(self.data_fd, self.chunks.size)

    def tidy(self) -> None:
        """Free what a crash left behind absent chunks, and settle. Raises GoneError, OSError."""
        self.check_current()
        taken = disk_bytes(os.fstat(self.data_fd))
        if taken > covered_bytes(self.present_rows(), self.chunks.offsets, self._room.block) + _SLACK + taken // 256 \
                and _try_alone(self.data_fd):
            try:
                self._free(np.flatnonzero(self._present & 1 == 0))
            finally:
                fcntl.flock(self.data_fd, fcntl.LOCK_UN)
        self.settle()

    def _break_seal(self) -> None:
        self._head[SEAL:SEAL + 32] = UNSEALED

    def _free(self, rows: Rows) -> None:
        if self.lent:
            return
        for start, length in hole_ranges(rows, self.present_rows(), self.chunks.offsets, self._room.block):
            punch(self.data_fd, start, length)


def _data_path(map_path: Path) -> Path:
    return map_path.with_suffix("")


def open_sparse(room: Room, name: str, chunks: ChunkList | None = None, create: bool = False) -> SparseFile | None:
    """The cache file of that name, or None where there is none that can be used.

    chunks: the list, if known; with create, a file that is missing or whose map is cut or junk is made anew from it.
    Raises NoSpace where there is no room to make it, OSError.
    """
    path = room.files / name[:2] / (name + ".map")
    for _ in range(8):
        try:
            return _open_once(room, path, name, chunks if create else None)
        except FileNotFoundError:
            if not create:
                return None
            _make_parent(room.usage, path.parent)
        except GoneError:
            pass
    raise OSError(errno.EBUSY, "a cache file is removed as fast as it is made", str(path))


def _open_once(room: Room, path: Path, name: str, make_from: ChunkList | None) -> SparseFile | None:
    flags = os.O_RDWR | os.O_CLOEXEC
    fds = [os.open(path, flags | (os.O_CREAT if make_from else 0), 0o600)]
    try:
        lock = SharedLock(fds[0])
        with lock:
            if not os.fstat(fds[0]).st_nlink:
                raise GoneError(name)
            chunks, reserved = read_chunks(fds[0], name), 0
            fresh = chunks is None or os.pread(fds[0], 1, DEAD) != b"\0"
            if fresh:
                if make_from is None:
                    return None
                if chunks is None and os.fstat(fds[0]).st_size:
                    room.trouble.corrupt(path)
                chunks, reserved = make_from, _make_map(room, fds[0], path, make_from)
            assert chunks is not None
            size = map_size(chunks.rows)
            allocate(fds[0], size)
            fds.append(os.open(_data_path(path), flags | os.O_CREAT, 0o600))
            wrong = fresh or os.fstat(fds[1]).st_size != chunks.size
            if wrong and (os.fstat(fds[1]).st_size or not _try_alone(fds[1])):
                # the kernel may serve the old data, or have a map of it: it keeps it, and we start anew
                _data_path(path).unlink()
                os.close(fds.pop())
                fds.append(os.open(_data_path(path), flags | os.O_CREAT, 0o600))
            opened = SparseFile(room, chunks, path, (fds[1], fds[0]), lock, map_shared(fds[0], size))
            fds = []
            if wrong:
                opened.forget()
                fcntl.flock(opened.data_fd, fcntl.LOCK_UN)
                opened.settle(reserved)
            return opened
    finally:
        for fd in fds:
            os.close(fd)


def _make_map(room: Room, fd: int, path: Path, chunks: ChunkList) -> int:
    """Write a new map in place, since other processes may have mapped this very file; returns the bytes reserved."""
    size, reserved = map_size(chunks.rows), 0
    slot = int(chunks.name[:2], 16)
    try:
        room.reserve(slot, _whole(size, room.block))
        reserved = _whole(size, room.block)
        allocate(fd, size)
        os.ftruncate(fd, size)
        _, lengths, last_use, presence = column_offsets(chunks.rows)
        # Counts begin anywhere (even), so that those of an earlier life of the file hardly ever come again.
        write_all(fd, bytes([secrets.randbelow(128) * 2]) * chunks.rows, presence)
        write_all(fd, bytes(4 * chunks.rows), last_use)
        write_all(fd, chunks.lengths.tobytes(), lengths)
        write_all(fd, chunks.ids.tobytes(), HEADER)
        write_all(fd, pack_head(chunks.rows, secrets.randbits(64), pinned=False), 0)
    except (OSError, NoSpace):
        path.unlink(missing_ok=True)
        if reserved:
            room.usage.change(slot, -reserved)
        raise
    return reserved


def _try_alone(data_fd: int) -> bool:
    """LOCK_EX on the data file, unless a descriptor given to the kernel holds LOCK_SH on it."""
    try:
        fcntl.flock(data_fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _whole(size: int, block: int) -> int:
    return -(-size // block) * block


def _make_parent(usage: Usage, directory: Path) -> None:
    try:
        directory.mkdir(mode=0o700)
        usage.change(int(directory.name, 16), disk_bytes(directory.stat()))
    except FileExistsError:
        pass

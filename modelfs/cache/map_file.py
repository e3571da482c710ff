"""The .map beside each data file: which chunks the model file has, which of them are here, when each was last used.

Rule: chunk ids and lengths hash to the file's name, and are checked when it is opened; the rest may be anything
after a crash and is believed only as far as a check of the chunk itself bears it out.

    0  magic   8  rows u64   16  nonce u64   24  account i64   32  dead u8   33  pinned u8   34  lent u8
   40  seal [32] u8
    then, from 128 on, ids [n,32] u8, lengths [n] u32, last use [n] u32, presence [n] u8
"""

from __future__ import annotations

import os
import struct
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
from blake3 import blake3

from modelfs.errors import BadInput

MAGIC = b"mfsmap1\n"
HEADER = 128
NONCE, ACCOUNT, DEAD, PINNED, LENT, SEAL = 16, 24, 32, 33, 34, 40
UNSEALED = bytes(32)
_ROW = 32 + 4 + 4 + 1
_MAX_ROWS = 1 << 32
_HEAD = struct.Struct("<8sQQqBB")

Rows = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True, eq=False)
class ChunkList:
    """What names a cache file: ids u8 [n, 32] and lengths u32 [n]. offsets u64 [n + 1]; name: BLAKE3 hex."""

    name: str
    ids: npt.NDArray[np.uint8]
    lengths: npt.NDArray[np.uint32]
    offsets: npt.NDArray[np.uint64]

    @classmethod
    def of(cls, ids: npt.NDArray[np.uint8], lengths: npt.NDArray[np.uint32]) -> ChunkList:
        """Raises BadInput where the shapes do not agree."""
        if ids.ndim != 2 or ids.shape[1] != 32 or lengths.shape != (len(ids),) or len(ids) >= _MAX_ROWS:
            raise BadInput("not a list of chunks", why=f"shapes {ids.shape} and {lengths.shape}")
        ids = np.ascontiguousarray(ids, np.uint8)
        lengths = np.ascontiguousarray(lengths, "<u4")
        offsets = np.zeros(len(ids) + 1, np.uint64)
        np.cumsum(lengths, out=offsets[1:])
        name = blake3(ids.tobytes()).update(lengths.tobytes()).hexdigest()
        return cls(name, ids, lengths, offsets)

    @property
    def rows(self) -> int:
        return len(self.lengths)

    @property
    def size(self) -> int:
        """Of the model's file, bytes."""
        return int(self.offsets[-1])


def map_size(rows: int) -> int:
    return HEADER + rows * _ROW


def pack_head(rows: int, nonce: int, pinned: bool) -> bytes:
    return _HEAD.pack(MAGIC, rows, nonce, 0, 0, pinned).ljust(HEADER, b"\0")


def seal_of(name: str, nonce: int, data: os.stat_result, counts: bytes) -> bytes:
    """Says that the data file was checked as a whole while it was this very one, last changed then, at these counts.

    Every write, cut and hole changes the ctime, and no program can set it back; reading, locking and utimes-free use
    do not change it. data: fstat of the data file.
    """
    state = f"{name} {nonce} {data.st_dev} {data.st_ino} {data.st_size} {data.st_ctime_ns}\n"
    return blake3(state.encode()).update(counts).digest()


def column_offsets(rows: int) -> tuple[int, int, int, int]:
    """Where ids, lengths, last use and presence begin."""
    lengths = HEADER + 32 * rows
    return HEADER, lengths, lengths + 4 * rows, lengths + 8 * rows


def read_chunks(fd: int, name: str) -> ChunkList | None:
    """The list in an open map; None where it is cut, or does not hash to name. Raises OSError."""
    rows = _rows_of(fd)
    if rows is None:
        return None
    raw = _pread(fd, 36 * rows, HEADER)
    chunks = ChunkList.of(np.frombuffer(raw, np.uint8, 32 * rows).reshape(rows, 32),
                          np.frombuffer(raw, "<u4", rows, 32 * rows))
    return chunks if chunks.name == name else None


@dataclass(frozen=True, slots=True, eq=False)
class MapState:
    """What an evictor must know of one file: columns as they were a moment ago, the list of chunks unchecked."""

    account: int
    pinned: bool
    lengths: npt.NDArray[np.uint32]
    last_use: npt.NDArray[np.uint32]
    presence: npt.NDArray[np.uint8]


def read_state(path: Path) -> MapState | None:
    """None where there is no such map, or one that is cut or junk. Raises OSError."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        return None
    try:
        rows = _rows_of(fd)
        if rows is None:
            return None
        _, _, _, account, dead, pinned = _HEAD.unpack(_pread(fd, _HEAD.size, 0))
        raw = _pread(fd, 9 * rows, HEADER + 32 * rows)
    finally:
        os.close(fd)
    if dead:
        return None
    return MapState(account, bool(pinned), np.frombuffer(raw, "<u4", rows), np.frombuffer(raw, "<u4", rows, 4 * rows),
                    np.frombuffer(raw, np.uint8, rows, 8 * rows))


def read_account(path: Path) -> int:
    """Bytes counted for this file and its data; 0 where there is none. Raises OSError."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        return 0
    try:
        raw = os.pread(fd, 8, ACCOUNT)
        return int(struct.unpack("<q", raw)[0]) if len(raw) == 8 else 0
    finally:
        os.close(fd)


def _rows_of(fd: int) -> int | None:
    head = os.pread(fd, _HEAD.size, 0)
    if len(head) < _HEAD.size or head[:8] != MAGIC:
        return None
    rows = int(_HEAD.unpack(head)[1])
    return rows if rows < _MAX_ROWS and os.fstat(fd).st_size == map_size(rows) else None


def _pread(fd: int, size: int, offset: int) -> bytes:
    raw = os.pread(fd, size, offset)
    if len(raw) != size:
        raise OSError(5, "a map was cut while it was read")
    return raw

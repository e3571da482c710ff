"""Counts the cache directory anew, and clears away what crashes and other hands left in it, a slice at a time.

Rule: a slice is one of the 256 directories: at 10 000 files some 40 of them, counted under the usage lock in a few
milliseconds. What is in use is left alone; it comes around again.
"""

from __future__ import annotations

import os
import re
import time
from pathlib import Path

from modelfs.cache.map_file import DEAD, read_account, read_chunks
from modelfs.cache.meta_files import MetaFiles
from modelfs.cache.room import Room
from modelfs.cache.sparse_file import GoneError, open_sparse
from modelfs.cache.system import disk_bytes, flock_within
from modelfs.cache.trouble import Trouble
from modelfs.cache.usage import BASE, META, SLOTS, Usage
from modelfs.errors import NoSpace

_OURS = re.compile(r"[0-9a-f]{64}(\.map)?")


class Sweeper:
    def __init__(self, room: Room, meta: MetaFiles, trouble: Trouble) -> None:
        self._room, self._meta, self._trouble = room, meta, trouble
        self._todo: list[int] = []
        self._usage: Usage | None = None  # what this round counts for; None: a new round is due

    def begin(self) -> None:
        """Another round, unless one is under way."""
        if not self._todo:
            self._usage = None

    def end(self) -> None:
        """Leave the round, and hold nothing open."""
        self._todo, self._usage = [], None

    def step(self, seconds: float) -> bool:
        """Sweep slices for about so long; True when there are none left."""
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            try:
                if self._usage is not self._room.usage:  # or made anew meanwhile
                    self._usage, self._todo = self._room.usage, self._slots()
                if not self._todo:
                    return True
                slot = self._todo[-1]
                if slot == META:
                    self._meta.count()
                elif slot == BASE:
                    self._count_base()
                else:
                    self._sweep(slot)
                self._todo.pop()
                if not self._todo:
                    self._room.usage.mark_counted()
            except (OSError, NoSpace) as error:
                self._trouble.note("count", error)
                return True
        return not self._todo and self._usage is not None

    def _slots(self) -> list[int]:
        """What there is to count: most of the 256 directories do not exist in a small cache."""
        there = set(_listdir(self._room.files))
        usage = self._room.usage
        return [slot for slot in range(SLOTS) if slot in (META, BASE) or f"{slot:02x}" in there or usage.of(slot)]

    def _sweep(self, slot: int) -> None:
        shard = self._room.files / f"{slot:02x}"
        names = set(_listdir(shard))
        for entry in sorted(names):
            if not _OURS.fullmatch(entry):
                continue
            if entry.endswith(".map"):
                self._tidy(shard / entry, entry[:-4])
            elif entry + ".map" not in names and not (shard / (entry + ".map")).exists():
                (shard / entry).unlink(missing_ok=True)
        usage = self._room.usage
        with usage.lock:
            total = disk_bytes(shard.stat()) if shard.exists() else 0
            for entry in _listdir(shard):
                if entry.endswith(".map"):
                    account = read_account(shard / entry)
                    total += account if 0 <= account < 1 << 50 else 0
                elif not _OURS.fullmatch(entry):
                    total += disk_bytes((shard / entry).stat())
            usage.assign(slot, total)

    def _tidy(self, path: Path, name: str) -> None:
        try:
            opened = open_sparse(self._room, name)
            if opened is None:
                _remove_junk(path, name)
            elif opened.lock.acquire(0):
                try:
                    if len(opened.present_rows()) or opened.pinned or opened.remove() < 0:
                        opened.tidy()
                finally:
                    opened.lock.release()
        except GoneError:
            pass
        except OSError as error:
            self._trouble.note("tidy", error)

    def _count_base(self) -> None:
        directory, total = self._room.directory, 0
        for path in {directory, *directory.iterdir(), *(directory / "limits").iterdir()} - {self._room.meta}:
            try:
                total += disk_bytes(path.stat())
            except FileNotFoundError:
                continue
        usage = self._room.usage
        with usage.lock:
            usage.assign(BASE, total)


def _listdir(directory: Path) -> list[str]:
    try:
        return os.listdir(directory)
    except FileNotFoundError:
        return []


def _remove_junk(path: Path, name: str) -> None:
    """A map that is junk, or whose removal was cut short; the lock keeps out who makes it anew just now."""
    try:
        fd = os.open(path, os.O_RDWR | os.O_CLOEXEC)
    except FileNotFoundError:
        return
    try:
        if flock_within(fd, 0) and os.fstat(fd).st_nlink \
                and (read_chunks(fd, name) is None or os.pread(fd, 1, DEAD) != b"\0"):
            path.with_suffix("").unlink(missing_ok=True)
            path.unlink(missing_ok=True)
    finally:
        os.close(fd)

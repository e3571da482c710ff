"""Makes room: drops the chunks that no daemon of the host has used for longest, then small objects.

Rule: pinned files and files handed to the kernel stay. One evictor works in a directory at a time; it holds no other
lock while it chooses, and the lock of one file while it drops that file's chunks.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from modelfs.cache.map_file import MapState, Rows, read_state
from modelfs.cache.meta_files import MetaFiles
from modelfs.cache.room import Room
from modelfs.cache.sparse_file import GoneError, open_sparse, use_clock
from modelfs.cache.system import LOCK_WAIT_S, flock_within
from modelfs.cache.trouble import Trouble
from modelfs.errors import NoSpace
from modelfs.metrics import Metrics
from modelfs.units import MiB

_BATCH = 256 * MiB
_FUTILE_S = 1.0  # how long nobody scans again after nothing could be dropped
_LOCK_ROWS = 64  # dropped in one hold of a file's lock: at 1 ms for 2 MiB its fills wait 64 ms
_ROUNDS = 4


def cache_files(files: Path) -> Iterator[tuple[str, Path]]:
    """Name and map of every file in the cache. Raises OSError."""
    for shard in os.listdir(files):
        try:
            entries = os.listdir(files / shard)
        except (FileNotFoundError, NotADirectoryError):
            continue
        for entry in entries:
            if entry.endswith(".map"):
                yield entry[:-4], files / shard / entry


def victims(states: list[MapState], need: int, now: int) -> list[tuple[int, Rows]]:
    """Which rows of which states to drop to free about need bytes: the least recently used, pinned ones never.

    now: `use_clock()`. A time in the future (a clock that was set back) counts as now.
    """
    rows = [np.flatnonzero(state.presence & 1) if not state.pinned else np.zeros(0, np.int64) for state in states]
    if not sum(map(len, rows)) or need <= 0:
        return []
    used = np.concatenate([state.last_use[r] for state, r in zip(states, rows, strict=True)])
    sizes = np.concatenate([state.lengths[r] for state, r in zip(states, rows, strict=True)])
    age = (np.uint32(now) - used).astype(np.int32).clip(min=0)
    oldest = np.argsort(-age, kind="stable")
    count = int(np.searchsorted(np.cumsum(sizes[oldest], dtype=np.int64), need)) + 1
    chosen = np.sort(oldest[:count])
    first = np.concatenate(([0], np.cumsum([len(r) for r in rows])))
    cuts = np.searchsorted(chosen, first)
    return [(i, rows[i][chosen[cuts[i]:cuts[i + 1]] - first[i]])
            for i in np.flatnonzero(cuts[1:] > cuts[:-1]).tolist()]


class Evictor:
    def __init__(self, room: Room, meta: MetaFiles, metrics: Metrics, trouble: Trouble) -> None:
        self._room, self._meta, self._metrics, self._trouble = room, meta, metrics, trouble
        self._threads = threading.Lock()
        self._futile_until_s = 0.0

    def make_room(self, size: int) -> bool:
        """Drop a batch, so that size bytes fit for now; False where they will not.

        Nothing is dropped where that is known before: whether a file is held shows only when it refuses.
        """
        if time.monotonic() < self._futile_until_s:
            return False
        try:
            usage = self._room.usage
            ceiling = self._room.ceiling()
            if not usage.counted or size > ceiling or usage.total() > ceiling + _BATCH:
                return False  # far above a limit that was lowered: that is the work of `shrink`
            with _OneAtATime(self._threads, self._room.directory) as taken:
                if not taken:
                    return False
                ceiling = self._room.ceiling()
                if usage.total() + size > ceiling:
                    self._drop(ceiling - size, min(ceiling // 10, _BATCH), time.monotonic() + LOCK_WAIT_S, False)
                fits = usage.total() + size <= ceiling
        except (OSError, NoSpace) as error:
            self._trouble.note("evict", error)
            return False
        if not fits:
            self._futile_until_s = time.monotonic() + _FUTILE_S
        return fits

    def shrink(self, seconds: float) -> bool:
        """Come down to the limit, for so many seconds at most; False while there is more to drop."""
        try:
            usage = self._room.usage
            ceiling = self._room.ceiling()
            if not usage.counted or usage.total() <= ceiling:
                return True
            with _OneAtATime(self._threads, self._room.directory) as taken:
                return taken and self._drop(ceiling, 0, time.monotonic() + seconds, True)
        except (OSError, NoSpace) as error:
            self._trouble.note("evict", error)
            return True

    def forgive(self) -> None:
        """Limits or pins have changed: what was futile may not be so now."""
        self._futile_until_s = 0.0

    def _drop(self, goal: int, more: int, end_s: float, partly: bool) -> bool:
        """Until the total is at most goal, and then, since scans cost, about `more` below it.

        False where there may be more to drop for the goal: the time was up (partly), or others fill as fast.
        """
        usage = self._room.usage
        refused: set[str] = set()  # in this call: at the next one they may be free
        states: dict[str, MapState] = {}
        stale, rounds = True, 0
        while rounds < _ROUNDS:
            over = usage.total() - goal
            if over <= 0:
                return True
            # Where all of a plan refused, what was scanned still holds: scans would be as many as held files.
            states = {name: state for name, state in (self._scan() if stale else states.items()) if name not in refused}
            if not partly and over > self._droppable(states):
                return True
            plan = victims(list(states.values()), over + more, use_clock())
            if not plan:
                self._meta.drop_oldest(over)
                return True
            names, stale, known = list(states), False, len(refused)
            for index, rows in plan:
                if usage.total() <= goal - more or (usage.total() <= goal and time.monotonic() >= end_s):
                    return True
                if self._drop_rows(names[index], rows):
                    stale = True
                else:
                    refused.add(names[index])
                if time.monotonic() >= end_s and partly:
                    return usage.total() <= goal
            rounds += len(refused) == known
        return usage.total() <= goal

    def _scan(self) -> Iterator[tuple[str, MapState]]:
        for name, path in cache_files(self._room.files):
            state = read_state(path)
            if state is not None:
                yield name, state

    def _droppable(self, states: dict[str, MapState]) -> int:
        return self._meta.total() + sum(state.account for state in states.values() if not state.pinned)

    def _drop_rows(self, name: str, rows: Rows) -> bool:
        """Whether any of them was dropped: not where the file is pinned, gone, junk, or held by the kernel."""
        opened, total = open_sparse(self._room, name), 0
        while opened is not None and len(rows):
            with opened.lock:
                try:
                    if opened.pinned:
                        break
                    whole = len(rows) == len(opened.present_rows())
                    dropped = opened.remove() if whole else opened.punch(rows[:_LOCK_ROWS])
                    if dropped < 0:
                        opened.use_all()  # nobody sees the kernel's reads; what is released is not to go first
                        break
                except GoneError:
                    break
            self._metrics.add("evictions", dropped)
            total += dropped
            if whole:
                break
            rows = rows[_LOCK_ROWS:]
        return total > 0


class _OneAtATime:
    """The evictor's lock, among threads and processes; `as taken` tells whether it was had."""

    def __init__(self, threads: threading.Lock, directory: Path) -> None:
        self._threads, self._path, self._fd = threads, directory / "evict.lock", -1

    def __enter__(self) -> bool:
        if not self._threads.acquire(timeout=LOCK_WAIT_S):
            return False
        try:
            self._fd = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
            if flock_within(self._fd, LOCK_WAIT_S):
                return True
            os.close(self._fd)
        except OSError:
            self._threads.release()
            raise
        self._fd = -1
        self._threads.release()
        return False

    def __exit__(self, *_: object) -> None:
        if self._fd >= 0:
            os.close(self._fd)
            self._threads.release()

"""Which cache file holds a chunk of a given id: all maps of the directory, by the first 8 bytes of each id.

Rule: an answer is a hint, to be compared with the whole id in the file itself. Sorted arrays, not a
dict: 16 bytes a chunk.
"""

from __future__ import annotations

import os
import threading
import time
from pathlib import Path

import numpy as np
import numpy.typing as npt

from modelfs.cache.map_file import ChunkList, read_chunks

_LOOK_S = 1.0
_SLICE_S = 0.1
_SETTLED_S = 0.05  # a directory may change again within one tick of the clock that its mtime has
_RUNS = 16
_CANDIDATES = 16

_Run = tuple[npt.NDArray[np.uint64], npt.NDArray[np.uint64]]  # prefixes, sorted; file number << 32 | row


class ChunkIndex:
    def __init__(self, files: Path) -> None:
        self._files = files
        self._lock = threading.Lock()  # guards all below
        self._names: list[str | None] = []  # by file number; None: gone
        self._numbers: dict[str, dict[str, int]] = {}  # by directory, by name
        self._runs: list[_Run] = []
        self._seen: dict[str, int] = {}  # directory: its mtime in ns when it was listed
        self._looked_s = -_LOOK_S
        self._unfinished = False

    def add(self, chunks: ChunkList) -> None:
        with self._lock:
            if chunks.name not in self._numbers.get(chunks.name[:2], {}):
                self._add(chunks)

    def candidates(self, chunk_id: bytes) -> list[tuple[str, int]]:
        """Names of files and rows in them that may be that chunk, at most a few. Raises OSError."""
        prefix = np.frombuffer(chunk_id, "<u8", 1)[0]
        found: list[tuple[str, int]] = []
        with self._lock:
            self._refresh()
            for prefixes, places in self._runs:
                low = int(np.searchsorted(prefixes, prefix))
                if low == len(prefixes) or prefixes[low] != prefix:
                    continue
                high = np.searchsorted(prefixes, prefix, side="right")
                for place in places[low:high][:_CANDIDATES].tolist():
                    name = self._names[place >> 32]
                    if name is not None:
                        found.append((name, place & 0xFFFFFFFF))
        return found[:_CANDIDATES]

    def _refresh(self) -> None:
        now = time.monotonic()
        if now - self._looked_s < _LOOK_S and not self._unfinished:
            return
        self._looked_s, self._unfinished = now, False
        for shard in os.listdir(self._files):
            try:
                changed = os.stat(self._files / shard).st_mtime_ns
                if self._seen.get(shard) == changed:
                    continue
                entries = os.listdir(self._files / shard)
            except (FileNotFoundError, NotADirectoryError):
                continue
            if not self._take(shard, {e[:-4] for e in entries if e.endswith(".map")}, now + _SLICE_S):
                self._unfinished = True  # the next search goes on
                return
            if time.time() - changed / 1e9 > _SETTLED_S:
                self._seen[shard] = changed
        if len(self._runs) > 2:
            self._merge()

    def _take(self, shard: str, names: set[str], end_s: float) -> bool:
        known = self._numbers.setdefault(shard, {})
        for gone in known.keys() - names:
            self._names[known.pop(gone)] = None
        for name in names - known.keys():
            if time.monotonic() >= end_s:
                return False
            try:
                fd = os.open(self._files / shard / (name + ".map"), os.O_RDONLY | os.O_CLOEXEC)
            except FileNotFoundError:
                continue
            try:
                chunks = read_chunks(fd, name)
            finally:
                os.close(fd)
            if chunks is not None:
                self._add(chunks)
        return True

    def _add(self, chunks: ChunkList) -> None:
        number = len(self._names)
        self._names.append(chunks.name)
        self._numbers.setdefault(chunks.name[:2], {})[chunks.name] = number
        prefixes = np.ascontiguousarray(chunks.ids[:, :8]).view("<u8").reshape(-1)
        order = np.argsort(prefixes)
        self._runs.append((prefixes[order], order.astype(np.uint64) | np.uint64(number << 32)))
        if len(self._runs) > _RUNS:
            self._merge()

    def _merge(self) -> None:
        """All but the largest into one; all into one once those have become half as large as it."""
        self._runs.sort(key=lambda run: len(run[0]), reverse=True)
        keep = 0 if 2 * sum(len(run[0]) for run in self._runs[1:]) >= len(self._runs[0][0]) else 1
        prefixes = np.concatenate([run[0] for run in self._runs[keep:]])
        places = np.concatenate([run[1] for run in self._runs[keep:]])
        living = np.array([name is not None for name in self._names])[places >> np.uint64(32)]
        order = np.argsort(prefixes[living], kind="stable")
        self._runs[keep:] = [(prefixes[living][order], places[living][order])]

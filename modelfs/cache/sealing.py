"""Seals files that are whole and checked, so that a later mount with `cache.verify = "changed"` believes them unread.

Rule: a seal is written after the data is on the disk; it holds for the very file as it is then, and whatever changes
the file breaks it (`map_file.seal_of`).
"""

from __future__ import annotations

import queue
import threading
from typing import Protocol

from modelfs.cache.system import lower_priority

_END_S = 2.0  # what is written to the disk then is checked anew by the next mount, not sealed


class Sealable(Protocol):
    """A CacheFile, as the sealer needs it."""

    def seal(self) -> None: ...


class Sealer:
    """A thread of its own: an fsync of many GiB takes seconds, in which no limit must be missed and no read wait."""

    def __init__(self) -> None:
        self._queue: queue.SimpleQueue[Sealable | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._run, name="modelfs-seal", daemon=True)
        self._thread.start()

    def put(self, file: Sealable) -> None:
        """Its last chunk was checked. From any thread; returns at once."""
        self._queue.put(file)

    def close(self) -> None:
        """Seals what was put so far, for a moment at most."""
        self._queue.put(None)
        self._thread.join(_END_S)

    def _run(self) -> None:
        lower_priority()
        while (file := self._queue.get()) is not None:
            file.seal()

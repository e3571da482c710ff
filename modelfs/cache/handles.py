"""How many cache files this process has open at once.

Rule: a file in use is not closed while another is not; one that was closed is opened again by its next use.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from typing import Protocol


class Handled(Protocol):
    """A CacheFile, as the table needs it."""

    name: str

    @property
    def removed(self) -> bool: ...

    def take_used(self) -> bool: ...

    def close_handle(self) -> None: ...


class HandleTable:
    """The files that have their descriptors open, two each: about the `limit` last used ones."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._lock = threading.Lock()
        self._open: OrderedDict[str, Handled] = OrderedDict()  # guarded by _lock; keeps its files alive
        self._closed = False

    @property
    def closed(self) -> bool:
        return self._closed

    def admit(self, file: Handled) -> None:
        with self._lock:
            self._open[file.name] = file
            self._open.move_to_end(file.name)
            while len(self._open) > (0 if self._closed else self._limit):
                name, oldest = self._open.popitem(last=False)
                if oldest is not file and not self._closed and oldest.take_used():
                    self._open[name] = oldest  # a second chance
                else:
                    oldest.close_handle()

    def halve(self) -> None:
        """The process has run out of descriptors."""
        with self._lock:
            for _ in range((len(self._open) + 1) // 2):
                self._open.popitem(last=False)[1].close_handle()

    def drop_removed(self) -> None:
        """Files that were evicted whole keep their maps' blocks as long as we have them open."""
        with self._lock:
            for name in [name for name, file in self._open.items() if file.removed]:
                self._open.pop(name).close_handle()

    def close(self) -> None:
        with self._lock:
            self._closed = True
            while self._open:
                self._open.popitem()[1].close_handle()

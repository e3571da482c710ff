"""What goes wrong inside the cache is written down here once, and goes no further.

Rule: a failing cache costs speed, never a read.
"""

from __future__ import annotations

import errno
import logging
import threading
from pathlib import Path

from modelfs.errors import ModelfsError
from modelfs.metrics import Metrics

_log = logging.getLogger("modelfs.cache")


class Trouble:
    """Logs the first failure of each kind (what was done, which error); the others only at debug level."""

    def __init__(self, where: str, metrics: Metrics) -> None:
        self._where, self._metrics = where, metrics
        self._lock = threading.Lock()
        self._seen: set[tuple[str, str]] = set()  # guarded by _lock

    def note(self, doing: str, error: OSError | ModelfsError) -> None:
        kind = errno.errorcode.get(error.errno or 0, "") if isinstance(error, OSError) else type(error).__name__
        with self._lock:
            first = (doing, kind) not in self._seen
            self._seen.add((doing, kind))
        level = logging.WARNING if first else logging.DEBUG
        _log.log(level, "cache %s, %s: %s. Reads go on without it.", doing, self._where, error)

    def corrupt(self, path: Path) -> None:
        """A file of the cache does not hash to what names it, and is made anew."""
        self._metrics.add("hash_failures")
        _log.warning("cache file %s does not hash to its name, and is dropped.", path)

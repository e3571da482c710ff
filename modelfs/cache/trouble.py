"""What goes wrong inside the cache is written down here once, and goes no further.

Rule: a failing cache costs speed, never a read.
"""

from __future__ import annotations

import errno
import threading
from pathlib import Path

from modelfs.errors import ModelfsError
from modelfs.logs import log_event, logger_for
from modelfs.metrics import Metrics

_LOG = logger_for(__name__)


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
        log_event(_LOG, "warning" if first else "debug", "cache.trouble", doing=doing, directory=self._where,
                  error=error, effect="reads go on without it")

    def corrupt(self, path: Path) -> None:
        """A file of the cache does not hash to what names it, and is made anew."""
        self._metrics.add("hash_failures")
        log_event(_LOG, "warning", "cache.dropped", file=path, why="it does not hash to its name")

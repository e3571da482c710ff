"""What failed a moment ago fails again at once, from memory: chunks, and the loads of manifests and histories.

Rule: nothing is remembered for longer than its time, and no more than a bounded number of things.
"""

from __future__ import annotations

import time
from collections.abc import Hashable
from typing import Generic, TypeVar

from modelfs.errors import IntegrityError, ModelfsError

REMEMBER_FAILURE_S, REMEMBER_DAMAGE_S = 2.0, 0.25
"""After a failed read-ahead the kernel asks for the same page again, at once, and it lets one lookup into a directory
at a time, so that who waited behind one that failed asks only after it; both are answered from memory. A damaged chunk
is found again within a few requests, and a store that was mended should not look broken for longer."""
_MOST = 10_000

K = TypeVar("K", bound=Hashable)


class Failures(Generic[K]):
    """For one thread at a time: whoever holds the lock of its owner."""

    def __init__(self) -> None:
        self._until: dict[K, tuple[float, ModelfsError]] = {}

    def of(self, key: K) -> ModelfsError | None:
        found = self._until.get(key)
        if found is None:
            return None
        if time.monotonic() < found[0]:
            return found[1]
        del self._until[key]
        return None

    def note(self, key: K, error: ModelfsError, seconds: float) -> None:
        now = time.monotonic()
        if len(self._until) > _MOST:
            self._until = {other: kept for other, kept in self._until.items() if kept[0] > now}
        self._until[key] = (now + seconds, error)

    def forget(self, key: K) -> None:
        self._until.pop(key, None)


def memory_of(error: ModelfsError) -> float:
    """For how long a chunk's failure is remembered, in seconds."""
    return REMEMBER_DAMAGE_S if isinstance(error, IntegrityError) else REMEMBER_FAILURE_S

"""What failed a moment ago fails again at once, from memory.

Rule: nothing is remembered for longer than its time, and no more than a bounded number of chunks.
"""

from __future__ import annotations

import time

from modelfs.errors import IntegrityError, ModelfsError
from modelfs.repository.chunk import ChunkRef

REMEMBER_FAILURE_S, REMEMBER_DAMAGE_S = 2.0, 0.25
"""After a failed read-ahead the kernel asks for the same page again, at once; that is answered from memory. Damage is
found again within a few requests, and a store that was mended should not look broken for longer."""
_MOST = 10_000


class Failures:
    """For one thread at a time: whoever holds the lock of its owner."""

    def __init__(self) -> None:
        self._until: dict[ChunkRef, tuple[float, ModelfsError]] = {}

    def of(self, ref: ChunkRef) -> ModelfsError | None:
        found = self._until.get(ref)
        if found is None:
            return None
        if time.monotonic() < found[0]:
            return found[1]
        del self._until[ref]
        return None

    def note(self, ref: ChunkRef, error: ModelfsError) -> None:
        now = time.monotonic()
        if len(self._until) > _MOST:
            self._until = {other: kept for other, kept in self._until.items() if kept[0] > now}
        self._until[ref] = (now + (REMEMBER_DAMAGE_S if isinstance(error, IntegrityError) else REMEMBER_FAILURE_S),
                            error)

    def forget(self, ref: ChunkRef) -> None:
        self._until.pop(ref, None)

"""How slow a client may be, sending or receiving: each of them holds a descriptor, and those are not without end.

Rule: only waiting for the client counts, so a server that is slow itself ends nobody.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from modelfs.units import KiB

GRACE_S = 30.0
SLOWEST_BYTES_PER_S = 2 * KiB  # a quarter of 64 kbit/s: a push sends four packs at once


class Pace:
    """Of one body: a wait may last GRACE_S, and all of them together GRACE_S longer than SLOWEST_BYTES_PER_S needs."""

    def __init__(self) -> None:
        self._size, self._waited_s = 0, 0.0

    @asynccontextmanager
    async def waiting(self, ahead: int = 0) -> AsyncIterator[None]:
        """Around one wait for the client. ahead: bytes that move in it, each of which may take its time, too.

        Raises TimeoutError where the client is too slow.
        """
        loop = asyncio.get_running_loop()
        began = loop.time()
        owed_s = min(0.0, self._size / SLOWEST_BYTES_PER_S - self._waited_s)
        async with asyncio.timeout(GRACE_S + owed_s + ahead / SLOWEST_BYTES_PER_S):
            yield
        self._waited_s += loop.time() - began

    def moved(self, size: int) -> None:
        self._size += size

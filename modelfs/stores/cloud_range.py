"""The body of one answer of obstore, as it arrives.

Rule: a body that ends early is an error, never a shorter object, and nobody waits for it past the deadline.
"""

from __future__ import annotations

import asyncio
import threading
from collections import deque
from types import TracebackType
from typing import Any

from obstore.exceptions import BaseError

from modelfs.errors import ModelfsError, Unavailable
from modelfs.stores.cloud_calls import Calls
from modelfs.stores.cloud_errors import failure
from modelfs.units import Deadline, KiB

_PIECE, _MOST_PIECES = 512 * KiB, 4
"""What one hand-over brings, and how many wait for a slow reader. 16 MiB from SeaweedFS on the same two cores, as
parts of curl's rate: pieces of 64 KiB 0.68, 256 KiB 0.72 to 0.77, 512 KiB 0.79, 1 MiB 0.84 to 0.92; but on a slow
link a piece has to come within the deadline. One at a time, not ahead: 0.59."""


class CloudRange:
    """A RangeStream of what obstore streams: a few pieces come in while those before them are read."""

    __slots__ = ("_arrived", "_calls", "_credentials", "_deadline", "_ended", "_error", "_left", "_piece", "_pieces",
                 "_pump", "_room", "_stream", "_unseen", "_where")

    def __init__(self, calls: Calls, result: Any, length: int, deadline: Deadline, where: str,
                 credentials: str) -> None:
        self._calls, self._deadline, self._where, self._credentials = calls, deadline, where, credentials
        self._left = self._unseen = length
        self._piece = memoryview(b"")
        self._arrived = threading.Condition()
        self._pieces: deque[bytes] = deque()  # guarded by _arrived, as the next two
        self._ended = False
        self._error: Exception | None = None
        self._room = asyncio.Event()  # of the loop's thread
        self._stream = result.stream(min_chunk_size=_PIECE)
        self._pump = calls.start(self._pull)

    def readinto(self, view: memoryview) -> None:
        view = view.cast("B")
        if len(view) > self._left:
            raise ModelfsError("more was read than the range has", where=self._where)
        self._left -= len(view)
        while view:
            if not self._piece:
                self._piece = memoryview(self._take())
            size = min(len(view), len(self._piece))
            view[:size] = self._piece[:size]
            view, self._piece = view[size:], self._piece[size:]

    def close(self) -> None:
        self._pump.cancel()

    def __enter__(self) -> CloudRange:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None,
                 trace: TracebackType | None) -> None:
        self.close()

    def _take(self) -> bytes:
        """The next piece. Raises Unavailable, DeadlinePassed."""
        with self._arrived:
            while not (self._pieces or self._ended):
                self._deadline.check("a store did not answer in time", self._where)
                self._arrived.wait(min(self._deadline.remaining(), threading.TIMEOUT_MAX))
            piece = self._pieces.popleft() if self._pieces else b""
            was_full, error = len(self._pieces) == _MOST_PIECES - 1, self._error
        if was_full:
            self._calls.tell(self._room.set)
        if not piece and isinstance(error, BaseError | FileNotFoundError):
            raise failure(error, self._where, self._credentials) from error
        if not piece or len(piece) > self._unseen:
            raise Unavailable("a store broke off", where=self._where, why=f"{self._unseen} bytes are missing"
                              if not piece else "it sends more than was asked") from error
        self._unseen -= len(piece)
        self._deadline.moved(len(piece))
        return piece

    async def _pull(self) -> None:
        """Until the end, an error or close(); no further than _MOST_PIECES ahead of the reader."""
        error: Exception | None = None
        try:
            async for piece in self._stream:
                with self._arrived:
                    self._pieces.append(piece)
                    full = len(self._pieces) >= _MOST_PIECES
                    self._arrived.notify()
                if full:
                    await self._room.wait()
                    self._room.clear()
        except Exception as failed:  # handed to the reader, whatever it is
            error = failed
        finally:
            with self._arrived:
                self._ended, self._error = True, error
                self._arrived.notify()


def check_encoding(result: Any, where: str) -> None:
    encoding = str(result.attributes.get("Content-Encoding") or "identity").strip().lower()
    if encoding not in ("identity", "aws-chunked"):
        raise Unavailable("a store does not answer well", where=where,
                          why=f"Content-Encoding {encoding[:40]!r} where none was asked for")

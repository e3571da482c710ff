"""The bytes of one range of a file, in order.

Rule: a file that ends early is an error, never a shorter range.
"""

from __future__ import annotations

import os
from types import TracebackType

from modelfs.errors import Malformed, ModelfsError, Unavailable
from modelfs.units import Deadline


class FileRange:
    """A RangeStream of a file."""

    __slots__ = ("_deadline", "_end", "_fd", "_offset", "_where")

    def __init__(self, fd: int, offset: int, length: int, deadline: Deadline, where: str) -> None:
        self._fd, self._offset, self._end = fd, offset, offset + length
        self._deadline, self._where = deadline, where

    def readinto(self, view: memoryview) -> None:
        view = view.cast("B")
        if self._offset + len(view) > self._end:
            raise ModelfsError("more was read than the range has", where=self._where)
        self._deadline.check("an object was not read in time", self._where)
        try:
            pread_all(self._fd, view, self._offset, self._where)
        except OSError as error:
            raise Unavailable("an object cannot be read", where=self._where,
                              why=error.strerror or str(error)) from error
        self._offset += len(view)
        self._deadline.moved(len(view))

    def close(self) -> None:
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def __enter__(self) -> FileRange:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None,
                 trace: TracebackType | None) -> None:
        self.close()


def pread_all(fd: int, view: memoryview, offset: int, where: str) -> None:
    while view:
        done = os.preadv(fd, [view], offset)
        if not done:
            raise Malformed("an object became shorter while it was read", where=where)
        view, offset = view[done:], offset + done

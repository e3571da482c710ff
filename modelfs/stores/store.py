"""What a store of objects is: a flat map from key to bytes, somewhere.

Rule: a store reports what it met by the errors named here and decides nothing; trying again, choosing
another replica and giving up belong to its callers. Keys are those of repository/keys.py.
"""

from __future__ import annotations

import mmap
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from types import TracebackType
from typing import Protocol

from modelfs.units import Deadline, MiB

LARGE_BYTES = 1 * MiB
"""An object from this size on is handed on as the memory that it was read into: a copy of 50 MB holds the interpreter
for 54 ms."""

Buffer = bytes | bytearray | memoryview


@dataclass(frozen=True, slots=True)
class ObjectInfo:
    """modified: seconds since the epoch, 0.0 where the store does not tell."""

    key: str
    size: int
    modified: float = 0.0


@dataclass(frozen=True, slots=True)
class Fetched:
    """An object, whole. content: bytes, or from LARGE_BYTES on a read-only view. name: the etag, or what makes it."""

    content: bytes | memoryview
    name: str | Callable[[], str] | None

    @property
    def data(self) -> bytes:
        """The content, of a large object copied."""
        return bytes(self.content)

    @property
    def etag(self) -> str | None:
        """What `get` and `swap` take to name this state of it, or None."""
        return self.name() if callable(self.name) else self.name


def room_for(size: int) -> memoryview:
    """Writable memory for an object that is read whole. From the system where it is large: a bytearray of 50 MB is
    filled with zeros first, which holds the interpreter for 46 ms, and the allocator may keep it when it is free."""
    return memoryview(mmap.mmap(-1, size) if size >= LARGE_BYTES else bytearray(size))


def as_content(view: memoryview) -> bytes | memoryview:
    """What was read into room_for: the content of a Fetched."""
    return view.toreadonly() if len(view) >= LARGE_BYTES else bytes(view)


class RangeStream(Protocol):
    """The bytes of one range, in order, as they arrive. Close it, also after an error; `with` does."""

    def readinto(self, view: memoryview) -> None:
        """Fill all of view with the bytes that come next.

        Raises Unavailable where the store breaks off or sends less, DeadlinePassed.
        """

    def close(self) -> None: ...

    def __enter__(self) -> RangeStream: ...

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None,
                 trace: TracebackType | None) -> None: ...


class ObjectStore(Protocol):
    """All calls may be made from several threads at once.

    Every call raises Unavailable or DeadlinePassed where the store does not answer (well), and Forbidden
    where it refuses. `url` names the store in messages and holds no secret.
    """

    url: str

    def get(self, key: str, deadline: Deadline, *, limit: int, etag: str | None = None,
            fresh: bool = False) -> Fetched | None:
        """A whole object; None where its etag is still `etag`.

        limit: bytes; a larger object raises Malformed, and is not read to its end.
        fresh: ask caches on the way to ask their origin (HTTP: Cache-Control: no-cache).
        Raises ObjectMissing.
        """

    def open_range(self, key: str, offset: int, length: int, deadline: Deadline) -> RangeStream:
        """length bytes from offset; the range lies within the object as the repository describes it.

        Raises ObjectMissing; Malformed where the object ends before offset + length.
        """

    def stat(self, key: str, deadline: Deadline) -> ObjectInfo:
        """Raises ObjectMissing."""

    def put(self, key: str, data: Buffer, deadline: Deadline, *, only_if_absent: bool = False) -> bool:
        """Store an object, whole or not at all, and durably. Idempotent.

        Returns False, and writes nothing, where only_if_absent and the key is taken. Raises NoSpace.
        """

    def swap(self, key: str, expected: str | None, new: bytes, deadline: Deadline) -> str | None:
        """Replace the object whose etag is expected (None: that is not there) and return the new etag.

        Raises SwapLost where it is another one now, NoSpace.
        """

    def list(self, prefix: str, deadline: Deadline) -> Iterator[ObjectInfo]:
        """Every object whose key begins with prefix. Only gc calls this; nothing that reads a model does."""

    def delete(self, key: str, deadline: Deadline) -> None:
        """Remove an object; one that is not there is as good as removed."""

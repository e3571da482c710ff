"""What a store of objects is: a flat map from key to bytes, somewhere.

Rule: a store reports what it met by the errors named here and decides nothing; trying again, choosing
another replica and giving up belong to its callers. Keys are those of repository/keys.py.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from types import TracebackType
from typing import Protocol

from modelfs.units import Deadline

Buffer = bytes | bytearray | memoryview


@dataclass(frozen=True, slots=True)
class ObjectInfo:
    """modified: seconds since the epoch, 0.0 where the store does not tell."""

    key: str
    size: int
    modified: float = 0.0


@dataclass(frozen=True, slots=True)
class Fetched:
    """A small object, whole. etag: what `get` and `swap` take to name this state of it, or None."""

    data: bytes
    etag: str | None


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
        """A small object; None where its etag is still `etag`.

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

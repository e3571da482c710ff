"""A store that answers nothing: a repository over it has what its cache has, and not a byte more.

Rule: every call raises Unavailable at once.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NoReturn

from modelfs.errors import Unavailable
from modelfs.stores.store import Buffer, Fetched, ObjectInfo, RangeStream
from modelfs.units import Deadline


class SilentStore:
    """Made to be read through an ObjectCache."""

    def __init__(self, url: str) -> None:
        self.url = url

    def get(self, key: str, deadline: Deadline, *, limit: int, etag: str | None = None,
            fresh: bool = False) -> Fetched | None:
        self._refuse(key)

    def open_range(self, key: str, offset: int, length: int, deadline: Deadline) -> RangeStream:
        self._refuse(key)

    def stat(self, key: str, deadline: Deadline) -> ObjectInfo:
        self._refuse(key)

    def put(self, key: str, data: Buffer, deadline: Deadline, *, only_if_absent: bool = False) -> bool:
        self._refuse(key)

    def swap(self, key: str, expected: str | None, new: bytes, deadline: Deadline) -> str | None:
        self._refuse(key)

    def list(self, prefix: str, deadline: Deadline) -> Iterator[ObjectInfo]:
        self._refuse(prefix)

    def delete(self, key: str, deadline: Deadline) -> None:
        self._refuse(key)

    def _refuse(self, key: str) -> NoReturn:
        raise Unavailable(f"{key} is not in the cache", where=self.url, why="the store is not asked")

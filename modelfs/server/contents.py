"""What a server shows and takes: a repository's directory here, or a site's cache of a repository elsewhere (site.py).

Rule: a key has the form of an object's before it comes here; what cannot be had is said by an exception, and nothing
here waits on the event loop's thread.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import Protocol, TypeVar

from aiohttp import web

from modelfs import __version__
from modelfs.server.audit import Audits
from modelfs.server.objects import OpenObject, open_object
from modelfs.server.uploads import Uploads
from modelfs.stores.file_store import FileStore

T = TypeVar("T")


class Contents(Protocol):
    """about: a line for who looks with a browser. audits: of what lies here, if anything does."""

    @property
    def about(self) -> str: ...

    @property
    def audits(self) -> Audits | None: ...

    async def open(self, key: str, *, head: bool, fresh: bool) -> OpenObject:
        """head: only what is told about the object. fresh: past caches (the request's Cache-Control: no-cache).

        Raises ObjectMissing and other ModelfsErrors; OSError where a disk of ours fails.
        """

    async def put(self, request: web.Request, key: str) -> tuple[bool, str]:
        """Whether the object is new, and its etag without quotes. Raises Refused."""

    def close(self) -> None: ...


class Directory:
    """Contents of a repository's directory; it may come into being later."""

    about = f"A repository of modelfs {__version__}: `modelfs ls` with this URL shows what is in it."

    def __init__(self, root: Path) -> None:
        self.root = root
        self.audits = Audits(root)
        self._uploads = Uploads(FileStore(root))

    async def open(self, key: str, *, head: bool, fresh: bool) -> OpenObject:
        return await in_pool(lambda: open_object(self.root, key))

    async def put(self, request: web.Request, key: str) -> tuple[bool, str]:
        return await self._uploads.put(request, key)

    def close(self) -> None:
        self._uploads.close()


async def in_pool(call: Callable[[], T]) -> T:
    """By the few threads of the event loop's own: for what asks a disk here, and no network."""
    return await asyncio.get_running_loop().run_in_executor(None, call)

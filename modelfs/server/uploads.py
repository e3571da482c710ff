"""PUT: an object comes in pieces into a temporary file, is checked, and only then gets its name.

Rule: nothing is visible before its digest (or its form, where no digest names it) was checked; a body that is too
large, too slow or broken off leaves nothing, and holds up nobody else.
"""

from __future__ import annotations

import asyncio
import os
import stat
from collections.abc import AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import TypeVar

from aiohttp import ClientPayloadError, web
from aiohttp.http_exceptions import HttpProcessingError
from blake3 import blake3

from modelfs.errors import Forbidden, IntegrityError, ModelfsError, NoSpace, ObjectMissing, SwapLost
from modelfs.logs import log_event, logger_for
from modelfs.repository import keys
from modelfs.repository.pack import MAX_OBJECT_BYTES
from modelfs.server import checks
from modelfs.server.objects import is_named_by_digest
from modelfs.server.pace import Pace
from modelfs.stores.file_store import FileStore, Incoming
from modelfs.units import Deadline, MiB

_COMMIT_S = 5.0  # for the lock that all writers of a directory share; who waits longer is told to come again
_DRAIN_BYTES = MAX_OBJECT_BYTES
_BROKEN = (ConnectionError, ClientPayloadError, HttpProcessingError)
_log = logger_for(__name__)
T = TypeVar("T")


class Refused(Exception):
    """An upload that is not taken. line: for the client; headers: of the answer."""

    def __init__(self, status: int, line: str, *, headers: dict[str, str] | None = None) -> None:
        super().__init__(line)
        self.status, self.line, self.headers = status, line, headers or {}


class Uploads:
    """Takes uploads into one directory. Pieces are hashed and written by `writers`; what needs the lock, or an object
    as a whole in memory, is done by `committers`, so few that 64 catalogs at once fit in memory."""

    def __init__(self, store: FileStore) -> None:
        self._store = store
        self._writers = ThreadPoolExecutor(8, thread_name_prefix="upload")
        self._committers = ThreadPoolExecutor(2, thread_name_prefix="commit")

    def close(self) -> None:
        for pool in (self._writers, self._committers):
            pool.shutdown(wait=False, cancel_futures=True)

    async def put(self, request: web.Request, key: str) -> tuple[bool, str]:
        """Take the object that request brings. Returns whether it is new, and its etag without quotes.

        Raises Refused.
        """
        _check_request(request, checks.largest(key))
        try:
            if await self._by(self._writers, lambda: _leads_elsewhere(self._store, key)):
                raise Refused(403, "something else stands in the object's place")
            if is_named_by_digest(key):
                return await self._put_named(request, key)
            return await self._put_checked(request, key)
        except SwapLost:
            raise Refused(412, "another one stands here now") from None
        except NoSpace:
            raise Refused(507, "no space is left for the object") from None
        except (IntegrityError, Forbidden) as error:
            log_event(_log, "warning", "upload.refused", object=key, why=str(error))
            raise Refused(403, "the object cannot be written") from None
        except ModelfsError as error:
            log_event(_log, "warning", "upload.failed", object=key, why=str(error))
            raise Refused(503, "the object cannot be written now", headers={"Retry-After": "1"}) from None

    async def _put_named(self, request: web.Request, key: str) -> tuple[bool, str]:
        """One that is here whole is not written again; one that is damaged is."""
        name = key.rpartition("/")[2]
        if await self._by(self._writers, lambda: _holds(self._store, key, name)):
            await self._by(self._writers, lambda: self._store.touch(key))
            if "If-None-Match" in request.headers:
                raise Refused(412, "the object is here already")
            await drain(request)
            return False, name
        incoming = await self._by(self._writers, lambda: self._store.receive(key))
        try:
            await self._fill(incoming, request, checks.largest(key))
            if incoming.digest() != name:
                raise Refused(422, "the bytes do not have the digest that the name says")
            await self._by(self._writers, incoming.keep)
        finally:
            incoming.discard()
        return True, name

    async def _put_checked(self, request: web.Request, key: str) -> tuple[bool, str]:
        expected = _condition(request, key)
        incoming = await self._by(self._writers, lambda: self._store.receive(key))
        try:
            await self._fill(incoming, request, checks.largest(key))
            etag = incoming.digest()
            await self._by(self._committers, lambda: _commit(self._store, key, incoming, expected))
        finally:
            incoming.discard()
        if key == keys.CATALOG:
            log_event(_log, "info", "catalog.replaced", peer=request.remote or "", etag=etag)
        return expected is None, etag

    async def _fill(self, incoming: Incoming, request: web.Request, limit: int) -> None:
        async for piece in pieces(request, limit):
            await self._by(self._writers, partial(incoming.write, piece))
        if request.content_length not in (None, incoming.size):
            raise Refused(400, "the upload broke off")

    async def _by(self, pool: ThreadPoolExecutor, call: Callable[[], T]) -> T:
        return await asyncio.get_running_loop().run_in_executor(pool, call)


async def pieces(request: web.Request, limit: int) -> AsyncIterator[bytes]:
    """The body as it comes. Raises Refused past limit bytes, where it breaks off, and where it comes too slowly."""
    if _waits_for_continue(request):
        await request.writer.write(b"HTTP/1.1 100 Continue\r\n\r\n")
        request.writer.output_size = 0
    pace, size = Pace(), 0
    while True:
        try:
            async with pace.waiting():
                piece = await request.content.readany()
        except TimeoutError:
            raise Refused(408, "the body comes too slowly") from None
        except _BROKEN as error:
            raise Refused(400, "the upload broke off") from error
        if not piece:
            break
        pace.moved(len(piece))
        size += len(piece)
        if size > limit:
            raise Refused(413, f"the object has more than {limit} bytes")
        yield piece


async def drain(request: web.Request) -> bool:
    """Read what the client sends in vain, so that it reads our answer; False where it is told by a closed connection
    instead: it waits for our word before it sends, or would send too much."""
    if not request.body_exists:
        return True
    if _waits_for_continue(request) or (request.content_length or 0) > _DRAIN_BYTES:
        return False
    try:
        async for _ in pieces(request, _DRAIN_BYTES):
            pass
    except Refused:
        return False
    return True


def _waits_for_continue(request: web.Request) -> bool:
    """Whether the client has sent no byte of the body yet, as far as we know."""
    return (request.headers.get("Expect", "").lower() == "100-continue" and not request.content.total_bytes
            and request.writer.output_size == 0 and not request.content.is_eof())


def _check_request(request: web.Request, limit: int) -> None:
    if request.headers.get("Content-Encoding", "identity").lower() != "identity":
        raise Refused(415, "objects are sent as they are, without a Content-Encoding")
    if "Content-Range" in request.headers:
        raise Refused(400, "objects are sent whole")
    if (request.content_length or 0) > limit:
        raise Refused(413, f"the object has more than {limit} bytes")


def _condition(request: web.Request, key: str) -> str | None:
    """The etag of what is to be replaced, None where nothing is to be there. Raises Refused without a condition: one
    who does not know what he replaces would undo what others did."""
    if request.headers.get("If-None-Match", "").strip() == "*":
        return None
    if "If-Match" not in request.headers or key == keys.INFO:
        raise Refused(428, "If-None-Match: * is needed" if key == keys.INFO else
                      "If-Match with the object's ETag, or If-None-Match: *, is needed")
    etag = checks.etag_in(request.headers["If-Match"])
    if etag is None:
        raise Refused(412, "another one stands here now")
    return etag


def _commit(store: FileStore, key: str, incoming: Incoming, expected: str | None) -> None:
    """Check what came, and put it in its place if what stands there is what was expected."""
    deadline, content = Deadline(_COMMIT_S), incoming.content()
    try:
        if key == keys.CATALOG:
            checks.check_catalog(store, bytes(content), expected, deadline)
        elif key == keys.INFO:
            checks.check_info(bytes(content))
        else:
            checks.check_layout(key, content)
    except IntegrityError as error:
        raise Refused(400, str(error)) from error
    if expected is None and key != keys.CATALOG:
        if not store.put(key, content, deadline, only_if_absent=True):
            raise SwapLost("an object is here already", where=key)
    else:
        store.swap(key, expected, bytes(content), deadline)


def _holds(store: FileStore, key: str, name: str) -> bool:
    """Whether the object is here with the bytes that its name says."""
    hasher = blake3()
    try:
        size = store.stat(key, Deadline.never()).size
        if not size:
            return hasher.hexdigest() == name
        with store.open_range(key, 0, size, Deadline.never()) as stream:
            buffer = memoryview(bytearray(min(size, MiB)))
            while size:
                piece = buffer[:min(size, MiB)]
                stream.readinto(piece)
                hasher.update(piece)
                size -= len(piece)
    except ObjectMissing:
        return False
    return hasher.hexdigest() == name


def _leads_elsewhere(store: FileStore, key: str) -> bool:
    """A symbolic link on the way below the root could have an upload written outside of it."""
    path = os.fspath(store.root)
    for part in key.split("/"):
        path = os.path.join(path, part)
        try:
            if stat.S_ISLNK(os.lstat(path).st_mode):
                return True
        except OSError:
            return False
    return False

"""The HTTP server over a repository's directory: objects by key, whole or in ranges, straight from the page cache.

Rule: whatever a client sends, it gets an object that the repository names or a refusal, and the server goes on. Who may
ask is decided before anything else is looked at (access.py); what is uploaded is checked before it shows (uploads.py).
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from aiohttp import web

from modelfs import __version__
from modelfs.errors import ObjectMissing
from modelfs.logs import log_event, logger_for
from modelfs.server.access import READING, Access
from modelfs.server.conditions import Span, Unsatisfiable, matches, requested_span
from modelfs.server.downloads import send_file
from modelfs.server.objects import OpenObject, is_served, open_object
from modelfs.server.uploads import Refused, Uploads, drain
from modelfs.stores.file_store import FileStore


@dataclass(frozen=True, slots=True)
class _Sending:
    """Who is sending an answer, or receiving an upload; only the event loop's thread touches it."""

    tasks: set[asyncio.Task[object]] = field(default_factory=set)


_ROOT: web.AppKey[Path] = web.AppKey("root", Path)
_ACCESS: web.AppKey[Access] = web.AppKey("access", Access)
_UPLOADS: web.AppKey[Uploads] = web.AppKey("uploads", Uploads)
_SENDING: web.AppKey[_Sending] = web.AppKey("sending", _Sending)
_NAME = f"modelfs/{__version__}"
_log = logger_for(__name__)


def build_app(root: Path, access: Access) -> web.Application:
    """root: the repository's directory; it may come into being later."""
    app = web.Application()
    app[_ROOT] = root
    app[_ACCESS] = access
    app[_UPLOADS] = Uploads(FileStore(root))
    app[_SENDING] = _Sending()
    app.router.add_route("*", "/{anything:.*}", _answer, expect_handler=_say_nothing_yet)
    app.on_cleanup.append(_close)
    return app


def cut_off(app: web.Application) -> None:
    """End what is still being sent and received: clients see a connection that broke, never a short object."""
    for task in tuple(app[_SENDING].tasks):
        task.cancel()


async def _close(app: web.Application) -> None:
    app[_UPLOADS].close()


async def _say_nothing_yet(request: web.Request) -> None:
    """100 Continue is said where the body is read: who is refused need not send it."""


async def _answer(request: web.Request) -> web.StreamResponse:
    refusal = request.app[_ACCESS].refusal(request.method, request.headers.get("Authorization"),
                                           "Origin" in request.headers, request.headers.get("Host", ""))
    if refusal is not None:
        log_event(_log, "info", "request.refused", key=f"{request.remote} {refusal.line}", peer=request.remote or "",
                  method=request.method, path=request.path, why=refusal.line)
        return await _refuse(request, refusal.status, refusal.line,
                             **({"WWW-Authenticate": "Bearer"} if refusal.status == 401 else {}))
    key = _key_of(request)
    if request.method == "PUT":
        return await _put(request, key)
    if request.method not in READING:
        return await _refuse(request, 405, "only GET, HEAD and PUT are known here", Allow="GET, HEAD, PUT")
    if key == "":
        return _text(200, f"A repository of modelfs {__version__}: `modelfs ls` with this URL shows what is in it.")
    if not is_served(key):
        return _text(404, "no such object")
    return await _get(request, key)


async def _put(request: web.Request, key: str) -> web.StreamResponse:
    if not is_served(key) or key.startswith("keys/"):
        return await _refuse(request, 404, "no object has this name")
    with _sending(request):
        try:
            new, etag = await request.app[_UPLOADS].put(request, key)
        except Refused as refused:
            return await _refuse(request, refused.status, refused.line, **refused.headers)
    return web.Response(status=201 if new else 200,
                        headers={"ETag": f'"{etag}"', "Cache-Control": "no-store", "Server": _NAME})


async def _refuse(request: web.Request, status: int, line: str, **headers: str) -> web.StreamResponse:
    """Read what the client is still sending, so that it comes to read the answer."""
    with _sending(request):
        answer = _text(status, line, **headers)
        if not await drain(request):
            answer.force_close()
    return answer


@contextmanager
def _sending(request: web.Request) -> Iterator[None]:
    task = asyncio.current_task()
    assert task is not None
    tasks = request.app[_SENDING].tasks
    tasks.add(task)
    try:
        yield
    finally:
        tasks.discard(task)


async def _get(request: web.Request, key: str) -> web.StreamResponse:
    loop = asyncio.get_running_loop()
    try:
        found = await loop.run_in_executor(None, open_object, request.app[_ROOT], key)
    except ObjectMissing:
        return _text(404, "no such object")
    except OSError as error:
        log_event(_log, "error", "object.unreadable", key=key, object=key, why=error.strerror or str(error))
        return _text(403 if isinstance(error, PermissionError) else 500, "the object cannot be read")
    try:
        return await _send(request, found)
    finally:
        os.close(found.fd)


def _key_of(request: web.Request) -> str:
    """The path as it was sent: a key has nothing to decode, so whatever is encoded or doubled is no key."""
    target = request.raw_path.partition("?")[0]
    if target.startswith(("http://", "https://")):  # as a proxy may write it
        target = "/" + target.partition("://")[2].partition("/")[2]
    return target[1:] if target.startswith("/") else "\0"


async def _send(request: web.Request, found: OpenObject) -> web.StreamResponse:
    headers = {"ETag": found.etag, "Cache-Control": found.cache_control, "Accept-Ranges": "bytes",
               "Content-Type": "application/octet-stream", "Server": _NAME}
    if matches(request.headers.get("If-None-Match"), found.etag):
        return web.Response(status=304, headers=headers)
    try:
        span = requested_span(request.headers.get("Range"), request.headers.get("If-Range"), found)
    except Unsatisfiable:
        return _text(416, "the object does not have this range", **{"Content-Range": f"bytes */{found.size}"})
    response = web.StreamResponse(status=206 if span else 200, headers=headers)
    if span:
        response.headers["Content-Range"] = f"bytes {span.first}-{span.last}/{found.size}"
    else:
        span = Span(0, found.size - 1)
    response.content_length = span.length
    await response.prepare(request)
    if request.method == "GET" and span.length:
        try:
            with _sending(request):
                await send_file(request, found.fd, span)
        except ConnectionError as error:
            log_event(_log, "debug", "answer.broken", peer=request.remote or "", path=request.path, why=str(error))
            return response
    await response.write_eof()
    return response


def _text(status: int, line: str, **headers: str) -> web.Response:
    return web.Response(status=status, text=line + "\n",
                        headers={"Cache-Control": "no-store", "Server": _NAME, **headers})

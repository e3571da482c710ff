"""The HTTP server over a repository's directory: objects by key, whole or in ranges, straight from the page cache.

Rule: whatever a client sends, it gets an object that the repository names or a refusal, and the server goes on. It only
reads so far: every other method is refused.
"""

from __future__ import annotations

import asyncio
import logging
import os
from dataclasses import dataclass, field
from pathlib import Path

from aiohttp import web

from modelfs import __version__
from modelfs.errors import ObjectMissing
from modelfs.server.conditions import Span, Unsatisfiable, matches, requested_span
from modelfs.server.objects import OpenObject, is_served, open_object


@dataclass(frozen=True, slots=True)
class _Sending:
    """Who is sending an answer; only the event loop's thread touches it."""

    tasks: set[asyncio.Task[object]] = field(default_factory=set)


_ROOT: web.AppKey[Path] = web.AppKey("root", Path)
_SENDING: web.AppKey[_Sending] = web.AppKey("sending", _Sending)
_NAME = f"modelfs/{__version__}"
_WRITING = frozenset({"PUT", "POST", "PATCH", "DELETE"})
_log = logging.getLogger("modelfs.server")


def build_app(root: Path) -> web.Application:
    """root: the repository's directory; it may come into being later."""
    app = web.Application()
    app[_ROOT] = root
    app[_SENDING] = _Sending()
    app.router.add_route("*", "/{anything:.*}", _answer)
    return app


def cut_off(app: web.Application) -> None:
    """End the answers that are still being sent: their clients see a connection that broke, never a short object."""
    for task in tuple(app[_SENDING].tasks):
        task.cancel()


async def _answer(request: web.Request) -> web.StreamResponse:
    if request.method in _WRITING:
        return _text(403, "this server only reads")
    if request.method not in ("GET", "HEAD"):
        return _text(405, "only GET and HEAD are known here", Allow="GET, HEAD")
    key = _key_of(request)
    if key == "":
        return _text(200, f"A repository of modelfs {__version__}: `modelfs ls` with this URL shows what is in it.")
    if not is_served(key):
        return _text(404, "no such object")
    loop = asyncio.get_running_loop()
    try:
        found = await loop.run_in_executor(None, open_object, request.app[_ROOT], key)
    except ObjectMissing:
        return _text(404, "no such object")
    except OSError as error:
        _log.error("an object cannot be read, %s: %s", key, error.strerror)
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
            await _sendfile(request, found.fd, span)
        except ConnectionError as error:
            _log.debug("an answer was not sent to its end, %s: %s", request.path, error)
            return response
    await response.write_eof()
    return response


async def _sendfile(request: web.Request, fd: int, span: Span) -> None:
    """Raises ConnectionError where the client has gone, or the file ended. Unless all of it was sent the connection
    is ended: what Content-Length promised does not come, so nothing else may follow."""
    transport = request.transport
    if transport is None or transport.is_closing():
        raise ConnectionResetError("the client has gone")
    task = asyncio.current_task()
    assert task is not None
    request.app[_SENDING].tasks.add(task)
    sent = 0
    try:
        with open(fd, "rb", buffering=0, closefd=False) as file:
            sent = await asyncio.get_running_loop().sendfile(transport, file, span.first, span.length)
        if sent != span.length:
            raise ConnectionAbortedError("the object became shorter")
    except RuntimeError as error:  # asyncio's, of a transport that closes meanwhile
        raise ConnectionResetError(str(error)) from error
    finally:
        request.app[_SENDING].tasks.discard(task)
        if sent != span.length:
            transport.abort()


def _text(status: int, line: str, **headers: str) -> web.Response:
    return web.Response(status=status, text=line + "\n",
                        headers={"Cache-Control": "no-store", "Server": _NAME, **headers})

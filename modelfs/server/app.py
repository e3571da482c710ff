"""The HTTP server over what contents.py names: objects by key, whole or in ranges, straight from the page cache.

Rule: whatever a client sends, it gets an object that the repository names or a refusal, and the server goes on. Who may
ask is decided before anything else is looked at (access.py); what is uploaded is checked before it shows (uploads.py).
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from aiohttp import web

from modelfs import __version__
from modelfs.errors import Forbidden, IntegrityError, ModelfsError, ObjectMissing, Unavailable
from modelfs.logs import log_event, logger_for
from modelfs.maintenance.auditing import Question
from modelfs.server.access import READING, Access
from modelfs.server.audit import BUSY_S, Busy
from modelfs.server.conditions import Span, Unsatisfiable, matches, past_caches, requested_span
from modelfs.server.contents import Contents
from modelfs.server.downloads import send_span
from modelfs.server.interim import told_to_wait
from modelfs.server.objects import OpenObject, is_served
from modelfs.server.uploads import Refused, drain


@dataclass(frozen=True, slots=True)
class _Sending:
    """Who is sending an answer, or receiving an upload; only the event loop's thread touches it."""

    tasks: set[asyncio.Task[object]] = field(default_factory=set)


_CONTENTS: web.AppKey[Contents] = web.AppKey("contents")
_ACCESS: web.AppKey[Access] = web.AppKey("access", Access)
_SENDING: web.AppKey[_Sending] = web.AppKey("sending", _Sending)
_NAME = f"modelfs/{__version__}"
_log = logger_for(__name__)


def build_app(contents: Contents, access: Access) -> web.Application:
    """contents: closed with the application."""
    app = web.Application()
    app[_CONTENTS] = contents
    app[_ACCESS] = access
    app[_SENDING] = _Sending()
    app.router.add_route("*", "/{anything:.*}", _answer, expect_handler=_say_nothing_yet)
    app.on_cleanup.append(_close)
    return app


def cut_off(app: web.Application) -> None:
    """End what is still being sent and received: clients see a connection that broke, never a short object."""
    for task in tuple(app[_SENDING].tasks):
        task.cancel()


async def _close(app: web.Application) -> None:
    app[_CONTENTS].close()


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
        return _text(200, request.app[_CONTENTS].about)
    if request.method == "GET" and (question := Question.parse(key)) is not None:
        return await _audit(request, question)
    if not is_served(key):
        return _text(404, "no such object")
    return await _get(request, key)


async def _put(request: web.Request, key: str) -> web.StreamResponse:
    if not is_served(key) or key.startswith("keys/"):
        return await _refuse(request, 404, "no object has this name")
    with _sending(request):
        try:
            new, etag = await request.app[_CONTENTS].put(request, key)
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


async def _audit(request: web.Request, question: Question) -> web.StreamResponse:
    audits = request.app[_CONTENTS].audits
    if audits is None:
        return _text(404, "no such object")
    response = web.StreamResponse(headers={"Cache-Control": "no-store", "Content-Type": "application/octet-stream",
                                           "Server": _NAME, "X-Accel-Buffering": "no"})  # nginx keeps nothing back
    try:
        with _sending(request):
            await audits.answer(request, question, response)
    except Busy:
        return _text(503, "another audit is under way", **{"Retry-After": str(BUSY_S)})
    except ConnectionError as error:
        log_event(_log, "debug", "answer.broken", peer=request.remote or "", path=request.path, why=str(error))
    return response


async def _get(request: web.Request, key: str) -> web.StreamResponse:
    try:
        with _sending(request), told_to_wait(request):
            found = await request.app[_CONTENTS].open(key, head=request.method == "HEAD",
                                                      fresh=past_caches(request.headers))
    except (ModelfsError, OSError) as error:
        return _failed(key, error)
    try:
        return await _send(request, found)
    finally:
        found.close()


def _failed(key: str, error: ModelfsError | OSError) -> web.Response:
    """Only a site has more to tell than that an object is missing or unreadable: what its upstream does is no fault of
    the client, so it is never told that by 403."""
    if isinstance(error, ObjectMissing):
        return _text(404, "no such object")
    if isinstance(error, OSError):
        log_event(_log, "error", "object.unreadable", key=key, object=key, why=error.strerror or str(error))
        return _text(403 if isinstance(error, PermissionError) else 500, "the object cannot be read")
    log_event(_log, "warning", "upstream.failed", key=f"{type(error).__name__} {key}", object=key, why=str(error))
    if isinstance(error, Unavailable):
        return _text(503, "upstream does not answer", **{"Retry-After": str(math.ceil(error.retry_after_s or 1.0))})
    if isinstance(error, IntegrityError):
        return _text(502, "what upstream has is not what its name says")
    return _text(502, "upstream refuses" if isinstance(error, Forbidden) else "the object cannot be had")


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
    try:
        await response.prepare(request)
        if request.method == "GET" and span.length:
            with _sending(request):
                await send_span(request, response, found.body, span)
        await response.write_eof()
    except ConnectionError as error:  # clients leave: a range that another mirror gave sooner is not read to its end
        log_event(_log, "debug", "answer.broken", peer=request.remote or "", path=request.path, why=str(error))
    return response


def _text(status: int, line: str, **headers: str) -> web.Response:
    return web.Response(status=status, text=line + "\n",
                        headers={"Cache-Control": "no-store", "Server": _NAME, **headers})

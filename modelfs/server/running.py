"""A server's life: it listens, says where, answers until it is told to end, and lets running answers finish.

Rule: SIGTERM and SIGINT end it in order, within a few seconds; nothing that a client does ends it.
"""

from __future__ import annotations

import asyncio
import errno
import logging
import resource
import signal
import socket
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from aiohttp import web
from aiohttp.http_exceptions import HttpProcessingError

from modelfs.errors import BadInput, Conflict, Forbidden, ModelfsError
from modelfs.logs import log_event, logger_for
from modelfs.server.access import Access, check_exposure
from modelfs.server.app import build_app, cut_off
from modelfs.server.contents import Contents, Directory
from modelfs.stores.file_store import FileStore
from modelfs.units import KiB

FINISH_S = 5.0
STALE_S, SWEEP_EVERY_S = 3600.0, 900.0
SILENT_S = 120.0  # between requests; clients connect anew
_log = logger_for(__name__)


def run_server(root: Path, host: str, port: int, on_ready: Callable[[str], None],
               access: Access | None = None) -> None:
    """Serve a repository's directory, as `serve` does.

    access: by default whoever is on this machine may read and write.
    """
    access = access or Access()
    check_exposure(host, access)
    if access.may_ever_write:
        # A thread of its own that nobody waits for: in a large repository one look at everything takes long.
        threading.Thread(target=_sweep, args=(FileStore(root),), name="sweep", daemon=True).start()
    serve(Directory(root), host, port, on_ready, access)


def serve(contents: Contents, host: str, port: int, on_ready: Callable[[str], None], access: Access) -> None:
    """Until SIGTERM or SIGINT; contents are closed then. Call it in the main thread: signals arrive there.

    port: 0 takes a free one. on_ready: called once with the URL, when the server answers.
    Raises Conflict where the port is taken, Forbidden where it may not be had, BadInput of a bad host, and of one that
    others can reach without a token.
    """
    check_exposure(host, access)
    allow_many_files()
    asyncio.run(_serve(contents, host, port, on_ready, replace(access, name=host)))


async def _serve(contents: Contents, host: str, port: int, on_ready: Callable[[str], None], access: Access) -> None:
    ended = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, ended.set)
    app = build_app(contents, access)
    runner = web.AppRunner(app, access_log=None, shutdown_timeout=FINISH_S + 1, lingering_time=2.0,
                           read_bufsize=256 * KiB, auto_decompress=False, logger=_protocol_logger())
    await runner.setup()
    try:
        site = web.TCPSite(runner, host, port, backlog=1024)
        try:
            await site.start()
        except (OSError, OverflowError) as error:
            raise _not_listening(error, host, port) from error
        on_ready(_url(runner.addresses[0]))
        silent = asyncio.create_task(_end_silent(runner))
        await ended.wait()
        silent.cancel()
        # aiohttp would wait shutdown_timeout for answers to end, and once more after cancelling them.
        loop.call_later(FINISH_S, cut_off, app)
    finally:
        await runner.cleanup()


async def _end_silent(runner: web.AppRunner) -> None:
    """Cut connections whose next request does not come to the end of its head: aiohttp waits for it for ever."""
    loop, since = asyncio.get_running_loop(), dict[tuple[object, int], float]()
    while runner.server is not None:
        now, seen = loop.time(), dict[tuple[object, int], float]()
        for connection in runner.server.connections:
            if connection._current_request is None:
                key = connection, connection._request_count
                seen[key] = since.get(key, now)
                if now - seen[key] > SILENT_S and connection.transport is not None:
                    connection.transport.abort()
        since = seen
        await asyncio.sleep(SILENT_S / 4)


def _protocol_logger() -> logging.Logger:
    """For what aiohttp has to say. Of a malformed request it quotes the line at fault, which may well be the one with
    the token: of those only the kind is logged."""
    logger = logging.getLogger("modelfs.server.http")
    logger.addFilter(_without_quotes)
    return logger


def _without_quotes(record: logging.LogRecord) -> bool:
    error = record.exc_info[1] if record.exc_info else None
    if not isinstance(error, HttpProcessingError):
        return True
    peer = record.args[0] if isinstance(record.args, tuple) and record.args else ""
    log_event(_log, "info", "request.malformed", peer=peer, why=type(error).__name__)
    return False


def _sweep(store: FileStore) -> None:
    """Remove what uploads of killed servers left, now and every while: one that goes on is written to at least every
    pace.GRACE_S, so an hour is far more than any of them rests."""
    while True:
        try:
            freed = store.sweep(STALE_S)
            if freed:
                log_event(_log, "info", "uploads.swept", directory=store.root, freed_bytes=freed)
        except ModelfsError as error:
            log_event(_log, "warning", "uploads.not_swept", why=str(error))
        time.sleep(SWEEP_EVERY_S)


def allow_many_files() -> None:
    """Each client holds a descriptor, and each upload one more; the usual soft limit of 1024 is for select(2)."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    most = 65536 if hard == resource.RLIM_INFINITY else min(hard, 65536)
    if soft != resource.RLIM_INFINITY and soft < most:
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, hard))


def _not_listening(error: OSError | OverflowError, host: str, port: int) -> ModelfsError:
    where, why = f"{host}:{port}", getattr(error, "strerror", None) or str(error)
    if isinstance(error, OverflowError | socket.gaierror) or error.errno == errno.EADDRNOTAVAIL:
        return BadInput("cannot listen", where=where, why=why)
    if error.errno == errno.EADDRINUSE:
        return Conflict("cannot listen", where=where, why="the port is taken", advice="Choose another --port.")
    if error.errno in (errno.EACCES, errno.EPERM):
        return Forbidden("cannot listen", where=where, why=why)
    return ModelfsError("cannot listen", where=where, why=why)


def _url(address: tuple[str, int] | str) -> str:
    host, port = address[0], address[1]
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"

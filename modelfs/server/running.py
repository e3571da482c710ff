"""A server's life: it listens, says where, answers until it is told to end, and lets running answers finish.

Rule: SIGTERM and SIGINT end it in order, within a few seconds; nothing that a client does ends it.
"""

from __future__ import annotations

import asyncio
import errno
import logging
import signal
import socket
from collections.abc import Callable
from pathlib import Path

from aiohttp import web

from modelfs.errors import BadInput, Conflict, Forbidden, ModelfsError
from modelfs.server.app import build_app, cut_off

FINISH_S = 5.0


def run_server(root: Path, host: str, port: int, on_ready: Callable[[str], None]) -> None:
    """Serve until SIGTERM or SIGINT. Call it in the main thread: signals arrive there.

    port: 0 takes a free one. on_ready: called once with the URL, when the server answers.
    Raises Conflict where the port is taken, Forbidden where it may not be had, BadInput of a bad host.
    """
    asyncio.run(_serve(root, host, port, on_ready))


async def _serve(root: Path, host: str, port: int, on_ready: Callable[[str], None]) -> None:
    ended = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, ended.set)
    app = build_app(root)
    runner = web.AppRunner(app, access_log=None, shutdown_timeout=FINISH_S + 1,
                           logger=logging.getLogger("modelfs.server"))
    await runner.setup()
    try:
        site = web.TCPSite(runner, host, port, backlog=1024)
        try:
            await site.start()
        except (OSError, OverflowError) as error:
            raise _not_listening(error, host, port) from error
        on_ready(_url(runner.addresses[0]))
        await ended.wait()
        # aiohttp would wait shutdown_timeout for answers to end, and once more after cancelling them.
        loop.call_later(FINISH_S, cut_off, app)
    finally:
        await runner.cleanup()


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

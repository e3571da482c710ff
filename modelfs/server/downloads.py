"""GET: a span of an object leaves in pieces, of a file by sendfile, and who does not read is not waited for for ever.

Rule: a client gets all of the span, or a connection that broke; one that is silent, or too slow, is cut off.
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from io import FileIO

from aiohttp import web

from modelfs.logs import log_event, logger_for
from modelfs.server import pace
from modelfs.server.conditions import Span
from modelfs.units import KiB, MiB

_PIECE = 4 * MiB
"""asyncio tells nothing of a sendfile before its end. The server needs as much CPU time with 1 MiB as with 64."""
_MEMORY_PIECE = 256 * KiB  # asyncio copies what the socket does not take at once
_log = logger_for(__name__)


async def send_span(request: web.Request, response: web.StreamResponse, body: int | memoryview, span: Span) -> None:
    """body: a descriptor, or the object's bytes. Raises ConnectionError where the client has gone or is too slow, or
    the file ended. Unless all of it was sent the connection is ended: what Content-Length promised does not come, so
    nothing else may follow."""
    transport = request.transport
    if transport is None or transport.is_closing():
        raise ConnectionResetError("the client has gone")
    end_where_nothing_is_read(transport)
    speed, sent = pace.Pace(), 0
    try:
        with _file_of(body) as file:
            while sent < span.length:
                size = min(_PIECE if file else _MEMORY_PIECE, span.length - sent)
                async with speed.waiting(size):
                    if file:
                        moved = await asyncio.get_running_loop().sendfile(transport, file, span.first + sent, size)
                    else:
                        assert isinstance(body, memoryview)
                        await response.write(body[span.first + sent:span.first + sent + size])
                        moved = size
                speed.moved(moved)
                sent += moved
                if moved < size:
                    raise ConnectionAbortedError("the object became shorter")
    except TimeoutError as error:  # ours, and the kernel's
        log_event(_log, "info", "client.slow", key=request.remote, peer=request.remote or "", path=request.path,
                  sent_bytes=sent)
        raise ConnectionAbortedError("the client is too slow") from error
    except RuntimeError as error:  # asyncio's, of a transport that closes meanwhile
        raise ConnectionResetError(str(error)) from error
    finally:
        if sent < span.length:
            transport.abort()


@contextmanager
def _file_of(body: int | memoryview) -> Iterator[FileIO | None]:
    if isinstance(body, memoryview):
        yield None
        return
    with FileIO(body, "rb", closefd=False) as file:
        yield file


def end_where_nothing_is_read(transport: asyncio.BaseTransport) -> None:
    """A piece at the slowest rate takes half an hour, and a client may be silent for GRACE_S: the kernel looks at that,
    where it can (Linux): it gives up a connection on which what was sent, or waits to be, makes no progress."""
    connection = transport.get_extra_info("socket")
    if connection is not None and hasattr(socket, "TCP_USER_TIMEOUT"):
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, int(pace.GRACE_S * 1000))

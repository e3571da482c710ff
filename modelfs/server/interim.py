"""What a client hears while an object is on its way to us: that it is.

Rule: nobody is told who might take it for the answer.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager

from aiohttp import HttpVersion11, web

_EVERY_S = 1.0
_WAIT = b"HTTP/1.1 100 Continue\r\n\r\n"


@contextmanager
def told_to_wait(request: web.Request) -> Iterator[None]:
    """Around the wait for an object that is not sent yet. A store that is silent for 4 s is left for the next mirror,
    and a pack over a slow uplink takes longer: without a word every client of a site would ask the origin itself.

    RFC 9110, 15.2: a client reads any number of 1xx, and discards a 100 that it did not ask for. Not every proxy does,
    so it is our own clients that are told; a proxy does not hand on their Connection header.
    """
    if not _is_ours(request):
        yield
        return
    loop = asyncio.get_running_loop()
    next_: asyncio.TimerHandle

    def tell() -> None:
        nonlocal next_
        if request.transport is not None and not request.transport.is_closing():
            request.transport.write(_WAIT)
            next_ = loop.call_later(_EVERY_S, tell)

    next_ = loop.call_later(_EVERY_S, tell)
    try:
        yield
    finally:
        next_.cancel()


def _is_ours(request: web.Request) -> bool:
    return (request.version == HttpVersion11 and request.headers.get("User-Agent", "").startswith("modelfs/")
            and request.headers.get("Connection", "").lower() == "keep-alive")

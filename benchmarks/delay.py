"""A TCP proxy that makes a round trip long and leaves the bandwidth alone.

Rule: every byte goes on half a round trip after it came, in order, and a new connection carries its first byte one
round trip later, as a handshake would have taken. It reads on while bytes wait, up to 64 MiB a direction, so that it
is no narrower than a link of that bandwidth-delay product.

    python -m benchmarks.delay HOST PORT ROUND_TRIP_MS     prints the port on 127.0.0.1 that it listens at
"""

from __future__ import annotations

import asyncio
import socket
import sys
from collections import deque

WAITING_BYTES = 64 << 20


class Pipe(asyncio.Protocol):
    """One direction's receiving end; `other` is the end that sends on what came here."""

    def __init__(self, one_way_s: float) -> None:
        self.loop = asyncio.get_running_loop()
        self.one_way_s = one_way_s
        self.open_at = self.loop.time() + 2 * one_way_s
        self.other: Pipe | None = None
        self.transport: asyncio.Transport | None = None
        self.waiting: deque[tuple[float, bytes]] = deque()  # (when it is due, the bytes; none: the end)
        self.waiting_bytes = 0
        self.timer: asyncio.TimerHandle | None = None
        self.full = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self.transport = transport
        transport.set_write_buffer_limits(high=8 << 20)
        made = transport.get_extra_info("socket")
        made.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    def data_received(self, data: bytes) -> None:
        self.keep(data)

    def eof_received(self) -> bool:
        self.keep(b"")
        return True

    def connection_lost(self, _error: Exception | None) -> None:
        """What is on the way still arrives, then the end; the other side hears no sooner."""
        self.keep(b"")
        if self.other and self.other.timer:
            self.other.timer.cancel()  # nobody is left to send to
        if self.other:
            self.other.waiting.clear()

    def keep(self, data: bytes) -> None:
        self.waiting.append((max(self.loop.time(), self.open_at) + self.one_way_s, data))
        self.waiting_bytes += len(data)
        if self.transport and self.waiting_bytes > WAITING_BYTES:
            self.transport.pause_reading()
        self.schedule()

    def schedule(self) -> None:
        if self.waiting and self.timer is None and not self.full and self.other and self.other.transport:
            self.timer = self.loop.call_at(self.waiting[0][0], self.send_due)

    def send_due(self) -> None:
        self.timer = None
        assert self.other and self.other.transport
        now = self.loop.time()
        while self.waiting and self.waiting[0][0] <= now and not self.full:
            _, data = self.waiting.popleft()
            self.waiting_bytes -= len(data)
            if data:
                self.other.transport.write(data)
            elif not self.other.transport.is_closing():
                self.other.transport.close()
        if self.transport and self.waiting_bytes <= WAITING_BYTES // 2 and not self.transport.is_closing():
            self.transport.resume_reading()
        self.schedule()

    def pause_writing(self) -> None:
        if self.other:
            self.other.full = True

    def resume_writing(self) -> None:
        if self.other:
            self.other.full = False
            self.other.schedule()


async def serve(host: str, port: int, round_trip_s: float) -> None:
    loop = asyncio.get_running_loop()
    made: set[asyncio.Task[None]] = set()

    async def connect(near: Pipe) -> None:
        far = Pipe(round_trip_s / 2)
        far.open_at = 0.0
        try:
            await loop.create_connection(lambda: far, host, port)
        except OSError:
            if near.transport:
                near.transport.abort()
            return
        near.other, far.other = far, near
        near.schedule()
        far.schedule()

    def accepted() -> Pipe:
        near = Pipe(round_trip_s / 2)
        task = loop.create_task(connect(near))
        made.add(task)
        task.add_done_callback(made.discard)
        return near

    listener = socket.socket()
    listener.bind(("127.0.0.1", 0))
    server = await loop.create_server(accepted, sock=listener)
    print(listener.getsockname()[1], flush=True)
    await server.serve_forever()


if __name__ == "__main__":
    asyncio.run(serve(sys.argv[1], int(sys.argv[2]), float(sys.argv[3]) / 1000))

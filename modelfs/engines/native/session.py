"""The session: takes the kernel's requests from the descriptor and has each answered, until the mount is gone.

Rule: a thread that takes requests never waits, for network, disk or a lock that is held over either: what would wait
is parked. So one thread is enough, and as fast as several (4.2-4.5 GB/s either way, bound by copying).
"""

from __future__ import annotations

import errno
import os
import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from modelfs.engines.native import passthrough, protocol
from modelfs.engines.native.calls import CALLS, Call, Calls, Refused, errno_of
from modelfs.engines.native.connection import Agreed, Connection
from modelfs.engines.native.nodes import NodeIds
from modelfs.engines.native.parking import Loads, Parked, ParkedRequests
from modelfs.engines.native.passthrough import OpenNodes
from modelfs.engines.native.protocol import Op
from modelfs.engines.native.reads import Reads, ReplyBuffer
from modelfs.engines.native.state import State
from modelfs.engines.native.storing import StoreAhead
from modelfs.errors import ModelfsError
from modelfs.logs import log_event, logger_for
from modelfs.view.loading import NotLoaded
from modelfs.view.view import View

_LOG = logger_for(__name__)
_ENDED = frozenset({errno.ENODEV, errno.ENOTCONN, errno.ECONNABORTED})
_TRIED_AGAIN = frozenset({errno.ENOENT, errno.EINTR, errno.EAGAIN})
"""ENOENT: the request was interrupted while it was being handed over."""
_NO_REPLY = frozenset({Op.FORGET, Op.BATCH_FORGET})


@dataclass(frozen=True, slots=True)
class Settings:
    """cache_directory: where backing files lie. passthrough: whether it may be used at all. store_ahead: whether bytes
    are put into the page cache ahead of readers. refused: flags of INIT not to be agreed on."""

    cache_directory: Path
    passthrough: bool
    store_ahead: bool
    refused: int = 0


class Session:
    """device: the FUSE descriptor. state: what outlives this process; where a worker before us left some, its requests
    are taken over."""

    def __init__(self, device: int, view: View, settings: Settings, state: State) -> None:
        self._settings, self._state = settings, state
        self._view, self._now = view, view.from_memory()
        self._connection = Connection(device, refused=settings.refused)
        self._ids = NodeIds(view, state.nodes)
        self._parked = ParkedRequests()
        self._loads = Loads(_unexpected)
        self._reads = Reads(self._connection, view.reader, self._parked)
        self._storing = StoreAhead(self._connection) if settings.store_ahead else None
        self._leaving = threading.Event()
        self.passthrough = self.serving = False

    def serve(self) -> None:
        """Until the mount is gone, or `leave`. Raises BadInput where the kernel is too old."""
        agreed = self._state.agreed()
        try:
            if agreed is None:
                agreed = self._begin()
            elif not self._connection.resend():
                log_event(_LOG, "warning", "fuse.resend", why="the kernel cannot: what the worker before took is lost")
            if agreed is not None:
                self._serve(agreed)
        finally:
            self._parked.close()
            self._reads.close()
            if self._storing is not None:
                self._storing.close()

    def leave(self) -> None:
        """Take no more requests (but the one that a thread may be waiting for); those taken are answered."""
        self._leaving.set()

    @property
    def waiting(self) -> int:
        """Requests that were taken and not answered yet."""
        return len(self._parked)

    def _begin(self) -> Agreed | None:
        """INIT, which comes first and alone; None where the mount is gone before."""
        buffer = bytearray(protocol.REQUEST_BYTES)
        while (size := self._receive(buffer)) is not None:
            opcode, unique, _ = _request(buffer)
            if opcode == Op.INIT:
                depth = passthrough.stack_depth(self._settings.cache_directory)
                agreed = self._connection.agree(unique, memoryview(buffer)[protocol.IN_HEADER.size:size], depth,
                                                self._state.keep)
                if agreed is not None:
                    return agreed
        return None

    def _serve(self, agreed: Agreed) -> None:
        device, nodes = self._connection.device, None
        if self._settings.passthrough and agreed.passthrough and \
                passthrough.granted(device, self._settings.cache_directory):
            nodes, self.passthrough = OpenNodes(device, self._state.opens), True
        self._calls = Calls(self._ids, nodes, self._state.epoch)
        self.serving = True
        request = bytearray(protocol.REQUEST_BYTES)
        body, reply = memoryview(request)[protocol.IN_HEADER.size:], ReplyBuffer()
        while not self._leaving.is_set() and (size := self._receive(request)) is not None:
            opcode, unique, id = _request(request)
            try:
                if opcode == Op.READ:
                    self._read(unique, id, body, reply)
                elif opcode not in _NO_REPLY:
                    self._call(opcode, unique, id, body[:size - protocol.IN_HEADER.size])
            except Exception as error:
                self._connection.broken(unique, str(opcode), error)

    def _receive(self, buffer: bytearray) -> int | None:
        """The next request's size; None when the mount is gone."""
        while True:
            try:
                return os.readv(self._connection.device, [buffer])
            except OSError as error:
                if error.errno in _ENDED:
                    return None
                if error.errno not in _TRIED_AGAIN:
                    raise

    def _read(self, unique: int, id: int, body: memoryview, reply: ReplyBuffer) -> None:
        _, offset, size, *_ = protocol.READ_IN.unpack_from(body)
        file = self._calls.files.get(id)
        if file is not None:
            self._reads.read(unique, file, offset, size, reply)
            if self._storing is not None:
                self._storing.note(id, file, offset, size)
        else:  # a handle that a worker before us gave out
            self._answer(unique, lambda view: self._reads.read(unique, self._calls.file(view, id), offset, size,
                                                               reply if view is self._now else ReplyBuffer()))

    def _call(self, opcode: int, unique: int, id: int, body: memoryview) -> None:
        call = CALLS.get(opcode)
        if call is not None:
            self._make(call, unique, id, body)
        elif opcode == Op.INTERRUPT:
            interrupted = protocol.INTERRUPT_IN.unpack_from(body)[0]
            if self._parked.interrupt(interrupted):
                self._connection.fail(interrupted, errno.EINTR)
        elif opcode == Op.RELEASE:
            # Answered before it is counted: the kernel sends what a killed worker did not answer again, and a file
            # that is released twice would be open in the kernel and not in our table.
            self._connection.answer(unique, b"")
            self._calls.release(id, body)
        elif opcode == Op.DESTROY:
            self._connection.answer(unique, b"")
        else:
            self._connection.fail(unique, errno.EROFS if opcode in protocol.WRITES else errno.ENOSYS)

    def _make(self, call: Call, unique: int, id: int, body: memoryview) -> None:
        kept: bytes | None = None

        def answer(view: View) -> None:
            out = call(self._calls, view, id, body if kept is None else memoryview(kept))
            if not self._connection.answer(unique, out) and call is Calls.open:
                self._calls.not_opened(id)

        def parked() -> None:
            nonlocal kept
            kept = bytes(body)  # the buffer is the next request's soon

        self._answer(unique, answer, parked)

    def _answer(self, unique: int, answer: Callable[[View], None], parked: Callable[[], None] = lambda: None) -> None:
        """By a view from memory if that will do, else once what is missing was loaded."""
        try:
            answer(self._now)
        except NotLoaded as missing:
            parked()
            self._parked.put(unique, Parked())
            self._loads.put(missing, lambda error: self._loaded(unique, answer, error))
        except (ModelfsError, Refused) as error:
            self._connection.fail(unique, errno_of(error))

    def _loaded(self, unique: int, answer: Callable[[View], None], error: ModelfsError | None) -> None:
        if not self._parked.take(unique):
            return  # interrupted
        try:
            if error is not None:
                raise error
            answer(self._view)
        except (ModelfsError, Refused) as trouble:
            self._connection.fail(unique, errno_of(trouble))
        except Exception as trouble:
            self._connection.broken(unique, "a parked request", trouble)


def _request(buffer: bytearray) -> tuple[int, int, int]:
    """opcode, unique, node id."""
    _, opcode, unique, id, *_ = protocol.IN_HEADER.unpack_from(buffer)
    return opcode, unique, id


def _unexpected(error: BaseException) -> ModelfsError:
    log_event(_LOG, "error", "load.broken", error=error)
    return ModelfsError("an internal fault while loading", why=f"{type(error).__name__}: {error}")

"""The FUSE descriptor: what was agreed with the kernel, answers and notifications.

Rule: an answer that nobody waits for any more (interrupted, unmounted) is no error; whoever reads the descriptor sees
the end of the mount. Source: include/uapi/linux/fuse.h, Documentation/filesystems/fuse.rst.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from dataclasses import dataclass

from modelfs.engines.native import protocol
from modelfs.errors import BadInput
from modelfs.logs import log_event, logger_for

_LOG = logger_for(__name__)
_BACKGROUND = 1000
"""Requests that the kernel has open at once. Parked ones cost nothing; with libfuse's 12, 24 stalled reads blocked
cached ones for 29 s, and 64 can run out, too."""
_WANTED = (protocol.ASYNC_READ | protocol.PARALLEL_DIROPS | protocol.DO_READDIRPLUS | protocol.READDIRPLUS_AUTO
           | protocol.MAX_PAGES | protocol.INIT_EXT | protocol.PASSTHROUGH | protocol.HAS_RESEND)
"""Not: ASYNC_DIO (an O_DIRECT reader of a hung fetch survives SIGKILL), AUTO_INVAL_DATA (bytes never change),
CACHE_SYMLINKS (tags move), NO_OPEN, SPLICE."""


@dataclass(frozen=True, slots=True)
class Agreed:
    """flags: those of INIT that both sides have."""

    flags: int

    @property
    def passthrough(self) -> bool:
        return bool(self.flags & protocol.PASSTHROUGH)

    @property
    def resend(self) -> bool:
        return bool(self.flags & protocol.HAS_RESEND)


class Connection:
    def __init__(self, device: int, *, refused: int = 0) -> None:
        """refused: flags of INIT that are not to be agreed on, as an older kernel would not."""
        self.device = device
        self._wanted = _WANTED & ~refused

    def agree(self, unique: int, body: memoryview, stack_depth: int, keep: Callable[[Agreed], None]) -> Agreed | None:
        """Answer INIT. None where the kernel has to ask again; raises BadInput for one that is too old.

        keep: called before the kernel is answered: it never asks again.
        """
        major, minor, max_readahead, flags = protocol.INIT_IN.unpack_from(body)
        if major > protocol.MAJOR:  # it asks again, in our version
            self.answer(unique, protocol.INIT_OUT.pack(protocol.MAJOR, protocol.MINOR, *[0] * 11))
            return None
        if major < protocol.MAJOR or minor < protocol.LEAST_MINOR:
            self.fail(unique, errno.EPROTO)
            raise BadInput("this kernel's FUSE is too old", why=f"it speaks {major}.{minor}, and "
                           f"{protocol.MAJOR}.{protocol.LEAST_MINOR} is needed (Linux 5.4)",
                           advice="Use --engine fusepy.")
        if flags & protocol.INIT_EXT:
            flags |= int.from_bytes(body[protocol.INIT_IN.size:protocol.INIT_IN.size + 4], "little") << 32
        agreed = flags & self._wanted
        keep(Agreed(agreed))
        self.answer(unique, protocol.INIT_OUT.pack(
            protocol.MAJOR, min(minor, protocol.MINOR), max_readahead, agreed & 0xFFFFFFFF, _BACKGROUND, _BACKGROUND,
            protocol.MAX_WRITE, 1, protocol.LARGEST_READ // os.sysconf("SC_PAGESIZE"), 0, agreed >> 32,
            stack_depth if agreed & protocol.PASSTHROUGH else 0, 0))
        return Agreed(agreed)

    def answer(self, unique: int, body: bytes | memoryview) -> bool:
        """Whether somebody took it. In one write, whatever the body: the kernel takes all of an answer or nothing."""
        header = protocol.OUT_HEADER.pack(protocol.OUT_HEADER.size + len(body), 0, unique)
        try:
            os.writev(self.device, (header, body))
        except OSError as error:
            self.unanswered(error)
            return False
        return True

    def fail(self, unique: int, code: int) -> None:
        """code: an errno."""
        try:
            os.write(self.device, protocol.OUT_HEADER.pack(protocol.OUT_HEADER.size, -code, unique))
        except OSError as error:
            self.unanswered(error)

    def resend(self) -> bool:
        """Have the kernel send again what a worker before us took and did not answer. False where it cannot."""
        try:
            os.write(self.device, protocol.OUT_HEADER.pack(protocol.OUT_HEADER.size, protocol.NOTIFY_RESEND, 0))
        except OSError:
            return False
        return True

    def store(self, id: int, offset: int, data: memoryview) -> bool:
        """Put bytes into the kernel's page cache of a node. False where it does not want them."""
        body = protocol.STORE_OUT.pack(id, offset, len(data), 0)
        header = protocol.OUT_HEADER.pack(protocol.OUT_HEADER.size + len(body) + len(data), protocol.NOTIFY_STORE, 0)
        try:
            os.writev(self.device, (header, body, data))
        except OSError:
            return False
        return True

    def broken(self, unique: int, call: str, error: BaseException) -> None:
        """An answer for a fault of ours: EIO, and the log has why."""
        log_event(_LOG, "error", "request.failed", key=call, request=call, error=error)
        self.fail(unique, errno.EIO)

    @staticmethod
    def unanswered(error: OSError) -> None:
        """What became of an answer. ENOENT: the request was interrupted. ENODEV, EPERM: unmounted. ENOTCONN,
        ECONNABORTED: cut off."""
        if error.errno not in (errno.ENOENT, errno.ENODEV, errno.EPERM, errno.ENOTCONN, errno.ECONNABORTED):
            log_event(_LOG, "error", "fuse.answer", error=error)

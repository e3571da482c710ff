"""`umount` from outside: the mount is taken away, and whoever asked waits until its daemon has gone.

Rule: a plain unmount that is refused changes nothing; a forced one always ends, whatever the daemon does.
"""

from __future__ import annotations

import os
import select
import signal
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Literal

from modelfs.daemon import control, mountpoints
from modelfs.errors import ModelfsError, NotFound, Unavailable

How = Literal["plain", "lazy", "force"]
_PLAIN_WAIT_S = 30.0
_ASK_S = 1.0
_FORCED_WAIT_S = 2.0  # asked, then cut off, then killed: within five seconds in all
_ABORTED_WAIT_S = 1.0


def unmount(mountpoint: Path, socket: Path, how: How) -> None:
    """mountpoint: canonical. socket: of the mount there.

    Raises NotFound where no modelfs is mounted, Conflict where it is busy, Forbidden.
    """
    entry = mountpoints.mount_at(mountpoint)
    if entry is None or not entry.ours:
        raise mountpoints.not_mounted(mountpoint)
    gone = _Processes(_pids(socket))
    if how == "plain":
        mountpoints.detach(mountpoint, lazy=False)
        if not gone.wait(_PLAIN_WAIT_S):
            raise ModelfsError("the daemon has not ended", where=f"pid {gone.pids[0]}",
                               why="it is unmounted, and still runs", advice=f"`kill {gone.pids[0]}` ends it.")
    elif how == "lazy":
        if not _asked(socket, "lazy"):
            with suppress(NotFound):
                mountpoints.detach(mountpoint, lazy=True)
    else:
        _force(mountpoint, socket, gone, entry.device)


def _force(mountpoint: Path, socket: Path, gone: _Processes, device: int) -> None:
    if not (_asked(socket, "force") and gone.wait(_FORCED_WAIT_S)):
        with suppress(NotFound):
            mountpoints.detach(mountpoint, lazy=True)
        mountpoints.abort(device)
        if not gone.wait(_ABORTED_WAIT_S):
            gone.kill()
            gone.wait(_ABORTED_WAIT_S)
    if mountpoints.mount_at(mountpoint) is not None:
        with suppress(NotFound):
            mountpoints.detach(mountpoint, lazy=True)


def _asked(socket: Path, how: How) -> bool:
    """Whether the daemon took it on; it may be dead, or too busy to answer."""
    try:
        control.ask(socket, {"op": "umount", "how": how}, _ASK_S)
    except (control.NoDaemon, Unavailable):
        return False
    return True


def _pids(socket: Path) -> list[int]:
    """Of the worker and of its keeper, if it has one that lives; none where nobody listens."""
    try:
        answer = control.ask(socket, {"op": "status"}, _ASK_S)
        return list(dict.fromkeys((answer.pid, int(answer.fields["pid"]))))
    except (ModelfsError, KeyError):
        pid = control.daemon_pid(socket)  # too busy to answer
        return [] if pid is None else [pid, *_children(pid)]


def _children(pid: int) -> list[int]:
    try:
        return list(map(int, Path(f"/proc/{pid}/task/{pid}/children").read_text().split()))
    except OSError:
        return []


class _Processes:
    """Processes that may not be there, held by descriptors: their numbers may be others' by the time it matters."""

    def __init__(self, pids: Sequence[int]) -> None:
        self.pids = pids
        self._descriptors: list[int] = []
        for pid in pids:
            with suppress(ProcessLookupError):
                self._descriptors.append(os.pidfd_open(pid))

    def wait(self, seconds: float) -> bool:
        """Whether all have ended, a zombie counts as ended."""
        end = time.monotonic() + seconds
        for descriptor in self._descriptors:
            poll = select.poll()
            poll.register(descriptor, select.POLLIN)
            if not poll.poll(max(0.0, end - time.monotonic()) * 1000):
                return False
        return True

    def kill(self) -> None:
        for descriptor in self._descriptors:
            with suppress(ProcessLookupError):
                signal.pidfd_send_signal(descriptor, signal.SIGKILL)

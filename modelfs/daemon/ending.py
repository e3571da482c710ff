"""`umount` from outside: the mount is taken away, and whoever asked waits until its daemon has gone.

Rule: a plain unmount that is refused changes nothing; a forced one always ends, whatever the daemon does.
"""

from __future__ import annotations

import os
import select
import signal
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
    pid = control.daemon_pid(socket)
    gone = _Process(pid)
    if how == "plain":
        mountpoints.detach(mountpoint, lazy=False)
        if not gone.wait(_PLAIN_WAIT_S):
            raise ModelfsError("the daemon has not ended", where=f"pid {pid}", why="it is unmounted, and still runs",
                               advice=f"`kill {pid}` ends it.")
    elif how == "lazy":
        if not _asked(socket, "lazy"):
            with suppress(NotFound):
                mountpoints.detach(mountpoint, lazy=True)
    else:
        _force(mountpoint, socket, gone, entry.device)


def _force(mountpoint: Path, socket: Path, gone: _Process, device: int) -> None:
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


class _Process:
    """A process that may not be there, held by a descriptor: its number may be another's by the time it matters."""

    def __init__(self, pid: int | None) -> None:
        self._descriptor: int | None = None
        if pid is not None:
            with suppress(ProcessLookupError):
                self._descriptor = os.pidfd_open(pid)

    def wait(self, seconds: float) -> bool:
        """Whether it has ended, a zombie counts as ended."""
        if self._descriptor is None:
            return True
        poll = select.poll()
        poll.register(self._descriptor, select.POLLIN)
        return bool(poll.poll(seconds * 1000))

    def kill(self) -> None:
        if self._descriptor is not None:
            with suppress(ProcessLookupError):
                signal.pidfd_send_signal(self._descriptor, signal.SIGKILL)

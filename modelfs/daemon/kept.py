"""A worker's end of the link to its keeper: what it asks for, and what it is told.

Rule: the keeper may be gone; then the worker serves on, and only what needs a keeper fails.
"""

from __future__ import annotations

import json
import os
import socket
import threading
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

from modelfs.daemon.control import Listening
from modelfs.engines.native.state import State
from modelfs.engines.options import MountFailed, MountOptions
from modelfs.errors import Conflict, ModelfsError, Unavailable
from modelfs.logs import log_event, logger_for

_LOG = logger_for(__name__)
_MAX_MESSAGE = 1 << 16
_UPGRADE_S = 60.0


class KeeperLink:
    """Made from `--kept=LINK,AGREEMENT,NODES,OPENS`. state: of the mount; begun: whether a worker served it before.
    device: the mount's minor number, after `take`."""

    def __init__(self, kept: str, socket_path: Path) -> None:
        link, *state = map(int, kept.split(","))
        for descriptor in (link, *state):
            os.set_inheritable(descriptor, False)
        self._link = socket.socket(fileno=link)
        self._socket_path = socket_path
        self.state = State(*state)
        self.begun = self.state.agreed() is not None
        self.device = -1
        self._listening: Listening | None = None
        self._gone = False  # the keeper
        self._upgraded = threading.Event()
        self._refusal: dict[str, Any] | None = None

    def take(self, options: MountOptions) -> int:
        """The mounted descriptor. Waits until the worker before us has left.

        Raises MountFailed, Unavailable where the keeper is gone.
        """
        self._tell({"op": "take", "source": options.source, "allow_other": options.allow_other})
        message, descriptors = self._hear()
        if message is None:
            raise Unavailable("the keeper of this mount has gone")
        if message["op"] == "refused":
            raise Refused(message["error"], message["exit_code"])
        self.device = message["device"]
        self._listening = Listening.taken(self._socket_path, descriptors[1], message["inode"])
        return descriptors[0]

    def listening(self) -> Listening:
        """The control socket; only after `take`."""
        assert self._listening is not None
        return self._listening

    def say(self, line: str) -> None:
        self._tell({"op": "say", "line": line})

    def ready(self) -> None:
        self._tell({"op": "ready"})
        os.chdir("/")  # the directory that we were started in must not be kept busy by us

    def failed(self, error: ModelfsError) -> None:
        self._tell({"op": "failed", "error": str(error), "exit_code": error.exit_code})

    def ending(self) -> None:
        """The mount is being taken away: our end is not a death."""
        self._tell({"op": "ending"})

    def upgrade(self) -> None:
        """Ask to be replaced. Returns only if that takes very long: our end is the answer. Raises what stopped it."""
        self._upgraded.clear()
        self._refusal = None
        self._tell({"op": "upgrade"})
        if not self._gone:
            self._upgraded.wait(_UPGRADE_S)
        if self._gone:
            raise Conflict("cannot upgrade", why="the keeper of this mount has gone", advice="Mount it anew.")
        if self._refusal is not None:
            kind = Conflict if self._refusal["exit_code"] == Conflict.exit_code else ModelfsError
            raise kind(str(self._refusal["error"]))

    def listen(self, leave: Callable[[], None]) -> None:
        """leave: called, in a thread, when a successor is ready."""
        threading.Thread(target=self._run, args=(leave,), name="keeper", daemon=True).start()

    def _run(self, leave: Callable[[], None]) -> None:
        while True:
            message, _ = self._hear()
            if message is None:
                log_event(_LOG, "error", "keeper.gone", why="nobody starts another worker should this one end")
                self._gone = True
                self._upgraded.set()
                return
            if message["op"] == "leave":
                leave()
            elif message["op"] == "upgraded":
                self._refusal = message
                self._upgraded.set()

    def _tell(self, message: dict[str, Any]) -> None:
        with suppress(OSError):  # the keeper is gone: whoever waits for an answer hears that
            self._link.send(json.dumps(message).encode())

    def _hear(self) -> tuple[dict[str, Any] | None, list[int]]:
        try:
            data, descriptors, _, _ = socket.recv_fds(self._link, _MAX_MESSAGE, 2)
        except OSError:
            return None, []
        for descriptor in descriptors:
            os.set_inheritable(descriptor, False)
        return (json.loads(data) if data else None), descriptors


class Refused(MountFailed):
    """The keeper could not mount, in its own words."""

    def __init__(self, line: str, exit_code: int) -> None:
        super().__init__(line)
        self.exit_code = exit_code

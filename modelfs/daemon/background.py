"""`mount --daemon`: a process of its own, detached, which says through a pipe how it went.

Rule: whoever called gets 0 only when the mount answers, else the daemon's own line and exit code.
"""

from __future__ import annotations

import json
import os
import signal
import sys
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from modelfs.daemon.forking import Forked, above_standard
from modelfs.errors import Forbidden, ModelfsError


class Relayed(ModelfsError):
    """A daemon's error, as it told it: the line stands, and the exit code is the daemon's."""

    def __init__(self, line: str, exit_code: int) -> None:
        super().__init__(line)
        self.exit_code = exit_code


@dataclass(frozen=True, slots=True)
class Started:
    """said: lines for people, from before it was ready."""

    pid: int
    log: Path
    said: tuple[str, ...] = ()


def start(serve: Callable[[int], int], log: Path) -> Started:
    """Have a detached child of this process serve, and wait until it is ready or has ended.

    serve: given the descriptor that it is to tell through; its exit code. log: gets its standard error. Raises Relayed;
    Forbidden where the log cannot be written.
    """
    try:
        log.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        stream = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
        began_at = os.fstat(stream).st_size
    except OSError as error:
        raise Forbidden("cannot write the daemon's log", where=str(log), why=error.strerror or str(error)) from error
    ours, written = os.pipe()
    theirs = above_standard(written)
    os.close(written)

    def detached() -> int:
        os.setsid()
        if not sys.flags.safe_path:  # as -P: what lies where we are called (a model's own code, say) is never imported
            del sys.path[0]
        return serve(theirs)

    try:
        child = Forked(detached, {theirs}, stderr=stream)
    finally:
        os.close(theirs)
        os.close(stream)
    with os.fdopen(ours, "rb") as pipe:
        try:
            line = pipe.readline()
        except KeyboardInterrupt:
            child.send_signal(signal.SIGTERM)
            raise
    if not line:
        raise _last_words(log, began_at, child.wait())
    told = json.loads(line)
    if "error" in told:
        child.wait()  # it has only to end; then nothing of it is left when the command returns
        raise Relayed(str(told["error"]), int(told["exit_code"]))
    return Started(child.pid, log, tuple(map(str, told.get("said", ()))))


class ReadyPipe:
    """The daemon's end. Tells once, then never again; after `ready` nothing ties the daemon to its starter."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor: int | None = descriptor
        os.set_inheritable(descriptor, False)  # who started us by exec had to pass it on
        self._said: list[str] = []

    def say(self, line: str) -> None:
        """For people, told with `ready`."""
        self._said.append(line)

    def ready(self) -> None:
        self._tell({"ready": True, "said": self._said})
        # the directory that we were started in must not be kept busy by us
        os.chdir("/")

    def failed(self, error: ModelfsError) -> None:
        self._tell({"error": str(error), "exit_code": error.exit_code})

    def _tell(self, fields: dict[str, object]) -> None:
        if self._descriptor is not None:
            with suppress(OSError):  # who started us may have been interrupted
                os.write(self._descriptor, json.dumps(fields).encode() + b"\n")
            os.close(self._descriptor)
            self._descriptor = None


def _last_words(log: Path, began_at: int, code: int) -> Relayed:
    """Of a daemon that ended without telling: the one line that every command fails with, if it came to that."""
    with log.open("rb") as stream:
        stream.seek(began_at)
        lines = stream.read().decode(errors="replace").splitlines()
    line = next((line for line in reversed(lines) if line.startswith("modelfs: ")), None)
    if line is None or code <= 0:
        return Relayed(f"the daemon ended before it was mounted, {log}: exit code {code}.", 1)
    return Relayed(line.removeprefix("modelfs: "), code)

"""The control socket of a mount: one JSON line asks, one JSON line answers, or several for what takes long; both
ends of it are here.

Rule: the socket is its owner's alone (mode 0600, and the peer's uid is looked at), and a request never waits for
the filesystem that it is about.
"""

from __future__ import annotations

import errno
import json
import os
import socket
import struct
import threading
import time
from collections.abc import Callable, Generator, Iterator, Mapping
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from modelfs import paths
from modelfs.errors import (
    BadInput,
    Conflict,
    Forbidden,
    IntegrityError,
    Malformed,
    ModelfsError,
    NoSpace,
    NotFound,
    Unavailable,
)
from modelfs.logs import log_event, logger_for

_LOG = logger_for(__name__)
_PEER = struct.Struct("3i")  # struct ucred: pid, uid, gid
_MAX_LINE = 1 << 20
_LINE_TIMEOUT_S = 5.0
_ERRORS: Mapping[int, type[ModelfsError]] = {
    kind.exit_code: kind for kind in (BadInput, NotFound, IntegrityError, Unavailable, Forbidden, Conflict, NoSpace)}

Handler = Callable[[Mapping[str, Any]], dict[str, Any] | Iterator[dict[str, Any]]]
"""A request's fields → the answer's, or those of several lines, one after another: an asker that leaves closes the
iterator. Raises ModelfsError, which the asker gets as his own."""


@dataclass(frozen=True, slots=True)
class Answer:
    """pid: of the daemon, as the kernel tells it."""

    pid: int
    fields: dict[str, Any]


class NoDaemon(NotFound):
    """Nobody listens: there is no such socket, or its daemon is dead."""


class _Left(Unavailable):
    """The other end went away before its line was complete."""


@dataclass(frozen=True, slots=True)
class Listening:
    """A control socket. inode: what stands at path as long as it is this one."""

    path: Path
    socket: socket.socket
    inode: int

    @classmethod
    def begin(cls, path: Path) -> Listening:
        """Replaces one that a daemon left which died. Raises Forbidden.

        Bound under another name first, then renamed: there is no moment without an answer, nor with a wrong mode.
        """
        paths.make_private(path.parent)
        listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        fresh = f".{path.name}.{os.getpid()}"
        with _short(path.parent) as directory:
            try:
                with suppress(FileNotFoundError):
                    os.unlink(f"{directory}/{fresh}")
                listener.bind(f"{directory}/{fresh}")
                os.chmod(f"{directory}/{fresh}", 0o600)
                listener.listen(64)
                os.rename(f"{directory}/{fresh}", f"{directory}/{path.name}")
            except OSError as error:
                listener.close()
                raise Forbidden("cannot make the control socket", where=str(path),
                                why=error.strerror or str(error)) from error
        return cls(path, listener, path.lstat().st_ino)

    @classmethod
    def taken(cls, path: Path, descriptor: int, inode: int) -> Listening:
        """One that another process made, and keeps; its name may be gone already."""
        return cls(path, socket.socket(fileno=descriptor), inode)

    def hide(self) -> None:
        """Take the socket's name away, if it is still this one's: the next mount here may have its own by now."""
        with suppress(FileNotFoundError):
            if self.path.lstat().st_ino == self.inode:
                self.path.unlink()


class ControlServer:
    """Answers until `close`. Each request has a thread of its own, so that a slow one holds up no other."""

    def __init__(self, listening: Listening, handlers: Mapping[str, Handler]) -> None:
        self._listening, self._handlers = listening, handlers
        threading.Thread(target=self._serve, name="control", daemon=True).start()

    def hide(self) -> None:
        self._listening.hide()

    def close(self) -> None:
        self.hide()
        with suppress(OSError):  # wakes accept; ENOTCONN where it is closed already
            self._listening.socket.shutdown(socket.SHUT_RDWR)
        self._listening.socket.close()

    def _serve(self) -> None:
        while True:
            try:
                peer, _ = self._listening.socket.accept()
            except OSError as error:
                if error.errno in (errno.EMFILE, errno.ENFILE, errno.ECONNABORTED, errno.EINTR):
                    log_event(_LOG, "warning", "control.accept", error=error)
                    time.sleep(0.1)  # without a descriptor to spare it would fail again at once
                    continue
                return
            threading.Thread(target=self._answer, args=(peer,), name="control-answer", daemon=True).start()

    def _answer(self, peer: socket.socket) -> None:
        with peer, suppress(OSError):  # who asks may leave at any time
            peer.settimeout(_LINE_TIMEOUT_S)
            with closing(self._replies(peer)) as replies:
                for fields in replies:
                    peer.sendall(json.dumps(fields).encode() + b"\n")

    def _replies(self, peer: socket.socket) -> Generator[dict[str, Any], None, None]:
        try:
            if _peer_of(peer)[1] not in (os.geteuid(), 0):
                raise Forbidden("not your mount")
            request = _parse(_line(peer))
            handler = self._handlers.get(str(request.get("op")))
            if handler is None:
                raise BadInput(f"the daemon cannot {str(request.get('op'))[:40]!r}",
                               why="it may be of another version of modelfs")
            answer = handler(request)
            if isinstance(answer, dict):
                yield answer
            else:
                yield from answer
        except ModelfsError as error:
            yield _error_fields(error)
        except Exception as error:  # a fault of ours is the asker's to hear of, too
            log_event(_LOG, "error", "control.broken", error=error)
            yield _error_fields(ModelfsError("an internal fault of the daemon", why=f"{type(error).__name__}: {error}"))


def ask(path: Path, request: Mapping[str, Any], timeout_s: float = 10.0) -> Answer:
    """Raises NoDaemon; Unavailable where no answer comes in time; what the daemon answered with, as it was.

    Who asks for the status in the moment in which a worker ends is answered by the next one: the keeper listens on.
    """
    end, left = time.monotonic() + timeout_s, timeout_s
    while True:
        try:
            return _asked(path, request, left)
        except _Left:
            left = end - time.monotonic()
            if request.get("op") != "status" or left <= 0:
                raise


def _asked(path: Path, request: Mapping[str, Any], timeout_s: float) -> Answer:
    """Raises as `ask`, and _Left."""
    with _connected(path, timeout_s) as peer:
        try:
            peer.sendall(json.dumps(request).encode() + b"\n")
            fields = _parse(_line(peer))
        except (ConnectionResetError, BrokenPipeError) as error:
            raise _Left("the daemon left", where=str(path), why="before it answered") from error
        except OSError as error:
            raise _silent(path, error) from error
        pid = _peer_of(peer)[0]
    return Answer(pid, _good(fields))


def stream(path: Path, request: Mapping[str, Any], timeout_s: float = 60.0) -> Generator[dict[str, Any], None, None]:
    """The lines of an answer that takes long, as they come; leaving off ends what the daemon does for it.

    timeout_s: between two lines. Raises as `ask`.
    """
    with _connected(path, timeout_s) as peer:
        try:
            peer.sendall(json.dumps(request).encode() + b"\n")
            with peer.makefile("rb") as lines:
                while line := lines.readline(_MAX_LINE):
                    yield _good(_parse(line))
        except OSError as error:
            raise _silent(path, error) from error


def daemon_pid(path: Path) -> int | None:
    """The process that listens here, even if it has no time to answer; None where there is none."""
    try:
        with _connected(path, 1.0) as peer:
            return _peer_of(peer)[0]
    except (NoDaemon, Unavailable):
        return None


def sockets(environ: Mapping[str, str]) -> list[Path]:
    """The sockets of all of our mounts, dead ones too."""
    try:
        return sorted(path for path in paths.runtime_dir(environ).iterdir() if path.suffix == ".sock")
    except OSError:
        return []


def _error_fields(error: ModelfsError) -> dict[str, Any]:
    return {"error": str(error), "exit_code": error.exit_code}


def _good(fields: dict[str, Any]) -> dict[str, Any]:
    if "error" in fields:
        raise _ERRORS.get(fields.get("exit_code", 1), ModelfsError)(str(fields["error"]))
    return fields


def _parse(line: bytes) -> dict[str, Any]:
    try:
        fields = json.loads(line)
    except ValueError as error:
        raise Malformed("a line of the control socket", why="it is no JSON") from error
    if not isinstance(fields, dict):
        raise Malformed("a line of the control socket", why="it is no JSON object")
    return fields


def _line(peer: socket.socket) -> bytes:
    data = bytearray()
    while b"\n" not in data:
        piece = peer.recv(65536)
        if not piece:
            raise _Left("the other end of the control socket left", why="before its line was complete")
        if len(data) > _MAX_LINE:
            raise Malformed("a line of the control socket", why="it is too long")
        data += piece
    return bytes(data.partition(b"\n")[0])


def _peer_of(peer: socket.socket) -> tuple[int, int, int]:
    """(pid, uid, gid)."""
    pid, uid, gid = _PEER.unpack(peer.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _PEER.size))
    return pid, uid, gid


def _silent(path: Path, error: OSError) -> Unavailable:
    return Unavailable("the daemon does not answer", where=str(path), why=error.strerror or str(error))


@contextmanager
def _connected(path: Path, timeout_s: float) -> Iterator[socket.socket]:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as peer:
        peer.settimeout(timeout_s)
        try:
            with _short(path.parent) as directory:
                peer.connect(f"{directory}/{path.name}")
        except (FileNotFoundError, NotADirectoryError, ConnectionRefusedError) as error:
            raise NoDaemon("no daemon", where=str(path)) from error
        except PermissionError as error:
            raise Forbidden("not your mount", where=str(path)) from error
        except OSError as error:
            raise _silent(path, error) from error
        yield peer


@contextmanager
def _short(directory: Path) -> Iterator[str]:
    """A short name for a directory: a socket's path has room for 107 bytes."""
    descriptor = os.open(directory, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        yield f"/proc/self/fd/{descriptor}"
    finally:
        os.close(descriptor)

"""The control socket, both ends of it."""

from __future__ import annotations

import json
import os
import socket
import stat
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from modelfs.daemon import control
from modelfs.daemon.control import ControlServer, Listening, NoDaemon, ask, stream
from modelfs.errors import BadInput, Conflict, Malformed, Unavailable

Serve = Callable[..., ControlServer]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    # longer than a socket's address may be
    return tmp_path / ("long" * 30) / "m.sock"


@pytest.fixture
def serve(path: Path) -> Iterator[Serve]:
    with ExitStack() as undo:
        def start(**handlers: control.Handler) -> ControlServer:
            server = ControlServer(Listening.begin(path), handlers)
            undo.callback(server.close)
            return server
        yield start


def test_a_request_is_answered_with_the_daemons_pid(serve: Serve, path: Path) -> None:
    serve(echo=lambda request: {"got": request["what"]})
    answer = ask(path, {"op": "echo", "what": "ü\n"})
    assert (answer.fields, answer.pid) == ({"got": "ü\n"}, os.getpid())
    assert control.daemon_pid(path) == os.getpid()


def test_the_socket_is_its_owners_alone(serve: Serve, path: Path) -> None:
    serve()
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700


def test_an_error_comes_back_as_what_it_was(serve: Serve, path: Path) -> None:
    def refuse(request: Mapping[str, Any]) -> dict[str, Any]:
        raise Conflict("the mount is busy", where="/mnt", why="a shell stands in it")

    serve(umount=refuse)
    with pytest.raises(Conflict, match="the mount is busy, /mnt: a shell stands in it"):
        ask(path, {"op": "umount"})
    with pytest.raises(BadInput, match="'upgrade'"):
        ask(path, {"op": "upgrade"})


@pytest.mark.parametrize("line", [b"\n", b"nonsense\n", b"[]\n", b'{"op": 1}\n', b"\xff\n", b"{" * 100_000 + b"\n"])
def test_nonsense_is_an_error_and_the_next_request_is_answered(serve: Serve, path: Path, line: bytes) -> None:
    serve(ping=lambda request: {"pong": 1})
    with socket.socket(socket.AF_UNIX) as peer, control._short(path.parent) as directory:
        peer.connect(f"{directory}/{path.name}")
        peer.sendall(line)
        assert "error" in json.loads(peer.makefile().readline())
    assert ask(path, {"op": "ping"}).fields == {"pong": 1}


def test_who_leaves_early_or_says_nothing_holds_up_nobody(serve: Serve, path: Path) -> None:
    serve(ping=lambda request: {"pong": 1})
    with ExitStack() as undo, control._short(path.parent) as directory:
        for _ in range(20):
            silent = undo.enter_context(socket.socket(socket.AF_UNIX))
            silent.connect(f"{directory}/{path.name}")
        assert ask(path, {"op": "ping"}).fields == {"pong": 1}


def test_a_slow_request_holds_up_no_other(serve: Serve, path: Path) -> None:
    gate = threading.Event()
    serve(slow=lambda request: {"done": gate.wait(30)}, ping=lambda request: {"pong": 1})
    answers: list[dict[str, Any]] = []
    slow = threading.Thread(target=lambda: answers.append(ask(path, {"op": "slow"}, 30).fields))
    slow.start()
    try:
        assert ask(path, {"op": "ping"}).fields == {"pong": 1}
        assert not answers
    finally:
        gate.set()
        slow.join(30)
    assert answers == [{"done": True}]


def test_a_socket_that_a_dead_daemon_left_is_no_daemon_and_is_replaced(serve: Serve, path: Path) -> None:
    path.parent.mkdir(mode=0o700)
    with pytest.raises(NoDaemon):
        ask(path, {"op": "ping"})
    with socket.socket(socket.AF_UNIX) as dead, control._short(path.parent) as directory:
        dead.bind(f"{directory}/{path.name}")
    with pytest.raises(NoDaemon):
        ask(path, {"op": "ping"})
    assert control.daemon_pid(path) is None
    serve(ping=lambda request: {"pong": 1})
    assert ask(path, {"op": "ping"}).fields == {"pong": 1}


def test_closing_leaves_the_socket_of_the_next_mount_alone(serve: Serve, path: Path) -> None:
    first = serve(ping=lambda request: {"pong": 1})
    serve(ping=lambda request: {"pong": 2})
    first.close()
    assert ask(path, {"op": "ping"}).fields == {"pong": 2}


def test_closing_takes_the_socket_away(serve: Serve, path: Path) -> None:
    serve().close()
    assert not path.exists()


def test_a_daemon_that_ends_while_it_is_asked_is_an_error(path: Path) -> None:
    path.parent.mkdir(mode=0o700)
    with socket.socket(socket.AF_UNIX) as listener, control._short(path.parent) as directory:
        listener.bind(f"{directory}/{path.name}")
        listener.listen()
        threading.Thread(target=lambda: listener.accept()[0].close(), daemon=True).start()
        with pytest.raises((Malformed, control.Unavailable)):
            ask(path, {"op": "ping"})


@pytest.mark.parametrize("op", ["status", "umount"])
def test_a_worker_that_leaves_while_it_is_asked_is_no_matter_where_the_next_one_answers(path: Path, op: str) -> None:
    """One listener for both, as a keeper has it. What changes something is not asked for twice."""
    listening = Listening.begin(path)
    asked: list[bytes] = []

    def serve() -> None:
        for answer in (b"", b'{"pid": 2}\n'):
            with listening.socket.accept()[0] as peer:
                asked.append(peer.recv(4096))
                peer.sendall(answer)

    thread = threading.Thread(target=serve, daemon=True)
    thread.start()
    if op == "status":
        assert ask(path, {"op": op}).fields == {"pid": 2}
    else:
        with pytest.raises(Unavailable):
            ask(path, {"op": op})
        ask(path, {"op": "status"})
    thread.join(30)
    assert len(asked) == 2
    listening.socket.close()


def test_what_takes_long_answers_in_lines_and_its_error_is_the_askers(serve: Serve, path: Path) -> None:
    def count(request: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
        yield from ({"at": number} for number in range(3))
        if request.get("fail"):
            raise Conflict("enough", where="/mnt")

    serve(count=count)
    assert [line["at"] for line in stream(path, {"op": "count"})] == [0, 1, 2]
    lines = stream(path, {"op": "count", "fail": True})
    assert [next(lines)["at"] for _ in range(3)] == [0, 1, 2]
    with pytest.raises(Conflict, match="enough, /mnt"):
        next(lines)


def test_an_asker_that_leaves_ends_what_is_done_for_it(serve: Serve, path: Path) -> None:
    ended = threading.Event()

    def forever(request: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
        try:
            while True:
                yield {}
        finally:
            ended.set()

    serve(forever=forever)
    lines = stream(path, {"op": "forever"})
    next(lines)
    lines.close()
    assert ended.wait(30)

"""How slowly an upload may come: without an end to its patience a server would fill with clients that say nothing."""

from __future__ import annotations

import time
from pathlib import Path

import pytest
from server.uploading import (
    answer_of,
    chunked_head_of,
    connect,
    eventually,
    get,
    head_of,
    name_of,
    new_repository,
    noise,
    unfinished,
)
from servers import own_server

from modelfs.units import KiB, MiB

SHORT = "from modelfs.server import pace; pace.GRACE_S = 1.0; "


def test_an_upload_that_takes_longer_than_the_grace_and_goes_on_is_taken(tmp_path: Path) -> None:
    new_repository(tmp_path)
    data = noise(20 * KiB)
    with own_server(tmp_path, writable=True, before=SHORT) as url, connect(url) as connection:
        connection.sendall(head_of(name_of(data), len(data)))
        for start in range(0, len(data), KiB):  # 2 s, of which the grace is one
            connection.sendall(data[start:start + KiB])
            time.sleep(0.1)
        assert answer_of(connection).startswith(b"HTTP/1.1 201")
        assert get(url, name_of(data)).content == data


def test_who_was_fast_may_not_be_silent_the_longer_for_it(tmp_path: Path) -> None:
    """A rest as long as its bytes would have taken slowly: the sweep of old uploads would take it for one."""
    new_repository(tmp_path)
    data = noise(4 * MiB)
    with own_server(tmp_path, writable=True, before=SHORT) as url, connect(url) as connection:
        connection.settimeout(60)  # 4 MiB at the slowest rate would take half an hour
        connection.sendall(head_of(name_of(data), len(data)) + data[:-1])
        assert answer_of(connection).startswith(b"HTTP/1.1 408")
        eventually(lambda: not unfinished(tmp_path))


def test_a_body_without_an_end_is_ended(tmp_path: Path) -> None:
    """Each piece comes at once, and there is always one more."""
    new_repository(tmp_path)
    with own_server(tmp_path, writable=True) as url, connect(url) as connection:
        connection.sendall(chunked_head_of(name_of(b"x")))
        piece, end = b"%x\r\n%s\r\n" % (MiB, bytes(MiB)), time.monotonic() + 30
        with pytest.raises(ConnectionError):
            while time.monotonic() < end:
                connection.sendall(piece)
        eventually(lambda: not unfinished(tmp_path))
        assert get(url, "").status_code == 200

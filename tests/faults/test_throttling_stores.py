"""Stores that say "later" to everybody, names that nobody knows for a while, and a server whose clock is ahead."""

from __future__ import annotations

import json
import socket
import time
from collections.abc import Callable
from email.utils import formatdate
from pathlib import Path
from typing import Any

import pytest
import requests
from faultproxy import FaultProxy
from results import Result
from servers import own_server
from transfer.pushed import CHUNK, in_background, make_repository, noise, push_files, reading, write

from modelfs.stores.http_store import HttpStore
from modelfs.stores.retrying import RetryingStore
from modelfs.units import Deadline

DATA = noise(60, 12 * CHUNK)
YEAR = 365 * 86_400.0
AHEAD = f"import time; real = time.time; time.time = lambda: real() + {YEAR}\n"
ABSURD = ["9" * 19, "Fri, 01 Jan 2100 00:00:00 GMT"]
Run = Callable[..., Result]


def in_a_second() -> str:
    return formatdate(time.time() + 1, usegmt=True)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    make_repository(tmp_path / "repository")
    return tmp_path / "repository"


@pytest.mark.parametrize(("code", "asked"), [(429, lambda: "1"), (503, in_a_second), (429, lambda: None)],
                         ids=["seconds", "date", "nothing"])
def test_a_storm_of_refusals_is_waited_out_by_many_readers(root: Path, tmp_path: Path, code: int,
                                                           asked: Callable[[], str | None]) -> None:
    push_files(make_repository(tmp_path / "read" / "repository"), {"w.bin": DATA})
    with FaultProxy(tmp_path / "read" / "repository") as proxy:
        proxy.add("status", "catalog", times=1, code=code, retry_after=asked())
        with reading(proxy.url, deadline_s=20) as r:
            file = r.file("w.bin")
            storm = proxy.add("status", "packs/", times=6, code=code, retry_after=asked())
            readers = [in_background(lambda n=n: r.read(file, n * CHUNK, CHUNK)) for n in range(12)]
            assert [one.result() for one in readers] == [DATA[n * CHUNK:(n + 1) * CHUNK] for n in range(12)]
            assert storm.hits == 6 and r.count("errors") == 0


def test_a_storm_of_refusals_is_waited_out_by_a_push(root: Path, tmp_path: Path, modelfs: Run) -> None:
    source = write(tmp_path / "source", {"w.bin": DATA})
    with FaultProxy(root, writable=True) as proxy:
        rules = [proxy.add("status", match, times=2, methods=("PUT",), code=code, retry_after=asked)
                 for match, code, asked in (("packs/", 429, "1"), ("manifests/", 503, in_a_second()),
                                            ("catalog", 503, None))]
        done = modelfs("push", source, proxy.url, "lab/model", "--json")
        assert done.code == 0 and json.loads(done.out)["version"] == "v1", done.err
        assert [rule.hits for rule in rules] == [2, 2, 2]
    with reading(root) as r:
        assert r.read(r.file("w.bin")) == DATA


@pytest.mark.parametrize("asked", ABSURD)
def test_who_is_asked_to_wait_for_ages_is_told_so_at_once(root: Path, tmp_path: Path, modelfs: Run,
                                                          asked: str) -> None:
    source = write(tmp_path / "source", {"w.bin": DATA})
    with FaultProxy(root, writable=True) as proxy:
        rule = proxy.add("status", "packs/", methods=("PUT",), code=503, retry_after=asked)
        done = modelfs("push", source, proxy.url, "lab/model", timeout=40)
        assert done.code == 5 and "longer than the deadline" in done.err and done.err.count("\n") == 1, done.err
        assert rule.hits == 1


def test_a_name_that_is_known_again_within_the_deadline_was_never_unknown(root: Path,
                                                                          monkeypatch: pytest.MonkeyPatch) -> None:
    """The resolver fails as it does while a network comes up: not at all, then for this name."""
    failures = [socket.gaierror(socket.EAI_AGAIN, "Temporary failure in name resolution"),
                socket.gaierror(socket.EAI_NONAME, "Name or service not known")] * 2
    real = socket.getaddrinfo

    def getaddrinfo(host: Any, port: Any, *rest: Any, **named: Any) -> Any:
        if host != "models.example.org":
            return real(host, port, *rest, **named)
        if failures:
            raise failures.pop()
        return real("127.0.0.1", port, *rest, **named)

    with FaultProxy(root) as server:
        monkeypatch.setattr(socket, "getaddrinfo", getaddrinfo)
        told: list[str] = []
        store = RetryingStore(HttpStore(server.url.replace("127.0.0.1", "models.example.org")), first_wait_s=0.01,
                              tell=told.append)
        assert store.stat("modelfs.json", Deadline(20)).size > 0
    assert not failures


def test_a_server_whose_clock_is_ahead_tells_of_every_change(root: Path, tmp_path: Path, modelfs: Run) -> None:
    """Its Date is a year in the future."""
    source, seen = tmp_path / "source", set()
    with own_server(root, writable=True, before=AHEAD) as url:
        for n in range(2):
            write(source, {"w.bin": b"%d" % n})
            assert json.loads(modelfs("push", source, url, "lab/model", "--json").out)["version"] == f"v{n + 1}"
            answer = requests.get(f"{url}/catalog.json", timeout=20)
            seen.add(answer.headers["ETag"])
            assert int(answer.headers["Date"].split()[3]) >= time.gmtime().tm_year + 1, "it is not ahead"
        with reading(url) as r:
            assert r.read(r.file("w.bin")) == b"1"
    assert len(seen) == 2

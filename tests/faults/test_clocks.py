"""Clocks that go back, of a server, a client, a gc, a cache: order comes from numbers, and nothing is deleted early."""

from __future__ import annotations

import json
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from contextlib import closing
from email.utils import formatdate
from pathlib import Path

import pytest
import requests
from results import Result
from server.uploading import name_of, put
from servers import own_server
from transfer.pushed import eventually, make_repository, noise, push_files, reading, soon, write

from modelfs.cache.cache import Cache
from modelfs.errors import Unavailable
from modelfs.ids import ModelRef
from modelfs.maintenance.gc import GcOptions, collect
from modelfs.maintenance.removal import remove
from modelfs.metrics import Metrics
from modelfs.stores.http_store import HttpStore
from modelfs.units import DiskShare, MiB

YEAR = 365 * 86_400.0
BACK = f"import time; real = time.time; time.time = lambda: real() - {YEAR}\n"
Run = Callable[..., Result]


def push_in_the_past(source: Path, url: str, environ: dict[str, str]) -> dict[str, object]:
    code = BACK + "from modelfs.cli.main import main\nmain()"
    done = subprocess.run([sys.executable, "-c", code, "push", str(source), url, "lab/model", "--json"], text=True,
                          env={**environ, "PYTHONPATH": str(Path(__file__).parents[2])}, capture_output=True,
                          timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    return dict(json.loads(done.stdout))


def test_a_push_by_a_client_whose_clock_went_back_is_the_newest_version(tmp_path: Path, environ: dict[str, str],
                                                                       modelfs: Run) -> None:
    root = tmp_path / "repository"
    make_repository(root)
    source = write(tmp_path / "source", {"w.bin": b"one"})
    assert modelfs("push", source, root, "lab/model").code == 0
    write(source, {"w.bin": b"two"})
    report = push_in_the_past(source, str(root), environ)
    log = json.loads(modelfs("log", root, "lab/model", "--json").out)["versions"]
    assert [(row["version"], row["parent"], row["tags"]) for row in log] == [("v2", "v1", ["latest"]), ("v1", None, [])]
    assert log[0]["created"] < log[1]["created"], "the clock did not go back"
    assert report["changed"]
    with reading(root) as r:
        assert r.read(r.file("w.bin")) == b"two"
    write(source, {"w.bin": b"three"})
    assert json.loads(modelfs("push", source, root, "lab/model", "--json").out)["version"] == "v3"


def test_a_server_whose_clock_went_back_tells_of_every_change_and_keeps_what_is_being_written(
        tmp_path: Path, modelfs: Run) -> None:
    root = tmp_path / "repository"
    make_repository(root)
    source = write(tmp_path / "source", {"w.bin": b"one"})
    fresh = root / "packs" / f".{'ab' * 32}.0123456789abcdef"
    with own_server(root, writable=True, before=BACK) as url:
        fresh.parent.mkdir(exist_ok=True)
        fresh.write_bytes(b"half")
        seen = set()
        for n in range(3):
            write(source, {"w.bin": b"%d" % n})
            assert json.loads(modelfs("push", source, url, "lab/model", "--json").out)["version"] == f"v{n + 1}"
            seen.add(requests.get(f"{url}/catalog.json", timeout=20).headers["ETag"])
        data = noise(80, 1000)
        assert put(url, name_of(data), data).status_code == 201
        assert (root / name_of(data)).stat().st_mtime > time.time() - YEAR / 2, "gc would take it for an old one"
    assert len(seen) == 3 and fresh.exists()


def test_a_date_to_come_again_at_is_taken_by_the_servers_clock() -> None:
    """A server a year behind, or a client a year ahead: the same difference."""
    then = time.time() - YEAR
    head = (f"HTTP/1.1 503 Busy\r\nDate: {formatdate(then, usegmt=True)}\r\n"
            f"Retry-After: {formatdate(then + 7, usegmt=True)}\r\nContent-Length: 0\r\nConnection: close\r\n\r\n")
    with socket.create_server(("127.0.0.1", 0)) as listener:
        def answer() -> None:
            with listener.accept()[0] as connection:
                connection.recv(65536)
                connection.sendall(head.encode())

        threading.Thread(target=answer, daemon=True).start()
        with pytest.raises(Unavailable) as caught:
            HttpStore(f"http://127.0.0.1:{listener.getsockname()[1]}").stat("catalog.json", soon())
    assert caught.value.retry_after_s == 7


def test_a_gc_whose_clock_went_back_deletes_nothing_early(tmp_path: Path) -> None:
    repository = make_repository(tmp_path / "repository")
    push_files(repository, {"w.bin": noise(81, 300_000)})
    remove(repository, ModelRef.parse("lab/model"), soon)

    def gc_at(seconds: float) -> int:
        return collect(repository, GcOptions(7 * 86_400, False, soon, 2, clock=lambda: seconds)).objects_deleted

    now = time.time()
    assert gc_at(now) == 0 and repository.catalog(soon()).catalog.dropped
    assert gc_at(now - YEAR) == 0
    assert gc_at(now + 6 * 86_400) == 0
    assert gc_at(now + 8 * 86_400) > 0


def test_a_cache_whose_clock_went_back_stays_within_its_limit_and_goes_on_caching(
        tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every chunk of the first file was used a year from now, by the clock that then went back."""
    root = tmp_path / "repository"
    files = {"future.bin": noise(82, 3 * MiB), "now.bin": noise(83, 12 * MiB)}
    push_files(make_repository(root), files)
    real = time.time
    with closing(Cache(tmp_path / "cache", DiskShare(size_bytes=6 * MiB), DiskShare(size_bytes=0), Metrics())) as cache:
        with reading(root, cache) as r:
            with monkeypatch.context() as ahead:
                ahead.setattr(time, "time", lambda: real() + YEAR)
                assert r.read(r.file("future.bin")) == files["future.bin"]
                eventually(lambda: r.file("future.bin").cached_bytes() == 3 * MiB)
            for _ in range(2):
                assert r.read(r.file("now.bin")) == files["now.bin"]
            eventually(lambda: r.file("now.bin").cached_bytes() > 0)
            assert r.read(r.file("future.bin")) == files["future.bin"]
        eventually(lambda: cache.status().bytes <= 6 * MiB)

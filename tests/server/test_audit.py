"""A server that audits itself: what it says of its packs, what it costs others, and that it ends with who asked."""

from __future__ import annotations

import ctypes
import mmap
import os
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
import requests
from blake3 import blake3
from servers import own_server
from transfer.pushed import eventually, make_repository, noise

from modelfs.ids import ObjectId
from modelfs.maintenance.auditing import Packs, Question, consult
from modelfs.repository import keys
from modelfs.stores.http_store import HttpStore
from modelfs.stores.retrying import RetryingStore
from modelfs.stores.store import ObjectStore
from modelfs.units import GiB, KiB, MiB

CONTENTS = [noise(seed, 40 * KiB + 1000 * seed) for seed in range(12)] + [noise(99, 9 * MiB)]


def put(root: Path, data: bytes, name: bytes | None = None) -> Path:
    path = root / keys.pack(ObjectId(name or blake3(data).digest()))
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)
    return path


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A dozen packs, one of which is not what its name says, and what is no pack."""
    root = tmp_path_factory.mktemp("audit") / "root"
    for data in CONTENTS:
        put(root, data)
    (root / "packs" / "ab").mkdir(exist_ok=True)
    put(root, b"spoilt", bytes.fromhex("ab" * 32))
    (root.parent / "outside").write_bytes(b"outside")
    (root / "packs" / "ab" / ("ab" + "0" * 62)).symlink_to(root.parent / "outside")
    (root / "packs" / "ac").symlink_to(root / "packs" / "ab")
    os.mkfifo(root / "packs" / "ab" / ("ab" + "1" * 62))
    (root / "packs" / "ab" / ("ab" + "2" * 62)).mkdir()
    (root / "packs" / "ab" / ("cd" * 32)).write_bytes(b"in another's directory")
    (root / "packs" / "ab" / f".{'ab' * 32}.0123456789abcdef").write_bytes(b"an upload")
    return root


@pytest.fixture(scope="module")
def url(root: Path) -> Iterator[str]:
    with own_server(root, before="import modelfs.maintenance.auditing as a; a.MOST_ROWS = 3") as url:
        yield url


def store(url: str) -> ObjectStore:
    return RetryingStore(HttpStore(url))


def digests(url: str, question: Question) -> Packs:
    word = consult(store(url), question, deadline_s=20)
    assert word is not None
    told = word.digests(lambda hashed: None)
    assert word.trouble is None
    return told


def names(packs: Packs) -> set[str]:
    return {row["name"].tobytes().hex() for row in packs.rows}


def test_one_request_tells_the_sizes_of_all_packs_and_of_nothing_else(root: Path, url: str) -> None:
    word = consult(store(url), None, deadline_s=20)
    assert word is not None
    assert names(word.sizes) == {blake3(data).hexdigest() for data in CONTENTS} | {"ab" * 32}
    for data in CONTENTS:
        found = word.sizes.find(blake3(data).digest())
        assert found is not None and found["size"] == len(data)
    assert word.sizes.find(bytes(32)) is None


def test_every_byte_is_hashed_with_the_askers_nonce_and_what_is_wrong_is_called_so(url: str) -> None:
    question = Question.fresh("digests")
    told = digests(url, question)
    assert len(told) == len(CONTENTS) + 1
    for data in [*CONTENTS, b"spoilt"]:
        row = told.find(bytes.fromhex("ab" * 32) if data == b"spoilt" else blake3(data).digest())
        assert row is not None and row["size"] == len(data)
        assert row["mark"].tobytes() == blake3(data, key=question.nonce).digest()
        assert bool(row["right"]) is (data != b"spoilt")
    other = Question.fresh("digests")
    again = digests(url, other)
    assert not set(told.rows["mark"].tolist()) & set(again.rows["mark"].tolist())
    assert question.root(told.rows) != other.root(again.rows)


def test_servers_that_hold_the_same_give_the_same_root(root: Path, url: str, tmp_path: Path) -> None:
    for data in CONTENTS:
        put(tmp_path / "other", data)
    question = Question.fresh("digests")
    with own_server(tmp_path / "other") as other:
        both = [digests(each, question) for each in (url, other)]
        right = both[0].rows[both[0].rows["right"]]
        assert question.root(right) == question.root(both[1].rows)
        put(tmp_path / "other", b"not that", blake3(CONTENTS[3]).digest())
        assert question.root(right) != question.root(digests(other, question).rows)


def test_the_nonce_chooses_a_sample_and_any_two_choose_the_same(url: str) -> None:
    question = Question.fresh("digests", 0.5)
    chosen = {blake3(data).hexdigest() for data in CONTENTS if question.chooses(blake3(data).digest())}
    assert names(digests(url, question)) - {"ab" * 32} == chosen
    assert any(names(digests(url, Question.fresh("digests", 0.5))) != names(digests(url, question)) for _ in range(20))


def test_what_broke_off_goes_on_behind_the_last_pack(url: str) -> None:
    middle = sorted(blake3(data).digest() for data in CONTENTS)[6]
    question = Question("digests", os.urandom(32), after=middle)
    wanted = {blake3(data).hexdigest() for data in CONTENTS if blake3(data).digest() > middle}
    assert names(digests(url, question)) - {"ab" * 32} == wanted


@pytest.mark.parametrize("path", ["audit", "audit/", "audit/sizes", "audit/files/" + "0" * 64 + "/" + "0" * 17 + "/" +
                                  "0" * 64, "audit/sizes/" + "g" * 64 + "/1" + "0" * 16 + "/" + "0" * 64])
def test_what_asks_nothing_is_no_object(url: str, path: str) -> None:
    assert requests.get(f"{url}/{path}", timeout=20).status_code == 404
    assert requests.head(f"{url}/{Question.fresh('sizes').key}", timeout=20).status_code == 404


def test_who_may_not_read_may_not_ask(tmp_path: Path, environ: dict[str, str]) -> None:
    make_repository(tmp_path / "repository")
    tokens = tmp_path / "tokens"
    tokens.write_text("secret read\n")
    tokens.chmod(0o600)
    process = subprocess.Popen([sys.executable, "-m", "modelfs", "serve", str(tmp_path / "repository"), "--port", "0",
                                "--token-file", str(tokens)], env={**environ, "PYTHONPATH": os.getcwd()}, text=True,
                               stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    try:
        assert process.stderr
        url = f"{process.stderr.readline().split()[-1]}/{Question.fresh('sizes').key}"
        assert requests.get(url, timeout=20).status_code == 401
        assert requests.get(url, timeout=20, headers={"Authorization": "Bearer secret"}).status_code == 200
    finally:
        process.kill()
        process.communicate()


def test_one_audit_at_a_time_and_it_ends_with_who_asked_for_it(tmp_path: Path) -> None:
    """Of a pack that takes long: it is a hole of 64 GiB."""
    pack = put(tmp_path / "root", b"", bytes.fromhex("cd" * 32))
    os.truncate(pack, 64 * GiB)
    with own_server(tmp_path / "root") as url:
        host, port = url.removeprefix("http://").split(":")

        def ask(what: str) -> int:
            # the status alone
            with socket.create_connection((host, int(port)), 20) as connection:
                connection.sendall(f"GET /{Question.fresh(what).key} HTTP/1.1\r\nHost: {host}\r\n\r\n".encode())  # type: ignore[arg-type]
                head = connection.recv(4096)
                assert b"503" not in head[:13] or b"Retry-After: 2" in head
                return int(head.split()[1])

        long = requests.get(f"{url}/{Question.fresh('digests').key}", stream=True, timeout=20)
        assert long.status_code == 200
        assert ask("digests") == 503
        assert ask("sizes") == 200, "sizes do not wait for digests"
        signs = long.iter_content(None)
        assert len(next(signs)) and len(next(signs)), "it says that it is at work, though no pack is done"
        long.close()
        eventually(lambda: ask("digests") == 200)


def test_the_page_cache_holds_afterwards_what_it_held_before(tmp_path: Path) -> None:
    """Where pages cannot be dropped, as on a tmpfs, they stay as they were all the same."""
    hot, cold = (put(tmp_path / "root", noise(seed, 9 * MiB + 5)) for seed in (1, 2))
    for path in (hot, cold):
        with path.open("rb") as file:
            os.fsync(file.fileno())
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
    hot.read_bytes()
    before = cached_pages(hot), cached_pages(cold)
    with own_server(tmp_path / "root") as url:
        assert digests(url, Question.fresh("digests")).rows["right"].all()
        assert cached_pages(hot) > before[0] // 2  # others, too, may have the kernel take some
        assert cached_pages(cold) < before[1] + MiB // mmap.PAGESIZE


def cached_pages(path: Path) -> int:
    libc = ctypes.CDLL(None, use_errno=True)
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY) as mapped:
        pages = (ctypes.c_ubyte * -(-len(mapped) // mmap.PAGESIZE))()
        address = ctypes.c_char.from_buffer(mapped)
        assert libc.mincore(ctypes.c_void_p(ctypes.addressof(address)), ctypes.c_size_t(len(mapped)), pages) == 0
        del address
        return sum(page & 1 for page in pages)


def test_readers_beside_an_audit_get_all_they_ask_for(tmp_path: Path) -> None:
    packs = [put(tmp_path / "root", noise(seed, 3 * MiB)) for seed in range(4)]
    failed: list[object] = []
    with own_server(tmp_path / "root") as url:
        stop = threading.Event()

        def read() -> None:
            with requests.Session() as session:
                while not stop.is_set():
                    for pack in packs:
                        got = session.get(f"{url}/{pack.relative_to(tmp_path / 'root')}", timeout=20)
                        if got.status_code != 200 or blake3(got.content).hexdigest() != pack.name:
                            failed.append(got.status_code)

        reader = threading.Thread(target=read, daemon=True)
        reader.start()
        try:
            for _ in range(3):
                assert digests(url, Question.fresh("digests")).rows["right"].all()
        finally:
            stop.set()
            reader.join(30)
    assert not failed and not reader.is_alive()

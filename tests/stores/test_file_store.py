"""FileStore on a real directory: what stands on the disk, and what the operating system may answer."""

from __future__ import annotations

import errno
import fcntl
import os
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from pathlib import Path

import pytest

from modelfs.errors import DeadlinePassed, Forbidden, Malformed, NoSpace, ObjectMissing, Unavailable
from modelfs.stores.file_store import FileStore
from modelfs.units import Deadline, MiB

PACK = "packs/ab/ab" + "1" * 62


def soon() -> Deadline:
    return Deadline(20)


@pytest.fixture
def store(tmp_path: Path) -> FileStore:
    return FileStore(tmp_path / "root")


def test_an_object_is_a_file_of_its_name_with_the_mode_of_the_umask(store: FileStore) -> None:
    old = os.umask(0o027)
    try:
        store.put(PACK, b"x", soon())
    finally:
        os.umask(old)
    assert (store.root / PACK).stat().st_mode & 0o777 == 0o640
    assert os.listdir((store.root / PACK).parent) == [Path(PACK).name]


def test_url_names_the_directory(tmp_path: Path) -> None:
    assert FileStore(tmp_path / "a b").url == f"file://{tmp_path}/a%20b"


def test_a_repository_that_is_not_there_misses_every_object(store: FileStore) -> None:
    with pytest.raises(ObjectMissing):
        store.get("modelfs.json", soon(), limit=10)
    with pytest.raises(ObjectMissing):
        store.stat("modelfs.json", soon())
    assert list(store.list("", soon())) == []
    store.delete("modelfs.json", soon())
    assert not store.root.exists()


@pytest.mark.parametrize("make", [Path.mkdir, lambda path: os.mkfifo(path)], ids=["directory", "fifo"])
def test_what_is_no_file_is_malformed_and_never_read(store: FileStore, make: object) -> None:
    path = store.root / PACK
    path.parent.mkdir(parents=True)
    make(path)  # type: ignore[operator]
    for call in (lambda: store.get(PACK, soon(), limit=10), lambda: store.stat(PACK, soon()),
                 lambda: store.open_range(PACK, 0, 1, soon())):
        with pytest.raises(Malformed):
            call()


def test_a_directory_in_an_objects_place_stops_writers(store: FileStore) -> None:
    (store.root / PACK).mkdir(parents=True)
    for call in (lambda: store.put(PACK, b"x", soon()), lambda: store.swap(PACK, None, b"x", soon()),
                 lambda: store.delete(PACK, soon())):
        with pytest.raises(Malformed):
            call()
    assert [name for name in os.listdir((store.root / PACK).parent) if name.startswith(".")] == []


def test_a_file_in_a_directorys_place_is_a_missing_object_to_readers(store: FileStore) -> None:
    store.root.mkdir()
    (store.root / "packs").write_bytes(b"x")
    with pytest.raises(ObjectMissing):
        store.stat(PACK, soon())
    with pytest.raises(Malformed):
        store.put(PACK, b"x", soon())


def test_a_file_that_became_shorter_is_malformed(store: FileStore) -> None:
    store.put(PACK, b"x" * 1000, soon())
    with store.open_range(PACK, 0, 1000, soon()) as stream:
        os.truncate(store.root / PACK, 500)
        with pytest.raises(Malformed):
            stream.readinto(memoryview(bytearray(1000)))


def _failing(number: int) -> object:
    def fail(*_: object, **__: object) -> object:
        raise OSError(number, os.strerror(number))
    return fail


@pytest.mark.parametrize(("number", "kind"), [
    (errno.ENOSPC, NoSpace), (errno.EDQUOT, NoSpace), (errno.EROFS, Forbidden), (errno.EACCES, Forbidden),
    (errno.EIO, Unavailable)])
def test_a_disk_that_fails_in_a_write_leaves_nothing_behind(
        store: FileStore, monkeypatch: pytest.MonkeyPatch, number: int, kind: type[Exception]) -> None:
    store.put(PACK, b"old", soon())
    with monkeypatch.context() as patched:
        patched.setattr(os, "fsync", _failing(number))
        for call in (lambda: store.put(PACK, b"new", soon()), lambda: store.swap("catalog.json", None, b"x", soon())):
            with pytest.raises(kind):
                call()
    found = store.get(PACK, soon(), limit=10)
    assert found and found.data == b"old"
    assert [info.key for info in store.list("", soon())] == [PACK]
    assert store.sweep(-1000) == 0


def test_a_real_full_disk_is_no_space(tmp_path: Path) -> None:
    """The limit on a file's size stands for the disk's: EFBIG after a part was written, as ENOSPC comes."""
    code = f"""
import resource, signal, sys
from pathlib import Path
from modelfs.errors import NoSpace
from modelfs.stores.file_store import FileStore
from modelfs.units import Deadline
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
try:
    FileStore(Path({str(tmp_path)!r})).put({PACK!r}, b"x" * 200_000, Deadline(20))
except NoSpace:
    sys.exit(8)
"""
    assert subprocess.run([sys.executable, "-c", code], cwd=Path(__file__).parents[2], check=False).returncode == 8
    assert list(FileStore(tmp_path).list("", soon())) == [] and FileStore(tmp_path).sweep(-1000) == 0


def test_a_file_that_may_not_be_read_is_forbidden(store: FileStore, monkeypatch: pytest.MonkeyPatch) -> None:
    store.put(PACK, b"x", soon())
    monkeypatch.setattr(os, "open", _failing(errno.EACCES))
    with pytest.raises(Forbidden):
        store.get(PACK, soon(), limit=10)


def test_without_hard_links_one_of_many_puts_if_absent_wins(store: FileStore, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "link", _failing(errno.EPERM))
    with ThreadPoolExecutor(8) as pool:
        won = list(pool.map(lambda n: store.put(PACK, b"%d" % n, soon(), only_if_absent=True), range(8)))
    found = store.get(PACK, soon(), limit=10)
    assert won.count(True) == 1 and found and found.data == b"%d" % won.index(True)


def test_every_replacement_has_a_later_second_as_its_time(store: FileStore) -> None:
    etag = store.swap("catalog.json", None, b"0", soon())
    path = store.root / "catalog.json"
    times = [path.stat().st_mtime]
    for n in range(5):
        etag = store.swap("catalog.json", etag, b"%d" % n, soon())
        times.append(path.stat().st_mtime)
    store.put("catalog.json", b"9", soon())
    times.append(path.stat().st_mtime)
    assert all(int(later) > int(earlier) for earlier, later in pairwise(times))


def test_a_swap_waits_for_the_lock_of_another_until_its_deadline(store: FileStore) -> None:
    etag = store.swap("catalog.json", None, b"one", soon())
    with (store.root / ".lock").open("rb") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        with pytest.raises(DeadlinePassed):
            store.swap("catalog.json", etag, b"two", Deadline(0.1))
    assert store.swap("catalog.json", etag, b"two", soon())


def test_sweep_removes_what_killed_writers_left_and_nothing_else(store: FileStore) -> None:
    store.put(PACK, b"x", soon())
    left = store.root / "packs" / "ab" / (".ab" + "1" * 62 + ".0123456789abcdef")
    left.write_bytes(b"12345")
    young = store.root / ".catalog.json.0123456789abcdef"
    young.write_bytes(b"123")
    other = store.root / ".gitignore"
    other.write_bytes(b"123")
    old = time.time() - 7200
    for path in (left, other, store.root / PACK):
        os.utime(path, (old, old))
    assert store.sweep(3600) == 5
    assert (left.exists(), young.exists(), other.exists(), (store.root / PACK).exists()) == (False, True, True, True)


def test_a_writer_that_is_killed_leaves_the_old_object(store: FileStore) -> None:
    etag = store.swap("catalog.json", None, b"a" * MiB, soon())
    code = f"""
import os, signal
from pathlib import Path
from modelfs.stores.file_store import FileStore
from modelfs.units import Deadline
os.replace = lambda *_: os.kill(os.getpid(), signal.SIGKILL)
FileStore(Path({str(store.root)!r})).swap("catalog.json", {etag!r}, b"b", Deadline(20))
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=Path(__file__).parents[2], check=False)
    assert done.returncode == -9
    found = store.get("catalog.json", soon(), limit=MiB)
    assert found and found.data == b"a" * MiB
    assert store.swap("catalog.json", etag, b"c", Deadline(5))
    assert store.sweep(-1000) == 1

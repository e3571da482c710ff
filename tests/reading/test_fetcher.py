"""Missing chunks come from real repositories, by files and by HTTP, checked, once, and never too late."""

from __future__ import annotations

import logging
import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from faultproxy import FaultProxy
from transfer.pushed import (
    CHUNK,
    Reading,
    eventually,
    in_background,
    make_repository,
    noise,
    packs,
    push_files,
    reading,
)

from modelfs.cache.cache import Cache
from modelfs.errors import IntegrityError, ModelfsError, Unavailable
from modelfs.metrics import Metrics
from modelfs.reading import failures
from modelfs.reading.flights import Priority, Want
from modelfs.reading.versions import ModelFile, NoChunkCache, NoFileCache
from modelfs.units import DiskShare, KiB, MiB

WEIGHTS = noise(1, 40 * CHUNK + 1234)
OTHER = noise(2, 20 * CHUNK)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    repository = make_repository(tmp_path / "repository")
    push_files(repository, {"weights.bin": WEIGHTS})
    push_files(repository, {"other.bin": OTHER}, "lab/other")
    return tmp_path / "repository"


@pytest.fixture
def proxy(root: Path) -> Iterator[FaultProxy]:
    with FaultProxy(root) as server:
        yield server


@pytest.fixture
def cache(tmp_path: Path) -> Iterator[Cache]:
    made = Cache(tmp_path / "cache", DiskShare(size_bytes=256 * MiB), DiskShare(size_bytes=0), Metrics())
    yield made
    made.close()


@dataclass
class Told:
    """The answer of a read. then: what its reader does as it hears of an error."""

    then: Callable[[], object] = lambda: None
    error: ModelfsError | None = None

    def room(self) -> memoryview:
        return memoryview(bytearray(2 * CHUNK))

    def done(self, data: memoryview) -> None:
        raise AssertionError("a store that hangs has answered")

    def failed(self, error: ModelfsError) -> None:
        self.error = error
        self.then()


def pack_of(file: ModelFile, chunk: int = 0) -> str:
    place = file.version.place(file.entry.first_row + chunk)
    assert place
    return place.pack.hex()


def read_into_cache(r: Reading) -> None:
    """A reader is told before the cache is: the last chunk may be a moment late there."""
    file = r.file("weights.bin")
    assert r.read(file) == WEIGHTS
    eventually(lambda: file.cached_bytes() == len(WEIGHTS))


@pytest.mark.parametrize("cached", [False, True])
def test_any_range_of_a_file_reads_as_it_was_pushed(root: Path, cache: Cache, cached: bool) -> None:
    pick = random.Random(3)
    with reading(root, cache if cached else None) as r:
        file = r.file("weights.bin")
        for _ in range(100):
            offset, size = pick.randrange(len(WEIGHTS) + 10), pick.randrange(1, 5 * CHUNK)
            assert r.read(file, offset, size) == WEIGHTS[offset:offset + size]


def test_what_was_read_once_is_read_from_the_cache(proxy: FaultProxy, cache: Cache) -> None:
    with reading(proxy.url, cache) as r:
        file = r.file("weights.bin")
        read_into_cache(r)
        proxy.down()
        assert r.read(file) == WEIGHTS


def test_neighbouring_chunks_come_in_one_request(proxy: FaultProxy) -> None:
    with reading(proxy.url) as r:
        assert r.read(r.file("weights.bin"), 0, 16 * CHUNK) == WEIGHTS[:16 * CHUNK]
        assert proxy.requests("packs/") == 1


def test_a_whole_file_comes_in_ranges_of_about_sixteen_mib(tmp_path: Path) -> None:
    push_files(make_repository(tmp_path / "large", 2 * MiB), {"w.bin": noise(6, 48 * MiB)})
    with FaultProxy(tmp_path / "large") as proxy, reading(proxy.url) as r:
        file = r.file("w.bin")
        r.fetcher.ensure([Want(file, chunk) for chunk in range(24)], None, Priority.HYDRATION)
        eventually(lambda: r.count("chunks_fetched") == 24)
        ranges = [seen.headers["range"].removeprefix("bytes=").split("-") for seen in proxy.seen("packs/")]
        lengths = [int(last) + 1 - int(first) for first, last in ranges]
        assert sum(lengths) == 48 * MiB and len(lengths) <= 4 and max(lengths) <= 22 * MiB


def test_readers_of_one_chunk_share_one_request(proxy: FaultProxy) -> None:
    proxy.add("drip", "packs/", piece=8 * KiB, interval_s=0.02)
    with reading(proxy.url) as r:
        file = r.file("weights.bin")
        waiting = [in_background(lambda: r.read(file, 100, 1000)) for _ in range(12)]
        assert all(one.result() == WEIGHTS[100:1100] for one in waiting)
        assert proxy.requests("packs/") == 1


def test_a_chunk_that_a_read_touches_often_is_told_once_and_cached_everywhere(tmp_path: Path, cache: Cache) -> None:
    repository = make_repository(tmp_path / "same")
    data = noise(4, CHUNK) * 10
    push_files(repository, {"same.bin": data})
    with reading(tmp_path / "same", cache) as r:
        file = r.file("same.bin")
        told: list[object] = []

        class Waiter:
            def arrived(self, id: object, decoded: memoryview) -> None:
                told.append(bytes(decoded) == data[:CHUNK])

            def failed(self, id: object, error: ModelfsError) -> None:
                told.append(error)

        r.fetcher.ensure([Want(file, chunk) for chunk in range(10)], Waiter())
        assert r.read(file) == data
        assert told == [True]
        eventually(lambda: file.cached_bytes() == len(data))


def test_small_files_come_with_the_first_of_them(tmp_path: Path, cache: Cache) -> None:
    repository = make_repository(tmp_path / "small")
    files = {f"{n}.json": noise(n, 100 + n) for n in range(60)}
    push_files(repository, files)
    with FaultProxy(tmp_path / "small") as proxy, reading(proxy.url, cache) as r:
        assert r.read(r.file("0.json")) == files["0.json"]
        assert all(r.read(r.file(path)) == data for path, data in files.items())
        assert proxy.requests("packs/") == 1


def test_heads_of_an_older_version_are_heads_of_the_next(tmp_path: Path, cache: Cache) -> None:
    repository = make_repository(tmp_path / "small")
    files = {f"{n}.json": noise(n, 100 + n) for n in range(20)}
    push_files(repository, {**files, "w.bin": WEIGHTS})
    push_files(repository, {**files, "w.bin": OTHER})
    with FaultProxy(tmp_path / "small") as proxy, reading(proxy.url, cache) as r:
        assert all(r.read(r.file(path)) == data for path, data in files.items())
        assert proxy.requests("packs/") == 1


def test_memory_for_less_than_one_chunk_still_reads(root: Path) -> None:
    with reading(root, memory_bytes=10 * KiB, connections=8, readahead_bytes=64 * MiB) as r:
        file, other = r.file("weights.bin"), r.file("other.bin", "lab/other")
        readers = [in_background(lambda f=f: r.read(f)) for f in (file, other) * 6]
        assert [one.result() for one in readers] == [WEIGHTS, OTHER] * 6


def test_a_prefetch_that_stalls_holds_no_memory_or_connection_that_a_reader_needs(proxy: FaultProxy) -> None:
    with reading(proxy.url, connections=2, memory_bytes=10 * KiB) as r:
        ahead, wanted = r.file("weights.bin"), r.file("other.bin", "lab/other")
        proxy.add("stall", pack_of(ahead), after=1000)
        r.fetcher.ensure([Want(ahead, chunk) for chunk in range(20)], None, Priority.AHEAD)
        eventually(lambda: r.fetcher._pool.held_bytes() > 0)
        assert in_background(lambda: r.read(wanted)).result() == OTHER
        assert r.count("fetch_retries") == 0  # it stalls still


def test_a_reader_who_comes_for_a_waiting_prefetch_goes_first(proxy: FaultProxy) -> None:
    with reading(proxy.url, connections=3) as r:
        stalled, wanted = r.file("weights.bin"), r.file("other.bin", "lab/other")
        proxy.add("stall", pack_of(stalled), after=0)
        r.fetcher.ensure([Want(stalled, 0)], None, Priority.AHEAD)
        r.fetcher.ensure([Want(wanted, chunk) for chunk in range(20)], None, Priority.AHEAD)
        assert in_background(lambda: r.read(wanted, 10 * CHUNK, 10)).result() == OTHER[10 * CHUNK:10 * CHUNK + 10]


def test_a_bit_that_flips_on_the_wire_is_fetched_again(proxy: FaultProxy) -> None:
    proxy.add("flip", "packs/", times=1, offset=100)
    with reading(proxy.url) as r:
        assert r.read(r.file("weights.bin"), 0, CHUNK) == WEIGHTS[:CHUNK]
        assert (r.count("hash_failures"), r.count("errors")) == (1, 0)


def test_a_chunk_that_stays_wrong_fails_and_the_log_names_all(proxy: FaultProxy,
                                                              caplog: pytest.LogCaptureFixture) -> None:
    proxy.add("flip", "packs/", offset=100)
    with reading(proxy.url) as r, caplog.at_level(logging.ERROR, "modelfs"):
        file = r.file("weights.bin")
        with pytest.raises(IntegrityError):
            r.read(file, 0, CHUNK)
        assert (r.count("hash_failures"), r.count("errors")) == (2, 1)
        events = [record.modelfs_event for record in caplog.records]  # type: ignore[attr-defined]
        assert [event.name for event in events] == ["chunk.corrupt", "chunk.corrupt", "chunk.failed"]
        for event in events:
            assert event.fields | {"file": "weights.bin", "chunk": file.ref(0).id.hex(), "pack": pack_of(file),
                                   "store": proxy.url} == event.fields


def test_a_failure_is_remembered_for_a_moment(proxy: FaultProxy, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(failures, "REMEMBER_DAMAGE_S", 60)  # longer than this test can take
    proxy.add("flip", "packs/", offset=100)
    with reading(proxy.url) as r:
        file = r.file("weights.bin")
        for _ in range(3):
            with pytest.raises(IntegrityError):
                r.read(file, 0, CHUNK)
        assert proxy.requests("packs/") == 2


def test_what_else_a_late_read_asked_for_is_not_waited_for_once_more(proxy: FaultProxy,
                                                                     monkeypatch: pytest.MonkeyPatch) -> None:
    """As the kernel does, which reads around a page of a mapping, and asks for that page alone as this fails."""
    monkeypatch.setattr(failures, "REMEMBER_FAILURE_S", 120)  # longer than this test can take
    proxy.add("hang", "packs/")
    with reading(proxy.url) as r:
        file = r.file("weights.bin")
        r.fetcher.remember_failure([file.ref(0)], Unavailable("a store does not answer"))
        r.fetcher.set_limits(memory_bytes=64 * MiB, deadline_s=600)
        alone = Told()
        around = Told(then=lambda: r.reader.read_later(file, CHUNK, CHUNK, alone))
        r.reader.read_later(file, 0, 2 * CHUNK, around)
        assert [type(error) for error in (around.error, alone.error)] == [Unavailable] * 2


def test_damage_that_was_mended_is_soon_forgotten(proxy: FaultProxy) -> None:
    proxy.add("flip", "packs/", offset=100)
    with reading(proxy.url) as r:
        file = r.file("weights.bin")
        with pytest.raises(IntegrityError):
            r.read(file, 0, CHUNK)
        proxy.clear()
        eventually(lambda: in_background(lambda: r.read(file, 0, CHUNK)).result() == WEIGHTS[:CHUNK])


def test_the_neighbours_of_a_bad_chunk_are_read(root: Path) -> None:
    with reading(root) as r:
        file = r.file("weights.bin")
        place = file.version.place(file.entry.first_row + 7)
        assert place
        path = root / "packs" / place.pack.hex()[:2] / place.pack.hex()
        data = bytearray(path.read_bytes())
        data[place.offset] ^= 1
        path.write_bytes(data)
        with pytest.raises(IntegrityError):
            r.read(file, 6 * CHUNK, 3 * CHUNK)
        assert r.read(file, 0, 7 * CHUNK) == WEIGHTS[:7 * CHUNK]
        assert r.read(file, 8 * CHUNK) == WEIGHTS[8 * CHUNK:]


def test_a_pack_that_ends_early_has_the_chunks_before_its_end(root: Path) -> None:
    with reading(root) as r:
        file = r.file("weights.bin")
        place = file.version.place(file.entry.first_row + 10)
        assert place
        path = root / "packs" / place.pack.hex()[:2] / place.pack.hex()
        path.write_bytes(path.read_bytes()[:place.offset + 5])
        with pytest.raises(IntegrityError):
            r.read(file, 0, 20 * CHUNK)
        assert r.read(file, 0, 10 * CHUNK) == WEIGHTS[:10 * CHUNK]


def test_a_pack_that_is_gone_is_an_integrity_error(root: Path) -> None:
    with reading(root) as r:
        file = r.file("weights.bin")
        for path in packs(root):
            path.unlink()
        with pytest.raises(IntegrityError):
            r.read(file)


def test_a_store_that_hangs_delays_no_cached_read(proxy: FaultProxy, cache: Cache) -> None:
    with reading(proxy.url, cache, connections=2) as r:
        file = r.file("weights.bin")
        assert r.read(file, 0, CHUNK) == WEIGHTS[:CHUNK]
        eventually(lambda: file.cached_bytes() == CHUNK)
        proxy.add("hang", "packs/")
        waiting = [in_background(lambda n=n: r.read(file, n * CHUNK, 10)) for n in range(5, 15)]
        assert in_background(lambda: r.read(file, 0, CHUNK)).result() == WEIGHTS[:CHUNK]
        assert all(not one.results for one in waiting)
        proxy.clear()
        assert [one.result() for one in waiting] == [WEIGHTS[n * CHUNK:n * CHUNK + 10] for n in range(5, 15)]


def test_unchecked_chunks_of_the_disk_are_read_while_the_store_hangs(proxy: FaultProxy, cache: Cache,
                                                                     tmp_path: Path) -> None:
    with reading(proxy.url, cache) as r:
        read_into_cache(r)
    cache.close()
    again = Cache(tmp_path / "cache", DiskShare(size_bytes=256 * MiB), DiskShare(size_bytes=0), Metrics())
    with reading(proxy.url, again, connections=1) as r:
        file, other = r.file("weights.bin"), r.file("other.bin", "lab/other")
        proxy.add("hang", "packs/")
        waiting = in_background(lambda: r.read(other))
        assert in_background(lambda: r.read(file)).result() == WEIGHTS
        assert r.count("chunks_verified") == 41
        proxy.clear()
        assert waiting.result() == OTHER
    again.close()


def test_a_chunk_that_went_bad_on_the_disk_is_fetched_anew(root: Path, tmp_path: Path, cache: Cache) -> None:
    with reading(root, cache) as r:
        read_into_cache(r)
    cache.close()
    largest = max((path for path in (tmp_path / "cache" / "files").rglob("*") if path.is_file()),
                  key=lambda path: path.stat().st_size)
    with largest.open("r+b") as disk:
        disk.seek(3 * CHUNK + 5)
        disk.write(bytes([WEIGHTS[3 * CHUNK + 5] ^ 1]))
    again = Cache(tmp_path / "cache", DiskShare(size_bytes=256 * MiB), DiskShare(size_bytes=0), Metrics())
    with reading(root, again) as r:
        assert r.read(r.file("weights.bin")) == WEIGHTS
        assert (r.count("hash_failures"), r.count("chunks_fetched")) == (1, 1)
    again.close()


def test_a_new_version_fetches_only_what_is_new(tmp_path: Path, cache: Cache) -> None:
    repository = make_repository(tmp_path / "two")
    push_files(repository, {"w.bin": WEIGHTS})
    tuned = WEIGHTS[:5 * CHUNK] + noise(9, CHUNK) + WEIGHTS[6 * CHUNK:]
    push_files(repository, {"w.bin": tuned})
    with reading(tmp_path / "two", cache) as r:
        file = r.file("w.bin", "lab/model:v1")
        assert r.read(file) == WEIGHTS
        eventually(lambda: file.cached_bytes() == len(WEIGHTS))
        before = r.count("chunks_fetched")
        assert r.read(r.file("w.bin", "lab/model:v2")) == tuned
        assert r.count("chunks_fetched") - before == 1


class BrokenFile(NoFileCache):
    def __init__(self, present: int) -> None:
        self._present = present

    def presence(self, row: int) -> int:
        return self._present

    def load(self, row: int, view: memoryview) -> int:
        raise ValueError("the cache has a fault")

    def fill(self, row: int, data: memoryview) -> int:
        raise ValueError("the cache has a fault")


class BrokenCache(NoChunkCache):
    def __init__(self, present: int) -> None:
        self._present = present

    def file(self, ids: object, lengths: object) -> BrokenFile:
        return BrokenFile(self._present)


@pytest.mark.parametrize("present", [0, 1])
def test_a_cache_that_breaks_costs_no_read(root: Path, present: int) -> None:
    with reading(root, BrokenCache(present)) as r:
        assert in_background(lambda: r.read(r.file("weights.bin"))).result() == WEIGHTS


def test_a_waiter_that_breaks_costs_the_others_nothing(proxy: FaultProxy) -> None:
    class Broken:
        errors: list[ModelfsError] = []  # noqa: RUF012

        def arrived(self, id: object, decoded: memoryview) -> None:
            raise ValueError("a waiter has a fault")

        def failed(self, id: object, error: ModelfsError) -> None:
            self.errors.append(error)

    proxy.add("drip", "packs/", piece=8 * KiB, interval_s=0.02)
    with reading(proxy.url) as r:
        file = r.file("weights.bin")
        r.fetcher.ensure([Want(file, 0)], Broken())
        assert in_background(lambda: r.read(file, 0, 10)).result() == WEIGHTS[:10]
        assert len(Broken.errors) == 1


@pytest.mark.parametrize("kind", ["hang", "stall"])
def test_failing_what_waits_ends_it_at_once_and_all_that_comes_later(proxy: FaultProxy, cache: Cache,
                                                                     kind: str) -> None:
    with reading(proxy.url, cache, deadline_s=3600) as r:
        file = r.file("weights.bin")
        r.read(file, 0, 10)
        eventually(lambda: file.cached_bytes() == CHUNK)
        proxy.add(kind, "packs/", after=10)
        waiting = [in_background(lambda n=n: r.read(file, n * CHUNK, 10)) for n in range(2, 12)]
        eventually(lambda: r.count("cache_misses") == 11)
        r.reader.fail_waiting("the mount is going")
        assert all(isinstance(one.result(), Unavailable) for one in waiting)
        with pytest.raises(Unavailable):
            r.read(file, 20 * CHUNK, 10)
        assert r.read(file, 0, 10) == WEIGHTS[:10]


def test_requests_go_on_where_a_connection_broke(proxy: FaultProxy) -> None:
    proxy.add("truncate", "packs/", times=3, after=5 * CHUNK)
    with reading(proxy.url) as r:
        assert r.read(r.file("weights.bin"), 0, 20 * CHUNK) == WEIGHTS[:20 * CHUNK]
        # what each of the three brought is kept: with three beginnings anew it were 35 chunks
        assert proxy.bytes_sent("packs/") < 25 * CHUNK


def test_an_empty_file_and_the_end_of_a_file_read_nothing(tmp_path: Path) -> None:
    repository = make_repository(tmp_path / "empty")
    push_files(repository, {"empty": b"", "one": b"1"})
    with reading(tmp_path / "empty") as r:
        assert r.read(r.file("empty"), 0, 10) == b""
        assert r.read(r.file("one"), 1, 10) == b""
        assert r.read(r.file("one"), 0, 10) == b"1"


def test_readers_all_over_at_once_get_their_bytes_with_a_cache_that_hardly_holds_anything(root: Path,
                                                                                          tmp_path: Path) -> None:
    small = Cache(tmp_path / "small", DiskShare(size_bytes=600 * KiB), DiskShare(size_bytes=0), Metrics())

    def roam(r: Reading, seed: int) -> bool:
        pick, files = random.Random(seed), {"weights.bin": WEIGHTS, "other.bin": OTHER}
        models = {"weights.bin": "lab/model", "other.bin": "lab/other"}
        opened = {path: r.file(path, models[path]) for path in files}
        for _ in range(60):
            path = pick.choice(list(files))
            offset, size = pick.randrange(len(files[path])), pick.randrange(1, 3 * CHUNK)
            if r.read(opened[path], offset, size) != files[path][offset:offset + size]:
                return False
        return True

    with reading(root, small, memory_bytes=MiB, readahead_bytes=4 * MiB) as r:
        assert all(one.result() is True for one in [in_background(lambda n=n: roam(r, n)) for n in range(6)])
    small.close()

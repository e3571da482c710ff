"""The rest of what is read or opened comes by itself, behind its readers, and never more than the cache keeps."""

from __future__ import annotations

import json
import random
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from faultproxy import FaultProxy
from transfer.pushed import CHUNK, Reading, eventually, in_background, make_repository, noise, push_files, reading

from modelfs.cache.cache import Cache
from modelfs.metrics import Metrics
from modelfs.reading import hydration
from modelfs.reading.hydration import Hydration, natural
from modelfs.reading.reader import Reader
from modelfs.reading.versions import ModelFile
from modelfs.settings import Hydrate
from modelfs.units import DiskShare, MiB

WEIGHTS = noise(1, 12 * MiB + 1234)
SHARDS = [f"weights-{number}-of-11.safetensors" for number in range(1, 12)]


@pytest.fixture
def root(tmp_path: Path) -> Path:
    repository = make_repository(tmp_path / "repository")
    push_files(repository, {"weights.bin": WEIGHTS})
    shards = {f"sub/{name}": noise(50 + n, 8 * CHUNK) for n, name in enumerate(SHARDS)}
    index = json.dumps({"weight_map": {f"t{n}": name for n, name in enumerate([*SHARDS, "gone.safetensors"])}})
    push_files(repository, {**shards, "sub/model.safetensors.index.json": index.encode(),
                            "other/model.safetensors.index.json": b'{"weight_map": [1]}',
                            "other/lonely.safetensors": noise(80, 8 * CHUNK),
                            "other/beside.safetensors": noise(81, 8 * CHUNK)}, "lab/sharded")
    push_files(repository, {"streamed.bin": noise(90, 11 * MiB)}, "lab/streamed")
    return tmp_path / "repository"


@contextmanager
def hydrating(spec: str | Path, tmp_path: Path, mode: Hydrate, *, connections: int = 4, cache_bytes: int = 256 * MiB,
              deadline_s: float = 30) -> Iterator[Reading]:
    """A reader with a cache of its own; the first window of its streams is 8 MiB."""
    cache = Cache(tmp_path / "cache", DiskShare(size_bytes=cache_bytes), DiskShare(size_bytes=0), metrics := Metrics())
    with reading(spec, cache, connections=connections, deadline_s=deadline_s) as r:
        made = Hydration(r.fetcher, cache, mode)
        r.reader, r.metrics = Reader(r.fetcher, metrics, 8 * MiB, hydration=made), metrics
        try:
            yield r
        finally:
            made.close()
    cache.close()


def stream(r: Reading, file: ModelFile, end: int) -> None:
    """Reads as the kernel does, 128 KiB after 128 KiB."""
    for offset in range(0, end, 2 * CHUNK):
        r.read(file, offset, min(2 * CHUNK, file.entry.size - offset))


def whole(*files: ModelFile) -> bool:
    return all(file.cached_bytes() == file.entry.size for file in files)


def test_the_rest_of_a_file_follows_its_first_stream(root: Path, tmp_path: Path) -> None:
    with hydrating(root, tmp_path, "sequential") as r:
        file = r.file("weights.bin")
        r.reader.opened(file)
        stream(r, file, 8 * MiB)
        eventually(lambda: whole(file))
        assert r.read(file) == WEIGHTS


def test_a_little_of_a_file_read_in_sequence_does_not_bring_the_rest(root: Path, tmp_path: Path) -> None:
    with hydrating(root, tmp_path, "sequential") as r:
        file, streamed = r.file("weights.bin"), r.file("streamed.bin", "lab/streamed")
        stream(r, file, 2 * MiB)  # less than a quarter
        stream(r, streamed, 8 * MiB)
        eventually(lambda: whole(streamed))  # files come one after the other: the first would be there by now
        assert file.cached_bytes() < 11 * MiB


def test_what_lies_before_a_stream_comes_after_the_rest(root: Path, tmp_path: Path) -> None:
    with hydrating(root, tmp_path, "sequential") as r:
        file = r.file("weights.bin")
        for offset in range(2 * MiB, 9 * MiB, 2 * CHUNK):
            r.read(file, offset, 2 * CHUNK)
        eventually(lambda: whole(file))


def test_off_is_nothing_beyond_the_window_of_a_stream(root: Path, tmp_path: Path) -> None:
    with hydrating(root, tmp_path, "off") as r:
        file = r.file("weights.bin")
        r.reader.opened(file)
        stream(r, file, 2 * MiB)
        eventually(lambda: file.cached_bytes() >= 9 * MiB)
        assert in_background(lambda: r.read(file, 11 * MiB, 10)).result() == WEIGHTS[11 * MiB:11 * MiB + 10]
        assert file.cached_bytes() < 11 * MiB


@pytest.mark.parametrize("mode", ["file", "model"])
def test_a_file_comes_from_its_first_open_on_where_that_is_asked_for(root: Path, tmp_path: Path,
                                                                    mode: Hydrate) -> None:
    with hydrating(root, tmp_path, mode) as r:
        file = r.file("weights.bin")
        r.reader.opened(file)
        eventually(lambda: whole(file))


def test_a_file_that_is_only_opened_waits_for_a_stream(root: Path, tmp_path: Path) -> None:
    with hydrating(root, tmp_path, "sequential") as r:
        file, streamed = r.file("weights.bin"), r.file("streamed.bin", "lab/streamed")
        r.reader.opened(file)
        stream(r, streamed, 8 * MiB)
        eventually(lambda: whole(streamed))  # files come one after the other: the first would be there by now
        assert file.cached_bytes() == 0


def test_opening_one_shard_brings_the_set_that_one_first_the_others_in_natural_order(root: Path,
                                                                                    tmp_path: Path) -> None:
    with FaultProxy(root) as proxy, hydrating(proxy.url, tmp_path, "model", connections=2) as r:
        files = [r.file(f"sub/{name}", "lab/sharded") for name in SHARDS]
        proxy.forget()
        r.reader.opened(files[2])
        eventually(lambda: whole(*files))
        places = [file.version.place(file.entry.first_row) for file in files]
        starts = [place.offset for place in places if place]
        asked = [int(seen.headers["range"].removeprefix("bytes=").split("-")[0]) for seen in proxy.seen("packs/")]
        asked = [start for start in asked if start in starts]
        assert [starts.index(start) for start in asked] == [2, 0, 1, 3, 4, 5, 6, 7, 8, 9, 10]


def test_tensors_of_a_file_come_in_the_order_of_its_header(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hydration, "_BATCH", MiB)
    names = random.Random(4).sample([f"layer.{n}" for n in range(12)], 12)
    header = json.dumps({name: {"dtype": "U8", "shape": [MiB], "data_offsets": [n * MiB, (n + 1) * MiB]}
                         for n, name in enumerate(names)}).encode()
    push_files(make_repository(tmp_path / "tensors"),
               {"w.safetensors": struct.pack("<Q", len(header)) + header + noise(6, 12 * MiB)})
    with FaultProxy(tmp_path / "tensors") as proxy, hydrating(proxy.url, tmp_path, "file", connections=2) as r:
        file = r.file("w.safetensors")
        proxy.forget()
        r.reader.opened(file)
        eventually(lambda: whole(file))
        starts = {}
        for n, name in enumerate(names):
            chunk, = file.chunks_of(8 + len(header) + n * MiB, 1)
            place = file.version.place(file.entry.first_row + chunk)
            assert place
            starts[place.pack.hex(), place.offset] = name
        asked = [(seen.path.rpartition("/")[2], int(seen.headers["range"].removeprefix("bytes=").split("-")[0]))
                 for seen in proxy.seen("packs/")]
        assert [starts[each] for each in asked if each in starts] == names


def test_a_file_of_no_set_comes_alone(root: Path, tmp_path: Path) -> None:
    with hydrating(root, tmp_path, "model") as r:
        file, beside = (r.file(f"other/{name}.safetensors", "lab/sharded") for name in ("lonely", "beside"))
        last = r.file("weights.bin")
        r.reader.opened(file)
        r.reader.opened(last)  # one after the other: once this is whole, nothing more comes for the first
        eventually(lambda: whole(file, last))
        assert beside.cached_bytes() == 0


def test_readers_go_before_the_rest_of_a_file(root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hydration, "_BATCH", MiB)
    with FaultProxy(root) as proxy, hydrating(proxy.url, tmp_path, "file", connections=3) as r:
        hydrated, wanted = r.file("weights.bin"), r.file("sub/" + SHARDS[0], "lab/sharded")
        place = hydrated.version.place(hydrated.entry.first_row)
        assert place
        proxy.add("drip", place.pack.hex(), piece=64 * 1024, interval_s=0.2)
        r.reader.opened(hydrated)
        eventually(lambda: proxy.requests(place.pack.hex()) > 0)
        for _ in range(3):
            assert in_background(lambda: r.read(wanted)).result() == noise(50, 8 * CHUNK)
        assert not whole(hydrated)


def test_it_ends_where_the_cache_would_drop_what_it_just_brought(tmp_path: Path,
                                                                 monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hydration, "_BATCH", MiB)
    push_files(make_repository(tmp_path / "large"), {"w.bin": noise(5, 48 * MiB)})
    with hydrating(tmp_path / "large", tmp_path, "file", cache_bytes=40 * MiB) as r:
        file = r.file("w.bin")
        r.reader.opened(file)
        eventually(lambda: file.cached_bytes() >= 16 * MiB)
        eventually(lambda: not r.reader._hydration._waiting)  # type: ignore[union-attr]
        assert 16 * MiB <= file.cached_bytes() <= 40 * MiB - hydration._MARGIN
        assert r.count("evictions") == 0


def test_a_store_that_fails_ends_it_and_the_next_open_begins_again(root: Path, tmp_path: Path) -> None:
    with FaultProxy(root) as proxy, hydrating(proxy.url, tmp_path, "file", deadline_s=1) as r:
        file = r.file("weights.bin")
        proxy.add("status", "packs/", code=503)
        r.reader.opened(file)
        eventually(lambda: not r.reader._hydration._waiting)  # type: ignore[union-attr]
        assert file.cached_bytes() == 0
        proxy.clear()
        r.reader.opened(file)
        eventually(lambda: whole(file))


def test_no_more_than_the_window_is_under_way(root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hydration, "_WINDOW", 2 * MiB)
    monkeypatch.setattr(hydration, "_BATCH", MiB)
    with FaultProxy(root) as proxy, hydrating(proxy.url, tmp_path, "file") as r:
        rule = proxy.add("hang", "packs/")
        file = r.file("weights.bin")
        r.reader.opened(file)
        eventually(lambda: rule.hits > 0 and len(r.fetcher._flights) == 2 * MiB // CHUNK)
        assert in_background(lambda: len(r.fetcher._flights)).result() == 2 * MiB // CHUNK
        proxy.clear()
        eventually(lambda: whole(file))


def test_numbers_in_names_sort_as_numbers() -> None:
    assert sorted(["a-10", "a-9", "b-1", "a-9b", "a"], key=natural) == ["a", "a-9", "a-9b", "a-10", "b-1"]

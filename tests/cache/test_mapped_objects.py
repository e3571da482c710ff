"""Large objects beside the chunks are mapped: whole when they are handed out, and as they were for as long as anybody
looks at them."""

from __future__ import annotations

import os
import random
from pathlib import Path

import pytest
from blake3 import blake3
from cache.cache_helpers import open_cache

from modelfs.cache.cache import Cache
from modelfs.errors import Unavailable
from modelfs.ids import ObjectId
from modelfs.repository.held import Held
from modelfs.units import KiB, MiB

SIZE = 3 * MiB + 17
DATA, OTHER = random.Random(1).randbytes(SIZE), random.Random(2).randbytes(SIZE)
DIGEST = ObjectId.of(DATA)


def mapped_kib(directory: Path) -> int | None:
    """How much of the files in meta/ this process has in memory; None where it maps none."""
    found, ours = None, False
    for line in Path("/proc/self/smaps").read_text().splitlines():
        if "-" in line.split()[0]:
            ours = f"{directory}/meta/" in line
        elif ours and line.startswith("Rss:"):
            found = (found or 0) + int(line.split()[1])
    return found


def only_file(directory: Path) -> Path:
    (path,) = (directory / "meta").iterdir()
    return path



def receive(cache: Cache, data: bytes, digest: ObjectId = DIGEST) -> Held | None:
    at = 0

    def readinto(view: memoryview) -> None:
        nonlocal at
        view[:] = data[at:at + len(view)]
        at += len(view)
    return cache.meta.receive("manifest", "v", len(data), readinto, digest)


@pytest.mark.parametrize("digest", [None, DIGEST])
def test_a_large_object_is_mapped_when_it_is_kept_and_when_it_is_there(cache: Cache, directory: Path,
                                                                        digest: ObjectId | None) -> None:
    assert cache.meta.hold("manifest", "v", digest) is None and mapped_kib(directory) is None
    kept = cache.meta.keep("manifest", "v", DATA, digest)
    found = cache.meta.hold("manifest", "v", digest)
    assert found is not None and kept.data == found.data == DATA == cache.meta.get("manifest", "v")
    assert isinstance(found.data, memoryview) and found.data.readonly and mapped_kib(directory) is not None
    assert cache.meta.hold("manifest", "w", digest) is None and cache.meta.hold("layout", "v", digest) is None
    del kept, found
    assert mapped_kib(directory) is None


def test_what_rests_takes_no_memory_until_it_is_looked_at(cache: Cache, directory: Path) -> None:
    held = cache.meta.keep("manifest", "v", DATA)
    assert blake3(held.data).digest() == DIGEST
    assert (mapped_kib(directory) or 0) > 2048
    held.rest()
    assert mapped_kib(directory) == 0
    assert held.data == DATA


def test_what_is_mapped_stays_when_it_is_replaced_or_dropped(cache: Cache, directory: Path) -> None:
    held = cache.meta.keep("manifest", "v", DATA)
    cache.meta.put("manifest", "v", OTHER)
    held.rest()
    assert held.data == DATA and cache.meta.get("manifest", "v") == OTHER
    newer = cache.meta.hold("manifest", "v")
    cache.meta.clear()
    assert newer is not None and newer.data == OTHER and cache.meta.hold("manifest", "v") is None
    assert cache.meta._files.total() <= 8 * KiB


@pytest.mark.parametrize("at", [0, 7, 8, 39, 40, 1 * MiB, 40 + SIZE - 1])
@pytest.mark.parametrize("digest", [None, DIGEST])
@pytest.mark.parametrize("cut", [True, False])
def test_a_large_object_that_is_flipped_or_cut_is_a_miss_and_goes(cache: Cache, directory: Path, at: int, cut: bool,
                                                                  digest: ObjectId | None) -> None:
    cache.meta.put("manifest", "v", DATA)
    path = only_file(directory)
    if cut:
        os.truncate(path, at)
    else:
        raw = bytearray(path.read_bytes())
        raw[at] ^= 1
        path.write_bytes(raw)
    assert cache.meta.hold("manifest", "v", digest) is None
    assert not list((directory / "meta").iterdir())


@pytest.mark.parametrize("size", [100, SIZE])
def test_an_object_of_another_digest_is_a_miss(cache: Cache, size: int) -> None:
    cache.meta.put("manifest", "v", OTHER[:size])
    assert cache.meta.hold("manifest", "v", ObjectId.of(DATA[:size])) is None
    assert cache.meta.get("manifest", "v") is None


def test_an_object_that_comes_in_pieces_is_kept_where_it_hashes_to_its_digest(cache: Cache, directory: Path) -> None:
    assert receive(cache, OTHER) is None
    assert not list((directory / "meta").iterdir()) and cache.meta.hold("manifest", "v") is None
    assert cache.meta._files.total() <= 4 * KiB
    held = receive(cache, DATA)
    assert held is not None and held.data == DATA == cache.meta.get("manifest", "v")
    found = cache.meta.hold("manifest", "v", DIGEST)
    assert found is not None and found.data == DATA


def test_who_has_it_in_pieces_may_fail(cache: Cache, directory: Path) -> None:
    def fails(view: memoryview) -> None:
        raise Unavailable("a store broke off")
    with pytest.raises(Unavailable):
        cache.meta.receive("manifest", "v", SIZE, fails, DIGEST)
    assert not list((directory / "meta").iterdir()) and cache.meta._files.total() <= 4 * KiB


def test_without_room_what_was_to_be_kept_is_held_as_it_is(directory: Path) -> None:
    cache = open_cache(directory, 1 * MiB)
    assert cache.meta.keep("manifest", "v", DATA).data is DATA
    assert receive(cache, DATA) is None
    assert mapped_kib(directory) is None and cache.meta.get("manifest", "v") is None
    cache.close()


@pytest.mark.parametrize("size", [100, SIZE])
def test_an_object_that_an_older_modelfs_wrote_is_read(cache: Cache, directory: Path, size: int) -> None:
    data = DATA[:size]
    cache.meta.put("manifest", "v", data)
    path = only_file(directory)
    path.write_bytes(b"mfsmeta\n" + blake3(b"manifest\0v\0" + data).digest() + data)
    held = cache.meta.hold("manifest", "v", ObjectId.of(data))
    assert held is not None and held.data == data == cache.meta.get("manifest", "v")
    path.write_bytes(b"mfsmeta\n" + blake3(b"manifest\0w\0" + data).digest() + data)
    assert cache.meta.hold("manifest", "v") is None and not path.exists()

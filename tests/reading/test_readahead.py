"""Streams are found in the reads of a file, whatever their order, and random reads are none."""

from __future__ import annotations

import random
from pathlib import Path

import pytest
from transfer.pushed import CHUNK, eventually, make_repository, noise, push_files, reading

from modelfs.cache.cache import Cache
from modelfs.metrics import Metrics
from modelfs.reading.readahead import Ahead, Readahead
from modelfs.units import DiskShare, GiB, KiB, MiB

STEP = 128 * KiB


def asked(ahead: Readahead, reads: list[int], size: int = STEP, file_size: int = GiB) -> list[Ahead]:
    return [found for offset in reads if (found := ahead.note("file", offset, size, file_size)) is not None]


def test_a_stream_is_fetched_ahead_of_itself_without_gaps_and_never_beyond_its_window() -> None:
    ahead, end, position = Readahead(64 * MiB), None, 0
    for position in range(0, 512 * MiB, STEP):
        found = ahead.note("file", position, STEP, GiB)
        if found:
            assert found.offset == end or end is None
            assert found.offset >= position + STEP and found.run == position + STEP
            end = found.offset + found.length
            assert end <= position + STEP + min(64 * MiB, max(8 * MiB, found.run))
    assert end is not None and end > position


def test_a_stream_ends_where_its_file_does() -> None:
    found = asked(Readahead(64 * MiB), list(range(0, 10 * MiB, STEP)), file_size=10 * MiB)
    assert max(ahead.offset + ahead.length for ahead in found) == 10 * MiB


@pytest.mark.parametrize("seed", range(5))
def test_random_reads_fetch_nothing_ahead(seed: int) -> None:
    pick = random.Random(seed)
    assert asked(Readahead(64 * MiB), [pick.randrange(64 * MiB) for _ in range(2000)], 4096, 64 * MiB) == []


def test_reads_of_a_stream_may_come_in_any_near_order() -> None:
    pick, reads = random.Random(1), list(range(0, 64 * MiB, STEP))
    mixed = [offset for start in range(0, len(reads), 8) for offset in pick.sample(reads[start:start + 8], 8)]
    assert asked(Readahead(64 * MiB), mixed)


def test_streams_that_alternate_are_told_apart() -> None:
    first, second = range(0, 32 * MiB, STEP), range(500 * MiB, 532 * MiB, STEP)
    found = asked(Readahead(64 * MiB), [offset for pair in zip(first, second, strict=True) for offset in pair])
    assert any(ahead.offset < 100 * MiB for ahead in found) and any(ahead.offset > 500 * MiB for ahead in found)


def test_a_window_of_nothing_fetches_nothing_and_still_tells_streams() -> None:
    found = asked(Readahead(0), list(range(0, 64 * MiB, STEP)))
    assert found and {ahead.length for ahead in found} == {0} and found[-1].run == 64 * MiB


def test_what_is_fetched_ahead_is_used_and_counted(tmp_path: Path) -> None:
    data = noise(1, 12 * MiB)
    push_files(make_repository(tmp_path / "r"), {"w.bin": data})
    cache = Cache(tmp_path / "cache", DiskShare(size_bytes=64 * MiB), DiskShare(size_bytes=0), Metrics())
    with reading(tmp_path / "r", cache, readahead_bytes=64 * MiB) as r:
        file = r.file("w.bin")
        assert r.read(file, 0, MiB) == data[:MiB]
        assert r.read(file, MiB, MiB) == data[MiB:2 * MiB]
        eventually(lambda: file.cached_bytes() >= 10 * MiB)  # two that were read, a first window of eight
        before = r.count("chunks_fetched")
        assert r.read(file, 2 * MiB, 4 * MiB) == data[2 * MiB:6 * MiB]
        eventually(lambda: file.cached_bytes() == len(data))
        assert r.count("prefetched_used") == 4 * MiB // CHUNK
        assert r.count("prefetched_chunks") == 10 * MiB // CHUNK
        assert r.count("chunks_fetched") - before == 2 * MiB // CHUNK
    cache.close()

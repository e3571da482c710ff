"""Eviction beside files of which nothing can be dropped: the kernel holds them, or their map is junk."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest
from cache_helpers import NONE, Model, data_path, eventually, fill_all, flip, good_rows, open_cache, random_model

from modelfs.cache.cache import Cache
from modelfs.cache.cache_file import CacheFile
from modelfs.cache.map_file import HEADER
from modelfs.metrics import Metrics
from modelfs.units import DiskShare, MiB

LIMIT = 16 * MiB


@pytest.fixture
def metrics() -> Metrics:
    return Metrics()


@pytest.fixture
def cache(directory: Path, metrics: Metrics) -> Iterator[Cache]:
    made = open_cache(directory, LIMIT, metrics)
    yield made
    made.close()


@contextmanager
def held_by_a_process(file: CacheFile) -> Iterator[None]:
    """Another process has the descriptor that is meant for the kernel, and nobody else."""
    backing = file.backing()
    assert backing is not None
    holder = subprocess.Popen(["sleep", "600"], pass_fds=[backing.fd])
    try:
        backing.close()
        yield
    finally:
        holder.kill()
        holder.wait()


def used_seconds_ago(file: CacheFile, seconds: int) -> None:
    """The clock has 1/16 s: times that are to differ are set by hand."""
    last_use = file._handle.last_use
    for row in range(file.rows):
        last_use[row] = (last_use[row] - 16 * seconds) & 0xFFFFFFFF


def filled(cache: Cache, model: Model, seconds_ago: int) -> CacheFile:
    file = model.in_cache(cache)
    assert fill_all(file, model) == file.rows
    used_seconds_ago(file, seconds_ago)
    return file


@pytest.mark.parametrize("rows", [[6], [1] * 9], ids=["one large", "nine small"])
def test_new_files_are_cached_in_the_place_of_others_while_the_oldest_are_held(
        cache: Cache, directory: Path, metrics: Metrics, rows: list[int]) -> None:
    models = [random_model(seed, *[MiB] * n) for seed, n in enumerate(rows)]
    old = [filled(cache, model, 0) for model in models]
    other, new = random_model(100, *[MiB] * (15 - sum(rows))), random_model(101, *[MiB] * 4)
    other_file, new_file = filled(cache, other, 500), new.in_cache(cache)
    with ExitStack() as holders:
        for file in old:
            holders.enter_context(held_by_a_process(file))
            used_seconds_ago(file, 1000)
        assert fill_all(new_file, new) == 4 and good_rows(new_file, new) == set(range(4))
        left = good_rows(other_file, other)
        assert metrics.snapshot()["evictions"] == other_file.rows - len(left) > 0
        for file, model in zip(old, models, strict=True):
            assert file.whole() and data_path(directory, file).read_bytes() == b"".join(model.data)


def test_a_file_that_was_held_when_room_was_needed_is_not_the_first_to_go_once_released_but_goes_in_its_turn(
        cache: Cache) -> None:
    old, other = random_model(1, *[MiB] * 6), random_model(2, *[MiB] * 9)
    old_file, other_file = filled(cache, old, 0), filled(cache, other, 500)
    new = random_model(3, *[MiB] * 12)
    new_file = new.in_cache(cache)
    with held_by_a_process(old_file):
        used_seconds_ago(old_file, 1000)
        assert new_file.fill(0, memoryview(new.data[0])) and int(other_file.present().sum()) < 9
    left = int(other_file.present().sum())
    for row in range(1, 6):
        assert new_file.fill(row, memoryview(new.data[row]))
    assert old_file.whole() and int(other_file.present().sum()) < left
    used_seconds_ago(old_file, 1000)
    assert fill_all(new_file, new) == 12 and not old_file.whole()


def test_where_all_is_held_a_new_chunk_is_not_cached_until_something_is_released(
        cache: Cache, directory: Path) -> None:
    old, new = random_model(1, *[MiB] * 15), random_model(2, *[MiB] * 2)
    old_file, new_file = filled(cache, old, 1000), new.in_cache(cache)
    with held_by_a_process(old_file):
        assert not all(new_file.fill(row, memoryview(new.data[row])) for row in range(2))
        assert data_path(directory, old_file).read_bytes() == b"".join(old.data) and old_file.whole()
    assert eventually(lambda: fill_all(new_file, new) == 2)
    assert not old_file.whole()


def test_a_limit_below_what_is_held_leaves_nothing_to_do_until_it_is_released(cache: Cache) -> None:
    old = random_model(1, *[MiB] * 6)
    file = filled(cache, old, 1000)
    with held_by_a_process(file):
        cache.set_limits(DiskShare(size_bytes=MiB), NONE)
        assert cache._evictor.shrink(60) and file.whole()
    assert eventually(lambda: cache.status().bytes <= MiB)


def test_an_old_file_whose_map_is_junk_does_not_keep_the_others_from_being_evicted(
        cache: Cache, directory: Path) -> None:
    junk, other, new = random_model(1, *[MiB] * 6), random_model(2, *[MiB] * 9), random_model(3, *[MiB] * 4)
    file, other_file, new_file = filled(cache, junk, 1000), filled(cache, other, 500), new.in_cache(cache)
    flip(data_path(directory, file).with_suffix(".map"), HEADER)
    assert fill_all(new_file, new) == 4
    assert int(other_file.present().sum()) < 9

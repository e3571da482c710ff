"""Disks that are full, and bytes that others changed: never an error for the reader, never a wrong byte."""

from __future__ import annotations

import logging
import os
import random
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from cache_helpers import disk_usage, eventually, fill_all, good_rows, open_cache, random_model

from modelfs.units import KiB, MiB


def _flip(path: Path, offsets: range, seed: int) -> None:
    data = bytearray(path.read_bytes())
    for at in random.Random(seed).sample(offsets, k=min(8, len(offsets))):
        data[at] ^= 1 << (at % 8)
    with open(path, "r+b") as file:
        file.write(data)


def _swap(a: Path, b: Path) -> None:
    middle = a.with_name("middle")
    a.rename(middle)
    b.rename(a)
    middle.rename(b)


def _maps(directory: Path) -> list[Path]:
    return sorted((directory / "files").glob("*/*.map"))


def _first_data(directory: Path) -> Path:
    return _maps(directory)[0].with_suffix("")


DAMAGES: dict[str, Callable[[Path], object]] = {
    "header flipped": lambda d: _flip(_maps(d)[0], range(128), 1),
    "ids flipped": lambda d: _flip(_maps(d)[0], range(128, 400), 2),
    "account flipped": lambda d: _flip(_maps(d)[0], range(24, 32), 3),
    "presence flipped": lambda d: _flip(_maps(d)[0], range(128 + 40 * 10, 128 + 41 * 10), 4),
    "map cut": lambda d: os.truncate(_maps(d)[0], 200),
    "map empty": lambda d: os.truncate(_maps(d)[0], 0),
    "map longer": lambda d: os.truncate(_maps(d)[0], 100_000),
    "map junk": lambda d: _maps(d)[0].write_bytes(random.Random(5).randbytes(538)),
    "map full of holes": lambda d: (os.truncate(_maps(d)[0], 0), os.truncate(_maps(d)[0], 538)),
    "map gone": lambda d: _maps(d)[0].unlink(),
    "maps swapped": lambda d: _swap(_maps(d)[0], _maps(d)[1]),
    "data flipped": lambda d: _flip(_first_data(d), range(500_000), 6),
    "data cut": lambda d: os.truncate(_first_data(d), 123_456),
    "data empty": lambda d: os.truncate(_first_data(d), 0),
    "data longer": lambda d: os.truncate(_first_data(d), 5_000_000),
    "data gone": lambda d: _first_data(d).unlink(),
    "data swapped": lambda d: _swap(_first_data(d), _maps(d)[1].with_suffix("")),
    "usage flipped": lambda d: _flip(d / "usage", range(2120), 7),
    "usage cut": lambda d: os.truncate(d / "usage", 100),
    "usage junk": lambda d: (d / "usage").write_bytes(random.Random(8).randbytes(4096)),
    "usage gone": lambda d: (d / "usage").unlink(),
    "limits junk": lambda d: (d / "limits" / "abc").write_bytes(b"\xff junk \0"),
    "strangers": lambda d: [(d / "files" / "zz").mkdir(), (d / "files" / "x").write_bytes(b"x"),
                            (_maps(d)[0].parent / "y.map").write_bytes(b"y"), (d / "files" / "zz" / "a").mkdir()],
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_damage_to_the_directory_is_at_most_a_miss_and_heals(directory: Path, damage: str) -> None:
    models = [random_model(seed, *[50_000] * 10) for seed in (1, 2)]
    cache = open_cache(directory)
    for model in models:
        assert fill_all(model.in_cache(cache), model) == 10
    cache.close()
    DAMAGES[damage](directory)
    cache = open_cache(directory)
    for model in models:
        file = model.in_cache(cache)
        good_rows(file, model)
        assert eventually(lambda f=file, m=model: fill_all(f, m) == 10 and len(good_rows(f, m)) == 10)
        assert all(file.checked(row) for row in range(10))
        assert cache.find(model.chunk_id(9), 50_000) is not None
    assert eventually(lambda: abs(cache.status().bytes - disk_usage(directory)) <= 64 * KiB)
    cache.close()


def _removed(directory: Path) -> bool:
    """Not where the living cache has just made something in it."""
    shutil.rmtree(directory, ignore_errors=True)
    return not directory.exists()


def test_a_map_and_data_that_vanish_under_a_live_cache_are_made_anew(directory: Path) -> None:
    cache, model = open_cache(directory), random_model(3, *[50_000] * 4)
    file = model.in_cache(cache)
    fill_all(file, model)
    assert eventually(lambda: _removed(directory))
    assert good_rows(file, model) <= set(range(4))  # read through what is still open
    assert eventually(lambda: [file.discard(r, file.presence(r)) for r in range(4)] != []
                      and fill_all(file, model) == 4 and (directory / "files").exists() and len(_maps(directory)) == 1)
    assert good_rows(file, model) == set(range(4))
    cache.close()
    assert good_rows(model.in_cache(cache), model) == set()


def test_a_data_file_replaced_under_a_live_cache_never_gives_wrong_bytes_as_checked(directory: Path) -> None:
    cache, model = open_cache(directory), random_model(4, *[50_000] * 4)
    file = model.in_cache(cache)
    fill_all(file, model)
    _first_data(directory).unlink()
    other = open_cache(directory)
    assert not model.in_cache(other).present().any()  # it made the data file anew, empty
    assert model.in_cache(other).fill(0, memoryview(model.data[0]))
    cache._table.halve()  # the first cache opens it again
    for row, data in enumerate(model.data):
        buffer = bytearray(50_000)
        count = file.checked(row)
        assert not count or (file.read(row, 0, memoryview(buffer), count) and buffer == data)
    assert good_rows(file, model) == {0}
    cache.close()
    other.close()


@pytest.mark.parametrize("small_disk", ["size=4m", "size=64m,nr_inodes=12"], indirect=True)
def test_a_full_disk_or_one_without_inodes_is_a_cache_without_room(small_disk: Path) -> None:
    cache = open_cache(small_disk / "cache", 100 * MiB)
    models = [random_model(seed, *[100_000] * 12) for seed in range(8)]
    for model in models:
        file = model.in_cache(cache)
        fill_all(file, model)
        good_rows(file, model)
        cache.meta.put("manifest", str(model.ids[0]), model.data[0])
    assert sum(len(good_rows(model.in_cache(cache), model)) for model in models) >= 10
    cache.close()


@pytest.mark.parametrize("small_disk", ["size=4m"], indirect=True)
def test_a_cache_opened_on_a_full_disk_begins_to_keep_once_there_is_room(
        small_disk: Path, caplog: pytest.LogCaptureFixture) -> None:
    filler = small_disk / "filler"
    with open(filler, "wb", buffering=0) as file, pytest.raises(OSError):
        while True:
            file.write(bytes(4096))
    model = random_model(9, *[50_000] * 4)
    with caplog.at_level(logging.WARNING, "modelfs.cache"):
        cache = open_cache(small_disk / "cache")
        held = model.in_cache(cache)
        for _ in range(20):
            assert not fill_all(held, model) and not good_rows(held, model)
            cache.meta.put("a", "b", b"c")
            assert cache.meta.get("a", "b") is None and cache.find(model.chunk_id(0), 50_000) is None
        assert cache.status().bytes == 0
    assert 1 <= len(caplog.records) <= 6, [record.getMessage() for record in caplog.records]
    filler.unlink()
    assert eventually(lambda: fill_all(held, model) == 4)
    assert good_rows(held, model) == {0, 1, 2, 3}
    cache.close()


@pytest.mark.parametrize("small_disk", ["size=8m"], indirect=True)
def test_a_disk_that_turns_read_only_still_gives_what_was_open_and_takes_no_more(small_disk: Path) -> None:
    import subprocess
    cache, models = open_cache(small_disk / "cache"), [random_model(seed, *[50_000] * 4) for seed in (1, 2)]
    fill_all(models[0].in_cache(cache), models[0])
    cache.close()
    subprocess.run(["mount", "-o", "remount,ro", small_disk], check=True)
    cache = open_cache(small_disk / "cache")
    for model in models:
        fill_all(model.in_cache(cache), model)
        good_rows(model.in_cache(cache), model)
    cache.set_limits(cache._room._limits._limit, cache._room._limits._min_free)
    cache.close()


def test_a_small_object_comes_back_whole_under_its_own_name_only(directory: Path) -> None:
    cache = open_cache(directory)
    cache.meta.put("manifest", "../../etc/passwd", b"m" * 9000)
    cache.meta.put("catalog", "../../etc/passwd", b"")
    assert cache.meta.get("manifest", "../../etc/passwd") == b"m" * 9000
    assert cache.meta.get("catalog", "../../etc/passwd") == b"" and cache.meta.get("manifest", "x") is None
    cache.meta.put("manifest", "../../etc/passwd", b"n" * 100)
    assert cache.meta.get("manifest", "../../etc/passwd") == b"n" * 100
    assert eventually(lambda: abs(cache.status().bytes - disk_usage(directory)) <= 64 * KiB)
    cache.close()
    again = open_cache(directory)
    assert again.meta.get("manifest", "../../etc/passwd") == b"n" * 100
    a, b = sorted((directory / "meta").iterdir())
    _swap(a, b)
    assert again.meta.get("catalog", "../../etc/passwd") is None
    assert again.meta.get("manifest", "../../etc/passwd") is None
    again.close()


@pytest.mark.parametrize("at", [0, 7, 8, 39, 40, 41, 539])
def test_a_flipped_bit_in_a_small_object_is_a_miss_and_so_is_a_cut(directory: Path, at: int) -> None:
    cache = open_cache(directory)
    for cut in (False, True):
        cache.meta.put("layout", "v", bytes(range(250)) * 2)
        path = next((directory / "meta").iterdir())
        if cut:
            os.truncate(path, at)
        else:
            _flip(path, range(at, at + 1), 1)
        assert cache.meta.get("layout", "v") is None
        assert not list((directory / "meta").iterdir())
    cache.close()


def test_small_objects_not_asked_for_are_dropped_first_when_they_pass_their_part(directory: Path) -> None:
    cache = open_cache(directory, 16 * MiB)
    for number in range(40):
        cache.meta.put("manifest", str(number), bytes([number]) * 300_000)
        assert cache.meta.get("manifest", "0") is not None
    assert eventually(lambda: disk_usage(directory / "meta") <= 8 * MiB)
    kept = [number for number in range(40) if cache.meta.get("manifest", str(number)) is not None]
    assert kept[0] == 0 and kept[-1] == 39 and len(kept) < 30
    cache.close()

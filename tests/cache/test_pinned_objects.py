"""Small objects that are pinned, what the directory holds, and how much more fits."""

from __future__ import annotations

from pathlib import Path

import pytest
from cache.cache_helpers import fill_all, open_cache, random_model

from modelfs.cache.contents import Removal
from modelfs.units import KiB, MiB


def test_a_pinned_object_outlives_clearing_and_a_newer_one_in_its_place_is_pinned_too(tmp_path: Path) -> None:
    cache = open_cache(tmp_path / "cache")
    cache.meta.put("catalog", "a", b"one")
    cache.meta.put("catalog", "b", b"other")
    assert cache.meta.pin("catalog", "a") and not cache.meta.pin("catalog", "none")
    cache.meta.put("catalog", "a", b"two")
    cache.meta.clear()
    assert (cache.meta.get("catalog", "a"), cache.meta.get("catalog", "b")) == (b"two", None)
    cache.meta.unpin("catalog", "a")
    cache.meta.clear()
    assert cache.meta.get("catalog", "a") is None
    cache.close()


def test_an_object_is_changed_by_what_two_caches_make_of_it_in_turn(tmp_path: Path) -> None:
    first, second = open_cache(tmp_path / "cache"), open_cache(tmp_path / "cache")
    for cache in (first, second, first):
        cache.meta.update("list", "a", lambda before: (before or b"") + b"x")
    assert second.meta.get("list", "a") == b"xxx"
    first.close()
    second.close()


def test_contents_tell_of_each_file_what_is_cached_and_pinned(tmp_path: Path) -> None:
    cache = open_cache(tmp_path / "cache")
    whole, part = random_model(1, 64 * KiB, 64 * KiB), random_model(2, 64 * KiB, 64 * KiB)
    kept, other = whole.in_cache(cache), part.in_cache(cache)
    fill_all(kept, whole)
    other.fill(0, memoryview(part.data[0]))
    kept.pin()
    found = {file.name: file for file in cache.contents()}
    assert (found[kept.name].size_bytes, found[kept.name].cached_bytes, found[kept.name].pinned) == (
        128 * KiB, 128 * KiB, True)
    assert (found[other.name].cached_bytes, found[other.name].pinned) == (64 * KiB, False)
    assert kept.disk_need >= found[kept.name].disk_bytes >= 128 * KiB
    cache.close()


def test_removing_spares_what_is_pinned_and_makes_misses_of_the_rest(tmp_path: Path) -> None:
    cache = open_cache(tmp_path / "cache")
    model = random_model(1, 64 * KiB)
    file = model.in_cache(cache)
    fill_all(file, model)
    file.pin()
    assert cache.remove(file.name) is Removal.PINNED
    file.unpin()
    before = cache.status().bytes
    assert cache.remove(file.name) is Removal.REMOVED
    assert not file.presence(0) & 1 and cache.status().bytes <= before - 64 * KiB
    assert cache.remove(file.name) is Removal.GONE
    assert file.fill(0, memoryview(model.data[0])) & 1
    cache.close()


def test_room_is_the_limit_without_what_others_have_pinned(tmp_path: Path) -> None:
    cache = open_cache(tmp_path / "cache", limit=4 * MiB)
    model, loose = random_model(1, MiB), random_model(2, MiB)
    file, other = model.in_cache(cache), loose.in_cache(cache)
    fill_all(file, model)
    fill_all(other, loose)
    assert cache.room_for(()) == pytest.approx(4 * MiB, abs=128 * KiB)
    file.pin()
    assert cache.room_for(()) == pytest.approx(3 * MiB, abs=128 * KiB)
    assert cache.room_for({file.name}) == pytest.approx(4 * MiB, abs=128 * KiB)
    cache.close()

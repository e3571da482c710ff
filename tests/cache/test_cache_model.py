"""Random operations on the cache, compared with a dict; and the arithmetic of holes and victims with plain loops."""

from __future__ import annotations

import os
import shutil
import tempfile
from pathlib import Path

import numpy as np
from cache_helpers import NONE, disk_usage, eventually, model_of, open_cache, random_model
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from modelfs.cache.cache_file import Read
from modelfs.cache.eviction import victims
from modelfs.cache.holes import hole_ranges
from modelfs.cache.map_file import MapState
from modelfs.units import DiskShare, KiB, MiB

_BASE = random_model(50, *[30_000, 1, 4096, 100_000, 5000, 8192, 70_000, 3, 4, 5])
MODELS = [_BASE, model_of(*_BASE.data[3:], b"new tail" * 3000), random_model(51, *[20_000] * 6)]
files, rows = st.integers(0, 2), st.integers(0, 9)


class CacheAgainstADict(RuleBasedStateMachine):
    """`present`: what must be there, (file, row) → its count; `checked`: those that this process has checked."""

    def __init__(self) -> None:
        super().__init__()
        self.directory = Path(tempfile.mkdtemp()) / "cache"
        self.cache = open_cache(self.directory, verify="changed")
        self.present: dict[tuple[int, int], int] = {}
        self.checked: set[tuple[int, int]] = set()
        self.pinned: set[int] = set()
        self.held = [model.in_cache(self.cache) for model in MODELS]

    def teardown(self) -> None:
        self.cache.close()
        shutil.rmtree(self.directory.parent)

    def _row(self, number: int, row: int) -> int:
        return row % len(MODELS[number].data)

    def _whole(self, number: int) -> bool:
        return {(number, row) for row in range(len(MODELS[number].data))} <= self.checked

    @rule(number=files, row=rows)
    def fill(self, number: int, row: int) -> None:
        row = self._row(number, row)
        count = self.held[number].fill(row, memoryview(MODELS[number].data[row]))
        assert count & 1 and self.present.setdefault((number, row), count) == count
        if self.held[number].checked(row):
            self.checked.add((number, row))

    @rule(number=files, row=rows, start=st.integers(0, 100_000), size=st.integers(0, 100_000))
    def read(self, number: int, row: int, start: int, size: int) -> None:
        row = self._row(number, row)
        data = MODELS[number].data[row]
        start, size = start % len(data), size % (len(data) + 1)
        size = min(size, len(data) - start)
        buffer = memoryview(bytearray(size))
        count = self.held[number].presence(row)
        assert self.held[number].read(row, start, buffer, count) == ((number, row) in self.present)
        assert not count & 1 or buffer == data[start:start + size]

    @rule(number=files, start=st.integers(0, 300_000), size=st.integers(1, 300_000), nowait=st.booleans())
    def read_at(self, number: int, start: int, size: int, nowait: bool) -> None:
        model, data = MODELS[number], b"".join(MODELS[number].data)
        start %= len(data)
        buffer = memoryview(bytearray(min(size, len(data) - start)))
        found = self.held[number].read_at(start, buffer, nowait=nowait)
        ends = np.cumsum([len(chunk) for chunk in model.data]).tolist()
        touched = {(number, row) for row, end in enumerate(ends)
                   if end > start and end - len(model.data[row]) < start + len(buffer)}
        assert (found is not Read.MISS) == (touched <= self.checked)
        assert found is not Read.DONE or buffer == data[start:start + len(buffer)]
        assert nowait or found is not Read.BLOCK

    @rule(number=files)
    def hand_out(self, number: int) -> None:
        backing = self.held[number].backing()
        assert (backing is not None) == self._whole(number)
        if backing is not None:
            assert os.pread(backing.fd, 1 << 20, 0) == b"".join(MODELS[number].data)
            backing.close()

    @rule(number=files, row=rows)
    def check(self, number: int, row: int) -> None:
        row = self._row(number, row)
        buffer = bytearray(len(MODELS[number].data[row]))
        count = self.held[number].load(row, memoryview(buffer))
        assert count == self.present.get((number, row), 0)
        if count:
            assert buffer == MODELS[number].data[row]
            self.held[number].mark_checked(row, count)
            self.checked.add((number, row))

    @rule(number=files, row=rows, right=st.booleans())
    def discard(self, number: int, row: int, right: bool) -> None:
        row = self._row(number, row)
        self.held[number].discard(row, self.held[number].presence(row) + (0 if right else 2))
        if right:
            self.present.pop((number, row), None)
            self.checked.discard((number, row))

    @rule(number=files, row=rows)
    def find(self, number: int, row: int) -> None:
        row = self._row(number, row)
        model = MODELS[number]
        found = self.cache.find(model.chunk_id(row), len(model.data[row]))
        there = {(n, r) for n, r in self.present if MODELS[n].data[r] == model.data[row]}
        assert (found is not None) == bool(there)
        assert found is None or any(found[0] is self.held[n] and found[1] == r for n, r in there)

    @rule(number=files)
    def pin_or_unpin(self, number: int) -> None:
        if number in self.pinned:
            assert self.held[number].unpin()
            self.pinned.remove(number)
        else:
            assert self.held[number].pin()
            self.pinned.add(number)

    @rule(left=st.integers(0, 400))
    def evict(self, left: int) -> None:
        self.cache.set_limits(DiskShare(size_bytes=left * KiB), NONE)
        used = disk_usage(self.directory)
        now = {key: self.held[key[0]].presence(key[1]) for key in self.present}
        kept = {key: count for key, count in self.present.items() if now[key] == count}
        assert all(now[key] % 2 == 0 for key in self.present.keys() - kept.keys())
        assert {key for key in self.present if key[0] in self.pinned} <= kept.keys()
        assert used <= left * KiB + 32 * KiB or all(key[0] in self.pinned for key in kept)
        self.present, self.checked = kept, self.checked & kept.keys()
        self.cache.set_limits(DiskShare(size_bytes=64 * MiB), NONE)

    @rule()
    def close_handles(self) -> None:
        self.cache._table.halve()

    @rule()
    def remount(self) -> None:
        """What was wholly checked is sealed, and so still checked."""
        self.cache.close()
        self.cache = open_cache(self.directory, verify="changed")
        self.held = [model.in_cache(self.cache) for model in MODELS]
        for number, model in enumerate(MODELS):
            if not self._whole(number):
                self.checked -= {(number, row) for row in range(len(model.data))}

    @invariant()
    def the_cache_holds_what_the_dict_holds(self) -> None:
        for number, (model, file) in enumerate(zip(MODELS, self.held, strict=True)):
            there = {row: self.present[number, row] for row in range(len(model.data)) if (number, row) in self.present}
            assert {row: file.presence(row) for row in range(file.rows) if file.presence(row) & 1} == there
            assert {row for row in there if file.checked(row)} == {r for n, r in self.checked if n == number}
            assert set(file.unchecked().tolist()) == there.keys() - {r for n, r in self.checked if n == number}
            assert file.whole() == self._whole(number)
            assert file.cached_bytes() == sum(len(model.data[row]) for row in there)

    @invariant()
    def usage_is_what_the_disk_says(self) -> None:
        assert eventually(lambda: abs(self.cache.status().bytes - disk_usage(self.directory)) <= 32 * KiB, 5)


TestCacheAgainstADict = CacheAgainstADict.TestCase
TestCacheAgainstADict.settings = settings(max_examples=25, stateful_step_count=30, deadline=None)


@given(st.lists(st.tuples(st.integers(1, 10_000), st.sampled_from(["present", "absent", "dropped"])), min_size=1),
       st.sampled_from([512, 4096]))
def test_a_punch_frees_just_the_blocks_that_a_dropped_chunk_has_and_no_present_one_has(
        chunks: list[tuple[int, str]], block: int) -> None:
    offsets = np.cumsum([0, *(length for length, _ in chunks)]).astype(np.uint64)
    of = {state: np.array([i for i, (_, s) in enumerate(chunks) if s == state], np.int64)
          for state in ("present", "dropped")}
    touched = {state: {b for i in where for b in range(int(offsets[i]) // block, -(-int(offsets[i + 1]) // block))}
               for state, where in of.items()}
    ranges = hole_ranges(of["dropped"], of["present"], offsets, block)
    assert all(start % block == 0 and length % block == 0 and length > 0 for start, length in ranges)
    freed = [b for start, length in ranges for b in range(start // block, (start + length) // block)]
    assert freed == sorted(touched["dropped"] - touched["present"])


@given(st.lists(st.tuples(st.booleans(), st.lists(st.tuples(st.integers(0, 50), st.integers(1, 100), st.booleans()),
                                                  max_size=8)), max_size=6),
       st.integers(0, 1500), st.integers(0, 2**32 - 1))
def test_victims_are_the_oldest_unpinned_chunks_and_no_more_than_needed(
        described: list[tuple[bool, list[tuple[int, int, bool]]]], need: int, now: int) -> None:
    states = [MapState(0, pinned, np.array([c[1] for c in chunks], np.uint32),
                       np.array([(now - c[0]) % 2**32 for c in chunks], np.uint32),
                       np.array([7 if c[2] else 8 for c in chunks], np.uint8)) for pinned, chunks in described]
    everything = sorted(((-age, size) for pinned, chunks in described if not pinned
                         for age, size, present in chunks if present))
    chosen = [(described[f][1][row], described[f][0]) for f, rows_ in victims(states, need, now) for row in rows_]
    assert not any(pinned for _, pinned in chosen) and all(present for (_, _, present), _ in chosen)
    ages = sorted((-age for (age, _, _), _ in chosen))
    assert ages == [age for age, _ in everything[:len(chosen)]]
    total = sum(size for (_, size, _), _ in chosen)
    assert total >= need or len(chosen) == len(everything)
    assert not chosen or total - chosen_youngest(chosen) < need


def chosen_youngest(chosen: list[tuple[tuple[int, int, bool], bool]]) -> int:
    """The largest of the youngest victims: without it there would not have been enough."""
    youngest = min(age for (age, _, _), _ in chosen)
    return max(size for (age, size, _), _ in chosen if age == youngest)

"""The scrub: what a disk changed is found, dropped and told, once a period for all daemons of a host."""

from __future__ import annotations

import errno
import fcntl
import logging
import os
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from cache_helpers import data_path, eventually, fill_all, flip, good_rows, open_cache, random_model

from modelfs.cache import scrub
from modelfs.cache.cache import Cache
from modelfs.logs import Event
from modelfs.metrics import Metrics
from modelfs.repository.chunk import ChunkRef
from modelfs.units import KiB

LENGTH = 100_001  # not of whole blocks
SOON_S, LATER_S = 0.2, 3600.0


@pytest.fixture
def told(caplog: pytest.LogCaptureFixture) -> Callable[[str], list[dict[str, object]]]:
    """The fields of the events of one name so far."""
    caplog.set_level(logging.INFO, "modelfs.cache")

    def events(name: str) -> list[dict[str, object]]:
        found = [getattr(record, "modelfs_event", None) for record in caplog.records]
        return [event.fields for event in found if isinstance(event, Event) and event.name == name]

    return events


def write_state(directory: Path, done_s: float, after: str = "-") -> None:
    (directory / "scrub").write_bytes(f"{done_s:.3f} {after}".ljust(127).encode() + b"\n")


def wait_for(told: Callable[[str], list[dict[str, object]]], count: int = 1) -> dict[str, object]:
    assert eventually(lambda: len(told("scrub.done")) >= count)
    return told("scrub.done")[count - 1]


def without_direct_reads(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scrub, "_DIRECT", os.O_TMPFILE)  # a flag that open refuses with EINVAL here, as O_DIRECT may be


def with_direct_reads_refused_later(monkeypatch: pytest.MonkeyPatch) -> None:
    real = os.preadv

    def preadv(fd: int, *rest: object) -> int:
        if fcntl.fcntl(fd, fcntl.F_GETFL) & os.O_DIRECT:
            raise OSError(errno.EINVAL, "not aligned")
        return real(fd, *rest)  # type: ignore[arg-type]

    monkeypatch.setattr(os, "preadv", preadv)


@pytest.mark.parametrize("spoil", [lambda _: None, without_direct_reads, with_direct_reads_refused_later])
def test_a_chunk_that_the_disk_changed_becomes_a_miss_and_is_counted_and_told(
        directory: Path, told: Callable[[str], list[dict[str, object]]], monkeypatch: pytest.MonkeyPatch,
        spoil: Callable[[pytest.MonkeyPatch], None]) -> None:
    spoil(monkeypatch)
    metrics, models = Metrics(), [random_model(seed, *[LENGTH] * 6) for seed in (1, 2, 3)]
    cache = open_cache(directory, metrics=metrics, scrub_s=LATER_S)
    files = [model.in_cache(cache) for model in models]
    for file, model in zip(files, models, strict=True):
        fill_all(file, model)
    files[1].pin()
    flip(data_path(directory, files[0]), 2 * LENGTH)
    flip(data_path(directory, files[1]), 6 * LENGTH - 1)
    cache.close()
    write_state(directory, time.time() - 2 * LATER_S)
    cache = open_cache(directory, metrics=metrics, scrub_s=LATER_S)
    done = wait_for(told)
    files = [model.in_cache(cache) for model in models]
    assert (done["files"], done["chunks"], done["corrupt"]) == (3, 18, 2)
    assert [set(range(6)) - good_rows(file, model) for file, model in zip(files, models, strict=True)] == [
        {2}, {5}, set()]
    counts = metrics.snapshot()
    assert (counts["hash_failures"], counts["chunks_verified"]) == (2, 16)
    assert {fields["chunk"] for fields in told("scrub.corrupt")} == {
        models[0].chunk_id(2).hex(), models[1].chunk_id(5).hex()}
    assert not told("cache.trouble")
    cache.close()


def test_a_bad_chunk_of_a_file_of_the_kernel_becomes_a_miss_and_keeps_its_bytes(
        directory: Path, told: Callable[[str], list[dict[str, object]]]) -> None:
    model = random_model(1, *[LENGTH] * 6)
    cache = open_cache(directory)
    file = model.in_cache(cache)
    fill_all(file, model)
    backing = file.backing()
    assert backing is not None
    flip(data_path(directory, file), 3 * LENGTH + 1)
    bad = os.pread(backing.fd, 6 * LENGTH, 0)
    write_state(directory, 0)
    scrubbing = open_cache(directory, scrub_s=LATER_S)
    assert wait_for(told)["corrupt"] == 1
    assert not file.presence(3) & 1 and not file.whole() and file.backing() is None
    assert os.pread(backing.fd, 6 * LENGTH, 0) == bad
    file.fill(3, memoryview(model.data[3]))
    assert os.pread(backing.fd, 6 * LENGTH, 0) == b"".join(model.data) and file.whole()
    backing.close()
    scrubbing.close()
    cache.close()


def test_a_bad_chunk_of_a_sealed_file_is_not_believed_by_the_next_mount(
        directory: Path, told: Callable[[str], list[dict[str, object]]]) -> None:
    model = random_model(1, *[LENGTH] * 6)
    cache = open_cache(directory, verify="changed")
    file = model.in_cache(cache)
    fill_all(file, model)
    flip(data_path(directory, file), LENGTH)
    cache.close()  # sealed as it is: the disk changed it before that
    write_state(directory, 0)
    cache = open_cache(directory, verify="changed", scrub_s=LATER_S)
    assert wait_for(told)["corrupt"] == 1
    assert not model.in_cache(cache).whole()
    cache.close()
    cache = open_cache(directory, verify="changed")
    assert not model.in_cache(cache).whole() and good_rows(model.in_cache(cache), model) == {0, 2, 3, 4, 5}
    cache.close()


def test_what_is_scrubbed_does_not_count_as_used(
        directory: Path, told: Callable[[str], list[dict[str, object]]]) -> None:
    model = random_model(1, *[LENGTH] * 3)
    cache = open_cache(directory)
    file = model.in_cache(cache)
    fill_all(file, model)
    used = [12345, 23456, 34567]
    for row, at in enumerate(used):
        file._handle.last_use[row] = at
    write_state(directory, 0)
    scrubbing = open_cache(directory, scrub_s=LATER_S)
    assert wait_for(told)["chunks"] == 3
    assert list(file._handle.last_use) == used
    scrubbing.close()
    cache.close()


def test_a_new_directory_is_scrubbed_first_when_a_period_has_gone_by_and_then_again(
        directory: Path, told: Callable[[str], list[dict[str, object]]]) -> None:
    model = random_model(1, LENGTH)
    later = open_cache(directory, scrub_s=LATER_S)
    fill_all(model.in_cache(later), model)
    assert eventually(lambda: (directory / "scrub").exists() and (directory / "scrub").stat().st_size == 128)
    later.close()
    assert not told("scrub.done")
    soon = open_cache(directory, scrub_s=SOON_S)
    assert wait_for(told, 2)["chunks"] == 1
    soon.close()


@pytest.mark.parametrize("state", [b"", b"junk", b"9" * 128, b"\xff" * 128])
def test_a_damaged_note_of_the_last_scrub_begins_a_new_period(
        directory: Path, told: Callable[[str], list[dict[str, object]]], state: bytes) -> None:
    cache, model = open_cache(directory), random_model(1, LENGTH)
    fill_all(model.in_cache(cache), model)
    cache.close()
    (directory / "scrub").write_bytes(state)
    cache = open_cache(directory, scrub_s=SOON_S)
    assert wait_for(told)["chunks"] == 1
    cache.close()


def test_a_scrub_in_the_future_is_one_just_now(directory: Path,
                                              told: Callable[[str], list[dict[str, object]]]) -> None:
    open_cache(directory).close()
    write_state(directory, time.time() + 1e6)
    cache = open_cache(directory, scrub_s=SOON_S)
    wait_for(told)
    cache.close()


def test_one_daemon_scrubs_at_a_time_and_a_killed_one_gives_way(
        directory: Path, told: Callable[[str], list[dict[str, object]]], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scrub, "_LOOK_S", 0.05)
    open_cache(directory).close()
    write_state(directory, 0)
    looks: list[float] = []
    monkeypatch.setattr(scrub, "flock_within",
                        lambda fd, seconds, real=scrub.flock_within: looks.append(0) or real(fd, seconds))
    with open(directory / "scrub", "rb") as other:
        fcntl.flock(other, fcntl.LOCK_EX)
        cache = open_cache(directory, scrub_s=LATER_S)
        assert eventually(lambda: len(looks) >= 3)
        assert not told("scrub.done")
    wait_for(told)
    cache.close()


def test_a_scrub_that_was_broken_off_goes_on_behind_the_last_file_it_did(
        directory: Path, told: Callable[[str], list[dict[str, object]]]) -> None:
    cache = open_cache(directory)
    models = sorted((random_model(seed, *[LENGTH] * 2) for seed in range(5)), key=lambda m: m.in_cache(cache).name)
    for model in models:
        fill_all(model.in_cache(cache), model)
    write_state(directory, 0, models[2].in_cache(cache).name)
    cache.close()
    cache = open_cache(directory, scrub_s=LATER_S)
    assert wait_for(told)["files"] == 2
    cache.close()


def test_closing_breaks_a_scrub_off_and_notes_how_far_it_was(
        directory: Path, told: Callable[[str], list[dict[str, object]]], monkeypatch: pytest.MonkeyPatch) -> None:
    cache = open_cache(directory)
    models = sorted((random_model(seed, *[LENGTH] * 2) for seed in range(5)), key=lambda m: m.in_cache(cache).name)
    for model in models:
        fill_all(model.in_cache(cache), model)
    names = [model.in_cache(cache).name for model in models]
    cache.close()
    write_state(directory, 0)
    monkeypatch.setattr(scrub, "_BYTES_PER_S", LENGTH / 0.1)
    cache = open_cache(directory, scrub_s=LATER_S)

    def noted() -> str:
        return (directory / "scrub").read_text().split()[1]

    assert eventually(lambda: noted() == names[0])
    cache.close()
    assert noted() in names[:4] and not told("scrub.done")
    monkeypatch.setattr(scrub, "_BYTES_PER_S", 50e6)
    left = 4 - names.index(noted())
    cache = open_cache(directory, scrub_s=LATER_S)
    assert wait_for(told)["files"] == left
    cache.close()


def test_files_that_are_evicted_or_filled_meanwhile_do_no_harm(
        directory: Path, told: Callable[[str], list[dict[str, object]]]) -> None:
    cache = open_cache(directory, scrub_s=0.001)
    model = random_model(1, *[64 * KiB + 3] * 8)
    file = model.in_cache(cache)
    done = 0
    while len(told("scrub.done")) < 20 and done < 3000:
        for row, data in enumerate(model.data):
            file.fill(row, memoryview(data))
            file.discard(7 - row, file.presence(7 - row))
        if done % 5 == 0:
            cache.remove(file.name)
        done += 1
    assert len(told("scrub.done")) >= 20 and not told("scrub.corrupt")
    fill_all(file, model)
    assert good_rows(file, model) == set(range(8))
    cache.close()


def test_a_chunk_that_was_replaced_while_it_was_hashed_stays(
        directory: Path, told: Callable[[str], list[dict[str, object]]], monkeypatch: pytest.MonkeyPatch) -> None:
    model = random_model(1, *[LENGTH] * 2)
    cache = open_cache(directory)
    file = model.in_cache(cache)
    fill_all(file, model)
    flip(data_path(directory, file), 5)
    real = scrub.check_chunk

    def replaced_first(ref: ChunkRef, view: memoryview) -> None:
        if ref.id == model.chunk_id(0):
            file.discard(0, file.presence(0))
            file.fill(0, memoryview(model.data[0]))
        real(ref, view)

    monkeypatch.setattr(scrub, "check_chunk", replaced_first)
    write_state(directory, 0)
    scrubbing = open_cache(directory, scrub_s=LATER_S)
    assert wait_for(told)["corrupt"] == 0
    assert file.whole() and good_rows(file, model) == {0, 1}
    scrubbing.close()
    cache.close()


def test_without_a_period_there_is_no_scrub(directory: Path) -> None:
    cache: Cache = open_cache(directory)
    assert cache._scrubber is None and not (directory / "scrub").exists()
    cache.close()

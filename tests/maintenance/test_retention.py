"""Retention: which versions go, by count, by age, by model; and that they go as `rm` takes them."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from maintenance.care import (
    DAY,
    MODEL,
    Between,
    assert_whole,
    files,
    gc,
    history,
    make_repository,
    push_files,
    rm,
    soon,
    tag,
)
from results import Result
from transfer.pushed import CHUNK, noise, write

from modelfs.errors import Conflict, IntegrityError, NotFound
from modelfs.ids import ModelName, ObjectId
from modelfs.maintenance.retention import Retention
from modelfs.repository import history as histories
from modelfs.repository import keys
from modelfs.repository.history import SEGMENT, Version
from modelfs.repository.repository import Repository
from modelfs.units import rfc3339, seconds_of

AT = 1_800_000_000.0


@pytest.fixture
def repository(tmp_path: Path) -> Repository:
    return make_repository(tmp_path / "repository")


def contents(n: int) -> dict[str, bytes]:
    return {"w": noise(n, 3 * CHUNK), "c": b"%d" % n}


def push_some(repository: Repository, count: int, model: str = MODEL) -> None:
    for n in range(count):
        push_files(repository, contents(n), model)


def left(repository: Repository, model: str = MODEL) -> list[str]:
    rows = history(repository, model)
    return [row.name for row in repository.versions(rows, soon())]


def row(number: int, days_old: float, created: str | None = None) -> Version:
    found = Version(number, ObjectId(bytes(32)), None, created or rfc3339(AT - days_old * DAY), None,  # type: ignore[arg-type]
                    None, {}, 1, 1, 1, 1)
    assert created or abs(AT - days_old * DAY - seconds_of(found.created)) < 1
    return found


@pytest.mark.parametrize(("last", "within_days", "gone"), [
    (2, None, ["v3", "v1"]),
    (1, None, ["v4", "v3", "v1"]),
    (None, 25, ["v3", "v1"]),
    (None, 5, ["v5", "v4", "v3", "v1"]),
    (1, 15, ["v4", "v3", "v1"]),
    (4, 15, ["v1"]),
    (9, 0, []),
    (None, 99, []),
])
def test_what_neither_a_tag_nor_the_count_nor_the_age_keeps_has_expired(repository: Repository, last: int | None,
                                                                       within_days: float | None,
                                                                       gone: list[str]) -> None:
    """Of five versions, ten days apart, of which v2 has a tag."""
    push_some(repository, 5)
    tag(repository, f"{MODEL}:v2", "prod")
    tag(repository, f"{MODEL}:v2", "latest")
    versions = [row(number, (5 - number) * 10 + 9.0) for number in (5, 4, 3, 2, 1)]
    retention = Retention(last, None if within_days is None else within_days * DAY)
    assert [version.name for version in retention.expired(history(repository), versions, AT)] == gone


@pytest.mark.parametrize("created", [rfc3339(AT + 900 * DAY), "no time"])
def test_a_version_of_the_future_counts_as_one_of_now(repository: Repository, created: str) -> None:
    push_some(repository, 1)
    versions = [row(9, 0.0, created), row(8, 3.0)]
    assert Retention(within_s=DAY).expired(history(repository), versions, AT) == versions[1:]


def test_they_go_as_rm_takes_them_and_their_bytes_with_them(repository: Repository, tmp_path: Path) -> None:
    push_some(repository, 4)
    push_some(repository, 2, "lab/other")
    before = files(tmp_path / "repository")
    planned = gc(repository, dry_run=True, retention=Retention(last=1))
    assert files(tmp_path / "repository") == before
    report = gc(repository, retention=Retention(last=1))
    assert planned.versions_removed == report.versions_removed == (
        "lab/model:v3", "lab/model:v2", "lab/model:v1", "lab/other:v1")
    assert report.bytes_freed > 2 * 3 * CHUNK > planned.bytes_freed
    assert history(repository).removed_numbers == {1, 2, 3}
    assert_whole(repository, {"lab/model:v4": contents(3), "lab/other:v2": contents(1)})
    assert push_files(repository, contents(0)).version == "v5"
    assert gc(repository, retention=Retention(last=2)).versions_removed == ()


def test_only_the_models_that_are_named_lose_versions(repository: Repository) -> None:
    push_some(repository, 3)
    push_some(repository, 3, "lab/other")
    report = gc(repository, retention=Retention(last=1, models=(ModelName.parse("lab/other"),)))
    assert report.versions_removed == ("lab/other:v2", "lab/other:v1")
    assert (left(repository), left(repository, "lab/other")) == (["v3", "v2", "v1"], ["v3"])
    with pytest.raises(NotFound, match="lab/none"):
        gc(repository, retention=Retention(last=1, models=(ModelName.parse("lab/none"),)))


def test_a_model_takes_one_swap_whatever_goes(repository: Repository) -> None:
    push_some(repository, 4)
    push_some(repository, 4, "lab/other")
    before = repository.catalog(soon()).catalog.serial
    gc(repository, retention=Retention(last=1))
    assert repository.catalog(soon()).catalog.serial == before + 2


def test_a_tag_that_is_moved_meanwhile_keeps_its_version(repository: Repository) -> None:
    push_some(repository, 3)
    between = Between(repository.store, "swap", keys.CATALOG, lambda: tag(repository, f"{MODEL}:v1", "prod"))
    report = gc(between.repository(), retention=Retention(last=1))
    assert between.happened and report.versions_removed == ("lab/model:v2",)
    assert_whole(repository, {"lab/model:v3": contents(2), "lab/model:v1": contents(0)})


def test_versions_of_sealed_segments_go_too(repository: Repository) -> None:
    """A history of many rows, all of them of one manifest."""
    push_some(repository, 1)
    state = repository.catalog(soon())
    rows = history(repository)
    first = rows.versions[0]
    for number in range(2, 2 * SEGMENT + 3):
        rows = rows.with_version(replace(first, number=number))
        if rows.sealable():
            segment = histories.segment_bytes(rows.model, rows.sealable())
            repository.store.put(keys.history(ObjectId.of(segment)), segment, soon())
            rows = rows.sealed(ObjectId.of(segment))
    rows = rows.with_tag("latest", 2 * SEGMENT + 2, first.created)
    text = rows.serialise()
    repository.store.put(keys.history(ObjectId.of(text)), text, soon())
    new = state.catalog.next(first.created, models={rows.model: ObjectId.of(text)})
    repository.store.swap(keys.CATALOG, state.etag, new.serialise(), soon())
    assert len(gc(repository, retention=Retention(last=3)).versions_removed) == 2 * SEGMENT - 1
    assert left(repository) == [f"v{2 * SEGMENT + 2 - n}" for n in range(3)]


def test_a_model_whose_last_version_goes_keeps_its_next_number(repository: Repository) -> None:
    push_some(repository, 2)
    rm(repository, f"{MODEL}:latest")
    report = gc(repository, days=3, retention=Retention(within_s=DAY))
    assert report.versions_removed == ("lab/model:v2", "lab/model:v1")
    assert repository.catalog(soon()).catalog.models == {}
    assert push_files(repository, contents(7)).version == "v3"


def test_a_replica_loses_no_versions_of_its_own_accord(repository: Repository) -> None:
    push_some(repository, 2)
    state = repository.catalog(soon())
    repository.store.swap(keys.CATALOG, state.etag, replace(state.catalog, replica_of="http://p").serialise(), soon())
    for dry_run in (True, False):
        with pytest.raises(Conflict, match="replica"):
            gc(repository, dry_run=dry_run, retention=Retention(last=1))


def test_a_history_that_cannot_be_read_ends_it(repository: Repository, tmp_path: Path) -> None:
    push_some(repository, 2)
    digest = repository.catalog(soon()).catalog.models[ModelName.parse(MODEL)]
    (tmp_path / "repository" / keys.history(digest)).write_bytes(b"junk")
    with pytest.raises(IntegrityError):
        gc(repository, retention=Retention(last=1))


def test_the_command_removes_rewrites_and_says_so(modelfs: Callable[..., Result], tmp_path: Path) -> None:
    modelfs("init", "repo", "--chunk-size", "64KiB")
    whole = noise(1, 20 * CHUNK)
    for name, data in (("one", whole), ("two", whole[:5 * CHUNK]), ("three", noise(3, CHUNK) + whole[:5 * CHUNK])):
        assert modelfs("push", write(tmp_path / name, {"w": data}), "repo", "acme/base").code == 0
    keep = ("--keep-last", 2, "--keep-within", "1ms", "--model", "acme/base", "--repack", "--grace", "0s")
    planned = json.loads(modelfs("gc", "repo", *keep, "--dry-run", "--json").out)
    assert (planned["versions_removed"], planned["versions_rewritten"]) == (["acme/base:v1"], 0)
    told = modelfs("gc", "repo", *keep, "--dry-run").out
    assert told.startswith("acme/base:v1: would be removed\nwould free")
    done = json.loads(modelfs("gc", "repo", *keep, "--json").out)
    assert done["versions_removed"] == ["acme/base:v1"]
    assert (done["packs_rewritten"], done["versions_rewritten"], done["bytes_rewritten"]) == (1, 2, 5 * CHUNK)
    assert done["bytes_freed"] > 20 * CHUNK and done["dry_run"] is False
    assert json.loads(modelfs("verify", "repo", "--read-data", "--json").out)["ok"]
    assert modelfs("gc", "repo", *keep).out.startswith("freed 0 B in 0 objects")


@pytest.mark.parametrize("bad", [("--keep-last", "0"), ("--keep-last", "few"), ("--keep-within", "old"),
                                 ("--model", "acme/base"), ("--model", "acme", "--keep-last", "1")])
def test_a_bad_bound_is_exit_2(modelfs: Callable[..., Result], bad: tuple[str, ...]) -> None:
    modelfs("init", "repo")
    done = modelfs("gc", "repo", *bad)
    assert (done.code, done.out, len(done.err.splitlines())) == (2, "", 1), done

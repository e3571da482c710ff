"""Tags move, versions and models go, numbers never come back; what happens at once in another place is not undone."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from maintenance.care import (
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

from modelfs.errors import BadInput, Conflict, NotFound
from modelfs.ids import ModelName
from modelfs.repository import keys
from modelfs.repository.repository import Repository


@pytest.fixture
def repository(tmp_path: Path) -> Repository:
    """lab/model v1 to v3, latest is v3."""
    repository = make_repository(tmp_path / "repository")
    for n in range(1, 4):
        push_files(repository, {"n": bytes([n])})
    return repository


def numbers(repository: Repository) -> list[int]:
    return [row.number for row in repository.versions(history(repository), soon())]


def test_a_tag_is_made_and_moved_to_a_version_a_tag_or_latest(repository: Repository) -> None:
    assert tag(repository, f"{MODEL}:v1", "prod")
    assert tag(repository, f"{MODEL}:prod", "other")
    assert history(repository).live_tags == {"latest": 3, "other": 1, "prod": 1}
    assert tag(repository, MODEL, "prod")
    assert tag(repository, f"{MODEL}:v2", "latest")
    assert history(repository).live_tags == {"latest": 2, "other": 1, "prod": 3}
    assert_whole(repository, {f"{MODEL}:v{n}": {"n": bytes([n])} for n in (1, 2, 3)})


def test_a_tag_that_is_there_already_changes_nothing(repository: Repository, tmp_path: Path) -> None:
    before = files(tmp_path / "repository")
    assert not tag(repository, f"{MODEL}:v3", "latest")
    assert files(tmp_path / "repository") == before


@pytest.mark.parametrize(("model", "name", "error"), [
    ("lab/none", "prod", NotFound), (f"{MODEL}:none", "prod", NotFound), (f"{MODEL}:v9", "prod", NotFound),
    (MODEL, "v9", BadInput), (MODEL, "x..y", BadInput), (MODEL, "", BadInput)])
def test_a_tag_of_what_is_not_there_or_no_tags_name_is_refused(repository: Repository, model: str, name: str,
                                                               error: type[Exception]) -> None:
    with pytest.raises(error):
        tag(repository, model, name)


def test_a_tag_that_was_removed_is_gone_and_its_version_stays(repository: Repository) -> None:
    tag(repository, f"{MODEL}:v1", "prod")
    assert rm(repository, f"{MODEL}:prod").tag == "prod"
    assert history(repository).live_tags == {"latest": 3}
    assert numbers(repository) == [3, 2, 1]
    with pytest.raises(NotFound, match="its tags are latest"):
        rm(repository, f"{MODEL}:prod")


def test_a_version_goes_unless_a_tag_names_it(repository: Repository) -> None:
    tag(repository, f"{MODEL}:v1", "prod")
    with pytest.raises(Conflict, match="prod"):
        rm(repository, f"{MODEL}:v1")
    removal = rm(repository, f"{MODEL}:v2")
    assert (removal.versions, removal.model_removed) == (("v2",), False)
    assert numbers(repository) == [3, 1]
    with pytest.raises(NotFound, match="it was removed"):
        rm(repository, f"{MODEL}:v2")
    with pytest.raises(NotFound):
        tag(repository, f"{MODEL}:v2", "prod")
    assert push_files(repository, {"n": b"4"}).version == "v4"


def test_a_removed_model_is_nowhere_and_its_numbers_go_on(repository: Repository) -> None:
    manifests = {row.manifest for row in history(repository).versions}
    removal = rm(repository, MODEL)
    assert (removal.versions, removal.model_removed) == (("v3", "v2", "v1"), True)
    gone = tombstones(repository)
    assert (gone.versions, gone.segments, gone.live_tags, gone.next) == ((), (), {}, 4)
    assert {row.manifest for row in gone.removed} == manifests
    for again in (MODEL, f"{MODEL}:v1", f"{MODEL}:latest"):
        with pytest.raises(NotFound):
            rm(repository, again)
    gc(repository)
    report = push_files(repository, {"n": b"new"})
    assert report.version == "v4"
    catalog = repository.catalog(soon()).catalog
    assert (set(map(str, catalog.models)), catalog.removed) == ({MODEL}, {})
    assert_whole(repository, {f"{MODEL}:v4": {"n": b"new"}})


def tombstones(repository: Repository):  # type: ignore[no-untyped-def]
    catalog = repository.catalog(soon()).catalog
    assert ModelName.parse(MODEL) not in catalog.models
    return repository.history_at(catalog.removed[ModelName.parse(MODEL)], ModelName.parse(MODEL), soon())


def test_a_model_whose_last_version_was_removed_is_as_one_that_was_removed_whole(repository: Repository) -> None:
    rm(repository, f"{MODEL}:latest")
    for n in (1, 3):
        assert not rm(repository, f"{MODEL}:v{n}").model_removed
    assert rm(repository, f"{MODEL}:v2").model_removed
    gone = tombstones(repository)
    assert (gone.versions, gone.segments, gone.live_tags, gone.next) == ((), (), {}, 4)
    assert sorted(row.number for row in gone.removed) == [1, 2, 3]


def test_versions_in_sealed_segments_are_removed_too(repository: Repository, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("modelfs.repository.history.SEGMENT", 2)
    for n in range(4, 8):
        push_files(repository, {"n": bytes([n])})
    assert [part.first for part in history(repository).segments] == [1, 3]
    assert rm(repository, f"{MODEL}:v2").versions == ("v2",)
    gc(repository)
    assert_whole(repository, {f"{MODEL}:v{n}": {"n": bytes([n])} for n in (1, 3, 4, 5, 6, 7)})
    assert len(rm(repository, MODEL).versions) == 6
    assert sorted(row.number for row in tombstones(repository).removed) == list(range(1, 8))
    gc(repository)
    assert_whole(repository, {})
    assert push_files(repository, {"n": b"8"}).version == "v8"


@pytest.mark.parametrize("change", [lambda r: tag(r, f"{MODEL}:v1", "prod"), lambda r: rm(r, f"{MODEL}:v1")])
def test_what_a_push_did_meanwhile_is_kept(repository: Repository, change: Callable[[Repository], object]) -> None:
    between = Between(repository.store, "swap", keys.CATALOG, lambda: push_files(repository, {"n": b"4"}))
    change(between.repository())
    assert between.happened
    assert history(repository).live_tags["latest"] == 4
    assert (1 in numbers(repository)) == ("prod" in history(repository).live_tags)


def test_a_tag_is_not_moved_to_a_version_that_is_removed_meanwhile(repository: Repository) -> None:
    between = Between(repository.store, "swap", keys.CATALOG, lambda: rm(repository, f"{MODEL}:v1"))
    with pytest.raises(NotFound, match="removed"):
        tag(between.repository(), f"{MODEL}:v1", "prod")
    assert between.happened
    assert history(repository).live_tags == {"latest": 3}

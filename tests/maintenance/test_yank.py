"""Versions are withdrawn and taken back in; every command that reads one says so, or refuses."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from maintenance.care import MODEL, history, make_repository, push_files, rm, soon
from results import Result

from modelfs.errors import BadInput, NotFound
from modelfs.ids import ModelRef
from modelfs.maintenance.agreement import differences
from modelfs.maintenance.yanking import yank
from modelfs.repository import history as histories
from modelfs.repository.repository import Repository
from modelfs.stores.file_store import FileStore
from modelfs.transfer.replicate import promote, replicate

Run = Callable[..., Result]
V1 = ModelRef.parse(f"{MODEL}:v1")


@pytest.fixture
def repository(tmp_path: Path) -> Repository:
    """lab/model v1 and v2, latest is v2."""
    repository = make_repository(tmp_path / "repository")
    push_files(repository, {"n": b"one"})
    push_files(repository, {"n": b"two"})
    return repository


def test_a_version_is_withdrawn_and_taken_back_in(repository: Repository) -> None:
    plain = history(repository).serialise()
    done = yank(repository, V1, "bad eval", soon)
    assert (done.version, done.reason, done.tags, done.changed) == ("v1", "bad eval", (), True)
    assert history(repository).yanked == {1: "bad eval"}
    assert not yank(repository, V1, "bad eval", soon).changed
    assert yank(repository, V1, "worse", soon).changed and history(repository).yanked == {1: "worse"}
    assert yank(repository, V1, None, soon).changed and history(repository).yanked == {}
    assert b"yanked" not in plain and histories.parse(plain, V1.model).yanks == {}


def test_a_push_after_it_keeps_what_was_said_and_a_removal_ends_it(repository: Repository) -> None:
    yank(repository, V1, "bad eval", soon)
    push_files(repository, {"n": b"three"})
    assert history(repository).yanked == {1: "bad eval"}
    rm(repository, f"{MODEL}:v1")
    assert history(repository).yanked == {}


@pytest.mark.parametrize(("model", "reason", "error"), [
    (MODEL, "r", BadInput), (f"{MODEL}:latest", "r", BadInput), (f"{MODEL}:v9", "r", NotFound),
    (f"{MODEL}:v1", " ", BadInput), (f"{MODEL}:v1", "two\nlines", BadInput), (f"{MODEL}:v1", "x" * 501, BadInput)])
def test_what_cannot_be_withdrawn_is_refused(repository: Repository, model: str, reason: str,
                                             error: type[Exception]) -> None:
    with pytest.raises(error):
        yank(repository, ModelRef.parse(model), reason, soon)
    assert history(repository).yanked == {}


def test_two_stores_that_say_different_things_of_a_version_differ(repository: Repository, tmp_path: Path) -> None:
    replicate(repository, FileStore(tmp_path / "replica"), soon)
    replica = Repository.open(FileStore(tmp_path / "replica"), soon())
    yank(repository, V1, "bad eval", soon)
    faults = [fault for found in differences([repository, replica]) for fault in found]
    assert [(fault.kind, fault.version) for fault in faults] == [("diverged", "v1")]
    assert "withdrawn (bad eval)" in faults[0].detail


@pytest.mark.parametrize("pushed", [False, True])
def test_a_primary_that_comes_back_brings_what_was_withdrawn_there(repository: Repository, tmp_path: Path,
                                                                   pushed: bool) -> None:
    """pushed: to both, so that the old primary's v3 becomes v4."""
    replicate(repository, FileStore(tmp_path / "replica"), soon)
    new = Repository.open(FileStore(tmp_path / "replica"), soon())
    promote(new, soon)
    yank(repository, V1, "bad eval", soon)
    if pushed:
        push_files(new, {"n": b"mine"})
        push_files(repository, {"n": b"its"})
        yank(repository, ModelRef.parse(f"{MODEL}:v3"), "half trained", soon)
    replicate(new, FileStore(tmp_path / "repository"), soon)
    assert history(new).yanked == {1: "bad eval", **({4: "half trained"} if pushed else {})}


def test_the_command_warns_of_tags_and_log_inspect_and_pull_say_it(repository: Repository, modelfs: Run,
                                                                   tmp_path: Path) -> None:
    done = modelfs("yank", "repository", f"{MODEL}:v2", "--reason", "bad eval", "--json")
    assert done.code == 0 and "latest still names it" in done.err
    assert json.loads(done.out) == {"model": MODEL, "version": "v2", "reason": "bad eval", "tags": ["latest"],
                                    "changed": True}
    versions = json.loads(modelfs("log", "repository", MODEL, "--json").out)["versions"]
    assert [at["yanked"] for at in versions] == ["bad eval", None]
    assert "withdrawn: bad eval" in modelfs("log", "repository", MODEL).out
    assert json.loads(modelfs("inspect", "repository", MODEL, "--json").out)["yanked"] == "bad eval"
    pulled = modelfs("pull", "repository", MODEL, "plain")
    assert pulled.code == 0 and f"warning: {MODEL}:v2 was withdrawn: bad eval" in pulled.err
    assert (tmp_path / "plain" / "n").read_bytes() == b"two"
    warmed = modelfs("cache", "warm", "repository", MODEL, "--cache-dir", "cache")
    assert warmed.code == 0 and "was withdrawn" in warmed.err
    assert modelfs("yank", "repository", f"{MODEL}:v2").code == 2
    assert modelfs("yank", "repository", f"{MODEL}:v2", "--undo").code == 0
    assert "withdrawn" not in modelfs("pull", "repository", MODEL, "again").err


def test_where_the_policy_denies_it_nothing_is_copied(repository: Repository, modelfs: Run, tmp_path: Path) -> None:
    yank(repository, V1, "bad eval", soon)
    deny = {"MODELFS_POLICY_YANKED": "deny"}
    for arguments in (("pull", "repository", f"{MODEL}:v1", "plain"),
                      ("cache", "warm", "repository", f"{MODEL}:v1", "--cache-dir", "cache")):
        done = modelfs(*arguments, env=deny)
        assert done.code == 6 and f"{MODEL}:v1 was withdrawn: bad eval" in done.err, (arguments, done)
    assert not (tmp_path / "plain").exists()
    assert modelfs("pull", "repository", MODEL, "plain", env=deny).code == 0

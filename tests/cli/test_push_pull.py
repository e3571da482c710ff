"""What `push` and `pull` say of what they did, and of what stands in their way."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from results import Result

Run = Callable[..., Result]


@pytest.fixture
def repository(tmp_path: Path, modelfs: Run) -> Path:
    assert modelfs("init", "repository").code == 0
    for text in ("one", "two"):
        push(tmp_path, modelfs, text)
    return tmp_path / "repository"


def push(tmp_path: Path, modelfs: Run, text: str, *more: str) -> Result:
    (tmp_path / "source").mkdir(exist_ok=True)
    (tmp_path / "source/config.json").write_text(text)
    return modelfs("push", "source", "repository", "acme/one", *more)


def test_a_push_that_only_moves_the_tag_says_so(repository: Path, tmp_path: Path, modelfs: Run) -> None:
    for dry, more in ((", dry run: nothing written", ["--dry-run"]), ("", [])):
        done = push(tmp_path, modelfs, "one", "--message", "again", *more)
        assert (done.code, done.out) == (0, f"acme/one: moved latest to v1, which has the same content{dry}\n")
        assert "kept with new versions only" in done.err
    assert push(tmp_path, modelfs, "one").out.startswith("acme/one:latest is v1 already")
    assert push(tmp_path, modelfs, "three").out.startswith("acme/one v3 (latest): 1 file")


def test_a_pull_onto_a_file_says_what_to_do_and_leaves_it(repository: Path, tmp_path: Path, modelfs: Run) -> None:
    (tmp_path / "there").write_text("mine")
    for dest in ("there", "there/below"):
        done = modelfs("pull", repository, "acme/one", dest)
        assert done.code == 2
        assert "a file stands where a directory is to be. Name another directory, or move the file away." in done.err
    assert (tmp_path / "there").read_text() == "mine"


def test_a_pull_onto_a_directory_in_a_files_place_says_what_to_do(repository: Path, tmp_path: Path,
                                                                  modelfs: Run) -> None:
    (tmp_path / "out/config.json").mkdir(parents=True)
    done = modelfs("pull", repository, "acme/one", "out")
    assert done.code == 2 and "a directory stands where a file is to be" in done.err


def test_a_bad_flag_is_named_as_it_was_typed(repository: Path, tmp_path: Path, modelfs: Run) -> None:
    (tmp_path / "mnt").mkdir()
    done = modelfs("mount", repository, "mnt", "--deadline", "soon")
    assert (done.code, done.err.startswith("modelfs: --deadline cannot be 'soon': allowed: a time")) == (2, True)


def test_a_push_of_a_directory_that_holds_the_repository_is_refused(repository: Path, tmp_path: Path,
                                                                   modelfs: Run) -> None:
    """Each would push all pushes before it."""
    (tmp_path / "link").symlink_to("repository")
    for source, repo in (("repository", repository), (".", "link"), ("repository/..", repository.as_uri())):
        done = modelfs("push", source, repo, "acme/two")
        assert done.code == 2 and "the repository lies in what is to be pushed" in done.err, done.err
    assert "acme/two" not in modelfs("ls", "repository").out
    (tmp_path / "repository-of-mine").mkdir()
    (tmp_path / "repository-of-mine/w").write_text("1")
    assert modelfs("push", "repository-of-mine", "repository", "acme/two").code == 0
    assert modelfs("push", "repository/modelfs.json", "repository", "acme/two").code == 0


def test_without_the_tag_latest_it_is_said_what_to_write_instead(repository: Path, modelfs: Run) -> None:
    assert modelfs("tag", repository, "acme/one", "prod").code == 0
    assert modelfs("rm", repository, "acme/one:latest").code == 0
    done = modelfs("pull", repository, "acme/one", "out")
    assert done.code == 3
    assert done.err.endswith(": its tags are prod. Say which is meant, as in acme/one:prod.\n")
    assert modelfs("pull", repository, "acme/one:prodd", "out").err.endswith(": its tags are prod\n")
    assert modelfs("rm", repository, "acme/one:prod").code == 0
    assert modelfs("ls", repository, "acme/one").err.endswith(": its tags are none. Say which is meant, as in "
                                                              "acme/one:vN.\n")

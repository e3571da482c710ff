"""tag, rm and gc by the real command: documents, exit codes, and the question before a whole model goes."""

from __future__ import annotations

import json
import os
import pty
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from results import Result
from servers import own_server

Run = Callable[..., Result]


@pytest.fixture
def repo(modelfs: Run, tmp_path: Path) -> Path:
    """acme/base v1 and v2."""
    modelfs("init", "repo")
    (tmp_path / "src").mkdir()
    for n in (1, 2):
        (tmp_path / "src/data").write_bytes(os.urandom(200_000))
        assert modelfs("push", "src", "repo", "acme/base").code == 0, n
    return tmp_path / "repo"


def document(result: Result) -> Any:
    assert result.code == 0, result
    return json.loads(result.out)


def line(result: Result, code: int) -> str:
    assert (result.code, result.out, len(result.err.splitlines())) == (code, "", 1), result
    return result.err


def versions(modelfs: Run, repo: Path) -> list[str]:
    return [row["version"] for row in document(modelfs("log", repo, "acme/base", "--json"))["versions"]]


def test_tag_says_where_the_tag_is_and_whether_it_moved(modelfs: Run, repo: Path) -> None:
    told = {"model": "acme/base", "tag": "prod", "version": "v1", "changed": True}
    assert document(modelfs("tag", repo, "acme/base:v1", "prod", "--json")) == told
    assert document(modelfs("tag", repo, "acme/base:v1", "prod", "--json")) == told | {"changed": False}
    assert modelfs("tag", repo, "acme/base:v1", "prod").out == "acme/base:prod is v1 already: nothing changed\n"
    assert modelfs("tag", repo, "acme/base", "prod").out == "acme/base:prod is v2\n"


def test_tag_of_what_is_not_there_is_exit_3_and_a_bad_name_exit_2(modelfs: Run, repo: Path) -> None:
    for model in ("acme/none", "acme/base:none", "acme/base:v9"):
        line(modelfs("tag", repo, model, "prod"), 3)
    for name in ("v9", "x..y", "t" * 97):
        line(modelfs("tag", repo, "acme/base:v1", name), 2)


def test_rm_of_a_tag_a_version_and_a_model(modelfs: Run, repo: Path) -> None:
    modelfs("tag", repo, "acme/base:v1", "prod")
    assert "prod" in line(modelfs("rm", repo, "acme/base:v1"), 7)
    assert document(modelfs("rm", repo, "acme/base:prod", "--json")) == {
        "model": "acme/base", "tag": "prod", "versions": [], "model_removed": False}
    assert document(modelfs("rm", repo, "acme/base:v1", "--json")) == {
        "model": "acme/base", "tag": None, "versions": ["v1"], "model_removed": False}
    assert versions(modelfs, repo) == ["v2"]
    assert document(modelfs("rm", repo, "acme/base", "--yes", "--json")) == {
        "model": "acme/base", "tag": None, "versions": ["v2"], "model_removed": True}
    line(modelfs("log", repo, "acme/base"), 3)


def test_rm_of_a_whole_model_without_a_terminal_needs_yes(modelfs: Run, repo: Path) -> None:
    assert "--yes" in line(modelfs("rm", repo, "acme/base"), 2)
    line(modelfs("rm", repo, "acme/none"), 3)
    assert versions(modelfs, repo) == ["v2", "v1"]


@pytest.mark.parametrize(("answer", "code", "left"), [("n", 0, True), ("", 0, True), ("\x04", 130, True),
                                                    ("y", 0, False)])
def test_on_a_terminal_rm_asks_first(modelfs: Run, environ: dict[str, str], repo: Path, answer: str, code: int,
                                     left: bool) -> None:
    ours, theirs = pty.openpty()
    process = subprocess.Popen([sys.executable, "-m", "modelfs", "rm", str(repo), "acme/base"], stdin=theirs,
                               stdout=theirs, stderr=theirs, close_fds=True,
                               env={**environ, "PYTHONPATH": str(Path(__file__).parents[2])})
    os.close(theirs)
    said = b""
    while b"[y/N]" not in said:
        said += os.read(ours, 1000)
    assert b"acme/base with 2 versions" in said
    os.write(ours, f"{answer}\n".encode())
    assert process.wait(30) == code
    said = os.read(ours, 1000)
    assert (b"nothing removed" in said) == (code == 0 and left)
    os.close(ours)
    assert (modelfs("log", repo, "acme/base").code == 0) == left


def test_gc_says_what_it_would_free_and_frees_it(modelfs: Run, repo: Path) -> None:
    modelfs("rm", repo, "acme/base:v1")
    planned = document(modelfs("gc", repo, "--grace", "0s", "--dry-run", "--json"))
    assert planned["dry_run"] and planned["bytes_freed"] > 200_000 and planned["bytes_kept"] > 200_000
    assert document(modelfs("gc", repo, "--json"))["objects_deleted"] == 0
    waits = modelfs("gc", repo).out
    assert waits.startswith("freed 0 B in 0 objects") and "wait for the grace of 7d" in waits
    done = document(modelfs("gc", repo, "--grace", "0s", "--json"))
    assert done["bytes_freed"] == planned["bytes_freed"] and not done["dry_run"]
    assert document(modelfs("verify", repo, "--read-data", "--json"))["ok"]


def test_gc_of_a_bad_grace_is_exit_2_and_of_no_repository_exit_3(modelfs: Run, repo: Path) -> None:
    line(modelfs("gc", repo, "--grace", "soon"), 2)
    line(modelfs("gc", "nowhere"), 3)


def test_tag_and_rm_work_through_a_server_that_takes_writes(modelfs: Run, repo: Path) -> None:
    with own_server(repo, writable=True) as url:
        assert document(modelfs("tag", url, "acme/base:v1", "prod", "--json"))["changed"]
        line(modelfs("rm", url, "acme/base:v1"), 7)
        assert document(modelfs("rm", url, "acme/base", "--yes", "--json"))["versions"] == ["v2", "v1"]
        line(modelfs("log", repo, "acme/base"), 3)


def test_gc_over_http_is_exit_6_and_says_where_to_run_it(modelfs: Run, repo: Path) -> None:
    with own_server(repo) as url:
        assert "Run this where the repository is a directory" in line(modelfs("gc", url), 6)

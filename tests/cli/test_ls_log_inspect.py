"""init, ls, log and inspect: the fields that scripts rely on, the tables that people read, the exit codes."""

from __future__ import annotations

import hashlib
import json
import re
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from blake3 import blake3
from results import Result
from safetensors.numpy import save_file

from modelfs.ids import ModelRef
from modelfs.repository.info import initialise
from modelfs.repository.repository import Repository
from modelfs.stores.file_store import FileStore
from modelfs.transfer.push import PushOptions, push
from modelfs.units import Deadline, KiB

Run = Callable[..., Result]
WHEN = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d+)?Z")
RNG = np.random.default_rng(3)
TENSORS = {
    "big": RNG.normal(0, 0.02, (400, 300)).astype(np.float32),
    "none": np.zeros((0, 4), np.float32),
    "same": np.ones((300, 300), np.float32),
    "small": RNG.normal(0, 0.02, (50, 30)).astype(np.float16),
}


@pytest.fixture
def source(tmp_path: Path) -> Path:
    root = tmp_path / "src"
    (root / "sub").mkdir(parents=True)
    save_file(TENSORS, root / "model.safetensors")
    np.save(root / "sub/array.npy", TENSORS["big"] * 3)
    (root / "config.json").write_text('{"layers": 2}')
    (root / "empty").touch()
    return root


@pytest.fixture
def repo(source: Path, tmp_path: Path) -> Path:
    """acme/base v1 and v2; v1 is prod, too. acme/other v1. Made without commands, which take longer to start."""
    store = FileStore(tmp_path / "repo")
    initialise(store, 64 * KiB, time.time(), Deadline(60))
    repository = Repository.open(store, Deadline(60))
    options = PushOptions(tmp_path / "state", lambda: Deadline(60))
    first = replace(options, message="first\nof all", metadata={"kind": "test"})
    push(source, repository, ModelRef.parse("acme/base"), first)
    push(source, repository, ModelRef.parse("acme/base:prod"), first)
    (source / "config.json").write_text('{"layers": 3}')
    push(source, repository, ModelRef.parse("acme/base"), options)
    push(source / "config.json", repository, ModelRef.parse("acme/other:next"), options)
    return tmp_path / "repo"


def document(result: Result) -> Any:
    assert (result.code, result.err) == (0, "")
    return json.loads(result.out)


def test_init_makes_a_repository_once(modelfs: Run, tmp_path: Path) -> None:
    made = document(modelfs("init", "new/repo", "--chunk-size", "4 MiB", "--json"))
    assert made["chunk_size"] == 4 << 20
    info = (tmp_path / "new/repo/modelfs.json").read_bytes()
    assert json.loads(info)["repository"] == made["id"]
    again = modelfs("init", "new/repo")
    assert (again.code, again.out, len(again.err.splitlines())) == (7, "", 1)
    assert (tmp_path / "new/repo/modelfs.json").read_bytes() == info
    assert modelfs("ls", "new/repo", "--json").out == '{"models": []}\n'


@pytest.mark.parametrize("size", ["many", "3MiB", "32KiB", "32MiB", "0"])
def test_init_refuses_other_chunk_sizes(modelfs: Run, tmp_path: Path, size: str) -> None:
    assert modelfs("init", "new", "--chunk-size", size).code == 2
    assert not (tmp_path / "new").exists()


def test_ls_shows_models_with_their_tags_and_the_sizes_of_latest(modelfs: Run, repo: Path, source: Path) -> None:
    base, other = document(modelfs("ls", repo, "--json"))["models"]
    assert set(base) == {"model", "versions", "tags", "latest", "created", "decoded_bytes", "stored_bytes"}
    assert (base["model"], base["versions"], base["tags"], base["latest"]) == (
        "acme/base", 2, {"latest": "v2", "prod": "v1"}, "v2")
    assert base["decoded_bytes"] == sum(path.stat().st_size for path in source.rglob("*") if path.is_file())
    assert 0 < base["stored_bytes"] < base["decoded_bytes"]
    assert (other["latest"], other["tags"], other["decoded_bytes"]) == (None, {"next": "v1"}, 13)
    assert WHEN.fullmatch(base["created"])


def test_ls_shows_the_files_of_a_version(modelfs: Run, repo: Path, source: Path) -> None:
    found = document(modelfs("ls", repo, "acme/base", "--json"))
    assert (found["model"], found["version"]) == ("acme/base", "v2")
    assert {file["path"]: file["size"] for file in found["files"]} == {
        path: (source / path).stat().st_size for path in ("config.json", "empty", "model.safetensors", "sub/array.npy")}
    assert all(set(file) == {"path", "size", "mtime"} and WHEN.fullmatch(file["mtime"]) for file in found["files"])
    assert document(modelfs("ls", repo, "acme/base:prod", "--json"))["version"] == "v1"
    assert document(modelfs("ls", repo, "acme/base:v2", "--json")) == found


def test_log_shows_the_newest_first(modelfs: Run, repo: Path) -> None:
    found = document(modelfs("log", repo, "acme/base", "--json"))
    second, first = found["versions"]
    assert set(first) == {"version", "manifest", "created", "message", "parent", "tags", "metadata", "decoded_bytes",
                          "stored_bytes", "yanked"}
    assert (first["version"], first["message"], first["parent"], first["tags"], first["metadata"]) == (
        "v1", "first\nof all", None, ["prod"], {"kind": "test"})
    assert (second["version"], second["message"], second["parent"], second["tags"]) == ("v2", None, "v1", ["latest"])
    assert modelfs("log", repo, "acme/base:v1").code == 2


def test_inspect_counts_each_chunk_once_and_knows_every_tensor(modelfs: Run, repo: Path, source: Path) -> None:
    found = document(modelfs("inspect", repo, "acme/base", "--json"))
    assert set(found) == {"model", "version", "manifest", "created", "message", "metadata", "decoded_bytes",
                          "stored_bytes", "chunks", "commit", "yanked", "files"}
    assert found["commit"] == found["manifest"][:40]
    files = {file["path"]: file for file in found["files"]}
    for path, file in files.items():
        data = (source / path).read_bytes()
        assert (file["size"], file["digest"], file["sha256"]) == (
            len(data), blake3(data).hexdigest(), hashlib.sha256(data).hexdigest())
    model, array = files["model.safetensors"], files["sub/array.npy"]
    assert (model["format"], array["format"], files["empty"]["format"]) == ("safetensors", "npy", None)
    tensors = {tensor["name"]: tensor for tensor in model["tensors"]}
    assert {name: (each["dtype"], each["shape"], each["bytes"]) for name, each in tensors.items()} == {
        "big": ("F32", [400, 300], 480_000), "none": ("F32", [0, 4], 0), "same": ("F32", [300, 300], 360_000),
        "small": ("F16", [50, 30], 3000)}
    assert sum(tensors["big"]["codecs"].values()) == 8
    assert sum(tensors["same"]["codecs"].values()) == 2, "five equal chunks and a shorter one"
    assert (tensors["none"]["codecs"], tensors["none"]["stored_bytes"]) == ({}, 0)
    assert tensors["big"]["stored_bytes"] + tensors["same"]["stored_bytes"] < model["stored_bytes"]
    assert found["stored_bytes"] == sum(file["stored_bytes"] for file in files.values())
    assert found["chunks"] == sum(file["chunks"] for file in files.values())
    packs = sum(path.stat().st_size for path in (repo / "packs").rglob("*") if path.is_file())
    assert 0.9 * packs < found["stored_bytes"] + files["config.json"]["stored_bytes"] < packs


def test_a_chunk_that_two_files_share_counts_once_in_the_version(modelfs: Run, tmp_path: Path) -> None:
    for name in ("one", "two"):
        (tmp_path / "twins").mkdir(exist_ok=True)
        (tmp_path / "twins" / name).write_bytes(RNG.bytes(10) * 2000)
    (tmp_path / "twins/two").write_bytes((tmp_path / "twins/one").read_bytes())
    modelfs("init", "repo")
    modelfs("push", "twins", "repo", "acme/twins")
    found = document(modelfs("inspect", "repo", "acme/twins", "--json"))
    assert [file["chunks"] for file in found["files"]] == [1, 1]
    assert (found["chunks"], found["stored_bytes"]) == (1, found["files"][0]["stored_bytes"])


def test_inspect_shows_one_file_or_a_directorys(modelfs: Run, repo: Path) -> None:
    whole = document(modelfs("inspect", repo, "acme/base", "--json"))
    for path, files in [("config.json", ["config.json"]), ("sub", ["sub/array.npy"]), ("sub/", ["sub/array.npy"])]:
        found = document(modelfs("inspect", repo, "acme/base", path, "--json"))
        assert [file["path"] for file in found["files"]] == files
        assert {**found, "files": None} == {**whole, "files": None}


def test_inspect_needs_neither_packs_nor_layouts_for_what_it_still_knows(modelfs: Run, repo: Path) -> None:
    whole = document(modelfs("inspect", repo, "acme/base", "--json"))
    for path in (repo / "layouts").rglob("*"):
        if path.is_file():
            path.unlink()
    assert document(modelfs("inspect", repo, "acme/base", "--json")) == whole, "the indexes say where chunks lie"
    for path in (repo / "packs").rglob("*"):
        if path.is_file():
            path.unlink()
    found = document(modelfs("inspect", repo, "acme/base", "--json"))
    assert found["stored_bytes"] == whole["stored_bytes"]
    assert [file["tensors"] for file in found["files"]] == [[]] * 4


def test_tables_are_plain_and_tell_what_the_documents_tell(modelfs: Run, repo: Path) -> None:
    tables = [modelfs(*arguments) for arguments in (
        ("ls", repo), ("ls", repo, "acme/base"), ("log", repo, "acme/base"), ("inspect", repo, "acme/base"),
        ("inspect", repo, "acme/base", "model.safetensors"))]
    for table, words in zip(tables, (["acme/base", "latest=v2, prod=v1"],
                                     ["acme/base v2, 4 files", "sub/array.npy", "468.9 KiB"],
                                     ["v2", "first\\nof all", "prod"], ["model.safetensors", "commit"],
                                     ["400×300", "F16", "big"]), strict=True):
        assert (table.code, table.err) == (0, "")
        assert "\x1b" not in table.out
        for word in words:
            assert word in table.out


@pytest.mark.parametrize(("arguments", "code"), [
    (("ls", "nowhere"), 3), (("ls", "src"), 3), (("ls", "repo", "acme/none"), 3), (("ls", "repo", "acme/base:none"), 3),
    (("ls", "repo", "acme/base:v9"), 3), (("log", "repo", "acme/none"), 3), (("inspect", "repo", "acme/base", "no"), 3),
    (("inspect", "repo", "acme/base", "sub/none"), 3), (("inspect", "repo", "acme/base", b"\xff"), 3),
    (("ls", "repo", "noslash"), 2), (("ls",), 2), (("log", "repo"), 2), (("ls", "ftp://bucket"), 2)])
def test_what_is_not_there_or_badly_written_is_one_line_and_its_exit_code(
        modelfs: Run, repo: Path, arguments: tuple[object, ...], code: int) -> None:
    result = modelfs(*[each.decode(errors="surrogateescape") if isinstance(each, bytes) else each
                       for each in arguments])
    assert (result.code, result.out, len(result.err.splitlines())) == (code, "", 1)


@pytest.mark.parametrize("command", ["init", "ls", "log", "inspect", "verify"])
def test_help_ends_with_two_examples(modelfs: Run, command: str) -> None:
    lines = modelfs(command, "--help").out.rstrip().splitlines()
    assert lines[-3].strip() == "Examples:"
    assert all(line.strip().startswith(f"modelfs {command} ") for line in lines[-2:])

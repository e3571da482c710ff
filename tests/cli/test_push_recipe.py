"""`push --recipe`: a variant beside the original, smaller in the repository, and found like any other version."""

from __future__ import annotations

import fcntl
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from modelfiles import weights
from results import Result
from safetensors.numpy import load_file, save_file

Run = Callable[..., Result]
ROOT = Path(__file__).parents[2]


@pytest.fixture
def model(tmp_path: Path, modelfs: Run) -> Path:
    """In a repository as acme/base:v1, `latest`."""
    (tmp_path / "model").mkdir()
    save_file({"a.weight": weights(512, 1024), "norm": weights(9)}, tmp_path / "model/x.safetensors")
    (tmp_path / "model/config.json").write_text("{}")
    for words in (("init", "repository"), ("push", "model", "repository", "acme/base")):
        assert modelfs(*words).code == 0
    return tmp_path / "model"


def pushed(modelfs: Run, *words: object) -> dict[str, object]:
    done = modelfs("push", "model", "repository", *words, "--json")
    assert done.code == 0, done.err
    found = json.loads(done.out)
    assert isinstance(found, dict)
    return found


def test_a_variant_is_a_tag_with_its_recipe_and_its_parent(model: Path, tmp_path: Path, modelfs: Run) -> None:
    report = pushed(modelfs, "acme/base@int8", "--recipe", "int8", "--meta", "by=us")
    assert (report["version"], report["tag"], report["changed"]) == ("v2", "int8", True)
    log = json.loads(modelfs("log", "repository", "acme/base", "--json").out)["versions"]
    assert [(each["version"], each["parent"], each["tags"]) for each in log] == [
        ("v2", "v1", ["int8"]), ("v1", None, ["latest"])]
    assert log[0]["stored_bytes"] < 0.5 * log[1]["stored_bytes"]
    assert (log[0]["metadata"]["recipe"], log[0]["metadata"]["by"]) == ("int8", "us")
    assert json.loads(log[0]["metadata"]["recipe_document"])["name"] == "int8"
    ls = json.loads(modelfs("ls", "repository", "--json").out)["models"][0]
    assert ls["tags"] == {"latest": "v1", "int8": "v2"}
    assert modelfs("pull", "repository", "acme/base@int8", "out").code == 0
    made, before = load_file(tmp_path / "out/x.safetensors"), load_file(model / "x.safetensors")
    assert np.array_equal(made["norm"], before["norm"]) and (tmp_path / "out/config.json").read_text() == "{}"
    assert 0 < np.abs(made["a.weight"] - before["a.weight"]).max() < 0.02 * np.abs(before["a.weight"]).max()


def test_the_same_variant_again_is_no_version_and_nothing_of_the_copy_stays(model: Path, tmp_path: Path,
                                                                           modelfs: Run) -> None:
    pushed(modelfs, "acme/base@small", "--recipe", "kmeans16")
    assert pushed(modelfs, "acme/base@small", "--recipe", "kmeans16")["changed"] is False
    assert not list((tmp_path / "home/state").rglob("*.safetensors"))


def test_two_at_a_time_do_not_make_the_same_variant(model: Path, tmp_path: Path, modelfs: Run) -> None:
    pushed(modelfs, "acme/base@small", "--recipe", "kmeans16")
    lock, = (tmp_path / "home/state").rglob("variants/*/acme--base--small/lock")
    with lock.open("rb") as other:
        fcntl.flock(other, fcntl.LOCK_EX)
        done = modelfs("push", "model", "repository", "acme/base@small", "--recipe", "int8")
        assert done.code == 7 and "another push makes this variant, acme/base:small" in done.err, done.err
    assert pushed(modelfs, "acme/base@small", "--recipe", "int8")["version"] == "v3"


def test_a_new_variant_has_the_new_original_for_its_parent(model: Path, modelfs: Run) -> None:
    pushed(modelfs, "acme/base@int8", "--recipe", "int8")
    save_file({"a.weight": weights(512, 1024) * 2, "norm": weights(9)}, model / "x.safetensors")
    assert pushed(modelfs, "acme/base")["version"] == "v3"
    pushed(modelfs, "acme/base@int8", "--recipe", "int8")
    log = json.loads(modelfs("log", "repository", "acme/base", "--json").out)["versions"]
    assert (log[0]["version"], log[0]["parent"]) == ("v4", "v3")


def test_a_recipe_that_matches_nothing_and_one_that_is_none_are_exit_2(model: Path, modelfs: Run) -> None:
    (model / "x.safetensors").unlink()
    for recipe in ("int8", "int9"):
        done = modelfs("push", "model", "repository", "acme/base@x", "--recipe", recipe)
        assert done.code == 2 and done.err.count("\n") == 1, done.err
    both = modelfs("push", "model", "repository", "acme/base@x:y", "--recipe", "int8")
    assert both.code == 2 and "@x" in both.err


def test_a_push_that_was_killed_goes_on_and_leaves_nothing(model: Path, tmp_path: Path, environ: dict[str, str],
                                                         modelfs: Run) -> None:
    save_file({f"{n}.weight": weights(1024, 1024) for n in range(8)}, model / "y.safetensors")
    process = subprocess.Popen([sys.executable, "-m", "modelfs", "push", "model", "repository", "acme/base@k",
                                "--recipe", "kmeans16"], cwd=tmp_path, env={**environ, "PYTHONPATH": str(ROOT)},
                               stderr=subprocess.DEVNULL, start_new_session=True)
    try:
        end = time.monotonic() + 60
        while not list((tmp_path / "home/state").rglob("journal")) and process.poll() is None:
            assert time.monotonic() < end
            time.sleep(0.01)
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    assert pushed(modelfs, "acme/base@k", "--recipe", "kmeans16")["version"] == "v2"
    assert modelfs("verify", "repository", "--read-data").code == 0
    assert not list((tmp_path / "home/state").rglob("*.safetensors"))

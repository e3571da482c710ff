"""A run that was killed, or lost a worker, or met a full disk, goes on where it was; what changed begins anew."""

from __future__ import annotations

import fcntl
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from compressruns import Runs, children, ended, eventually, gone, kill, notes, slow_model
from modelfiles import weights
from safetensors.numpy import load_file, save_file

from modelfs.compression import read_native


@pytest.fixture
def runs(tmp_path: Path, environ: dict[str, str]) -> Iterator[Runs]:
    made = Runs(tmp_path, environ)
    yield made
    made.close()


def killed_in_the_middle(runs: Runs, *there: str) -> int:
    """How many tasks are known to be done. there: files that have their names by then."""
    process = runs.compress()
    eventually(lambda: len(notes(runs.root)) >= 3 and all((runs.root / "made" / name).exists() for name in there))
    workers = children(process.pid)
    process.kill()
    process.communicate()
    assert len(workers) == 2
    eventually(lambda: all(map(gone, workers)))
    return len(notes(runs.root))


def content(root: Path) -> dict[str, bytes]:
    return {str(path.relative_to(root)): path.read_bytes() for path in sorted(root.rglob("*")) if path.is_file()}


def test_a_killed_run_goes_on_and_comes_to_the_same(runs: Runs, tmp_path: Path) -> None:
    slow_model(tmp_path)
    known = killed_in_the_middle(runs)
    assert 3 <= known < 12 and not (tmp_path / "made/x.safetensors").exists()
    before = {note["task"] for note in notes(tmp_path)}
    code, document, err = ended(runs.compress())
    assert (code, err) == (0, "") and document["resumed_tensors"] == len(before)
    resumed = content(tmp_path / "made")
    assert sorted(resumed) == ["x.safetensors", "y.npy"], "nothing of the run stays"
    (tmp_path / "made").rename(tmp_path / "first")
    code, fresh, _ = ended(runs.compress())
    assert code == 0 and fresh["resumed_tensors"] == 0 and content(tmp_path / "made") == resumed
    assert fresh["tensors"] == document["tensors"] and fresh["totals"] == document["totals"]


def test_a_recipe_that_changed_begins_anew(runs: Runs, tmp_path: Path) -> None:
    slow_model(tmp_path)
    killed_in_the_middle(runs)
    code, document, err = ended(runs.compress(recipe="int8"))
    assert code == 0 and document["resumed_tensors"] == 0
    assert err == "begins anew: the recipe has changed since the run that did not end\n"
    assert len(document["tensors"]) == 13 and {each["method"] for each in document["tensors"]} == {"int8"}


def test_a_source_that_changed_begins_anew_and_leaves_nothing_of_what_went_away(runs: Runs, tmp_path: Path) -> None:
    source = slow_model(tmp_path)
    (source / "a.txt").write_text("first")
    killed_in_the_middle(runs, "a.txt")
    (source / "a.txt").unlink()
    code, document, err = ended(runs.compress())
    assert code == 0 and document["resumed_tensors"] == 0
    assert err == "begins anew: the source has changed since the run that did not end\n"
    assert sorted(content(tmp_path / "made")) == ["x.safetensors", "y.npy"]


def test_a_killed_worker_ends_the_run_and_the_next_goes_on(runs: Runs, tmp_path: Path) -> None:
    slow_model(tmp_path)
    process = runs.compress()
    eventually(lambda: len(notes(tmp_path)) >= 3)
    workers = children(process.pid)
    kill(workers[0])
    code, _, err = ended(process)
    assert code == 1 and err == ("modelfs: a worker process has gone: SIGKILL ended it, perhaps for want of memory. "
                                 "Run it again: it goes on from what is done.\n")
    eventually(lambda: all(map(gone, workers)))
    known = len(notes(tmp_path))
    code, document, _ = ended(runs.compress())
    assert code == 0 and document["resumed_tensors"] == known >= 3


def test_what_stands_at_the_destination_stays(runs: Runs, tmp_path: Path) -> None:
    slow_model(tmp_path)
    (tmp_path / "made").mkdir()
    code, _, err = ended(runs.compress())
    assert code == 7 and "something is there already" in err and list((tmp_path / "made").iterdir()) == []
    (tmp_path / "made").rmdir()
    (tmp_path / "made").write_text("mine")
    code, _, err = ended(runs.compress(source="model/y.npy", recipe="int8"))
    assert code == 7 and (tmp_path / "made").read_text() == "mine"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["home", "made", "model", "slow.toml"]


def test_a_second_run_beside_it_and_a_file_put_there_meanwhile_are_refused(runs: Runs, tmp_path: Path) -> None:
    slow_model(tmp_path)
    killed_in_the_middle(runs)
    with (tmp_path / "made/.modelfs-compress/journal").open("rb") as journal:
        fcntl.flock(journal, fcntl.LOCK_EX)
        code, _, err = ended(runs.compress())
    assert code == 7 and "another run of compress is at it" in err
    (tmp_path / "made/x.safetensors").write_text("mine")
    code, _, err = ended(runs.compress())
    assert code == 7 and "no run of compress made it" in err
    assert (tmp_path / "made/x.safetensors").read_text() == "mine"


def test_a_single_file_resumes_too_and_leaves_nothing_beside_it(runs: Runs, tmp_path: Path) -> None:
    slow_model(tmp_path)
    process = runs.compress(source="model/x.safetensors")
    journal = tmp_path / ".made.modelfs-compress/journal"
    eventually(lambda: journal.exists() and journal.read_text().count('"task"') >= 3)
    process.kill()
    process.communicate()
    assert not (tmp_path / "made").exists()
    code, document, _ = ended(runs.compress(source="model/x.safetensors"))
    assert code == 0 and document["resumed_tensors"] >= 3 and (tmp_path / "made").is_file() and not journal.exists()


def test_a_killed_run_with_one_threshold_for_all_keeps_it_and_comes_to_the_same(runs: Runs, tmp_path: Path) -> None:
    slow_model(tmp_path, 7)
    (tmp_path / "slow.toml").write_text('[[rule]]\nprune = {sparsity = 0.3, scope = "global"}\n'
                                        'cluster = {bits = 8, group = 256}\n')
    killed_in_the_middle(runs)
    code, document, err = ended(runs.compress())
    assert (code, err) == (0, "") and document["resumed_tensors"] >= 3
    assert document["recipe"]["rule"][0]["prune"]["threshold"] > 0
    (tmp_path / "made").rename(tmp_path / "first")
    code, fresh, _ = ended(runs.compress())
    assert code == 0 and fresh["recipe"] == document["recipe"] and fresh["totals"] == document["totals"]
    assert content(tmp_path / "made") == content(tmp_path / "first")


def test_native_dtypes_resume_too(runs: Runs, tmp_path: Path) -> None:
    source = slow_model(tmp_path)
    (source / "y.npy").unlink()
    process = runs.compress("--native-dtype")
    eventually(lambda: len(notes(tmp_path)) >= 3)
    process.kill()
    process.communicate()
    code, document, _ = ended(runs.compress("--native-dtype"))
    assert code == 0 and document["resumed_tensors"] >= 3
    assert sorted(content(tmp_path / "made")) == ["x.safetensors"]
    plain, back = load_file(source / "x.safetensors"), read_native(tmp_path / "made/x.safetensors")
    assert back.keys() == plain.keys() and all(len(np.unique(each[0])) == 256 for each in back.values())
    (tmp_path / "made").rename(tmp_path / "first")
    assert ended(runs.compress("--native-dtype"))[0] == 0 and content(tmp_path / "made") == content(tmp_path / "first")


def test_a_source_that_changes_while_it_is_read_is_refused(runs: Runs, tmp_path: Path) -> None:
    source = slow_model(tmp_path)
    process = runs.compress()
    eventually(lambda: len(notes(tmp_path)) >= 3)
    os.utime(source / "x.safetensors", ns=(1, 1))
    code, _, err = ended(process)
    assert code == 7 and "changed while it was read" in err and not (tmp_path / "made/x.safetensors").exists()


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """4 MiB."""
    disk = tmp_path / "disk"
    disk.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=4m", "none", disk], check=True)
    try:
        yield disk
    finally:
        subprocess.run(["umount", "--lazy", disk], check=True)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root may mount a tmpfs")
def test_a_full_disk_is_exit_8_and_with_room_the_run_goes_on(runs: Runs, tmp_path: Path, small_disk: Path) -> None:
    (tmp_path / "model").mkdir()
    for name, size in (("a", 512), ("b", 1024)):
        save_file({f"{name}{part}": weights(size, 256, seed=part) for part in range(4)},
                  tmp_path / f"model/{name}.safetensors")
    code, _, err = ended(runs.compress(to="disk/made", recipe="int8"))
    assert code == 8 and "no room to compress to" in err and "Make room and run it again: it goes on." in err
    subprocess.run(["mount", "-o", "remount,size=32m", small_disk], check=True)
    code, document, _ = ended(runs.compress(to="disk/made", recipe="int8"))
    assert code == 0 and document["resumed_tensors"] >= 3
    assert sorted(content(small_disk / "made")) == ["a.safetensors", "b.safetensors"]

"""Transfers over a link on which one object takes longer than the deadline: the deadline bounds silence, and only that.

Rule: the proxy sets how long an object takes at least, so that no test depends on what the machine can do.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from faultproxy import FaultProxy
from results import Result
from transfer.pushed import make_repository, noise, push_files, reading, soon, write

from modelfs.repository.repository import Repository
from modelfs.stores.file_store import FileStore
from modelfs.units import KiB, MiB

DATA = noise(40, 4 * MiB)
DEADLINE = {"MODELFS_FETCH_DEADLINE": "1s"}
Run = Callable[..., Result]


@pytest.fixture
def root(tmp_path: Path) -> Path:
    make_repository(tmp_path / "repository", MiB)
    return tmp_path / "repository"


@pytest.fixture
def source(tmp_path: Path) -> Path:
    return write(tmp_path / "source", {"w.bin": DATA})


def opened(root: Path) -> Repository:
    return Repository.open(FileStore(root), soon())


def is_whole(root: Path) -> bool:
    with reading(root) as r:
        return r.read(r.file("w.bin")) == DATA


def test_a_push_whose_pack_takes_longer_than_the_deadline_succeeds(root: Path, source: Path, modelfs: Run) -> None:
    with FaultProxy(root, writable=True) as proxy:
        proxy.add("slow_upload", "packs/", methods=("PUT",), piece=64 * KiB, interval_s=0.05)  # 3.2 s
        done = modelfs("push", source, proxy.url, "lab/model", env=DEADLINE)
        assert done.code == 0, done.err
        assert proxy.requests("packs/") == 1
    assert is_whole(root)


def test_a_push_whose_link_stalls_is_exit_5(root: Path, source: Path, modelfs: Run) -> None:
    """The timeout is less than what a stalled connection is given without a deadline."""
    with FaultProxy(root, writable=True) as proxy:
        proxy.add("stall_upload", "packs/", methods=("PUT",), after=MiB)
        done = modelfs("push", source, proxy.url, "lab/model", env=DEADLINE, timeout=25)
    assert done.code == 5 and done.err.count("\n") == 1, done.err
    assert json.loads(modelfs("ls", root, "--json").out)["models"] == []


def test_an_upload_that_breaks_is_sent_again_and_one_that_always_breaks_is_exit_5(root: Path, source: Path,
                                                                                 modelfs: Run) -> None:
    with FaultProxy(root, writable=True) as proxy:
        proxy.add("break_upload", "packs/", methods=("PUT",), after=MiB)
        done = modelfs("push", source, proxy.url, "lab/model", env=DEADLINE)
        assert done.code == 5 and "tried" in done.err, done.err
        assert proxy.requests("packs/") >= 5
        proxy.clear()
        proxy.add("break_upload", "packs/", methods=("PUT",), after=MiB, times=2)
        assert modelfs("push", source, proxy.url, "lab/model", env=DEADLINE).code == 0
    assert is_whole(root)


def test_a_pull_whose_chunk_takes_longer_than_the_deadline_succeeds(root: Path, tmp_path: Path, modelfs: Run) -> None:
    push_files(opened(root), {"w.bin": DATA})
    with FaultProxy(root) as proxy:
        proxy.add("drip", "packs/", piece=16 * KiB, interval_s=0.05)  # 3.2 s for each chunk of 1 MiB
        done = modelfs("pull", proxy.url, "lab/model", tmp_path / "out", env=DEADLINE)
    assert done.code == 0, done.err
    assert (tmp_path / "out/w.bin").read_bytes() == DATA


@pytest.mark.parametrize("kind", ["stall", "reset"])
def test_a_pull_that_gets_no_chunk_to_its_end_is_exit_5_though_bytes_come(root: Path, tmp_path: Path, modelfs: Run,
                                                                        kind: str) -> None:
    """The deadline is longer than any pause between two tries: only that no chunk comes ends it."""
    push_files(opened(root), {"w.bin": DATA})
    with FaultProxy(root) as proxy:
        proxy.add(kind, "packs/", after=300 * KiB)
        done = modelfs("pull", proxy.url, "lab/model", tmp_path / "out", env={"MODELFS_FETCH_DEADLINE": "4s"})
        assert done.code == 5 and done.err.count("\n") == 1, done.err
        assert not (tmp_path / "out/w.bin").exists()
        proxy.clear()
        assert modelfs("pull", proxy.url, "lab/model", tmp_path / "out", env=DEADLINE).code == 0
    assert (tmp_path / "out/w.bin").read_bytes() == DATA


def test_a_pack_that_takes_longer_to_verify_than_the_deadline_is_verified(root: Path, modelfs: Run) -> None:
    push_files(opened(root), {"w.bin": DATA})
    with FaultProxy(root) as proxy:
        proxy.add("drip", "packs/", methods=("GET",), piece=64 * KiB, interval_s=0.04)  # 2.5 s for a pack
        done = modelfs("verify", proxy.url, "--read-data", "--json", env=DEADLINE)
    assert done.code == 0, done.err
    assert json.loads(done.out)["repositories"][0]["bytes_checked"] >= len(DATA)


def test_a_manifest_that_takes_longer_than_the_deadline_is_warmed(root: Path, modelfs: Run) -> None:
    push_files(opened(root), {f"{number:04}.json": b"%d" % number for number in range(1000)})
    with FaultProxy(root) as proxy:
        proxy.add("drip", "manifests/", piece=16 * KiB, interval_s=0.3)
        done = modelfs("cache", "warm", proxy.url, "lab/model", env=DEADLINE)
        assert proxy.bytes_sent("manifests/") > 5 * 16 * KiB
    assert done.code == 0, done.err


def test_a_catalog_that_drips_is_exit_5(root: Path, source: Path, modelfs: Run) -> None:
    """Small objects have the deadline as a whole: a byte now and then is no transfer."""
    push_files(opened(root), {"w.bin": b"1"})
    with FaultProxy(root, writable=True) as proxy:
        proxy.add("drip", "catalog", piece=1, interval_s=0.2)
        assert modelfs("push", source, proxy.url, "lab/model", env=DEADLINE).code == 5

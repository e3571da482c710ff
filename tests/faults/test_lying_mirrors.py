"""A mirror that lies about everything it can: packs of the right length with other bytes, and a catalog of before that
seems new each time. Readers get right bytes and the newest version, and it is counted against it."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from faultproxy import FaultProxy
from mount.mounting import Mounter, until
from transfer.pushed import make_repository, noise, packs, push_files, write

from modelfs.repository.repository import Repository
from modelfs.stores.file_store import FileStore
from modelfs.units import Deadline, MiB

FIRST, SECOND = noise(95, 2 * MiB), noise(96, 2 * MiB)


@pytest.fixture
def honest(tmp_path: Path) -> Path:
    push_files(make_repository(tmp_path / "honest"), {"w.bin": FIRST})
    return tmp_path / "honest"


@pytest.fixture
def lying(tmp_path: Path, honest: Path) -> Path:
    copy = Path(shutil.copytree(honest, tmp_path / "lying"))
    for number, path in enumerate(packs(copy)):
        path.write_bytes(noise(number, path.stat().st_size))
    return copy


@pytest.fixture
def mirrors(lying: Path, honest: Path) -> Iterator[list[FaultProxy]]:
    """The liar is preferred."""
    with FaultProxy(lying) as liar, FaultProxy(honest) as other:
        yield [liar, other]


@pytest.fixture
def config(tmp_path: Path, mirrors: list[FaultProxy]) -> Path:
    path = tmp_path / "config.toml"
    path.write_text(f"[remotes.lab]\nurls = {json.dumps([each.url for each in mirrors])}\n")
    return path


def seem_new(lying: Path) -> None:
    """Another ETag for the same old catalog: it is one of its bytes."""
    path = lying / "catalog.json"
    path.with_name("catalog.new").write_bytes(path.read_bytes() + b" ")
    os.replace(path.with_name("catalog.new"), path)


def test_a_mount_reads_right_bytes_beside_a_liar_and_never_goes_back(
        mount: Mounter, tmp_path: Path, lying: Path, honest: Path, mirrors: list[FaultProxy], config: Path) -> None:
    mounted = mount("lab", "--config", config, "--poll", "200ms")
    assert (mounted / "lab/model/v1/w.bin").read_bytes() == FIRST
    found = mounted.status()
    assert found["counters"]["hash_failures"] > 0 and found["counters"]["errors"] == 0
    assert [store["errors"] > 0 for store in found["stores"]] == [True, False]
    repository = Repository.open(FileStore(honest), Deadline(20))
    push_files(repository, {"w.bin": SECOND})
    until(lambda: os.readlink(mounted / "lab/model/latest") == "v2")
    for _ in range(3):
        seem_new(lying)
        mirrors[0].forget()
        until(lambda: mirrors[0].bytes_sent("catalog.json") > 0)  # it was sent again, and not 304
    mirrors[0].forget()
    until(lambda: mirrors[0].requests("catalog.json") > 1)
    assert os.readlink(mounted / "lab/model/latest") == "v2"
    assert (mounted / "lab/model/latest/w.bin").read_bytes() == SECOND


def test_commands_take_the_newest_catalog_and_right_bytes(mount: Mounter, tmp_path: Path, honest: Path,
                                                          config: Path) -> None:
    write(tmp_path / "tree", {"w.bin": SECOND})
    assert mount.run("push", tmp_path / "tree", honest, "lab/model").returncode == 0
    done = mount.run("pull", "lab", "lab/model", tmp_path / "out", "--json", "--config", config)
    assert done.returncode == 0 and json.loads(done.stdout)["version"] == "v2", done.stderr
    assert (tmp_path / "out" / "w.bin").read_bytes() == SECOND


def test_a_liar_alone_is_an_error_and_no_wrong_byte(mount: Mounter, tmp_path: Path, mirrors: list[FaultProxy]) -> None:
    done = mount.run("pull", mirrors[0].url, "lab/model", tmp_path / "out")
    assert done.returncode == 4 and not (tmp_path / "out" / "w.bin").exists(), done.stderr

"""A push that is killed shows nothing, and run again repeats at most the pack that was open, whenever it was killed."""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from faults.killing import KILLED, killer
from maintenance.care import gc
from transfer.pushed import CHUNK, content, make_repository, noise, packs, push_tree, reading, soon, write

from modelfs.maintenance.verify import verify
from modelfs.repository.pack import TARGET_BYTES
from modelfs.repository.repository import Repository
from modelfs.stores.file_store import FileStore
from modelfs.units import MiB

SIZE = 90 * MiB
SMALL_PACKS = "from modelfs.repository import pack; pack.TARGET_BYTES = 1 << 20"


def start(source: Path, repository: Path, environ: dict[str, str]) -> subprocess.Popen[bytes]:
    return subprocess.Popen([sys.executable, "-m", "modelfs", "push", str(source), str(repository), "lab/model",
                             "--json"], env={**environ, "PYTHONPATH": str(Path(__file__).parents[2])},
                            stdout=subprocess.PIPE, stderr=subprocess.PIPE)


def wait_for_packs(process: subprocess.Popen[bytes], repository: Path, count: int) -> bool:
    """Until that many packs are there; False if the push ended before."""
    while len(packs(repository)) < count:
        try:
            process.wait(0.002)
            return False
        except subprocess.TimeoutExpired:
            pass
    return True


@pytest.mark.parametrize("seed", range(2))
def test_a_push_killed_again_and_again_repeats_at_most_the_open_pack(tmp_path: Path, environ: dict[str, str],
                                                                     seed: int) -> None:
    pick = random.Random(seed)
    repository = make_repository(tmp_path / "repository", MiB)
    data = noise(seed, SIZE)
    source = write(tmp_path / "source", {"w.bin": data, "config.json": b"{}"})
    for kill_after in sorted(pick.sample(range(1, SIZE // TARGET_BYTES), 2)):
        process = start(source, tmp_path / "repository", environ)
        wait_for_packs(process, tmp_path / "repository", kill_after)
        try:
            process.wait(pick.uniform(0, 0.05))
        except subprocess.TimeoutExpired:
            process.send_signal(signal.SIGKILL)
        process.communicate()
        models = repository.catalog(soon()).catalog.models
        assert models or process.returncode != 0
        if models:  # it had come to its end: all of it shows, and nothing is left to do
            break
    there = sum(path.stat().st_size for path in packs(tmp_path / "repository"))
    process = start(source, tmp_path / "repository", environ)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 0, err.decode()
    report = json.loads(out)
    assert report["version"] == "v1"
    if report["changed"]:
        assert report["uploaded_bytes"] <= SIZE + 2 * MiB - there
        assert report["uploaded_bytes"] >= SIZE - there
    with reading(tmp_path / "repository") as r:
        assert r.read(r.file("w.bin")) == data


def test_a_push_killed_while_it_begins_or_ends_leaves_a_whole_repository(tmp_path: Path,
                                                                         environ: dict[str, str]) -> None:
    """At any moment of a small push: mostly around the objects after the packs, and the swap."""
    repository = make_repository(tmp_path / "repository")
    pick = random.Random(5)
    for n in range(8):
        data = noise(n, 300_000)
        source = write(tmp_path / f"source{n}", {"w.bin": data})
        process = start(source, tmp_path / "repository", environ)
        before = len(packs(tmp_path / "repository"))
        wait_for_packs(process, tmp_path / "repository", before + 1)
        try:
            process.wait(pick.uniform(0, 0.03))
        except subprocess.TimeoutExpired:
            process.send_signal(signal.SIGKILL)
        process.communicate()
        with reading(tmp_path / "repository") as r:
            models = repository.catalog(soon()).catalog.models
            assert models or process.returncode != 0
            if models:
                latest = r.read(r.file("w.bin"))
                assert latest in [noise(m, 300_000) for m in range(n + 1)]
                assert process.returncode != 0 or latest == data


@pytest.mark.parametrize("first", [True, False])
def test_killed_at_any_write_a_push_shows_nothing_by_halves_and_only_the_open_pack_is_put_again(
        tmp_path: Path, environ: dict[str, str], first: bool) -> None:
    """In packs of 1 MiB; a first version, or one that has most of its chunks from the version before."""
    target, begun = tmp_path / "repository", tmp_path / "begun"
    old, new = {"w.bin": noise(1, 3 * MiB)}, {"w.bin": noise(1, 2 * MiB) + noise(2, 3 * MiB), "config.json": b"{}"}
    made = make_repository(begun)
    if not first:
        push_tree(write(tmp_path / "old", old), made)
    shown = content(made)
    command = ("push", write(tmp_path / "new", new), target, "lab/model", "--json")
    with killer(environ, tmp_path, SMALL_PACKS) as killed:
        restore(begun, target, environ)
        before = set(packs(target))
        writes = killed.writes(*command)
        wanted, size = content(opened(target)), stored(set(packs(target)) - before)
        assert len(set(packs(target)) - before) >= 3 and writes >= 8
        for last in range(1, writes + 2):
            restore(begun, target, environ)
            assert killed.run(*command, before_write=last) == KILLED
            assert content(opened(target)) == (wanted if last > writes else shown), f"killed before write {last}"
            there = set(packs(target)) - before
            assert killed.run(*command) == 0, killed.said.read_text()
            report = json.loads(killed.said.read_text().splitlines()[-1])
            assert report["changed"] is (last <= writes)
            assert content(opened(target)) == wanted, f"killed before write {last}"
            assert verify(opened(target), read_data=True).ok
            assert there <= set(packs(target))
            assert abs(stored(set(packs(target)) - before) - size) <= 4096 * writes, "no chunk is there twice"
            assert abs(report["uploaded_bytes"] + stored(there) - size) <= CHUNK
            whole = set(packs(target))
            gc(opened(target))
            assert set(packs(target)) == whole, "no pack was written that nothing needs"


def opened(root: Path) -> Repository:
    return Repository.open(FileStore(root), soon())


def stored(those: set[Path]) -> int:
    return sum(path.stat().st_size for path in those)


def restore(begun: Path, target: Path, environ: dict[str, str]) -> None:
    """As it was, on a host that knows of no push: nothing writes in place, so links are copies."""
    shutil.rmtree(target, ignore_errors=True)
    shutil.copytree(begun, target, copy_function=os.link)
    shutil.rmtree(environ["XDG_STATE_HOME"])
    Path(environ["XDG_STATE_HOME"]).mkdir(mode=0o700)

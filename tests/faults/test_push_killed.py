"""A push that is killed shows nothing, and run again repeats at most the pack that was open, whenever it was killed."""

from __future__ import annotations

import json
import random
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from transfer.pushed import make_repository, noise, packs, reading, soon, write

from modelfs.repository.pack import TARGET_BYTES
from modelfs.units import MiB

SIZE = 90 * MiB


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

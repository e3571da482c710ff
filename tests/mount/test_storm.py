"""Churn: a cache that holds two files of ten, random reads by several processes, eviction all the time, a worker killed
now and then. `make test-storm` makes it an hour's; here it is short.
"""

from __future__ import annotations

import os
import random
import time
from contextlib import ExitStack
from pathlib import Path

import pytest
from mount.mounting import BOTH_ENGINES, Mounter, until
from mount.readers import storm
from repository.builder import Builder

from modelfs.units import MiB

READS = int(os.environ.get("STORM_READS", "3000"))
_PROCESSES, _THREADS = 3, 6
_BETWEEN_DEATHS_S = 20  # the keeper gives up after five in 60 s


@pytest.fixture
def files(tmp_path: Path) -> Path:
    """Ten files of 1 to 3 MiB."""
    root = tmp_path / "files"
    root.mkdir()
    rng = random.Random(23)
    for number in range(10):
        (root / f"{number}.bin").write_bytes(rng.randbytes(rng.randrange(1 * MiB, 3 * MiB)))
    return root


@BOTH_ENGINES
def test_a_cache_of_two_files_of_ten_never_gives_a_wrong_byte(mount: Mounter, files: Path, tmp_path: Path,
                                                             engine: str) -> None:
    Builder(tmp_path / "repo").push("acme/base", {path.name: path.read_bytes() for path in files.iterdir()})
    mount.environ["MODELFS_FETCH_MEMORY"] = "16 MiB"
    mounted = mount.daemon(tmp_path / "repo", "--model", "acme/base", "--cache-size", "5 MiB")
    evictions, killed_s = 0, -float(_BETWEEN_DEATHS_S)
    with ExitStack() as undo:
        readers = [undo.enter_context(storm(mounted.place, files, threads=_THREADS, seed=seed))
                   for seed in range(_PROCESSES)]

        def done() -> int:
            found = [reader.done() for reader in readers]
            assert not any(wrong for _, _, wrong in found), [reader.finish() for reader in readers]
            return sum(total for total, _, _ in found)

        while (so_far := done()) < READS:
            counters = mounted.status()["counters"]
            assert counters["hash_failures"] == counters["errors"] == 0
            evictions = max(evictions, counters["evictions"])
            if engine == "native" and evictions and time.monotonic() > killed_s + _BETWEEN_DEATHS_S:
                mounted.upgraded(mounted.kill_worker())
                killed_s = time.monotonic()
            until(lambda n=so_far: done() >= min(n + 500, READS), 120)
        assert [reader.finish() for reader in readers] == ["[]"] * _PROCESSES
    assert evictions > 0
    mounted.umount()

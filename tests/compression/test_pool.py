"""Workers of this machine: none outlives who started it, and what a task raises arrives."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from compressruns import ROOT, eventually, gone

from modelfs.compression.plan import Range
from modelfs.compression.pool import LocalPool
from modelfs.compression.tasks import Copy
from modelfs.errors import Conflict, NotFound

IDLE = """
import sys
from modelfs.compression.plan import Range
from modelfs.compression.pool import LocalPool
from modelfs.compression.tasks import Copy
pool = LocalPool(2)
pool.submit(Copy(sys.argv[1], sys.argv[2], Range(0, 3))).result()
print(*pool.pids, flush=True)
sys.stdin.read()
"""


def test_a_worker_that_waits_ends_when_its_parent_is_killed(tmp_path: Path) -> None:
    for name in "ab":
        (tmp_path / name).write_bytes(b"abc")
    parent = subprocess.Popen([sys.executable, "-c", IDLE, str(tmp_path / "a"), str(tmp_path / "b")], cwd=ROOT,
                              stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    try:
        assert parent.stdout is not None
        pids = [int(each) for each in parent.stdout.readline().split()]
        assert len(pids) == 1 and not gone(pids[0])
    finally:
        parent.kill()
        parent.communicate()
    eventually(lambda: gone(pids[0]))


def test_what_a_task_raises_arrives_and_the_worker_goes_on(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"abc")
    (tmp_path / "b").write_bytes(b"...")
    pool = LocalPool(1)
    try:
        def copy(source: str, length: int) -> None:
            pool.submit(Copy(str(tmp_path / source), str(tmp_path / "b"), Range(0, length))).result()

        with pytest.raises(NotFound, match="No such file") as caught:
            copy("none", 3)
        assert caught.value.exit_code == 3 and "in a worker" in caught.value.__notes__[0]
        with pytest.raises(Conflict, match="it is shorter than it was"):
            copy("a", 4)
        copy("a", 3)
        assert (tmp_path / "b").read_bytes() == b"abc" and len(pool.pids) == 1
    finally:
        pool.close()
    assert all(map(gone, pool.pids))

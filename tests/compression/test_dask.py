"""--executor dask://…: real schedulers and workers of Dask, some of which die."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from compressruns import Runs, ended, eventually, notes, slow_model


class Cluster:
    """A scheduler, and workers of one thread without anybody who starts them again."""

    def __init__(self, runs: Runs) -> None:
        self._runs, self._file = runs, runs.root / "scheduler.json"
        self.scheduler = runs.start(sys.executable, "-m", "dask", "scheduler", "--host", "127.0.0.1", "--port", "0",
                                    "--no-dashboard", "--scheduler-file", str(self._file))
        eventually(lambda: self._file.exists() and self._file.read_text().endswith("}"))
        self.url = str(json.loads(self._file.read_text())["address"]).replace("tcp://", "dask://")

    def worker(self, **environ: str) -> subprocess.Popen[bytes]:
        before = self._runs.environ
        self._runs.environ = before | environ
        try:
            return self._runs.start(sys.executable, "-m", "dask", "worker", "--scheduler-file", str(self._file),
                                    "--host", "127.0.0.1", "--no-nanny", "--nthreads", "1", "--no-dashboard",
                                    "--local-directory", str(self._runs.root / "dask"))
        finally:
            self._runs.environ = before


@pytest.fixture
def runs(tmp_path: Path, environ: dict[str, str]) -> Iterator[Runs]:
    made = Runs(tmp_path, environ)
    yield made
    made.close()


def test_a_worker_that_is_killed_costs_nothing_but_its_task(runs: Runs, tmp_path: Path) -> None:
    slow_model(tmp_path)
    (tmp_path / "slow.toml").write_text('[[rule]]\nprune = {sparsity = 0.3, scope = "global"}\n'  # a survey first
                                        'cluster = {bits = 8, group = 256}\n')
    cluster = Cluster(runs)
    first, _ = cluster.worker(), cluster.worker()
    process = runs.compress("--executor", cluster.url)
    eventually(lambda: len(notes(tmp_path)) >= 3)
    first.kill()
    assert len(notes(tmp_path)) < 12, "it was in the middle"
    code, document, err = ended(process)
    assert (code, err) == (0, "") and document["totals"]["changed"] == 13
    assert document["recipe"]["rule"][0]["prune"]["threshold"] > 0
    (tmp_path / "made").rename(tmp_path / "there")
    assert ended(runs.compress())[0] == 0
    for name in ("x.safetensors", "y.npy"):
        assert (tmp_path / "there" / name).read_bytes() == (tmp_path / "made" / name).read_bytes()


def test_without_any_worker_left_the_run_ends_and_keeps_what_is_done(runs: Runs, tmp_path: Path) -> None:
    slow_model(tmp_path)
    runs.environ["MODELFS_FETCH_DEADLINE"] = "2s"
    cluster = Cluster(runs)
    worker = cluster.worker()
    process = runs.compress("--executor", cluster.url)
    eventually(lambda: len(notes(tmp_path)) >= 3)
    worker.kill()
    code, _, err = ended(process)
    assert code == 5 and "a Dask cluster without workers" in err and len(notes(tmp_path)) >= 3


def test_a_scheduler_that_dies_is_exit_5(runs: Runs, tmp_path: Path) -> None:
    slow_model(tmp_path)
    runs.environ["MODELFS_FETCH_DEADLINE"] = "2s"
    cluster = Cluster(runs)
    cluster.worker()
    process = runs.compress("--executor", cluster.url)
    eventually(lambda: len(notes(tmp_path)) >= 3)
    cluster.scheduler.kill()
    code, _, err = ended(process)
    assert code == 5 and "Dask" in err, err
    code, _, err = ended(runs.compress("--executor", cluster.url))
    assert code == 5 and f"a Dask scheduler does not answer, {cluster.url}" in err


def test_a_worker_without_modelfs_is_refused(runs: Runs, tmp_path: Path) -> None:
    slow_model(tmp_path)
    cluster = Cluster(runs)
    (tmp_path / "broken/modelfs").mkdir(parents=True)
    (tmp_path / "broken/modelfs/__init__.py").write_text("raise ImportError('not this one')")
    cluster.worker(PYTHONPATH=str(tmp_path / "broken"))
    code, _, err = ended(runs.compress("--executor", cluster.url))
    assert code == 2 and "a Dask worker cannot do it" in err and "Install this modelfs where the workers run." in err

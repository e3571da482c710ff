"""Real runs of `modelfs compress`, slow enough to be killed in the middle, and what is seen of them from outside."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from modelfiles import weights
from safetensors.numpy import save_file

ROOT = Path(__file__).parents[1]
SLOW = '[[rule]]\ncluster = {bits = 8, group = 256}\n'


def eventually(what: Callable[[], bool], seconds: float = 60.0) -> None:
    end = time.monotonic() + seconds
    while not what():
        assert time.monotonic() < end, "it did not come"
        time.sleep(0.01)


def slow_model(root: Path, tensors: int = 12) -> Path:
    """With SLOW beside it each tensor takes about a sixth of a second."""
    (root / "model").mkdir()
    save_file({f"w{number:02}": weights(256, 256, seed=number) for number in range(tensors)},
              root / "model/x.safetensors")
    np.save(root / "model/y.npy", weights(64, 100))
    (root / "slow.toml").write_text(SLOW)
    return root / "model"


class Runs:
    """Commands of a test; close ends those that are still there, with their workers."""

    def __init__(self, root: Path, environ: Mapping[str, str]) -> None:
        self.root = root
        self.environ = {**environ, "PYTHONPATH": str(ROOT)}
        self._started: list[subprocess.Popen[bytes]] = []

    def start(self, *arguments: str) -> subprocess.Popen[bytes]:
        process = subprocess.Popen(arguments, cwd=self.root, env=self.environ, stdin=subprocess.DEVNULL,
                                   stdout=subprocess.PIPE, stderr=subprocess.PIPE, start_new_session=True)
        self._started.append(process)
        return process

    def compress(self, *more: str, source: str = "model", to: str = "made",
                 recipe: str = "slow.toml") -> subprocess.Popen[bytes]:
        """In two processes, unless more says where else."""
        jobs = () if "--executor" in more else ("--jobs", "2")
        return self.start(sys.executable, "-m", "modelfs", "compress", source, to, "--recipe", recipe, "--json", *jobs,
                          *more)

    def close(self) -> None:
        for process in self._started:
            process.kill()  # its workers see that it has gone, and end
            process.communicate()


def ended(process: subprocess.Popen[bytes], seconds: float = 120) -> tuple[int, dict[str, Any], str]:
    """Exit code, the JSON document, standard error."""
    out, err = process.communicate(timeout=seconds)
    return process.returncode, json.loads(out) if out else {}, err.decode()


def notes(root: Path) -> list[dict[str, Any]]:
    """Tasks that the journal says are done."""
    try:
        lines = (root / "made/.modelfs-compress/journal").read_text().splitlines()[1:]
    except OSError:
        return []
    return [note for line in lines if line.endswith("}") for note in [json.loads(line)] if "task" in note]


def children(pid: int) -> list[int]:
    found = []
    for path in Path(f"/proc/{pid}/task").glob("*/children"):
        try:
            found += [int(each) for each in path.read_text().split()]
        except OSError:
            continue  # a thread that has just ended
    return found


def kill(pid: int) -> None:
    os.kill(pid, signal.SIGKILL)


def gone(pid: int) -> bool:
    """Or only waits for its parent."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except OSError:
        return True

"""Who pushes fine-tunes and moves tags while the fleet is in trouble.

Rule: a push that failed is tried again until it is done, as a job of a publisher would be; the original of a version is
where readers look for it before anybody can see the version.
"""

from __future__ import annotations

import json
import os
import random
import shutil
import struct
import subprocess
import threading
from pathlib import Path

import numpy as np

from benchmarks.fleet.fleet import MODEL, PRIMARY, Fleet
from benchmarks.fleet.journal import Journal
from benchmarks.processes import end

MiB = 1 << 20
SHARDS, SHARD_BYTES = 4, 6 * MiB
_RETRY_S = 1.0
_UNREACHABLE, _CHANGED = 5, 7


def first_version(directory: Path) -> None:
    """Four shards of 6 MiB, and small files."""
    directory.mkdir()
    for number in range(SHARDS):
        _write_shard(directory / f"model-{number + 1:05}-of-{SHARDS:05}.safetensors", number)
    rng = random.Random(5)
    (directory / "tokenizer.json").write_bytes(rng.randbytes(200_000))
    (directory / "config.json").write_text(json.dumps({"model_type": "llama", "num_hidden_layers": SHARDS}))


def fine_tuned(before: Path, directory: Path, number: int) -> None:
    """A version that differs in one shard and a small file; the rest are the same files."""
    shutil.copytree(before, directory, copy_function=os.link)
    shard = sorted(directory.glob("*.safetensors"))[number % SHARDS]
    for path in (shard, directory / "config.json"):
        path.unlink()
    _write_shard(shard, SHARDS + number)
    (directory / "config.json").write_text(json.dumps({"model_type": "llama", "step": number}))


def _write_shard(path: Path, seed: int) -> None:
    values = np.random.default_rng(seed).standard_normal(SHARD_BYTES // 2, dtype=np.float32) * np.float32(0.02)
    header = json.dumps({"weight": {"dtype": "BF16", "shape": [values.size], "data_offsets": [0, 2 * values.size]}})
    text = header.encode() + b" " * (-len(header) % 8)
    path.write_bytes(struct.pack("<Q", len(text)) + text + (values.view(np.uint32) >> 16).astype(np.uint16).tobytes())


class Publisher:
    """Pushes every so many seconds, in a thread of its own, until `end`."""

    def __init__(self, fleet: Fleet, journal: Journal, seed: int, every_s: float) -> None:
        self._fleet, self._journal, self._every_s = fleet, journal, every_s
        self._rng = random.Random(seed)
        self._ended = threading.Event()
        self._process: subprocess.Popen[str] | None = None
        self.newest = 1
        self._thread = threading.Thread(target=self._work, name="publisher", daemon=True)
        self._thread.start()

    def end(self) -> None:
        self._ended.set()
        process = self._process
        if process is not None:
            end(process)
        self._thread.join(30)

    def _work(self) -> None:
        while not self._ended.wait(self._every_s * self._rng.uniform(0.7, 1.3)):
            self._push()
            if self._rng.random() < 0.5:
                self._tag(self._rng.randrange(1, self.newest + 1))

    def _push(self) -> None:
        number = self.newest + 1
        directory = self._fleet.originals / f"v{number}"
        making = self._fleet.scratch / "making"
        fine_tuned(self._fleet.originals / f"v{self.newest}", making, number)
        making.rename(directory)
        found = self._until_done("push", directory, PRIMARY, MODEL, "--jobs", "1", "--json")
        if found is None:
            return
        version = json.loads(found)["version"]
        if version != f"v{number}":
            self._journal.note("unexpected", what="push", said=f"the push of v{number} made {version}")
        self.newest = number

    def _tag(self, number: int) -> None:
        self._until_done("tag", PRIMARY, f"{MODEL}:v{number}", "prod")

    def _until_done(self, name: str, *arguments: str | Path) -> str | None:
        """What it printed; None at the end of all. Other failures than of the network are a fault of modelfs."""
        command = self._fleet.command(self._fleet.publisher, name, *arguments)
        while not self._ended.is_set():
            self._process = subprocess.Popen(command, env=self._fleet.environ, stdin=subprocess.DEVNULL,
                                             stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
                                             start_new_session=True)
            out, err = self._process.communicate()
            code, self._process = self._process.returncode, None
            if self._ended.is_set():
                return None
            known = code in (0, _UNREACHABLE, _CHANGED)
            self._journal.note("published" if known else "unexpected", what=f"{name} {arguments[-1]}", code=code,
                               said="" if code == 0 else err.strip()[-400:])
            if code == 0:
                return out
            self._ended.wait(_RETRY_S)
        return None

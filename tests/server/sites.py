"""Sites' caches for tests: the command in a process of its own, in front of whatever a test has for an upstream."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import requests
from transfer.pushed import make_repository, noise, push_tree, write

from modelfs.ids import ObjectId
from modelfs.repository import keys
from modelfs.units import MiB

ROOT = Path(__file__).parents[2]
PACKS = 6


@dataclass(frozen=True, slots=True)
class Pack:
    key: str
    data: bytes


def new_pack(root: Path, seed: int, size: int = MiB) -> Pack:
    """One more in a repository's directory: a server looks at the digest of a pack alone."""
    data = noise(seed, size)
    path = root / keys.pack(ObjectId.of(data))
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)
    return Pack(keys.pack(ObjectId.of(data)), data)


def environ_in(home: Path) -> dict[str, str]:
    """As the fixture `environ`, for what several tests share. A silent upstream is given up after 2 s."""
    kept = {name: value for name, value in os.environ.items()
            if not name.startswith(("MODELFS_", "XDG_", "PYTHON")) and not name.lower().endswith("_proxy")}
    return {**kept, "HOME": str(home), "MODELFS_FETCH_DEADLINE": "2s", "MODELFS_CACHE_MIN_FREE": "0"}


@dataclass(slots=True)
class Site:
    """log: what it said so far, and what it logged."""

    process: subprocess.Popen[bytes]
    url: str
    log: Path

    @property
    def said(self) -> str:
        return self.log.read_text()

    def get(self, key: str, method: str = "GET", **headers: str) -> requests.Response:
        return requests.request(method, f"{self.url}/{key}", timeout=30,
                                headers={name.replace("_", "-"): value for name, value in headers.items()})

    def kill(self) -> None:
        self.process.kill()
        self.process.wait(30)

    def peak_bytes(self) -> int:
        """The most memory that it ever had."""
        found = re.search(r"VmHWM:\s+(\d+) kB", Path(f"/proc/{self.process.pid}/status").read_text())
        assert found
        return int(found[1]) * 1024


@contextmanager
def site(directory: Path, upstream: object, environ: Mapping[str, str], *options: object,
         port: int = 0) -> Iterator[Site]:
    """Answers when it is handed out, and is ended afterwards, within the time that it has for that."""
    log = directory.with_name(f"{directory.name}.{time.monotonic_ns()}.log")
    with log.open("wb") as stream:
        process = subprocess.Popen([sys.executable, "-m", "modelfs", "serve", str(directory), "--upstream",
                                    str(upstream), "--port", str(port), *map(str, options)],
                                   env={**environ, "PYTHONPATH": str(ROOT)}, cwd=directory.parent,
                                   stdin=subprocess.DEVNULL, stdout=stream, stderr=stream)
    try:
        end = time.monotonic() + 60
        while not (found := re.search(r"^serving .* at (http://\S+), from", log.read_text(), re.M)):
            assert process.poll() is None and time.monotonic() < end, log.read_text()
            time.sleep(0.02)
        yield Site(process, found[1], log)
    finally:
        process.terminate()
        try:
            process.wait(15)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait(30)
            raise


def model_in_packs(root: Path, model: str = "acme/base") -> dict[str, bytes]:
    """A repository in root whose model has PACKS files of 1 MiB, each in a pack of its own; the files' bytes."""
    repository, files = make_repository(root), {}
    for number in range(PACKS):
        files[f"{number}.bin"] = noise(500 + number, MiB)
        push_tree(write(root.with_name(f"{root.name}-files"), files), repository, model)
    return files

"""Models made of random chunks, the disk's own view of a directory, and a second process for the tests of the cache."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from blake3 import blake3

import modelfs
from modelfs.cache.cache import Cache
from modelfs.cache.cache_file import CacheFile
from modelfs.ids import ChunkId
from modelfs.metrics import Metrics
from modelfs.settings import Verify
from modelfs.units import DiskShare, MiB

ROOT = Path(modelfs.__path__[0]).parent
NONE = DiskShare(size_bytes=0)


@dataclass(frozen=True)
class Model:
    """One model file: ids [n, 32], lengths [n], and its chunks."""

    ids: np.ndarray
    lengths: np.ndarray
    data: list[bytes]

    def in_cache(self, cache: Cache) -> CacheFile:
        return cache.file(self.ids, self.lengths)

    def chunk_id(self, row: int) -> ChunkId:
        return ChunkId(self.ids[row].tobytes())


def model_of(*chunks: bytes) -> Model:
    ids = np.array([np.frombuffer(blake3(c).digest(), np.uint8) for c in chunks])
    return Model(ids, np.array([len(c) for c in chunks], np.uint32), list(chunks))


def random_model(seed: int, *lengths: int) -> Model:
    rng = np.random.default_rng(seed)
    return model_of(*(rng.bytes(n) for n in lengths))


def open_cache(directory: Path, limit: int = 64 * MiB, metrics: Metrics | None = None, *, verify: Verify = "mount",
               scrub_s: float = 0.0) -> Cache:
    return Cache(directory, DiskShare(size_bytes=limit), NONE, metrics or Metrics(), verify=verify, scrub_s=scrub_s)


def fill_all(file: CacheFile, model: Model) -> int:
    """How many chunks are in the cache then."""
    return sum(1 for row, data in enumerate(model.data) if file.fill(row, memoryview(data)))


def good_rows(file: CacheFile, model: Model) -> set[int]:
    """The rows that load; fails if one that is called good by its hash is not what was filled."""
    good = set()
    for row, data in enumerate(model.data):
        buffer = bytearray(len(data))
        count = file.load(row, memoryview(buffer))
        if not count:
            continue
        if blake3(buffer).digest() == model.ids[row].tobytes():
            assert buffer == data
            file.mark_checked(row, count)
            good.add(row)
        else:
            file.discard(row, count)
    return good


def data_path(directory: Path, file: CacheFile) -> Path:
    return directory / "files" / file.name[:2] / file.name


def flip(path: Path, offset: int) -> None:
    """One bit of one byte, as a bad disk or a stray write would."""
    fd = os.open(path, os.O_RDWR)
    try:
        os.pwrite(fd, bytes([os.pread(fd, 1, offset)[0] ^ 1]), offset)
    finally:
        os.close(fd)


def disk_usage(directory: Path) -> int:
    """Bytes on disk of everything below, directories too."""
    total = 0
    for path, _, names in os.walk(directory):
        for name in [".", *names]:
            try:
                total += os.lstat(os.path.join(path, name)).st_blocks * 512
            except FileNotFoundError:
                continue
    return total


def disk_used(disk: Path) -> int:
    """Bytes used of a whole filesystem: unlike a walk, which counts what moves twice, one moment's truth."""
    status = os.statvfs(disk)
    return (status.f_blocks - status.f_bfree) * status.f_frsize


def eventually(what: Callable[[], bool], seconds: float = 20.0) -> bool:
    """Whether it becomes true before the time is up."""
    end = time.monotonic() + seconds
    while not what():
        if time.monotonic() > end:
            return False
        time.sleep(0.005)
    return True


def start_worker(*args: str | int | Path) -> subprocess.Popen[str]:
    """worker.py in a process of its own; who starts it ends it."""
    return subprocess.Popen([sys.executable, str(Path(__file__).parent / "worker.py"), *map(str, args)],
                            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
                            env={**os.environ, "PYTHONPATH": str(ROOT)})


def end_worker(worker: subprocess.Popen[str]) -> None:
    worker.kill()
    worker.communicate()

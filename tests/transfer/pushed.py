"""Repositories made by the real push, and what reads them, for the tests of reading, transfer and faults.

Rule: files are random bytes unless a test says otherwise, and chunks are 64 KiB, so that little data makes many.
"""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from modelfs.ids import ModelRef
from modelfs.metrics import Metrics
from modelfs.reading.fetcher import Fetcher
from modelfs.reading.reader import Reader
from modelfs.reading.versions import ChunkCache, ModelFile, NoChunkCache, Versions
from modelfs.repository.info import initialise
from modelfs.repository.repository import Repository
from modelfs.stores.file_store import FileStore
from modelfs.stores.opening import open_store
from modelfs.stores.retrying import MeteredStore, RetryingStore
from modelfs.transfer.push import PushOptions, PushReport, push
from modelfs.units import Deadline, KiB, MiB

CHUNK = 64 * KiB
MODEL = "lab/model"


def noise(seed: int, size: int) -> bytes:
    return random.Random(seed).randbytes(size)


def soon() -> Deadline:
    return Deadline(30)


def write(directory: Path, files: Mapping[str, bytes]) -> Path:
    for path, data in files.items():
        (directory / path).parent.mkdir(parents=True, exist_ok=True)
        (directory / path).write_bytes(data)
    return directory


def make_repository(root: Path, chunk_size: int = CHUNK) -> Repository:
    initialise(FileStore(root), chunk_size, time.time(), soon())
    return Repository.open(FileStore(root), soon())


def push_tree(source: Path, repository: Repository, model: str = MODEL, **options: object) -> PushReport:
    chosen = {"state": repository_root(repository).parent / "state", "renew": soon, "jobs": 2, **options}
    return push(source, repository, ModelRef.parse(model), PushOptions(**chosen))  # type: ignore[arg-type]


def push_files(repository: Repository, files: Mapping[str, bytes], model: str = MODEL) -> PushReport:
    """From a directory of its own, beside the repository."""
    parent = repository_root(repository).parent
    source = parent / f"source-{sum(path.name.startswith('source-') for path in parent.iterdir())}"
    source.mkdir()
    return push_tree(write(source, files), repository, model)


def repository_root(repository: Repository) -> Path:
    assert repository.store.url.startswith("file://")
    return Path(repository.store.url.removeprefix("file://"))


def packs(root: Path) -> list[Path]:
    return sorted(path for path in (root / "packs").rglob("*") if path.is_file() and not path.name.startswith("."))


def eventually(what: Callable[[], bool], seconds: float = 20.0) -> None:
    end = time.monotonic() + seconds
    while not what():
        assert time.monotonic() < end, "it did not come"
        time.sleep(0.005)


@dataclass
class Reading:
    """A store that is being read: what a mount has, without the mount."""

    repository: Repository
    versions: Versions
    fetcher: Fetcher
    reader: Reader
    metrics: Metrics

    def file(self, path: str, model: str = MODEL) -> ModelFile:
        found = self.repository.resolve(self.repository.catalog(soon()).catalog, ModelRef.parse(model), soon())
        version = self.versions.load(found.version.manifest)
        number = version.manifest.find(path)
        assert number is not None
        return version.file(number)

    def read(self, file: ModelFile, offset: int = 0, size: int | None = None) -> bytes:
        out = bytearray(file.entry.size - offset if size is None else size)
        done = self.reader.read_into(file, offset, memoryview(out))
        return bytes(out[:done])

    def count(self, name: str) -> int:
        return self.metrics.snapshot()[name]


@contextmanager
def reading(spec: str | Path, cache: ChunkCache | None = None, *, deadline_s: float = 30, connections: int = 4,
            memory_bytes: int = 64 * MiB, readahead_bytes: int = 0, patient: bool = False) -> Iterator[Reading]:
    """readahead_bytes: 0, so that requests are only those that the test makes."""
    metrics, kept = Metrics(), cache or NoChunkCache()
    store = RetryingStore(MeteredStore(open_store(str(spec)), metrics), metrics)
    repository = Repository.open(store, Deadline(deadline_s))
    fetcher = Fetcher(kept, metrics, connections=connections, memory_bytes=memory_bytes,
                      deadline_s=deadline_s, patient=patient)
    try:
        yield Reading(repository, Versions(repository, kept, lambda: Deadline(deadline_s)), fetcher,
                      Reader(fetcher, metrics, readahead_bytes), metrics)
    finally:
        fetcher.close()


@dataclass
class Background:
    """A call in a thread of its own; result: what it returned, or the exception that it raised."""

    thread: threading.Thread
    results: list[object]

    def result(self, seconds: float = 30) -> object:
        self.thread.join(seconds)
        assert not self.thread.is_alive(), "it hangs"
        return self.results[0]


def in_background(call: Callable[[], object]) -> Background:
    results: list[object] = []

    def run() -> None:
        try:
            results.append(call())
        except Exception as error:
            results.append(error)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    return Background(thread, results)


Content = dict[str, dict[str, dict[str, bytes]]]
"""Model → version → path → bytes."""


def content(repository: Repository) -> Content:
    """All of it, each chunk read and checked."""
    found = Content()
    catalog = repository.catalog(soon()).catalog
    for model in catalog.models:
        rows = repository.history(catalog, model, soon())
        for version in repository.versions(rows, soon()):
            manifest = repository.manifest(version.manifest, soon())
            layout = repository.layout(manifest, soon())
            found.setdefault(str(model), {})[version.name] = {
                file.path: b"".join(repository.read_chunk(manifest, layout, row, soon())
                                    for row in range(file.first_row, file.first_row + file.row_count))
                for file in manifest.files()}
    return found

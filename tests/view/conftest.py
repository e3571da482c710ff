"""A real repository with a view of it, nothing of which is mounted."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from repository.builder import Builder, deadline

from modelfs.metrics import Metrics
from modelfs.reading.fetcher import Fetcher
from modelfs.reading.reader import Reader
from modelfs.reading.versions import NoChunkCache, Versions
from modelfs.repository.repository import Repository
from modelfs.view.shelves import Library
from modelfs.view.view import Everything, Shown, View

SHOW = Callable[..., View]


@pytest.fixture
def built(tmp_path: Path) -> Builder:
    return Builder(tmp_path / "repository")


@pytest.fixture
def show(built: Builder) -> Iterator[SHOW]:
    """A view of the repository as it is at the call; repository: with another store, where that is wanted."""
    fetchers: list[Fetcher] = []

    def make(shown: Shown | None = None, repository: Repository | None = None) -> View:
        repository = repository or built.repository
        metrics, cache = Metrics(), NoChunkCache()
        fetcher = Fetcher(cache, metrics, connections=2, memory_bytes=16 << 20, deadline_s=20)
        fetchers.append(fetcher)
        library = Library(repository, repository.catalog(deadline()).catalog, deadline)
        return View(library, Versions(repository, cache, deadline), Reader(fetcher, metrics, 0), metrics,
                    shown or Everything())

    yield make
    for fetcher in fetchers:
        fetcher.close()

"""The one place where parts are put together: configuration → store → repository → view.

Rule: nothing below builds what it uses; it is handed down from here.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from modelfs.config import Config
from modelfs.metrics import Metrics
from modelfs.reading.fetcher import Fetcher
from modelfs.reading.versions import NoChunkCache, Versions
from modelfs.repository.repository import ObjectCache, Repository
from modelfs.stores.opening import open_store
from modelfs.stores.retrying import MeteredStore, RetryingStore
from modelfs.stores.store import ObjectStore
from modelfs.units import Deadline


def store_at(config: Config, spec: str, metrics: Metrics | None = None) -> ObjectStore:
    """The store that a REPO argument names: a path, a URL, or a remote of the configuration. Raises BadInput."""
    remote = config.remotes.get(spec)
    store: ObjectStore = open_store(remote.urls[0] if remote else spec, connections=config.fetch.connections)
    return RetryingStore(MeteredStore(store, metrics) if metrics else store, metrics)


def deadline_of(config: Config) -> Deadline:
    """One network step's: commands renew it for each object, so that a long transfer may take its time."""
    return Deadline(config.fetch.deadline_s)


def repository_at(config: Config, spec: str, metrics: Metrics | None = None,
                  cache: ObjectCache | None = None) -> Repository:
    """Raises NotFound, Unavailable, IntegrityError."""
    return Repository.open(store_at(config, spec, metrics), deadline_of(config), cache)


@dataclass(frozen=True, slots=True)
class Transfer:
    """What a command needs that copies a version out of a repository, past any disk cache."""

    repository: Repository
    versions: Versions
    fetcher: Fetcher
    metrics: Metrics


@contextmanager
def transfer(config: Config, spec: str) -> Iterator[Transfer]:
    """Raises as repository_at."""
    metrics = Metrics()
    repository = repository_at(config, spec, metrics)
    cache = NoChunkCache()
    fetcher = Fetcher(repository.store, cache, metrics, connections=config.fetch.connections,
                      memory_bytes=config.fetch.memory_bytes, deadline_s=config.fetch.deadline_s, patient=True)
    try:
        yield Transfer(repository, Versions(repository, cache, lambda: deadline_of(config)), fetcher, metrics)
    finally:
        fetcher.close()

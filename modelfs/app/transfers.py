"""Repository → fetcher, without a disk cache: for commands that copy a version out of a repository once.

Rule: nobody waits for one of these reads, so as long as bytes arrive they go on.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from modelfs.app.repositories import deadline_of, readable_at
from modelfs.config import Config
from modelfs.metrics import Metrics
from modelfs.reading.fetcher import Fetcher
from modelfs.reading.versions import NoChunkCache, Versions
from modelfs.repository.repository import Repository
from modelfs.stores.retrying import Tell
from modelfs.stores.throttled import Throttle, ThrottledStore


@dataclass(frozen=True, slots=True)
class Transfer:
    """What a command needs that copies a version out of a repository, past any disk cache."""

    repository: Repository
    versions: Versions
    fetcher: Fetcher
    metrics: Metrics


def throttled(repository: Repository, throttle: Throttle | None) -> Repository:
    """Of one store: what is read and written of it together is no quicker than throttle."""
    if throttle is None:
        return repository
    return Repository(ThrottledStore(repository.store, throttle), repository.info, repository.cache)


@contextmanager
def transfer(config: Config, spec: str, tell: Tell, throttle: Throttle | None = None) -> Iterator[Transfer]:
    """throttle: of all stores of spec together. Raises as readable_at."""
    metrics = Metrics()
    repository = readable_at(config, spec, metrics, tell=tell, throttle=throttle)
    cache = NoChunkCache()
    fetcher = Fetcher(cache, metrics, connections=config.fetch.connections,
                      memory_bytes=config.fetch.memory_bytes, deadline_s=config.fetch.deadline_s, patient=True)
    try:
        yield Transfer(repository, Versions(repository, cache, lambda: deadline_of(config).patient()), fetcher, metrics)
    finally:
        fetcher.close()

"""Configuration → store → repository.

Rule: a REPO argument means the same to every command.
"""

from __future__ import annotations

from modelfs.config import Config
from modelfs.metrics import Metrics
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

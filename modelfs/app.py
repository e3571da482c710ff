"""The one place where parts are put together: configuration → store → repository → view.

Rule: nothing below builds what it uses; it is handed down from here.
"""

from __future__ import annotations

from modelfs.config import Config
from modelfs.metrics import Metrics
from modelfs.repository.repository import ObjectCache, Repository
from modelfs.stores.opening import open_store
from modelfs.stores.retrying import RetryingStore
from modelfs.stores.store import ObjectStore
from modelfs.units import Deadline


def store_at(config: Config, spec: str, metrics: Metrics | None = None) -> ObjectStore:
    """The store that a REPO argument names: a path, a URL, or a remote of the configuration. Raises BadInput."""
    remote = config.remotes.get(spec)
    return RetryingStore(open_store(remote.urls[0] if remote else spec, connections=config.fetch.connections), metrics)


def deadline_of(config: Config) -> Deadline:
    """One network step's: commands renew it for each object, so that a long transfer may take its time."""
    return Deadline(config.fetch.deadline)


def repository_at(config: Config, spec: str, metrics: Metrics | None = None,
                  cache: ObjectCache | None = None) -> Repository:
    """Raises NotFound, Unavailable, IntegrityError."""
    return Repository.open(store_at(config, spec, metrics), deadline_of(config), cache)

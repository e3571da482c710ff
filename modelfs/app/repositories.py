"""Configuration → store → repository.

Rule: a REPO argument means the same to every command.
"""

from __future__ import annotations

from collections.abc import Callable

from modelfs.config import Config
from modelfs.metrics import Metrics
from modelfs.repository.repository import ObjectCache, Repository
from modelfs.stores.file_store import FileStore
from modelfs.stores.opening import is_http, open_store
from modelfs.stores.retrying import MeteredStore, RetryingStore
from modelfs.stores.store import ObjectStore
from modelfs.tokens import ClientToken
from modelfs.units import Deadline

_NO_TOKEN = "It was asked without a token: name its file by MODELFS_TOKEN_FILE, or as token_file of a remote."


def store_at(config: Config, spec: str, metrics: Metrics | None = None) -> ObjectStore:
    """The store that a REPO argument names: a path, a URL, or a remote of the configuration.

    Raises BadInput; Forbidden of a token file that others can read.
    """
    remote = config.remotes.get(spec)
    url = remote.urls[0] if remote else spec
    token_file = (remote.token_file if remote else None) or config.token_file
    store: ObjectStore
    if not is_http(url):
        store = open_store(url)
    elif token_file is None:
        store = open_store(url, connections=config.fetch.connections, credentials=_NO_TOKEN)
    else:
        store = open_store(url, connections=config.fetch.connections, headers=ClientToken(token_file).headers,
                           credentials=f"It was asked with the token in {token_file}.")
    return RetryingStore(MeteredStore(store, metrics) if metrics else store, metrics)


def sweep_of(config: Config, spec: str) -> Callable[[float], int] | None:
    """FileStore.sweep where the store is a directory; others keep no unfinished writes that we could see."""
    remote = config.remotes.get(spec)
    store = open_store(remote.urls[0] if remote else spec)
    return store.sweep if isinstance(store, FileStore) else None


def deadline_of(config: Config) -> Deadline:
    """One network step's: commands renew it for each object, so that a long transfer may take its time."""
    return Deadline(config.fetch.deadline_s)


def repository_at(config: Config, spec: str, metrics: Metrics | None = None,
                  cache: ObjectCache | None = None) -> Repository:
    """Raises NotFound, Unavailable, IntegrityError."""
    return Repository.open(store_at(config, spec, metrics), deadline_of(config), cache)

"""Configuration → store → repository.

Rule: a REPO argument means the same to every command.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from difflib import get_close_matches
from pathlib import Path

from modelfs.config import Config, RemoteConfig
from modelfs.errors import BadInput, NotFound
from modelfs.metrics import Metrics
from modelfs.repository import keys
from modelfs.repository.repository import ObjectCache, Repository
from modelfs.stores.cloud_access import CloudOptions
from modelfs.stores.file_store import FileStore
from modelfs.stores.opening import TlsFiles, is_cloud, is_http, is_network, open_store
from modelfs.stores.replicas import Replicas
from modelfs.stores.retrying import MeteredStore, RetryingStore, Tell
from modelfs.stores.store import ObjectStore
from modelfs.stores.throttled import Throttle, ThrottledStore
from modelfs.tokens import ClientToken
from modelfs.units import Deadline

_HOST_AND_PORT = re.compile(r"[A-Za-z0-9.-]+:[0-9]{1,5}(?:/|$)")
_MIRRORED_STALL_S = 4.0  # the next mirror is asked instead
_NO_TOKEN = "It was asked without a token: name its file by MODELFS_TOKEN_FILE, or as token_file of a remote."


def store_at(config: Config, spec: str, metrics: Metrics | None = None, *, tell: Tell | None = None) -> ObjectStore:
    """The store that a REPO argument names: a path, a URL, or a remote of the configuration, of which it is the first.

    tell: is told when somebody waits because the store does not answer, and of an object store that must have one
    writer only. Raises BadInput; Forbidden of a token file that others can read.
    """
    return RetryingStore(stores_of(config, spec, metrics, tell=tell)[0], metrics, tell=tell)


def reading_store_at(config: Config, spec: str, metrics: Metrics | None = None, *,
                     tell: Tell | None = None, throttle: Throttle | None = None) -> ObjectStore:
    """As `store_at`, for those who only read: of a remote with mirrors, whichever can answer."""
    stores = stores_of(config, spec, metrics, tell=tell, throttle=throttle)
    store = stores[0] if len(stores) == 1 else Replicas(stores, keys.agrees, metrics, hedge=config.fetch.hedge)
    return RetryingStore(store, metrics, tell=tell)


def stores_of(config: Config, spec: str, metrics: Metrics | None = None, *,
              tell: Tell | None = None, throttle: Throttle | None = None) -> list[ObjectStore]:
    """Of a remote, all in order of preference; without retries. throttle: of all together. Raises as `store_at`."""
    remote = config.remotes.get(spec)
    urls = remote.urls if remote else (spec,)
    stall_s = _MIRRORED_STALL_S if len(urls) > 1 else None
    stores = [_open(config, url, remote, stall_s, tell) for url in urls]
    if throttle is not None:
        stores = [ThrottledStore(store, throttle) for store in stores]
    if metrics:
        stores = [MeteredStore(store, metrics) for store in stores]
    if remote and remote.etcd:
        from modelfs.app.consensus import kept_in_etcd  # HTTP's imports, as for a store over HTTP
        stores[0] = kept_in_etcd(stores[0], remote.etcd, tls_of(remote))
    return stores


def _open(config: Config, url: str, remote: RemoteConfig | None, stall_s: float | None,
          tell: Tell | None) -> ObjectStore:
    connections = config.fetch.connections
    if _HOST_AND_PORT.match(url) and not os.path.lexists(url):
        raise BadInput(f"not a repository {url!r}", why="a URL begins with http:// or https://",
                       advice=f"Is it http://{url}? A directory of that name is ./{url}")
    if is_cloud(url):
        cloud = CloudOptions(remote.endpoint, remote.region, remote.anonymous, bool(remote.etcd)) if remote else None
        return open_store(url, connections=connections, cloud=cloud, tell=tell)
    if not is_http(url):
        return open_store(url)
    token_file = (remote.token_file if remote else None) or config.token_file
    headers, credentials = None, _NO_TOKEN
    if token_file is not None:
        headers, credentials = ClientToken(token_file).headers, f"It was asked with the token in {token_file}."
    return open_store(url, connections=connections, headers=headers, tls=tls_of(remote), credentials=credentials,
                      stall_s=stall_s)


def tls_of(remote: RemoteConfig | None) -> TlsFiles | None:
    if remote is None:
        return None
    return TlsFiles(remote.ca_file, remote.client_cert, remote.client_key, f"remotes.{remote.name}.")


def sweep_of(config: Config, spec: str) -> Callable[[float], int] | None:
    """FileStore.sweep where the store is a directory; others keep no unfinished writes that we could see: object stores
    abort an upload in parts that fails, and a lifecycle rule removes what a killed process left."""
    store = _directory_at(config, spec)
    return store.sweep if store is not None else None


def check_outside(config: Config, spec: str, source: Path) -> None:
    """That the repository is no directory in source, which each push would then push with all pushes before it."""
    store, whole = _directory_at(config, spec), os.path.realpath(source)
    if store is not None and Path(os.path.realpath(store.root)).is_relative_to(whole):
        raise BadInput("the repository lies in what is to be pushed", where=str(store.root),
                       why=f"every push would store it once more, as files of {whole}",
                       advice="Move the repository to another directory, or name the one with the model.")


def _directory_at(config: Config, spec: str) -> FileStore | None:
    """The store where it is a directory; of a remote, its first."""
    remote = config.remotes.get(spec)
    url = remote.urls[0] if remote else spec
    store = None if is_network(url) else open_store(url)
    return store if isinstance(store, FileStore) else None


def deadline_of(config: Config) -> Deadline:
    """One network step's: commands renew it for each object, so that a long transfer may take its time."""
    return Deadline(config.fetch.deadline_s)


def repository_at(config: Config, spec: str, metrics: Metrics | None = None, cache: ObjectCache | None = None, *,
                  tell: Tell | None = None) -> Repository:
    """For those who write, too. tell: of store_at. Raises NotFound, Unavailable, IntegrityError."""
    with naming_remotes(config, spec):
        return Repository.open(store_at(config, spec, metrics, tell=tell), deadline_of(config), cache)


def readable_at(config: Config, spec: str, metrics: Metrics | None = None, cache: ObjectCache | None = None, *,
                tell: Tell | None = None, throttle: Throttle | None = None) -> Repository:
    """As `repository_at`, for those who only read. throttle: of all its stores together."""
    with naming_remotes(config, spec):
        store = reading_store_at(config, spec, metrics, tell=tell, throttle=throttle)
        return Repository.open(store, deadline_of(config), cache)


@contextmanager
def naming_remotes(config: Config, spec: str) -> Iterator[None]:
    """Around the opening of a repository: where spec is neither a directory nor a URL, a remote may be meant, and
    NotFound says which there are."""
    try:
        yield
    except NotFound as error:
        if not config.remotes or "://" in spec or Path(spec).is_dir():
            raise
        near = get_close_matches(spec, config.remotes, n=3)
        raise NotFound(error.what, where=spec, why="it is neither a directory nor the name of a remote",
                       advice=f"Did you mean {' or '.join(near)}?" if near else
                       f"The remotes are {', '.join(config.remotes)}.") from error

"""Configuration → upstream → cache → fetcher → a site's server.

Rule: with what it was told before, a site comes up while its upstream is gone, and says so.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from modelfs.app.repositories import deadline_of, naming_remotes, reading_store_at
from modelfs.cache.cache import Cache
from modelfs.config import Config
from modelfs.errors import Conflict
from modelfs.metrics import Metrics
from modelfs.reading.fetcher import Fetcher
from modelfs.repository import keys
from modelfs.server.access import Access, check_exposure
from modelfs.server.running import allow_many_files, serve
from modelfs.server.site import Site, begin
from modelfs.server.upstream import Upstream
from modelfs.stores.replicas import replicas_of

_CACHED_WAIT_S = 5.0
_SILENCE_S = 10.0
"""Clients wait for a site as for any store, and ask their next mirror, or the site again, after 4 s or 10 s without a
byte: a site that tried for longer would hold its connections for nobody."""


@dataclass(frozen=True, slots=True)
class SiteRequest:
    """directory: of the site's cache. upstream: a REPO argument."""

    directory: Path
    upstream: str
    host: str
    port: int


def serve_site(config: Config, request: SiteRequest, access: Access, say: Callable[[str], None]) -> None:
    """Serve until SIGTERM or SIGINT; only from the main thread. say: a line for people.

    Raises Conflict where the directory is a repository, what a cache directory and a repository can fail of, and what
    `serve` raises.
    """
    directory = request.directory
    if any((directory / name).exists() for name in (keys.INFO, keys.CATALOG)):
        raise Conflict("a site's cache needs a directory of its own", where=str(directory), why="this is a repository")
    check_exposure(request.host, access)
    allow_many_files()
    metrics = Metrics()
    store = reading_store_at(config, request.upstream, metrics, tell=say)
    upstream = Upstream(store, config.fetch.connections, min(_SILENCE_S, config.fetch.deadline_s))
    with ExitStack() as undo:
        cache = Cache(directory, config.cache.size, config.cache.min_free, metrics, verify=config.cache.verify,
                      scrub_s=config.cache.scrub_s)
        undo.callback(cache.close)
        with naming_remotes(config, request.upstream):
            begun = begin(upstream, cache, deadline_of(config), _CACHED_WAIT_S)
        if begun.trouble is not None:
            say(f"warning: {begun.trouble} Starting from the cache.")
        # a quarter for what the cache does not keep, and one for the buffers in which its files are checked
        memory = config.fetch.memory_bytes
        fetcher = Fetcher(cache, metrics, connections=config.fetch.connections, memory_bytes=memory // 2,
                          deadline_s=upstream.deadline_s, patient=True)
        undo.callback(fetcher.close)
        replicas = replicas_of(store)
        undo.callback(replicas.close)
        site = Site(upstream, begun, replicas, cache, fetcher, memory // 4)
        serve(site, request.host, request.port,
              lambda url: say(f"serving {store.url} at {url}, from the cache in {directory}"), access)

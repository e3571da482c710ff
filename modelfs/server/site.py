"""What a site's cache shows: the repository of its upstream, each object fetched once for all clients and checked.

Rule: nothing is passed on that is not what its name says, nothing is taken from clients, and what they show to be let
in (tokens) goes no further.
"""

from __future__ import annotations

from dataclasses import dataclass

from aiohttp import web

from modelfs import __version__
from modelfs.cache.cache import Cache
from modelfs.errors import Unavailable
from modelfs.ids import ObjectId
from modelfs.logs import log_event, logger_for
from modelfs.reading.fetcher import Fetcher
from modelfs.repository import keys
from modelfs.repository.info import RepositoryInfo
from modelfs.repository.repository import Repository
from modelfs.server.objects import OpenObject
from modelfs.server.site_objects import MovingObjects, Named, State, ask_catalog, kept_catalog
from modelfs.server.site_packs import Packs
from modelfs.server.uploads import Refused
from modelfs.server.upstream import Upstream
from modelfs.stores.replicas import Replicas
from modelfs.units import Deadline

_LOG = logger_for(__name__)


@dataclass(frozen=True, slots=True)
class Begun:
    """With what a site begins: of its upstream, or of its cache, and then why (trouble)."""

    info: RepositoryInfo
    catalog: State
    trouble: Unavailable | None = None


class Site:
    """A server.contents.Contents, without audits: what it has not fetched it does not hold.

    cache, fetcher: of the site; they are closed by who made them, after this."""

    audits = None

    def __init__(self, upstream: Upstream, begun: Begun, replicas: Replicas, cache: Cache, fetcher: Fetcher,
                 loose_bytes: int) -> None:
        """replicas: behind upstream's store. loose_bytes: how much memory packs may take that the cache does not keep.
        """
        self._url = upstream.url
        self._packs = Packs(upstream, replicas, cache, fetcher, loose_bytes)
        self._named = Named(upstream, cache.meta)
        self._moving = MovingObjects(upstream, cache.meta, begun.info, begun.catalog)

    @property
    def about(self) -> str:
        return f"A cache of {self._url}, by modelfs {__version__}: `modelfs ls` with this URL shows what is in it."

    async def open(self, key: str, *, head: bool, fresh: bool) -> OpenObject:
        if key.startswith(keys.PACKS):
            pack = ObjectId.from_hex(key.rpartition("/")[2])
            return await (self._packs.head(pack) if head else self._packs.open(pack))
        if key == keys.CATALOG or key.startswith(keys.LAYOUTS):
            return await self._moving.open(key, fresh)
        return await self._named.open(key)

    async def put(self, request: web.Request, key: str) -> tuple[bool, str]:
        raise Refused(403, f"this is a cache that only reads: push to {self._url}")

    def close(self) -> None:
        """What is under way ends with the event loop, and with the fetcher."""


def begin(upstream: Upstream, cache: Cache, deadline: Deadline, cached_wait_s: float) -> Begun:
    """cached_wait_s: how long upstream is waited for where the cache has what is needed.

    Raises NotFound, and what else the opening of a repository raises, Unavailable only where the cache has nothing.
    """
    store = upstream.store
    remembered = Repository.open_cached(store, cache.meta)
    kept = kept_catalog(cache.meta, upstream.url, remembered.info) if remembered else None
    if kept is not None:
        deadline = deadline.sooner(cached_wait_s)
    try:
        info = Repository.open(store, deadline, cache.meta).info
        found = ask_catalog(upstream, cache.meta, info, None, False)
    except Unavailable as error:
        if remembered is None or kept is None:
            raise
        upstream.note(str(error))
        return Begun(remembered.info, kept, error)
    if kept is not None and remembered is not None and remembered.info.id == info.id and found.serial < kept.serial:
        log_event(_LOG, "warning", "catalog.older", store=upstream.url, seen=kept.serial, offered=found.serial,
                  why="a copied or restored repository?")
    return Begun(info, found)

"""A site's cache of all objects but packs: those named by their digest once and for ever, catalog and layouts asked
for again.

Rule: what has a digest was hashed to it whenever it leaves. What can change is asked for at most once a second for all
clients together, the catalog never goes back, and while upstream is silent the newest that was seen is served.
"""

from __future__ import annotations

import asyncio
import math
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial

from modelfs.cache.meta_cache import MetaCache
from modelfs.errors import IntegrityError, Malformed, ModelfsError, ObjectMissing, Unavailable
from modelfs.ids import Digest, ObjectId
from modelfs.logs import log_event, logger_for
from modelfs.repository import catalog, keys, layout
from modelfs.repository.held import Held
from modelfs.repository.info import RepositoryInfo, parse_info
from modelfs.server import checks
from modelfs.server.contents import in_pool
from modelfs.server.objects import ASK_AGAIN, FOR_EVER, OpenObject, digest_etag
from modelfs.server.upstream import SingleFlight, Upstream

ASK_EVERY_S = 1.0
_WAIT_S = 2.0
"""For an answer where an older one can be served: a mount with a mirror asks that after 4 s without a byte."""
_MOST_MOVING = 256
_CATALOG = "site.catalog"
_KINDS = {"histories": "history", "manifests": "manifest", "indexes": "index", "keys": "key"}  # as a mount keeps them
_LOG = logger_for(__name__)


class Named:
    """Objects that are named by their digest, and modelfs.json. Used on the event loop's thread."""

    def __init__(self, upstream: Upstream, meta: MetaCache) -> None:
        self._upstream, self._meta = upstream, meta
        self._flights = SingleFlight[Held]()

    async def open(self, key: str) -> OpenObject:
        held = await in_pool(partial(self._kept, key)) or \
            await self._flights.once(key, lambda: self._upstream.ask(partial(self._fetch, key)))
        etag = f'"{Digest.of(held.data).hex()}"' if key == keys.INFO else digest_etag(key)
        return OpenObject(memoryview(held.data), len(held.data), etag, FOR_EVER, owner=held)

    def _kept(self, key: str) -> Held | None:
        if key == keys.INFO:
            return self._meta.hold("info", self._upstream.url)
        kind, _, name = key.partition("/")
        name = name.rpartition("/")[2]
        return self._meta.hold(_KINDS[kind], name, ObjectId.from_hex(name))

    def _fetch(self, key: str) -> Held:
        """Asked once more past caches where it is not what its name says."""
        for fresh in (False, True):
            found = self._upstream.store.get(key, self._upstream.deadline(), limit=checks.largest(key), fresh=fresh)
            assert found is not None
            if key == keys.INFO:
                parse_info(found.data, self._upstream.url)
                return self._meta.keep("info", self._upstream.url, found.data)
            kind, name = _KINDS[key.partition("/")[0]], ObjectId.from_hex(key.rpartition("/")[2])
            if ObjectId.of(found.content) == name:
                return self._meta.keep(kind, name.hex(), found.content, name)
        raise IntegrityError("an object is not what its name says", where=self._upstream.url, why=key)


@dataclass(frozen=True, slots=True)
class State:
    """What an object was when it was asked for last. upstream_etag: by which upstream knows it. serial: a catalog's."""

    held: Held
    etag: str
    upstream_etag: str | None = None
    serial: int = 0

    @classmethod
    def of(cls, held: Held, upstream_etag: str | None, serial: int = 0) -> State:
        return cls(held, f'"{Digest.of(held.data).hex()}"', upstream_etag, serial)


Ask = Callable[[State | None, bool], State]
"""The newest state known, whether past caches → the state now. Run by a thread."""


class Moving:
    """One object that upstream may replace, or have no more. Used on the event loop's thread."""

    def __init__(self, key: str, upstream: Upstream, ask: Ask, known: State | None) -> None:
        self._key, self._upstream, self._ask, self._known = key, upstream, ask, known
        self._missing: ObjectMissing | None = None
        self._asked_s = -math.inf  # when what was answered last was begun
        self._flights = SingleFlight[None]()

    async def now(self, fresh: bool) -> State:
        """fresh: as of a moment after this was called, if upstream answers; else as of a second ago, or later.

        Raises what upstream says where nothing older is known, and ObjectMissing.
        """
        enough_s = asyncio.get_running_loop().time() - (0.0 if fresh else ASK_EVERY_S)
        while self._asked_s < enough_s:
            asking = asyncio.ensure_future(self._flights.once("", partial(self._renew, fresh)))
            asking.add_done_callback(_heard)
            if self._known is None:
                await asking
            elif self._upstream.silent or not (await asyncio.wait({asking}, timeout=_WAIT_S))[0]:
                if not self._upstream.silent:
                    self._upstream.note(f"no answer within {_WAIT_S:g} s")
                break
        if self._known is None:
            raise self._missing or Unavailable("an object was not asked for", where=self._key)
        return self._known

    async def _renew(self, fresh: bool) -> None:
        began_s = asyncio.get_running_loop().time()
        try:
            self._known, self._missing = await self._upstream.ask(partial(self._ask, self._known, fresh)), None
        except ObjectMissing as error:
            self._known, self._missing = None, error
        except Unavailable as error:
            self._upstream.note(str(error))
            if self._known is None:
                raise
            return
        except ModelfsError as error:
            if self._known is None:
                raise
            log_event(_LOG, "warning", "upstream.unusable", key=f"{self._key} {type(error).__name__}", object=self._key,
                      why=str(error))
        self._upstream.note(None)
        self._asked_s = began_s


class MovingObjects:
    """The catalog and the layouts. Used on the event loop's thread."""

    def __init__(self, upstream: Upstream, meta: MetaCache, info: RepositoryInfo, begun_with: State | None) -> None:
        """begun_with: the catalog."""
        self._upstream, self._meta, self._info = upstream, meta, info
        self._catalog = Moving(keys.CATALOG, upstream, self._ask_catalog, begun_with)
        self._layouts: OrderedDict[str, Moving] = OrderedDict()

    async def open(self, key: str, fresh: bool) -> OpenObject:
        state = await (self._catalog if key == keys.CATALOG else await self._layout(key)).now(fresh)
        return OpenObject(memoryview(state.held.data), len(state.held.data), state.etag, ASK_AGAIN, owner=state)

    async def _layout(self, key: str) -> Moving:
        if key not in self._layouts:
            kept = await in_pool(lambda: self._meta.hold("layout", key.rpartition("/")[2]))
            known = None if kept is None else await in_pool(lambda: State.of(kept, None))
            self._layouts.setdefault(key, Moving(key, self._upstream, partial(self._ask_layout, key), known))
            if len(self._layouts) > _MOST_MOVING:
                self._layouts.popitem(last=False)
        found = self._layouts[key]
        self._layouts.move_to_end(key)
        return found

    def _ask_layout(self, key: str, known: State | None, fresh: bool) -> State:
        found = self._upstream.store.get(key, self._upstream.deadline(), limit=checks.largest(key), fresh=fresh,
                                         etag=known.upstream_etag if known else None)
        if found is None:
            assert known is not None
            return known
        name = key.rpartition("/")[2]
        layout.parse(ObjectId.from_hex(name), found.content, None, self._info.chunk_size)
        return State.of(self._meta.keep("layout", name, found.content), found.etag)

    def _ask_catalog(self, known: State | None, fresh: bool) -> State:
        return ask_catalog(self._upstream, self._meta, self._info, known, fresh)


def ask_catalog(upstream: Upstream, meta: MetaCache, info: RepositoryInfo, known: State | None, fresh: bool) -> State:
    """Raises what a store raises, Malformed of another repository's."""
    try:
        found = upstream.store.get(keys.CATALOG, upstream.deadline(), limit=catalog.MAX_CATALOG_BYTES, fresh=fresh,
                                   etag=known.upstream_etag if known else None)
    except ObjectMissing as error:
        if known is None:
            raise
        raise Malformed(keys.CATALOG, where=upstream.url, why="it has gone") from error
    if found is None:
        assert known is not None
        return known
    state = _catalog_state(found.data, info, found.etag)
    if known is not None and state.etag == known.etag:
        return replace(known, upstream_etag=found.etag)
    if known is not None and state.serial < known.serial:
        log_event(_LOG, "warning", "catalog.older", key=f"{state.serial}", store=upstream.url, seen=known.serial,
                  offered=state.serial)
        return known
    meta.put(_CATALOG, upstream.url, found.data)
    return state


def kept_catalog(meta: MetaCache, url: str, info: RepositoryInfo) -> State | None:
    """As it was kept by whoever served this cache last."""
    data = meta.get(_CATALOG, url)
    try:
        return None if data is None else _catalog_state(data, info, None)
    except Malformed:  # another repository stands there now
        return None


def _catalog_state(data: bytes, info: RepositoryInfo, upstream_etag: str | None) -> State:
    """Raises Malformed."""
    found = catalog.parse(data)
    if found.repository != info.id:
        raise Malformed(keys.CATALOG, why="it belongs to another repository")
    return State.of(Held(data), upstream_etag, found.serial)


def _heard(asking: asyncio.Future[None]) -> None:
    """Its error counts where it is waited for only."""
    if not asking.cancelled():
        asking.exception()

"""Packs in a site's cache: a pack is one chunk to it, whose id is the pack's name, fetched and kept as a mount's are.

Rule: of a pack no byte leaves before all of it was checked. A cache that keeps nothing costs requests upstream, and
memory within a bound, never an answer.
"""

from __future__ import annotations

import asyncio
import threading
from collections import OrderedDict
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial

import numpy as np

from modelfs.cache.cache import Cache
from modelfs.cache.cache_file import Backing, CacheFile
from modelfs.errors import IntegrityError, Malformed, ModelfsError, ObjectMissing, Unavailable
from modelfs.ids import ChunkId, ObjectId
from modelfs.reading.failures import Failures
from modelfs.reading.fetcher import Fetcher
from modelfs.reading.flights import Want
from modelfs.reading.sources import Source
from modelfs.repository import keys
from modelfs.repository.chunk import ChunkRef
from modelfs.repository.pack import MAX_OBJECT_BYTES
from modelfs.repository.places import Place
from modelfs.server.contents import in_pool
from modelfs.server.objects import FOR_EVER, OpenObject, digest_etag
from modelfs.server.upstream import SingleFlight, Upstream, settle
from modelfs.stores.replicas import Replicas
from modelfs.units import Deadline

_MOST_FILES = 16_384
"""A pack that is forgotten is hashed once more when it is asked for again. 2.4 KB each."""
_DAMAGED_S = 5.0
"""Clients ask again for what is damaged, as long as their deadlines let them; upstream is to send it less often."""
_SIZE_S = 5.0


class PackPlaces:
    """A pack lies in a pack, from its beginning to its end, on each replica."""

    def __init__(self, replicas: Replicas, pack: ObjectId, size: int) -> None:
        self.replicas = replicas
        self._place = Place(pack, 0, size, "raw")

    def source(self, row: int) -> Source | None:
        return Source(self.replicas.in_order()[0], self._place)

    def look_up(self, row: int, wrong: Sequence[Source], deadline: Deadline) -> Source | None:
        tried = {source.replica.number for source in wrong}
        return next((Source(replica, self._place) for replica in self.replicas.in_order()
                     if replica.number not in tried), None)


class PackFile:
    """A reading.flights.ChunkFile of one chunk."""

    version = None

    def __init__(self, pack: ObjectId, cache: CacheFile, replicas: Replicas) -> None:
        self.cache, self.size, self.path = cache, cache.size, keys.pack(pack)
        self.sources = PackPlaces(replicas, pack, cache.size)
        self.ahead = set[int]()
        self._ref = ChunkRef(ChunkId(pack), cache.size)

    def ref(self, chunk: int) -> ChunkRef:
        return self._ref

    def row(self, chunk: int) -> int:
        return 0


class LooseBytes:
    """Packs in memory that the cache did not keep, for the clients that wait for them. Any thread."""

    def __init__(self, limit_bytes: int) -> None:
        self._limit = limit_bytes
        self._lock = threading.Lock()
        self._held = 0  # guarded by _lock

    def take(self, size: int) -> None:
        """Raises Unavailable where clients that are slow hold too much already; the first may be larger than all."""
        with self._lock:
            if self._held and self._held + size > self._limit:
                raise Unavailable("no memory for a pack that the cache does not keep", retry_after_s=1.0)
            self._held += size

    def give(self, size: int) -> None:
        with self._lock:
            self._held -= size


class Landed:
    """A pack that just came and was checked. As long as anybody has this, it is not evicted, or else its bytes are
    here; so those who waited for it need not be quicker than the evictor."""

    def __init__(self, file: PackFile, decoded: memoryview, loose: LooseBytes) -> None:
        """Puts it into the cache. Raises Unavailable where neither that nor memory has room."""
        self._loose = loose
        self._backing: Backing | None = None
        self.data: bytes | None = None
        self.file = file
        if file.cache.fill(0, decoded):
            self._backing = file.cache.backing()
        if self._backing is None:
            loose.take(file.size)
            self.data = bytes(decoded)

    def __del__(self) -> None:
        if self._backing is not None:
            self._backing.close()
        if self.data is not None:
            self._loose.give(len(self.data))


@dataclass(frozen=True, slots=True, eq=False)
class _Waiter:
    """A reading.flights.Waiter that ends a wait on the event loop."""

    file: PackFile
    loose: LooseBytes
    loop: asyncio.AbstractEventLoop
    future: asyncio.Future[Landed]

    def arrived(self, id: ChunkId, decoded: memoryview) -> None:
        try:
            landed = Landed(self.file, decoded, self.loose)
        except ModelfsError as error:
            self.failed(id, error)
        else:
            settle(self.loop, self.future, landed)

    def failed(self, id: ChunkId, error: ModelfsError) -> None:
        settle(self.loop, self.future, error=error)


class Packs:
    """Used on the event loop's thread."""

    def __init__(self, upstream: Upstream, replicas: Replicas, cache: Cache, fetcher: Fetcher,
                 loose_bytes: int) -> None:
        """loose_bytes: how much memory packs may take that the cache does not keep."""
        self._upstream, self._replicas, self._cache, self._fetcher = upstream, replicas, cache, fetcher
        self._loose = LooseBytes(loose_bytes)
        self._flights = SingleFlight[Landed]()
        self._damaged = Failures[ObjectId]()
        self._lock = threading.Lock()
        self._files: OrderedDict[ObjectId, PackFile] = OrderedDict()  # that were here once; guarded by _lock

    async def open(self, pack: ObjectId) -> OpenObject:
        """Raises what upstream, or its bytes, fail with."""
        found = await in_pool(partial(self._cached, pack))
        if found is None:
            if error := self._damaged.of(pack):
                raise error
            landed = await self._flights.once(pack.hex(), partial(self._fetch, pack))
            if landed.data is not None:
                return OpenObject(memoryview(landed.data), landed.file.size, digest_etag(landed.file.path), FOR_EVER,
                                  owner=landed)
            found = await in_pool(partial(self._cached, pack))
        if found is None:
            raise Unavailable("a pack cannot be opened in the cache", where=keys.pack(pack))
        return found

    async def head(self, pack: ObjectId) -> OpenObject:
        """Of a pack that is not here upstream is asked for no more, either."""
        known = await in_pool(partial(self._known, pack))
        size = known.size if known else await self._upstream.ask(partial(self._size, pack))
        return OpenObject(memoryview(b""), size, digest_etag(keys.pack(pack)), FOR_EVER)

    def _cached(self, pack: ObjectId) -> OpenObject | None:
        """If it is here and was checked since we began."""
        file = self._known(pack)
        backing = file.cache.backing() if file else None
        if file is None or backing is None:
            return None
        return OpenObject(backing.fd, file.size, digest_etag(file.path), FOR_EVER, backing.close)

    def _known(self, pack: ObjectId) -> PackFile | None:
        """One that was here since we began, or is."""
        with self._lock:
            if (file := self._files.get(pack)) is not None:
                self._files.move_to_end(pack)
                return file
        found = self._cache.find(ChunkId(pack), None)
        if found is None or found[0].rows != 1:
            return None
        return self._remembered(pack, PackFile(pack, found[0], self._replicas))

    def _remembered(self, pack: ObjectId, file: PackFile) -> PackFile:
        with self._lock:
            self._files[pack] = file
            self._files.move_to_end(pack)
            while len(self._files) > _MOST_FILES:
                self._files.popitem(last=False)
        return file

    async def _fetch(self, pack: ObjectId) -> Landed:
        """A replica may tell a wrong size, as it may send wrong bytes: then those that others tell are tried."""
        known = await in_pool(partial(self._known, pack))
        size = known.size if known else await self._upstream.ask(partial(self._size, pack))
        tried: list[int] = []
        while True:
            tried.append(size)
            try:
                return await self._land(pack, size)
            except IntegrityError as error:
                other = await self._upstream.ask(partial(self._other_size, pack, tuple(tried)))
                if other is None:
                    if not isinstance(error, ObjectMissing):
                        self._damaged.note(pack, error, _DAMAGED_S)
                    raise
                size = other

    async def _land(self, pack: ObjectId, size: int) -> Landed:
        if not 1 <= size <= MAX_OBJECT_BYTES:
            raise Malformed(f"pack {pack.hex()[:16]}", where=self._upstream.url, why=f"it has {size} bytes")
        ids, lengths = np.frombuffer(pack, np.uint8).reshape(1, 32), np.array([size], np.uint32)
        file = PackFile(pack, self._cache.file(ids, lengths), self._replicas)
        loop = asyncio.get_running_loop()
        waiter = _Waiter(file, self._loose, loop, loop.create_future())
        await in_pool(partial(self._fetcher.ensure, [Want(file, 0)], waiter))
        landed = await waiter.future
        self._remembered(pack, file)
        return landed

    def _size(self, pack: ObjectId) -> int:
        return self._upstream.store.stat(keys.pack(pack), self._upstream.deadline()).size

    def _other_size(self, pack: ObjectId, tried: Sequence[int]) -> int | None:
        for replica in self._replicas.in_order():
            with suppress(ModelfsError):
                size = replica.store.stat(keys.pack(pack), Deadline(_SIZE_S)).size
                if size not in tried:
                    return size
        return None

"""Repository → cache → reader → view → engine: a mount, from its configuration to its end.

Rule: with a cached catalog a mount comes up while its store is gone, and says so.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from modelfs import __version__, paths
from modelfs.app.caching import Parts, remember_catalog, warm_for
from modelfs.app.repositories import deadline_of, store_at
from modelfs.cache.cache import Cache
from modelfs.config import Config
from modelfs.daemon import lifecycle, mountpoints
from modelfs.daemon.watch import CatalogWatch, StoreState
from modelfs.engines.engine import MountOptions, choose_engine
from modelfs.errors import BadInput, IntegrityError, NoSpace, Unavailable
from modelfs.ids import ModelRef
from modelfs.logs import log_event, logger_for
from modelfs.maintenance.cached import note_repository
from modelfs.metrics import Metrics
from modelfs.reading.fetcher import Fetcher
from modelfs.reading.reader import Reader
from modelfs.reading.versions import Versions
from modelfs.repository.catalog import Catalog
from modelfs.repository.repository import CatalogState, Repository
from modelfs.repository.seen import SeenSerials
from modelfs.stores.store import ObjectStore
from modelfs.units import Deadline, show_size
from modelfs.view.shelves import Library, version_id
from modelfs.view.view import Everything, Followed, Pinned, Shown, View

_LOG = logger_for(__name__)
_CACHED_WAIT_S = 5.0
_LEAST_CHUNKS = 8
_LIVE = frozenset({"cache.size", "cache.min_free", "fetch.deadline", "fetch.memory", "fetch.readahead", "mount.poll",
                   "log.level", "log.format"})
"""What `reload` applies; the other settings need a remount."""


@dataclass(frozen=True, slots=True)
class MountRequest:
    """spec: the repository, as a user writes it. model: that version's files alone, at the root.
    follow: at the version that the model's tag names at any time."""

    spec: str
    mountpoint: Path
    model: ModelRef | None = None
    follow: bool = False


@dataclass(slots=True)
class _Live:
    """The configuration that holds now; replaced as a whole by `reload`."""

    config: Config

    def renew(self) -> Deadline:
        return deadline_of(self.config)


def mount(request: MountRequest, load: Callable[[], Config], environ: Mapping[str, str], *,
          say: Callable[[str], None], ready: Callable[[], None]) -> None:
    """Mount, and serve until it is unmounted; only from the main thread.

    load: the configuration, now and at each reload. say: a line for people. ready: called once the mount answers.
    Raises what a mount can fail of: NotFound, BadInput, Conflict, Unavailable, Forbidden, IntegrityError, MountFailed.
    """
    mountpoint = paths.canonical(request.mountpoint)
    socket = paths.socket_path(mountpoint, environ)
    with ExitStack() as claim:
        claim.enter_context(mountpoints.claimed(mountpoint, socket.with_suffix(".lock")))
        mountpoints.check_free(mountpoint)
        _mount(request, _Place(mountpoint, socket, paths.state_dir(environ), claim.close), load, say, ready)


@dataclass(frozen=True, slots=True)
class _Place:
    """release: for when the kernel's table shows the mount: it is no longer ours to keep others away."""

    mountpoint: Path
    socket: Path
    state_dir: Path
    release: Callable[[], None]


def _mount(request: MountRequest, place: _Place, load: Callable[[], Config], say: Callable[[str], None],
           ready: Callable[[], None]) -> None:
    mountpoint = place.mountpoint
    live = _Live(load())
    config = live.config
    if request.follow and (request.model is None or request.model.version):
        raise BadInput("nothing to follow", why="--follow goes with --model org/name or org/name:tag")
    metrics = Metrics()
    store = store_at(config, request.spec, metrics)
    engine = choose_engine(config.mount.engine)
    options = MountOptions(mountpoint, store.url, config.mount.allow_other)
    engine.check(options)
    with ExitStack() as undo:
        with lifecycle.threads_without_signals():
            cache = Cache(config.cache.directory, config.cache.size, config.cache.min_free, metrics)
        undo.callback(cache.close)
        seen = SeenSerials(place.state_dir)
        repository, begun_with, state = _begin(live, store, cache, seen, say)
        note_repository(cache, store.url)
        _warn_of_a_small_cache(config, cache, repository.info.chunk_size, say)

        def remember(catalog: Catalog) -> None:
            remember_catalog(cache, repository, catalog, live.renew())
            seen.note(repository.info.id, catalog.serial)

        versions = Versions(repository, cache, live.renew)
        library = Library(repository, begun_with.catalog, live.renew)
        shown = _shown(request, repository, begun_with, live)
        if not isinstance(shown, Everything):
            versions.load(shown.version.manifest)
        with lifecycle.threads_without_signals():
            fetcher = Fetcher(repository.store, cache, metrics, connections=config.fetch.connections,
                              memory_bytes=config.fetch.memory_bytes, deadline_s=config.fetch.deadline_s)
        undo.callback(fetcher.close)
        reader = Reader(fetcher, metrics, config.fetch.readahead_bytes, always=config.cache.verify == "always")
        view = View(library, versions, reader, metrics, shown)
        watch = CatalogWatch(repository, begun_with, state, poll_s=config.mount.poll_s, renew=live.renew,
                             remember=remember)
        undo.callback(watch.stop)
        began = time.monotonic()

        def status() -> dict[str, Any]:
            kept = cache.status()
            return {"mountpoint": str(mountpoint), "repository": store.url, "engine": engine.name,
                    "passthrough": engine.passthrough, "pid": os.getpid(), "version": __version__,
                    "uptime_s": round(time.monotonic() - began, 3),
                    "cache": {**asdict(kept), "directory": str(kept.directory)},
                    "counters": metrics.snapshot(), "stores": watch.stores()}

        def reload() -> dict[str, Any]:
            new, old = load(), live.config
            cache.set_limits(new.cache.size, new.cache.min_free)
            fetcher.set_limits(memory_bytes=new.fetch.memory_bytes, deadline_s=new.fetch.deadline_s)
            reader.set_readahead(new.fetch.readahead_bytes)
            watch.set_poll(new.mount.poll_s)
            live.config = new
            # what is not applied goes on being named, until the file says again what the mount began with
            return {"applied": [key for key in _differences(old, new) if key in _LIVE],
                    "needs_remount": [key for key in _differences(config, new) if key not in _LIVE]}

        def mounted() -> None:
            place.release()
            watch.start(view)
            say(f"mounted {store.url} on {mountpoint}")
            log_event(_LOG, "info", "mount.ready", mountpoint=mountpoint, repository=store.url, engine=engine.name)
            ready()

        def warm(fields: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
            return warm_for(Parts(repository, versions, fetcher, cache), fields, live.renew())

        lifecycle.serve(lifecycle.Mount(options, place.socket, view, engine, reader, status, reload, mounted,
                                        {"warm": warm}))


def _begin(live: _Live, store: ObjectStore, cache: Cache, seen: SeenSerials,
           say: Callable[[str], None]) -> tuple[Repository, CatalogState, StoreState]:
    """The repository and its catalog, from the cache where the store does not answer. Raises Unavailable where
    that has none."""
    kept, remembered = None, None
    try:
        kept = Repository.open_cached(store, cache.meta)
        remembered = kept.cached_catalog() if kept else None
    except IntegrityError as error:
        log_event(_LOG, "warning", "catalog.cached", store=store.url, why=str(error))
    deadline = live.renew() if remembered is None else live.renew().sooner(_CACHED_WAIT_S)
    began = time.monotonic()
    try:
        repository = Repository.open(store, deadline, cache.meta)
        found = repository.catalog(deadline)
    except Unavailable as error:
        if kept is None or remembered is None:
            raise
        say(f"warning: {error} Starting from the cache, as of {remembered.created}.")
        log_event(_LOG, "warning", "catalog.from_cache", store=store.url, serial=remembered.serial, why=str(error))
        return kept, CatalogState(remembered, None), StoreState(store.url, "unreachable", None, 1)
    latency_ms = round((time.monotonic() - began) * 500, 3)  # two requests
    kept_serial = remembered.serial if remembered else 0
    newest = max(seen.highest(repository.info.id), kept_serial)
    if newest > found.catalog.serial:
        say(f"warning: the catalog of {store.url} has serial {found.catalog.serial}, {newest} was seen here")
        log_event(_LOG, "warning", "catalog.older", store=store.url, seen=newest, offered=found.catalog.serial,
                  why="a copied or restored repository?")
    if kept_serial <= found.catalog.serial:  # what this mount shows, its next start without the store shows, too
        remember_catalog(cache, repository, found.catalog, live.renew())
    seen.note(repository.info.id, found.catalog.serial)
    return repository, found, StoreState(store.url, "ok", latency_ms)


def _shown(request: MountRequest, repository: Repository, begun_with: CatalogState, live: _Live) -> Shown:
    if request.model is None:
        return Everything()
    found = repository.resolve(begun_with.catalog, request.model, live.renew())
    version = version_id(request.model.model, found.version)
    if request.follow and found.tag is not None:
        return Followed(request.model.model, found.tag, version)
    return Pinned(version)


def _warn_of_a_small_cache(config: Config, cache: Cache, chunk_size: int, say: Callable[[str], None]) -> None:
    """A cache that cannot hold a few chunks keeps nothing: every read goes to the store."""
    try:
        room = cache.room_for(())
    except NoSpace as error:
        say(f"warning: {error} Nothing is kept, every read goes to the store.")
        return
    if room < _LEAST_CHUNKS * chunk_size:
        free = cache.status().free_bytes
        say(f"warning: the cache can hold {show_size(room)}, {cache.directory}: cache.size is {config.cache.size}, and "
            f"of the {show_size(free)} free on its disk cache.min_free keeps {config.cache.min_free} of the disk. "
            f"Nearly every read will go to the store.")
        log_event(_LOG, "warning", "cache.small", directory=cache.directory, room_bytes=room, free_bytes=free,
                  size=config.cache.size, min_free=config.cache.min_free)


def _differences(old: Config, new: Config) -> list[str]:
    return [key for key in {**old.settings, **new.settings}
            if getattr(old.settings.get(key), "value", None) != getattr(new.settings.get(key), "value", None)]

"""Repository → cache → reader → view → engine: a mount, from its configuration to its end.

Rule: with a cached catalog a mount comes up while its store is gone, and says so.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from modelfs import __version__, paths
from modelfs.app.caching import Parts, remember_catalog, warm_for
from modelfs.app.policy import check_yanked
from modelfs.app.repositories import deadline_of, naming_remotes, reading_store_at
from modelfs.cache.cache import Cache
from modelfs.config import Config
from modelfs.daemon import lifecycle, mountpoints
from modelfs.daemon.kept import KeeperLink
from modelfs.daemon.signals import threads_without_signals
from modelfs.daemon.watch import CatalogWatch
from modelfs.engines.engine import choose_engine
from modelfs.engines.native.nodes import from_line, to_line
from modelfs.engines.options import MountOptions
from modelfs.errors import BadInput, IntegrityError, ModelfsError, NoSpace, Unavailable
from modelfs.ids import ModelRef
from modelfs.logs import log_event, logger_for
from modelfs.maintenance.cached import note_repository
from modelfs.metrics import Metrics
from modelfs.reading.checking import Checker
from modelfs.reading.fetcher import Fetcher
from modelfs.reading.hydration import Hydration
from modelfs.reading.reader import Reader
from modelfs.reading.versions import Versions
from modelfs.repository.catalog import Catalog
from modelfs.repository.repository import CatalogState, Repository
from modelfs.repository.seen import SeenSerials
from modelfs.stores.store import ObjectStore
from modelfs.units import Deadline, show_size
from modelfs.view.shelves import Library, version_id
from modelfs.view.tree import VersionId
from modelfs.view.view import Everything, Followed, Pinned, Shown, View

_LOG = logger_for(__name__)
_CACHED_WAIT_S = 5.0
_LEAST_CHUNKS = 8
_LIVE = frozenset({"cache.size", "cache.min_free", "fetch.deadline", "fetch.memory", "fetch.readahead", "fetch.hydrate",
                   "mount.poll", "log.level", "log.format"})
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
          say: Callable[[str], None], ready: Callable[[], None], kept: str | None = None) -> None:
    """Mount, and serve until it is unmounted; only from the main thread.

    load: the configuration, now and at each reload. say: a line for people. ready: called once the mount answers.
    kept: for a keeper's worker, what the keeper handed it, which is told all of this, too.
    Raises what a mount can fail of: NotFound, BadInput, Conflict, Unavailable, Forbidden, IntegrityError, MountFailed.
    """
    given = MountOptions(request.mountpoint, "").descriptor
    if given is not None:  # whoever started us mounted it, and knows where
        socket = paths.socket_path(Path(f"/{os.getpid()}/fd/{given}"), environ)
        _mount(request, _Place(request.mountpoint, socket, paths.state_dir(environ), lambda: None, None), load, say,
               ready)
        return
    mountpoint = paths.canonical(request.mountpoint)
    socket = paths.socket_path(mountpoint, environ)
    keeper = KeeperLink(kept, socket) if kept else None
    try:
        with ExitStack() as claim:
            if keeper is None or not keeper.begun:
                claim.enter_context(mountpoints.claimed(mountpoint, socket.with_suffix(".lock")))
                mountpoints.check_free(mountpoint)
            _mount(request, _Place(mountpoint, socket, paths.state_dir(environ), claim.close, keeper), load, say, ready)
    except ModelfsError as error:
        if keeper is not None:
            keeper.failed(error)
        raise


@dataclass(frozen=True, slots=True)
class _Place:
    """release: for when the kernel's table shows the mount: it is no longer ours to keep others away."""

    mountpoint: Path
    socket: Path
    state_dir: Path
    release: Callable[[], None]
    keeper: KeeperLink | None


def _mount(request: MountRequest, place: _Place, load: Callable[[], Config], tell: Callable[[str], None],
           ready: Callable[[], None]) -> None:
    mountpoint, keeper = place.mountpoint, place.keeper

    def say(line: str) -> None:
        with suppress(OSError):  # whoever listened may have left: that is no reason to end a mount
            tell(line)
        if keeper is not None and line.startswith("warning"):
            keeper.say(line)

    live = _Live(load())
    config = live.config
    if request.follow and (request.model is None or request.model.version):
        raise BadInput("nothing to follow", why="--follow goes with --model org/name or org/name:tag")
    metrics = Metrics(keeper.state.counters()) if keeper else Metrics()
    store = reading_store_at(config, request.spec, metrics, tell=say)
    options = MountOptions(mountpoint, store.url, config.mount.allow_other)
    engine = choose_engine(config.mount.engine, options, config.cache, keeper)
    with ExitStack() as undo:
        with threads_without_signals():
            cache = Cache(config.cache.directory, config.cache.size, config.cache.min_free, metrics,
                          verify=config.cache.verify, scrub_s=config.cache.scrub_s)
        undo.callback(cache.close)
        seen = SeenSerials(place.state_dir)
        with naming_remotes(config, request.spec):
            repository, begun_with = _begin(live, store, cache, seen, say)
        note_repository(cache, store.url)
        _warn_of_a_small_cache(config, cache, repository.info.chunk_size, say)

        def remember(catalog: Catalog) -> None:
            remember_catalog(cache, repository, catalog, live.renew())
            seen.note(repository.info.id, catalog.serial)

        versions = Versions(repository, cache, live.renew)
        library = Library(repository, begun_with.catalog, live.renew)
        shown = _shown(request, repository, begun_with, live, keeper, say)
        if not isinstance(shown, Everything):
            versions.load(shown.version.manifest)
            with suppress(ModelfsError):  # it says whether the version is withdrawn later; the watch tries again
                library.shelf(shown.version.model)
        with threads_without_signals():
            fetcher = Fetcher(cache, metrics, connections=config.fetch.connections,
                              memory_bytes=config.fetch.memory_bytes, deadline_s=config.fetch.deadline_s)
        undo.callback(fetcher.close)
        always = config.cache.verify == "always"
        with threads_without_signals():
            checker = None if always else Checker(metrics)
            hydration = Hydration(fetcher, cache, config.fetch.hydrate)
        if checker is not None:
            undo.callback(checker.close)
        undo.callback(hydration.close)
        reader = Reader(fetcher, metrics, config.fetch.readahead_bytes, always=always, checker=checker,
                        hydration=hydration)
        view = View(library, versions, reader, metrics, shown, config.policy.yanked)
        watch = CatalogWatch(repository, begun_with, poll_s=config.mount.poll_s, renew=live.renew,
                             remember=remember)
        undo.callback(watch.stop)
        began = keeper.state.mounted_s if keeper else time.monotonic()

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
            hydration.mode = new.fetch.hydrate
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
            if keeper is not None:
                keeper.ready()

        def warm(fields: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
            return warm_for(Parts(repository, versions, fetcher, cache, config.policy), fields, live.renew())

        lifecycle.serve(lifecycle.Mount(options, place.socket, view, engine, reader, status, reload, mounted,
                                        {"warm": warm}, keeper))


def _begin(live: _Live, store: ObjectStore, cache: Cache, seen: SeenSerials,
           say: Callable[[str], None]) -> tuple[Repository, CatalogState]:
    """The repository and its catalog, from the cache where the store does not answer, or has a newer one whose
    histories of warmed models cannot be had: the watch moves on to that. Raises Unavailable where the cache has none.
    """
    kept, remembered = None, None
    try:
        kept = Repository.open_cached(store, cache.meta)
        remembered = kept.cached_catalog() if kept else None
    except IntegrityError as error:
        log_event(_LOG, "warning", "catalog.cached", store=store.url, why=str(error))
    deadline = live.renew() if remembered is None else live.renew().sooner(_CACHED_WAIT_S)
    try:
        repository, found = Repository.open_with_catalog(store, deadline, cache.meta)
    except Unavailable as error:
        if kept is None or remembered is None:
            raise
        say(f"warning: {_sentence(error)} Starting from the cache, as of {remembered.created}.")
        log_event(_LOG, "warning", "catalog.from_cache", store=store.url, serial=remembered.serial, why=str(error))
        for replica in kept.replicas.replicas:
            replica.failed(error)
        kept.replicas.probe()
        return kept, CatalogState(remembered, None)
    if kept is not None and kept.info.id != repository.info.id:  # another one stands there now
        remembered = None
    kept_serial = remembered.serial if remembered else 0
    newest = max(seen.highest(repository.info.id), kept_serial)
    if newest > found.catalog.serial:
        say(f"warning: the catalog of {store.url} has serial {found.catalog.serial}, {newest} was seen here")
        log_event(_LOG, "warning", "catalog.older", store=store.url, seen=newest, offered=found.catalog.serial,
                  why="a copied or restored repository?")
    seen.note(repository.info.id, found.catalog.serial)
    # what this mount shows, its next start without the store shows, too
    if kept_serial <= found.catalog.serial and not remember_catalog(cache, repository, found.catalog, deadline) \
            and remembered is not None:
        say(f"warning: the history of a warmed model cannot be had from {store.url}. Starting from the cache, as of "
            f"{remembered.created}.")
        log_event(_LOG, "warning", "catalog.from_cache", store=store.url, serial=remembered.serial,
                  offered=found.catalog.serial, why="the newer one names a history that cannot be had")
        return repository, CatalogState(remembered, None)
    return repository, found


def _shown(request: MountRequest, repository: Repository, begun_with: CatalogState, live: _Live,
           keeper: KeeperLink | None, say: Callable[[str], None]) -> Shown:
    """Raises Forbidden of a version that was withdrawn, where that is the policy."""
    if request.model is None:
        return Everything()
    if keeper is not None and (kept := keeper.state.root()):
        version = from_line(kept)  # the tag may have moved since it was mounted
        assert isinstance(version, VersionId)
        return Pinned(version)
    found = repository.resolve(begun_with.catalog, request.model, live.renew())
    if (warning := check_yanked(live.config.policy, request.model.model, found)) is not None:
        say(warning)
    version = version_id(request.model.model, found.version)
    if request.follow and found.tag is not None:
        return Followed(request.model.model, found.tag, version)
    if keeper is not None:
        keeper.state.keep_root(to_line(version))
    return Pinned(version)


def _warn_of_a_small_cache(config: Config, cache: Cache, chunk_size: int, say: Callable[[str], None]) -> None:
    """A cache that cannot hold a few chunks keeps nothing: every read goes to the store."""
    try:
        room = cache.room_for(())
    except NoSpace as error:
        say(f"warning: {_sentence(error)} Nothing is kept, every read goes to the store.")
        return
    if room < _LEAST_CHUNKS * chunk_size:
        free = cache.status().free_bytes
        say(f"warning: the cache can hold {show_size(room)}, {cache.directory}: cache.size is {config.cache.size}, and "
            f"of the {show_size(free)} free on its disk cache.min_free keeps {config.cache.min_free} of the disk. "
            f"Nearly every read will go to the store.")
        log_event(_LOG, "warning", "cache.small", directory=cache.directory, room_bytes=room, free_bytes=free,
                  size=config.cache.size, min_free=config.cache.min_free)


def _sentence(error: ModelfsError) -> str:
    """With a full stop, for more to follow: an error without advice has none."""
    line = str(error)
    return line if line.endswith((".", "?")) else f"{line}."


def _differences(old: Config, new: Config) -> list[str]:
    return [key for key in {**old.settings, **new.settings}
            if getattr(old.settings.get(key), "value", None) != getattr(new.settings.get(key), "value", None)]

"""The disk cache, for commands and for a mount that is asked: warmed, pinned, listed, cleared.

Rule: only `warm` asks a store, and it refuses what does not fit; the others work without a network. A command never
makes the cache of running mounts smaller: with mounts at the directory, their limits hold.
"""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Protocol

from modelfs.app.policy import check_yanked
from modelfs.app.repositories import deadline_of, naming_remotes, readable_at, reading_store_at, store_at
from modelfs.cache.cache import Cache
from modelfs.cache.contents import CachedFile, Removal
from modelfs.config import Config, PolicyConfig
from modelfs.daemon import control
from modelfs.errors import IntegrityError, ModelfsError, NoSpace, NotFound, Unavailable
from modelfs.ids import ModelRef
from modelfs.logs import log_event, logger_for
from modelfs.maintenance import cached
from modelfs.maintenance.cached import KnownVersion
from modelfs.metrics import Metrics
from modelfs.reading.fetcher import Fetcher
from modelfs.reading.versions import Versions
from modelfs.reading.warming import Warming, select
from modelfs.repository.catalog import Catalog
from modelfs.repository.repository import Repository
from modelfs.stores.retrying import Tell
from modelfs.units import Deadline, DiskShare

_LOG = logger_for(__name__)
_ANY, _NONE = DiskShare(size_bytes=1 << 62), DiskShare(size_bytes=0)
_TICK_S = 0.2
_COUNT_S = 60.0
_STATUS_S = 2.0
_ASK_S = 5.0


class Progress(Protocol):
    """cli.output.Progress, as far as it is needed here."""

    def advance(self, size_bytes: int) -> None: ...

    def total(self, size_bytes: int) -> None: ...


@dataclass(frozen=True, slots=True)
class Parts:
    """What warming needs; a mount has it all."""

    repository: Repository
    versions: Versions
    fetcher: Fetcher
    cache: Cache
    policy: PolicyConfig


@dataclass(frozen=True, slots=True)
class WarmRequest:
    """patterns: paths, directories or globs; none stands for all files."""

    ref: ModelRef
    patterns: tuple[str, ...] = ()
    pin: bool = False

    def fields(self) -> dict[str, Any]:
        return {"op": "warm", "model": str(self.ref), "paths": list(self.patterns), "pin": self.pin}

    @classmethod
    def of(cls, fields: Mapping[str, Any]) -> WarmRequest:
        return cls(ModelRef.parse(str(fields.get("model"))), tuple(map(str, fields.get("paths", ()))),
                   bool(fields.get("pin")))


class WarmingTask:
    """One version on its way into the cache. `done_bytes` of `total_bytes` tell how far `run` is."""

    def __init__(self, parts: Parts, request: WarmRequest, deadline: Deadline) -> None:
        """Finds the version, and loads what describes it. Raises NotFound, and what a store raises."""
        self._parts, self._request = parts, request
        repository = parts.repository
        catalog = repository.catalog(deadline).catalog
        found = repository.resolve(catalog, request.ref, deadline)
        self._warning = check_yanked(parts.policy, request.ref.model, found)
        repository.versions(found.history, deadline)
        self._version, self._history, self._catalog = found.version, found.history, catalog
        loaded = parts.versions.load(found.version.manifest)
        self._manifest = loaded.manifest
        remember_catalog(parts.cache, repository, catalog, deadline)
        numbers = select(self._manifest, request.patterns)
        self._warming = Warming(loaded, numbers, parts.cache, parts.fetcher, pin=request.pin)
        self.total_bytes, self.stop = self._warming.total_bytes, self._warming.stop

    @property
    def done_bytes(self) -> int:
        return self._warming.done_bytes

    def run(self) -> dict[str, Any]:
        """What `cache warm --json` shows. Raises NoSpace, and what a store raises."""
        warmed, parts, model = self._warming.run(), self._parts, self._request.ref.model
        held = cached.keep(parts.cache, parts.repository, self._catalog, self._history, self._version.number,
                           self._manifest)
        if not held:
            raise NoSpace("the cache does not keep what describes the version", where=str(parts.cache.directory),
                          why="its manifest, layout or catalog is not in it", advice="Give the cache more room.")
        return {"model": str(model), "version": self._version.name, "pinned": self._request.pin, **asdict(warmed),
                "warning": self._warning}


def remember_catalog(cache: Cache, repository: Repository, catalog: Catalog, deadline: Deadline) -> bool:
    """The catalog from which a mount without a network will start, unless it names histories that cannot be had."""
    try:
        known = repository.cached_catalog()
    except IntegrityError:
        known = None
    if known is not None and known.serial > catalog.serial:
        return False
    if not cached.follow(cache, repository, catalog, deadline):
        log_event(_LOG, "warning", "catalog.not_kept", store=repository.store.url, serial=catalog.serial,
                  why="the history of a warmed model cannot be had")
        return False
    repository.remember_catalog(catalog)
    return True


def warm_for(parts: Parts, fields: Mapping[str, Any], deadline: Deadline) -> Iterator[dict[str, Any]]:
    """A mount's answer to `{"op": "warm"}`: lines of progress, then the summary. Whoever stops listening stops it."""
    task = WarmingTask(parts, WarmRequest.of(fields), deadline)
    result: list[dict[str, Any] | BaseException] = []
    ended = threading.Event()

    def run() -> None:
        try:
            result.append(task.run())
        except Exception as error:  # raised again by the thread that answers
            result.append(error)
        finally:
            ended.set()

    threading.Thread(target=run, name="warm", daemon=True).start()
    try:
        while not ended.wait(_TICK_S):
            yield {"done_bytes": task.done_bytes, "total_bytes": task.total_bytes}
    finally:
        task.stop()
    outcome = result[0]
    if isinstance(outcome, BaseException):
        raise outcome
    yield {"done_bytes": task.total_bytes, "total_bytes": task.total_bytes, "warmed": outcome}


def warm(config: Config, spec: str, request: WarmRequest, environ: Mapping[str, str], progress: Progress,
         tell: Tell) -> dict[str, Any]:
    """Through a running mount that has this cache and repository, so that counters and limits are its; else here."""
    found = _mount_with(config.cache.directory, store_at(config, spec).url, environ)
    if found is None:
        return {**_warm_here(config, spec, request, progress, tell), "through": None}
    socket, mountpoint = found
    done = 0
    for line in control.stream(socket, request.fields()):
        progress.total(int(line["total_bytes"]))
        if int(line["done_bytes"]) > done:
            progress.advance(int(line["done_bytes"]) - done)
            done = int(line["done_bytes"])
        if "warmed" in line:
            return {**line["warmed"], "through": mountpoint}
    raise Unavailable("the mount did not finish", where=mountpoint)


def url_of(config: Config, spec: str) -> str:
    """By which the cache knows a REPO argument. Raises BadInput."""
    return store_at(config, spec).url


@contextmanager
def cache_of(config: Config) -> Iterator[Cache]:
    """The directory as it is: no limit of ours, so nothing is evicted because a command looked at it."""
    cache = Cache(config.cache.directory, _ANY, _NONE, Metrics())
    try:
        yield cache
    finally:
        cache.close()


@dataclass(frozen=True, slots=True)
class Listed:
    """One file of the cache. of: the versions that have it, the newest first, each with its path there."""

    file: CachedFile
    of: tuple[tuple[KnownVersion, str], ...]


def listing(cache: Cache, url: str | None, ref: ModelRef | None) -> list[Listed]:
    """What is in the cache of everything, a repository, or a model. Raises NotFound where nothing is known of those."""
    owners: dict[str, list[tuple[KnownVersion, str]]] = {}
    for version in _versions(cache, url, ref):
        for path, file in version.files(cache):
            owners.setdefault(file.name, []).append((version, path))
    return [Listed(file, tuple(owners.get(file.name, ()))) for file in cache.contents()
            if url is None or file.name in owners]


@dataclass(frozen=True, slots=True)
class Pinning:
    """paths: that are pinned now (or were, by `unpin`); missing: that lie in the cache in part or not at all."""

    model: str
    versions: tuple[str, ...]
    paths: tuple[str, ...]
    missing: tuple[str, ...]
    bytes: int


def pin(cache: Cache, config: Config, spec: str, ref: ModelRef, patterns: Sequence[str], tell: Tell) -> Pinning:
    """Pin what is there. Which version is meant is asked of the store, briefly, and else of the cache.

    Raises NotFound for what is not known.
    """
    version = _current(cache, config, spec, ref, tell)
    paths, missing, size = [], [], 0
    for path, file in version.files(cache, patterns):
        here = file.cached_bytes()
        if here:
            if not file.pin():
                raise NoSpace("cannot pin", where=str(cache.directory), why="the cache cannot note it")
            paths.append(path)
            size += here
        if here < file.size:
            missing.append(path)
    if paths:
        cached.hold(cache, version)
    return Pinning(str(ref.model), (version.name,), tuple(paths), tuple(missing), size)


def unpin(cache: Cache, url: str, ref: ModelRef, patterns: Sequence[str]) -> Pinning:
    """Without tag and version: in all versions of the model. Raises NotFound."""
    paths: dict[str, None] = {}
    names, size = [], 0
    for version in cached.known_versions(cache, url, ref):
        with _unknown_elsewhere(patterns):
            for path, file in version.files(cache, patterns):
                if file.pinned and file.unpin():
                    paths[path] = None
                    size += file.cached_bytes()
                    names.append(version.name)
            if not any(file.pinned for _, file in version.files(cache)):
                cached.let_go(cache, version)
    return Pinning(str(ref.model), tuple(dict.fromkeys(names)), tuple(paths), (), size)


@dataclass(frozen=True, slots=True)
class Cleared:
    files: int
    freed_bytes: int
    kept_pinned: int
    kept_in_use: int


def clear(cache: Cache, url: str | None, ref: ModelRef | None) -> Cleared:
    """Remove what is not pinned: all, of a repository, or of a model. Raises NotFound."""
    counts, freed = Counter[Removal](), 0
    for listed in listing(cache, url, ref):
        outcome = cache.remove(listed.file.name)
        counts[outcome] += 1
        freed += listed.file.disk_bytes if outcome is Removal.REMOVED else 0
    if url is None:
        cache.meta.clear()
    return Cleared(counts[Removal.REMOVED], freed, counts[Removal.PINNED], counts[Removal.IN_USE])


def _warm_here(config: Config, spec: str, request: WarmRequest, progress: Progress, tell: Tell) -> dict[str, Any]:
    metrics = Metrics()
    with cache_of(config) as cache:
        if cache.status().limit_bytes == _ANY.size_bytes:  # no mount has a limit here, so ours holds
            cache.set_limits(config.cache.size, config.cache.min_free)
        cache.wait_until_counted(_COUNT_S)
        repository = readable_at(config, spec, metrics, cache.meta, tell=tell)
        fetcher = Fetcher(cache, metrics, connections=config.fetch.connections,
                          memory_bytes=config.fetch.memory_bytes, deadline_s=config.fetch.deadline_s, patient=True)
        try:
            versions = Versions(repository, cache, lambda: deadline_of(config).patient())
            parts = Parts(repository, versions, fetcher, cache, config.policy)
            task = WarmingTask(parts, request, deadline_of(config).patient())
            progress.total(task.total_bytes)
            with _shown(task, progress):
                return task.run()
        finally:
            fetcher.close()


@contextmanager
def _shown(task: WarmingTask, progress: Progress) -> Iterator[None]:
    """Tells progress how far task is, from a thread of its own."""
    ended = threading.Event()

    def show() -> None:
        done = 0
        while not ended.wait(_TICK_S):
            now = task.done_bytes
            progress.advance(max(0, now - done))
            done = max(now, done)

    thread = threading.Thread(target=show, name="progress", daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()


def _mount_with(directory: Path, url: str, environ: Mapping[str, str]) -> tuple[Path, str] | None:
    """Control socket and mount point of a mount with this cache and repository."""
    for socket in control.sockets(environ):
        try:
            found = control.ask(socket, {"op": "status"}, _STATUS_S).fields
        except ModelfsError:  # dead, or too busy: the directory may be shared with it anyway
            continue
        if found.get("repository") == url and _same(Path(found["cache"]["directory"]), directory):
            return socket, str(found["mountpoint"])
    return None


def _same(one: Path, other: Path) -> bool:
    try:
        return one.samefile(other)
    except OSError:
        return False


def _versions(cache: Cache, url: str | None, ref: ModelRef | None) -> Iterator[KnownVersion]:
    if url is not None:
        yield from cached.known_versions(cache, url, ref)
        return
    for known in cached.known_repositories(cache):
        with suppress(NotFound):
            yield from cached.known_versions(cache, known)


def _current(cache: Cache, config: Config, spec: str, ref: ModelRef, tell: Tell) -> KnownVersion:
    """The version that ref names now, if the store says so soon, else the one that it named when it was asked last."""
    store = reading_store_at(config, spec, tell=tell)
    deadline = deadline_of(config).sooner(_ASK_S)
    try:
        with naming_remotes(config, spec):
            repository = Repository.open(store, deadline, cache.meta)
        catalog = repository.catalog(deadline).catalog
        found = repository.resolve(catalog, ref, deadline)
        manifest = repository.manifest(found.version.manifest, deadline)
        remember_catalog(cache, repository, catalog, deadline)
        return KnownVersion(store.url, ref.model, found.version.number, manifest)
    except Unavailable:
        if ref.tag is None and ref.version is None:
            ref = replace(ref, tag="latest")
        return cached.known_versions(cache, store.url, ref)[0]


@contextmanager
def _unknown_elsewhere(patterns: Sequence[str]) -> Iterator[None]:
    """A path may be in one version and not in another."""
    try:
        yield
    except NotFound:
        if not patterns:
            raise

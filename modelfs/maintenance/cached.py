"""What the disk cache holds, by name: which of its files belong to which version of which model.

Rule: no store is asked. Names come from the catalogs, histories and manifests that the cache itself keeps, and from
two short records in it: which repositories it has seen, and which versions of each were warmed or pinned.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field

from modelfs.cache.cache import Cache
from modelfs.cache.cache_file import CacheFile
from modelfs.errors import BadInput, IntegrityError, ModelfsError, NotFound, Unavailable
from modelfs.ids import ModelName, ModelRef, ObjectId
from modelfs.maintenance.silent import SilentStore
from modelfs.reading.warming import kept_files, select
from modelfs.repository.catalog import Catalog
from modelfs.repository.history import History, Version
from modelfs.repository.manifest import Manifest
from modelfs.repository.repository import ObjectCache, Repository
from modelfs.units import Deadline

_STORES, _STORES_NAME = "known", "repositories"
_KEPT = "kept"
_MAX_STORES, _MAX_VERSIONS = 256, 4096


@dataclass(frozen=True, slots=True)
class KnownVersion:
    """A version whose manifest the cache has. repository: its URL."""

    repository: str
    model: ModelName
    number: int
    manifest: Manifest = field(repr=False)

    @property
    def name(self) -> str:
        return f"v{self.number}"

    def files(self, cache: Cache, patterns: Iterable[str] = ()) -> Iterator[tuple[str, CacheFile]]:
        """Path and cache file, of those that have any bytes. Raises NotFound for a pattern that names nothing."""
        for number, file in kept_files(self.manifest, select(self.manifest, list(patterns)), cache).items():
            yield self.manifest.path_bytes(number).decode(), file


@dataclass(slots=True)
class _Kept:
    """The record of one repository: warmed versions, and the history of each of their models that the cache keeps."""

    versions: dict[tuple[ModelName, int], ObjectId] = field(default_factory=dict)
    histories: dict[ModelName, ObjectId] = field(default_factory=dict)

    @classmethod
    def parse(cls, data: bytes | None) -> _Kept:
        """Whatever is not as it should be was never noted: the record only helps."""
        found = cls()
        with suppress(ValueError, TypeError, KeyError, AttributeError, BadInput):
            fields = json.loads(data or b"{}")
            found.histories = {ModelName.parse(model): ObjectId.from_hex(digest)
                               for model, digest in fields.get("histories", {}).items()}
            found.versions = {(ModelName.parse(one["model"]), int(one["version"])): ObjectId.from_hex(one["manifest"])
                              for one in fields.get("versions", [])}
        return found

    def serialise(self) -> bytes:
        newest = list(self.versions.items())[-_MAX_VERSIONS:]
        return json.dumps({
            "histories": {str(model): digest.hex() for model, digest in self.histories.items()},
            "versions": [{"model": str(model), "version": number, "manifest": manifest.hex()}
                         for (model, number), manifest in newest]}).encode()


def note_repository(cache: Cache, url: str) -> None:
    """So that `known_repositories` has it."""
    def add(data: bytes | None) -> bytes:
        urls = _urls(data)
        return data if data and url in urls else json.dumps([*urls, url][-_MAX_STORES:]).encode()

    cache.meta.update(_STORES, _STORES_NAME, add)
    cache.meta.pin(_STORES, _STORES_NAME)


def known_repositories(cache: Cache) -> list[str]:
    return _urls(cache.meta.get(_STORES, _STORES_NAME))


def known_versions(cache: Cache, url: str, ref: ModelRef | None = None) -> list[KnownVersion]:
    """Of one repository, newest first; of ref, which without tag and version means all versions of its model.

    Raises NotFound where the cache knows none.
    """
    repository, catalog = _remembered(cache, url)
    if ref is not None and (ref.tag or ref.version):
        return [_only(cache, repository, catalog, ref)]
    found: dict[tuple[ModelName, int], KnownVersion] = {}
    for model, number, manifest in _rows(cache, repository, catalog, ref.model if ref else None):
        with suppress(Unavailable, IntegrityError):
            if (model, number) not in found:
                found[model, number] = KnownVersion(url, model, number, repository.manifest(manifest, Deadline(0)))
    if ref is not None and not found:
        if catalog is not None:
            with suppress(Unavailable):
                repository.history(catalog, ref.model, Deadline(0))  # a wrong name is told with the nearest
        raise _nothing(cache, f"{ref.model} of {url}")
    return sorted(found.values(), key=lambda one: (one.model, -one.number))


def keep(cache: Cache, repository: Repository, catalog: Catalog, history: History, number: int,
         manifest: Manifest) -> bool:
    """Hold the metadata of a version, whatever else needs room, so that a mount of it can start without the store.

    Returns whether all of it is in the cache. Its history is followed from now on (`follow`).
    """
    meta, model = cache.meta, history.model
    digest = catalog.models.get(model)
    held = all([meta.pin("info", repository.store.url), meta.pin("catalog", repository.info.id),
                digest is not None and _pin_history(cache, digest, history),
                meta.pin("manifest", manifest.id.hex()), meta.pin("layout", manifest.id.hex())])

    def add(data: bytes | None) -> bytes:
        kept = _Kept.parse(data)
        kept.versions[model, number] = manifest.id
        if digest is not None:
            kept.histories[model] = digest
        return kept.serialise()

    meta.update(_KEPT, repository.info.id, add)
    note_repository(cache, repository.store.url)
    return meta.pin(_KEPT, repository.info.id) and held


def hold(cache: Cache, version: KnownVersion) -> None:
    """The metadata of a version of which something is pinned now, if the cache has it."""
    repository, catalog = _remembered(cache, version.repository)
    with suppress(NotFound, Unavailable, IntegrityError):
        if catalog is not None:
            history = repository.history(catalog, version.model, Deadline(0))
            keep(cache, repository, catalog, history, version.number, version.manifest)


def let_go(cache: Cache, version: KnownVersion) -> None:
    """The metadata of a version of which nothing is pinned any more may be dropped."""
    for kind in ("manifest", "layout"):
        cache.meta.unpin(kind, version.manifest.id.hex())


def follow(cache: Cache, repository: Repository, catalog: Catalog, deadline: Deadline) -> bool:
    """Before a newer catalog is remembered: fetch the histories that it names for models that were warmed.

    False where one could not be had. Then the older catalog stays the one that a mount without a network starts
    from: with the newer one it would not find those models.
    """
    before = _Kept.parse(cache.meta.get(_KEPT, repository.info.id))
    moved: dict[ModelName, ObjectId] = {}
    for model, digest in before.histories.items():
        now = catalog.models.get(model)
        if now is None or now == digest:
            continue
        try:
            history = repository.history_at(now, model, deadline)
            repository.versions(history, deadline)
        except ModelfsError:
            return False
        _pin_history(cache, now, history)
        moved[model] = now
    if moved:
        def change(data: bytes | None) -> bytes:
            kept = _Kept.parse(data)
            kept.histories.update(moved)
            return kept.serialise()

        cache.meta.update(_KEPT, repository.info.id, change)
        for model in moved:
            cache.meta.unpin("history", before.histories[model].hex())
    return True


def _pin_history(cache: Cache, digest: ObjectId, history: History) -> bool:
    pinned = [cache.meta.pin("history", each.hex()) for each in (digest, *(part.digest for part in history.segments))]
    return all(pinned)


def _urls(data: bytes | None) -> list[str]:
    with suppress(ValueError):
        found = json.loads(data or b"[]")
        if isinstance(found, list):
            return [url for url in found if isinstance(url, str)]
    return []


def _remembered(cache: Cache, url: str) -> tuple[Repository, Catalog | None]:
    objects: ObjectCache = cache.meta
    with suppress(IntegrityError):
        repository = Repository.open_cached(SilentStore(url), objects)
        if repository is not None:
            return repository, repository.cached_catalog()
    raise _nothing(cache, url)


def _rows(cache: Cache, repository: Repository, catalog: Catalog | None,
          model: ModelName | None) -> Iterator[tuple[ModelName, int, ObjectId]]:
    """Number and manifest of every version that is known: by the histories, then by the record of what was warmed."""
    for name, digest in (catalog.models if catalog is not None else {}).items():
        if model in (None, name):
            with suppress(Unavailable, IntegrityError):
                history = repository.history_at(digest, name, Deadline(0))
                for row in _all_rows(repository, history):
                    yield name, row.number, row.manifest
    kept = _Kept.parse(cache.meta.get(_KEPT, repository.info.id))
    for (name, number), manifest in kept.versions.items():
        if model in (None, name):
            yield name, number, manifest


def _all_rows(repository: Repository, history: History) -> list[Version]:
    try:
        return repository.versions(history, Deadline(0))
    except Unavailable:  # of its older, sealed rows
        return list(history.versions)


def _only(cache: Cache, repository: Repository, catalog: Catalog | None, ref: ModelRef) -> KnownVersion:
    url, number = repository.store.url, ref.version
    try:
        if catalog is not None:
            found = repository.resolve(catalog, ref, Deadline(0)).version
            return KnownVersion(url, ref.model, found.number, repository.manifest(found.manifest, Deadline(0)))
    except Unavailable:
        pass  # its history is not here; the record may have it
    except NotFound:
        if number is None:
            raise
    kept = _Kept.parse(cache.meta.get(_KEPT, repository.info.id))
    manifest = kept.versions.get((ref.model, number or 0))
    if manifest is not None and number is not None:
        with suppress(Unavailable, IntegrityError):
            return KnownVersion(url, ref.model, number, repository.manifest(manifest, Deadline(0)))
    raise _nothing(cache, f"{ref} of {url}")


def _nothing(cache: Cache, what: str) -> NotFound:
    return NotFound(f"nothing is known of {what}", where=str(cache.directory),
                    why="the cache has no manifest of it", advice="`modelfs cache warm` fetches a model into it.")

"""The models, versions and tags that a view shows: one catalog, and the histories that were asked for.

Rule: what is seen is swapped as a whole and never goes back: a catalog older than the one in use is refused, and
a model whose new history cannot be had stays at the old one until it can.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import partial
from types import MappingProxyType

from modelfs.errors import BadInput, IntegrityError, ModelfsError, NotFound, Unavailable
from modelfs.ids import ModelName, ObjectId
from modelfs.logs import log_event, logger_for
from modelfs.maintenance.silent import SilentStore
from modelfs.reading.shared_loads import SharedLoads
from modelfs.repository.catalog import Catalog
from modelfs.repository.history import Version
from modelfs.repository.repository import Repository
from modelfs.units import Deadline, seconds_of
from modelfs.view.tree import VersionId

_LOG = logger_for(__name__)


@dataclass(frozen=True, slots=True)
class Shelf:
    """One model, as the history with this digest has it. versions: by number; tags: to numbers that are there.
    yanked: why a version was withdrawn, by number."""

    model: ModelName
    history: ObjectId
    versions: Mapping[int, VersionId]
    tags: Mapping[str, int]
    decoded_bytes: int
    yanked: Mapping[int, str]


@dataclass(frozen=True, slots=True)
class Shelves:
    """catalog: the newest one seen. shelves: of models that were asked for. organisations: to their models' names."""

    catalog: Catalog
    created_ns: int
    organisations: Mapping[str, tuple[str, ...]]
    shelves: Mapping[ModelName, Shelf]

    @property
    def pending(self) -> list[ModelName]:
        """Models whose shelf is older than the catalog says."""
        models = self.catalog.models
        return [name for name, shelf in self.shelves.items() if name in models and models[name] != shelf.history]


class Library:
    """Holds the `Shelves` in use. Reading them takes no lock; loading a shelf holds up nobody else."""

    def __init__(self, repository: Repository, catalog: Catalog, renew: Callable[[], Deadline]) -> None:
        """renew: a deadline from now, for the loading of one shelf."""
        self._repository, self._renew = repository, renew
        self._cached = Repository(SilentStore(repository.store.url), repository.info, repository.cache)
        self._loads = SharedLoads[tuple[ModelName, ObjectId], None](repository.store.url, renew)
        self._lock = threading.Lock()
        self._now = _shelves(catalog, {})  # replaced under _lock, read without

    @property
    def now(self) -> Shelves:
        return self._now

    def yanked(self, version: VersionId) -> str | None:
        """Why a version was withdrawn, as far as the shelf of its model is loaded; None where it was not."""
        shelf = self._now.shelves.get(version.model)
        return shelf.yanked.get(version.number) if shelf is not None else None

    def shelf(self, model: ModelName) -> Shelf:
        """Loaded at the first call for a model, from memory then. Raises NotFound, and what a store raises."""
        while True:
            now = self._now
            digest = now.catalog.models.get(model)
            if digest is None:
                raise NotFound(f"no model {model}")
            found = now.shelves.get(model)
            if found is not None:
                return found
            self._loads.once((model, digest), f"history of {model}", partial(self._load, model, digest))

    def update(self, catalog: Catalog) -> bool:
        """Take a newer catalog, with new shelves for the models that were asked for, or whose old history is in the
        cache. Returns whether anything is still to be done (a history that could not be had): then call again with
        the same catalog.

        An older catalog, and another one with the same serial, are logged and change nothing.
        """
        old = self._now.catalog
        forked = catalog.serial == old.serial and bool(old.payload) and catalog.payload != old.payload
        if catalog.serial < old.serial or forked:
            log_event(_LOG, "warning", "catalog.older", store=self._repository.store.url, seen=old.serial,
                      offered=catalog.serial, why="another catalog with this serial was seen" if forked else
                      "a newer one was seen; the newest stays in use")
            return False
        self._keep_cached(catalog)
        fresh, late = self._read_newer(catalog)
        with self._lock:
            shelves = {model: shelf for model, shelf in self._now.shelves.items() if model in catalog.models}
            if late in shelves:
                shelves[late] = shelves.pop(late)  # last at the next call, so that it cannot keep all others back
            self._now = _shelves(catalog, {**shelves, **fresh})
        return bool(self._now.pending)

    def _keep_cached(self, catalog: Catalog) -> None:
        """Of models that the catalog moves and nobody asked for: a shelf, if the cache has the history that is named
        now. So a store that has no more than a catalog for us takes nothing away that could be read before."""
        old = self._now
        for model, digest in old.catalog.models.items():
            if model not in old.shelves and catalog.models.get(model, digest) != digest:
                with suppress(Unavailable, IntegrityError):
                    self._put(self._read(self._cached, model, digest))

    def _read_newer(self, catalog: Catalog) -> tuple[dict[ModelName, Shelf], ModelName | None]:
        """The shelves that the catalog moves, and the model at which the store did not answer: it is not asked for the
        rest, since each could take as long."""
        fresh: dict[ModelName, Shelf] = {}
        for model, shelf in self._now.shelves.items():
            digest = catalog.models.get(model)
            if digest is None or digest == shelf.history:
                continue
            try:
                fresh[model] = self._read(self._repository, model, digest)
            except ModelfsError as error:
                log_event(_LOG, "warning", "history.unusable", model=model, why=str(error))
                if isinstance(error, Unavailable):
                    return fresh, model
        return fresh, None

    def _load(self, model: ModelName, digest: ObjectId) -> None:
        """For `shelf`, which looks again: the catalog may move meanwhile, and then this shelf is not put."""
        now = self._now
        if now.catalog.models.get(model) == digest and model not in now.shelves:
            self._put(self._read(self._repository, model, digest))

    def _put(self, shelf: Shelf) -> None:
        """Unless the catalog names another history by now, or the model is there."""
        with self._lock:
            now = self._now
            if now.catalog.models.get(shelf.model) == shelf.history and shelf.model not in now.shelves:
                self._now = replace(now, shelves=MappingProxyType({**now.shelves, shelf.model: shelf}))

    def _read(self, repository: Repository, model: ModelName, digest: ObjectId) -> Shelf:
        deadline = self._renew()
        history = repository.history_at(digest, model, deadline)
        rows = repository.versions(history, deadline)
        versions = {row.number: version_id(model, row) for row in reversed(rows)}
        tags = {tag: number for tag, number in history.live_tags.items() if number in versions}
        return Shelf(model, digest, MappingProxyType(versions), MappingProxyType(tags),
                     sum(row.decoded_bytes for row in rows), MappingProxyType(history.yanked))


def version_id(model: ModelName, row: Version) -> VersionId:
    return VersionId(model, row.number, row.manifest, _moment_ns(row.created))


def _shelves(catalog: Catalog, shelves: dict[ModelName, Shelf]) -> Shelves:
    organisations: dict[str, list[str]] = {}
    for model in sorted(catalog.models):
        organisations.setdefault(model.org, []).append(model.name)
    return Shelves(catalog, _moment_ns(catalog.created),
                   MappingProxyType({org: tuple(names) for org, names in organisations.items()}),
                   MappingProxyType(shelves))


def _moment_ns(created: str) -> int:
    """Only shown, so one that cannot be read is the epoch rather than a mount that fails."""
    try:
        return int(seconds_of(created) * 1e9)
    except BadInput:
        return 0

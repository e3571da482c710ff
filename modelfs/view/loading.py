"""How a view comes by histories and manifests: by waiting for them, or, for callers that must not wait, not.

Rule: what is in memory is handed out at once by either; only loading differs.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Protocol

from modelfs.ids import ModelName, ObjectId
from modelfs.reading.versions import LoadedVersion
from modelfs.repository.catalog import Catalog
from modelfs.view.shelves import Shelf, Shelves
from modelfs.view.tree import VersionId


class Loader(Protocol):
    """reading.versions.Versions, as a view needs it."""

    def load(self, manifest_id: ObjectId) -> LoadedVersion: ...

    def loaded(self, manifest_id: ObjectId) -> LoadedVersion | None: ...


class Library(Protocol):
    """shelves.Library, as a view needs it."""

    @property
    def now(self) -> Shelves: ...

    def shelf(self, model: ModelName) -> Shelf: ...

    def yanked(self, version: VersionId) -> str | None: ...

    def update(self, catalog: Catalog) -> bool: ...


class NotLoaded(Exception):
    """Raised by a view from memory: `load` (which may take as long as a network does, and raises ModelfsError) is to
    be called first, once for all who wait for the same key."""

    def __init__(self, key: object, load: Callable[[], object]) -> None:
        super().__init__(key)
        self.key, self.load = key, load


class VersionsInMemory:
    """A Loader that never waits."""

    def __init__(self, versions: Loader) -> None:
        self._versions = versions

    def loaded(self, manifest_id: ObjectId) -> LoadedVersion | None:
        return self._versions.loaded(manifest_id)

    def load(self, manifest_id: ObjectId) -> LoadedVersion:
        found = self._versions.loaded(manifest_id)
        if found is None:
            raise NotLoaded(manifest_id, partial(self._versions.load, manifest_id))
        return found


class ShelvesInMemory:
    """A Library that never waits."""

    def __init__(self, library: Library) -> None:
        self._library = library

    @property
    def now(self) -> Shelves:
        return self._library.now

    def update(self, catalog: Catalog) -> bool:
        return self._library.update(catalog)

    def yanked(self, version: VersionId) -> str | None:
        return self._library.yanked(version)

    def shelf(self, model: ModelName) -> Shelf:
        now = self.now
        if model in now.catalog.models and model not in now.shelves:
            raise NotLoaded(model, partial(self._library.shelf, model))
        return self._library.shelf(model)

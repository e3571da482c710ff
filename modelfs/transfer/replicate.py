"""Replicate: a repository, or some of its models, brought to another store and kept like it.

Rule: immutable objects before the catalog, which the replica gets to the byte of its payload, so that whatever covers
that (a signature) holds there, too; until then a replica shows what it did. Changes that a store has of its own, since
it was the primary once, are merged into the source before it becomes a replica: nothing is lost.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

from modelfs.errors import Conflict, ObjectMissing
from modelfs.ids import ModelName, ObjectId
from modelfs.repository import catalog as catalogs
from modelfs.repository import keys
from modelfs.repository.catalog import Catalog
from modelfs.repository.changing import Renew, swap_catalog, until_swapped
from modelfs.repository.info import parse_info
from modelfs.repository.layout import Layout
from modelfs.repository.manifest import Manifest
from modelfs.repository.repository import CatalogState, NoCache, Repository
from modelfs.stores.store import ObjectStore
from modelfs.transfer.copying import Copier, CopyProgress, index_of, packs_of
from modelfs.transfer.reconcile import Reconciled, reconcile
from modelfs.units import MiB, rfc3339

_MAX_INFO_BYTES = MiB


@dataclass(frozen=True, slots=True)
class ReplicateReport:
    """What `replicate --json` shows of one destination. behind: how many changes it lacked when this began; changed:
    whether its catalog moved. reconciled: what was merged into the source because only the destination had it."""

    source: str
    destination: str
    serial: int
    behind: int
    changed: bool
    models: int
    versions: int
    packs: int
    bytes: int
    known_bytes: int
    elapsed_s: float
    reconciled: list[Reconciled] = field(default_factory=list)


def replicate(source: Repository, target: ObjectStore, renew: Renew, *, models: Sequence[ModelName] = (),
              progress: CopyProgress | None = None, tell: Callable[[str], None] = lambda line: None) -> ReplicateReport:
    """models: only these, from now on, beside those that the replica has; without any, all.

    Raises Conflict where the target is another repository, or one that holds less than all and takes changes itself;
    NotFound; IntegrityError where the source is not what it should be; NoSpace, Forbidden, Unavailable.
    """
    began = time.monotonic()
    copier = Copier(source, target, renew, progress or CopyProgress())
    merged: list[Reconciled] = []

    def attempt(state: CatalogState) -> ReplicateReport:
        there = _standing(source, target, renew)
        if there is not None and there.catalog.replica_of is None and state.catalog.replica_of is not None:
            raise Conflict("the destination takes changes itself", where=target.url,
                           why=f"and {source.store.url} is only a replica of {state.catalog.replica_of}",
                           advice="Replicate the other way, or `modelfs promote` the source first.")
        if there is not None and there.catalog.replica_of is None and (there.catalog.models or there.catalog.removed):
            merged.extend(reconcile(source, Repository(target, source.info, NoCache()), renew, tell))
            state = source.catalog(renew())
        new, changed = _Run(copier, state.catalog, there, models).run()
        done = copier.done
        behind = state.catalog.serial - (there.catalog.serial if there else 0)
        return ReplicateReport(source.store.url, target.url, new.serial, max(behind, 0), changed, len(new.models),
                               done.versions, done.packs, done.bytes, done.known,
                               round(time.monotonic() - began, 3), merged)

    # Begun again where another replication was first, or the source moved on and gc took what its old catalog named.
    return until_swapped(source, f"replication to {target.url}", renew, attempt)


def _standing(source: Repository, target: ObjectStore, renew: Renew) -> CatalogState | None:
    """The target's catalog; None where it has none yet: then it is a repository from now on. Raises Conflict."""
    try:
        fetched = target.get(keys.INFO, renew(), limit=_MAX_INFO_BYTES, fresh=True)
    except ObjectMissing:
        target.put(keys.INFO, source.info.serialise(), renew(), only_if_absent=True)
        return None
    assert fetched is not None
    if parse_info(bytes(fetched.data), target.url).id != source.info.id:
        raise Conflict("another repository", where=target.url, why=f"it is none of {source.store.url}",
                       advice="Replicate to an empty place.")
    try:
        found = target.get(keys.CATALOG, renew(), limit=catalogs.MAX_CATALOG_BYTES, fresh=True)
    except ObjectMissing:
        return None
    assert found is not None
    return CatalogState(catalogs.parse(bytes(found.data)), found.etag)


class _Run:
    """One pass. there: the target's catalog as it stood."""

    def __init__(self, copier: Copier, wanted: Catalog, there: CatalogState | None,
                 models: Sequence[ModelName]) -> None:
        self.copier, self.source, self.renew = copier, copier.source, copier.renew
        self.wanted, self.there = wanted, there
        held = there.catalog.held if there else None
        self.holds: frozenset[ModelName] | None = None  # all
        if models:
            for model in models:
                self.source.history(wanted, model, self.renew())  # raises NotFound, with the nearest names
            if there is None or held is not None:
                self.holds = frozenset(models) | (held or frozenset())

    def run(self) -> tuple[Catalog, bool]:
        """The target's new catalog, and whether it differs from the old. Raises SwapLost."""
        fresh: list[tuple[Manifest, Layout]] = []
        indexes = list(self.there.catalog.indexes) if self.there and self.holds is not None else []
        lacking = [] if self.holds is not None else [id for id in self.wanted.indexes
                                                      if not self.copier.has(keys.index(id))]
        self._indexed_packs(lacking)
        for digest, model in self._histories():
            if not self.copier.has(keys.history(digest)):
                fresh += self._model(digest, model)
        if self.holds is not None and fresh:
            data = index_of(fresh)
            self.copier.put(keys.index(ObjectId.of(data)), data)
            indexes.append(ObjectId.of(data))
        for id in lacking:
            self.copier.small(keys.index(id), id)
        indexes += self.wanted.indexes if self.holds is None else ()
        return self._swap(tuple(indexes))

    def _indexed_packs(self, indexes: Sequence[ObjectId]) -> None:
        """All that these name, dead ones too: an index is copied as it is."""
        packs: dict[ObjectId, None] = {}
        for id in indexes:
            packs.update(dict.fromkeys(packs_of(self.source.index(id, self.renew()))))
        self.copier.packs(packs)

    def _histories(self) -> list[tuple[ObjectId, ModelName]]:
        found = {**self.wanted.models, **self.wanted.removed}
        return [(digest, model) for model, digest in found.items() if self.holds is None or model in self.holds]

    def _model(self, digest: ObjectId, model: ModelName) -> list[tuple[Manifest, Layout]]:
        """All versions of a model that the target lacks, then its history."""
        rows = self.source.history_at(digest, model, self.renew())
        fresh: list[tuple[Manifest, Layout]] = []
        for row in self.source.versions(rows, self.renew()):
            if not self.copier.has(keys.manifest(row.manifest)):
                fresh.append(self.copier.version(row.manifest))
        for part in rows.segments:
            if not self.copier.has(keys.history(part.digest)):
                self.copier.small(keys.history(part.digest), part.digest)
        self.copier.small(keys.history(digest), digest)
        return fresh

    def _swap(self, indexes: tuple[ObjectId, ...]) -> tuple[Catalog, bool]:
        old = self.there.catalog if self.there else None
        named = self.copier.written | {keys.index(id) for id in indexes}
        dropped = {key: when for key, when in (old.dropped if old else {}).items() if key not in named}
        holds = None if self.holds is None else sorted(str(model) for model in self.holds)
        new = replace(self.wanted, indexes=indexes, dropped=dropped, holds=holds, replica_of=self.source.store.url,
                      others=dict(old.others) if old else {})
        text = new.serialise()
        if old is not None and text == old.serialise():
            return new, False
        self.copier.target.swap(keys.CATALOG, self.there.etag if self.there else None, text, self.renew())
        return new, True


def promote(repository: Repository, renew: Renew) -> Catalog:
    """A replica takes changes itself from now on. Raises Conflict where it is none, or holds less than all."""
    def attempt(state: CatalogState) -> Catalog:
        if state.catalog.replica_of is None:
            raise Conflict("no replica", where=repository.store.url, why="it takes changes already")
        if state.catalog.holds is not None:
            raise Conflict("a replica that holds only some models", where=repository.store.url,
                           advice="Replicate all of it first.")
        new = replace(state.catalog, replica_of=None).next(rfc3339(time.time()))
        return swap_catalog(repository, state, new, renew).catalog

    return until_swapped(repository, "promotion", renew, attempt)

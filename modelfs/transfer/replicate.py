"""Replicate: a repository, or some of its models, brought to another store and kept like it.

Rule: immutable objects before the catalog, which the replica gets to the byte of its payload, so that whatever covers
that (a signature) holds there, too; until then a replica shows what it did. Changes that a store has of its own, since
it was the primary once, are merged into the source before it becomes a replica: nothing is lost.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property

from modelfs.errors import BadInput, Conflict, IntegrityError, ObjectMissing
from modelfs.ids import ModelName, ObjectId
from modelfs.repository import catalog as catalogs
from modelfs.repository import keys
from modelfs.repository.catalog import Catalog
from modelfs.repository.changing import Renew, swap_catalog, until_swapped
from modelfs.repository.history import History
from modelfs.repository.info import parse_info
from modelfs.repository.layout import Layout
from modelfs.repository.manifest import Manifest
from modelfs.repository.repository import CatalogState, NoCache, Repository
from modelfs.stores.store import ObjectStore
from modelfs.transfer.copying import Copier, CopyProgress, index_of, packs_of
from modelfs.transfer.reconcile import Reconciled, reconcile
from modelfs.transfer.repacking import Repacker
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
              repack: bool = False, progress: CopyProgress | None = None,
              tell: Callable[[str], None] = lambda line: None) -> ReplicateReport:
    """models: only these, from now on, beside those that the replica has; without any, all that the source has. repack:
    this pass brings chunks in new packs, without what these models do not need.

    Raises Conflict where the target is another repository, or one that takes changes itself and the source is a
    replica, or is to hold what the source does not; BadInput where one that holds all is to be repacked; NotFound;
    IntegrityError where the source is not what it should be; NoSpace, Forbidden, Unavailable.
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
        holds = _to_hold(source, state.catalog, there, models, target.url, renew)
        if repack and holds is None:
            raise BadInput("a replica that holds all is not repacked", where=target.url,
                           why="it has its source's indexes, and so its packs",
                           advice="Run `modelfs gc --repack` at the source; or name models and an empty place.")
        if there is not None and there.catalog.replica_of is None and (there.catalog.models or there.catalog.removed):
            merged.extend(reconcile(source, Repository(target, source.info, NoCache()), renew, tell))
            state = source.catalog(renew())
        new, changed = _Run(copier, state.catalog, there, holds, repack=repack).run()
        done = copier.done
        behind = state.catalog.serial - (there.catalog.serial if there else 0)
        return ReplicateReport(source.store.url, target.url, new.serial, max(behind, 0), changed, len(new.models),
                               done.versions, done.packs, done.bytes, done.known,
                               round(time.monotonic() - began, 3), merged)

    # Begun again where another replication was first, or the source moved on and gc took what its old catalog named.
    return until_swapped(source, f"replication to {target.url}", renew, attempt)


def _standing(source: Repository, target: ObjectStore, renew: Renew) -> CatalogState | None:
    """The target's catalog; None where it has none yet. Raises Conflict."""
    try:
        fetched = target.get(keys.INFO, renew(), limit=_MAX_INFO_BYTES, fresh=True)
    except ObjectMissing:
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


def _to_hold(source: Repository, wanted: Catalog, there: CatalogState | None, models: Sequence[ModelName], url: str,
             renew: Renew) -> frozenset[ModelName] | None:
    """What the target (url) holds after this pass, None for all. Raises NotFound, Conflict."""
    for model in models:
        source.history(wanted, model, renew())  # raises NotFound, with the nearest names
    here, held = wanted.held, there.catalog.held if there else frozenset[ModelName]()
    chosen = frozenset(models) or here
    holds = None if chosen is None or held is None else chosen | held
    if here is not None and (holds is None or not holds <= here):
        raise Conflict("a source that holds only some models", where=source.store.url,
                       why=f"{url} holds others, too",
                       advice="Replicate from a store that holds all of them.")
    return holds


class _Run:
    """One pass. there: the target's catalog as it stood; holds: the models that it has after this, None for all."""

    def __init__(self, copier: Copier, wanted: Catalog, there: CatalogState | None,
                 holds: frozenset[ModelName] | None, *, repack: bool) -> None:
        self.copier, self.source, self.renew = copier, copier.source, copier.renew
        self.wanted, self.there, self.holds, self.repack = wanted, there, holds, repack
        copier.look_again()
        self.replica = Repository(copier.target, self.source.info, NoCache())

    def run(self) -> tuple[Catalog, bool]:
        """The target's new catalog, and whether it differs from the old. Raises SwapLost."""
        if self.there is None:  # from now on it is a repository
            self.copier.put(keys.INFO, self.source.info.serialise(), only_if_absent=True)
        fresh: list[tuple[Manifest, Layout]] = []
        indexes = list(self.there.catalog.indexes) if self.there and self.holds is not None else []
        lacking = [] if self.holds is not None else [id for id in self.wanted.indexes
                                                      if not self.copier.has(keys.index(id))]
        self._indexed_packs(lacking)
        for digest, model in self._histories():
            if not self._is_there(digest, model):
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

    def _is_there(self, digest: ObjectId, model: ModelName) -> bool:
        """Where the indexes are the target's own, not before its catalog names the history: they do until then not know
        what a pass that was cut off has brought."""
        return self.copier.has(keys.history(digest)) if self.holds is None else self._named(model) == digest

    def _named(self, model: ModelName) -> ObjectId | None:
        """The model's history, by the target's catalog."""
        found = self.there.catalog if self.there else None
        return (found.models.get(model) or found.removed.get(model)) if found else None

    def _model(self, digest: ObjectId, model: ModelName) -> list[tuple[Manifest, Layout]]:
        """All versions of a model that the target lacks, then its history."""
        rows = self.source.history_at(digest, model, self.renew())
        fresh = self._versions(rows)
        for part in rows.segments:
            if not self.copier.has(keys.history(part.digest)):
                self.copier.small(keys.history(part.digest), part.digest)
        self.copier.small(keys.history(digest), digest)
        return fresh

    def _versions(self, rows: History) -> list[tuple[Manifest, Layout]]:
        """Those that the target's catalog does not lead to, brought there; those first that are read most: tagged ones,
        then newer ones."""
        tagged = set(rows.live_tags.values())
        found = sorted(self.source.versions(rows, self.renew()), key=lambda row: row.number not in tagged)
        ids = list(dict.fromkeys(row.manifest for row in found))
        if self.holds is None:
            return self.copier.versions(id for id in ids if not self.copier.has(keys.manifest(id)))
        named = self._named_versions(rows.model)
        finished = {id: version for id in ids if id not in named and (version := self._finished(id))}
        lacking = [id for id in ids if id not in named and id not in finished]
        if not self.repack:
            return [*finished.values(), *self.copier.versions(lacking)]
        for version in finished.values():
            self._repacker.know(*version)
        return [*finished.values(), *self._repacker.versions(lacking)]

    def _named_versions(self, model: ModelName) -> set[ObjectId]:
        """Those that the target's catalog leads to; none where it does not get that far, and so all are looked at."""
        before = self._named(model)
        if before is None:
            return set()
        try:
            old = self.replica.history_at(before, model, self.renew())
            return {row.manifest for row in self.replica.versions(old, self.renew())}
        except IntegrityError:
            return set()

    @cached_property
    def _repacker(self) -> Repacker:
        return Repacker(self.copier, self.wanted, self.replica, self.there.catalog if self.there else None)

    def _finished(self, id: ObjectId) -> tuple[Manifest, Layout] | None:
        """What a pass that was cut off has brought whole, unless gc took some of it, or may be about to."""
        try:
            of = self.replica.manifest(id, self.renew())
            placed = self.replica.layout(of, self.renew())
        except IntegrityError:
            return None
        packs = [*map(keys.pack, packs_of(placed))]
        its = {keys.manifest(id), keys.layout(id), *packs}
        dropped = self.there is not None and not its.isdisjoint(self.there.catalog.dropped)
        return None if dropped or not all(map(self.copier.has, packs)) else (of, placed)

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

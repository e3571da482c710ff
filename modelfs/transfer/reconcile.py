"""Two stores of one repository that both took changes: what only one of them has is merged into the other.

Rule: nothing is lost, and no number means two things. Changes to different models merge; of a model that both changed,
the versions that the source lacks are appended under new numbers, and their metadata says where they come from.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import TypeVar

from modelfs.ids import ModelName, ObjectId
from modelfs.repository import keys
from modelfs.repository.changing import Renew, swap_catalog, until_swapped
from modelfs.repository.history import History, Tag, Version, Yank
from modelfs.repository.layout import Layout
from modelfs.repository.manifest import Manifest
from modelfs.repository.repository import CatalogState, Repository
from modelfs.transfer.copying import Copier, CopyProgress, index_of
from modelfs.units import rfc3339

K = TypeVar("K", str, int)
M = TypeVar("M", Tag, Yank)
FROM = "reconciled_from"
"""In the metadata of a version that got another number: the store and the number it had there."""


@dataclass(frozen=True, slots=True)
class Reconciled:
    """versions: number there → number here. diverged: whether both had changed the model."""

    model: str
    versions: Mapping[str, str]
    diverged: bool


@dataclass(frozen=True, slots=True)
class _Merged:
    """rows: the history that has all of both. moved: number there → number here."""

    rows: History
    moved: Mapping[int, int]
    diverged: bool


def reconcile(source: Repository, other: Repository, renew: Renew, tell: Callable[[str], None]) -> list[Reconciled]:
    """Merge what only `other` has into source; what was merged, model by model.

    Raises Conflict where source is a replica, and what reading and writing them raise.
    """
    theirs = other.catalog(renew()).catalog
    copier = Copier(other, source.store, renew, CopyProgress())

    def attempt(state: CatalogState) -> list[Reconciled]:
        merged: dict[ModelName, _Merged] = {}
        for model, digest in {**theirs.models, **theirs.removed}.items():
            ours = {**state.catalog.models, **state.catalog.removed}.get(model)
            if ours != digest:
                found = _merge(source, other, model, ours, digest, renew)
                if found is not None:
                    merged[model] = found
        if not merged:
            return []
        state.catalog.check_writable()
        _write(source, copier, state, merged, renew)
        return [Reconciled(str(model), {f"v{old}": f"v{new}" for old, new in one.moved.items()}, one.diverged)
                for model, one in merged.items()]

    done = until_swapped(source, "reconciliation", renew, attempt)
    for one in done:
        versions = ", ".join(old if old == new else f"{old} as {new}" for old, new in one.versions.items()) or "tags"
        tell(f"{one.model}: {versions} of {other.store.url} "
             + ("merged beside what was changed here" if one.diverged else "taken over"))
    return done


def _merge(source: Repository, other: Repository, model: ModelName, ours: ObjectId | None, theirs: ObjectId,
           renew: Renew) -> _Merged | None:
    """None where source has all that other has."""
    mine = source.history_at(ours, model, renew()) if ours else History(model)
    its = other.history_at(theirs, model, renew())
    here = {row.number: row.manifest for row in source.versions(mine, renew())}
    here |= {row.number: row.manifest for row in mine.removed}
    there = {row.number: row for row in other.versions(its, renew())}
    gone = {row.number: row.manifest for row in its.removed}
    lacking = [row for number, row in sorted(there.items()) if here.get(number) != row.manifest]
    tombstones = [row for row in its.removed if here.get(row.number) != row.manifest or
                  row.number not in mine.removed_numbers]
    known = {number: row.manifest for number, row in there.items()} | gone
    if all(known.get(number) == manifest for number, manifest in here.items()):
        # Theirs goes on from ours. Where only tags differ, the one that moved last is right.
        tags, yanks = _later(mine.tags, its.tags), _later(mine.yanks, its.yanks)
        if not lacking and not tombstones and tags == mine.tags and yanks == mine.yanks:
            return None
        rows = replace(its, tags=tags, yanks=yanks)
        return _Merged(rows, {row.number: row.number for row in lacking}, False)
    rows, moved = mine, {}
    by_manifest = {manifest: number for number, manifest in here.items()}
    for row in lacking:
        if row.manifest in by_manifest:
            moved[row.number] = by_manifest[row.manifest]
            continue
        parent = moved.get(row.parent, row.parent) if row.parent is not None else None
        number = rows.next
        rows = rows.with_version(_renumbered(row, number, parent, f"{other.store.url} {row.name}"))
        moved[row.number] = number
    for name, tag in its.tags.items():
        if name not in rows.tags and tag.version is not None:
            number = moved.get(tag.version, tag.version)
            rows = rows.with_tag(name, number, tag.moved)
    same = {number: yank for number, yank in its.yanks.items() if here.get(number) == known.get(number)}
    others = {moved[number]: yank for number, yank in its.yanks.items() if number in moved}
    rows = replace(rows, yanks=_later(rows.yanks, {**same, **others}))
    return None if rows == mine else _Merged(rows, moved, True)


def _later(mine: Mapping[K, M], its: Mapping[K, M]) -> Mapping[K, M]:
    """What both say of tags, or of withdrawn versions; of one that both name, what was said last."""
    return {**its, **{name: said for name, said in mine.items() if name not in its or said.moved >= its[name].moved}}


def _renumbered(row: Version, number: int, parent: int | None, came_from: str) -> Version:
    return replace(row, number=number, parent=parent, metadata={**row.metadata, FROM: came_from})


def _write(source: Repository, copier: Copier, state: CatalogState, merged: Mapping[ModelName, _Merged],
           renew: Renew) -> None:
    """Objects, then histories, then the catalog. Raises SwapLost."""
    fresh: list[tuple[Manifest, Layout]] = []
    models, removed = dict(state.catalog.models), dict(state.catalog.removed)
    for model, one in merged.items():
        for row in copier.source.versions(one.rows, renew()) if not one.diverged else one.rows.versions:
            if not copier.has(keys.manifest(row.manifest)):
                fresh.append(copier.version(row.manifest))
        for part in one.rows.segments:
            if not copier.has(keys.history(part.digest)):
                copier.small(keys.history(part.digest), part.digest)
        text = one.rows.serialise()
        digest = ObjectId.of(text)
        copier.put(keys.history(digest), text)
        models.pop(model, None)
        removed.pop(model, None)
        (models if one.rows.versions or one.rows.segments else removed)[model] = digest
    indexes = state.catalog.indexes
    if fresh:
        data = index_of(fresh)
        copier.put(keys.index(ObjectId.of(data)), data)
        indexes = (*indexes, ObjectId.of(data))
    dropped = {key: when for key, when in state.catalog.dropped.items() if key not in copier.written}
    swap_catalog(source, state, state.catalog.next(rfc3339(time.time()), models=models, removed=removed,
                                                   indexes=indexes, dropped=dropped), renew)

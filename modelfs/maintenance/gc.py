"""gc: frees what no version needs. It drops from the catalog first, and deletes after the grace.

Rule: nothing is deleted that is not in `dropped` of the catalog as it stands, and whoever names an object takes it out
of there by the same compare-and-swap: so what is deleted is named by nobody. A reader of an older catalog, and a push
whose packs are not named yet, have the grace.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass, replace
from functools import partial

from modelfs.errors import BadInput, IntegrityError, ObjectMissing
from modelfs.ids import ObjectId
from modelfs.maintenance.living import Living, Seen, living
from modelfs.maintenance.repack import Progress, Repacked, repack
from modelfs.maintenance.retention import Retention, retire
from modelfs.repository import keys
from modelfs.repository.catalog import Catalog
from modelfs.repository.changing import Renew, swap_catalog, until_swapped, without_dropped
from modelfs.repository.repository import CatalogState, Repository
from modelfs.stores.store import ObjectInfo
from modelfs.units import rfc3339, seconds_of

_KINDS = (keys.HISTORIES, keys.MANIFESTS, keys.LAYOUTS, keys.INDEXES, keys.PACKS)
"""In the order of deletion: a layout never outlives its packs, so a push of the same files cannot find a stale one."""
_OBJECT = re.compile(r"(?:histories|manifests|layouts|indexes|packs)/([0-9a-f]{2})/\1[0-9a-f]{62}")
_MOST_DROPPED = 50_000
"""Entries in a catalog, about 8 MB: every mount reads it. What is left over has its turn in the next round or run."""
_BATCH = 64
"""Deletions between two looks at the catalog."""
_SLOWEST_PUT_S = 3600.0


@dataclass(frozen=True, slots=True)
class GcOptions:
    """grace_s: 0 says that nobody reads or pushes. sweep: removes unfinished writes that are so many seconds old,
    and returns their bytes. clock: seconds since the epoch. retention: which versions to remove first, if any. repack:
    whether to copy what lives in packs that are mostly dead, or is scattered; progress: of that."""

    grace_s: float
    dry_run: bool
    renew: Renew
    jobs: int = 8
    sweep: Callable[[float], int] | None = None
    clock: Callable[[], float] = time.time
    retention: Retention | None = None
    repack: bool = False
    progress: Progress = lambda done, total: None


@dataclass(frozen=True, slots=True)
class GcReport:
    """What `gc --json` shows. With dry_run: what would be, each step for itself: what is freed counts neither what old
    versions nor what old packs would leave. kept: all that stays, also what waits for its grace. packs_rewritten: that
    versions need no more; versions_rewritten: that have new layouts; bytes_rewritten: stored ones, copied."""

    dry_run: bool
    objects_deleted: int
    bytes_freed: int
    objects_kept: int
    bytes_kept: int
    objects_waiting: int
    bytes_waiting: int
    packs_rewritten: int = 0
    versions_rewritten: int = 0
    bytes_rewritten: int = 0
    versions_removed: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class _Plan:
    """state: the catalog, with `dropped` as it stands while objects are deleted. due: what may be deleted.
    waiting: what is dropped, and not yet due. cut: whether more was to be dropped than there was room for."""

    state: CatalogState
    objects: Mapping[str, ObjectInfo]
    due: tuple[ObjectInfo, ...]
    waiting: tuple[ObjectInfo, ...]
    cut: bool


def collect(repository: Repository, options: GcOptions) -> GcReport:
    """Raises Forbidden where the store cannot list or only reads, Unavailable; Conflict, also of a replica that is to
    lose versions; NotFound for a model of the retention; IntegrityError where what is named cannot be read."""
    removed = retire(repository, options.retention, options.renew, options.clock(), dry_run=options.dry_run) \
        if options.retention else ()
    found = _collect(repository, options)
    done = Repacked()
    if options.repack:
        done = repack(repository, options.renew, dry_run=options.dry_run, progress=options.progress)
        if not options.dry_run:
            before, found = found, _collect(repository, options, done.left)
            found = replace(found, objects_deleted=before.objects_deleted + found.objects_deleted,
                            bytes_freed=before.bytes_freed + found.bytes_freed)
    return replace(found, packs_rewritten=done.packs, versions_rewritten=done.versions, bytes_rewritten=done.bytes,
                   versions_removed=removed)


def _collect(repository: Repository, options: GcOptions, left: Collection[ObjectId] | None = None) -> GcReport:
    """left: packs that layouts named until now, whose readers have the grace; None where nothing was repacked. Else the
    indexes follow the layouts, whose packs may be new."""
    deleted = freed = 0
    while True:
        seen = Seen()
        plan = until_swapped(repository, "gc", options.renew, partial(_plan, repository, options, left, seen))
        gone = plan.due if options.dry_run else _delete(repository, plan, options)
        deleted += len(gone)
        freed += _size(gone)
        if options.dry_run:
            break
        _forget(repository, gone, plan, options.renew, rfc3339(options.clock()))
        if not (plan.cut and gone):
            freed += _sweep(options)
            break
    return GcReport(options.dry_run, deleted, freed, len(plan.objects) - len(gone),
                    _size(plan.objects.values()) - _size(gone), len(plan.waiting) + len(plan.due) - len(gone),
                    _size(plan.waiting) + _size(plan.due) - _size(gone))


def _plan(repository: Repository, options: GcOptions, left: Collection[ObjectId] | None, seen: Seen,
          state: CatalogState) -> _Plan:
    """Swaps in the catalog that drops what is dead. Raises SwapLost."""
    objects = {info.key: info for kind in _KINDS for info in repository.store.list(kind, options.renew())}
    reindex = left is not None and state.catalog.replica_of is None  # of a replica the layouts follow the indexes
    found = _living(repository, state.catalog, objects, options, seen, reindex)
    now = options.clock()
    dropped = _still_dropped(state.catalog, found.live, objects, now)
    once = found.once | {keys.pack(id) for id in left or ()}
    chosen, condemned = _newly_dropped(found.live, once, dropped, objects, now - options.grace_s)
    room = max(_MOST_DROPPED - len(dropped), 0)
    dropped |= dict.fromkeys(chosen[:room], rfc3339(now))
    due = {key for key, when in dropped.items()
           if key in objects and (key in condemned or not options.grace_s or seconds_of(when) <= now - options.grace_s)}
    catalog = replace(state.catalog, indexes=found.indexes, dropped=dropped)
    if not options.dry_run and catalog != state.catalog:
        for id, data in found.rewritten.items():
            repository.store.put(keys.index(id), data, options.renew())
        state = swap_catalog(repository, state, catalog, options.renew)
    return _Plan(replace(state, catalog=catalog), objects, _in_order(due, objects),
                 _in_order((dropped.keys() & objects) - due, objects), len(chosen) > room)


def _living(repository: Repository, catalog: Catalog, objects: Mapping[str, ObjectInfo], options: GcOptions,
            seen: Seen, reindex: bool) -> Living:
    try:
        return living(repository, catalog, objects, options.renew, options.jobs, seen, reindex=reindex)
    except IntegrityError as error:
        raise IntegrityError("gc cannot tell what is still needed, and deletes nothing", where=repository.store.url,
                             why=str(error), advice="Run `modelfs verify --repair` first.") from error


def _still_dropped(catalog: Catalog, live: Collection[str], objects: Mapping[str, ObjectInfo],
                   now: float) -> dict[str, str]:
    """Without what is named again, and what has been deleted. A time that is none begins anew."""
    return {key: when if _is_time(when) else rfc3339(now) for key, when in catalog.dropped.items()
            if key not in live and (key in objects or not _OBJECT.fullmatch(key))}


def _newly_dropped(live: Collection[str], once: Collection[str], dropped: Collection[str],
                   objects: Mapping[str, ObjectInfo], old: float) -> tuple[list[str], set[str]]:
    """What nothing names and `dropped` does not have yet, packs first, and those of it that nobody ever named: they
    need no grace but their own age, `old` or older; younger ones may belong to a push that goes on.

    An old history looks like one that was never named, so all of them have the grace.
    """
    chosen, condemned = [], set()
    for key, info in objects.items():
        if key in live or key in dropped or not _OBJECT.fullmatch(key):
            continue
        if key in once or key.startswith(keys.HISTORIES) or not info.modified:
            chosen.append(key)
        elif info.modified <= old:
            chosen.append(key)
            condemned.add(key)
    return sorted(chosen, key=lambda key: (not key.startswith(keys.PACKS), key)), condemned


def _delete(repository: Repository, plan: _Plan, options: GcOptions) -> tuple[ObjectInfo, ...]:
    """What was deleted: of what is due, all that is still dropped, and was not put again meanwhile."""
    gone: list[ObjectInfo] = []
    state, before = plan.state, plan.state.catalog.dropped
    for batch in (plan.due[start:start + _BATCH] for start in range(0, len(plan.due), _BATCH)):
        state = repository.newer_catalog(state.etag, options.renew()) or state
        for info in batch:
            if state.catalog.dropped.get(info.key) == before[info.key] and _untouched(repository, info, options):
                repository.store.delete(info.key, options.renew())
                gone.append(info)
    return tuple(gone)


def _untouched(repository: Repository, listed: ObjectInfo, options: GcOptions) -> bool:
    """Whether nobody has put the object again since it was listed, or within the grace: a push that did has not named
    it yet."""
    try:
        modified = repository.store.stat(listed.key, options.renew()).modified
    except ObjectMissing:  # another gc was faster
        return False
    return modified == listed.modified and (not options.grace_s or modified <= options.clock() - options.grace_s)


def _forget(repository: Repository, gone: Collection[ObjectInfo], plan: _Plan, renew: Renew, when: str) -> None:
    """Take out of `dropped` what was deleted."""
    before = plan.state.catalog.dropped

    def attempt(state: CatalogState) -> None:
        found = state.catalog
        mine = {info.key for info in gone if found.dropped.get(info.key) == before[info.key]}
        if mine:
            swap_catalog(repository, state, without_dropped(found, mine, when), renew)

    if gone:
        until_swapped(repository, "gc", renew, attempt)


def _sweep(options: GcOptions) -> int:
    """The bytes of what killed writers left; a write in progress looks the same, unless it is old."""
    if options.sweep is None:
        return 0
    return options.sweep(max(options.grace_s, _SLOWEST_PUT_S) if options.grace_s else 0.0)


def _in_order(chosen: Collection[str], objects: Mapping[str, ObjectInfo]) -> tuple[ObjectInfo, ...]:
    return tuple(info for key, info in objects.items() if key in chosen)


def _size(objects: Iterable[ObjectInfo]) -> int:
    return sum(info.size for info in objects)


def _is_time(text: str) -> bool:
    try:
        seconds_of(text)
    except BadInput:
        return False
    return True

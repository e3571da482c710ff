"""Which versions are old enough to go, by count and by age, and their removal from the catalog.

Rule: a version that a tag names is never removed here; with both bounds given, what either of them keeps is kept.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from modelfs.errors import BadInput
from modelfs.ids import ModelName
from modelfs.maintenance.removal import without_versions
from modelfs.repository.changing import Renew, swap_history, until_swapped
from modelfs.repository.history import History, Version
from modelfs.repository.repository import CatalogState, Repository
from modelfs.units import rfc3339, seconds_of


@dataclass(frozen=True, slots=True)
class Retention:
    """last: how many of the newest versions of a model stay. within_s: how old a version may be. None: that bound is
    not given; one of the two is. models: only these, or all."""

    last: int | None = None
    within_s: float | None = None
    models: tuple[ModelName, ...] = ()

    def expired(self, rows: History, versions: Sequence[Version], now: float) -> list[Version]:
        """versions: of the model, newest first."""
        tagged = set(rows.live_tags.values())
        return [version for place, version in enumerate(versions)
                if version.number not in tagged and not self._kept(place, version, now)]

    def _kept(self, place: int, version: Version, now: float) -> bool:
        if self.last is not None and place < self.last:
            return True
        return self.within_s is not None and now - _created(version, now) <= self.within_s


def _created(version: Version, now: float) -> float:
    """A version of the future, or of a time that is none, is one of now: a wrong clock makes nothing old."""
    try:
        return min(seconds_of(version.created), now)
    except BadInput:
        return now


def retire(repository: Repository, retention: Retention, renew: Renew, now: float, *, dry_run: bool) -> tuple[str, ...]:
    """Remove what has expired, in one swap a model; what was removed, as org/name:vN, or with dry_run would be.

    now: seconds since the epoch. Raises NotFound for a model; Conflict of a replica; Forbidden, Unavailable;
    IntegrityError where a history cannot be read.
    """
    def attempt(model: ModelName, state: CatalogState) -> tuple[str, ...]:
        state.catalog.check_writable()
        if model not in state.catalog.models and model not in retention.models:
            return ()  # removed since the catalog was read first
        rows = repository.history(state.catalog, model, renew())
        versions = repository.versions(rows, renew())
        gone = retention.expired(rows, versions, now)
        if gone and not dry_run:
            swap_history(repository, state, without_versions(rows, gone, len(versions), rfc3339(now)), rfc3339(now),
                         renew)
        return tuple(f"{model}:{version.name}" for version in gone)

    removed: list[str] = []
    for model in retention.models or sorted(repository.catalog(renew()).catalog.models):
        removed += until_swapped(repository, f"removal of old versions of {model}", renew,
                                 lambda state, model=model: attempt(model, state))  # type: ignore[misc]
    return tuple(removed)

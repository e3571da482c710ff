"""Tags, versions and models are removed here: from the catalog. Their bytes are for gc.

Rule: a number is never given again, so every version leaves a tombstone, and a model without versions stays among
the catalog's `removed`; a version that a tag names is not removed.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, replace

from modelfs.errors import Conflict, NotFound
from modelfs.ids import ModelRef
from modelfs.repository.changing import Renew, swap_history, until_swapped
from modelfs.repository.history import History, Version
from modelfs.repository.repository import CatalogState, Repository
from modelfs.units import rfc3339


@dataclass(frozen=True, slots=True)
class Removal:
    """What `rm --json` shows. tag: the one that was removed by its name, or None. versions: newest first.
    model_removed: whether the model has gone with them."""

    model: str
    tag: str | None
    versions: tuple[str, ...]
    model_removed: bool


def remove(repository: Repository, ref: ModelRef, renew: Renew) -> Removal:
    """A tag, a version, or, where ref has neither, the whole model.

    Raises NotFound, Forbidden, Unavailable; Conflict where a tag names the version.
    """
    def attempt(state: CatalogState) -> Removal:
        rows = repository.history(state.catalog, ref.model, renew())
        now = rfc3339(time.time())
        if ref.tag:
            if ref.tag not in rows.live_tags:
                raise NotFound(f"no tag {ref.tag} of {ref.model}", where=repository.store.url,
                               why=f"its tags are {', '.join(rows.live_tags) or 'none'}")
            swap_history(repository, state, rows.with_tag(ref.tag, None, now), now, renew)
            return Removal(str(ref.model), ref.tag, (), False)
        versions = repository.versions(rows, renew())
        gone = [_untagged(repository, rows, ref.version, renew)] if ref.version else versions
        swap_history(repository, state, without_versions(rows, gone, len(versions), now), now, renew)
        return Removal(str(ref.model), None, tuple(row.name for row in gone), len(gone) == len(versions))

    return until_swapped(repository, f"removal of {ref}", renew, attempt)


def without_versions(rows: History, gone: list[Version], of: int, when: str) -> History:
    """Tombstones for gone; where these are all of so many versions, tags and segments go, too."""
    rows = rows.without(gone, when)
    if len(gone) < of:
        return rows
    for tag in rows.live_tags:
        rows = rows.with_tag(tag, None, when)
    return replace(rows, segments=())


def _untagged(repository: Repository, rows: History, number: int, renew: Renew) -> Version:
    version = repository.version(rows, number, renew())
    tags = [tag for tag, named in rows.live_tags.items() if named == number]
    if tags:
        names = f"the tag {tags[0]} names" if len(tags) == 1 else f"the tags {', '.join(tags)} name"
        raise Conflict(f"cannot remove {rows.model}:{version.name}", where=repository.store.url, why=f"{names} it",
                       advice=f"Move {'it' if len(tags) == 1 else 'them'} first with `modelfs tag`, or remove "
                       f"{'it' if len(tags) == 1 else 'them'}: `modelfs rm REPO {rows.model}:{tags[0]}`.")
    return version

"""Changes of the catalog: read it, make the next one, swap it in, and begin again where somebody else's came first.

Rule: what is named by a catalog was put before, and is not in its `dropped`: whoever names an object takes it out of
there, since gc deletes nothing else.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Collection
from dataclasses import replace
from typing import TypeVar

from modelfs.errors import Conflict, ObjectMissing, SwapLost
from modelfs.ids import ObjectId
from modelfs.repository import keys
from modelfs.repository.catalog import Catalog
from modelfs.repository.history import History
from modelfs.repository.repository import CatalogState, Repository
from modelfs.units import Deadline

T = TypeVar("T")
Renew = Callable[[], Deadline]
"""A deadline from now, for one step on the network."""

_TRIES = 100
_COLLECTED = "collected"


def until_swapped(repository: Repository, what: str, renew: Renew, attempt: Callable[[CatalogState], T]) -> T:
    """What attempt returns, for the catalog as it stands; asked again where it raises SwapLost, and where an object is
    missing that only an older catalog named.

    what: for the message. Raises Conflict once others came first too often.
    """
    for number in range(_TRIES):
        state = repository.catalog(renew())
        try:
            return attempt(state)
        except SwapLost:
            pass
        except ObjectMissing:
            if repository.newer_catalog(state.etag, renew()) is None:
                raise
        time.sleep(random.uniform(0, min(0.01 * (number + 1), 1.0)))
    raise Conflict(what, where=repository.store.url, why=f"others changed the catalog first {_TRIES} times",
                   advice="Try again.")


def collected(catalog: Catalog) -> object:
    """What changes whenever gc has deleted objects; while it does that, they are in `dropped`."""
    return catalog.others.get(_COLLECTED)


def without_dropped(catalog: Catalog, gone: Collection[str], when: str) -> Catalog:
    """After gc has deleted objects: it takes them out of `dropped`, and leaves its mark.

    when: RFC 3339. Without the mark the catalog could be to the byte, and so to its etag, what it was before gc, and
    the swap of a push that read it then would succeed.
    """
    return replace(catalog, dropped={key: time for key, time in catalog.dropped.items() if key not in gone},
                   others={**catalog.others, _COLLECTED: when})


def swap_catalog(repository: Repository, state: CatalogState, new: Catalog, renew: Renew) -> CatalogState:
    """new in the place of what state was read as. Raises SwapLost."""
    return CatalogState(new, repository.store.swap(keys.CATALOG, state.etag, new.serialise(), renew()))


def swap_history(repository: Repository, state: CatalogState, rows: History, when: str, renew: Renew) -> None:
    """Put a model's new history and name it: among `models` while it has versions, else among `removed`.

    when: RFC 3339. Raises SwapLost.
    """
    text = rows.serialise()
    digest = ObjectId.of(text)
    repository.store.put(keys.history(digest), text, renew())
    found = state.catalog
    models = {name: id for name, id in found.models.items() if name != rows.model}
    removed = {name: id for name, id in found.removed.items() if name != rows.model}
    (models if rows.versions or rows.segments else removed)[rows.model] = digest
    dropped = {key: time for key, time in found.dropped.items() if key != keys.history(digest)}
    swap_catalog(repository, state, found.next(when, models=models, removed=removed, dropped=dropped), renew)

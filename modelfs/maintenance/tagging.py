"""Tags are moved here: one new history and one swap of the catalog, no version touched.

Rule: what the tag shall name is looked up again in every catalog that is tried, so a tag never names what is gone.
"""

from __future__ import annotations

import time
from dataclasses import dataclass

from modelfs.ids import ModelRef, check_tag
from modelfs.repository.changing import Renew, swap_history, until_swapped
from modelfs.repository.repository import CatalogState, Repository
from modelfs.units import rfc3339


@dataclass(frozen=True, slots=True)
class Tagged:
    """What `tag --json` shows. changed: false where the tag named this version already."""

    model: str
    tag: str
    version: str
    changed: bool


def move_tag(repository: Repository, ref: ModelRef, tag: str, renew: Renew) -> Tagged:
    """Have tag name the version that ref means. Raises BadInput, NotFound, Forbidden, Unavailable, Conflict."""
    check_tag(tag)

    def attempt(state: CatalogState) -> Tagged:
        found = repository.resolve(state.catalog, ref, renew())
        changed = found.history.live_tags.get(tag) != found.version.number
        if changed:
            now = rfc3339(time.time())
            swap_history(repository, state, found.history.with_tag(tag, found.version.number, now), now, renew)
        return Tagged(str(ref.model), tag, found.version.name, changed)

    return until_swapped(repository, f"tag {tag} of {ref.model}", renew, attempt)

"""A version is withdrawn, or taken back in, here: one new history and one swap of the catalog, no byte touched.

Rule: a yanked version stays readable for who insists, and its number stays its own; what a mount makes of it is for the
mount's policy.
"""

from __future__ import annotations

import time
from dataclasses import dataclass

from modelfs.errors import BadInput
from modelfs.ids import ModelRef
from modelfs.repository.changing import Renew, swap_history, until_swapped
from modelfs.repository.repository import CatalogState, Repository
from modelfs.units import rfc3339

_MAX_REASON = 500


@dataclass(frozen=True, slots=True)
class Yanked:
    """What `yank --json` shows. reason: None of one that was taken back in. tags: those that name the version still.
    changed: false where this was so already."""

    model: str
    version: str
    reason: str | None
    tags: tuple[str, ...]
    changed: bool


def yank(repository: Repository, ref: ModelRef, reason: str | None, renew: Renew) -> Yanked:
    """reason: one line, or None to take the version back in.

    Raises BadInput, also of a ref that names no version by its number, NotFound, Forbidden, Unavailable, Conflict.
    """
    if not ref.version:
        raise BadInput(f"not a version {ref}", why="a tag may move: say which version, like org/name:v3")
    if reason is not None and (not reason.strip() or len(reason) > _MAX_REASON or not reason.isprintable()):
        raise BadInput("not a reason", why=f"it is one line of at most {_MAX_REASON} characters")
    number = ref.version

    def attempt(state: CatalogState) -> Yanked:
        found = repository.resolve(state.catalog, ref, renew())
        changed = found.yanked != reason
        if changed:
            now = rfc3339(time.time())
            swap_history(repository, state, found.history.with_yank(number, reason, now), now, renew)
        tags = tuple(tag for tag, named in found.history.live_tags.items() if named == number)
        return Yanked(str(ref.model), found.version.name, reason, tags, changed)

    return until_swapped(repository, f"yank of {ref}", renew, attempt)

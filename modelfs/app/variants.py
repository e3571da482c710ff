"""`push --recipe`: what is pushed is a transformed copy of SRC, which is made first and removed behind the push.

Rule: the copy lies in the state directory, a place a model and tag, so that a push that was killed goes on with it; and
one push at a time has it.
"""

from __future__ import annotations

import fcntl
import json
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from modelfs.app.compressing import Request, run
from modelfs.compression.journal import Destination
from modelfs.errors import Conflict, NoSpace
from modelfs.ids import ModelRef
from modelfs.transforms import Recipe, document_of


@dataclass(frozen=True, slots=True)
class Variant:
    """source: the copy. metadata: what its version says of how it was made."""

    source: Path
    metadata: dict[str, str]


@contextmanager
def variant_of(source: Path, repository: str, ref: ModelRef, recipe: Recipe, state: Path, *, jobs: int,
               follow_links: bool, total: Callable[[int], None], advance: Callable[[int], None],
               tell: Callable[[str], None]) -> Iterator[Variant]:
    """repository: its id. Raises as `modelfs compress` does; Conflict where another push makes the same variant."""
    place = state / "variants" / repository / f"{ref.model.org}--{ref.model.name}--{ref.tag or 'latest'}"
    place.mkdir(parents=True, exist_ok=True)
    lock = os.open(place / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        _lock(lock, ref)
        made = place / "copy" / source.absolute().name
        if not _unfinished(made):
            shutil.rmtree(place / "copy", ignore_errors=True)  # of a push that was killed when the copy was whole
            made.parent.mkdir(exist_ok=True)
        try:
            run(Request(source, made, recipe, jobs, None, follow_links, 0.0), total, advance, tell)
        except NoSpace as error:
            raise NoSpace("no room for the transformed copy", where=str(place), why=str(error),
                          advice=f"It takes as much as {source}; XDG_STATE_HOME says where it is made.") from error
        yield Variant(made, {"recipe": recipe.name,
                             "recipe_document": json.dumps(document_of(recipe), sort_keys=True)})
        shutil.rmtree(place / "copy")  # and not the lock: who waits for it would hold one that others do not find
    finally:
        os.close(lock)


def _lock(descriptor: int, ref: ModelRef) -> None:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise Conflict("another push makes this variant", where=str(ref), advice="Push again when it has ended."
                       ) from None


def _unfinished(made: Path) -> bool:
    """Whether a run of compress can go on there."""
    return any(Destination(made, single).work.is_dir() for single in (False, True))


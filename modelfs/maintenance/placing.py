"""Where the chunks of one version lie, for commands that look at a repository as a whole: by its layout, or, where
that is missing or malformed, by the catalog's indexes.

Rule: what has no place is said (`known`), never guessed; nothing here raises for a layout that is not there.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from modelfs.errors import IntegrityError
from modelfs.repository.index import Index
from modelfs.repository.layout import Layout
from modelfs.repository.manifest import Manifest
from modelfs.repository.places import SELF, Place, joined, table_of
from modelfs.repository.repository import Repository
from modelfs.units import Deadline

Ids = NDArray[np.bytes_]


@dataclass(frozen=True, slots=True)
class Placing:
    """layout: of every row; rows that are not known [n] bool stand at a place that is nowhere.

    fault: why the layout itself could not be used, or None.
    """

    layout: Layout
    known: NDArray[np.bool_]
    fault: IntegrityError | None = None


def placing_of(repository: Repository, of: Manifest, indexes: Sequence[Index], deadline: Deadline) -> Placing:
    """indexes: looked through in this order. Raises Unavailable, Forbidden."""
    try:
        return Placing(repository.layout(of, deadline), np.ones(len(of.chunk_ids), np.bool_))
    except IntegrityError as error:
        layout, known = from_indexes(of.chunk_ids, indexes)
        return Placing(layout, known, error)


def from_indexes(chunk_ids: NDArray[np.uint8], indexes: Sequence[Index]) -> tuple[Layout, NDArray[np.bool_]]:
    """A layout of chunk_ids [n, 32] without head packs, and which rows [n] of it any index knows."""
    wanted, n = comparable(chunk_ids), len(chunk_ids)
    place, known = np.zeros(n, np.uint32), np.zeros(n, np.bool_)
    tables, base = [table_of([Place(SELF, 0, 0, "raw")])], 1
    for index in indexes:
        here = comparable(index.ids)
        if len(here):
            at = np.minimum(np.searchsorted(here, wanted), len(here) - 1)
            found = (here[at] == wanted) & ~known
            place[found] = base + at[found]
            known |= found
        tables.append(index.places)
        base += len(index.places)
    return Layout(joined(tables), place, np.zeros(0, np.uint32)), known


def comparable(ids: NDArray[np.uint8]) -> Ids:
    """Rows of bytes [n, w] as [n] values that numpy sorts and compares: numpy drops NULs at their ends, which
    among rows of one width takes nothing from what tells them apart."""
    return np.ascontiguousarray(ids).view(f"S{ids.shape[1]}").ravel()

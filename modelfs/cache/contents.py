"""What lies in a cache directory, as a person asks for it: listed, cleared, and how much more would fit.

Rule: only what is written down on disk is looked at, so every process of the host sees the same; what is pinned or
held by the kernel is never removed.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from enum import Enum

import numpy as np

from modelfs.cache.eviction import cache_files
from modelfs.cache.map_file import read_state
from modelfs.cache.room import Room
from modelfs.cache.sparse_file import GoneError, open_sparse
from modelfs.cache.usage import BASE, META


@dataclass(frozen=True, slots=True)
class CachedFile:
    """name: the hash of its chunk list. size_bytes: of the model's file. disk_bytes: what it takes, with its map."""

    name: str
    size_bytes: int
    cached_bytes: int
    disk_bytes: int
    pinned: bool


class Removal(Enum):
    REMOVED = "removed"
    PINNED = "pinned"
    IN_USE = "in use"
    GONE = "gone"


def contents(room: Room) -> list[CachedFile]:
    """Raises OSError."""
    found = []
    for name, path in cache_files(room.files):
        state = read_state(path)
        if state is not None:
            present = state.lengths[state.presence & 1 == 1]
            found.append(CachedFile(name, int(state.lengths.sum(dtype=np.int64)), int(present.sum(dtype=np.int64)),
                                    state.account, state.pinned))
    return sorted(found, key=lambda file: file.name)


def remove(room: Room, name: str) -> Removal:
    """Raises OSError, NoSpace where the directory cannot be used."""
    opened = open_sparse(room, name)
    if opened is None:
        return Removal.GONE
    with opened.lock:
        if opened.pinned:
            return Removal.PINNED
        try:
            return Removal.IN_USE if opened.remove() < 0 else Removal.REMOVED
        except GoneError:
            return Removal.GONE


def room_for(room: Room, names: Collection[str]) -> int:
    """Bytes for these files when all others that are not pinned have gone. Raises OSError, NoSpace."""
    others = sum(file.disk_bytes for file in contents(room) if file.pinned and file.name not in names)
    return max(0, room.ceiling() - others - room.usage.of(META) - room.usage.of(BASE))

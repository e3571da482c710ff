"""The bytes of an object that stay for as long as somebody uses them, in memory or mapped.

Rule: whoever holds a view of the data may read it at any time; that it rests costs him a look at the disk, no more.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass


def _nothing() -> None:
    return None


@dataclass(frozen=True, slots=True)
class Held:
    """data: read-only. rest: give back the memory of what was looked at so far; what is used comes in again by itself.
    (For what is checked whole and then used here and there. Does nothing to data that lies in memory only.)"""

    data: bytes | memoryview
    rest: Callable[[], None] = _nothing

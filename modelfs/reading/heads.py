"""What comes along with a header: the rest of its head pack, and the chunks that share a page with other headers.

Rule: nothing here is needed by who asked; it saves the round trips of those who ask next. A header seldom ends at a
page's end, so whoever reads one through the kernel reads the beginning of the first tensor, too: without this, opening
30 shards was one round trip for the headers and 30 for what lies behind them.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from dataclasses import dataclass
from weakref import WeakKeyDictionary

from modelfs.ids import ObjectId
from modelfs.reading.flights import Flight, Priority, Want
from modelfs.reading.sources import Source
from modelfs.reading.versions import LoadedVersion


@dataclass(frozen=True, slots=True)
class Companion:
    want: Want
    source: Source
    priority: Priority


class Heads:
    """Finds companions; those behind headers once a head pack, since that is a look at all files in it."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._followed: WeakKeyDictionary[LoadedVersion, set[ObjectId]] = WeakKeyDictionary()  # guarded by _lock

    def companions(self, flight: Flight) -> Iterator[Companion]:
        """What to fetch beside a flight that has a source, as far as it is not in the cache."""
        version, source = flight.wants[0].file.version, flight.source
        if version is None:
            return
        assert source is not None
        heads = version.sources.head_rows(source)
        if heads:
            yield from self._missing(version, heads, flight.priority)
        elif flight.demand and flight.wants[0].chunk and (
                before := version.sources.source(flight.row - 1)) is not None:
            heads = version.sources.head_rows(before)
            if heads and self._first_time(version, before.place.pack):
                yield from self._missing(version, [row + 1 for row in heads if _goes_on(version, row)], Priority.AHEAD)

    def _missing(self, version: LoadedVersion, rows: list[int], priority: Priority) -> Iterator[Companion]:
        for row in rows:
            file = version.file_of_row(row)
            want = Want(file, row - file.entry.first_row)
            if not file.cache.presence(want.chunk) & 1 and (source := version.sources.source(row)) is not None:
                yield Companion(want, source, priority)

    def _first_time(self, version: LoadedVersion, pack: ObjectId) -> bool:
        with self._lock:
            followed = self._followed.setdefault(version, set())
            if pack in followed:
                return False
            followed.add(pack)
            return True


def _goes_on(version: LoadedVersion, row: int) -> bool:
    """Whether a row is not its file's last."""
    entry = version.file_of_row(row).entry
    return row + 1 < entry.first_row + entry.row_count

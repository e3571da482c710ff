"""Where the chunks of a version lie: on each replica by a layout of its own.

Rule: a source is a hint, proved only by the hash of what comes out of it. One that proved wrong is left, first for what
is known of other replicas, then for fresh layouts, the catalogs' indexes last.
"""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from modelfs.errors import DeadlinePassed, ModelfsError, Unavailable
from modelfs.ids import ObjectId
from modelfs.logs import log_event, logger_for
from modelfs.repository.index import Index
from modelfs.repository.layout import Layout
from modelfs.repository.manifest import Manifest
from modelfs.repository.places import Place
from modelfs.repository.repository import Repository
from modelfs.stores.replicas import Replica
from modelfs.units import Deadline

_LOG = logger_for(__name__)
_RENEW_PERIOD_S = 2.0


@dataclass(frozen=True, slots=True)
class Source:
    """A place on one replica."""

    replica: Replica
    place: Place


class Sources:
    """Of all rows of a manifest. Several replicas: what is written of one holds for each."""

    def __init__(self, repository: Repository, manifest: Manifest, layout: Layout | None, asked: Replica) -> None:
        """layout: of the replica that was asked for it, or None where it could not be had."""
        self.replicas = repository.replicas
        self._manifest = manifest
        self._known = [_Known(repository.on(replica), replica) for replica in self.replicas.replicas]
        self._known[asked.number].layout, self._known[asked.number].asked = layout, True
        self._renewing = threading.Lock()

    def source(self, row: int) -> Source | None:
        """From memory, on the healthiest replica of which a place is known; None: `look_up` loads more."""
        return next(self._candidates(row), None)

    def look_up(self, row: int, wrong: Sequence[Source], deadline: Deadline) -> Source | None:
        """A source that is none of wrong, or None. Layouts and indexes of one replica are asked for at most once in two
        seconds, whoever asks. Raises Unavailable where that could not be had."""
        if not self._renewing.acquire(timeout=min(deadline.remaining(), threading.TIMEOUT_MAX)):
            raise DeadlinePassed("a layout", where=self.replicas.url, why="the deadline passed")
        trouble: Unavailable | None = None
        try:
            order = self.replicas.in_order()
            for replica in order:
                share = deadline if replica is order[-1] else deadline.sooner(deadline.remaining() / 2)
                known = self._known[replica.number]
                tried = {source.place for source in wrong if source.replica is replica}
                for _ in known.more(self._manifest, share):
                    place = next((place for place in known.candidates(row, self._manifest) if place not in tried), None)
                    if place is not None:
                        known.moved[row] = place
                        return Source(replica, place)
                if known.trouble is not None:
                    self.replicas.failed(replica, known.trouble)
                    trouble = trouble or known.trouble
        finally:
            self._renewing.release()
        if trouble is not None:
            raise trouble
        return None

    def head_rows(self, source: Source) -> list[int]:
        """All rows that lie in its pack if that is a head pack of its replica, else none."""
        layout, pack = self._known[source.replica.number].layout, source.place.pack
        if layout is None or pack not in layout.head_packs:
            return []
        number = next(n for n in layout.heads if layout.places.packs[n].tobytes() == pack)
        return [int(row) for row in np.flatnonzero(layout.places.pack[layout.row_place] == number)]

    def stored_bytes(self, first: int, count: int) -> int:
        """Of these rows, each place once; without a layout, of those whose place is known."""
        layout = next((known.layout for known in self._known if known.layout is not None), None)
        if layout is not None and count:
            return layout.stored_bytes(slice(first, first + count))
        places = {source.place for row in range(first, first + count) if (source := self.source(row)) is not None}
        return sum(place.length for place in places)

    def _candidates(self, row: int) -> Iterator[Source]:
        for replica in self.replicas.in_order():
            for place in self._known[replica.number].candidates(row, self._manifest):
                yield Source(replica, place)


class _Known:
    """What is known of one replica. Replaced as a whole, by who renews; trouble: of the last time."""

    def __init__(self, repository: Repository, replica: Replica) -> None:
        self._repository, self._replica = repository, replica
        self.layout: Layout | None = None
        self.indexes: tuple[Index, ...] = ()
        self.moved: dict[int, Place] = {}  # single operations need no lock
        self.trouble: Unavailable | None = None
        self.asked = False
        self._renewed_s = -math.inf

    def candidates(self, row: int, of: Manifest) -> Iterator[Place]:
        moved, layout = self.moved.get(row), self.layout
        if moved is not None:
            yield moved
        if layout is not None:
            yield layout.place(row)
        id = of.chunk_id(row)
        for index in self.indexes:
            if (found := index.find(id)) is not None:
                yield found.place

    def more(self, of: Manifest, deadline: Deadline) -> Iterator[None]:
        """Each time more is known: at once, with the layout, with a fresh one and the indexes."""
        if self.layout is not None or self.indexes:
            yield
        if not self.asked:
            self.asked = True
            self.trouble = None
            self._load_layout(of, deadline, fresh=False)
            yield
            if self.trouble is not None:
                return
        if time.monotonic() - self._renewed_s > _RENEW_PERIOD_S:
            self.trouble = None
            self._load_layout(of, deadline, fresh=True)
            try:
                found = self._repository.catalog(deadline).catalog
                self.indexes = tuple(self._repository.indexes(found, deadline))
            except ModelfsError as error:
                self._note("index.unusable", of.id, error)
            self._renewed_s = time.monotonic()
            yield

    def _load_layout(self, of: Manifest, deadline: Deadline, *, fresh: bool) -> None:
        try:
            self.layout = self._repository.layout(of, deadline, fresh=fresh)
        except ModelfsError as error:
            self._note("layout.unusable", of.id, error)

    def _note(self, event: str, manifest: ObjectId, error: ModelfsError) -> None:
        if isinstance(error, Unavailable):
            self.trouble = error
        log_event(_LOG, "warning", event, manifest=manifest.hex(), store=self._replica.url, why=str(error))

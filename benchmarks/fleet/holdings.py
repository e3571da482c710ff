"""Which versions each server has, looked up where its repository lies.

Rule: what is noted is what the catalog on its disk leads to, a little later than it was so, never sooner.
"""

from __future__ import annotations

import threading
from contextlib import suppress

from benchmarks.fleet.fleet import MODEL, Fleet
from benchmarks.fleet.journal import Journal
from modelfs.errors import ModelfsError
from modelfs.ids import ModelName
from modelfs.repository.repository import Repository
from modelfs.stores.file_store import FileStore
from modelfs.units import Deadline

_EVERY_S = 0.2


class Holdings:
    """Watches, and looks after services that end by themselves, until `end`."""

    def __init__(self, fleet: Fleet, journal: Journal) -> None:
        self._fleet, self._journal = fleet, journal
        self._ended = threading.Event()
        self._newest: dict[str, int] = {}  # single operations need no lock
        self._etags: dict[str, str | None] = {}
        self._look()
        self._thread = threading.Thread(target=self._work, name="holdings", daemon=True)
        self._thread.start()

    def has_newest(self, server: str) -> bool:
        return self._newest[server] == max(self._newest.values())

    def end(self) -> None:
        self._ended.set()
        self._thread.join(30)

    def _work(self) -> None:
        while not self._ended.wait(_EVERY_S):
            self._look()
            for service in self._fleet.services:
                if (code := service.ended_by_itself()) is not None:
                    self._journal.note("unexpected", what=f"{service.name} ended", code=code,
                                       said=service.log.read_text(errors="replace")[-400:])
                    with suppress(Exception):
                        service.start()

    def _look(self) -> None:
        for server in self._fleet.wholes:
            with suppress(ModelfsError):  # its disk may be full, its catalog on its way
                repository = Repository.open(FileStore(server.directory), Deadline(5))
                found = repository.newer_catalog(self._etags.get(server.name), Deadline(5))
                if found is not None:
                    rows = repository.history(found.catalog, ModelName.parse(MODEL), Deadline(5))
                    newest = max(row.number for row in repository.versions(rows, Deadline(5)))
                    self._etags[server.name] = found.etag
                    if newest != self._newest.get(server.name):
                        self._newest[server.name] = newest
                        self._journal.note("holds", server=server.name, version=newest)

"""Watches the catalog: one conditional request a period of each replica, and the view is told of what is new.

Rule: nothing that a store does ends the watching, and the catalog never goes back because a mirror lags.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from functools import partial
from typing import Any, Protocol

from modelfs.errors import ModelfsError
from modelfs.logs import log_event, logger_for
from modelfs.repository.beside import beside
from modelfs.repository.catalog import Catalog
from modelfs.repository.repository import CatalogState, Repository
from modelfs.stores.replicas import Replica
from modelfs.units import Deadline

_LOG = logger_for(__name__)


class Shown(Protocol):
    """view.View, as the watch needs it."""

    def update(self, catalog: Catalog) -> bool: ...


class CatalogWatch:
    def __init__(self, repository: Repository, begun_with: CatalogState, *, poll_s: float,
                 renew: Callable[[], Deadline], remember: Callable[[Catalog], None]) -> None:
        """begun_with: what the view shows; without an etag where it came from the cache. remember: a newer one."""
        self._repository, self._renew, self._remember = repository, renew, remember
        self._serial = begun_with.catalog.serial
        self._replicas = repository.replicas.replicas
        self._etags: dict[Replica, str | None] = dict.fromkeys(self._replicas, begun_with.etag)
        self.poll_s = poll_s
        self._unfinished: Catalog | None = None
        self._changed = threading.Event()
        self._stopping = False

    def start(self, view: Shown) -> None:
        self._thread = threading.Thread(target=self._run, args=(view,), name="catalog", daemon=True)
        self._thread.start()

    def set_poll(self, poll_s: float) -> None:
        """From now on; one period begins now."""
        self.poll_s = poll_s
        self._changed.set()

    def stop(self) -> None:
        """Does not wait for a request under way: its thread ends with the process."""
        self._stopping = True
        self._changed.set()

    def stores(self) -> list[dict[str, Any]]:
        """As `status` shows them."""
        return [replica.health() for replica in self._replicas]

    def look(self, view: Shown) -> None:
        """Ask every replica once, all at a time, and update the view."""
        asked = [beside(partial(self._ask, replica)) for replica in self._replicas[1:]]
        answers = [self._ask(self._replicas[0]), *(answer() for answer in asked)]
        found = max((one for one in answers if one is not None), key=lambda one: one.serial, default=None)
        # A mirror that lags has an older one than is shown. A repository that went back is its only store's to say.
        if found is not None and (found.serial > self._serial or len(self._replicas) == 1):
            self._unfinished = found
        if self._unfinished is not None:
            catalog = self._unfinished
            if not view.update(catalog):
                self._unfinished = None
            if catalog.serial > self._serial:
                self._serial = catalog.serial
                self._remember(catalog)

    def _ask(self, replica: Replica) -> Catalog | None:
        """A catalog that differs from what this replica had, or None."""
        began = time.monotonic()
        try:
            found = self._repository.on(replica).newer_catalog(self._etags[replica], self._renew())
        except ModelfsError as error:
            replica.failed(error)
            self._repository.replicas.probe()
            return None
        replica.served(time.monotonic() - began)
        if found is None:
            return None
        self._etags[replica] = found.etag
        return found.catalog

    def _run(self, view: Shown) -> None:
        while not self._stopping:
            if self._changed.wait(self.poll_s):
                self._changed.clear()
                continue
            try:
                self.look(view)
            except Exception as error:  # a fault of ours must not end the watching
                log_event(_LOG, "error", "catalog.watch", error=error)

"""Watches the catalog: one conditional request a period, and the view is told of what is new.

Rule: nothing that a store does ends the watching; a change of its state is logged once, and told in `status`.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any, Protocol

from modelfs.errors import Forbidden, ModelfsError, Unavailable
from modelfs.logs import log_event, logger_for
from modelfs.repository.catalog import Catalog
from modelfs.repository.repository import CatalogState, Repository
from modelfs.units import Deadline

_LOG = logger_for(__name__)


class Shown(Protocol):
    """view.View, as the watch needs it."""

    def update(self, catalog: Catalog) -> bool: ...


@dataclass(frozen=True, slots=True)
class StoreState:
    """state: ok, unreachable, refused or faulty. latency_ms: of the last request that was answered, or None.
    errors: failed requests for the catalog since the mount."""

    url: str
    state: str = "ok"
    latency_ms: float | None = None
    errors: int = 0


class CatalogWatch:
    def __init__(self, repository: Repository, begun_with: CatalogState, first: StoreState, *, poll_s: float,
                 renew: Callable[[], Deadline], remember: Callable[[Catalog], None]) -> None:
        """begun_with: what the view shows; without an etag where it came from the cache. remember: a newer one."""
        self._repository, self._state, self._renew, self._remember = repository, first, renew, remember
        self._etag, self._serial = begun_with.etag, begun_with.catalog.serial
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
        return [asdict(self._state)]

    def look(self, view: Shown) -> None:
        """Ask once, and update the view."""
        began = time.monotonic()
        try:
            found = self._repository.newer_catalog(self._etag, self._renew())
        except ModelfsError as error:
            self._note(error, None)
            return
        self._note(None, (time.monotonic() - began) * 1000)
        if found is not None:
            self._etag, self._unfinished = found.etag, found.catalog
        if self._unfinished is not None:
            catalog = self._unfinished
            if not view.update(catalog):
                self._unfinished = None
            if catalog.serial > self._serial:
                self._serial = catalog.serial
                self._remember(catalog)

    def _run(self, view: Shown) -> None:
        while not self._stopping:
            if self._changed.wait(self.poll_s):
                self._changed.clear()
                continue
            try:
                self.look(view)
            except Exception as error:  # a fault of ours must not end the watching
                log_event(_LOG, "error", "catalog.watch", error=error)

    def _note(self, error: ModelfsError | None, latency_ms: float | None) -> None:
        before = self._state
        state = ("ok" if error is None else "unreachable" if isinstance(error, Unavailable) else
                 "refused" if isinstance(error, Forbidden) else "faulty")
        self._state = StoreState(before.url, state, before.latency_ms if latency_ms is None else round(latency_ms, 3),
                                 before.errors + (error is not None))
        if state != before.state:
            log_event(_LOG, "info" if error is None else "warning", "catalog.store", store=before.url, state=state,
                      key=f"{state} {self._state.errors}", error=error)

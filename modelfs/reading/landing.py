"""A chunk that is here and checked reaches who waits for it and who keeps it; one that failed reaches the log.

Rule: neither a waiter nor a cache that is at fault keeps a chunk from the others.
"""

from __future__ import annotations

from collections.abc import Sequence

from modelfs.errors import ModelfsError
from modelfs.ids import ChunkId
from modelfs.logs import log_event, logger_for
from modelfs.reading.flights import Flight, Waiter, Want

_LOG = logger_for(__name__)


def hand_over(waiter: Waiter, id: ChunkId, decoded: memoryview) -> None:
    try:
        waiter.arrived(id, decoded)
    except Exception as error:
        waiter.failed(id, broken(error))


def keep(wants: Sequence[Want], decoded: memoryview) -> bool:
    """Whether the cache took it for all of them. One that breaks costs speed, never a read."""
    kept = True
    for want in wants:
        try:
            kept = bool(want.file.cache.fill(want.chunk, decoded)) and kept
        except Exception as error:
            kept = False
            broken(error)
    return kept


def broken(error: Exception) -> ModelfsError:
    """A bug of ours, logged with where it was, as the error that readers get."""
    log_event(_LOG, "error", "fetch.broken", error=error)
    return ModelfsError("an internal fault while fetching", why=f"{type(error).__name__}: {error}")


def log_flight(flight: Flight, event: str, error: ModelfsError) -> None:
    source = flight.source or (flight.wrong[-1] if flight.wrong else None)
    log_event(_LOG, "error", event, file=flight.wants[0].file.path, chunk=flight.ref.id.hex(),
              pack=source.place.pack.hex() if source else None,
              store=source.replica.url if source else flight.sources.replicas.url, why=str(error))

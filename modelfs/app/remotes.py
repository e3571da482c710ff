"""The remotes of the configuration: each of their stores asked for its catalog, all at a time.

Rule: one that does not answer holds up nobody longer than the deadline, and what is wrong with it is told, not raised.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from modelfs.app.repositories import deadline_of, stores_of
from modelfs.config import Config, RemoteConfig
from modelfs.errors import ModelfsError, NotFound
from modelfs.repository.beside import beside
from modelfs.repository.repository import Repository
from modelfs.stores.replicas import Replica

_DEADLINE_S = 10.0


@dataclass(frozen=True, slots=True)
class Health:
    """serial, behind: of the catalog, and how many changes it lacks of the newest there is; None where it is not known,
    or where the store has another repository than the first. error: one line, or None."""

    url: str
    state: str
    latency_ms: float | None
    serial: int | None
    behind: int | None
    replica_of: str | None
    error: str | None


def chosen(config: Config, names: Sequence[str]) -> list[RemoteConfig]:
    """All without names. Raises NotFound."""
    for name in names:
        if name not in config.remotes:
            raise NotFound(f"no remote {name}", advice=f"The remotes are {', '.join(config.remotes)}."
                           if config.remotes else "The configuration has none.")
    return [config.remotes[name] for name in (names or config.remotes)]


def check(config: Config, remote: RemoteConfig) -> list[Health]:
    """Of each of its stores, in order of preference."""
    replicas = [Replica(number, store) for number, store in enumerate(stores_of(config, remote.name))]
    asked = [beside(partial(_ask, config, replica)) for replica in replicas]
    answers = [answer() for answer in asked]
    good = [repository for repository, _, _ in answers if repository is not None]
    first = good[0].info.id if good else None
    newest = max((serial for repository, serial, _ in answers if repository is not None and serial is not None
                  and repository.info.id == first), default=None)
    found = []
    for replica, (repository, serial, of) in zip(replicas, answers, strict=True):
        error = replica.last_error
        stranger = repository is not None and repository.info.id != first
        if stranger:
            error = "it is another repository than the first"
        health: dict[str, Any] = {**replica.health(), "state": "faulty" if stranger else replica.state}
        found.append(Health(health["url"], health["state"], health["latency_ms"], serial,
                            None if newest is None or serial is None or stranger else newest - serial, of, error))
    return found


def _ask(config: Config, replica: Replica) -> tuple[Repository | None, int | None, str | None]:
    """(repository, serial, replica_of), as far as they could be had."""
    deadline = deadline_of(config).sooner(_DEADLINE_S)
    repository = None
    try:
        repository = Repository.open(replica.store, deadline)
        began = time.monotonic()
        catalog = repository.catalog(deadline).catalog
    except ModelfsError as error:
        replica.failed(error)
        return repository, None, None
    replica.served(time.monotonic() - began)
    return repository, catalog.serial, catalog.replica_of

"""A push that returns once several stores hold it: the primary, and backups that are brought up to date behind it.

Rule: what was pushed is in the primary whatever happens here; who cannot be reached is told, never waited for longer
than the deadline.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from modelfs.app.repositories import deadline_of, repository_at, stores_of
from modelfs.app.transfers import throttled
from modelfs.config import Config
from modelfs.errors import BadInput, ModelfsError, Unavailable
from modelfs.repository.beside import beside
from modelfs.stores.retrying import RetryingStore
from modelfs.stores.store import ObjectStore
from modelfs.stores.throttled import Throttle
from modelfs.transfer.replicate import replicate


def check_enough(config: Config, spec: str, count: int) -> None:
    """Raises BadInput where the remote has fewer stores."""
    remote = config.remotes.get(spec)
    stores = len(remote.urls) if remote else 1
    if count > stores:
        raise BadInput(f"--sync {count} is more than there are stores", where=spec, why=f"it has {stores}",
                       advice="Name its replicas in [remotes.NAME] urls.")


def hold_by(config: Config, spec: str, count: int, tell: Callable[[str], None],
            throttle: Throttle | None = None) -> list[str]:
    """The URLs of the stores that hold what the first has now, at least count; all backups are brought up to date at
    once, and throttle is for what they read together. Raises Unavailable where fewer could be, with the reason of the
    first that could not."""
    primary = throttled(repository_at(config, spec, tell=tell), throttle)
    backups = [RetryingStore(store) for store in stores_of(config, spec)[1:]] if count > 1 else []
    held, failed = [primary.store.url], []

    def bring(backup: ObjectStore) -> ModelfsError | None:
        try:
            replicate(primary, backup, lambda: deadline_of(config).patient(), tell=tell)
        except ModelfsError as error:
            return error
        return None

    for backup, answer in [(backup, beside(partial(bring, backup))) for backup in backups]:
        error = answer()
        if error is None:
            held.append(backup.url)
        else:
            failed.append((backup.url, error))
            tell(f"warning: {backup.url} does not hold it: {error}")
    if len(held) < count:
        raise Unavailable(f"the version is held by {len(held)} of {count} stores", where=failed[0][0],
                          why=failed[0][1].why or str(failed[0][1]),
                          advice="It was pushed; `modelfs replicate` brings it there.")
    return held

"""What the tests of tags, removal and gc share: changes of a repository, and a look at all that is left of it."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from pathlib import Path

from transfer.pushed import MODEL, make_repository, push_files, reading, repository_root, soon

from modelfs.ids import ModelName, ModelRef
from modelfs.maintenance.gc import GcOptions, GcReport, collect
from modelfs.maintenance.removal import Removal, remove
from modelfs.maintenance.retention import Retention
from modelfs.maintenance.tagging import move_tag
from modelfs.maintenance.verify import verify
from modelfs.repository.history import History
from modelfs.repository.repository import Repository
from modelfs.stores.store import ObjectStore
from modelfs.units import Deadline

DAY = 86_400.0


def rm(repository: Repository, model: str) -> Removal:
    return remove(repository, ModelRef.parse(model), soon)


def tag(repository: Repository, model: str, name: str) -> bool:
    return move_tag(repository, ModelRef.parse(model), name, soon).changed


def gc(repository: Repository, grace_s: float = 0.0, *, days: float = 0.0, dry_run: bool = False,
       repack: bool = False, retention: Retention | None = None) -> GcReport:
    """days: how much later than now it runs."""
    return collect(repository, GcOptions(grace_s, dry_run, soon, 2, clock=lambda: time.time() + days * DAY,
                                         repack=repack, retention=retention))


def history(repository: Repository, model: str = MODEL) -> History:
    return repository.history(repository.catalog(soon()).catalog, ModelName.parse(model), soon())


def files(root: Path) -> dict[str, bytes]:
    """Every file of a repository but its locks."""
    return {str(path.relative_to(root)): path.read_bytes() for path in sorted(root.rglob("*"))
            if path.is_file() and not path.name.startswith(".")}


def assert_whole(repository: Repository, expected: Mapping[str, Mapping[str, bytes]]) -> None:
    """expected: of each org/name:vN its files. Every version is there as it was pushed, no other is, all verifies."""
    report = verify(repository, read_data=True)
    assert report.faults == ()
    assert report.versions == len(expected)
    with reading(repository_root(repository)) as r:
        for model, contents in expected.items():
            for path, data in contents.items():
                assert r.read(r.file(path, model)) == data


class Between:
    """A store that has something happen once, before the first call of a method for a key."""

    def __init__(self, store: ObjectStore, method: str, key: str, happen: Callable[[], object]) -> None:
        self.url, self._store, self._method, self._key, self._happen = store.url, store, method, key, happen
        self.happened = False

    def __getattr__(self, name: str) -> object:
        call = getattr(self._store, name)

        def watched(*args: object, **kwargs: object) -> object:
            if name == self._method and not self.happened and str(args[0]).startswith(self._key):
                self.happened = True
                self._happen()
            return call(*args, **kwargs)

        return watched

    def repository(self) -> Repository:
        return Repository.open(self, Deadline(30))  # type: ignore[arg-type]


__all__ = ["DAY", "MODEL", "Between", "assert_whole", "files", "gc", "history", "make_repository", "push_files", "rm",
           "soon", "tag"]

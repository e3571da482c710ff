"""The journal of a push: which packs it finished, so that a push that was killed is not repeated.

Rule: a pack is noted before it is put, so every pack that the store has was noted; whether it is there, and what is
in it, is asked of the store. A journal whose push lives is locked, and left alone by others; a dead one goes only
when nothing in it is left to resume, also for a later push of something else.
"""

from __future__ import annotations

import fcntl
import os
import secrets
import threading
from collections.abc import Collection
from contextlib import suppress
from pathlib import Path

from modelfs.errors import BadInput
from modelfs.ids import ModelName, ObjectId

_MAX_BYTES = 64 << 20  # a million packs


class Journal:
    """One push's. A state directory that cannot be used costs the resume, not the push."""

    def __init__(self, state: Path, repository_id: str, model: ModelName) -> None:
        self._directory = state / "journal" / repository_id / f"{model.org}--{model.name}"
        self._found: dict[Path, list[ObjectId]] = {}
        self._lock = threading.Lock()
        self._path: Path | None = None  # of its own journal, once there is one; guarded by _lock, as the rest
        self._fd = -1
        self._usable = True

    def adopt(self) -> list[ObjectId]:
        """The packs noted by pushes of this model that did not end, each once."""
        try:
            names = sorted(name for name in os.listdir(self._directory) if name.endswith(".packs"))
        except OSError:
            return []
        for name in names:
            with suppress(OSError):  # that one's push lives, or has ended since
                self._found[self._directory / name] = _read_dead(self._directory / name)
        return list(dict.fromkeys(pack for packs in self._found.values() for pack in packs))

    def note(self, pack: ObjectId) -> None:
        """Durably, from any thread."""
        with self._lock:
            try:
                if self._fd < 0 and self._usable:
                    self._create()
                if self._usable:
                    os.write(self._fd, f"{pack.hex()}\n".encode())
                    os.fdatasync(self._fd)
            except OSError:
                self._usable = False

    def finish(self, unused: Collection[ObjectId] = ()) -> None:
        """The push is in the catalog. unused: packs of dead journals that nothing names yet; those journals stay."""
        done = [path for path, packs in self._found.items() if not set(packs) & set(unused)]
        for path in done + ([self._path] if self._path else []):
            with suppress(OSError):
                path.unlink()
        self.close()

    def close(self) -> None:
        """What was noted stays for the next push, unless it was finished."""
        with self._lock:
            fd, self._fd, self._usable = self._fd, -1, False
            if fd >= 0:
                os.close(fd)

    def _create(self) -> None:
        """Locked before it has its name: nobody ever sees it without its push."""
        self._directory.mkdir(parents=True, exist_ok=True)
        path = self._directory / f"{secrets.token_hex(8)}.packs"
        hidden = path.with_suffix(".new")
        self._fd = os.open(hidden, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        fcntl.flock(self._fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        hidden.rename(path)
        self._path = path


def _read_dead(path: Path) -> list[ObjectId]:
    """Raises OSError, BlockingIOError where its push lives."""
    fd = os.open(path, os.O_RDWR | os.O_CLOEXEC)
    try:
        fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
        return _packs_in(os.pread(fd, _MAX_BYTES, 0))
    finally:
        os.close(fd)


def _packs_in(data: bytes) -> list[ObjectId]:
    out = []
    for line in data.decode("ascii", "replace").splitlines():
        try:
            out.append(ObjectId.from_hex(line))
        except BadInput:
            continue  # the line that was being written when the push was killed
    return out

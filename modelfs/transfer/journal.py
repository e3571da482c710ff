"""The journal of a push: which packs it finished, so that a push that was killed is not repeated.

Rule: a pack is noted before it is put, so every pack that the store has was noted; whether it is there, and
what is in it, is asked of the store. A journal whose push lives is locked, and left alone by others.
"""

from __future__ import annotations

import fcntl
import os
import secrets
from pathlib import Path

from modelfs.errors import BadInput
from modelfs.ids import ModelName, ObjectId


class Journal:
    """One push's. A state directory that cannot be written costs the resume, not the push."""

    def __init__(self, state: Path, repository_id: str, model: ModelName) -> None:
        self._directory = state / "journal" / repository_id / f"{model.org}--{model.name}"
        self._adopted: list[int] = []
        self._paths: list[Path] = []
        self._own: int | None = None

    def adopt(self) -> list[ObjectId]:
        """The packs noted by pushes of this model that did not end; their journals are this push's now."""
        packs: dict[ObjectId, None] = {}
        try:
            for path in sorted(self._directory.glob("*.packs")):
                fd = os.open(path, os.O_RDWR | os.O_CLOEXEC)
                try:
                    fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
                except BlockingIOError:
                    os.close(fd)
                    continue
                self._adopted.append(fd)
                self._paths.append(path)
                packs.update((pack, None) for pack in _packs_in(path.read_bytes()))
        except OSError:
            return list(packs)
        return list(packs)

    def note(self, pack: ObjectId) -> None:
        """Durably, from any thread."""
        try:
            if self._own is None:
                self._directory.mkdir(parents=True, exist_ok=True)
                path = self._directory / f"{secrets.token_hex(8)}.packs"
                fd = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
                fcntl.flock(fd, fcntl.LOCK_EX)
                self._own = fd
                self._paths.append(path)
            os.write(self._own, f"{pack.hex()}\n".encode())
        except OSError:
            return

    def finish(self) -> None:
        """The push is in the catalog: nothing is left to resume."""
        for path in self._paths:
            path.unlink(missing_ok=True)
        self.close()

    def close(self) -> None:
        for fd in [*self._adopted, *([] if self._own is None else [self._own])]:
            os.close(fd)
        self._adopted, self._own = [], None


def _packs_in(data: bytes) -> list[ObjectId]:
    out = []
    for line in data.decode("ascii", "replace").splitlines():
        try:
            out.append(ObjectId.from_hex(line))
        except BadInput:
            continue  # the line that was being written when the push was killed
    return out

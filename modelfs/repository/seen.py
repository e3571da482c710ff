"""The newest serial of each repository's catalog that this host has seen, kept where a cleared cache does not lose it.

Rule: it only rises, and it is a memory, not a judge: what an older catalog means is for the caller to say.
"""

from __future__ import annotations

import os
import secrets
from contextlib import suppress
from pathlib import Path


class SeenSerials:
    """One small file a repository, below the state directory. A directory that cannot be used remembers nothing."""

    def __init__(self, state: Path) -> None:
        self._directory = state / "serials"

    def highest(self, repository_id: str) -> int:
        """0 where none was seen."""
        try:
            return int((self._directory / repository_id).read_text("ascii"))
        except (OSError, ValueError):
            return 0

    def note(self, repository_id: str, serial: int) -> None:
        if serial <= self.highest(repository_id):
            return
        temporary = self._directory / f".{repository_id}.{secrets.token_hex(4)}"
        with suppress(OSError):
            self._directory.mkdir(parents=True, exist_ok=True, mode=0o700)
            temporary.write_text(f"{serial}\n", "ascii")
            os.replace(temporary, self._directory / repository_id)

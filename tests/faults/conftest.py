"""Mounts, and a disk that is soon full."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from mount.mounting import Mounter


@pytest.fixture
def mount(tmp_path: Path, environ: dict[str, str]) -> Iterator[Mounter]:
    mounter = Mounter(tmp_path, environ)
    yield mounter
    mounter.end()


@pytest.fixture
def disk_of(tmp_path: Path) -> Iterator[Callable[[int], Path]]:
    """A function from a size to a disk of it."""
    if os.geteuid():
        pytest.skip("only root may mount a tmpfs")
    made: list[Path] = []

    def make(size: int) -> Path:
        place = tmp_path / f"disk{len(made)}"
        place.mkdir()
        subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(place)], check=True)
        made.append(place)
        return place
    yield make
    for place in made:
        subprocess.run(["umount", "-l", str(place)], check=True)

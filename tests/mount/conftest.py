"""A pushed model and the means to mount it."""

from __future__ import annotations

import random
from collections.abc import Iterator
from pathlib import Path

import pytest
from mount.mounting import Mounter

from modelfs.units import MiB


@pytest.fixture
def mount(tmp_path: Path, environ: dict[str, str]) -> Iterator[Mounter]:
    mounter = Mounter(tmp_path, environ)
    yield mounter
    mounter.end()


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """About 9 MiB: one large file, small ones in directories, an empty one, one that may be run."""
    root = tmp_path / "source"
    (root / "deep" / "er").mkdir(parents=True)
    random_bytes = random.Random(7).randbytes
    (root / "big.bin").write_bytes(random_bytes(8 * MiB + 12_345))
    (root / "deep" / "er" / "small.bin").write_bytes(random_bytes(70_001))
    (root / "deep" / "empty").touch()
    (root / "deep" / "ü ,\n.txt").write_text("a name, with all sorts of things in it")
    (root / "run.sh").write_text("#!/bin/sh\n")
    (root / "run.sh").chmod(0o755)
    return root


@pytest.fixture
def repository(tmp_path: Path, mount: Mounter, source: Path) -> Path:
    """With source as acme/base:v1."""
    place = tmp_path / "repository"
    for arguments in (("init", place, "--chunk-size", "256KiB"), ("push", source, place, "acme/base")):
        done = mount.run(*arguments)
        assert done.returncode == 0, done.stderr
    return place

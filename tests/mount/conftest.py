"""A pushed model and the means to mount it."""

from __future__ import annotations

import os
import random
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from mount.mounting import ROOT, Mounter, PushedOnce

from modelfs.units import MiB


@pytest.fixture
def engine(request: pytest.FixtureRequest) -> str:
    """Native, unless a module says `pytestmark = BOTH_ENGINES`."""
    return str(getattr(request, "param", "native"))


@pytest.fixture
def mount(tmp_path: Path, environ: dict[str, str], engine: str) -> Iterator[Mounter]:
    mounter = Mounter(tmp_path, {**environ, "MODELFS_MOUNT_ENGINE": engine})
    yield mounter
    mounter.end()


def fill(root: Path) -> None:
    """About 9 MiB: one large file, small ones in directories, an empty one, one that may be run."""
    (root / "deep" / "er").mkdir(parents=True)
    random_bytes = random.Random(7).randbytes
    (root / "big.bin").write_bytes(random_bytes(8 * MiB + 12_345))
    (root / "deep" / "er" / "small.bin").write_bytes(random_bytes(70_001))
    (root / "deep" / "empty").touch()
    (root / "deep" / "ü ,\n.txt").write_text("a name, with all sorts of things in it")
    (root / "run.sh").write_text("#!/bin/sh\n")
    (root / "run.sh").chmod(0o755)


@pytest.fixture(scope="session")
def pushed_once(tmp_path_factory: pytest.TempPathFactory) -> PushedOnce:
    """A function from what fills a directory to one with `source`, so filled, and `repository`, in chunks of 256 KiB,
    with that as acme/base:v1. Made once: each test has copies."""
    made: dict[Callable[[Path], None], Path] = {}

    def once(fill: Callable[[Path], None]) -> Path:
        if fill not in made:
            place = tmp_path_factory.mktemp("pushed")
            (place / "source").mkdir()
            fill(place / "source")
            for arguments in (("init", "repository", "--chunk-size", "256KiB"),
                              ("push", "source", "repository", "acme/base")):
                subprocess.run([sys.executable, "-m", "modelfs", *arguments], cwd=place, check=True,
                               capture_output=True, env={**os.environ, "HOME": str(place), "PYTHONPATH": str(ROOT)})
            made[fill] = place
        return made[fill]

    return once


@pytest.fixture
def source(tmp_path: Path, pushed_once: PushedOnce) -> Path:
    """As `fill` says."""
    return Path(shutil.copytree(pushed_once(fill) / "source", tmp_path / "source"))


@pytest.fixture
def repository(tmp_path: Path, pushed_once: PushedOnce) -> Path:
    """With source as acme/base:v1."""
    return Path(shutil.copytree(pushed_once(fill) / "repository", tmp_path / "repository"))

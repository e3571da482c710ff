"""Real mounts by a session of this process that does without one of the kernel's features: it falls back, and what is
read is right."""

from __future__ import annotations

import os
import subprocess
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from mount.mounting import until
from repository.builder import Builder

from modelfs.daemon import mountpoints
from modelfs.engines.native import protocol
from modelfs.engines.native.engine import NativeEngine
from modelfs.engines.options import MountOptions
from modelfs.view.view import View

FILES = {"a.bin": os.urandom(700_001), "d/e/small": b"small", "d/empty": b""} | {f"many/{n}": b"x" for n in range(300)}
EVERY = protocol.PASSTHROUGH | protocol.HAS_RESEND


@contextmanager
def served(view: View, place: Path, cache: Path, refused: int) -> Iterator[NativeEngine]:
    place.mkdir()
    engine = NativeEngine(cache, passthrough=True, refused=refused)
    engine.take(MountOptions(place, "test"))
    serving = threading.Thread(target=engine.serve, args=(view,), daemon=True)
    try:
        serving.start()
        until(lambda: engine.serving)
        yield engine
    finally:
        mountpoints.detach(place, lazy=True)
        serving.join(30)
    assert not serving.is_alive()


@pytest.mark.parametrize("refused", [
    0, protocol.PASSTHROUGH, protocol.HAS_RESEND, protocol.INIT_EXT | EVERY, protocol.MAX_PAGES, protocol.ASYNC_READ,
    protocol.PARALLEL_DIROPS, protocol.READDIRPLUS_AUTO, protocol.DO_READDIRPLUS | protocol.READDIRPLUS_AUTO,
    (1 << 64) - 1], ids=["nothing", "PASSTHROUGH", "HAS_RESEND", "INIT_EXT", "MAX_PAGES", "ASYNC_READ",
                         "PARALLEL_DIROPS", "READDIRPLUS_AUTO", "READDIRPLUS", "all"])
def test_without_a_feature_every_byte_and_name_is_there(built: Builder, show: Callable[..., View], tmp_path: Path,
                                                       refused: int) -> None:
    built.push("acme/base", FILES)
    with served(show(), tmp_path / "mnt", tmp_path, refused) as engine:
        assert not (engine.passthrough and refused & protocol.PASSTHROUGH)
        original = tmp_path / "original"
        for name, data in FILES.items():
            (original / name).parent.mkdir(parents=True, exist_ok=True)
            (original / name).write_bytes(data)
        # other processes read: a fault in a map of this one would wait for a thread that needs what it holds
        told = subprocess.run(["diff", "-r", original, tmp_path / "mnt/acme/base/v1"], capture_output=True, text=True,
                              timeout=60, check=False)
        assert (told.returncode, told.stdout, told.stderr) == (0, "", "")
        listed = subprocess.run(["ls", "-U", tmp_path / "mnt/acme/base/v1/many"], capture_output=True, text=True,
                                timeout=60, check=True)
        assert sorted(listed.stdout.split()) == sorted(str(n) for n in range(300))

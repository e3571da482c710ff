"""A pull that is killed in its middle is gone on with by the next: what is there and right is not fetched again."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

from faultproxy import FaultProxy
from results import Result
from transfer.pushed import CHUNK, MODEL, eventually, make_repository, noise, push_tree, write

SIZE = 96 * CHUNK
FILES = {"w.bin": noise(1, SIZE), "config.json": b"{}"}


def parts(out: Path) -> int:
    """Bytes on the disk under names that are none yet."""
    return sum(path.stat().st_blocks * 512 for path in out.rglob("*.modelfs-part"))


def killed(command: list[str], environ: dict[str, str], out: Path, enough: int) -> None:
    """Once so many bytes are there."""
    process = subprocess.Popen(command, env={**environ, "PYTHONPATH": str(Path(__file__).parents[2])},
                               stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        eventually(lambda: parts(out) >= enough or process.poll() is not None)
        assert process.poll() is None, "it had ended"
    finally:
        process.kill()
        process.wait()


def test_a_pull_killed_twice_goes_on_each_time_and_fetches_only_the_rest(
        tmp_path: Path, environ: dict[str, str], modelfs: Callable[..., Result]) -> None:
    push_tree(write(tmp_path / "source", FILES), make_repository(tmp_path / "repository"))
    out = tmp_path / "out"
    with FaultProxy(tmp_path / "repository") as proxy:
        arguments = ("pull", proxy.url, MODEL, str(out), "--json")
        for _ in range(2):
            proxy.add("stall", "packs/", after=14 * CHUNK)
            killed([sys.executable, "-m", "modelfs", *arguments], environ, out, parts(out) + 10 * CHUNK)
            assert not (out / "w.bin").exists()
            proxy.clear()
        proxy.forget()
        done = modelfs(*arguments)
        assert done.code == 0, done.err
        report = json.loads(done.out)
        assert report["resumed_bytes"] >= 18 * CHUNK, "but for a chunk each time that was half there"
        assert report["resumed_bytes"] + report["downloaded_bytes"] <= SIZE + CHUNK
        assert proxy.bytes_sent("packs/") <= SIZE - report["resumed_bytes"] + CHUNK
    assert {path.name: path.read_bytes() for path in out.iterdir()} == FILES

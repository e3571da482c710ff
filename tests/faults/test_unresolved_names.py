"""Hosts that no name server knows: commands say so and end, mounts read what the cache and other mirrors have."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from faultproxy import FaultProxy
from mount.mounting import Mounter
from results import Result
from transfer.pushed import MODEL, make_repository, noise, push_tree, write

from modelfs.units import MiB

NOWHERE = "http://nobody.invalid:8750/repo"  # RFC 6761: it never resolves
FILES = {"read.bin": noise(1, MiB), "unread.bin": noise(2, MiB)}


@pytest.fixture
def source(tmp_path: Path) -> Path:
    return write(tmp_path / "source", FILES)


@pytest.mark.parametrize("command", [("ls", NOWHERE), ("push", "source", NOWHERE, MODEL)])
def test_a_command_ends_with_the_deadline_and_names_the_host(command: tuple[str, ...], source: Path,
                                                            modelfs: Callable[..., Result]) -> None:
    done = modelfs(*command, env={"MODELFS_FETCH_DEADLINE": "1s"}, timeout=30)
    assert done.code == 5
    assert "nobody.invalid" in done.err.splitlines()[-1] and "deadline" in done.err.splitlines()[-1]


def test_a_mount_reads_from_the_mirror_whose_name_resolves_and_then_from_its_cache(
        mount: Mounter, source: Path, tmp_path: Path) -> None:
    push_tree(source, make_repository(tmp_path / "repository"))
    config = tmp_path / "config.toml"
    with FaultProxy(tmp_path / "repository") as second:
        config.write_text(f'[fetch]\nhydrate = "off"\n[remotes.lab]\nurls = {json.dumps([NOWHERE, second.url])}\n')
        options = ("--config", config, "--model", MODEL, "--deadline", "2s")
        mounted = mount("lab", *options)
        assert (mounted / "read.bin").read_bytes() == FILES["read.bin"]
        first, other = mounted.status()["stores"]
        assert (first["url"], first["state"]) == (NOWHERE, "unreachable") and other["state"] == "ok"
        assert second.requests("packs/")
        mounted.umount()
    config.write_text(f'[fetch]\nhydrate = "off"\n[remotes.lab]\nurls = ["{NOWHERE}"]\n')
    mounted = mount("lab", *options)
    assert "from the cache" in mounted.log.read_text()
    assert (mounted / "read.bin").read_bytes() == FILES["read.bin"]
    with pytest.raises(OSError) as caught, open(mounted / "unread.bin", "rb", buffering=0) as file:
        file.read(4096)
    assert caught.value.errno == 5

"""What a mount brings by itself of files that were opened, or read in sequence, as `fetch.hydrate` says."""

from __future__ import annotations

import json
import os
import random
from pathlib import Path

import pytest
from mount.mounting import Mounted, Mounter, until
from repository.builder import Builder

from modelfs.units import MiB

SHARD = 8 * MiB
FIRST, SECOND, BESIDE = "m-1-of-2.safetensors", "m-2-of-2.safetensors", "beside.bin"


@pytest.fixture
def repo(tmp_path: Path) -> Path:
    noise = random.Random(31).randbytes
    index = json.dumps({"weight_map": {"a": FIRST, "b": SECOND}}).encode()
    Builder(tmp_path / "repo").push("acme/base", {**{name: noise(SHARD) for name in (FIRST, SECOND, BESIDE)},
                                                  "model.safetensors.index.json": index})
    return tmp_path / "repo"


def whole(mounted: Mounted) -> set[str]:
    return {name for name in (FIRST, SECOND, BESIDE)
            if int(os.getxattr(mounted / name, "user.modelfs.cached")) == SHARD}


@pytest.mark.parametrize(("mode", "opened", "read"), [
    ("off", set(), set()), ("sequential", set(), {FIRST}), ("file", {FIRST, BESIDE}, {FIRST, BESIDE}),
    ("model", {FIRST, SECOND, BESIDE}, {FIRST, SECOND, BESIDE})])
def test_what_comes_by_itself_is_nothing_the_rest_of_the_file_or_its_set(
        mount: Mounter, repo: Path, mode: str, opened: set[str], read: set[str]) -> None:
    """Files come one after the other, in the order of their opens: where the last of them is whole, none comes late."""
    mount.environ |= {"MODELFS_FETCH_HYDRATE": mode, "MODELFS_FETCH_READAHEAD": "64KiB"}
    mounted = mount(repo, "--model", "acme/base")
    only_opened = os.open(mounted / BESIDE, os.O_RDONLY)
    file = os.open(mounted / FIRST, os.O_RDONLY)
    try:
        until(lambda: whole(mounted) == opened)
        for at in range(0, SHARD // 2, MiB):
            os.pread(file, MiB, at)
        until(lambda: whole(mounted) == read)
        (mounted / BESIDE).read_bytes()
        until(lambda: whole(mounted) == read | {BESIDE})
    finally:
        os.close(file)
        os.close(only_opened)
    mounted.umount()

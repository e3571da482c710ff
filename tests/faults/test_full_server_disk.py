"""A server whose disk is full: the client is told so, nothing half shows, and once there is room all goes on."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from results import Result
from servers import own_server
from transfer.pushed import make_repository, noise, reading, write

from modelfs.ids import Digest
from modelfs.maintenance.verify import verify
from modelfs.repository.pack import TARGET_BYTES
from modelfs.units import MiB

SIZE = 2 * TARGET_BYTES + MiB
Run = Callable[..., Result]


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    if os.geteuid():
        pytest.skip("only root may mount a tmpfs")
    place = tmp_path / "disk"
    place.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={TARGET_BYTES + 4 * MiB}", "tmpfs", str(place)], check=True)
    yield place
    subprocess.run(["umount", "-l", str(place)], check=True)


def named(root: Path) -> list[Path]:
    """Objects that a digest names."""
    return [path for path in root.rglob("*") if path.is_file() and len(path.name) == 64 and "layouts" not in path.parts]


def test_a_push_to_a_full_server_is_exit_8_and_goes_on_once_there_is_room(small_disk: Path, tmp_path: Path,
                                                                          modelfs: Run) -> None:
    root, data = small_disk / "repository", noise(70, SIZE)
    repository = make_repository(root, MiB)
    source = write(tmp_path / "source", {"w.bin": data})
    with own_server(root, writable=True) as url:
        full = modelfs("push", source, url, "lab/model")
        assert full.code == 8 and full.err.count("\n") == 1 and "no space" in full.err, full.err
        assert not [path for path in root.rglob(".*") if path.name != ".lock"], "half an upload takes the room there is"
        assert all(Digest.of(path.read_bytes()).hex() == path.name for path in named(root))
        assert json.loads(modelfs("ls", url, "--json").out)["models"] == []
        there = sum(path.stat().st_size for path in named(root))
        assert modelfs("push", source, url, "lab/model").code == 8
        subprocess.run(["mount", "-o", f"remount,size={3 * SIZE}", str(small_disk)], check=True)
        done = modelfs("push", source, url, "lab/model", "--json")
    report = json.loads(done.out)
    assert (report["version"], report["changed"]) == ("v1", True)
    assert report["uploaded_bytes"] <= SIZE - there + MiB
    assert verify(repository, read_data=True).faults == ()
    with reading(root) as r:
        assert r.read(r.file("w.bin")) == data


def test_without_room_for_the_last_objects_the_version_before_stays(small_disk: Path, tmp_path: Path,
                                                                    modelfs: Run) -> None:
    """The packs fit; what makes a version of them does not."""
    root = small_disk / "repository"
    make_repository(root, MiB)
    source = write(tmp_path / "source", {"w.bin": noise(71, 100_000)})
    with own_server(root, writable=True) as url:
        assert modelfs("push", source, url, "lab/model").code == 0
        write(source, {"w.bin": noise(72, 100_000)})
        ballast = small_disk / "ballast"
        found = os.statvfs(small_disk)
        ballast.write_bytes(bytes(found.f_bavail * found.f_frsize - 120 * 1024))  # one pack of 100 KB, and little more
        full = modelfs("push", source, url, "lab/model")
        assert full.code == 8, full.err
        assert any(path.stat().st_size > 100_000 for path in (root / "packs").rglob("*") if path.is_file())
        ballast.unlink()
        assert json.loads(modelfs("ls", url, "--json").out)["models"][0]["tags"] == {"latest": "v1"}
        assert modelfs("verify", root, "--read-data").code == 0
        assert modelfs("push", source, url, "lab/model").code == 0
    with reading(root) as r:
        assert r.read(r.file("w.bin")) == noise(72, 100_000)
        assert r.read(r.file("w.bin", "lab/model:v1")) == noise(71, 100_000)

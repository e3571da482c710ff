"""A push to a server: whichever of the two is killed, at whatever stage, nothing half shows, and the push run again
goes on at the pack."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from faultproxy import FaultProxy
from results import Result
from servers import own_server, start_own_server
from transfer.pushed import eventually, make_repository, noise, packs, reading, write

from modelfs.ids import Digest
from modelfs.repository.pack import TARGET_BYTES
from modelfs.units import MiB

SIZE = 2 * TARGET_BYTES + MiB
STAGES = ("packs", "indexes", "layouts", "manifests", "histories", "catalog.json")
KILLED = """
import os
from modelfs.server.uploads import Uploads
from modelfs.stores.file_store import Incoming
begun = Incoming.write
put = Uploads.put

async def kill_after(self, request, key):
    answer = await put(self, request, key)
    if key.startswith({stage!r}) and {moment!r} == "stored":
        os.kill(os.getpid(), 9)
    return answer

def kill_midway(self, piece):
    begun(self, piece[:len(piece) // 2])
    if {moment!r} == "half" and "/" + {stage!r} in str(self._path):
        os.kill(os.getpid(), 9)
    begun(self, piece[len(piece) // 2:])

Uploads.put, Incoming.write = kill_after, kill_midway
"""


def start_push(source: Path, url: str, environ: dict[str, str]) -> subprocess.Popen[str]:
    return subprocess.Popen([sys.executable, "-m", "modelfs", "push", str(source), url, "lab/model", "--json"],
                            env={**environ, "PYTHONPATH": str(Path(__file__).parents[2])}, text=True,
                            stdout=subprocess.PIPE, stderr=subprocess.PIPE)


def whole(root: Path) -> int:
    return sum(path.stat().st_size for path in packs(root))


def is_whole(root: Path, data: bytes) -> bool:
    with reading(root) as r:
        return r.read(r.file("w.bin")) == data


@pytest.mark.parametrize("moment", ["half", "stored"])
@pytest.mark.parametrize("stage", STAGES)
def test_a_server_killed_at_any_stage_shows_nothing_half_and_the_push_goes_on_at_the_pack(
        tmp_path: Path, environ: dict[str, str], modelfs: Callable[..., Result], stage: str, moment: str) -> None:
    size = SIZE if stage == "packs" else 2 * MiB
    root, data = tmp_path / "repository", noise(STAGES.index(stage), size)
    make_repository(root, MiB)
    source = write(tmp_path / "source", {"w.bin": data})
    process, url = start_own_server(root, writable=True, before=KILLED.format(stage=stage, moment=moment))
    failed = modelfs("push", source, url, "lab/model", env={"MODELFS_FETCH_DEADLINE": "1s"})
    process.communicate(timeout=20)
    assert failed.code == 5, failed.err
    done = stage == "catalog.json" and moment == "stored"
    models = json.loads(modelfs("ls", root, "--json").out)["models"]
    assert [model["tags"] for model in models] == ([{"latest": "v1"}] if done else [])
    assert all(Digest.of(path.read_bytes()).hex() == path.name for path in root.rglob("*")
               if path.is_file() and len(path.name) == 64 and "layouts" not in path.parts), "half an object shows"
    there = whole(root)
    assert there >= (size if stage != "packs" else MiB if moment == "stored" else 0)  # the last pack is the smallest
    with own_server(root, writable=True) as url:
        again = modelfs("push", source, url, "lab/model", "--json")
    report = json.loads(again.out)
    assert (report["version"], report["changed"]) == ("v1", not done)
    assert report["uploaded_bytes"] <= size - there + MiB // 2
    assert modelfs("verify", root, "--read-data").code == 0 and is_whole(root, data)


def test_a_push_outlives_a_server_that_is_killed_and_started_again(tmp_path: Path, environ: dict[str, str]) -> None:
    root, data = tmp_path / "repository", noise(20, SIZE)
    make_repository(root, MiB)
    source = write(tmp_path / "source", {"w.bin": data})
    server, url = start_own_server(root, writable=True, before=KILLED.format(stage="packs", moment="stored"))
    push = start_push(source, url, environ)
    server.communicate(timeout=30)
    server, _ = start_own_server(root, port=int(url.rsplit(":", 1)[1]), writable=True)
    out, err = push.communicate(timeout=60)
    server.terminate()
    server.communicate(timeout=15)
    assert push.returncode == 0, err
    assert json.loads(out)["version"] == "v1" and is_whole(root, data)


def test_a_client_killed_midway_goes_on_at_the_pack(tmp_path: Path, environ: dict[str, str]) -> None:
    root, data = tmp_path / "repository", noise(21, SIZE)
    make_repository(root, MiB)
    source = write(tmp_path / "source", {"w.bin": data})
    with own_server(root, writable=True) as url:
        push = start_push(source, url, environ)
        eventually(lambda: len(packs(root)) >= 1)
        push.kill()
        push.communicate(timeout=20)
        eventually(lambda: not [path for path in root.rglob(".*") if re.search(r"\.[0-9a-f]{16}$", path.name)])
        there = whole(root)
        again = start_push(source, url, environ)
        out, err = again.communicate(timeout=60)
    assert again.returncode == 0, err
    assert json.loads(out)["uploaded_bytes"] <= SIZE - there + MiB // 2 and is_whole(root, data)


@pytest.mark.parametrize("kind", ["reset", "lost_answer", "status"])
def test_a_network_that_fails_for_a_while_costs_a_retry(tmp_path: Path, environ: dict[str, str], kind: str) -> None:
    """Also where the server has done what it was asked, and only its answer was lost."""
    root, data = tmp_path / "repository", noise(22, 3 * MiB)
    make_repository(root, MiB)
    source = write(tmp_path / "source", {"w.bin": data})
    with own_server(root, writable=True) as upstream, FaultProxy(upstream=upstream) as proxy:
        for match in ("packs/", "layouts/", "histories/", "catalog.json"):
            proxy.add(kind, match=match, times=1, methods=("PUT",))
        push = start_push(source, proxy.url, environ)
        out, err = push.communicate(timeout=60)
    assert push.returncode == 0, err
    report = json.loads(out)
    assert (report["version"], report["changed"]) == ("v1", True) and is_whole(root, data)

"""Pushes from several hosts whose catalog's serial is in etcd: members, leaders and writers die at the worst moments.

Rule: three real members on loopback; each host has a home and a configuration of its own, and the same directory.
"""

from __future__ import annotations

import json
import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import etcdservers
import pytest
from etcdservers import Cluster
from faultproxy import FaultProxy
from mount.mounting import Mounter, until
from transfer.pushed import CHUNK, MODEL, noise, reading, soon, write

from modelfs.app.consensus import kept_in_etcd
from modelfs.ids import ModelName
from modelfs.repository import catalog
from modelfs.repository.history import Version
from modelfs.repository.info import initialise
from modelfs.repository.repository import Repository
from modelfs.stores.file_store import FileStore

ROOT = Path(__file__).parents[2]
NAME = ModelName.parse(MODEL)
# A push that has a signal before it publishes for the first time, over a store without conditions.
_DISTURBED = """
import os, signal, sys
from modelfs.stores.file_store import FileStore
from modelfs.cli.main import main
left = [getattr(signal, sys.argv.pop(1))]
def swap(self, key, expected, new, deadline):
    if left:
        os.kill(os.getpid(), left.pop())
    self.put(key, new, deadline)
    return self._etag(key)
FileStore.swap = swap
sys.exit(main(sys.argv[1:]))
"""


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    with etcdservers.cluster(tmp_path_factory.mktemp("etcd")) as made:
        yield made


@dataclass
class Host:
    """Runs modelfs with a home of its own; the repository is the remote lab."""

    directory: Path
    environ: dict[str, str]

    def start(self, *arguments: object, program: tuple[str, ...] = ("-m", "modelfs")) -> subprocess.Popen[bytes]:
        return subprocess.Popen([sys.executable, *program, *map(str, arguments)], cwd=self.directory, env=self.environ,
                                stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE)

    def run(self, *arguments: object, code: int = 0) -> str:
        """Its standard output, or where it is to fail, its standard error."""
        process = self.start(*arguments)
        out, err = process.communicate(timeout=90)
        assert process.returncode == code, err.decode()
        return (err if code else out).decode()

    def push(self, source: Path) -> subprocess.Popen[bytes]:
        return self.start("push", source, "lab", MODEL, "--json", "--jobs", "1")


@dataclass
class Lab:
    """hosts: two. root: the repository."""

    etcd: Cluster
    hosts: list[Host]
    root: Path

    def serial(self) -> int:
        """Of the store's own catalog."""
        return catalog.parse((self.root / "catalog.json").read_bytes()).serial

    def rows(self) -> tuple[Version, ...]:
        """The model's versions, as whoever looks through etcd now sees them."""
        repository = Repository.open(kept_in_etcd(FileStore(self.root), self.etcd.urls, None), soon())
        found = repository.catalog(soon()).catalog
        return repository.history(found, NAME, soon()).versions if NAME in found.models else ()

    def name(self, host: Host, members: list[str], deadline: str = "60s") -> None:
        (host.directory / "config" / "modelfs").mkdir(exist_ok=True)
        (host.directory / "config" / "modelfs" / "config.toml").write_text(
            f'[fetch]\ndeadline = "{deadline}"\n[mount]\npoll = "100ms"\n'
            f'[remotes.lab]\nurls = ["{self.root}"]\netcd = {json.dumps(members)}\n')


@pytest.fixture
def lab(running: Cluster, tmp_path: Path, environ: dict[str, str]) -> Lab:
    running.heal()
    running.forget()
    hosts = []
    for name in ("one", "two"):
        home = tmp_path / name
        for part in ("config", "cache", "state", "run"):
            (home / part).mkdir(parents=True, mode=0o700)
        hosts.append(Host(home, {**environ, "PYTHONPATH": str(ROOT), "HOME": str(home),
                                 **{f"XDG_{part.upper()}_HOME": str(home / part)
                                    for part in ("config", "cache", "state")},
                                 "XDG_RUNTIME_DIR": str(home / "run"),
                                 "MODELFS_CACHE_DIRECTORY": str(home / "cache" / "modelfs")}))
    made = Lab(running, hosts, tmp_path / "repository")
    for host in hosts:
        made.name(host, running.urls)
    initialise(kept_in_etcd(FileStore(made.root), running.urls, None), CHUNK, time.time(), soon())
    return made


def tree(lab: Lab, number: int, size: int = 2 * CHUNK) -> Path:
    return write(lab.root.parent / f"source{number}", {"w.bin": noise(number, size)})


def reported(process: subprocess.Popen[bytes]) -> dict[str, Any]:
    out, err = process.communicate(timeout=90)
    assert process.returncode == 0, err.decode()
    return dict(json.loads(out))


def check_contiguous(lab: Lab, versions: int) -> None:
    """Each version once, each with the one before it as its parent, and a serial that counted them."""
    rows = lab.rows()
    assert [row.number for row in rows] == list(range(1, versions + 1))
    assert [row.parent for row in rows] == [None, *range(1, versions)]
    assert lab.serial() == 1 + versions


def check_reads(lab: Lab, version: str, data: bytes) -> None:
    with reading(lab.root) as r:
        assert r.read(r.file("w.bin", f"lab/model:{version}")) == data


def test_pushes_of_two_hosts_at_once_all_succeed_while_a_member_is_killed(lab: Lab) -> None:
    sources = [tree(lab, number) for number in range(8)]
    pushes = [lab.hosts[number % 2].push(source) for number, source in enumerate(sources)]
    until(lambda: lab.serial() > 2)
    lab.etcd.followers()[0].kill()
    versions = [reported(push)["version"] for push in pushes]
    assert sorted(versions) == [f"v{number}" for number in range(1, 9)]
    check_contiguous(lab, 8)
    with reading(lab.root) as r:
        for number, version in enumerate(versions):
            assert r.read(r.file("w.bin", f"lab/model:{version}")) == noise(number, 2 * CHUNK)


def test_a_leader_killed_between_a_swap_and_its_answer_leaves_exactly_one_version(lab: Lab) -> None:
    leader = lab.etcd.leader()
    with FaultProxy(upstream=leader.url) as proxy:
        lab.name(lab.hosts[0], [proxy.url, *(url for url in lab.etcd.urls if url != leader.url)])
        held = proxy.add("stall", "kv/txn", times=1, methods=("POST",))
        push = lab.hosts[0].push(tree(lab, 1))
        until(lambda: held.hits == 1 and lab.rows() != ())
        leader.kill()
        proxy.down()
        report = reported(push)
    assert (report["version"], report["changed"]) == ("v1", True)
    check_contiguous(lab, 1)
    check_reads(lab, "v1", noise(1, 2 * CHUNK))


def test_a_leader_killed_before_it_took_a_swap_loses_nothing(lab: Lab) -> None:
    leader = lab.etcd.leader()
    with FaultProxy(upstream=leader.url) as proxy:
        lab.name(lab.hosts[0], [proxy.url, *(url for url in lab.etcd.urls if url != leader.url)])
        held = proxy.add("hang", "kv/txn", times=1, methods=("POST",))
        push = lab.hosts[0].push(tree(lab, 1))
        until(lambda: held.hits == 1)
        leader.kill()
        proxy.down()
        assert reported(push)["version"] == "v1"
    check_contiguous(lab, 1)


def test_with_two_members_lost_pushes_are_refused_and_reads_go_on(lab: Lab) -> None:
    host, data = lab.hosts[0], noise(1, 2 * CHUNK)
    reported(host.push(tree(lab, 1)))
    mounter = Mounter(host.directory, host.environ)
    try:
        mounted = mounter("lab", name="before")
        for member in lab.etcd.members[1:]:
            member.kill()
        lab.name(host, lab.etcd.urls, "3s")
        line = host.run("push", tree(lab, 2), "lab", MODEL, code=5)
        assert "no majority of 3 members" in line.splitlines()[-1] and "Traceback" not in line
        host.run("pull", "lab", MODEL, host.directory / "pulled")
        assert (host.directory / "pulled" / "w.bin").read_bytes() == data
        assert (mounted / "lab/model/latest/w.bin").read_bytes() == data
        again = mounter("lab", name="after")
        assert (again / "lab/model/v1/w.bin").read_bytes() == data and lab.serial() == 2
        lab.etcd.heal()
        assert reported(host.push(tree(lab, 2)))["version"] == "v2"
        for mount in (mounted, again):
            until(lambda mount=mount: (mount / "lab/model/v2/w.bin").exists())
            assert (mount / "lab/model/latest/w.bin").read_bytes() == noise(2, 2 * CHUNK)
    finally:
        mounter.end()


def test_what_a_killed_writer_did_not_publish_the_next_reader_does(lab: Lab) -> None:
    push = lab.hosts[0].start("SIGKILL", "push", tree(lab, 1), "lab", MODEL, program=("-c", _DISTURBED))
    push.communicate(timeout=60)
    assert push.returncode == -signal.SIGKILL and lab.serial() == 1
    until(lambda: len(lab.rows()) == 1 and lab.serial() == 2)
    check_reads(lab, "v1", noise(1, 2 * CHUNK))
    report = reported(lab.hosts[0].push(tree(lab, 1)))
    assert (report["version"], report["changed"]) == ("v1", False)


def test_a_writer_that_was_stopped_while_it_published_leaves_no_older_catalog(lab: Lab) -> None:
    push = lab.hosts[0].start("SIGSTOP", "push", tree(lab, 1), "lab", MODEL, "--json",
                              program=("-c", _DISTURBED))
    try:
        until(lambda: Path(f"/proc/{push.pid}/stat").read_text().rpartition(")")[2].split()[0] == "T")
        assert lab.serial() == 1
        assert reported(lab.hosts[1].push(tree(lab, 2)))["version"] == "v2"
        assert lab.serial() == 3
    finally:
        push.send_signal(signal.SIGCONT)
    assert reported(push)["version"] == "v1"
    assert lab.serial() == 3, "before anybody else looks"
    check_contiguous(lab, 2)


STAGES = ("packs", "manifests", "layouts", "histories", "catalog")


def kill_at(lab: Lab, push: subprocess.Popen[bytes], stage: str, wait_s: float) -> None:
    """Once it has put its first object of that stage, and up to wait_s later; or not, where it ends before."""
    def put() -> int:
        return sum(path.is_file() for path in lab.root.rglob("*") if not path.name.startswith("."))

    serial, before = lab.serial(), put()
    until(lambda: push.poll() is not None
          or (lab.serial() > serial if stage == "catalog" else put() > before + STAGES.index(stage)))
    try:
        push.wait(wait_s)
    except subprocess.TimeoutExpired:
        push.kill()
    push.communicate()


def test_a_push_killed_at_any_stage_leaves_a_whole_repository_and_the_next_one_goes_on(lab: Lab) -> None:
    """Around each object that it puts, the swap in etcd, and what follows it."""
    pick = random.Random(7)
    repository = Repository.open(FileStore(lab.root), soon())
    for number, stage in enumerate(STAGES, 1):
        kill_at(lab, lab.hosts[0].push(tree(lab, number)), stage, pick.uniform(0, 0.01))
        state = repository.catalog(soon()).catalog
        if state.models:
            rows = repository.history(state, NAME, soon())
            assert [row.number for row in rows.versions] == list(range(1, len(rows.versions) + 1))
            with reading(lab.root) as r:
                assert r.read(r.file("w.bin")) in [noise(each, 2 * CHUNK) for each in range(1, number + 1)]
    last = reported(lab.hosts[1].push(tree(lab, 9)))
    check_contiguous(lab, int(last["version"][1:]))
    check_reads(lab, last["version"], noise(9, 2 * CHUNK))

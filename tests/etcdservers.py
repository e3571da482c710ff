"""Real etcd members on loopback, for tests: a cluster of three, or of one.

Rule: each member is a process of its own with its data in a directory of the test's, answers when it is handed out, may
be killed, stopped and started again, and is ended with the test process however that ends.
"""

from __future__ import annotations

import json
import shutil
import ssl
import subprocess
import time
import urllib.request
from base64 import b64decode, b64encode
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from servers import die_with_parent, free_ports
from tlsservers import Authority

_HEARTBEAT_MS, _ELECTION_MS = 50, 400  # elections take as long as they must, and no test waits for the usual second
_EVERY = b64encode(b"\0").decode()


@dataclass(slots=True)
class Member:
    """url: for clients."""

    url: str
    log: Path
    command: list[str] = field(repr=False)
    process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        if self.process is None:
            with self.log.open("ab") as log:
                self.process = subprocess.Popen(self.command, stdout=log, stderr=log, preexec_fn=die_with_parent)

    def kill(self) -> None:
        """By SIGKILL; its data stay."""
        if self.process is not None:
            self.process.kill()
            self.process.wait(30)
            self.process = None


class Cluster:
    """tls: a client's context, where members ask for certificates."""

    def __init__(self, members: list[Member], tls: ssl.SSLContext | None = None) -> None:
        self.members, self._tls = members, tls

    @property
    def urls(self) -> list[str]:
        return [member.url for member in self.members]

    def heal(self) -> None:
        """Start who does not run; returns once all answer, and agree on a leader."""
        for member in self.members:
            member.start()
        end = time.monotonic() + 60
        while not self._agree():
            assert time.monotonic() < end, self.members[0].log.read_text()[-3000:]
            time.sleep(0.05)

    def leader(self) -> Member:
        """Of those who run."""
        end = time.monotonic() + 30
        while True:
            for member in self.members:
                if member.process and (found := status(member.url, self._tls)) and found["leader"] == found["id"]:
                    return member
            assert time.monotonic() < end, "there is no leader"
            time.sleep(0.05)

    def followers(self) -> list[Member]:
        leader = self.leader()
        return [member for member in self.members if member is not leader]

    def forget(self) -> None:
        """All keys."""
        ask(self.urls[0], "kv/deleterange", self._tls, key=_EVERY, range_end=_EVERY)

    def held(self) -> list[str]:
        found = ask(self.urls[0], "kv/range", self._tls, key=_EVERY, range_end=_EVERY, keys_only=True).get("kvs", [])
        return [b64decode(each["key"]).decode() for each in found]

    def _agree(self) -> bool:
        found = [status(member.url, self._tls) for member in self.members]
        return all(found) and len({each["leader"] for each in found if each}) == 1 and found[0] is not None \
            and found[0]["leader"] != "0"


def ask(url: str, call: str, tls: ssl.SSLContext | None = None, **body: Any) -> dict[str, Any]:
    request = urllib.request.Request(f"{url}/v3/{call}", json.dumps(body).encode())
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}), urllib.request.HTTPSHandler(context=tls))
    with opener.open(request, timeout=10) as answer:
        found = json.load(answer)
    assert isinstance(found, dict)
    return found


def status(url: str, tls: ssl.SSLContext | None = None) -> dict[str, str] | None:
    """The member's id and whom it takes for the leader; None where it does not answer, or knows of none."""
    try:
        found = ask(url, "maintenance/status", tls)
        return {"id": str(found["header"]["member_id"]), "leader": str(found.get("leader", "0"))}
    except (OSError, ValueError, KeyError):
        return None


@contextmanager
def cluster(directory: Path, size: int = 3, authority: Authority | None = None) -> Iterator[Cluster]:
    """authority: clients are to show a certificate of its, and members do.

    Fails where there is no etcd: what was not tried does not hold."""
    program = shutil.which("etcd") or shutil.which("etcd", path="/usr/bin:/usr/sbin:/usr/local/bin")
    assert program, "etcd is not installed: apt-get install etcd-server, or run `make test`, which does"
    directory.mkdir(parents=True, exist_ok=True)
    ports = free_ports(2 * size)
    peers = [f"http://127.0.0.1:{port}" for port in ports[size:]]
    initial = ",".join(f"m{number}={peer}" for number, peer in enumerate(peers))
    members, tls, secured = [], None, list[str]()
    if authority is not None:
        shown, mine = authority.issue("etcd"), authority.issue("tests")
        tls = ssl.create_default_context(cafile=authority.ca)
        tls.load_cert_chain(mine.cert, mine.key)
        secured = ["--cert-file", str(shown.cert), "--key-file", str(shown.key), "--client-cert-auth",
                   "--trusted-ca-file", str(authority.ca)]
    for number in range(size):
        url = f"http{'s' if authority else ''}://127.0.0.1:{ports[number]}"
        members.append(Member(url, directory / f"m{number}.log", [
            program, "--name", f"m{number}", "--data-dir", str(directory / f"m{number}"),
            "--listen-client-urls", url, "--advertise-client-urls", url,
            "--listen-peer-urls", peers[number], "--initial-advertise-peer-urls", peers[number],
            "--initial-cluster", initial, "--initial-cluster-state", "new", "--initial-cluster-token", str(ports[0]),
            "--heartbeat-interval", str(_HEARTBEAT_MS), "--election-timeout", str(_ELECTION_MS), *secured]))
    made = Cluster(members, tls)
    try:
        made.heal()
        yield made
    finally:
        for member in members:
            member.kill()

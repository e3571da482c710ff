"""Hosts as network namespaces on one bridge, and what can befall their links.

Rule: the machine's own network is never touched, and every namespace carries the number of the process that made it:
what a killed run left is known by its name, and ended with all that runs in it.

Delay and loss are made of what every kernel has (a narrow link with a long queue, a filter that throws packets away),
since netem is a module that many lack.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from benchmarks.processes import Failed, program, run, wait_until

PREFIX = "mfs-sim-"
SCRATCH = "modelfs-sim-"
_NOWHERE = "02:00:00:00:00:01"  # an address of no host
# 198.18.0.0/15 is set apart for benchmarks of networks (RFC 2544)
_ADDRESS, _MASK = "198.18.0.{}", 24
_NARROW = ("tbf", "rate", "16mbit", "burst", "128k", "latency", "300ms")
_LOST = 0.02
# classic BPF: random number → A; if A > bound: let it pass (-1), else drop it (2)
_LOSS = f"4,32 0 0 {(1 << 32) - 0x1000 + 56},37 0 1 {int(_LOST * (1 << 32))},6 0 0 {(1 << 32) - 1},6 0 0 2"


@dataclass(frozen=True, slots=True)
class Host:
    """space: its namespace, in which its one interface is eth0. port: the bridge's end of that link."""

    name: str
    space: str
    address: str
    port: str

    def within(self, *command: str | Path) -> list[str]:
        """Runs a command there. Not by `ip netns exec`, which hides what is mounted from everybody else."""
        return ["nsenter", f"--net=/run/netns/{self.space}", *map(str, command)]


class Network:
    def __init__(self) -> None:
        for name in ("ip", "tc", "ss", "nsenter"):
            if not program(name):
                raise Failed(f"{name} is not installed (iproute2, util-linux)")
        self._prefix = f"{PREFIX}{os.getpid()}-"
        self._bridge = f"{self._prefix}bridge"
        self.hosts: dict[str, Host] = {}
        _ip("netns", "add", self._bridge)
        _ip("-n", self._bridge, "link", "add", "bridge", "type", "bridge")
        _ip("-n", self._bridge, "link", "set", "bridge", "up")

    def add(self, name: str) -> Host:
        number = len(self.hosts) + 1
        host = Host(name, self._prefix + name, _ADDRESS.format(number), f"port{number}")
        _ip("netns", "add", host.space)
        self.hosts[name] = host
        _ip("-n", self._bridge, "link", "add", host.port, "type", "veth", "peer", "name", "eth0", "netns", host.space)
        _ip("-n", self._bridge, "link", "set", host.port, "master", "bridge", "up")
        _ip("-n", host.space, "address", "add", f"{host.address}/{_MASK}", "dev", "eth0")
        _ip("-n", host.space, "link", "set", "eth0", "up")
        _ip("-n", host.space, "link", "set", "lo", "up")
        return host

    # faults, each with what takes it back

    def cut(self, host: Host) -> None:
        """Nothing goes in or out, and nobody is told."""
        _ip("-n", self._bridge, "link", "set", host.port, "down")

    def join(self, host: Host) -> None:
        _ip("-n", self._bridge, "link", "set", host.port, "up")

    def narrow(self, host: Host) -> None:
        """What it sends is slow, and waits long before it goes."""
        _tc("-n", host.space, "qdisc", "add", "dev", "eth0", "root", *_NARROW)

    def widen(self, host: Host) -> None:
        _tc("-n", host.space, "qdisc", "del", "dev", "eth0", "root")

    def lose(self, host: Host) -> None:
        """Of what it sends and is sent, a part is lost on the way: at the bridge, where no sender notices."""
        _tc("-n", self._bridge, "qdisc", "add", "dev", host.port, "clsact")
        for direction in ("ingress", "egress"):
            _tc("-n", self._bridge, "filter", "add", "dev", host.port, direction, "bpf", "da", "bytecode", _LOSS)

    def keep(self, host: Host) -> None:
        _tc("-n", self._bridge, "qdisc", "del", "dev", host.port, "clsact")

    def part(self, host: Host, other: Host) -> None:
        """What it sends to this one other goes nowhere."""
        _ip("-n", host.space, "neigh", "replace", other.address, "lladdr", _NOWHERE, "nud", "permanent", "dev", "eth0")

    def meet(self, host: Host, other: Host) -> None:
        _ip("-n", host.space, "neigh", "del", other.address, "dev", "eth0")

    # what is seen

    def sent_bytes(self, host: Host) -> int:
        (found,) = json.loads(_ip("-n", host.space, "-s", "-j", "link", "show", "eth0"))
        return int(found["stats64"]["tx"]["bytes"])

    def received_bytes(self, host: Host, server: Host) -> int:
        """From that server, by the connections that are open."""
        found = run([program("ss") or "ss", "-N", host.space, "-tinH", "dst", server.address])
        return sum(map(int, re.findall(r"bytes_received:(\d+)", found)))

    def end(self) -> None:
        with ExitStack() as each:
            for space in (self._bridge, *(host.space for host in self.hosts.values())):
                each.callback(end_space, space)


@contextmanager
def network() -> Iterator[Network]:
    """After what earlier runs left was removed; gone with all that runs in it at the end."""
    remove_leftovers()
    made = Network()
    try:
        yield made
    finally:
        made.end()


@contextmanager
def scratch_directory() -> Iterator[Path]:
    path = Path(tempfile.mkdtemp(prefix=f"{SCRATCH}{os.getpid()}-"))
    try:
        yield path
    finally:
        remove_tree(path)


def remove_tree(path: Path) -> None:
    """With what is still mounted below it."""
    lines = Path("/proc/self/mountinfo").read_text().splitlines()
    for place in reversed([line.split()[4] for line in lines]):
        if place.startswith(f"{path}/"):
            subprocess.run(["umount", "-l", place], stderr=subprocess.DEVNULL, check=False)
    shutil.rmtree(path, ignore_errors=True)


def end_space(space: str) -> None:
    """A namespace, with all processes in it: keepers and their workers, until none starts another."""
    def empty() -> bool:
        pids = _ip("netns", "pids", space).split()
        for pid in pids:
            with suppress(ProcessLookupError):
                os.kill(int(pid), signal.SIGKILL)
        return not pids
    wait_until(empty, f"the end of what runs in {space}")
    _ip("netns", "delete", space)


def remove_leftovers() -> None:
    """What runs left that were killed: their processes, mounts, namespaces and files."""
    for line in _ip("netns", "list").splitlines():
        space = line.split()[0]
        found = re.match(rf"{PREFIX}(\d+)-", space)
        if found and not _runs(int(found[1])):
            end_space(space)
    for path in Path(tempfile.gettempdir()).glob(f"{SCRATCH}*"):
        found = re.match(rf"{SCRATCH}(\d+)-", path.name)
        if found and not _runs(int(found[1])):
            remove_tree(path)


def _runs(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except OSError:
        return False


def _ip(*arguments: str) -> str:
    return run([program("ip") or "ip", *arguments])


def _tc(*arguments: str) -> str:
    return run([program("tc") or "tc", *arguments])

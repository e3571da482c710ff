"""The networks between the peers and nginx: loopback, a link of 1 Gbit/s, that link with 20 ms round trips.

Rule: a condition that this machine cannot make is skipped and says why; it is never replaced by another one.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from benchmarks.processes import Failed, program, run, running, wait_until
from benchmarks.server import Server, nginx

RATE = "1gbit"
ROUND_TRIP_S = 0.020
# 198.18.0.0/15 is set apart for benchmarks of networks (RFC 2544), so no real host is hidden by it
NEAR, FAR, PREFIX = "198.18.94.1", "198.18.94.2", 30
NAMES = ("unthrottled", "1 Gbit/s", "1 Gbit/s, 20 ms")


@dataclass(frozen=True, slots=True)
class Condition:
    """url: what the peers are told. round_trip_s: what the proxy adds; 0 without one."""

    name: str
    url: str
    server: Server
    round_trip_s: float

    @property
    def shaped(self) -> bool:
        """The network is what limits, so only what comes over it is measured."""
        return self.name != NAMES[0]


@contextmanager
def condition(name: str, root: Path, scratch: Path) -> Iterator[Condition]:
    """nginx over root behind one of the networks. Raises Failed where this machine cannot make it."""
    scratch.mkdir(parents=True, exist_ok=True)
    with ExitStack() as stack:
        if name == NAMES[0]:
            server = stack.enter_context(nginx(root, scratch))
            yield Condition(name, f"http://{server.host}:{server.port}", server, 0)
            return
        within = stack.enter_context(link())
        server = stack.enter_context(nginx(root, scratch, FAR, within))
        if name == NAMES[1]:
            yield Condition(name, f"http://{server.host}:{server.port}", server, 0)
        else:
            port = stack.enter_context(delayed(server, scratch))
            yield Condition(name, f"http://127.0.0.1:{port}", server, ROUND_TRIP_S)


@contextmanager
def link() -> Iterator[list[str]]:
    """A network namespace at the far end of a shaped link; yields the command that runs another in it."""
    ip, tc = program("ip"), program("tc")
    if not ip or not tc:
        raise Failed("ip and tc are not installed (iproute2)")
    space, near, far = f"modelfs-{os.getpid()}", f"mfsn{os.getpid()}", f"mfsf{os.getpid()}"
    run([ip, "netns", "add", space])
    try:
        run([ip, "link", "add", near, "type", "veth", "peer", "name", far, "netns", space])
        within = [ip, "netns", "exec", space]
        run([ip, "address", "add", f"{NEAR}/{PREFIX}", "dev", near])
        run([ip, "link", "set", near, "up"])
        run([*within, ip, "address", "add", f"{FAR}/{PREFIX}", "dev", far])
        run([*within, ip, "link", "set", far, "up"])
        run([*within, ip, "link", "set", "lo", "up"])
        # what nginx sends is what is narrow; a segment of 64 KiB has to fit into the burst
        run([*within, tc, "qdisc", "add", "dev", far, "root", "tbf", "rate", RATE, "burst", "256k", "limit", "4m"])
        run([ip, "route", "get", FAR])
        yield within
    finally:
        # what is left of the pair goes with the namespace, in the kernel's own time; by name it is gone at once
        subprocess.run([ip, "link", "delete", near], stderr=subprocess.DEVNULL, check=False)
        run([ip, "netns", "delete", space])


@contextmanager
def delayed(server: Server, scratch: Path) -> Iterator[int]:
    """The port of a proxy of our own that adds the round trip."""
    output = scratch / "delay"
    with running([sys.executable, "-m", "benchmarks.delay", server.host, str(server.port), str(ROUND_TRIP_S * 1000)],
                 output) as process:
        wait_until(lambda: output.read_text().endswith("\n") or process.poll() is not None, "the delaying proxy")
        if process.poll() is not None:
            raise Failed(f"the delaying proxy: {output.read_text()}")
        yield int(output.read_text())


def proxy_ceiling(root: Path, scratch: Path, url_path: str, size: int) -> float:
    """Bytes a second that curl gets through the proxy with nothing narrow behind it, best of three.

    It has to stay well above the link's, or the condition would measure the proxy.
    """
    scratch.mkdir(parents=True, exist_ok=True)
    with nginx(root, scratch) as server, delayed(server, scratch) as port:
        def seconds() -> float:
            began = time.perf_counter()
            run(["curl", "-sf", "-o", "/dev/null", f"http://127.0.0.1:{port}/{url_path}"])
            return time.perf_counter() - began
        return size / min(seconds() for _ in range(3))

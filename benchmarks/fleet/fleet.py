"""A primary, its mirrors, a site's cache and mounts, each a real modelfs on a host of its own.

Rule: a fleet is handed out once every part answers, and nothing of it is left when its block ends.
"""

from __future__ import annotations

import json
import os
import random
import shutil
import subprocess
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from benchmarks.fleet.network import Host, Network, network, scratch_directory
from benchmarks.fleet.services import Service
from benchmarks.peers import MODELFS
from benchmarks.processes import Failed, run, wait_until
from modelfs import paths
from modelfs.daemon import control
from modelfs.errors import ModelfsError

MODEL = "acme/base"
PRIMARY, SITE = "primary", "site"
DEADLINE_S, POLL_S = 20, 1
CACHE, SITE_CACHE, MEMORY = "12 MiB", "256 MiB", "16 MiB"
SMALL_DISK = "768m"  # of the last mirror, which is filled now and then
_PORT = 8750
_READ, _WRITE = "reading-token", "writing-token"
_ROOT = Path(__file__).parents[2]


@dataclass(frozen=True, slots=True)
class Shape:
    """mounts: every other one is a daemon, whose worker may be killed."""

    mirrors: int = 2
    mounts: int = 8


@dataclass(slots=True)
class Server:
    """directory: of the repository or the cache that it serves. keeping: the replication that keeps a mirror so."""

    host: Host
    directory: Path
    serving: Service
    keeping: Service | None = None

    @property
    def name(self) -> str:
        return self.host.name

    @property
    def services(self) -> list[Service]:
        return [self.serving, *([self.keeping] if self.keeping else [])]


@dataclass(slots=True)
class Mount:
    """lists: its servers' names, in its order. foreground: None of a daemon."""

    host: Host
    place: Path
    lists: Sequence[str]
    foreground: Service | None
    environ: Mapping[str, str]

    @property
    def name(self) -> str:
        return self.host.name

    @property
    def model(self) -> Path:
        return self.place / MODEL

    def status(self) -> dict[str, Any]:
        """Raises Failed."""
        try:
            answer = control.ask(paths.socket_path(self.place, self.environ), {"op": "status"})
        except ModelfsError as error:
            raise Failed(f"status of {self.name}: {error}") from error
        return answer.fields


@dataclass(slots=True)
class Fleet:
    scratch: Path
    network: Network
    environ: Mapping[str, str]
    publisher: Host
    servers: dict[str, Server] = field(default_factory=dict)
    mounts: dict[str, Mount] = field(default_factory=dict)

    @property
    def mirrors(self) -> list[Server]:
        return [server for name, server in self.servers.items() if name not in (PRIMARY, SITE)]

    @property
    def wholes(self) -> list[Server]:
        """Those that have all of the repository, sooner or later: each can serve every read alone."""
        return [server for name, server in self.servers.items() if name != SITE]

    @property
    def originals(self) -> Path:
        """A directory for each version that was pushed, as it was pushed."""
        return self.scratch / "originals"

    @property
    def services(self) -> list[Service]:
        mounts = [mount.foreground for mount in self.mounts.values() if mount.foreground]
        return [service for server in self.servers.values() for service in server.services] + mounts

    def config(self, name: str) -> Path:
        return self.scratch / name / "config.toml"

    def command(self, host: Host, *arguments: str | Path) -> list[str]:
        """modelfs there, with that host's configuration and state."""
        state = f"XDG_STATE_HOME={self.scratch / host.name / 'state'}"
        return host.within("env", state, *MODELFS, *arguments, "--config", self.config(host.name))

    def verified(self, *options: str) -> None:
        """All servers that have the whole, compared from the publisher's host. Raises Failed."""
        run(self.command(self.publisher, "verify", *(server.name for server in self.wholes), *options), self.environ)

    def repaired(self, mirror: Server) -> bool:
        """A mirror's own directory, damaged packs from the primary's."""
        done = subprocess.run(self.command(mirror.host, "verify", mirror.directory, PRIMARY, "--read-data", "--repair"),
                              env=self.environ, stdin=subprocess.DEVNULL, capture_output=True, check=False)
        return done.returncode == 0

    def emptied_site(self) -> None:
        """For one that does not run."""
        shutil.rmtree(self.servers[SITE].directory)


@contextmanager
def fleet(shape: Shape, seed: int, first: Callable[[Path], None]) -> Iterator[Fleet]:
    """first: makes the model's first version in a directory, which is pushed as v1."""
    with ExitStack() as stack:
        scratch = stack.enter_context(scratch_directory())
        net = stack.enter_context(network())
        environ = _environ(scratch)
        made = Fleet(scratch, net, environ, net.add("publisher"))
        made.originals.mkdir()
        first(made.originals / "v1")
        stack.callback(_end, made)
        _build(made, shape, random.Random(seed))
        yield made


def _build(fleet: Fleet, shape: Shape, rng: random.Random) -> None:
    mirrors = [f"mirror-{number + 1}" for number in range(shape.mirrors)]
    mounts = [f"mount-{number + 1}" for number in range(shape.mounts)]
    for name in (PRIMARY, *mirrors, SITE, *mounts):
        fleet.network.add(name)
    urls = {name: f"http://{fleet.network.hosts[name].address}:{_PORT}" for name in (PRIMARY, *mirrors, SITE)}
    tokens = fleet.scratch / "tokens"
    _secret(tokens, f"{_WRITE}\n{_READ} read\n")
    token, publishing = _secret(fleet.scratch / "reading", _READ), _secret(fleet.scratch / "writing", _WRITE)
    directories = {name: fleet.scratch / name / "repository" for name in urls}
    for name, host in fleet.network.hosts.items():
        (fleet.scratch / name).mkdir()
        lists = {"wholes": [urls[each] for each in (PRIMARY, *mirrors)]}
        if name in mounts:
            lists["fleet"] = rng.sample(list(urls.values()), len(urls))
        own = publishing if host is fleet.publisher else token
        memory = f'memory = "{MEMORY}"\n' if name in mounts else ""
        _configure(fleet.config(name), memory, {**{each: [url] for each, url in urls.items()}, **lists}, own)
    small = fleet.scratch / mirrors[-1] / "disk"
    small.mkdir()
    run(["mount", "-t", "tmpfs", "-o", f"size={SMALL_DISK}", "modelfs-sim", str(small)])
    directories[mirrors[-1]] = small / "repository"

    def serving(name: str, *options: str | Path) -> Service:
        host = fleet.network.hosts[name]
        command = fleet.command(host, "serve", directories[name], "--host", host.address, "--port", str(_PORT),
                                "--token-file", tokens, *options)
        return Service(f"serve {name}", command, fleet.scratch / name / "serve.log", fleet.environ, "serving ")

    run([*MODELFS, "init", str(directories[PRIMARY]), "--chunk-size", "256KiB"], fleet.environ)
    run([*MODELFS, "push", str(fleet.originals / "v1"), str(directories[PRIMARY]), MODEL], fleet.environ)
    run([*MODELFS, "tag", str(directories[PRIMARY]), MODEL, "prod"], fleet.environ)
    fleet.servers[PRIMARY] = Server(fleet.network.hosts[PRIMARY], directories[PRIMARY], serving(PRIMARY))
    fleet.servers[PRIMARY].serving.start()
    for name in mirrors:
        fleet.servers[name] = _mirror(fleet, name, directories[name], serving(name))
    fleet.servers[SITE] = Server(fleet.network.hosts[SITE], directories[SITE],
                                 serving(SITE, "--upstream", "wholes", "--cache-size", SITE_CACHE))
    with ThreadPoolExecutor(2) as pool:
        list(pool.map(_start, [server for name, server in fleet.servers.items() if name != PRIMARY]))
    for number, name in enumerate(mounts):
        fleet.mounts[name] = _mount_of(fleet, name, urls, daemon=number % 2 == 1)
    with ThreadPoolExecutor(2) as pool:
        list(pool.map(lambda mount: _begin(fleet, mount), fleet.mounts.values()))


def _mirror(fleet: Fleet, name: str, directory: Path, serving: Service) -> Server:
    host = fleet.network.hosts[name]
    keeping = Service(f"replicate {name}", fleet.command(host, "replicate", PRIMARY, directory, "--watch"),
                      fleet.scratch / name / "replicate.log", fleet.environ, "")
    return Server(host, directory, serving, keeping)


def _start(server: Server) -> None:
    if server.keeping is not None:
        server.keeping.start()
        wait_until((server.directory / "catalog.json").exists, f"the first pass to {server.name}", 60)
    server.serving.start()


def _mount_of(fleet: Fleet, name: str, urls: Mapping[str, str], daemon: bool) -> Mount:
    host, place = fleet.network.hosts[name], fleet.scratch / name / "mnt"
    place.mkdir()
    config = fleet.config(name).read_text()
    lists = sorted(urls, key=lambda each: config.partition("[remotes.fleet]")[2].index(urls[each]))
    foreground = None if daemon else Service(
        f"mount {name}", _mount_command(fleet, host, place), fleet.scratch / name / "mount.log", fleet.environ,
        "mounted ")
    return Mount(host, place, lists, foreground, fleet.environ)


def _mount_command(fleet: Fleet, host: Host, place: Path) -> list[str]:
    return fleet.command(host, "mount", "fleet", place, "--engine", "native", "--cache-dir",
                         place.parent / "cache", "--cache-size", CACHE, "--poll", f"{POLL_S}s", "--deadline",
                         f"{DEADLINE_S}s")


def _begin(fleet: Fleet, mount: Mount) -> None:
    if mount.foreground:
        mount.foreground.start()
    else:
        run([*_mount_command(fleet, mount.host, mount.place), "--daemon"], fleet.environ)


def _end(fleet: Fleet) -> None:
    """In order where that is possible; what is left then goes with its namespace."""
    def umount(mount: Mount) -> None:
        if mount.foreground is None:
            with suppress(Failed):
                run([*MODELFS, "umount", "--force", str(mount.place)], fleet.environ)
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(umount, fleet.mounts.values()))
        list(pool.map(Service.end, fleet.services))


def _configure(path: Path, memory: str, remotes: Mapping[str, Sequence[str]], token: Path) -> None:
    text = f'[fetch]\n{memory}deadline = "{DEADLINE_S}s"\n[mount]\npoll = "{POLL_S}s"\n'
    for name, urls in remotes.items():
        text += f"[remotes.{name}]\nurls = {json.dumps(list(urls))}\ntoken_file = {json.dumps(str(token))}\n"
    path.write_text(text)


def _secret(path: Path, text: str) -> Path:
    with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
        file.write(text)
    return path


def _environ(scratch: Path) -> dict[str, str]:
    """Without the user's own settings: what modelfs finds by its environment is below scratch."""
    kept = {name: value for name, value in os.environ.items()
            if not name.startswith(("MODELFS_", "XDG_")) and not name.lower().endswith("_proxy")}
    return kept | {"HOME": str(scratch), "PYTHONPATH": str(_ROOT), "PYTHONUNBUFFERED": "1",
                   **{name: str(scratch / name.lower()) for name in ("XDG_CONFIG_HOME", "XDG_STATE_HOME")}}

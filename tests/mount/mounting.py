"""Real mounts for tests: the command in a process of its own, and everything gone afterwards.

Rule: a mount is handed out once it said that it answers, and whatever a test does to it, `end` leaves neither a
mount nor a process.
"""

from __future__ import annotations

import json
import os
import re
import select
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from modelfs.daemon import mountpoints

ROOT = Path(__file__).parents[2]
BOTH_ENGINES = pytest.mark.parametrize("engine", ["native", "fusepy"], indirect=True)
"""For what a program sees of a mount: it is the same by either."""
LINUX_6_9 = pytest.mark.skipif(tuple(map(int, re.findall("[0-9]+", os.uname().release)[:2])) < (6, 9),
                               reason="passthrough, and requests that are sent again, take Linux 6.9")
PushedOnce = Callable[[Callable[[Path], None]], Path]


@dataclass(slots=True)
class Mounted:
    """said: what the command printed on standard error until it was ready; log: all of it so far, in a file."""

    place: Path
    process: subprocess.Popen[bytes]
    log: Path
    run: Callable[..., subprocess.CompletedProcess[str]] = field(repr=False)

    def __truediv__(self, path: str) -> Path:
        return self.place / path

    def status(self) -> dict[str, Any]:
        done = self.run("status", self.place, "--json")
        assert done.returncode == 0, done.stderr
        found = json.loads(done.stdout)
        assert isinstance(found, dict)
        return found

    def umount(self, *options: str, code: int = 0) -> str:
        done = self.run("umount", self.place, *options)
        assert done.returncode == code, done.stderr
        return done.stderr

    @property
    def here(self) -> bool:
        return mountpoints.mount_at(self.place) is not None

    def ended(self, seconds: float = 30) -> int:
        """The command's exit code."""
        return self.process.wait(seconds)

    def end(self) -> None:
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait(30)
        while self.here:
            subprocess.run(["umount", "-l", str(self.place)], check=True)


@dataclass(slots=True)
class Daemon(Mounted):
    """A mount with --daemon. process: of the command, which has ended; log: the daemon's."""

    keeper: int

    @property
    def worker(self) -> int:
        """As its control socket says."""
        pid = self.status()["pid"]
        assert isinstance(pid, int)
        return pid

    def kill_worker(self) -> int:
        """It has gone when this returns; who it was."""
        pid = self.worker
        os.kill(pid, signal.SIGKILL)
        until(lambda: gone(pid))
        return pid

    def upgraded(self, was: int) -> int:
        """Waits for another worker than this to answer; one that leaves may drop a question just then."""
        def now() -> int:
            done = self.run("status", self.place, "--json")
            return was if done.returncode else int(json.loads(done.stdout)["pid"])

        until(lambda: now() != was)
        return self.worker


class Mounter:
    """Runs commands in tmp_path, and ends every mount that it made."""

    def __init__(self, tmp_path: Path, environ: Mapping[str, str]) -> None:
        self.tmp_path = tmp_path
        self.environ = {**environ, "PYTHONPATH": str(ROOT)}
        self.mounts: list[Mounted] = []

    def run(self, *arguments: object, timeout: float = 60) -> subprocess.CompletedProcess[str]:
        return subprocess.run([sys.executable, "-m", "modelfs", *map(str, arguments)], cwd=self.tmp_path,
                              env=self.environ, stdin=subprocess.DEVNULL, capture_output=True, text=True,
                              timeout=timeout, check=False)

    def start(self, repository: object, *options: object, name: str = "mnt") -> Mounted:
        """A mount in the foreground that may not be ready yet."""
        place = self.tmp_path / name
        place.mkdir(exist_ok=True)
        log = self.tmp_path / f"{name}.{len(self.mounts)}.log"
        with log.open("wb") as stream:
            process = subprocess.Popen([sys.executable, "-m", "modelfs", "mount", str(repository), str(place),
                                        *map(str, options)], cwd=self.tmp_path, env=self.environ,
                                       stdin=subprocess.DEVNULL, stdout=stream, stderr=stream)
        made = Mounted(place, process, log, self.run)
        self.mounts.append(made)
        return made

    def __call__(self, repository: object, *options: object, name: str = "mnt") -> Mounted:
        made = self.start(repository, *options, name=name)
        until(lambda: any(line.startswith("mounted ") for line in made.log.read_text().splitlines())
              or made.process.poll() is not None)
        assert made.process.poll() is None, made.log.read_text()
        return made

    def daemon(self, repository: object, *options: object, name: str = "mnt") -> Daemon:
        """With keeper and worker where the engine is the native one."""
        place = self.tmp_path / name
        place.mkdir(exist_ok=True)
        said = self.tmp_path / f"{name}.{len(self.mounts)}.said"
        with said.open("wb") as stream:
            process = subprocess.Popen([sys.executable, "-m", "modelfs", "mount", str(repository), str(place),
                                        "--daemon", *map(str, options)], cwd=self.tmp_path, env=self.environ,
                                       stdin=subprocess.DEVNULL, stdout=stream, stderr=stream)
        made = Daemon(place, process, said, self.run, -1)
        self.mounts.append(made)
        assert process.wait(60) == 0, said.read_text()
        found = re.search(r"pid ([0-9]+), log (.+)", said.read_text())
        assert found is not None
        made.keeper, made.log = int(found[1]), Path(found[2])
        return made

    def end(self) -> None:
        while pids := self._daemons():
            for pid in pids:
                end_process(pid)
        for made in self.mounts:
            made.end()

    def _daemons(self) -> list[int]:
        """All that run with our environment: keepers before workers, or they would start others."""
        ours, found = os.fsencode(f"HOME={self.environ['HOME']}"), []
        for process in Path("/proc").iterdir():
            if process.name.isdecimal() and not gone(pid := int(process.name)):
                with suppress(OSError):  # it has ended just now
                    if ours in (process / "environ").read_bytes().split(b"\0"):
                        found.append((os.getsid(pid) != pid, pid))
        return [pid for _, pid in sorted(found)]


def until(condition: Callable[[], object], seconds: float = 30) -> None:
    """Wait for a condition; fails when it does not come true in time."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it did not come true in time"
        time.sleep(0.01)


READ = """
import os, sys
path, offset, size = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
fd = os.open(path, os.O_RDONLY)
print("open", flush=True)
try:
    while size:
        piece = os.pread(fd, size, offset)
        assert piece
        offset, size = offset + len(piece), size - len(piece)
    print("read")
except OSError as error:
    print(error.errno)
"""


def reader(path: Path, offset: int, size: int) -> subprocess.Popen[str]:
    """Reads in a process of its own, which has the file open when this returns; then prints "read" or an errno."""
    process = subprocess.Popen([sys.executable, "-c", READ, str(path), str(offset), str(size)],
                               stdout=subprocess.PIPE, text=True)
    assert process.stdout and select.select([process.stdout], [], [], 30)[0]
    # no more than this line: what a buffer took beyond it, communicate with a timeout would not see
    assert b"".join(os.read(process.stdout.fileno(), 1) for _ in "open\n") == b"open\n"
    return process


def gone(pid: int) -> bool:
    """A zombie has gone: its parent, which is no daemon, did not look yet."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] in "ZX"
    except OSError:
        return True


def end_process(pid: int) -> None:
    if not gone(pid):
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
        until(lambda: gone(pid))

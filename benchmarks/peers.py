"""What is compared: each program that makes a remote checkpoint readable by path, with the flags that suit it best.

Rule: a peer starts with an empty cache of its own and is handed out once its files can be opened; what it started is
ended by its process id, and its mount is gone, whatever happened meanwhile.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path

from benchmarks.checkpoint import shard_paths
from benchmarks.processes import Cost, Failed, cost_of, end, program, run, running, wait_until

MODELFS = [sys.executable, "-m", "modelfs"]
MODEL = "acme/llama"
REPOSITORY, ORIGINAL, OBJECTS = "repository", "original", "objects"  # under the server's root
MOUNT_POINT = "mnt"
RCLONE_FLAGS = [
    "--read-only", "--vfs-cache-mode", "full", "--vfs-cache-max-size", "20G", "--vfs-read-chunk-size", "16M",
    "--vfs-read-chunk-streams", "4", "--buffer-size", "16M", "--vfs-read-ahead", "64M", "--max-read-ahead",
    "1M", "--dir-cache-time", "1000h", "--attr-timeout", "1h", "--vfs-fast-fingerprint", "--no-modtime",
]
JUICEFS_FLAGS = [
    "--read-only", "--cache-size", "20480", "--free-space-ratio", "0.02", "--max-fuse-io", "1M",
    "--max-readahead", "64", "--prefetch", "4", "--buffer-size", "600", "--open-cache", "1h", "--attr-cache",
    "1h", "--entry-cache", "1h", "--backup-meta", "0", "--no-usage-report", "--no-bgjob", "--no-syslog",
    "--metrics", "127.0.0.1:0",
]


@dataclass(frozen=True, slots=True)
class Opened:
    """directory: where the files are read. cost: what its processes have cost so far.

    bring: fetches files by name before they can be read; None where reading fetches, as in a mount.
    """

    directory: Path
    cost: Callable[[], Cost]
    bring: Callable[[Sequence[str]], None] | None = None


@dataclass(frozen=True, slots=True)
class Peer:
    """open(url of the server, an empty directory of its own) starts it. fetches: it uses the network at all."""

    name: str
    open: Callable[[str, Path], AbstractContextManager[Opened]]
    fetches: bool = True


@contextmanager
def mounted(command: Sequence[str | Path], scratch: Path, environ: dict[str, str] | None = None,
            below: str = ".") -> Iterator[Opened]:
    """A program that mounts in the foreground. below: where in the mount the shards are."""
    place, log = scratch / MOUNT_POINT, scratch / "log"
    place.mkdir(exist_ok=True)
    with running(command, log, environ) as process:
        def ready() -> bool:
            if process.poll() is not None:
                raise Failed(f"{Path(command[0]).name}: exit {process.returncode}: {log.read_text()[-800:].strip()}")
            return is_mounted(place) and bool(shard_paths(place / below))
        try:
            wait_until(ready, f"{Path(command[0]).name}'s mount ({log.name})")
            yield Opened(place / below, lambda: cost_of(process.pid))
        finally:
            unmount(place, process)


def unmount(place: Path, process: subprocess.Popen[bytes]) -> None:
    """Asked first, so that the program ends in its own way; detached where that fails."""
    if subprocess.run(["umount", str(place)], stderr=subprocess.DEVNULL, check=False).returncode == 0:
        try:
            process.wait(15)
        except subprocess.TimeoutExpired:
            end(process)
    else:
        end(process)
    while is_mounted(place):
        run(["umount", "-l", str(place)])


def is_mounted(place: Path) -> bool:
    """From the kernel's list: stat of a mount whose program died fails, and says nothing."""
    lines = Path("/proc/self/mountinfo").read_text().splitlines()
    return any(line.split()[4] == str(place) for line in lines)


def modelfs(engine: str, model: str = MODEL) -> Peer:
    def open_(url: str, scratch: Path) -> AbstractContextManager[Opened]:
        environ = os.environ | {name: str(scratch) for name in ("XDG_CONFIG_HOME", "XDG_STATE_HOME")}
        return mounted([*MODELFS, "mount", f"{url}/{REPOSITORY}", str(scratch / MOUNT_POINT), "--model", model,
                        "--engine", engine, "--cache-dir", str(scratch / "cache"), "--cache-size", "20 GiB"],
                       scratch, environ)
    return Peer(f"modelfs {engine}", open_)


def rclone(url: str, scratch: Path) -> AbstractContextManager[Opened]:
    binary = program("rclone")
    if not binary:
        raise Failed("rclone is not installed; make bench does that")
    return mounted([binary, "mount", ":http:", scratch / MOUNT_POINT, "--config", "/dev/null", "--http-url",
                    f"{url}/{ORIGINAL}/", "--cache-dir", scratch / "cache", *RCLONE_FLAGS], scratch)


class Juicefs:
    """Its objects lie under the server's root and are read as a WebDAV client reads them: GET with a range."""

    def __init__(self, metadata: Path) -> None:
        self.metadata = metadata

    @property
    def address(self) -> str:
        return f"sqlite3://{self.metadata}"

    def fill(self, original: Path, root: Path, scratch: Path) -> None:
        """Writes the checkpoint through a mount of its own, straight into the directory that is served later."""
        binary = program("juicefs")
        if not binary:
            raise Failed("juicefs is not installed; make bench does that")
        run([binary, "format", "--storage", "file", "--bucket", f"{root / OBJECTS}/", "--trash-days", "0",
             "--compress", "none", self.address, "bench"])
        place = scratch / MOUNT_POINT
        place.mkdir()
        with running([binary, "mount", "--cache-dir", str(scratch / "cache"), "--no-usage-report", "--no-syslog",
                      "--backup-meta", "0", "--metrics", "127.0.0.1:0", self.address, str(place)],
                     scratch / "log") as process:
            try:
                wait_until(lambda: is_mounted(place), "juicefs's mount to fill")
                (place / ORIGINAL).mkdir()
                for path in sorted(original.iterdir()):
                    run(["cp", path, place / ORIGINAL])
            finally:
                unmount(place, process)

    def open(self, url: str, scratch: Path) -> AbstractContextManager[Opened]:
        binary = program("juicefs")
        assert binary
        return mounted([binary, "mount", "--storage", "webdav", "--bucket", f"{url}/{OBJECTS}/", "--cache-dir",
                        str(scratch / "cache"), *JUICEFS_FLAGS, self.address, str(scratch / MOUNT_POINT)],
                       scratch, below=ORIGINAL)


@contextmanager
def curl(url: str, scratch: Path) -> Iterator[Opened]:
    """Files are downloaded whole, one after another, before they are read."""
    files = scratch / "files"
    files.mkdir()
    spent = Cost(0, 0)

    def bring(names: Sequence[str]) -> None:
        nonlocal spent
        for name in names:
            process = subprocess.Popen(["curl", "-sf", "-o", str(files / name), f"{url}/{ORIGINAL}/{name}"],
                                       stdin=subprocess.DEVNULL, start_new_session=True)
            try:
                _, status, used = os.wait4(process.pid, 0)
            except BaseException:
                end(process)
                raise
            process.returncode = os.waitstatus_to_exitcode(status)
            if process.returncode:
                raise Failed(f"curl of {name}: exit {process.returncode}")
            # not its ru_maxrss, into which the kernel counts what we had when it was started (fs/exec.c, exec_mmap)
            spent = Cost(spent.cpu_s + used.ru_utime + used.ru_stime, 0)
    yield Opened(files, lambda: spent, bring)


def local(original: Path) -> Peer:
    @contextmanager
    def open_(_url: str, _scratch: Path) -> Iterator[Opened]:
        yield Opened(original, lambda: Cost(0, 0))
    return Peer("local file", open_, fetches=False)

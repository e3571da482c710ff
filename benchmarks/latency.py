"""How long a cached 1 MiB READ takes while the mount has other things to do, beside the same mount idle.

    python -m benchmarks.latency [--mib 256] [--files 10000] [--chunks 100000] [--rounds 3]

Busy: 64 cold reads hang, since the server never answers for their packs, and versions of so many files and chunks are
published one after another and loaded, by the mount's poll and a look at a file of theirs. Each round has a mount of
its own with an empty cache. Needs root, since the kernel asks for 1 MiB at once only there.

Rule: a read counts only where the daemon was asked for it (O_DIRECT, through a descriptor that was opened before the
file was whole and so never gets passthrough; the daemon's own count has to agree), and, while busy, where it began
between the moment a version was published and the moment a file of it was seen.
"""

from __future__ import annotations

import argparse
import json
import mmap
import os
import random
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from benchmarks.bars import Bar, show_bars
from benchmarks.many import Tree, publish, renew, write_objects
from benchmarks.mounts import mounted
from benchmarks.peers import MODELFS, REPOSITORY
from benchmarks.processes import Failed, end, interruptible, run, wait_until
from benchmarks.rounds import directory, note
from benchmarks.server import nginx
from modelfs.ids import ModelName
from modelfs.repository import keys
from modelfs.repository.repository import Repository
from modelfs.stores.file_store import FileStore

MiB = 1 << 20
READ = 1 * MiB
CHUNK = 2 * MiB  # of the repository: each cold read wants a chunk of its own
COLD_READS = 64
LOADS = 4
IDLE_S = 3.0
BOUND = 5
WARM, COLD, GROWING = (ModelName("acme", name) for name in ("warm", "cold", "growing"))
FILE = "model.bin"


@dataclass(frozen=True, slots=True)
class Span:
    """began, ended: time.monotonic() in seconds, which all processes share."""

    began: float
    ended: float


def p99_s(reads: Sequence[Span], within: Sequence[Span] | None = None) -> float:
    """Of the reads that began within one of the spans (None: of all): what at most one in a hundred takes longer than.
    Raises Failed where there are fewer than a hundred."""
    taken = sorted(read.ended - read.began for read in reads
                   if within is None or any(span.began <= read.began < span.ended for span in within))
    if len(taken) < 100:
        raise Failed(f"{len(taken)} reads are too few for a p99")
    return taken[-(-len(taken) * 99 // 100) - 1]


# The processes that read

def read_cached(path: Path) -> None:
    """Opens the file, reads all of it; then, for each line on standard input, reads at random places until the next
    one, and prints [[began, ended], …]."""
    fd = os.open(path, os.O_RDONLY | os.O_DIRECT)
    blocks, buffer = os.fstat(fd).st_size // READ, mmap.mmap(-1, READ)
    for block in range(blocks):
        os.preadv(fd, [buffer], block * READ)
    print("[]", flush=True)
    rng = random.Random(5)
    while sys.stdin.readline():
        stop, found = threading.Event(), []
        threading.Thread(target=lambda stop=stop: (sys.stdin.readline(), stop.set()), daemon=True).start()
        while not stop.is_set():
            offset = rng.randrange(blocks) * READ
            began = time.monotonic()
            size = os.preadv(fd, [buffer], offset)
            found.append((began, time.monotonic()))
            assert size == READ
        print(json.dumps(found), flush=True)


def read_cold(path: Path) -> None:
    """As many threads as there are cold reads; a line for each that ends."""
    fd = os.open(path, os.O_RDONLY)

    def read(number: int) -> None:
        try:
            os.pread(fd, 4096, number * CHUNK)
        finally:
            print(number, flush=True)
    for number in range(COLD_READS):
        threading.Thread(target=read, args=(number,)).start()


class Reading:
    """read_cached in a process of its own."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self._process = process
        self._answer()

    def begin(self) -> None:
        self._tell()

    def finish(self) -> list[Span]:
        self._tell()
        return self._answer()

    def meanwhile(self, seconds: float) -> list[Span]:
        self.begin()
        time.sleep(seconds)
        return self.finish()

    def _tell(self) -> None:
        assert self._process.stdin
        self._process.stdin.write("\n")
        self._process.stdin.flush()

    def _answer(self) -> list[Span]:
        assert self._process.stdout
        line = self._process.stdout.readline()
        if not line:
            raise Failed("the process that reads what is cached has ended")
        return [Span(*span) for span in json.loads(line)]


@contextmanager
def process(role: str, path: Path) -> Iterator[subprocess.Popen[str]]:
    found = subprocess.Popen([sys.executable, "-m", "benchmarks.latency", role, str(path)], stdin=subprocess.PIPE,
                             stdout=subprocess.PIPE, text=True, start_new_session=True)
    try:
        yield found
    finally:
        found.kill()  # its reads hang
        end(found)


# The repository, and who publishes

class Growing:
    """The model of which versions are published: catalogs that name one more each, and when."""

    def __init__(self, www: Path, tree: Tree) -> None:
        store = self._store = FileStore(www / REPOSITORY)
        repository = Repository.open(store, renew())
        self.tree = tree
        self._catalogs = [self._catalog()]
        for number in range(LOADS):
            publish(repository, GROWING, write_objects(repository, Tree(tree.files, tree.chunks, number + 1)))
            self._catalogs.append(self._catalog())
        self.show(0)

    def show(self, versions: int) -> None:
        fetched = self._store.get(keys.CATALOG, renew(), limit=MiB)
        assert fetched
        self._store.swap(keys.CATALOG, fetched.etag, self._catalogs[versions], renew())

    def load(self, number: int, mountpoint: Path) -> Span:
        """Publish the version of that number and go to a file of it as soon as its directory is there."""
        model = mountpoint / str(GROWING)
        began = time.monotonic()
        self.show(number)
        wait_until(lambda: model.parent.is_dir() and GROWING.name in os.listdir(model.parent)
                   and f"v{number}" in os.listdir(model), f"v{number} in the mount", 60)
        file = self.tree.files // 2
        size = os.stat(model / f"v{number}" / self.tree.path(file)).st_size
        ended = time.monotonic()
        if size != len(self.tree.content(file)):
            raise Failed(f"v{number} has a file of the wrong size")
        return Span(began, ended)

    def _catalog(self) -> bytes:
        fetched = self._store.get(keys.CATALOG, renew(), limit=MiB)
        assert fetched
        return fetched.data


def push_random(www: Path, scratch: Path, model: ModelName, size: int) -> set[str]:
    """A file of random bytes; the names of the packs that it is in."""
    packs = www / REPOSITORY / keys.PACKS
    before = {path.name for path in packs.rglob("*")}
    with directory(scratch) as own:
        with (own / FILE).open("wb") as stream:
            for _ in range(size // MiB):
                stream.write(os.urandom(MiB))
        run([*MODELFS, "push", str(own), str(www / REPOSITORY), str(model), "--quiet"])
    return {path.name for path in packs.rglob("*") if path.is_file()} - before


# The measurement

@dataclass(frozen=True, slots=True)
class Round:
    """p99 in seconds. hung_s: while the cold reads hang, and no more. loads_s: what each version took from being
    published to being seen."""

    idle_s: float
    hung_s: float
    busy_s: float
    loads_s: tuple[float, ...]


def one_round(url: str, growing: Growing, scratch: Path) -> Round:
    growing.show(0)
    with directory(scratch) as own, mounted(url, own, "--poll", "100ms", "--deadline", "10m") as mount:
        warm, cold = (mount.place / str(model) / "latest" / FILE for model in (WARM, COLD))
        with process("cached", warm) as reader:
            reading = Reading(reader)
            wait_until(lambda: os.getxattr(warm, "user.modelfs.cached") == str(warm.stat().st_size).encode(),
                       "the file in the cache")
            reads, misses = mount.counter("reads"), mount.counter("cache_misses")
            idle = reading.meanwhile(IDLE_S)
            if mount.counter("reads") - reads != len(idle) or mount.counter("cache_misses") != misses:
                raise Failed("reads did not reach the daemon as they were asked for, or not from its cache")
            with process("cold", cold) as hanging:
                wait_until(lambda: mount.counter("cache_misses") >= misses + COLD_READS, "hanging reads", 60)
                hung = reading.meanwhile(IDLE_S)
                reading.begin()
                loads = [growing.load(number, mount.place) for number in range(1, LOADS + 1)]
                busy = reading.finish()
                hanging.kill()
                assert hanging.stdout
                if ended := hanging.stdout.read().split():
                    raise Failed(f"{len(ended)} cold reads ended: they did not hang")
    return Round(p99_s(idle), p99_s(hung), p99_s(busy, loads), tuple(load.ended - load.began for load in loads))


def measure(size: int, tree: Tree, rounds: int, scratch: Path) -> list[Round]:
    www = scratch / "www"
    www.mkdir()
    run([*MODELFS, "init", str(www / REPOSITORY), "--chunk-size", str(CHUNK)])
    push_random(www, scratch, WARM, size)
    hanging = push_random(www, scratch, COLD, COLD_READS * CHUNK)
    growing = Growing(www, tree)
    with socket.create_server(("127.0.0.1", 0), backlog=512) as silent:  # takes connections, and says nothing
        location = (f'location ~ "({"|".join(sorted(hanging))})$" {{ proxy_read_timeout 1h; '
                    f"proxy_pass http://127.0.0.1:{silent.getsockname()[1]}; }}")
        with nginx(www, scratch / "nginx", locations=location) as server:
            found = []
            for number in range(rounds):
                found.append(one_round(f"http://{server.host}:{server.port}/{REPOSITORY}", growing, scratch))
                last = found[-1]
                note(f"round {number + 1}: p99 idle {last.idle_s * 1e3:.2f} ms, hung {last.hung_s * 1e3:.2f}, "
                     f"busy {last.busy_s * 1e3:.2f}, ratio {last.busy_s / last.idle_s:.2f}; "
                     f"loads took {', '.join(f'{load:.2f}' for load in last.loads_s)} s")
            return found


def latency_bars(rounds: Sequence[Round]) -> list[Bar]:
    """Of the best round idle and the best one busy: a disturbance while idle must not make the ratio better."""
    idle_s, hung_s, busy_s = (min(getattr(each, name) for each in rounds) for name in ("idle_s", "hung_s", "busy_s"))
    return [Bar("p99 of a cached 1 MiB READ: ms, idle", idle_s * 1e3, None),
            Bar(f"  ms, while {COLD_READS} cold reads hang", hung_s * 1e3, None),
            Bar("  ms, while versions are loaded, too", busy_s * 1e3, None),
            Bar("  the last ÷ idle", busy_s / idle_s, BOUND, most=True)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("role", nargs="?", choices=("cached", "cold"), help=argparse.SUPPRESS)
    parser.add_argument("path", nargs="?", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--mib", type=int, default=256, help="the cached file, 256")
    parser.add_argument("--files", type=int, default=10_000)
    parser.add_argument("--chunks", type=int, default=100_000)
    parser.add_argument("--rounds", type=int, default=3)
    args = parser.parse_args()
    if args.role:
        {"cached": read_cached, "cold": read_cold}[args.role](args.path)
        return
    if os.geteuid() != 0:
        sys.exit("this benchmark mounts with reads of 1 MiB: run it as root")
    try:
        with interruptible(), tempfile.TemporaryDirectory(prefix="modelfs-bench-") as scratch:
            rounds = measure(args.mib * MiB, Tree(args.files, args.chunks), args.rounds, Path(scratch))
    except Failed as failed:
        sys.exit(f"benchmark: {failed}")
    except KeyboardInterrupt:
        sys.exit(130)
    show_bars(f"cached reads of a busy mount, {args.files} files of {args.chunks} chunks loaded, "
              f"best of {args.rounds} rounds", latency_bars(rounds))


if __name__ == "__main__":
    main()

"""What it takes until a mount serves: of a repository with very many files and chunks, and again with a full cache.

    python -m benchmarks.starting [--files 100000] [--chunks 1000000] [--mib 2048] [--rounds 5]

Rule: a start is timed as a user sees it, from before the command to the end of what it is about, and counts only after
bytes were read that were right. Needs root, for passthrough.
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from benchmarks.bars import Bar, show_bars
from benchmarks.checkpoint import shard_paths, write_checkpoint
from benchmarks.many import Tree, publish, renew, write_objects
from benchmarks.measures import digests, sequential_s
from benchmarks.mounts import Mounted, mounted, parent, resident_bytes
from benchmarks.peers import MODEL, MODELFS
from benchmarks.processes import Failed, interruptible, run, wait_until
from benchmarks.rounds import directory, note
from modelfs.ids import ModelName
from modelfs.repository.info import MIN_CHUNK_SIZE, initialise
from modelfs.repository.repository import Repository
from modelfs.stores.file_store import FileStore

MiB = 1 << 20
SHARDS = 4
READY_BOUND_S, WORKER_BOUND_MIB, RESTART_BOUND_S = 0.6, 90, 1.0
@dataclass(frozen=True, slots=True)
class Way:
    """To mount a repository: all of it, where a manifest is read when somebody goes there, or one version, whose is
    read at the start; in the foreground, or by a keeper that starts a worker."""

    what: str
    whole: bool
    daemon: bool


WAYS = (Way("repository", True, False), Way("repository, --daemon", True, True),
        Way("one version", False, False), Way("one version, --daemon", False, True))




@dataclass(frozen=True, slots=True)
class Start:
    """beyond_s: what the mount took longer than `modelfs version` just before. The others are VmRSS in bytes; keeper: 0
    without one."""

    beyond_s: float
    worker: int
    keeper: int
    worker_after_a_read: int


def first_start(spec: str, way: Way, tree: Tree, scratch: Path) -> Start:
    """With an empty cache."""
    began = time.perf_counter()
    run([*MODELFS, "version"])
    version_s = time.perf_counter() - began
    options = () if way.whole else ("--model", MODEL)
    with directory(scratch) as own, mounted(spec, own, *options, daemon=way.daemon) as mount:
        pid = mount.status()["pid"]
        worker, keeper = resident_bytes(pid), resident_bytes(parent(pid)) if way.daemon else 0
        number = tree.files // 2
        files = mount.place / MODEL / "latest" if way.whole else mount.place
        if (files / tree.path(number)).read_bytes() != tree.content(number):
            raise Failed(f"the mount of {way.what} handed out wrong bytes")
        return Start(mount.ready_s - version_s, worker, keeper, resident_bytes(pid))


def many(tree: Tree, rounds: int, scratch: Path) -> list[Bar]:
    """The mount of a repository with one version of so many files and chunks."""
    spec = scratch / "many"
    initialise(FileStore(spec), MIN_CHUNK_SIZE, time.time(), renew())
    repository = Repository.open(FileStore(spec), renew())
    began = time.perf_counter()
    publish(repository, ModelName.parse(MODEL), write_objects(repository, tree))
    note(f"{tree.files} files of {tree.chunks} chunks: {time.perf_counter() - began:.0f} s")
    starts: dict[Way, list[Start]] = {way: [] for way in WAYS}
    for number in range(rounds):
        for way, found in starts.items():
            found.append(first_start(str(spec), way, tree, scratch))
            note(f"round {number + 1}: {way.what}: ready {found[-1].beyond_s:.2f} s beyond `modelfs version`")
    return [bar for way, found in starts.items() for bar in start_bars(way, found)]


def start_bars(way: Way, starts: Sequence[Start]) -> list[Bar]:
    def mib(sizes: Sequence[int]) -> float:
        return statistics.median(sizes) / MiB
    found = [Bar(f"{way.what}: s to ready beyond version", statistics.median(each.beyond_s for each in starts),
                 READY_BOUND_S, most=True),
             Bar("  its RSS in MiB", mib([each.worker for each in starts]), WORKER_BOUND_MIB, most=True)]
    if way.daemon:
        found.append(Bar("  with the keeper's", mib([each.worker + each.keeper for each in starts]), None))
    return [*found, Bar("  its RSS after a file was read", mib([each.worker_after_a_read for each in starts]), None)]


def restarts(size: int, rounds: int, scratch: Path) -> list[Bar]:
    """Of a mount whose cache has all of a checkpoint, `cache.verify = "changed"`."""
    with directory(scratch) as own:
        original, repository = own / "original", own / "repository"
        write_checkpoint(original, size, SHARDS)
        run([*MODELFS, "init", str(repository)])
        run([*MODELFS, "push", str(original), str(repository), MODEL, "--quiet"])
        right, names = digests(shard_paths(original)), [path.name for path in shard_paths(original)]

        def start() -> float:
            with mounted(str(repository), own, "--model", MODEL, "--verify", "changed") as mount:
                return all_passthrough_s(mount, [mount.place / name for name in names])

        with mounted(str(repository), own, "--model", MODEL, "--verify", "changed") as mount:
            if not mount.status()["passthrough"]:
                raise Failed("no passthrough here: a restart cannot be measured")
            paths = [mount.place / name for name in names]
            sequential_s(paths)
            wait_until(lambda: all(os.getxattr(path, "user.modelfs.cached") == str(path.stat().st_size).encode()
                                   for path in paths), "a full cache")
            all_passthrough_s(mount, paths)
        start()  # seals are written behind the readers, and a mount that ends does not wait for all of them
        taken = []
        for number in range(rounds):
            taken.append(start())
            note(f"restart {number + 1}: all files by passthrough {taken[-1]:.2f} s after the command's start")
        with mounted(str(repository), own, "--model", MODEL, "--verify", "changed") as mount:
            if digests([mount.place / name for name in names]) != right:
                raise Failed("a mount with a full cache handed out wrong bytes")
        return [Bar(f"restart, {size // MiB} MiB in the cache: s to passthrough", statistics.median(taken),
                    RESTART_BOUND_S, most=True)]


def all_passthrough_s(mount: Mounted, paths: Sequence[Path]) -> float:
    """Seconds from the mount command's start until every file was opened by passthrough in one pass over them."""
    end, before = mount.began + 120, 0  # nobody opened anything yet, and to ask takes its time
    while True:
        for path in paths:
            os.close(os.open(path, os.O_RDONLY))
        now = time.perf_counter()
        opens = mount.counter("passthrough_opens")
        if opens == before + len(paths):
            return now - mount.began
        before = opens
        if now > end:
            raise Failed("not all files are opened by passthrough, two minutes after the mount")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--files", type=int, default=100_000)
    parser.add_argument("--chunks", type=int, default=1_000_000)
    parser.add_argument("--mib", type=int, default=2048, help="the checkpoint in the cache, 2048")
    parser.add_argument("--rounds", type=int, default=5)
    args = parser.parse_args()
    if os.geteuid() != 0:
        sys.exit("this benchmark mounts with passthrough: run it as root")
    try:
        with interruptible(), tempfile.TemporaryDirectory(prefix="modelfs-bench-") as scratch:
            found = many(Tree(args.files, args.chunks), args.rounds, Path(scratch))
            found += restarts(args.mib * MiB, args.rounds, Path(scratch))
    except Failed as failed:
        sys.exit(f"benchmark: {failed}")
    except KeyboardInterrupt:
        sys.exit(130)
    show_bars(f"Starting, {args.files} files of {args.chunks} chunks, medians of {args.rounds} rounds", found)


if __name__ == "__main__":
    main()

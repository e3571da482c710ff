"""modelfs and what a user would pick instead, on the same checkpoint, from the same nginx, in interleaved rounds.

Rule: every figure is of right bytes (each peer's are hashed once a condition), from the peer's own empty cache (cold)
or from its disk cache with the page cache dropped (warm), and says what travelled by nginx's log.

    python -m benchmarks.compare [--short] [--mib 2048] [--rounds 5] [--engine native --engine fusepy]
                                 [--json FILE] [--docs DIRECTORY]

Needs root: it mounts, drops the page cache, and makes a network namespace.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from benchmarks import particular
from benchmarks import peers as programs
from benchmarks.bars import bars, show_bars, title
from benchmarks.checkpoint import middle_tensor, shard_paths, write_checkpoint
from benchmarks.conditions import NAMES, Condition, condition, proxy_ceiling
from benchmarks.measures import digests
from benchmarks.memory import kept_memory
from benchmarks.peers import MODEL, MODELFS, OBJECTS, ORIGINAL, REPOSITORY, Juicefs, Peer
from benchmarks.processes import Failed, interruptible, run
from benchmarks.report import show_tables, write_report
from benchmarks.results import Results, about_this_run, load_average
from benchmarks.rounds import Work, directory, note, one_round

MiB = 1 << 20
SHORT_MIB = 256


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--mib", type=int, help="size of the checkpoint, 2048")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--short", action="store_true", help=f"{SHORT_MIB} MiB")
    parser.add_argument("--engine", action="append", choices=("native", "fusepy"), help="both, where they are there")
    parser.add_argument("--json", type=Path, metavar="FILE", help="every figure of every round")
    parser.add_argument("--docs", type=Path, metavar="DIRECTORY", help="write the tables and plots there")
    args = parser.parse_args()
    if os.geteuid() != 0:
        sys.exit("this benchmark mounts, drops the page cache and makes a network namespace: run it as root")
    mib = args.mib or (SHORT_MIB if args.short else 2048)
    command = " ".join(["python -m benchmarks.compare", *sys.argv[1:]])
    try:
        with interruptible(), kept_memory(mib * MiB) as memory:
            results = compare(mib * MiB, args.rounds, args.engine or ["native", "fusepy"], command)
            results.about["machine"] += memory
    except Failed as failed:
        sys.exit(f"benchmark: {failed}")
    except KeyboardInterrupt:
        sys.exit(130)
    show_tables(results)
    show_bars(title(results), bars(results))
    if args.json:
        results.write(args.json)
    if args.docs:
        write_report(results, args.docs)


def compare(size: int, rounds: int, engines: Sequence[str], command: str) -> Results:
    with workspace(size) as (scratch, www):
        original, repository = www / ORIGINAL, www / REPOSITORY
        note(f"a checkpoint of {size // MiB} MiB")
        write_checkpoint(original, size)
        on_disk = scratch / ORIGINAL
        shutil.copytree(original, on_disk)
        run([*MODELFS, "init", str(repository)])
        began = time.perf_counter()
        run([*MODELFS, "push", str(original), str(repository), MODEL, "--quiet"])
        push_s = time.perf_counter() - began
        juicefs = Juicefs(scratch / "juicefs.db")
        with directory(scratch) as own:
            juicefs.fill(original, www, own)
        names = tuple(path.name for path in shard_paths(original))
        work = Work(scratch, original, tuple(shard_paths(on_disk)), names, digests(shard_paths(original)))
        shards = sum(path.stat().st_size for path in shard_paths(original))
        stored = sum(path.stat().st_size for path in (repository / "packs").rglob("*") if path.is_file())
        versions = particular.prepare(www, original, scratch)
        ceiling = proxy_ceiling(www, scratch / "ceiling", f"{ORIGINAL}/{names[0]}",
                                (original / names[0]).stat().st_size)
        results = Results(about_this_run(command),
                          {"size_bytes": shards, "stored_bytes": stored, "push_s": push_s, "rounds": rounds,
                           "juicefs_bytes": tree_bytes(www / OBJECTS), "proxy_ceiling_Bps": ceiling,
                           "tensor_bytes": middle_tensor(original).length})
        peers = [programs.local(on_disk), Peer("curl", programs.curl), Peer("rclone", programs.rclone),
                 Peer("juicefs", juicefs.open)]
        for name in NAMES:
            try:
                with condition(name, www, scratch / f"nginx-{NAMES.index(name)}") as found:
                    if found.name == NAMES[0]:
                        peers = available(engines, found, work, results) + peers
                    those = [peer for peer in peers if peer.fetches or not found.shaped]
                    for number in range(rounds):
                        one_round(found, those, number, work, results)
                    if found.name != NAMES[1]:
                        results.records += [particular.measure(found, engine, versions, scratch) for engine in engines
                                            if f"modelfs {engine}" in results.peers()]
            except Failed as failed:
                if name == NAMES[0] or any(record.condition == name for record in results.records):
                    raise
                note(f"{name}: skipped: {failed}")
                results.skipped[name] = str(failed)
        results.about["load average after"] = load_average()
        return results


@contextmanager
def workspace(size: int) -> Iterator[tuple[Path, Path]]:
    """(a directory on disk, a file system in memory for what is served); both gone afterwards."""
    scratch = Path(tempfile.mkdtemp(prefix="modelfs-bench-"))
    www = scratch / "www"
    www.mkdir()
    try:
        # the original, the repository, juicefs's objects: at most three times the size
        run(["mount", "-t", "tmpfs", "-o", f"size={3 * size + 512 * MiB}", "modelfs-bench", str(www)])
        try:
            yield scratch, www
        finally:
            subprocess.run(["umount", "-l", str(www)], check=False)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def available(engines: Sequence[str], found: Condition, work: Work, results: Results) -> list[Peer]:
    """The engines that this modelfs and this machine have, found out by mounting."""
    peers = []
    for engine in engines:
        peer = programs.modelfs(engine)
        try:
            with directory(work.scratch) as own, peer.open(found.url, own):
                peers.append(peer)
        except Failed as failed:
            note(f"{peer.name}: left out: {failed}")
            results.skipped[peer.name] = str(failed)
    return peers


def tree_bytes(tree: Path) -> int:
    return sum(path.stat().st_size for path in tree.rglob("*") if path.is_file())


if __name__ == "__main__":
    main()

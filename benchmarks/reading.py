"""How fast a mount reads, cold and warm, as ratios to curl and to the local file in the same run.

A synthetic bf16 checkpoint is pushed, nginx serves both the repository and the original, and each round measures,
one after another with the page cache dropped before each: the local file, curl to disk, a cold mount (empty
cache), the same mount warm, the first 4 KiB cold. Medians over the rounds. Needs root (mounts, drop_caches).

    python -m benchmarks.reading [--mib 512] [--rounds 3] [--quick] [--engine fusepy] [--json FILE]
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from benchmarks.checkpoint import write_checkpoint
from benchmarks.measures import drop_pages, opened, sequential_s
from benchmarks.memory import kept_memory
from benchmarks.peers import MODELFS
from benchmarks.processes import cost_of, interruptible
from benchmarks.server import nginx

MiB = 1 << 20
FILE = "model-00001-of-00001.safetensors"


def first_bytes_seconds(path: Path) -> float:
    began = time.perf_counter()
    with opened(path) as fd:
        os.pread(fd, 4096, 0)
    return time.perf_counter() - began


def timed(command: list[str]) -> float:
    began = time.perf_counter()
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    return time.perf_counter() - began


@contextmanager
def mounted(url: str, work: Path, engine: str) -> Iterator[tuple[Path, Path]]:
    """A mount with an empty cache: (its model's directory, the mount point)."""
    where, cache = work / "mnt", work / "cache"
    shutil.rmtree(cache, ignore_errors=True)
    where.mkdir(exist_ok=True)
    subprocess.run([*MODELFS, "mount", url, str(where), "--model", "acme/bench", "--cache-dir", str(cache),
                    "--cache-size", "64 GiB", "--engine", engine, "--daemon"], check=True)
    try:
        yield where / FILE, where
    finally:
        subprocess.run([*MODELFS, "umount", str(where)], check=True)


def daemon_memory(where: Path) -> int:
    """VmHWM of the daemon in bytes."""
    status = json.loads(subprocess.run([*MODELFS, "status", str(where), "--json"], check=True,
                                       capture_output=True).stdout)
    return cost_of(status["pid"]).peak_bytes


def sixteen_readers(path: Path) -> None:
    """Sixteen processes, each reading the whole file from another place."""
    code = ("import os,sys\nfd=os.open(sys.argv[1],os.O_RDONLY); n=os.fstat(fd).st_size; s=n*int(sys.argv[2])//16\n"
            "for a,b in ((s,n),(0,s)):\n while a<b: a+=len(os.pread(fd,1<<20,a))")
    readers = [subprocess.Popen([sys.executable, "-c", code, str(path), str(k)]) for k in range(16)]
    assert [reader.wait() for reader in readers] == [0] * 16


def median(rounds: int, measure: Callable[[], dict[str, float]]) -> dict[str, float]:
    got = [measure() for _ in range(rounds)]
    return {name: statistics.median(one[name] for one in got) for name in got[0]}


def run(mib: int, rounds: int, engine: str, work: Path) -> dict[str, float]:
    tree, repo = work / "www" / "original", work / "www" / "repository"
    original = tree / FILE
    write_checkpoint(tree, mib * MiB, shards=1)
    size = original.stat().st_size
    subprocess.run([*MODELFS, "init", str(repo)], check=True, stdout=subprocess.DEVNULL)
    drop_pages()
    push_s = timed([*MODELFS, "push", str(tree), str(repo), "acme/bench", "--quiet"])
    stored = sum(pack.stat().st_size for pack in (repo / "packs").rglob("*") if pack.is_file())
    figures: dict[str, float] = {"MiB": size / MiB, "stored_ratio": stored / size, "push_MBps": size / push_s / 1e6}
    with nginx(work / "www", work / "nginx") as server:
        url = f"http://{server.host}:{server.port}"

        def one_round() -> dict[str, float]:
            out = {}
            drop_pages()
            out["local_s"] = sequential_s([original])
            drop_pages()
            out["curl_s"] = timed(["curl", "-sf", "-o", str(work / "curl.out"), f"{url}/original/{FILE}"])
            (work / "curl.out").unlink()
            with mounted(f"{url}/repository", work, engine) as (path, where):
                drop_pages()
                out["first_4KiB_s"] = first_bytes_seconds(path)
                drop_pages()
                out["cold_s"] = sequential_s([path])
                drop_pages()
                out["warm_s"] = sequential_s([path])
                out["cached_pages_s"] = sequential_s([path])
            with mounted(f"{url}/repository", work, engine) as (path, where):
                sixteen_readers(path)
                out["hwm_16_readers_MiB"] = daemon_memory(where) / MiB
            drop_pages()
            out["curl_4KiB_s"] = timed(["curl", "-sf", "-r", "0-4095", "-o", "/dev/null",
                                        f"{url}/original/{FILE}"])
            return out
        figures.update(median(rounds, one_round))
    for name in ("local", "curl", "cold", "warm"):
        figures[f"{name}_MBps"] = size / figures[f"{name}_s"] / 1e6
    figures["cold_over_curl"] = figures["curl_s"] / figures["cold_s"]
    figures["cold_over_local"] = figures["local_s"] / figures["cold_s"]
    figures["warm_over_local"] = figures["local_s"] / figures["warm_s"]
    return figures


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--mib", type=int, default=512)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--quick", action="store_true", help="128 MiB, one round")
    parser.add_argument("--engine", default="auto")
    parser.add_argument("--json", metavar="FILE")
    args = parser.parse_args()
    work = Path(tempfile.mkdtemp(prefix="modelfs-bench-"))
    try:
        mib, rounds = (128, 1) if args.quick else (args.mib, args.rounds)
        with interruptible(), kept_memory(mib * MiB):
            figures = run(mib, rounds, args.engine, work)
    finally:
        shutil.rmtree(work, ignore_errors=True)
    for name, value in figures.items():
        print(f"{name:20} {value:10.3f}")
    if args.json:
        Path(args.json).write_text(json.dumps(figures, indent=1) + "\n")


if __name__ == "__main__":
    main()

"""How fast a mount reads, cold and warm, as ratios to curl and to the local file in the same run.

A synthetic bf16 checkpoint is pushed, nginx serves both the repository and the original, and each round measures,
one after another with the page cache dropped before each: the local file, curl to disk, a cold mount (empty
cache), the same mount warm, the first 4 KiB cold. Medians over the rounds. Needs root (mounts, drop_caches).

    python benchmarks/reading.py [--mib 512] [--rounds 3] [--quick] [--engine fusepy] [--json FILE]
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import socket
import statistics
import struct
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np

MODELFS = [sys.executable, "-m", "modelfs"]
BLOCK = 1 << 20


def write_checkpoint(path: Path, mib: int) -> None:
    """A safetensors file of N(0, 0.02) in bf16, tensors of 8 MiB."""
    rng = np.random.default_rng(1)
    count = mib // 8
    header = {f"layers.{n}.weight": {"dtype": "BF16", "shape": [1024, 4096],
                                     "data_offsets": [n << 23, (n + 1) << 23]} for n in range(count)}
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with path.open("wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        for _ in range(count):
            values = rng.standard_normal(1 << 22, dtype=np.float32) * np.float32(0.02)
            file.write((values.view(np.uint32) >> 16).astype(np.uint16).tobytes())


def drop_pages() -> None:
    os.sync()
    Path("/proc/sys/vm/drop_caches").write_text("1")


def read_seconds(path: Path) -> float:
    """A sequential read of 1 MiB blocks, in this process, into one buffer."""
    buffer = bytearray(BLOCK)
    began = time.perf_counter()
    fd = os.open(path, os.O_RDONLY)
    try:
        while os.readv(fd, [buffer]):
            pass
    finally:
        os.close(fd)
    return time.perf_counter() - began


def first_bytes_seconds(path: Path) -> float:
    began = time.perf_counter()
    fd = os.open(path, os.O_RDONLY)
    try:
        os.pread(fd, 4096, 0)
    finally:
        os.close(fd)
    return time.perf_counter() - began


def timed(command: list[str]) -> float:
    began = time.perf_counter()
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    return time.perf_counter() - began


@contextmanager
def nginx(root: Path, work: Path) -> Iterator[str]:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    conf = work / "nginx.conf"
    conf.write_text(f"""daemon off; pid {work}/nginx.pid; error_log {work}/nginx.err; worker_processes 2;
{'user root;' if os.geteuid() == 0 else ''}
events {{ worker_connections 256; }}
http {{ access_log off; sendfile on; server {{ listen 127.0.0.1:{port}; root {root}; }} }}
""")
    binary = shutil.which("nginx", path=os.environ["PATH"] + ":/usr/sbin")
    assert binary, "this benchmark needs nginx (make bench installs it)"
    server = subprocess.Popen([binary, "-c", str(conf), "-p", str(work)], stderr=subprocess.DEVNULL)
    try:
        for _ in range(100):
            with socket.socket() as probe:
                if probe.connect_ex(("127.0.0.1", port)) == 0:
                    break
            time.sleep(0.05)
        yield f"http://127.0.0.1:{port}"
    finally:
        server.terminate()
        server.wait(10)


@contextmanager
def mounted(url: str, work: Path, engine: str) -> Iterator[tuple[Path, Path]]:
    """A mount with an empty cache: (its model's directory, the mount point)."""
    where, cache = work / "mnt", work / "cache"
    shutil.rmtree(cache, ignore_errors=True)
    where.mkdir(exist_ok=True)
    subprocess.run([*MODELFS, "mount", url, str(where), "--model", "acme/bench", "--cache-dir", str(cache),
                    "--cache-size", "64 GiB", "--engine", engine, "--daemon"], check=True)
    try:
        yield where / "model.safetensors", where
    finally:
        subprocess.run([*MODELFS, "umount", str(where)], check=True)


def daemon_memory(where: Path) -> int:
    """VmHWM of the daemon in bytes."""
    status = json.loads(subprocess.run([*MODELFS, "status", str(where), "--json"], check=True,
                                       capture_output=True).stdout)
    found = re.search(r"VmHWM:\s+(\d+) kB", Path(f"/proc/{status['pid']}/status").read_text())
    assert found
    return int(found[1]) * 1024


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
    tree.mkdir(parents=True)
    original = tree / "model.safetensors"
    write_checkpoint(original, mib)
    size = original.stat().st_size
    subprocess.run([*MODELFS, "init", str(repo)], check=True, stdout=subprocess.DEVNULL)
    drop_pages()
    push_s = timed([*MODELFS, "push", str(tree), str(repo), "acme/bench", "--quiet"])
    stored = sum(pack.stat().st_size for pack in (repo / "packs").rglob("*") if pack.is_file())
    figures: dict[str, float] = {"MiB": mib, "stored_ratio": stored / size, "push_MBps": size / push_s / 1e6}
    with nginx(work / "www", work) as url:
        def one_round() -> dict[str, float]:
            out = {}
            drop_pages()
            out["local_s"] = read_seconds(original)
            drop_pages()
            out["curl_s"] = timed(["curl", "-sf", "-o", str(work / "curl.out"), f"{url}/original/model.safetensors"])
            (work / "curl.out").unlink()
            with mounted(f"{url}/repository", work, engine) as (path, where):
                drop_pages()
                out["first_4KiB_s"] = first_bytes_seconds(path)
                drop_pages()
                out["cold_s"] = read_seconds(path)
                drop_pages()
                out["warm_s"] = read_seconds(path)
                out["cached_pages_s"] = read_seconds(path)
            with mounted(f"{url}/repository", work, engine) as (path, where):
                sixteen_readers(path)
                out["hwm_16_readers_MiB"] = daemon_memory(where) / BLOCK
            drop_pages()
            out["curl_4KiB_s"] = timed(["curl", "-sf", "-r", "0-4095", "-o", "/dev/null",
                                        f"{url}/original/model.safetensors"])
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
        figures = run(128 if args.quick else args.mib, 1 if args.quick else args.rounds, args.engine, work)
    finally:
        shutil.rmtree(work, ignore_errors=True)
    for name, value in figures.items():
        print(f"{name:20} {value:10.3f}")
    if args.json:
        Path(args.json).write_text(json.dumps(figures, indent=1) + "\n")


if __name__ == "__main__":
    main()

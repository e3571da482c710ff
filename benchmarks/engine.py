"""What the native engine costs beside a bare loop, without passthrough, and beside fusepy; all from the cache.

    python -m benchmarks.engine [--size 256MiB] [--rounds 5]

The bare loop answers READ from one file without looking anything up: readv, preadv, write, as a filesystem in Python
cannot be faster. Each daemon is a process of its own; rounds are interleaved; a ratio is the median of the rounds'.
As root.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from benchmarks import measures
from benchmarks.bars import Bar, show_bars
from benchmarks.processes import running, wait_until
from benchmarks.rounds import note
from modelfs.units import MiB, parse_size

SERVERS = ("bare", "native", "storing", "fusepy")
"""storing: native, with bytes stored ahead of a sequential reader."""
READAHEAD_KB = (1024, 128)
"""The kernel's largest requests: as root, and as a user who cannot raise them."""


def serve_bare(file: Path, mountpoint: Path) -> None:
    """One file, `file`, named `model` at the root."""
    from modelfs.engines.native import mounting, protocol
    from modelfs.engines.native.connection import Connection
    from modelfs.engines.native.protocol import Op
    from modelfs.engines.native.reads import ReplyBuffer
    from modelfs.engines.options import MountOptions

    device = mounting.mount(MountOptions(mountpoint, "bare"))
    connection, request, reply = Connection(device), bytearray(protocol.REQUEST_BYTES), ReplyBuffer()
    body, fd, size = memoryview(request)[protocol.IN_HEADER.size:], os.open(file, os.O_RDONLY), file.stat().st_size

    def attr(id: int) -> bytes:
        mode, length = (0o40555, 0) if id == 1 else (0o100444, size)
        return protocol.ATTR.pack(id, length, -(-length // 512), *[0] * 6, mode, 1, 0, 0, 0, 4096, 0)

    def answer(opcode: int, id: int) -> bytes | None:
        match opcode:
            case Op.LOOKUP:
                return protocol.ENTRY_OUT.pack(2, 0, 3600, 3600, 0, 0) + attr(2)
            case Op.GETATTR:
                return protocol.ATTR_OUT.pack(3600, 0, 0) + attr(id)
            case Op.OPEN:
                return protocol.OPEN_OUT.pack(0, protocol.FOPEN_KEEP_CACHE | protocol.FOPEN_NOFLUSH, 0)
            case Op.RELEASE:
                return b""
        return None

    while True:
        try:
            os.readv(device, [request])
        except OSError:
            return
        _, opcode, unique, id, *_ = protocol.IN_HEADER.unpack_from(request)
        if opcode == Op.READ:
            _, offset, length, *_ = protocol.READ_IN.unpack_from(body)
            reply.send(device, unique, os.preadv(fd, [reply.data[:length]], offset))
        elif opcode == Op.INIT:
            connection.agree(unique, body, 1, lambda _: None)
        elif (out := answer(opcode, id)) is not None:
            connection.answer(unique, out)
        elif opcode not in (Op.FORGET, Op.BATCH_FORGET, Op.INTERRUPT):
            connection.fail(unique, 38)


def serve_modelfs(engine: str, repository: Path, cache: Path, mountpoint: Path) -> None:
    from modelfs.cache.cache import Cache
    from modelfs.engines.engine import Engine
    from modelfs.engines.fusepy_engine import FusepyEngine
    from modelfs.engines.native.engine import NativeEngine
    from modelfs.engines.options import MountOptions
    from modelfs.ids import ModelName, ModelRef
    from modelfs.metrics import Metrics
    from modelfs.reading.fetcher import Fetcher
    from modelfs.reading.reader import Reader
    from modelfs.reading.versions import Versions
    from modelfs.repository.repository import Repository
    from modelfs.stores.opening import open_store
    from modelfs.units import Deadline, DiskShare
    from modelfs.view.shelves import Library, version_id
    from modelfs.view.view import Pinned, View

    def renew() -> Deadline:
        return Deadline(60)

    metrics = Metrics()
    kept = Cache(cache, DiskShare(64 << 30), DiskShare(0), metrics)
    found = Repository.open(open_store(str(repository)), renew(), kept.meta)
    fetcher = Fetcher(kept, metrics, connections=8, memory_bytes=256 * MiB, deadline_s=60)
    catalog = found.catalog(renew()).catalog
    version = found.resolve(catalog, ModelRef(ModelName("bench", "model")), renew()).version
    view = View(Library(found, catalog, renew), Versions(found, kept, renew), Reader(fetcher, metrics, 64 * MiB),
                metrics, Pinned(version_id(ModelName("bench", "model"), version)))
    made: Engine = FusepyEngine() if engine == "fusepy" else NativeEngine(
        cache, passthrough=False, store_ahead=engine == "storing")
    sys.setswitchinterval(2e-4)  # as a mount does
    made.take(MountOptions(mountpoint, "benchmark"))
    made.serve(view)


@contextmanager
def mounts(work: Path, size: int) -> Iterator[dict[str, Path]]:
    """The file `model` through each of SERVERS, and itself."""
    source = work / "source"
    source.mkdir()
    with (source / "model").open("wb") as stream:
        for _ in range(size // MiB):
            stream.write(os.urandom(MiB))
    modelfs = [sys.executable, "-m", "modelfs"]
    subprocess.run([*modelfs, "init", work / "repo", "--quiet"], check=True, stdout=subprocess.DEVNULL)
    subprocess.run([*modelfs, "push", source, work / "repo", "bench/model"], check=True, stdout=subprocess.DEVNULL,
                   stderr=subprocess.DEVNULL)
    with ExitStack() as stack:
        paths = {"local": source / "model"}
        for name in SERVERS:
            place = work / name
            place.mkdir()
            stack.enter_context(running([sys.executable, "-m", "benchmarks.engine", "--work", work, "--serve", name],
                                        work / f"{name}.log"))
            stack.callback(subprocess.run, ["umount", "-l", place], check=False)
            wait_until(lambda place=place: place.is_mount() and (place / "model").exists(), name)
            paths[name] = place / "model"
            measures.sequential_s([paths[name]])
        yield paths


def set_readahead(place: Path, kb: int) -> None:
    device = os.stat(place).st_dev
    Path(f"/sys/class/bdi/{os.major(device)}:{os.minor(device)}/read_ahead_kb").write_text(str(kb))


def drop(path: Path) -> None:
    """The mount's own pages; the backing file's stay."""
    fd = os.open(path, os.O_RDONLY)
    os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
    os.close(fd)


@dataclass(frozen=True, slots=True)
class Case:
    """kb: the kernel's largest requests. seconds: for each of SERVERS and the file itself, one a round."""

    kb: int
    what: str
    seconds: Mapping[str, Sequence[float]]

    def ratio(self, server: str, other: str) -> float:
        """The speed of one ÷ the other's: the median of the rounds' ratios."""
        return statistics.median(theirs / ours for ours, theirs in zip(self.seconds[server], self.seconds[other],
                                                                       strict=True))


def compare(paths: dict[str, Path], rounds: int) -> list[Case]:
    size = paths["local"].stat().st_size
    tests: dict[str, Callable[[list[Path]], float]] = {"sequential": measures.sequential_s, "mmap": measures.mapped_s}
    cases = []
    for kb in READAHEAD_KB:
        for name in SERVERS:
            set_readahead(paths[name].parent, kb)
        for what, measure in tests.items():
            taken: dict[str, list[float]] = {name: [] for name in paths}
            for _ in range(rounds):
                for name, path in paths.items():
                    if name != "local":
                        drop(path)
                    taken[name].append(measure([path]))
            cases.append(Case(kb, what, taken))
            note(f"requests of up to {kb} KiB, {what}: " + ", ".join(
                f"{name} {size / statistics.median(found) / 1e9:.2f} GB/s" for name, found in taken.items()))
    return cases


def engine_bars(cases: Sequence[Case]) -> list[Bar]:
    """Of native alone where the kernel asks for much at once, as root's mount runs; of native that stores ahead where
    it does not, as a user's does. The other without a bound, to see what storing gains."""
    root, user = READAHEAD_KB
    runs = {root: "native", user: "storing"}
    found = [Bar(f"{case.what}, {case.kb} KiB: {server} ÷ bare", case.ratio(server, "bare"),
                 0.85 if server == runs[case.kb] else None)
             for case in cases for server in dict.fromkeys((runs[case.kb], "native"))]
    for case in cases:
        server = runs[case.kb]
        found.append(Bar(f"{case.what}, {case.kb} KiB: {server} ÷ fusepy", case.ratio(server, "fusepy"), 1.3))
    found += [Bar(f"{case.what}, {case.kb} KiB: storing ÷ native", case.ratio("storing", "native"), 1.5)
              for case in cases if (case.what, case.kb) == ("mmap", user)]
    return found


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--size", type=parse_size, default=256 * MiB)
    arguments.add_argument("--rounds", type=int, default=5)
    arguments.add_argument("--work", type=Path, help=argparse.SUPPRESS)
    arguments.add_argument("--serve", choices=SERVERS, help=argparse.SUPPRESS)
    given = arguments.parse_args()
    if given.serve == "bare":
        serve_bare(given.work / "source" / "model", given.work / "bare")
    elif given.serve:
        with suppress(KeyboardInterrupt):
            serve_modelfs(given.serve, given.work / "repo", given.work / f"{given.serve}.cache",
                          given.work / given.serve)
    else:
        with tempfile.TemporaryDirectory(prefix="modelfs-bench-") as work, mounts(Path(work), given.size) as paths:
            found = engine_bars(compare(paths, given.rounds))
        show_bars(f"the native engine without passthrough, from its cache, medians of {given.rounds} rounds' ratios",
                  found)


if __name__ == "__main__":
    main()

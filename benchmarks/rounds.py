"""One peer in one round: opened with an empty cache, read cold, then warm, then loaded, then gone.

Rule: a figure counts only after the bytes it is about were hashed once in that condition and were right; a warm figure
comes with what it fetched, which should be nothing.
"""

from __future__ import annotations

import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from benchmarks import measures
from benchmarks.checkpoint import middle_tensor
from benchmarks.conditions import Condition
from benchmarks.measures import drop_pages
from benchmarks.peers import Opened, Peer
from benchmarks.processes import Failed
from benchmarks.results import Record, Results
from benchmarks.server import bytes_sent, longest_chain

RANDOM_READS = 4000
WARMING_PASSES = 3  # juicefs leaves blocks uncached on a fast link; a few passes bring the rest
WARM: dict[str, Callable[[Sequence[Path]], float]] = {
    "warm_s": measures.sequential_s, "mapped_s": measures.mapped_s, "threaded_s": measures.threaded_s,
    "random_s": lambda paths: measures.random_s(paths, RANDOM_READS)}


@dataclass(frozen=True, slots=True)
class Work:
    """scratch: on a disk, for caches. original: the checkpoint. local: its shards on that disk. names: of the shards.
    digests: shard → BLAKE3."""

    scratch: Path
    original: Path
    local: tuple[Path, ...]
    names: tuple[str, ...]
    digests: dict[str, str]

    def paths(self, opened: Opened) -> list[Path]:
        return [opened.directory / name for name in self.names]

    def check(self, peer: Peer, opened: Opened) -> None:
        """Raises Failed where a peer's files are not the original's."""
        if measures.digests(self.paths(opened)) != self.digests:
            raise Failed(f"{peer.name} handed out wrong bytes")


def note(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


@contextmanager
def directory(parent: Path) -> Iterator[Path]:
    """An empty directory for one peer; gone afterwards."""
    own = Path(tempfile.mkdtemp(prefix="peer-", dir=parent))
    try:
        yield own
    finally:
        shutil.rmtree(own)


def one_round(found: Condition, peers: Sequence[Peer], number: int, work: Work, results: Results) -> None:
    """Every peer once, from another one on in each round, so that none always follows the same."""
    turn = number % len(peers)
    for peer in [*peers[turn:], *peers[:turn]]:
        with directory(work.scratch) as own:
            began = time.perf_counter()
            with peer.open(found.url, own) as opened:
                figures = {"open_s": time.perf_counter() - began}
                figures |= cold(found, opened, work)
                if number == 0:
                    work.check(peer, opened)
                if found.shaped:
                    note(f"{found.name}, round {number + 1}: {peer.name}: cold {figures['cold_s']:.2f} s")
                else:
                    figures |= warm(found, opened, work, beside=peer.name.startswith("modelfs"))
                    note(f"{found.name}, round {number + 1}: {peer.name}: cold {figures['cold_s']:.2f} s, "
                         f"warm {figures['warm_s']:.2f} s")
        if not found.shaped:
            figures |= load(found, peer, work)
        if found.round_trip_s:
            figures |= one_tensor(found, peer, work)
        results.records.append(Record(found.name, peer.name, number, figures))


def cold(found: Condition, opened: Opened, work: Work) -> dict[str, float]:
    """Every shard from an empty cache, one after another; where files are brought first, bringing them alone."""
    drop_pages()
    since, before, began = found.server.position(), opened.cost(), time.perf_counter()
    if opened.bring:
        opened.bring(work.names)
    else:
        measures.sequential_s(work.paths(opened))
    cold_s, after = time.perf_counter() - began, opened.cost()
    found.server.position()  # what is still under way has come
    return {"cold_s": cold_s, "cpu_s": after.cpu_s - before.cpu_s,
            "fetched_bytes": bytes_sent(found.server.requests(since))}


def warm(found: Condition, opened: Opened, work: Work, *, beside: bool) -> dict[str, float]:
    """What was read before, from the peer's disk cache, with the page cache dropped before each.

    Once untimed, then twice, of which the better counts: a virtual disk reads what was just written at half the speed
    at first, a plain file, too, and memory that was given back to the host comes at a fifth of its speed (1 GiB each
    time: a local file in 0.45 to 1.62 s).
    beside: the local file takes its turn in between (beside_…), for the bars: of two plain files that were read minutes
    apart, one had 0.93 to 1.10 of the other's speed.
    """
    paths = work.paths(opened)
    turns = [paths, work.local] if beside else [paths]
    for _ in range(WARMING_PASSES):
        since = found.server.position()
        drop_pages()
        measures.sequential_s(paths)
        if found.server.position() == since:
            break
    since, figures = found.server.position(), {}
    for name, read in WARM.items():
        passes = [[_from_disk(read, each) for each in turns] for _ in range(2)]
        figures |= dict(zip((name, f"beside_{name}"), map(min, *passes), strict=False))
    found.server.position()
    return figures | {"random_reads": RANDOM_READS, "peak_bytes": opened.cost().peak_bytes,
                      "warm_fetched_bytes": bytes_sent(found.server.requests(since))}


def _from_disk(read: Callable[[Sequence[Path]], float], paths: Sequence[Path]) -> float:
    drop_pages()
    return read(paths)


def load(found: Condition, peer: Peer, work: Work) -> dict[str, float]:
    """Every tensor into memory from an empty cache, by maps; bringing the files first counts."""
    with directory(work.scratch) as own, peer.open(found.url, own) as opened:
        drop_pages()
        began = time.perf_counter()
        if opened.bring:
            opened.bring(work.names)
        measures.load_s(work.paths(opened))
        return {"load_s": time.perf_counter() - began}


def one_tensor(found: Condition, peer: Peer, work: Work) -> dict[str, float]:
    """A tensor from the middle of a file that nobody has read: seconds on a ready mount, round trips, bytes.

    trips_ready counts the chain of requests since the mount was ready, trips_start since it was begun.
    """
    tensor = middle_tensor(work.original)
    since = found.server.position()
    with directory(work.scratch) as own, peer.open(found.url, own) as opened:
        drop_pages()
        found.server.position()  # what a start still fetches is not the tensor's
        ready = time.time()
        if opened.bring:
            opened.bring([tensor.path])
        measures.read_tensor(opened.directory, tensor)
        done = time.time()  # the clock that nginx's log has
    found.server.position()
    # what began later than half a round trip before the end is read-ahead: its answer came too late to be waited for
    asked = [each for each in found.server.requests(since) if each.began < done - found.round_trip_s / 2]
    return {"tensor_s": done - ready, "tensor_fetched_bytes": bytes_sent(found.server.requests(since)),
            "trips_start": longest_chain(asked, found.round_trip_s),
            "trips_ready": longest_chain([each for each in asked if each.began >= ready], found.round_trip_s)}

"""How fast each step of a read is here, one after another: the store, decoding, checking, the cache's disk, a mount.

Rule: every stage moves real bytes and says how many; what may hang (a store, a mount) is asked by a daemon thread, so
that Ctrl-C ends the one who waits. What decoded is checked: a stage that measured wrong bytes is an error.
"""

from __future__ import annotations

import os
import statistics
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from queue import SimpleQueue
from typing import Protocol, TypeVar

from modelfs.cache.eviction import cache_files
from modelfs.cache.system import page_buffer
from modelfs.codecs import codec_named
from modelfs.codecs.codec import CodecError
from modelfs.errors import NotFound, Unavailable
from modelfs.ids import ObjectId
from modelfs.repository import keys
from modelfs.repository.chunk import ChunkRef, check_chunk, corrupt
from modelfs.repository.layout import Layout
from modelfs.repository.manifest import FileEntry, Manifest
from modelfs.repository.places import Place
from modelfs.stores.store import ObjectStore
from modelfs.units import Deadline, MiB

RANGE_BYTES = 16 * MiB  # as the fetcher's
_BLOCK = MiB
_KEPT_BYTES = 64 * MiB
_LEAST_S = 1e-9
Advance = Callable[[int], None]
T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Stage:
    """what: was measured, for people. bytes: stored ones of a store, else decoded ones."""

    name: str
    what: str
    bytes: int
    seconds: float

    @property
    def bytes_per_s(self) -> float:
        return self.bytes / self.seconds

    @property
    def s_per_gb(self) -> float:
        return self.seconds / self.bytes * 1e9

    def fields(self) -> dict[str, object]:
        return {"name": self.name, "what": self.what, "bytes": self.bytes, "seconds": round(self.seconds, 6),
                "bytes_per_s": round(self.bytes_per_s)}


class Progress(Protocol):
    """cli.output.Progress."""

    def advance(self, size_bytes: int) -> None: ...

    def total(self, size_bytes: int) -> None: ...

    def note(self, text: str) -> None: ...


@dataclass(frozen=True, slots=True)
class Wanted:
    ref: ChunkRef
    place: Place


@dataclass(slots=True)
class Range:
    """Stored chunks back to back in one pack."""

    pack: ObjectId
    offset: int
    length: int
    chunks: list[Wanted]


@dataclass(slots=True)
class Kept:
    """Stored chunks that a fetch brought, up to 64 MiB of them, for decoding afterwards."""

    chunks: list[tuple[Wanted, bytearray]] = field(default_factory=list)
    left_bytes: int = _KEPT_BYTES
    lock: threading.Lock = field(default_factory=threading.Lock)  # guards the other two

    def offer(self, wanted: Wanted, stored: bytearray) -> bool:
        with self.lock:
            if len(stored) > self.left_bytes:
                return False
            self.left_bytes -= len(stored)
            self.chunks.append((wanted, stored))
            return True


def together(calls: Sequence[Callable[[], None]]) -> None:
    """Each in a daemon thread of its own. Raises the first error as soon as it comes; the others are not waited for."""
    ends: SimpleQueue[BaseException | None] = SimpleQueue()

    def run(call: Callable[[], None]) -> None:
        try:
            call()
        except BaseException as error:  # raised again by the one who waits
            ends.put(error)
        else:
            ends.put(None)

    for call in calls:
        threading.Thread(target=run, args=(call,), name="bench", daemon=True).start()
    for _ in calls:
        error = ends.get()
        if error is not None:
            raise error


def apart(call: Callable[[], T]) -> T:
    """What call returns, from a daemon thread: Ctrl-C ends the wait for it, whatever it hangs at."""
    out: list[T] = []
    together([lambda: out.append(call())])
    return out[0]


def wanted_of(manifest: Manifest, layout: Layout, file: FileEntry, limit_bytes: int) -> list[Wanted]:
    """The file's chunks from its start, each once, of at most limit_bytes decoded. Of a difference, its base: that is
    most of what reading it takes."""
    found: dict[ChunkRef, Place] = {}
    decoded = 0
    for row in range(file.first_row, file.first_row + file.row_count):
        ref, place = ChunkRef(manifest.chunk_id(row), int(manifest.chunk_lengths[row])), layout.place(row)
        if place.base is not None:
            ref, place = ChunkRef(place.base.id, ref.length), place.base.place
        if ref in found:
            continue
        decoded += ref.length
        if decoded > limit_bytes:
            break
        found[ref] = place
    return [Wanted(ref, place) for ref, place in found.items()]


def ranges_of(wanted: Sequence[Wanted], connections: int) -> list[Range]:
    """Up to 16 MiB each, and less where else not every connection, and the one that is measured alone, had its own."""
    largest = min(RANGE_BYTES, sum(each.place.length for each in wanted) // (connections + 1))
    out: list[Range] = []
    for each in wanted:
        place = each.place
        last = out[-1] if out else None
        if last is not None and last.pack == place.pack and last.offset + last.length == place.offset \
                and last.length + place.length <= largest:
            last.length += place.length
            last.chunks.append(each)
        else:
            out.append(Range(place.pack, place.offset, place.length, [each]))
    return out


def round_trip_s(store: ObjectStore, renew: Callable[[], Deadline], times: int) -> float:
    """The median of so many requests for the catalog's size, one after another on a connection that is open."""
    taken: list[float] = []
    for _ in range(times + 1):  # the first opens the connection
        began = time.perf_counter()
        store.stat(keys.CATALOG, renew())
        taken.append(time.perf_counter() - began)
    return statistics.median(taken[1:])


def fetch_s(store: ObjectStore, ranges: Sequence[Range], connections: int, renew: Callable[[], Deadline],
            kept: Kept, advance: Advance) -> float:
    """Seconds until all ranges came, streamed chunk by chunk as the fetcher does. Raises what a store raises."""
    left = SimpleQueue[Range | None]()
    for each in (*ranges, *[None] * connections):
        left.put(each)
    broken = threading.Event()

    def work() -> None:
        spare = bytearray()
        try:
            while (each := left.get()) is not None and not broken.is_set():
                with store.open_range(keys.pack(each.pack), each.offset, each.length, renew()) as stream:
                    for wanted in each.chunks:
                        length = wanted.place.length
                        stored = spare if len(spare) >= length else bytearray(length)
                        stream.readinto(memoryview(stored)[:length])
                        if kept.offer(wanted, stored if len(stored) == length else stored[:length]):
                            spare = bytearray()
                        else:
                            spare = stored
                        advance(length)
        except BaseException:
            broken.set()
            raise

    began = time.perf_counter()
    together([work] * connections)
    return max(time.perf_counter() - began, _LEAST_S)


def decode_and_check_s(kept: Kept, advance: Advance) -> tuple[int, float, float]:
    """Decoded bytes, and seconds of one core for decoding them and for hashing them. Raises CorruptChunk, Unsupported.

    Of this thread's processor time: what others do on the machine is not counted.
    """
    out = memoryview(bytearray(max(wanted.ref.length for wanted, _ in kept.chunks)))
    decoded, decode_s, check_s = 0, 0.0, 0.0
    for wanted, stored in kept.chunks:
        part, codec = out[:wanted.ref.length], codec_named(wanted.place.codec)
        began = time.thread_time()
        try:
            codec.decode(memoryview(stored), part)
        except CodecError as error:
            raise corrupt(wanted.ref, wanted.place, f"it does not decode ({error})") from error
        middle = time.thread_time()
        check_chunk(wanted.ref, part, wanted.place)
        decode_s, check_s = decode_s + middle - began, check_s + time.thread_time() - middle
        decoded += wanted.ref.length
        advance(2 * wanted.ref.length)
    return decoded, max(decode_s, _LEAST_S), max(check_s, _LEAST_S)


def disk_s(directory: Path, size_bytes: int, advance: Advance) -> tuple[float, float]:
    """Seconds to write a file in directory until the disk has it, and to read it back, not from memory.

    The file has no name, so nothing is left of it whatever happens. Raises OSError.
    """
    block = memoryview(os.urandom(_BLOCK))
    with tempfile.TemporaryFile(dir=directory, buffering=0) as file:
        fd = file.fileno()
        began = time.perf_counter()
        for at in range(0, size_bytes, _BLOCK):
            rest = block[:min(_BLOCK, size_bytes - at)]
            advance(len(rest))
            while rest:
                rest = rest[os.write(fd, rest):]
        os.fsync(fd)
        written_s = time.perf_counter() - began
        os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
        os.lseek(fd, 0, os.SEEK_SET)
        return max(written_s, _LEAST_S), _read_s(fd, size_bytes, advance)[1]


def read_cold_s(path: Path, limit_bytes: int, advance: Advance) -> tuple[int, float]:
    """Bytes of the file in a mount from its start, at most limit_bytes, and seconds, the open among them.

    The kernel forgets the file's pages before and after. Raises NotFound, Unavailable where the mount fails to read.
    """
    try:
        began = time.perf_counter()
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            opened_s = time.perf_counter() - began
            # by this descriptor, as one open before would keep the kernel from handing the file out by passthrough
            os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
            size, seconds = _read_s(fd, limit_bytes, advance)
            os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
        finally:
            os.close(fd)
    except FileNotFoundError as error:
        raise NotFound("no such file in the mount", where=str(path)) from error
    except OSError as error:
        raise Unavailable("the mount failed to read", where=str(path), why=error.strerror or str(error),
                          advice="Its log says why.") from error
    return size, opened_s + seconds


def drop_cached_pages(directory: Path, size_bytes: int) -> None:
    """Have the kernel forget what it holds of a cache directory's files that are this large, the one of a model's file
    among them: under passthrough a mount's reads come from there. Raises OSError where the directory is not ours."""
    for _, path in cache_files(directory / "files"):
        try:
            fd = os.open(path.with_suffix(""), os.O_RDONLY | os.O_CLOEXEC)
        except FileNotFoundError:  # evicted meanwhile
            continue
        try:
            if os.fstat(fd).st_size == size_bytes:
                os.fdatasync(fd)  # what is not written yet cannot be forgotten
                os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
        finally:
            os.close(fd)


def _read_s(fd: int, limit_bytes: int, advance: Advance) -> tuple[int, float]:
    buffer = memoryview(page_buffer(_BLOCK))
    size = 0
    began = time.perf_counter()
    while size < limit_bytes and (came := os.readv(fd, [buffer[:limit_bytes - size]])):
        size += came
        advance(came)
    return size, max(time.perf_counter() - began, _LEAST_S)

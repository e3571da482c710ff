"""The rest of a file, or of a whole model, is fetched behind its readers, so that the next read of it is a local one.

Rule: readers go first, then what their streams read next, then this. It keeps a bounded window under way, and ends
where the cache could keep more only by dropping what belongs to the same file or set.

A file that nobody holds open any more goes on being fetched: loaders open a shard once for its header and again for
its tensors, and what rclone's full cache or JuiceFS began to bring is expected to be there the next time, too.
Tensors of a safetensors file lie in the order of its header, so the order of the file is the order of the tensors.
"""

from __future__ import annotations

import json
import re
import threading
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from modelfs.cache.cache import Cache
from modelfs.errors import ModelfsError, Unavailable
from modelfs.ids import ChunkId, ObjectId
from modelfs.logs import log_event, logger_for
from modelfs.reading.fetcher import Fetcher
from modelfs.reading.flights import Priority, Want
from modelfs.reading.versions import FileCache, LoadedVersion, ModelFile
from modelfs.reading.warming import kept_files
from modelfs.settings import Hydrate
from modelfs.units import MiB

_LOG = logger_for(__name__)
_WINDOW = 128 * MiB
"""Decoded bytes under way. They hold no memory while they wait for a connection."""
_BATCH = 48 * MiB
"""Decoded bytes of one range, at most: 8 MiB of bf16 as stored, two thirds of a pack at once to a connection."""
_LONGEST_WAIT = 32 * MiB
"""Read in sequence before the rest is fetched, or a quarter of the file: one tensor of a large file is no reason to."""
_MARGIN = 16 * MiB  # the cache stays short of its limit by that much, for what readers fetch meanwhile
_INDEX_NAMES = (b".safetensors.index.json", b"pytorch_model.bin.index.json")
_LARGEST_INDEX = 64 * MiB
_REMEMBERED_VERSIONS = 16


@dataclass(frozen=True, slots=True)
class _Begin:
    """A file to be fetched, from a chunk on, what is before it last."""

    file: ModelFile
    chunk: int


class Hydration:
    """One thread, which fetches one file or set after the other, in the order in which they were asked for."""

    def __init__(self, fetcher: Fetcher, cache: Cache, mode: Hydrate) -> None:
        """mode: may be set at any time, and holds for what is opened or read from then on."""
        self._fetcher, self._cache, self.mode = fetcher, cache, mode
        self._changed = threading.Condition()
        self._waiting: OrderedDict[FileCache, _Begin] = OrderedDict()  # guarded by _changed
        self._stopped = False  # guarded by _changed
        self._sets: OrderedDict[ObjectId, dict[int, Sequence[int]]] = OrderedDict()  # the thread's own
        self._thread = threading.Thread(target=self._run, name="hydrate", daemon=True)
        self._thread.start()

    def opened(self, file: ModelFile) -> None:
        """A reader has opened it. Never blocks."""
        if self.mode in ("file", "model"):
            self._add(_Begin(file, 0))

    def streams(self, file: ModelFile, offset: int, run: int) -> None:
        """It is read in sequence, up to offset (below its size) as of now, and has been for run bytes. Never blocks."""
        if self.mode != "off" and run >= min(_LONGEST_WAIT, file.size // 4):
            self._add(_Begin(file, file.chunks_of(offset, 1)[0]))

    def close(self) -> None:
        """Ends at once; what is under way goes on by itself."""
        with self._changed:
            self._stopped = True
            self._changed.notify_all()
        self._thread.join()

    def _add(self, begin: _Begin) -> None:
        """The first chunk of a file is there with its first read: what has no others needs nothing here."""
        if self._fetcher.prefetches and begin.file.entry.row_count > 1 and not begin.file.cache.whole():
            with self._changed:
                self._waiting.setdefault(begin.file.cache, begin)
                self._changed.notify_all()

    def _run(self) -> None:
        while (begin := self._next()) is not None:
            try:
                self._hydrate(begin)
            except Unavailable as error:
                log_event(_LOG, "info", "hydration.ended", file=begin.file.entry.path, why=str(error))
            except ModelfsError as error:  # a reader of it hears the same, and the log names the chunk
                log_event(_LOG, "warning", "hydration.ended", file=begin.file.entry.path, why=str(error))
            except Exception as error:  # a fault here costs speed, and not all later files theirs
                log_event(_LOG, "error", "hydration.broken", error=error)
            finally:
                with self._changed:
                    self._waiting.pop(begin.file.cache, None)

    def _next(self) -> _Begin | None:
        """It stays in _waiting until it is done, so that it is not begun again."""
        with self._changed:
            self._changed.wait_for(lambda: self._stopped or self._waiting)
            return None if self._stopped else next(iter(self._waiting.values()))

    def _hydrate(self, begin: _Begin) -> None:
        version, first = begin.file.version, begin.file.number
        numbers = [first, *(n for n in self._set_of(begin.file) if n != first)] if self.mode == "model" else [first]
        kept = kept_files(version.manifest, numbers, self._cache)
        names = {file.name for file in kept.values()}
        window = _Window(self._changed)
        for number in numbers:
            file = version.file(number)
            others = {each.name: each.cached_bytes() for n, each in kept.items() if n != number}
            room = self._cache.room_for(names) - sum(others.values()) - _MARGIN
            for wants, size in _batches(file, begin.chunk if number == first else 0):
                if file.cached_bytes() + window.under_way + size > room:
                    log_event(_LOG, "debug", "hydration.full", file=file.entry.path, room_bytes=room)
                    return
                if not self._enter(window, wants):
                    return
                self._fetcher.ensure(wants, window, Priority.HYDRATION)
        with self._changed:
            self._await(window, 0)

    def _enter(self, window: _Window, wants: Sequence[Want]) -> bool:
        """Wait for room in the window. False where it is over. Raises what a chunk failed with."""
        sizes = {ref.id: ref.length for ref in (want.file.ref(want.chunk) for want in wants)}
        size = sum(sizes.values())
        with self._changed:
            self._await(window, max(0, _WINDOW - size))
            if window.error:
                raise window.error
            window.expect(sizes)
            return not self._stopped

    def _await(self, window: _Window, enough: int) -> None:
        """Under the lock: until no more than enough bytes are under way there, or a chunk failed, or this ends."""
        window.enough = enough
        self._changed.wait_for(lambda: self._stopped or window.error or window.under_way <= enough)

    def _set_of(self, file: ModelFile) -> Sequence[int]:
        """The numbers of the files that an index beside it names together with it, in natural order; else its own."""
        version = file.version
        found = self._sets.get(version.manifest.id)
        if found is None:
            found = {}
            for number in range(len(version.manifest)):
                if version.manifest.path_bytes(number).endswith(_INDEX_NAMES):
                    members = self._members(version, version.file(number))
                    found.update((member, members) for member in members)
            self._sets[version.manifest.id] = found
            if len(self._sets) > _REMEMBERED_VERSIONS:
                self._sets.popitem(last=False)
        return found.get(file.number, (file.number,))

    def _members(self, version: LoadedVersion, index: ModelFile) -> Sequence[int]:
        """The files that an index's weight_map names, as far as there are such."""
        directory = index.entry.path.rpartition("/")[0]
        try:
            document = json.loads(self._content(index))
            names = set(document["weight_map"].values())
            paths = sorted((f"{directory}/{name}" if directory else name for name in names), key=natural)
        except (ValueError, LookupError, TypeError, AttributeError, RecursionError) as error:
            log_event(_LOG, "info", "hydration.index", file=index.entry.path, why=f"no index of shards ({error})")
            return ()
        return [number for path in paths if (number := version.manifest.find(path)) is not None]

    def _content(self, file: ModelFile) -> bytes:
        """All of a small file; nothing of one that is too large, or once this ends. Raises what a chunk failed with."""
        if not 0 < file.entry.size <= _LARGEST_INDEX:
            return b""
        chunks = range(file.entry.row_count)
        window = _Window(self._changed, {})
        wants = [Want(file, chunk) for chunk in chunks]
        window.expect({file.ref(chunk).id: file.ref(chunk).length for chunk in chunks})
        self._fetcher.ensure(wants, window, Priority.AHEAD)
        with self._changed:
            self._await(window, 0)
            if window.error:
                raise window.error
            return b"" if self._stopped or window.kept is None else b"".join(
                window.kept[file.ref(chunk).id] for chunk in chunks)


class _Window:
    """What is under way for one file or set: a Waiter of the fetcher. The first failure ends it.

    enough: who waits is told when no more than so many bytes are under way, and not of each chunk.
    kept: for the bytes of what arrives, where they are wanted.
    """

    def __init__(self, changed: threading.Condition, kept: dict[ChunkId, bytes] | None = None) -> None:
        self._changed = changed
        self.waiting: dict[ChunkId, int] = {}  # decoded bytes; guarded by _changed, as the rest
        self.under_way = self.enough = 0
        self.error: ModelfsError | None = None
        self.kept = kept

    def expect(self, sizes: dict[ChunkId, int]) -> None:
        self.waiting.update(sizes)
        self.under_way = sum(self.waiting.values())

    def arrived(self, id: ChunkId, decoded: memoryview) -> None:
        with self._changed:
            if self.kept is not None:
                self.kept[id] = bytes(decoded)
            self._leave(id)

    def failed(self, id: ChunkId, error: ModelfsError) -> None:
        with self._changed:
            self.error = self.error or error
            self._leave(id)

    def _leave(self, id: ChunkId) -> None:
        self.under_way -= self.waiting.pop(id, 0)
        if self.under_way <= self.enough or self.error:
            self._changed.notify_all()


def _batches(file: ModelFile, start: int) -> Iterator[tuple[list[Want], int]]:
    """What is not in the cache, from chunk `start` on and what is before it last: ranges within packs, and how many
    decoded bytes each is. Asked for one at a time, so that what readers fetched meanwhile is left out."""
    batch: list[Want] = []
    size, pack = 0, None
    for chunk in [*range(start, file.entry.row_count), *range(start)]:
        if file.cache.presence(chunk) & 1:
            continue
        length = file.ref(chunk).length
        place = file.version.place(file.entry.first_row + chunk)
        if batch and (size + length > _BATCH or pack != (place and place.pack)):
            yield batch, size
            batch, size = [], 0
        pack = place and place.pack
        batch.append(Want(file, chunk))
        size += length
    if batch:
        yield batch, size


def natural(path: str) -> list[tuple[int, str]]:
    """Sorts numbers in names as numbers."""
    return [(int(part), "") if part.isdecimal() and part.isascii() else (-1, part)
            for part in re.split(r"([0-9]+)", path)]

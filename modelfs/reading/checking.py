"""Chunks that lie in the cache become checked: one at a read's first touch, or a whole file's in the background.

Rule: what does not hash to its id is discarded, counted and logged, whoever found it.
"""

from __future__ import annotations

import threading
from collections import OrderedDict

from modelfs.cache.system import lower_priority, page_buffer
from modelfs.errors import CorruptChunk
from modelfs.logs import log_event, logger_for
from modelfs.metrics import Metrics
from modelfs.reading.versions import FileCache, ModelFile
from modelfs.repository.chunk import ChunkRef, check_chunk

_LOG = logger_for(__name__)


def load_checked(cache: FileCache, row: int, ref: ChunkRef, view: memoryview, metrics: Metrics, path: str) -> bool:
    """The chunk from the cache into view (ref.length bytes), checked; False where it is not there, or wrong.

    path: of the model's file, for the log.
    """
    count = cache.load(row, view)
    if not count:
        return False
    try:
        check_chunk(ref, view)
    except CorruptChunk as error:
        cache.discard(row, count)
        metrics.add("hash_failures")
        log_event(_LOG, "warning", "cache.corrupt", file=path, chunk=ref.id.hex(), why=str(error))
        return False
    cache.mark_checked(row, count)
    metrics.add("chunks_verified")
    return True


class Checker:
    """A thread that checks what is present of the files it is given, and was not checked yet, at the speed of hashing.

    Files are done one after the other in the order in which they came: a loader opens shards in the order in which it
    reads them, and each is ready for passthrough as soon as can be, where turns would make all of them ready last.
    Readers never wait for it: it holds no lock, and its thread has a low priority.
    """

    def __init__(self, metrics: Metrics) -> None:
        self._metrics = metrics
        self._changed = threading.Condition()
        self._waiting: OrderedDict[FileCache, ModelFile] = OrderedDict()  # guarded by _changed
        self._closed = False  # guarded by _changed
        self._thread = threading.Thread(target=self._run, name="check", daemon=True)
        self._thread.start()

    def check(self, file: ModelFile) -> None:
        """From any thread; returns at once. A file that waits already waits once."""
        with self._changed:
            if not self._closed:
                self._waiting.setdefault(file.cache, file)
                self._changed.notify()

    def close(self) -> None:
        """Ends after the chunk that is being checked."""
        with self._changed:
            self._closed = True
            self._changed.notify()
        self._thread.join()

    def _run(self) -> None:
        lower_priority()
        buffer = page_buffer(1)
        while (file := self._next()) is not None:
            longest = int(file.version.manifest.chunk_lengths[_rows_of(file)].max(initial=0))
            if len(buffer) < longest:
                buffer = page_buffer(longest)
            try:
                self._check(file, memoryview(buffer))
            except Exception as error:  # a fault in the cache's code leaves a file unchecked, and not all later ones
                log_event(_LOG, "error", "cache.broken", error=error)

    def _next(self) -> ModelFile | None:
        with self._changed:
            while not self._waiting and not self._closed:
                self._changed.wait()
            return None if self._closed else self._waiting.popitem(last=False)[1]

    def _check(self, file: ModelFile, buffer: memoryview) -> None:
        for row in file.cache.unchecked().tolist():
            if self._closed:
                return
            if not file.cache.checked(row):  # by a reader meanwhile
                ref = file.ref(row)
                load_checked(file.cache, row, ref, buffer[:ref.length], self._metrics, file.entry.path)


def _rows_of(file: ModelFile) -> slice:
    return slice(file.entry.first_row, file.entry.first_row + file.entry.row_count)

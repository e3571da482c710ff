"""Bytes of one file of a version, for those who want its header and no machinery.

Rule: the chunks that are asked for and no others; whoever brings them has checked them.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable

import numpy as np

from modelfs.repository.manifest import FileEntry, Manifest

_HELD_CHUNKS = 4
"""Decoded chunks kept while one file is described: a header is read forwards, a zip's records near each other."""


class FileReader:
    """chunk: takes a row of the manifest. `read` is a formats.ReadAt."""

    def __init__(self, manifest: Manifest, entry: FileEntry, chunk: Callable[[int], memoryview]) -> None:
        self._entry, self._chunk = entry, chunk
        span = manifest.offsets[entry.first_row:entry.first_row + entry.row_count + 1]
        self._offsets = (span - span[0]).astype(np.int64)
        self._held: OrderedDict[int, memoryview] = OrderedDict()

    def rows(self, offset: int, length: int) -> slice:
        """The manifest's rows that the bytes touch; none for no bytes."""
        if not length:
            return slice(self._entry.first_row, self._entry.first_row)
        first = int(np.searchsorted(self._offsets, offset, "right")) - 1
        stop = int(np.searchsorted(self._offsets, offset + length, "left"))
        return slice(self._entry.first_row + first, self._entry.first_row + stop)

    def row_of(self, offset: int, length: int) -> int | None:
        """The manifest's row that is exactly these bytes, if there is one."""
        at = int(np.searchsorted(self._offsets, offset))
        if at + 1 < len(self._offsets) and self._offsets[at] == offset and self._offsets[at + 1] == offset + length:
            return self._entry.first_row + at
        return None

    def read(self, offset: int, length: int) -> bytes:
        end = min(offset + length, self._entry.size)
        if offset < 0 or end <= offset:
            return b""
        rows, parts = self.rows(offset, end - offset), []
        for row in range(rows.start, rows.stop):
            begin = int(self._offsets[row - self._entry.first_row])
            parts.append(bytes(self._row(row)[max(0, offset - begin):end - begin]))
        return b"".join(parts)

    def _row(self, row: int) -> memoryview:
        if row not in self._held:
            self._held[row] = self._chunk(row)
            while len(self._held) > _HELD_CHUNKS:
                self._held.popitem(last=False)
        return self._held[row]

"""Finds sequential streams in the reads of a file, and says what to fetch ahead of them.

Rule: streams are told by offset with a tolerance, several a file, never by handle or strict equality: the
kernel's reads of one stream arrive out of order, and processes share descriptors (diffusers#10280).
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from dataclasses import dataclass

from modelfs.units import KiB, MiB

_SEQUENTIAL_RUN = MiB + 256 * KiB
"""A stream is sequential once it ran further than the largest read-ahead of one page fault (read_ahead_kb
1024) and most of that run was read: so random faults in a map fetch nothing ahead, however near they fall."""
_FIRST_WINDOW = 8 * MiB
"""A tensor of 8 MiB through reads of 1 MiB is two round trips. Later the window is as long as the stream has run, so
that at most about as much is fetched in vain as was read."""
_TOLERANCE = 2 * MiB
_STREAMS = 8


@dataclass(slots=True)
class _Stream:
    start: int
    position: int
    read: int
    ahead: int = 0


@dataclass(frozen=True, slots=True)
class Ahead:
    """Fetch these bytes, which may be none. run: how many the stream has covered."""

    offset: int
    length: int
    run: int


class Readahead:
    """State of all files; `key` tells them apart."""

    def __init__(self, largest_window: int) -> None:
        self.largest_window = largest_window
        self._lock = threading.Lock()
        self._streams: OrderedDict[object, list[_Stream]] = OrderedDict()  # guarded by _lock

    def note(self, key: object, offset: int, size: int, file_size: int) -> Ahead | None:
        """Take note of a read; what a stream that it belongs to needs now, or None. largest_window 0: no bytes."""
        end = offset + size
        if file_size <= _SEQUENTIAL_RUN:
            return None
        with self._lock:
            streams = self._streams.setdefault(key, [])
            self._streams.move_to_end(key)
            if len(self._streams) > 1024:
                self._streams.popitem(last=False)
            stream = next((s for s in streams if -_TOLERANCE <= offset - s.position <= _TOLERANCE), None)
            if stream is None:
                streams.append(_Stream(offset, end, size))
                del streams[:-_STREAMS]
                return None
            stream.position = max(stream.position, end)
            stream.read += size
            run = stream.position - stream.start
            if run < _SEQUENTIAL_RUN or 2 * stream.read < run:
                return None
            window = min(max(run, _FIRST_WINDOW), self.largest_window)
            begin = max(stream.ahead, stream.position)
            if begin - stream.position > window // 2 or begin >= file_size:
                return None
            stream.ahead = max(begin, min(stream.position + window, file_size))
            return Ahead(begin, stream.ahead - begin, run)

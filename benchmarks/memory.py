"""A virtual machine's memory, kept for the length of a benchmark.

Guests with free page reporting (virtio-balloon; Documentation/mm/free_page_reporting.rst) hand what is free back to
their host within seconds, and get it again at faults that the guest's time pays for: on such a machine fresh page cache
was written at 0.7 GB/s after ten idle seconds, at 3.3 with reporting held off, and at 1.2 to 3.2 right after somebody's
files were deleted. So a figure said more of who was measured before than of who was measured.

Rule: what was found is put back, and a run says what was done.
"""

from __future__ import annotations

import mmap
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np

_ORDER = Path("/sys/module/page_reporting/parameters/page_reporting_order")
_NONE = "11"  # beyond the largest block that the kernel keeps free (MAX_PAGE_ORDER, 10): nothing is large enough
_TIMES = 7  # of a checkpoint: what is served, three times; the original and a cache on disk, and a mount's pages
_PIECE = 1 << 30
_MOST = 0.7


@contextmanager
def kept_memory(size: int) -> Iterator[str]:
    """Free page reporting held off, and what a checkpoint of so many bytes needs (or most of what is free) touched
    once. Yields what to say of it behind the machine; nothing where the machine has no such thing, or does not let us.
    Within `interruptible`: SIGTERM alone would leave it so."""
    try:
        before = _ORDER.read_text().strip()
        _ORDER.write_text(_NONE)
    except OSError:
        yield ""
        return
    try:
        touch(min(_TIMES * size, int(_available() * _MOST)))
        yield ", free page reporting held off"
    finally:
        _ORDER.write_text(before)


def touch(size: int) -> None:
    """Have so many bytes of memory once."""
    pieces = [mmap.mmap(-1, min(_PIECE, size - start)) for start in range(0, size, _PIECE)]
    for piece in pieces:
        np.frombuffer(piece, np.uint8)[::mmap.PAGESIZE] = 1


def _available() -> int:
    for line in Path("/proc/meminfo").read_text().splitlines():
        if line.startswith("MemAvailable:"):
            return int(line.split()[1]) * 1024
    return 0

"""What of a mount outlives the worker that serves it: three files in memory, held open by whoever keeps the mount.

Rule: whatever the kernel was told and cannot be asked for again is written here first.
"""

from __future__ import annotations

import mmap
import os
import struct
import time
from dataclasses import dataclass

from modelfs.engines.native.connection import Agreed
from modelfs.engines.native.passthrough import TABLE_BYTES

_AGREED = struct.Struct("=QQd")
"""INIT's flags, 0 until it was answered; how many workers there were; when it was mounted, on the monotonic clock."""
_MAX_ROOT = 4096
_COUNTERS_AT, _COUNTERS_BYTES = 8192, 4096


@dataclass(frozen=True, slots=True)
class State:
    """Descriptors. agreement: INIT's answer, the epoch, the root, counters; nodes: the log of NodeIds; opens: the
    table of OpenNodes."""

    agreement: int
    nodes: int
    opens: int

    @classmethod
    def create(cls) -> State:
        files = [os.memfd_create(f"modelfs-{name}", os.MFD_CLOEXEC) for name in ("agreement", "nodes", "opens")]
        os.ftruncate(files[0], _COUNTERS_AT + _COUNTERS_BYTES)
        os.pwrite(files[0], _AGREED.pack(0, 0, time.monotonic()), 0)
        os.ftruncate(files[2], TABLE_BYTES)
        return cls(*files)

    @property
    def descriptors(self) -> tuple[int, int, int]:
        return self.agreement, self.nodes, self.opens

    @property
    def epoch(self) -> int:
        """Which worker this is."""
        return self._read()[1]

    @property
    def mounted_s(self) -> float:
        """When, by time.monotonic."""
        return self._read()[2]

    def begin_epoch(self) -> None:
        """A worker begins: its handles are told from those before."""
        flags, epoch, mounted_s = self._read()
        os.pwrite(self.agreement, _AGREED.pack(flags, epoch + 1, mounted_s), 0)

    def agreed(self) -> Agreed | None:
        """What a worker before us agreed on with the kernel."""
        flags = self._read()[0]
        return Agreed(flags) if flags else None

    def keep(self, agreed: Agreed) -> None:
        _, epoch, mounted_s = self._read()
        os.pwrite(self.agreement, _AGREED.pack(agreed.flags, epoch, mounted_s), 0)

    def keep_root(self, root: bytes) -> None:
        """What stands at the mount's root, where that is settled when it is mounted."""
        os.pwrite(self.agreement, root, _AGREED.size)

    def root(self) -> bytes:
        """Empty where none was kept."""
        return os.pread(self.agreement, _MAX_ROOT, _AGREED.size).rstrip(b"\0")

    def counters(self) -> memoryview:
        """Memory for counts, zeros at first, which the next worker counts on in."""
        return memoryview(mmap.mmap(self.agreement, _COUNTERS_AT + _COUNTERS_BYTES))[_COUNTERS_AT:]

    def _read(self) -> tuple[int, int, float]:
        flags, epoch, mounted_s = _AGREED.unpack(os.pread(self.agreement, _AGREED.size, 0))
        return flags, epoch, mounted_s

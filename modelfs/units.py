"""Sizes, times and deadlines as people write them and as programs count them: bytes and seconds."""

from __future__ import annotations

import math
import re
import time
from dataclasses import dataclass
from datetime import UTC, datetime

from modelfs.errors import BadInput, DeadlinePassed

KiB, MiB, GiB, TiB = 1 << 10, 1 << 20, 1 << 30, 1 << 40
_LEAST_MOVED = 16 * KiB
_SIZE = re.compile(r"([0-9]+(?:\.[0-9]+)?)\s*([kmgtp]i?b|b)?", re.I)
_FACTORS = {"": 1, "b": 1} | {f"{u}{i}b": (1024 if i else 1000) ** k
                              for k, u in enumerate("kmgtp", 1) for i in ("", "i")}
_TIME = re.compile(r"([0-9]+(?:\.[0-9]+)?)\s*(ms|s|m|h|d)")
_SECONDS = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}


def parse_size(text: str | int) -> int:
    """Bytes of "512KiB", "4 MiB", "1GB", "4096" or 4096. Raises BadInput."""
    if isinstance(text, int) and not isinstance(text, bool) and text >= 0:
        return text
    found = _SIZE.fullmatch(text.strip()) if isinstance(text, str) else None
    if not found:
        raise BadInput(f"not a size {text!r}", why="write it like 512KiB, 4 MiB, 10 GiB, 1GB or plain bytes")
    return int(float(found[1]) * _FACTORS[(found[2] or "").lower()]) if found[2] else int(float(found[1]))


@dataclass(frozen=True, slots=True)
class DiskShare:
    """A size, or a part of the disk that holds a directory: exactly one of the two is set."""

    size_bytes: int | None = None
    fraction: float | None = None

    @classmethod
    def parse(cls, text: str | int) -> DiskShare:
        if isinstance(text, str) and (found := re.fullmatch(r"([0-9]+(?:\.[0-9]+)?)\s*%", text.strip())):
            if float(found[1]) > 100:
                raise BadInput(f"not a part of a disk {text!r}", why="at most 100%")
            return cls(fraction=float(found[1]) / 100)
        return cls(size_bytes=parse_size(text))

    def of(self, disk_bytes: int) -> int:
        return self.size_bytes if self.size_bytes is not None else int(disk_bytes * (self.fraction or 0.0))

    def __str__(self) -> str:
        return f"{(self.fraction or 0) * 100:g}%" if self.size_bytes is None else show_size(self.size_bytes)


def parse_time(text: str) -> float:
    """Seconds of "500ms", "30s", "5m", "2h" or "7d". Raises BadInput."""
    found = _TIME.fullmatch(text.strip()) if isinstance(text, str) else None
    if not found:
        raise BadInput(f"not a time {text!r}", why="write it like 500ms, 30s, 5m, 2h or 7d")
    return float(found[1]) * _SECONDS[found[2]]


def show_size(size_bytes: float) -> str:
    """For people: "1.4 GiB"; what parse_size reads again, rounded."""
    for unit in ("B", "KiB", "MiB", "GiB"):
        if abs(size_bytes) < 1024:
            return f"{size_bytes:.0f} B" if unit == "B" else f"{size_bytes:.4g} {unit}"
        size_bytes /= 1024
    return f"{size_bytes:.4g} TiB"


def show_time(seconds: float) -> str:
    """For people and for parse_time: "500ms", "30s", "2h"."""
    for unit in ("d", "h", "m"):
        if seconds >= _SECONDS[unit] and seconds % _SECONDS[unit] == 0:
            return f"{seconds / _SECONDS[unit]:g}{unit}"
    return f"{seconds:g}s" if seconds >= 1 or not seconds else f"{seconds * 1000:g}ms"


def rfc3339(seconds: float) -> str:
    """A time since the epoch as RFC 3339 in UTC, to the microsecond where it has one."""
    return datetime.fromtimestamp(seconds, UTC).isoformat().replace("+00:00", "Z")


def rfc3339_ns(nanoseconds: int) -> str:
    return rfc3339(nanoseconds // 1000 / 1e6)


def seconds_of(text: str) -> float:
    """The inverse of rfc3339. Raises BadInput."""
    try:
        return datetime.fromisoformat(text).timestamp()
    except (ValueError, TypeError):
        raise BadInput(f"not an RFC 3339 time {text!r}") from None


class Deadline:
    """A moment after which nobody waits any more; handed down through every call that may block."""

    __slots__ = ("_end",)

    def __init__(self, seconds: float) -> None:
        self._end = time.monotonic() + seconds

    @classmethod
    def never(cls) -> Deadline:
        return cls(math.inf)

    def remaining(self) -> float:
        """Seconds left, at least 0; inf where there is no end."""
        return max(0.0, self._end - time.monotonic())

    @property
    def passed(self) -> bool:
        return time.monotonic() >= self._end

    def check(self, what: str, where: str = "") -> None:
        """Raises DeadlinePassed once there is no time left."""
        if self.passed:
            raise DeadlinePassed(what, where=where, why="the deadline passed")

    def moved(self, size_bytes: int) -> None:
        """Told by stores of bytes of an object that were sent or received; only Patience cares."""

    def sooner(self, seconds: float) -> Deadline:
        """This deadline, or one in so many seconds, whichever comes first."""
        return Deadline(min(seconds, self.remaining()))

    def patient(self) -> Patience:
        return Patience(self.remaining())


class Patience(Deadline):
    """A deadline that bounds silence, for transfers whose end nobody waits for: it begins anew whenever 16 KiB more
    have moved, in either direction. A store that lets single bytes drip is silent; so objects smaller than that have
    the deadline as a whole. Several threads may share one."""

    __slots__ = ("_moved", "_seconds")

    def __init__(self, seconds: float) -> None:
        super().__init__(seconds)
        self._seconds = seconds
        self._moved = 0  # bytes since it began anew; two threads at once may lose some, which costs nobody anything

    def moved(self, size_bytes: int) -> None:
        self._moved += size_bytes
        if self._moved >= _LEAST_MOVED:
            self.renewed()

    def renewed(self) -> Patience:
        """Itself, begun anew."""
        self._moved, self._end = 0, time.monotonic() + self._seconds
        return self

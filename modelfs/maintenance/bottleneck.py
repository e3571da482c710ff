"""What limits a cold read and a warm one, in a sentence, and the setting that would help if one does.

Rule: nothing is said that does not follow from the figures; seconds are those for one GB (10^9 bytes) of the file.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from modelfs.maintenance.speed import Stage
from modelfs.settings import EngineChoice, Verify
from modelfs.units import show_size

_MOST = 0.5  # of a cold read's time: a stage that alone takes more of it is what limits it
_ALL = 0.8  # of a warm read's: the rest is within what two reads differ by
_MISSED = 0.05  # of a read's requests; a few chunks may still be on their way into the cache when a warm read begins
_FULL, _FREE = 0.5, 0.7  # of what so many connections bring if each brought what one alone does


@dataclass(frozen=True, slots=True)
class Conditions:
    """What the figures were measured under.

    connections: that had work. network: whether the store is behind HTTP. stored_ratio: stored ÷ decoded bytes.
    mounted_by: the engine's name, or None without a mount. passthrough: whether the warm read was by passthrough.
    missed: the part of the warm read's requests that waited for the store.
    """

    connections: int
    cores: int
    network: bool
    stored_ratio: float
    engine: EngineChoice
    verify: Verify
    mounted_by: str | None = None
    passthrough: bool = False
    missed: float = 0.0


@dataclass(frozen=True, slots=True)
class Limits:
    """None: that was not measured."""

    cold: str | None
    warm: str | None


def limits_of(stages: Mapping[str, Stage], at: Conditions) -> Limits:
    """stages: by name, the mount's two only where at.mounted_by is given."""
    if at.mounted_by is None:
        return Limits(_cold(stages, at, None), None)
    return Limits(_cold(stages, at, stages["mount_cold"].s_per_gb), _warm(stages, at))


def limits_of_mount(first: Stage, second: Stage, fetched_bytes: int, first_missed: float, at: Conditions) -> Limits:
    """Of a mount that was there before: only its own counters say where the bytes came from.

    fetched_bytes, first_missed: during the first read.
    """
    cold = None
    if first_missed > _MISSED:
        cold = (f"The first read takes {first.s_per_gb:.2f} s a GB; {first_missed:.0%} of its requests waited for the "
                f"store, and {show_size(fetched_bytes)} came from there.")
    warm = f"The second read takes {second.s_per_gb:.2f} s a GB"
    if at.missed > _MISSED:
        return Limits(cold, warm + _not_kept(at))
    how = "by passthrough: the kernel reads the cache's file itself, and that file's disk is what is left" \
        if at.passthrough else f"through modelfs ({at.mounted_by}), request by request"
    return Limits(cold, f"{warm}, {how}." + ("" if at.passthrough else _engine_hint(at)))


def _cold(stages: Mapping[str, Stage], at: Conditions, cold: float | None) -> str:
    decoders = max(1, min(at.cores, at.connections))
    parts = {"the store": stages["store"].s_per_gb * at.stored_ratio,
             f"decoding and checking on {decoders} core{'s' * (decoders != 1)}":
                 (stages["decode"].s_per_gb + stages["check"].s_per_gb) / decoders}
    written = stages["disk_write"].s_per_gb
    if cold is not None and written <= cold:  # else memory took what the disk could not: it held up nobody
        parts["the cache disk's writing"] = written
    first, second, *_ = sorted(parts, key=lambda name: parts[name], reverse=True)
    longest = f"{first} alone takes {parts[first]:.2f} s (next: {second}, {parts[second]:.2f} s)"
    if cold is None:
        return f"A cold read takes at least {parts[first]:.2f} s a GB: {longest}.{_cold_hint(first, stages, at)}"
    text = f"A cold read takes {cold:.2f} s a GB; {longest}"
    if parts[first] >= _MOST * cold:
        return f"{text}, and that limits it.{_cold_hint(first, stages, at)}"
    return (f"{text}, less than half of it: most is spent in no stage but between them, in requests of the kernel, "
            f"copies and waits.{_engine_hint(at)}")


def _cold_hint(first: str, stages: Mapping[str, Stage], at: Conditions) -> str:
    if first == "the cache disk's writing":
        return " cache.directory on a faster disk would help."
    if first != "the store":
        return " No setting makes it faster, more cores do." if at.cores <= at.connections else \
            " More fetch.connections would use more cores."
    if not at.network or at.connections < 2:
        return ""
    gain = stages["store"].bytes_per_s / stages["store_one"].bytes_per_s
    said = f" {at.connections} connections bring {gain:.1f} times what one does"
    if gain >= _FREE * at.connections:
        return f"{said}, so the link is not full: more fetch.connections than {at.connections} would help."
    if gain <= _FULL * at.connections:
        return f"{said}: the link or the server is full, and more fetch.connections would not help."
    return f"{said}."


def _warm(stages: Mapping[str, Stage], at: Conditions) -> str:
    warm, disk = stages["mount_warm"].s_per_gb, stages["disk_read"].s_per_gb
    text = f"A warm read takes {warm:.2f} s a GB"
    if at.missed > _MISSED:
        return text + _not_kept(at)
    text += f"; the cache disk alone takes {disk:.2f} s"
    if disk * _ALL > warm:
        return f"{text}, longer than that: its speed varies by more than the mount adds."
    if disk >= _ALL * warm:
        return f"{text}, and that limits it. cache.directory on a faster disk would help."
    if at.passthrough:
        return f"{text}, the kernel the other {warm - disk:.2f} s on the way to it (passthrough)."
    return f"{text}; the other {warm - disk:.2f} s, the kernel's requests to modelfs, limit it.{_engine_hint(at)}"


def _not_kept(at: Conditions) -> str:
    return (f", and {at.missed:.0%} of its requests waited for the store again: the cache does not keep the file. "
            "A larger cache.size, or a smaller cache.min_free, would help.")


def _engine_hint(at: Conditions) -> str:
    if at.verify == "always":
        return " cache.verify = \"always\" hashes at every read; \"mount\" would help."
    if at.engine == at.mounted_by == "fusepy":
        return " mount.engine is \"fusepy\"; \"auto\" takes the native engine where it can."
    return ""

"""Which faults befall the fleet, when, and for how long: drawn from a seed.

Rule: the same seed, time and fleet make the same plan. Each kind comes once before any comes again, and each target of
a kind likewise. However short the time is, each kind comes once.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

ALL = "all servers"
# kind → seconds at least, at most
SERVER_KINDS = {
    "cut": (2, 8),          # its link is down
    "narrow": (3, 8),       # 16 Mbit/s, behind a queue of 300 ms
    "lossy": (3, 8),        # one packet in fifty is lost, either way
    "kill": (1, 5),         # SIGKILL, and started again
    "freeze": (2, 8),       # SIGSTOP, SIGCONT
}
MIRROR_KINDS = {
    "partition": (4, 12),   # it and the primary do not reach each other; all others reach it
    "replication": (1, 4),  # SIGKILL of what keeps it like the primary
    "flip": (2, 5),         # bits of its packs are flipped on its disk, then mended by verify --repair
}
DISK_KINDS = {"full": (4, 10)}     # no room on a mirror's disk
SITE_KINDS = {"empty": (1, 3)}     # the site is killed, and comes back with an empty cache
DAEMON_KINDS = {"worker": (0, 0)}  # SIGKILL of a mount's worker; its keeper starts another
MOUNT_KINDS = {"away": (2, 8)}     # the mount's own link is down
BLACKOUT = "blackout"              # all servers cut off at once


@dataclass(frozen=True, slots=True)
class Fault:
    at_s: float
    kind: str
    target: str
    seconds: float


def plan(seed: int, seconds: float, *, servers: Sequence[str], mirrors: Sequence[str], small: str, site: str,
         mounts: Sequence[str], daemons: Sequence[str], every_s: float, pace: float = 1.0,
         blackouts: Sequence[tuple[float, float]] = ()) -> list[Fault]:
    """every_s: from one to the next, on average. pace: what the kinds' seconds are multiplied by. blackouts: (when,
    for how long), at which nothing else begins."""
    rng = random.Random(seed)
    classes = ((SERVER_KINDS, servers), (MIRROR_KINDS, mirrors), (DISK_KINDS, [small]), (SITE_KINDS, [site]),
               (DAEMON_KINDS, daemons), (MOUNT_KINDS, mounts))
    lengths = {kind: length for kinds, _ in classes for kind, length in kinds.items()}
    targets = {kind: _decks(rng, list(those)) for kinds, those in classes for kind in kinds}
    drawn = _decks(rng, list(lengths))
    found = [Fault(at_s, BLACKOUT, ALL, length_s) for at_s, length_s in blackouts]
    at_s = every_s
    while at_s < seconds or len(found) < len(blackouts) + len(lengths):
        for begin_s, length_s in blackouts:
            if begin_s - every_s < at_s < begin_s + length_s:
                at_s = begin_s + length_s + every_s
        kind = next(drawn)
        lasts_s = pace * rng.uniform(*lengths[kind])
        found.append(Fault(round(at_s, 2), kind, next(targets[kind]), round(lasts_s, 2)))
        at_s += every_s * rng.uniform(0.4, 1.6)
    return sorted(found, key=lambda fault: fault.at_s)


def _decks(rng: random.Random, cards: list[str]) -> Iterator[str]:
    while True:
        yield from rng.sample(cards, len(cards))

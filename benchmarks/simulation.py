"""A fleet on one machine, through a storm of faults: does every read get the right bytes, and how long does it wait?

A primary, two mirrors, a site's cache and eight mounts, each a real modelfs on a host (a network namespace) of its own;
fine-tunes are pushed and tags moved all the time, while a seeded script cuts hosts off, slows, kills, freezes and parts
them, flips bits on a mirror's disk and fills it. Every byte that any reader gets is compared with the original.

Rule: the exit code is 0 only if no byte was wrong, no read failed while a server was well that had the version, nothing
ended by itself, and the fleet was whole again at the end.

    python -m benchmarks.simulation [--seconds 600] [--seed 1] [--short] [--json FILE] [--docs DIRECTORY] [--keep DIR]

Needs root: it makes network namespaces, and mounts.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import sys
from collections import Counter
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path

from benchmarks.fleet.figures import Figures, figures
from benchmarks.fleet.fleet import PRIMARY, SITE, Fleet, Shape, fleet
from benchmarks.fleet.holdings import Holdings
from benchmarks.fleet.journal import Journal
from benchmarks.fleet.plan import Fault, plan
from benchmarks.fleet.publisher import Publisher, first_version
from benchmarks.fleet.readers import Readers, by_mount, readers
from benchmarks.fleet.report import show, write_page
from benchmarks.fleet.storm import Storm
from benchmarks.processes import Failed, interruptible, wait_until

_SETTLE_S = 90.0


@dataclass(frozen=True, slots=True)
class Settings:
    """every_s: from fault to fault. pace: how long they are, times their usual length. pause_ms: between a reader's
    reads. patience_s: how long a fault waits that may not be yet. blackouts: (when, how long), in seconds."""

    seconds: float = 600
    seed: int = 1
    shape: Shape = field(default_factory=Shape)
    every_s: float = 3.5
    pace: float = 1.0
    push_every_s: float = 20
    pause_ms: int = 150
    patience_s: float = 8
    blackouts: tuple[tuple[float, float], ...] = ()


def long_settings(seconds: float, seed: int) -> Settings:
    """With a blackout that is shorter than the mounts' deadline, and one that is longer."""
    return Settings(seconds, seed, blackouts=((0.3 * seconds, 10), (0.7 * seconds, 25)))


def short_settings(seed: int) -> Settings:
    """Each kind of fault once, on two mounts."""
    return Settings(8, seed, Shape(mounts=2), every_s=0.7, pace=0.35, push_every_s=4, pause_ms=100, patience_s=60,
                    blackouts=((3, 2),))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=600, help="600")
    parser.add_argument("--seed", type=int, default=1, help="1")
    parser.add_argument("--short", action="store_true", help="each kind of fault once")
    parser.add_argument("--json", type=Path, metavar="FILE", help="the figures")
    parser.add_argument("--docs", type=Path, metavar="DIRECTORY", help="write the figures into its simulation.md")
    parser.add_argument("--keep", type=Path, metavar="DIR", help="keep the logs there")
    args = parser.parse_args()
    if os.geteuid() != 0:
        sys.exit("this simulation makes network namespaces, and mounts: run it as root")
    settings = short_settings(args.seed) if args.short else long_settings(args.seconds, args.seed)
    try:
        with interruptible():
            found = simulate(settings, args.keep)
    except Failed as failed:
        sys.exit(f"simulation: {failed}")
    except KeyboardInterrupt:
        sys.exit(130)
    print(show(found))
    if args.json:
        args.json.write_text(json.dumps(found.document(), indent=1) + "\n")
    if args.docs:
        write_page(found, args.docs, " ".join(["python -m benchmarks.simulation", *sys.argv[1:]]))
    sys.exit(0 if found.good else 1)


def simulate(settings: Settings, keep: Path | None = None, verbose: bool = True) -> Figures:
    """keep: a directory for the logs of all parts, and of what happened."""
    with ExitStack() as stack:
        made = stack.enter_context(fleet(settings.shape, settings.seed, first_version))
        journal = Journal(made.scratch / "events.jsonl", verbose)
        if keep is not None:
            stack.callback(_keep, made.scratch, keep)
        stack.callback(journal.close)
        holdings = Holdings(made, journal)
        stack.callback(holdings.end)
        reading = stack.enter_context(readers(made, journal, settings.seed, settings.pause_ms))
        publisher = Publisher(made, journal, settings.seed, settings.push_every_s)
        stack.callback(publisher.end)
        sent = {name: made.network.sent_bytes(server.host) for name, server in made.servers.items()}
        Storm(made, journal, holdings, settings.seed, settings.patience_s).run(_plan(settings, made), settings.seconds)
        publisher.end()
        _settle(made, journal, holdings, reading, publisher.newest)
        sent = {name: made.network.sent_bytes(server.host) - sent[name] for name, server in made.servers.items()}
        reading.finish()
        counters = Counter[str]()
        for mount in made.mounts.values():
            counters.update(mount.status()["counters"])
        holdings.end()
        return figures(journal.events, reading.reads(), sent, dict(counters))


def _plan(settings: Settings, made: Fleet) -> list[Fault]:
    mirrors = [server.name for server in made.mirrors]
    return plan(settings.seed, settings.seconds, servers=list(made.servers), mirrors=mirrors, small=mirrors[-1],
                site=SITE, mounts=list(made.mounts), every_s=settings.every_s, pace=settings.pace,
                daemons=[mount.name for mount in made.mounts.values() if mount.foreground is None],
                blackouts=settings.blackouts)


def _settle(made: Fleet, journal: Journal, holdings: Holdings, reading: Readers, newest: int) -> None:
    """Without faults all becomes whole: mirrors equal, every mount at the newest version. What does not is told."""
    since = journal.note("settling")
    try:
        wait_until(lambda: all(holdings.has_newest(server.name) for server in made.wholes), "the mirrors", _SETTLE_S)
        made.verified()
        wait_until(lambda: all(any(read.began > since and read.error is None and read.version == f"v{newest}"
                                   for read in reads) for reads in by_mount(reading.reads()).values()),
                   "the newest version at every mount", _SETTLE_S)
    except Failed as failed:
        journal.note("unexpected", what="the fleet is not whole again", code=None, said=str(failed))
    journal.note("settled", primary=PRIMARY)


def _keep(scratch: Path, keep: Path) -> None:
    keep.mkdir(parents=True, exist_ok=True)
    for path in [*scratch.glob("*/*.log"), *scratch.glob("reads/*"), *scratch.glob("*.jsonl"),
                 *scratch.glob("*/state/modelfs/logs/*")]:
        shutil.copy(path, keep / "-".join(path.relative_to(scratch).parts))


if __name__ == "__main__":
    main()

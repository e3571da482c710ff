"""A simulation's figures as people read them, on a terminal and in docs/simulation.md.

Rule: every number comes from the figures; the page keeps what people wrote around the marked part.
"""

from __future__ import annotations

import os
import platform
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path

from benchmarks.fleet.figures import Figures, Spread

BEGIN, END = "<!-- figures: written by benchmarks/fleet/report.py -->", "<!-- end of figures -->"
_COUNTERS = ("failovers", "fetch_retries", "hash_failures", "cache_hits", "cache_misses", "evictions", "bytes_fetched")


def show(found: Figures) -> str:
    """Markdown that can be read as it is."""
    whole = [["", ""], ["reads", f"{found.reads:,}"], ["bytes compared", f"{found.bytes_compared:,}"],
             ["**bytes wrong**", f"**{found.wrong}**"],
             ["**reads that failed while a server was well that had the version**", f"**{found.errors}**"],
             ["reads that failed while none was", f"{found.dark_errors}"],
             ["longest stall of a read while one was", f"{found.longest_stall_s:.2f} s"],
             ["longest stall of a read while none was", f"{found.dark_stall_s:.2f} s"],
             ["a read: median, p99", f"{found.reading.median:.3f} s, {found.reading.p99:.2f} s"],
             ["after a blackout, to the next read: median, longest",
              f"{found.after_blackouts.median:.2f} s, {found.after_blackouts.longest:.2f} s"],
             ["versions pushed; pushes and tags that had to be tried again",
              f"{found.versions}; {found.pushes_tried_again}"],
             ["faults; left out, since another was at the same host, or the last server would have gone",
              f"{sum(one.faults for one in found.fail_over.values())}; {found.left_out}"],
             ["unexpected ends and failures of parts", f"{len(found.unexpected)}"]]
    overs = [["fault", "times", "at mounts", "next read: median", "p99", "longest", "all reads it met: median",
              "p99", "longest"]]
    overs += [[kind, f"{over.faults}", f"{over.next_read.count}", *_cells(over.next_read), *_cells(over.all_met)]
              for kind, over in found.fail_over.items()]
    total = sum(found.sent_bytes.values()) or 1
    sent = [["server", "sent", "share"], *([name, f"{size / 1e6:,.0f} MB", f"{size / total:.0%}"]
                                          for name, size in found.sent_bytes.items())]
    counted = [["counter, of all mounts", ""], *([name, f"{found.counters.get(name, 0):,}"] for name in _COUNTERS)]
    told = [f"- {each}" for each in (*found.unexpected, *found.details)]
    return "\n\n".join([*map(_markdown, (whole, overs, sent, counted)), *(["\n".join(told)] if told else [])])


def write_page(found: Figures, docs: Path, command: str) -> None:
    page = docs / "simulation.md"
    before, _, rest = page.read_text().partition(BEGIN)
    about = (f"{datetime.now(UTC):%Y-%m-%d %H:%M} UTC; {os.cpu_count()} cores, Linux "
             f"{platform.release().partition('-')[0]}, Python {platform.python_version()}; {found.seconds:.0f} s, "
             f"{found.mounts} mounts; load average {os.getloadavg()[1]:.0f}. Command: `{command}`.")
    page.write_text(f"{before}{BEGIN}\n\n{about}\n\n{show(found)}\n\n{END}{rest.partition(END)[2]}")


def _cells(spread: Spread) -> list[str]:
    return [f"{each:.2f} s" if spread.count else "–" for each in (spread.median, spread.p99, spread.longest)]


def _markdown(table: Sequence[Sequence[str]]) -> str:
    head, *rows = ("| " + " | ".join(row) + " |" for row in table)
    return "\n".join([head, "|" + "---|" * len(table[0]), *rows])

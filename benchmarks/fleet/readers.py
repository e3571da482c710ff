"""The programs that read at each mount, and what they saw.

Rule: one that the kernel killed in the middle of a read of a mapping is told as a read that failed, and another takes
its place.
"""

from __future__ import annotations

import signal
import subprocess
import sys
import threading
import time
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from benchmarks.fleet.fleet import DEADLINE_S, Fleet, Mount
from benchmarks.fleet.journal import Journal, read_events
from benchmarks.processes import end

KINDS = ("calls", "mapped")
_PATIENCE_S = DEADLINE_S + 10
_ROOT = Path(__file__).parents[2]


@dataclass(frozen=True, slots=True)
class Read:
    """began, ended: on the machine's monotonic clock. version: None where it could not be told. wrong: bytes, or 1
    where something else was not what it should be. error: its number, or a signal's name. stall_s: the longest that it
    waited at a stretch; of a whole file that is for a piece of it."""

    mount: str
    began: float
    ended: float
    what: str
    version: str | None
    bytes: int
    wrong: int
    error: int | str | None
    stall_s: float


@dataclass(slots=True)
class _Program:
    mount: Mount
    kind: str
    log: Path
    process: subprocess.Popen[bytes]
    lives: int = 1


@dataclass(slots=True)
class Readers:
    fleet: Fleet
    journal: Journal
    seed: int
    pause_ms: int
    directory: Path
    _programs: list[_Program] = field(default_factory=list)
    _ended: threading.Event = field(default_factory=threading.Event)

    def begin(self) -> None:
        self.directory.mkdir()
        for mount in self.fleet.mounts.values():
            for kind in KINDS:
                log = self.directory / f"{mount.name}-{kind}"
                self._programs.append(_Program(mount, kind, log, self._start(mount, kind, log, 0)))
        threading.Thread(target=self._look_after, name="readers", daemon=True).start()

    def finish(self) -> None:
        """Lets each end the read that it is in."""
        self._ended.set()
        for program in self._programs:
            assert program.process.stdin
            program.process.stdin.close()
        for program in self._programs:
            try:
                program.process.wait(_PATIENCE_S)
            except subprocess.TimeoutExpired:
                self.journal.note("unexpected", what=f"a reader at {program.mount.name} hangs", code=None, said="")
            end(program.process)

    def end(self) -> None:
        self._ended.set()
        for program in self._programs:
            end(program.process)

    def reads(self) -> list[Read]:
        return reads_of(self.directory)

    def _start(self, mount: Mount, kind: str, log: Path, life: int) -> subprocess.Popen[bytes]:
        number = 2 * list(self.fleet.mounts).index(mount.name) + KINDS.index(kind)
        return subprocess.Popen([sys.executable, "-m", "benchmarks.fleet.reader", mount.model, self.fleet.originals,
                                 log, kind, str(1000 * self.seed + 100 * life + number), str(self.pause_ms)],
                                cwd=_ROOT, env=self.fleet.environ, stdin=subprocess.PIPE, start_new_session=True)

    def _look_after(self) -> None:
        while not self._ended.wait(0.2):
            for program in self._programs:
                code = program.process.poll()
                if code is None or self._ended.is_set():
                    continue
                if code == -signal.SIGBUS and program.kind == "mapped":
                    self._note_death(program)
                else:
                    self.journal.note("unexpected", what=f"a reader at {program.mount.name} ended", code=code, said="")
                program.process = self._start(program.mount, program.kind, program.log, program.lives)
                program.lives += 1

    def _note_death(self, program: _Program) -> None:
        log = program.log.with_suffix(".0.jsonl")
        last = read_events(log)[-1]
        began = last["begins"]
        with log.open("a") as file:
            file.write(Journal.line(t=began, s=time.monotonic() - began, what="mmap", version=last["version"], bytes=0,
                                    wrong=0, error="SIGBUS"))


@contextmanager
def readers(fleet: Fleet, journal: Journal, seed: int, pause_ms: int) -> Iterator[Readers]:
    made = Readers(fleet, journal, seed, pause_ms, fleet.scratch / "reads")
    try:
        made.begin()
        yield made
    finally:
        made.end()


def reads_of(directory: Path) -> list[Read]:
    found = []
    for path in sorted(directory.glob("*.jsonl")):
        mount = path.name.rpartition("-")[0]
        for line in read_events(path):
            if "s" in line:
                found.append(Read(mount, line["t"], line["t"] + line["s"], line["what"], line["version"], line["bytes"],
                                  line["wrong"], line["error"], line["stall"] if "stall" in line else line["s"]))
    return sorted(found, key=lambda read: read.ended)


def by_mount(reads: Sequence[Read]) -> Mapping[str, list[Read]]:
    found = defaultdict[str, list[Read]](list)
    for read in reads:
        found[read.mount].append(read)
    return found

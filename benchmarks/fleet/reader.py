"""A program that reads a model through a mount, and compares every byte with the original.

Rule: a read that failed or was wrong is told, never swallowed, and what is read next is decided by the seed. It ends
when its standard input does, which is when whoever started it ends.

    python -m benchmarks.fleet.reader MODEL ORIGINALS LOG KIND SEED PAUSE_MS
        MODEL: the model's directory in the mount; ORIGINALS: has a directory for each version, as it was pushed
        KIND: calls (read, pread, open, readdir, readlink) or mapped (mmap: an error there kills it by SIGBUS)
"""

from __future__ import annotations

import json
import mmap
import os
import random
import sys
import threading
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TextIO

PIECE = 256 << 10
LONGEST = 300_000
HELD = 3  # files that stay open over many reads, and versions
TAGS = ("latest", "prod")


@dataclass(frozen=True, slots=True)
class Range:
    version: str
    name: str
    at: int
    size: int


class Reader:
    def __init__(self, model: Path, originals: Path, log: TextIO, seed: int) -> None:
        self.model, self.originals, self.log = model, originals, log
        self.rng = random.Random(seed)
        self._held: list[tuple[Range, int]] = []
        self._latest = 0
        self._longest = 0.0  # of the pieces of the file that is read now

    def note(self, **fields: Any) -> None:
        self.log.write(json.dumps(fields) + "\n")

    def any_range(self) -> Range:
        """Of any version that was pushed and is shown; often of the newest."""
        shown = {entry for entry in os.listdir(self.model) if entry not in TAGS}
        versions = sorted(shown & set(os.listdir(self.originals)), key=lambda name: int(name[1:]))
        version = versions[-1] if self.rng.random() < 0.4 else self.rng.choice(versions)
        name = self.rng.choice(sorted(os.listdir(self.originals / version)))
        size = (self.originals / version / name).stat().st_size
        at = self.rng.randrange(size)
        return Range(version, name, at, min(size - at, self.rng.randrange(1, LONGEST)))

    def original(self, of: Range) -> bytes:
        fd = os.open(self.originals / of.version / of.name, os.O_RDONLY)
        try:
            return os.pread(fd, of.size, of.at)
        finally:
            os.close(fd)

    def calls(self) -> None:
        """One read by system calls."""
        began, what, version, done, wrong, error = time.monotonic(), "list", None, 0, 0, None
        try:
            of = self.any_range()
            version = of.version
            what = self.rng.choices(("pread", "held", "whole", "tag", "stat"), (50, 15, 15, 10, 10))[0]
            began, self._longest = time.monotonic(), 0.0
            if what == "pread":
                fd = self._open(of)
                try:
                    done, wrong = self._compare(fd, of)
                finally:
                    os.close(fd)
            elif what == "held":
                done, wrong, version = self._read_held(of)
            elif what == "whole":
                done, wrong = self._read_whole(of)
            elif what == "tag":
                version = self._follow_tag()
            else:
                self._look(of)
        except OSError as failed:
            error = failed.errno
        except Different as different:
            wrong = 1
            self.note(t=began, different=str(different))
        took = time.monotonic() - began
        self.note(t=began, s=took, stall=self._longest or took, what=what,
                  version=version, bytes=done, wrong=wrong, error=error)

    def mapped(self) -> None:
        """One read of a mapping; what begins is told first, since the kernel may kill us in it."""
        began = time.monotonic()
        try:
            of = self.any_range()
            began = time.monotonic()
            self.note(begins=began, version=of.version)
            fd = self._open(of)
            try:
                with mmap.mmap(fd, 0, mmap.MAP_SHARED, mmap.PROT_READ) as view:
                    got = view[of.at:of.at + of.size]
            finally:
                os.close(fd)
        except OSError as failed:
            self.note(t=began, s=time.monotonic() - began, what="mmap", version=None, bytes=0, wrong=0,
                      error=failed.errno)
            return
        self.note(t=began, s=time.monotonic() - began, what="mmap", version=of.version, bytes=len(got),
                  wrong=differing(got, self.original(of)), error=None)

    def _open(self, of: Range) -> int:
        fd = os.open(self.model / of.version / of.name, os.O_RDONLY)
        if self.rng.random() < 0.7:  # or else pages of the kernel would answer most of it
            os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
        return fd

    def _compare(self, fd: int, of: Range) -> tuple[int, int]:
        """A read that spans several requests may return what came before one that fails; the rest is asked for then."""
        got = bytearray()
        while len(got) < of.size and (piece := os.pread(fd, of.size - len(got), of.at + len(got))):
            got += piece
        return len(got), differing(bytes(got), self.original(of))

    def _read_held(self, of: Range) -> tuple[int, int, str]:
        """Of a file that was opened some reads ago; the version may be an old one by now."""
        if len(self._held) < HELD:
            self._held.append((of, self._open(of)))
        index = self.rng.randrange(len(self._held))
        held, fd = self._held[index]
        found = self._compare(fd, held)
        if self.rng.random() < 0.1:
            os.close(self._held.pop(index)[1])
        return *found, held.version

    def _read_whole(self, of: Range) -> tuple[int, int]:
        fd, done, wrong = self._open(of), 0, 0
        try:
            with (self.originals / of.version / of.name).open("rb") as original:
                while wanted := original.read(PIECE):
                    began, got = time.monotonic(), bytearray()
                    try:
                        while len(got) < len(wanted) and (piece := os.read(fd, len(wanted) - len(got))):
                            got += piece
                    finally:
                        self._longest = max(self._longest, time.monotonic() - began)
                    done, wrong = done + len(got), wrong + differing(bytes(got), wanted)
            return done, wrong + len(os.read(fd, 1))
        finally:
            os.close(fd)

    def _follow_tag(self) -> str:
        """A tag names a version that is there; `latest`, which only pushes move here, never goes back."""
        tag = self.rng.choice(TAGS)
        version = os.readlink(self.model / tag)
        if tag == "latest":
            number = int(version[1:])
            if number < self._latest:
                raise Different(f"latest went back from v{self._latest} to {version}")
            self._latest = number
        if version not in os.listdir(self.model):
            raise Different(f"{tag} is {version}, which is not listed")
        return version

    def _look(self, of: Range) -> None:
        """Names and sizes."""
        shown, wanted = self.model / of.version, self.originals / of.version
        names = sorted(os.listdir(shown))
        if names != sorted(os.listdir(wanted)):
            raise Different(f"{of.version} has {names}")
        if os.stat(shown / of.name).st_size != os.stat(wanted / of.name).st_size:
            raise Different(f"the size of {of.version}/{of.name}")


class Different(Exception):
    """Something that is no byte of a file is not what it should be."""


def differing(got: bytes, wanted: bytes) -> int:
    """How many bytes differ; what is missing does."""
    if got == wanted:
        return 0
    return sum(one != other for one, other in zip(got, wanted, strict=False)) + abs(len(got) - len(wanted))


def main() -> None:
    model, originals, log = map(Path, sys.argv[1:4])
    kind, seed, pause_ms = sys.argv[4], int(sys.argv[5]), int(sys.argv[6])
    ended = threading.Event()
    threads = 2 if kind == "calls" else 1

    def work(number: int) -> None:
        with log.with_suffix(f".{number}.jsonl").open("a", buffering=1) as file:
            reader = Reader(model, originals, file, 10 * seed + number)
            read = reader.calls if kind == "calls" else reader.mapped
            while not ended.is_set():
                read()
                ended.wait(reader.rng.uniform(0, 2 * pause_ms / 1000))

    workers = [threading.Thread(target=work, args=(number,), daemon=True) for number in range(threads)]
    for worker in workers:
        worker.start()
    sys.stdin.read()
    ended.set()
    for worker in workers:
        worker.join(60)


if __name__ == "__main__":
    main()

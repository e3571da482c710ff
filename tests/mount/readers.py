"""Programs that read a mount while something befalls it, each in a process of its own.

Rule: every byte is compared with the original, and what went wrong is told, never swallowed.
"""

from __future__ import annotations

import select
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from mount.mounting import until

_STORM = """
import mmap, os, random, sys, threading
mounted, original, threads, seed, drop = sys.argv[1], sys.argv[2], *map(int, sys.argv[3:6])
names = sorted(os.path.relpath(os.path.join(d, f), original) for d, _, fs in os.walk(original) for f in fs)
names = [name for name in names if os.path.getsize(os.path.join(original, name))]
whole = {name: open(os.path.join(original, name), "rb").read() for name in names}
wrong, enough, done = [], threading.Event(), [0] * threads

def read(rng, name, at, size, step):
    fd = os.open(os.path.join(mounted, name), os.O_RDONLY)
    try:
        if drop and rng.random() < 0.5:
            os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
        return os.pread(fd, size, at)
    finally:
        os.close(fd)

def work(thread):
    rng = random.Random(seed * 1000 + thread)
    while not enough.is_set():
        name = rng.choice(names)
        data = whole[name]
        at, size = rng.randrange(len(data)), rng.choice((1, 4096, 100_000, 300_000))
        try:
            got = read(rng, name, at, size, done[thread])
        except OSError as error:
            wrong.append((name, at, size, str(error)))
            return
        if got != data[at:at + size]:
            wrong.append((name, at, size, len(got)))
            return
        done[thread] += 1

workers = [threading.Thread(target=work, args=(thread,), daemon=True) for thread in range(threads)]
for worker in workers:
    worker.start()
for line in sys.stdin:  # asked how far they are
    print(sum(done), min(done), len(wrong), flush=True)
enough.set()
for worker in workers:
    worker.join()
print(wrong)
"""


class Storm:
    """Random reads by so many threads of a process, until `finish`. drop: whether they give pages back, so that the
    daemon is asked again."""

    def __init__(self, mounted: Path, original: Path, *, threads: int = 64, seed: int = 1, drop: bool = True) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-c", _STORM, str(mounted), str(original), str(threads), str(seed), str(int(drop))],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    def done(self) -> tuple[int, int, int]:
        """Reads of all threads, of the slowest, and how many threads met something wrong."""
        assert self.process.stdin and self.process.stdout
        self.process.stdin.write("?\n")
        self.process.stdin.flush()
        assert select.select([self.process.stdout], [], [], 60)[0]
        total, least, wrong = map(int, self.process.stdout.readline().split())
        return total, least, wrong

    def go_on(self, reads: int) -> None:
        """Wait for so many more."""
        before = self.done()[0]
        until(lambda: self.done()[0] >= before + reads)

    def all_go_on(self) -> None:
        """Wait until every thread has read more, or met something wrong."""
        before = self.done()[1]
        until(lambda: self.done()[1] > before or self.done()[2])

    def finish(self) -> str:
        """What was wrong: "[]"."""
        return self.process.communicate(timeout=120)[0].strip()

    def end(self) -> None:
        if self.process.poll() is None:
            self.process.kill()
        self.process.communicate(timeout=60)


@contextmanager
def storm(mounted: Path, original: Path, *, threads: int = 64, seed: int = 1, drop: bool = True) -> Iterator[Storm]:
    made = Storm(mounted, original, threads=threads, seed=seed, drop=drop)
    try:
        yield made
    finally:
        made.end()


@contextmanager
def script(code: str, *arguments: object) -> Iterator[subprocess.Popen[str]]:
    """A program that has printed its first line, "ready", when this begins; it is gone when it ends."""
    process = subprocess.Popen([sys.executable, "-c", code, *map(str, arguments)], stdin=subprocess.PIPE,
                               stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout and select.select([process.stdout], [], [], 60)[0]
        assert process.stdout.readline() == "ready\n"
        yield process
    finally:
        if process.poll() is None:
            process.send_signal(signal.SIGCONT)
            process.kill()
        process.communicate(timeout=60)

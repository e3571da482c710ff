"""The other process of the tests: works on a cache directory as it is told, and says a line when it has done so."""

from __future__ import annotations

import os
import random
import resource
import subprocess
import sys
from pathlib import Path

from cache_helpers import fill_all, good_rows, open_cache, random_model

from modelfs.units import KiB, MiB


def churn(directory: Path, seed: int, rows: int, length: int) -> None:
    """Punches and fills one file again until it is killed."""
    cache = open_cache(directory)
    model = random_model(seed, *[length] * rows)
    file = model.in_cache(cache)
    fill_all(file, model)
    print("ready", flush=True)
    pick = random.Random(seed)
    while True:
        row = pick.randrange(rows)
        file.discard(row, file.presence(row))
        file.fill(row, memoryview(model.data[row]))


def fill(directory: Path, seed: int, limit: int) -> None:
    """Fills one model after another, a line a chunk, until it is killed."""
    cache = open_cache(directory, limit)
    while True:
        model = random_model(seed, *[512 * KiB + 100] * 16)
        file = model.in_cache(cache)
        for row, data in enumerate(model.data):
            file.fill(row, memoryview(data))
            print(seed, row, flush=True)
        seed += 1


def hold(directory: Path, limit: int) -> None:
    """Has the cache open until standard input ends."""
    cache = open_cache(directory, limit)
    print("ready", flush=True)
    sys.stdin.read()
    cache.close()


def seal(directory: Path, seed: int, rows: int, length: int) -> None:
    """A mount with `changed` that fills a file and ends."""
    cache = open_cache(directory, verify="changed")
    model = random_model(seed, *[length] * rows)
    fill_all(model.in_cache(cache), model)
    cache.close()


def hand_out(directory: Path, seed: int, rows: int, length: int) -> None:
    """Checks a file, and gives the descriptor for the kernel to a child, which keeps it; says the child's id."""
    cache = open_cache(directory)
    model = random_model(seed, *[length] * rows)
    good_rows(model.in_cache(cache), model)
    backing = model.in_cache(cache).backing()
    assert backing is not None
    child = subprocess.Popen(["sleep", "600"], pass_fds=[backing.fd], stdin=subprocess.DEVNULL,
                             stdout=subprocess.DEVNULL)
    print(child.pid, flush=True)
    sys.stdin.read()


def many(directory: Path, files: int) -> None:
    """Fills and reads more files than the process may have descriptors; says how many it had open at most."""
    resource.setrlimit(resource.RLIMIT_NOFILE, (1024, 1024))
    cache = open_cache(directory, 256 * MiB)
    models = [random_model(seed, 4 * KiB, 3000) for seed in range(files)]
    held = [model.in_cache(cache) for model in models]
    most = 0
    for file, model in zip(held, models, strict=True):
        assert fill_all(file, model) == 2
        most = max(most, len(os.listdir("/proc/self/fd")))
    for file, model in zip(held, models, strict=True):
        assert file.checked(0) and file.checked(1)  # outlives the handle
        assert good_rows(file, model) == {0, 1}
    cache.close()
    print(most, len(os.listdir("/proc/self/fd")), flush=True)


if __name__ == "__main__":
    command, directory, *numbers = sys.argv[1:]
    {"churn": churn, "fill": fill, "hold": hold, "seal": seal, "hand_out": hand_out,
     "many": many}[command](Path(directory), *map(int, numbers))

"""The reads that are timed: what a loader does to files, with one buffer and nothing in between. Buffers begin at
a page's beginning, since elsewhere the processor's copying, not the filesystem, sets the pace (`page_buffer`).

Rule: every function reads real bytes of every page it counts and returns seconds; what is dropped from the page cache
before it is the caller's business.
"""

from __future__ import annotations

import mmap
import os
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import blake3
import numpy as np

from benchmarks.checkpoint import Tensor, tensors_of
from modelfs.cache.system import page_buffer

BLOCK = 1 << 20
THREADS = 8
PAGE = 4096


def drop_pages() -> None:
    """Writes back what is dirty, then forgets the page cache. Needs root."""
    os.sync()
    Path("/proc/sys/vm/drop_caches").write_text("1")


@contextmanager
def opened(path: Path) -> Iterator[int]:
    fd = os.open(path, os.O_RDONLY)
    try:
        yield fd
    finally:
        os.close(fd)


def sequential_s(paths: Sequence[Path]) -> float:
    """Each file from its start, in blocks of 1 MiB into one buffer."""
    buffer = page_buffer(BLOCK)
    began = time.perf_counter()
    for path in paths:
        with opened(path) as fd:
            while os.readv(fd, [buffer]):
                pass
    return time.perf_counter() - began


def mapped_s(paths: Sequence[Path]) -> float:
    """Each file mapped, and copied out of the map in blocks of 1 MiB."""
    buffer = np.frombuffer(page_buffer(BLOCK), np.uint8)
    began = time.perf_counter()
    for path in paths:
        with opened(path) as fd, mmap.mmap(fd, 0, prot=mmap.PROT_READ) as mapping:
            pages = np.frombuffer(mapping, np.uint8)
            for at in range(0, len(pages), BLOCK):
                part = pages[at:at + BLOCK]
                np.copyto(buffer[:len(part)], part)
            del pages, part
    return time.perf_counter() - began


def threaded_s(paths: Sequence[Path]) -> float:
    """Eight threads, each a run of its own of every file."""
    def read(path: Path, start: int, end: int) -> None:
        buffer = memoryview(page_buffer(BLOCK))
        with opened(path) as fd:
            while start < end:
                got = os.preadv(fd, [buffer[:min(BLOCK, end - start)]], start)
                assert got, path
                start += got
    with ThreadPoolExecutor(THREADS) as pool:
        began = time.perf_counter()
        for path in paths:
            size = path.stat().st_size
            bounds = [size * number // THREADS for number in range(THREADS + 1)]
            list(pool.map(read, [path] * THREADS, bounds, bounds[1:]))
        return time.perf_counter() - began


def random_s(paths: Sequence[Path], count: int) -> float:
    """`count` pages at offsets that differ, in an order that is always the same."""
    rng = np.random.default_rng(2)
    buffer = page_buffer(PAGE)
    began = time.perf_counter()
    for path in paths:
        pages = rng.permutation(path.stat().st_size // PAGE)[:count // len(paths)]
        with opened(path) as fd:
            for page in pages.tolist():
                os.preadv(fd, [buffer], page * PAGE)
    return time.perf_counter() - began


def load_s(paths: Sequence[Path]) -> float:
    """As safetensors does: the header, then every tensor copied out of a map of its file."""
    began = time.perf_counter()
    for path in paths:
        tensors = {}
        with opened(path) as fd, mmap.mmap(fd, 0, prot=mmap.PROT_READ) as mapping:
            for name, tensor in tensors_of(path):
                tensors[name] = np.frombuffer(mapping, np.uint16, tensor.length // 2, tensor.offset).copy()
    return time.perf_counter() - began


def read_tensor(directory: Path, tensor: Tensor) -> None:
    """One tensor into memory."""
    buffer = memoryview(page_buffer(tensor.length))
    with opened(directory / tensor.path) as fd:
        at = 0
        while at < tensor.length:
            got = os.preadv(fd, [buffer[at:]], tensor.offset + at)
            assert got, tensor
            at += got


def digests(paths: Sequence[Path]) -> dict[str, str]:
    """File name → BLAKE3 of its bytes."""
    found = {}
    for path in paths:
        digest = blake3.blake3()
        with path.open("rb", buffering=0) as file:
            while block := file.read(BLOCK):
                digest.update(block)
        found[path.name] = digest.hexdigest()
    return found

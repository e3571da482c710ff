"""Many requests that do not need one another: several at once, their results in order.

Rule: what waits to be taken is bounded, whatever the number of requests.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from typing import TypeVar

T = TypeVar("T")
R = TypeVar("R")


def in_parallel(jobs: int, function: Callable[[T], R], items: Iterable[T]) -> Iterator[R]:
    """Results in order; at most 4 × jobs of them wait to be taken."""
    rest = iter(items)
    with ThreadPoolExecutor(jobs) as pool:
        while batch := list(islice(rest, 4 * jobs)):
            yield from pool.map(function, batch)

"""SRC, DST and options of `modelfs compress` → the run's parts: files, destination, and who does the work.

Rule: what can be refused is refused before anything is read or made.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from modelfs.compression.dask_pool import DaskPool
from modelfs.compression.journal import Destination
from modelfs.compression.layout import ModelFile
from modelfs.compression.pool import LocalPool
from modelfs.compression.run import Outcome, compress
from modelfs.errors import BadInput
from modelfs.transfer.scan import scan
from modelfs.transforms import Recipe


@dataclass(frozen=True, slots=True)
class Request:
    """jobs: processes, 0 for one a core. executor: dask://HOST:PORT instead, or None."""

    source: Path
    destination: Path
    recipe: Recipe
    jobs: int
    executor: str | None
    follow_links: bool
    patience_s: float


def run(request: Request, total: Callable[[int], None], advance: Callable[[int], None],
        tell: Callable[[str], None]) -> Outcome:
    """total: told the bytes of all files. Raises NotFound, BadInput, Conflict, Forbidden, NoSpace, Unavailable."""
    source = request.source
    files = [ModelFile(each.path, os.path.abspath(each.location), each.size, each.mtime_ns, each.mode)
             for each in scan(source, request.follow_links)]
    destination = Destination(Path(os.path.abspath(request.destination)), not source.is_dir())
    inside = os.path.realpath(source)
    if source.is_dir() and Path(os.path.realpath(destination.root)).is_relative_to(inside):
        raise BadInput("the destination is in the source", where=str(request.destination), advice="Name another DST.")
    total(sum(file.size for file in files))
    if request.executor is not None:
        cluster = DaskPool(request.executor, request.patience_s)
        try:
            return compress(files, destination, request.recipe, cluster, source=str(source), advance=advance,
                            tell=tell, begun=cluster.join)
        finally:
            cluster.close()
    pool = LocalPool(request.jobs or len(os.sched_getaffinity(0)))
    try:
        return compress(files, destination, request.recipe, pool, source=str(source), advance=advance, tell=tell)
    finally:
        pool.close()

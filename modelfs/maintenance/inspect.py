"""What one version holds and how it is stored: files, their tensors, chunks and codecs.

Rule: stored bytes are counted as the layout says now, each chunk of the version, file or tensor once; a header
that cannot be had costs its file the list of tensors, and nothing else.
"""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from modelfs.errors import IntegrityError, NotFound
from modelfs.formats import describe
from modelfs.ids import ModelRef
from modelfs.maintenance.placing import Placing, comparable, placing_of
from modelfs.repository.catalog import Catalog
from modelfs.repository.file_reader import FileReader
from modelfs.repository.history import Version
from modelfs.repository.index import Index
from modelfs.repository.manifest import FileEntry, Manifest
from modelfs.repository.repository import Repository
from modelfs.units import Deadline


@dataclass(frozen=True, slots=True)
class TensorStored:
    """codecs: how many of the chunks that the tensor touches are stored with each codec."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    length: int
    stored_bytes: int
    codecs: dict[str, int]


@dataclass(frozen=True, slots=True)
class FileStored:
    """chunks: distinct ones."""

    entry: FileEntry
    chunks: int
    stored_bytes: int
    tensors: tuple[TensorStored, ...]


@dataclass(frozen=True, slots=True)
class Inspection:
    """chunks: distinct ones. files: all of the version, or those that were asked for; the sums are of all.
    yanked: why the version was withdrawn, or None."""

    ref: ModelRef
    version: Version
    yanked: str | None
    chunks: int
    decoded_bytes: int
    stored_bytes: int
    files: tuple[FileStored, ...]

    @property
    def commit(self) -> str:
        return self.version.manifest.hex()[:40]


def inspect(repository: Repository, ref: ModelRef, path: str | None, *, deadline_s: float, jobs: int = 8) -> Inspection:
    """path: of a file, or of a directory of which all files are meant; None for all.

    deadline_s: of each step on the network. jobs: files whose headers are read at once.
    Raises NotFound for the version or the path, Unavailable, IntegrityError where the manifest cannot be had.
    """
    catalog = repository.catalog(Deadline(deadline_s)).catalog
    resolved = repository.resolve(catalog, ref, Deadline(deadline_s))
    version = resolved.version
    manifest = repository.manifest(version.manifest, Deadline(deadline_s))
    numbers = _asked(manifest, path, str(ref))
    stored = _Stored(repository, manifest, _placing(repository, catalog, manifest, deadline_s), deadline_s)
    with ThreadPoolExecutor(max(1, min(jobs, len(numbers)))) as pool:
        files = tuple(pool.map(stored.file, numbers))
    chunks, stored_bytes = stored.count(slice(None))
    return Inspection(ref, version, resolved.yanked, chunks, manifest.decoded_bytes, stored_bytes, files)


def _asked(manifest: Manifest, path: str | None, where: str) -> Sequence[int]:
    if path is None:
        return range(len(manifest))
    number = manifest.find(path)
    if number is not None:
        return [number]
    inside = path.rstrip("/") + "/"
    found = [number for number in range(len(manifest)) if manifest.file(number).path.startswith(inside)]
    if not found:
        raise NotFound(f"no file {path!r}", where=where, advice="`modelfs ls` with the model shows its files.")
    return found


def _placing(repository: Repository, catalog: Catalog, manifest: Manifest, deadline_s: float) -> Placing:
    found = placing_of(repository, manifest, [], Deadline(deadline_s))
    if found.fault is None:
        return found
    indexes: list[Index] = []
    for id in catalog.indexes:
        try:
            indexes.append(repository.index(id, Deadline(deadline_s)))
        except IntegrityError:  # what it alone knew shows as chunks without a place
            continue
    return placing_of(repository, manifest, indexes, Deadline(deadline_s))


class _Stored:
    """Counts for rows of one manifest. distinct [n]: rows with the same chunk have the same number there."""

    def __init__(self, repository: Repository, manifest: Manifest, placing: Placing, deadline_s: float) -> None:
        self._repository, self._manifest, self._placing = repository, manifest, placing
        self._deadline_s = deadline_s
        places, row_place = placing.layout.places, placing.layout.row_place
        self._stored = np.where(placing.known, places.stored[row_place].astype(np.int64), 0)
        self._codec = places.codec[row_place]
        self._distinct: NDArray[np.intp] = np.unique(comparable(manifest.chunk_ids), return_inverse=True)[1]

    def count(self, rows: slice) -> tuple[int, int]:
        """Distinct chunks of the rows, and their stored bytes."""
        first = self._first_of_each(rows)
        return len(first), int(self._stored[first].sum())

    def file(self, number: int) -> FileStored:
        entry = self._manifest.file(number)
        chunks, stored_bytes = self.count(slice(entry.first_row, entry.first_row + entry.row_count))
        tensors: tuple[TensorStored, ...] = ()
        if entry.format is not None:
            try:
                tensors = self._tensors(entry)
            except IntegrityError:  # `verify` tells what is wrong; here the rest is shown
                tensors = ()
        return FileStored(entry, chunks, stored_bytes, tensors)

    def _tensors(self, entry: FileEntry) -> tuple[TensorStored, ...]:
        reader = FileReader(self._manifest, entry, lambda row: self._chunk(row, entry))
        out = []
        for tensor in describe(reader.read, entry.size, entry.path).tensors:
            rows = self._first_of_each(reader.rows(tensor.offset, tensor.length))
            numbers, counts = np.unique(self._codec[rows[self._placing.known[rows]]], return_counts=True)
            codecs = {self._placing.layout.places.codecs[code]: int(count)
                      for code, count in zip(numbers, counts, strict=True)}
            out.append(TensorStored(tensor.name, tensor.dtype, tensor.shape, tensor.length,
                                    int(self._stored[rows].sum()), codecs))
        return tuple(out)

    def _chunk(self, row: int, of: FileEntry) -> memoryview:
        if not self._placing.known[row]:
            raise IntegrityError("a chunk that no layout and no index places", where=of.path)
        return self._repository.read_chunk(self._manifest, self._placing.layout, row, Deadline(self._deadline_s))

    def _first_of_each(self, rows: slice) -> NDArray[np.intp]:
        """Of the rows, the first with each distinct chunk."""
        start = rows.start or 0
        return np.asarray(np.unique(self._distinct[rows], return_index=True)[1] + start)

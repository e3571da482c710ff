"""Whether a repository holds what its catalog promises: every object, and on request every byte.

Rule: walks from the catalog and lists nothing; only packs can show what the chunks themselves are, so what was
not read is never called checked.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from modelfs.errors import IntegrityError, Malformed
from modelfs.ids import ObjectId
from modelfs.maintenance.survey import MAX_FAULTS, Fault, Kind, Survey, affected, in_parallel, kind_of, survey
from modelfs.repository import keys, pack
from modelfs.repository.chunk import open_chunk
from modelfs.repository.repository import Repository
from modelfs.units import Deadline

Progress = Callable[[int, int], None]
"""(bytes read since the last call, bytes to read in all); called from several threads."""

_PACK_READERS = 3
"""Packs in memory at once, each of at most 96 MiB: one is read while others decode."""


@dataclass(frozen=True, slots=True)
class Report:
    """chunks_checked: chunks that were decoded and hashed; bytes_checked: the stored bytes read for it. Both are 0
    without read_data. faults: at most 1000. repaired: keys of objects made anew."""

    repository: str
    versions: int
    chunks_checked: int
    bytes_checked: int
    faults: tuple[Fault, ...]
    repaired: tuple[str, ...] = ()

    @property
    def ok(self) -> bool:
        return not self.faults


@dataclass(frozen=True, slots=True)
class _Bad:
    kind: Kind
    detail: str


@dataclass(slots=True)
class _Read:
    """What came of one pack. faults: of the pack itself; bad: by row of the survey."""

    chunks: int = 0
    bytes: int = 0
    faults: list[Fault] = field(default_factory=list)
    bad: dict[int, _Bad] = field(default_factory=dict)


def verify(repository: Repository, *, read_data: bool = False, sample: float | None = None,
           progress: Progress = lambda done, total: None, deadline_s: float = 60.0, jobs: int = 8) -> Report:
    """Check that all is there; with read_data, that every chunk is what its id says.

    sample: read and check so large a part (0..1) of the chunks, others each time, and no whole packs; implies
    read_data. deadline_s: of each step on the network; of a pack, between its bytes. Raises Unavailable, Forbidden.
    """
    found = survey(repository, deadline_s=deadline_s, jobs=jobs)
    bad: dict[int, _Bad] = {}
    chunks = read_bytes = 0

    def take(reads: Iterable[_Read]) -> None:
        nonlocal chunks, read_bytes
        for read in reads:
            chunks += read.chunks
            read_bytes += read.bytes
            bad.update(read.bad)
            for fault in read.faults:
                found.add(fault)

    take(_stat_packs(repository, found, deadline_s, jobs))
    whole = np.ones(len(found.rows), np.bool_)
    whole[list(bad)] = False
    if sample is not None:
        take(_read_sample(repository, found, np.flatnonzero(whole), sample, progress, deadline_s, jobs))
    elif read_data:
        take(_read_packs(repository, found, whole, progress, deadline_s))
    _blame(repository, found, bad, deadline_s, jobs)
    return Report(repository.store.url, len(found.owners), chunks, read_bytes, tuple(found.faults))


def _stat_packs(repository: Repository, found: Survey, deadline_s: float, jobs: int) -> Iterable[_Read]:
    """Once a pack. Every row of a pack that is not there is bad, and those beyond the end of one cut short."""
    ends = found.rows["offset"] + found.rows["stored"]

    def check(item: tuple[ObjectId, slice]) -> _Read:
        (id, rows), out = item, _Read()
        key = keys.pack(id)
        try:
            size = repository.store.stat(key, Deadline(deadline_s)).size
        except IntegrityError as error:
            out.bad = dict.fromkeys(range(rows.start, rows.stop), _Bad(kind_of(error), str(error)))
            return out
        short = _Bad("corrupt", f"the pack is cut short: it has {size} bytes")
        out.bad = dict.fromkeys((rows.start + np.flatnonzero(ends[rows] > size)).tolist(), short)
        if not out.bad and int(ends[rows].max()) + pack.FOOTER.size > size:
            out.faults.append(Fault(short.kind, key, None, None, None, short.detail))
        return out

    return in_parallel(jobs, check, found.packs())


def _read_packs(repository: Repository, found: Survey, whole: NDArray[np.bool_], progress: Progress,
                deadline_s: float) -> Iterable[_Read]:
    """whole: by row, whether it is there to be read. A pack without such rows is left out."""
    total = int(found.rows["stored"][whole].sum(dtype=np.int64))

    def read(item: tuple[ObjectId, slice]) -> _Read:
        id, rows = item
        key, out = keys.pack(id), _Read()
        here = (rows.start + np.flatnonzero(whole[rows])).tolist()
        try:
            size = repository.store.stat(key, Deadline(deadline_s)).size
            if size > pack.MAX_OBJECT_BYTES:
                raise Malformed(key, why=f"{size} bytes are too many for a pack")
            data = _bytes(repository, key, 0, size, deadline_s)
        except IntegrityError as error:
            out.bad = dict.fromkeys(here, _Bad(kind_of(error), str(error)))
            return out
        if ObjectId.of(data) != id:
            out.faults.append(Fault("corrupt", key, None, None, None, "the pack does not hash to its name"))
        out.faults += _tail_faults(repository, id, data)
        for row in here:
            offset, length = int(found.rows["offset"][row]), int(found.rows["stored"][row])
            _check(found, row, data[offset:offset + length], out)
        progress(int(found.rows["stored"][here].sum(dtype=np.int64)), total)
        return out

    return in_parallel(_PACK_READERS, read, ((id, rows) for id, rows in found.packs() if whole[rows].any()))


def _read_sample(repository: Repository, found: Survey, rows: NDArray[np.intp], part: float, progress: Progress,
                 deadline_s: float, jobs: int) -> Iterable[_Read]:
    """At least one of the rows where part is above 0."""
    count = min(len(rows), max(1, round(part * len(rows)))) if part > 0 else 0
    chosen = sorted(random.sample(rows.tolist(), count))
    total = int(found.rows["stored"][chosen].sum(dtype=np.int64))

    def read(row: int) -> _Read:
        out = _Read()
        place = found.place(row)[1]
        try:
            stored = _bytes(repository, keys.pack(place.pack), place.offset, place.length, deadline_s)
        except IntegrityError as error:
            out.bad[row] = _Bad(kind_of(error), str(error))
            return out
        _check(found, row, stored, out)
        progress(place.length, total)
        return out

    return in_parallel(jobs, read, chosen)


def _check(found: Survey, row: int, stored: memoryview, out: _Read) -> None:
    ref, place = found.place(row)
    out.chunks += 1
    out.bytes += len(stored)
    try:
        open_chunk(ref, place, stored, memoryview(bytearray(ref.length)))
    except IntegrityError as error:
        out.bad[row] = _Bad(kind_of(error), str(error))


def _tail_faults(repository: Repository, id: ObjectId, data: memoryview) -> list[Fault]:
    what = f"pack {id.hex()[:16]}"
    try:
        start, length, digest = pack.tail_span(data[-pack.FOOTER.size:], len(data), what)
        rows = pack.parse_tail(id, data[start:start + length], digest, repository.info.chunk_size)
        if any(row.place.offset + row.place.length > start for row in rows):
            raise Malformed(what, why="its tail places a chunk beyond the chunks")
    except IntegrityError as error:
        return [Fault(kind_of(error), keys.pack(id), None, None, None, str(error))]
    return []


def _blame(repository: Repository, found: Survey, bad: dict[int, _Bad], deadline_s: float, jobs: int) -> None:
    """A fault for each version and file that a bad place is needed for, and for each pack that none of these names."""
    rows = np.array(sorted(bad), np.intp)
    blamed: set[str] = set()
    for owner, path, row in affected(repository, found, rows, deadline_s=deadline_s, jobs=jobs):
        key = keys.pack(found.place(row)[1].pack)
        blamed.add(key)
        found.add(Fault(bad[row].kind, key, str(owner.model), owner.version, path, bad[row].detail))
        if len(found.faults) >= MAX_FAULTS:
            return
    for id, span in found.packs():
        at = int(np.searchsorted(rows, span.start))
        if at < len(rows) and rows[at] < span.stop and keys.pack(id) not in blamed:
            row = int(rows[at])
            found.add(Fault(bad[row].kind, keys.pack(id), None, None, None, bad[row].detail))


def _bytes(repository: Repository, key: str, offset: int, length: int, deadline_s: float) -> memoryview:
    """Raises Malformed where the object is too short."""
    if not length:
        raise Malformed(key, why="it is empty")
    out = memoryview(bytearray(length))
    deadline = Deadline(deadline_s).patient()  # nobody waits for a pack: as long as its bytes come it may take its time
    with repository.store.open_range(key, offset, length, deadline) as stream:
        stream.readinto(out)
    return out

"""Whether a repository holds what its catalog promises: every object, and on request every byte.

Rule: walks from the catalog and lists nothing; only packs can show what the chunks themselves are, so what was
not read is never called checked. A server's word (auditing.py) spares reading a pack only where it is good: whatever a
server calls wrong, or says nothing of, is read here, so the faults are the same whoever hashed.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from modelfs.errors import IntegrityError, Malformed
from modelfs.ids import ObjectId
from modelfs.maintenance.auditing import DIGEST_ROW, Packs, Question, Word, row_of
from modelfs.maintenance.survey import (
    MAX_FAULTS,
    Fault,
    Kind,
    Survey,
    affected,
    in_indexes,
    kind_of,
    survey,
)
from modelfs.repository import keys, pack
from modelfs.repository.chunk import ChunkRef, open_chunk
from modelfs.repository.parallel import in_parallel
from modelfs.repository.repository import Repository
from modelfs.units import Deadline

Progress = Callable[[int, int], None]
"""(bytes read since the last call, bytes to read in all); called from several threads."""

_PACK_READERS = 3
"""Packs in memory at once, each of at most 96 MiB: one is read while others decode."""


@dataclass(frozen=True, slots=True)
class Report:
    """chunks_checked: chunks that were hashed, decoded here or as part of their pack by the store's server;
    bytes_checked: the stored bytes of them. Both are 0 without read_data. faults: at most 1000. repaired: keys of
    objects made anew. hashed_by: the server where it hashed any pack. marks: of the packs that were hashed whole, where
    there was a question of them; root: of these, equal where two stores hold the same packs."""

    repository: str
    versions: int
    chunks_checked: int
    bytes_checked: int
    faults: tuple[Fault, ...]
    repaired: tuple[str, ...] = ()
    hashed_by: Literal["server", "client"] | None = None
    marks: Packs = field(default_factory=lambda: Packs(np.zeros(0, DIGEST_ROW)))
    root: str | None = None

    @property
    def ok(self) -> bool:
        return not self.faults


@dataclass(frozen=True, slots=True)
class _Bad:
    kind: Kind
    detail: str


@dataclass(slots=True)
class _Read:
    """What came of one pack. faults: of the pack itself; bad: by row of the survey. mark: a DIGEST_ROW."""

    chunks: int = 0
    size_bytes: int = 0
    faults: list[Fault] = field(default_factory=list)
    bad: dict[int, _Bad] = field(default_factory=dict)
    mark: bytes = b""


def verify(repository: Repository, *, read_data: bool = False, sample: float | None = None,
           question: Question | None = None, word: Word | None = None,
           progress: Progress = lambda done, total: None, deadline_s: float = 60.0, jobs: int = 8) -> Report:
    """Check that all is there; with read_data, that every chunk is what its id says.

    sample: read and check so large a part (0..1) of the chunks, others each time, and no whole packs; implies
    read_data. question: how packs are marked that are read whole, or were by the store's server. word: what that server
    says, of the sizes in place of a request for each pack, and of the question's packs in place of reading them.
    deadline_s: of each step on the network; of a pack, between its bytes. Raises Unavailable, Forbidden.
    """
    found = survey(repository, deadline_s=deadline_s, jobs=jobs)
    bad: dict[int, _Bad] = {}
    chunks = read_bytes = 0
    marks: list[bytes] = []

    def take(reads: Iterable[_Read]) -> None:
        nonlocal chunks, read_bytes
        for read in reads:
            chunks += read.chunks
            read_bytes += read.size_bytes
            bad.update(read.bad)
            marks.append(read.mark)
            for fault in read.faults:
                found.add(fault)

    take(_stat_packs(repository, found, word.sizes if word else None, deadline_s, jobs))
    bad.update(_baseless(found, bad))
    whole = np.ones(len(found.rows), np.bool_)
    whole[list(bad)] = False
    wanted, audited = whole, word is not None and question is not None
    total = int(found.rows["stored"][whole].sum(dtype=np.int64))
    if word is not None and question is not None:
        told, wanted = _told_packs(found, whole, word, lambda done: progress(done, total), sampled=sample is not None)
        take(told)
    by_server = chunks > 0
    if sample is not None and not (audited and (by_server or wanted.any())):
        take(_read_sample(repository, found, np.flatnonzero(whole), sample, progress, deadline_s, jobs))
    elif sample is not None or read_data:
        take(_read_packs(repository, found, wanted, question, lambda done: progress(done, total), deadline_s))
    _blame(repository, found, bad, deadline_s, jobs)
    marked = Packs(np.frombuffer(b"".join(marks), DIGEST_ROW))
    return Report(repository.store.url, len(found.owners), chunks, read_bytes, tuple(found.faults),
                  hashed_by="server" if by_server else "client" if chunks else None, marks=marked,
                  root=question.root(marked.rows).hex() if question and len(marked) else None)


def _told_packs(found: Survey, whole: NDArray[np.bool_], word: Word, hashed: Callable[[int], None], *,
                sampled: bool) -> tuple[list[_Read], NDArray[np.bool_]]:
    """The packs that the server found right, and which rows are to be read here all the same: of those that it found
    wrong, too large, or, unless sampled, did not speak of. Of a right pack only a layout can be false still: so its
    places are those that an index names, too, or it is read."""
    told, reads, wanted = word.digests(hashed), list[_Read](), np.zeros(len(whole), np.bool_)
    sure = whole & in_indexes(found) if len(told) else wanted
    for id, rows in found.packs():
        row = told.find(id)
        if row is None:
            wanted[rows] = whole[rows] & (not sampled)
        elif row["right"] and row["size"] <= pack.MAX_OBJECT_BYTES and sure[rows].all():
            reads.append(_Read(rows.stop - rows.start, int(found.rows["stored"][rows].sum(dtype=np.int64)),
                               mark=row.tobytes()))
        else:
            wanted[rows] = whole[rows]
    return reads, wanted


def _stat_packs(repository: Repository, found: Survey, sizes: Packs | None, deadline_s: float,
                jobs: int) -> Iterable[_Read]:
    """Once a pack, unless its size is told by sizes. Every row of a pack that is not there is bad, and those beyond the
    end of one cut short."""
    ends = found.rows["offset"] + found.rows["stored"]

    def check(item: tuple[ObjectId, slice]) -> _Read:
        (id, rows), out = item, _Read()
        key = keys.pack(id)
        try:
            told = sizes.find(id) if sizes else None
            size = repository.store.stat(key, Deadline(deadline_s)).size if told is None else int(told["size"])
        except IntegrityError as error:
            out.bad = dict.fromkeys(range(rows.start, rows.stop), _Bad(kind_of(error), str(error)))
            return out
        short = _Bad("corrupt", f"the pack is cut short: it has {size} bytes")
        out.bad = dict.fromkeys((rows.start + np.flatnonzero(ends[rows] > size)).tolist(), short)
        if not out.bad and int(ends[rows].max()) + pack.FOOTER.size > size:
            out.faults.append(Fault(short.kind, key, None, None, None, short.detail))
        return out

    return in_parallel(jobs, check, found.packs())


def _read_packs(repository: Repository, found: Survey, whole: NDArray[np.bool_], question: Question | None,
                progress: Callable[[int], None], deadline_s: float) -> Iterable[_Read]:
    """whole: by row, whether it is there to be read. A pack without such rows is left out. question: by which packs are
    marked."""
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
        if question is not None:
            out.mark = row_of(id, data, question)
        if ObjectId.of(data) != id:
            out.faults.append(Fault("corrupt", key, None, None, None, "the pack does not hash to its name"))
        out.faults += _tail_faults(repository, id, data)
        for row in here:
            offset, length = int(found.rows["offset"][row]), int(found.rows["stored"][row])
            _check(repository, found, row, data[offset:offset + length], out, deadline_s)
        progress(int(found.rows["stored"][here].sum(dtype=np.int64)))
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
        _check(repository, found, row, stored, out, deadline_s)
        progress(place.length, total)
        return out

    return in_parallel(jobs, read, chosen)


def _baseless(found: Survey, bad: Mapping[int, _Bad]) -> dict[int, _Bad]:
    """Differences to what is bad."""
    rows = found.differences()
    return {row: _Bad(bad[base].kind, f"a difference to what is not whole: {bad[base].detail}")
            for row, base in zip(rows.tolist(), found.bases(rows).tolist(), strict=True)
            if row not in bad and base in bad}


def _check(repository: Repository, found: Survey, row: int, stored: memoryview, out: _Read, deadline_s: float) -> None:
    ref, place = found.place(row)
    out.chunks += 1
    out.size_bytes += len(stored)
    try:
        base = None
        if place.base is not None:
            wanted = ChunkRef(place.base.id, ref.length)
            base = repository.chunk_at(wanted, place.base.place, Deadline(deadline_s).patient())
        open_chunk(ref, place, stored, memoryview(bytearray(ref.length)), base)
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

"""The walk from a catalog down to every place it leads to: histories, segments, manifests, layouts, indexes.

Rule: what is missing or wrong is a fault and the walk goes on; only a store that does not answer, or refuses,
ends it. What the walk keeps is one row of bytes a chunk and place, whatever the number of versions.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cached_property
from itertools import chain, pairwise
from threading import Lock
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from modelfs.codecs import check_codec
from modelfs.errors import CorruptChunk, IntegrityError, Malformed, ModelfsError, NotFound, ObjectMissing, Unsupported
from modelfs.ids import ChunkId, ModelName, ObjectId
from modelfs.maintenance.placing import Placing, comparable, placing_of
from modelfs.repository import keys
from modelfs.repository.catalog import Catalog
from modelfs.repository.chunk import ChunkRef
from modelfs.repository.history import History, SegmentRef, Version
from modelfs.repository.index import Index
from modelfs.repository.manifest import Manifest
from modelfs.repository.parallel import in_parallel
from modelfs.repository.places import NO_BASE, SELF, Base, Place, PlaceTable
from modelfs.repository.repository import Repository
from modelfs.units import Deadline

Kind = Literal["missing", "corrupt", "malformed", "diverged", "signature"]
MAX_FAULTS = 1000

_ROW = np.dtype([("pack", "V32"), ("offset", ">u8"), ("stored", ">u4"), ("codec", ">u4"), ("length", ">u4"),
                 ("id", "V32"), ("base_pack", "V32"), ("base_offset", ">u8")])
"""A chunk with one place of it; big-endian, so that rows sorted as bytes are sorted by pack and offset. The base of a
difference is a row of its own, and found by its pack and offset; the pack of no base is zeros."""
_WHERE = 40
"""Bytes of pack and offset, with which a row begins, and with which it ends for its base."""
Rows = NDArray[np.void]


@dataclass(frozen=True, slots=True)
class Fault:
    """object: a key. version: like "v1". path: of a file that is affected."""

    kind: Kind
    object: str | None
    model: str | None
    version: str | None
    path: str | None
    detail: str


@dataclass(frozen=True, slots=True)
class Owner:
    """A version that was walked to."""

    model: ModelName
    version: str
    manifest: ObjectId


class CodecNumbers:
    """Numbers the codecs that are met, from several threads."""

    def __init__(self) -> None:
        self._lock = Lock()
        self._numbers: dict[str, int] = {}  # guarded by _lock

    def of(self, names: list[str]) -> NDArray[np.uint32]:
        with self._lock:
            return np.array([self._numbers.setdefault(name, len(self._numbers)) for name in names], np.uint32)

    def names(self) -> list[str]:
        with self._lock:
            return list(self._numbers)


@dataclass
class Survey:
    """faults: at most MAX_FAULTS. indexes: those that could be read. bad_layouts, bad_indexes: what `repair` makes
    anew. rows: of every chunk and place that a version or an index names, bases among them, each once, sorted."""

    catalog: Catalog | None = None
    faults: list[Fault] = field(default_factory=list)
    owners: list[Owner] = field(default_factory=list)
    indexes: list[Index] = field(default_factory=list)
    bad_layouts: list[Owner] = field(default_factory=list)
    bad_indexes: list[ObjectId] = field(default_factory=list)
    codecs: CodecNumbers = field(default_factory=lambda: CodecNumbers())
    rows: Rows = field(default_factory=lambda: np.zeros(0, _ROW))

    def add(self, fault: Fault) -> None:
        if len(self.faults) < MAX_FAULTS:
            self.faults.append(fault)

    def place(self, row: int) -> tuple[ChunkRef, Place]:
        at = self.rows[row]
        base = None
        if at["base_pack"].tobytes() != SELF and (base_row := int(self.bases(np.array([row]))[0])) >= 0:
            ref, place = self.place(base_row)
            base = Base(ref.id, place)
        return (ChunkRef(ChunkId(at["id"].tobytes()), int(at["length"])),
                Place(ObjectId(at["pack"].tobytes()), int(at["offset"]), int(at["stored"]),
                      self.codecs.names()[int(at["codec"])], base))

    def differences(self) -> NDArray[np.intp]:
        """The rows that have a base."""
        return np.flatnonzero(comparable(_bytes_of(self.rows)[:, -_WHERE:-8]) != b"")

    def bases(self, rows: NDArray[np.intp]) -> NDArray[np.intp]:
        """Of rows that have one, the row of the base; -1 where it is none of rows."""
        places, wanted = self._places, comparable(_bytes_of(self.rows[rows])[:, -_WHERE:])
        at = np.minimum(np.searchsorted(places, wanted), max(len(places) - 1, 0))
        return np.where(places[at] == wanted, at, -1)

    @cached_property
    def _places(self) -> NDArray[np.bytes_]:
        """Looked at when the survey is over: of a million rows a copy of 40 MB, which each difference would make."""
        return comparable(_bytes_of(self.rows)[:, :_WHERE])

    def packs(self) -> list[tuple[ObjectId, slice]]:
        """Each pack that is named, with its rows."""
        if not len(self.rows):
            return []
        names = comparable(np.ascontiguousarray(self.rows["pack"]).view(np.uint8).reshape(-1, 32))
        starts = [0, *(np.flatnonzero(names[1:] != names[:-1]) + 1).tolist(), len(names)]
        return [(ObjectId(self.rows["pack"][start].tobytes()), slice(start, stop))
                for start, stop in pairwise(starts)]


def in_indexes(found: Survey) -> NDArray[np.bool_]:
    """By row, whether an index says the same: a layout alone is no more than a hint."""
    out = np.zeros(len(found.rows), np.bool_)
    known = _as_values(found.rows)
    for index in found.indexes:
        if len(index):
            for rows in _rows_of_index(index, found.codecs):
                out[np.searchsorted(known, _as_values(rows))] = True  # every row of an index is one of found.rows
    return out


def kind_of(error: ModelfsError) -> Kind:
    if isinstance(error, ObjectMissing | NotFound):
        return "missing"
    return "malformed" if isinstance(error, Malformed | Unsupported) and not isinstance(error, CorruptChunk) \
        else "corrupt"


def survey(repository: Repository, *, deadline_s: float, jobs: int) -> Survey:
    """Raises Unavailable, Forbidden."""
    found = Survey()
    try:
        found.catalog = repository.catalog(Deadline(deadline_s)).catalog
    except (IntegrityError, NotFound) as error:
        found.add(Fault(kind_of(error), keys.CATALOG, None, None, None, str(error)))
        return found
    _indexes(found, repository, found.catalog, deadline_s, jobs)
    collector = _Collector(found)
    for index in found.indexes:
        for rows in _rows_of_index(index, found.codecs):
            collector.add(rows)
    histories = in_parallel(jobs, lambda item: _versions(repository, found, item[0], item[1], deadline_s),
                            [*found.catalog.models.items(), *found.catalog.removed.items()])
    for both in in_parallel(jobs, lambda owner: _version(repository, found, owner, deadline_s),
                            chain.from_iterable(histories)):
        for rows in both:
            collector.add(rows)
    collector.finish()
    found.faults.sort(key=lambda fault: (fault.object or "", fault.model or "", fault.version or "", fault.path or ""))
    _unknown_codecs(found)
    return found


def affected(repository: Repository, found: Survey, bad: NDArray[np.intp], *, deadline_s: float,
             jobs: int) -> Iterator[tuple[Owner, str, int]]:
    """(version, path of a file of it, row) for the bad rows of found.rows: one row a version and path."""
    wanted = _as_values(found.rows[bad])

    def of(owner: Owner) -> list[tuple[Owner, str, int]]:
        try:
            manifest = repository.manifest(owner.manifest, Deadline(deadline_s))
            placing = placing_of(repository, manifest, found.indexes, Deadline(deadline_s))
        except IntegrityError:  # reported when it was walked
            return []
        rows = _rows_of_version(manifest, placing, found.codecs)
        mine = _as_values(rows)
        at = np.minimum(np.searchsorted(wanted, mine), len(wanted) - 1)
        hits = np.flatnonzero((wanted[at] == mine) & placing.known)
        files = np.searchsorted(manifest.first_rows, hits.astype(np.uint64), side="right") - 1
        out: dict[int, int] = {}
        for file, hit in zip(files.tolist(), hits.tolist(), strict=True):
            out.setdefault(file, int(bad[at[hit]]))
        return [(owner, manifest.file(file).path, row) for file, row in out.items()]

    if len(bad):
        for owned in in_parallel(jobs, of, found.owners):
            yield from owned


def rows_of(ids: NDArray[np.uint8], lengths: NDArray[np.uint32], places: PlaceTable, at: NDArray[np.int64],
            codecs: CodecNumbers) -> Rows:
    """One _ROW for each chunk: ids [n, 32], lengths [n], at [n] its row of places."""
    rows = np.zeros(len(ids), _ROW)
    rows["pack"] = np.ascontiguousarray(places.packs).view("V32").ravel()[places.pack[at]]
    rows["offset"], rows["stored"] = places.offset[at], places.stored[at]
    rows["codec"] = codecs.of(places.codecs)[places.codec[at]]
    rows["length"] = lengths
    rows["id"] = np.ascontiguousarray(ids).view("V32").ravel()
    base = places.base[at]
    based = base != NO_BASE
    rows["base_pack"][based] = np.ascontiguousarray(places.packs).view("V32").ravel()[places.pack[base[based]]]
    rows["base_offset"][based] = places.offset[base[based]]
    return rows


def _bases_of(lengths: NDArray[np.uint32], places: PlaceTable, at: NDArray[np.int64], codecs: CodecNumbers) -> Rows:
    """One _ROW for each base of the chunks, which is as long as they are."""
    base = places.base[at]
    based = np.flatnonzero(base != NO_BASE)
    ids = places.base_ids[np.searchsorted(places.based, at[based])]
    return rows_of(ids, lengths[based], places, base[based].astype(np.int64), codecs)


def _rows_of_index(index: Index, codecs: CodecNumbers) -> tuple[Rows, Rows]:
    at = np.arange(len(index))
    return rows_of(index.ids, index.lengths, index.places, at, codecs), _bases_of(index.lengths, index.places, at,
                                                                                  codecs)


def _bytes_of(rows: Rows) -> NDArray[np.uint8]:
    return rows.view(np.uint8).reshape(-1, _ROW.itemsize)


def _as_values(rows: Rows) -> NDArray[np.bytes_]:
    return comparable(_bytes_of(rows))


class _Collector:
    """Gathers rows and keeps each once, before they are many more than they need to be."""

    def __init__(self, found: Survey) -> None:
        self._found, self._parts, self._waiting = found, [found.rows], 0

    def add(self, rows: Rows) -> None:
        self._parts.append(rows)
        self._waiting += len(rows)
        if self._waiting > max(1 << 20, len(self._found.rows)):
            self.finish()

    def finish(self) -> None:
        rows = np.concatenate(self._parts, dtype=_ROW)  # left alone, numpy makes the integers little-endian
        order = np.unique(_as_values(rows), return_index=True)[1]
        self._found.rows = rows[order]
        self._parts, self._waiting = [self._found.rows], 0


def _indexes(found: Survey, repository: Repository, catalog: Catalog, deadline_s: float, jobs: int) -> None:
    def load(id: ObjectId) -> Index | IntegrityError:
        try:
            return repository.index(id, Deadline(deadline_s))
        except IntegrityError as error:
            return error

    for id, loaded in zip(catalog.indexes, in_parallel(jobs, load, catalog.indexes), strict=True):
        if isinstance(loaded, Index):
            found.indexes.append(loaded)
        else:
            found.bad_indexes.append(id)
            found.add(Fault(kind_of(loaded), keys.index(id), None, None, None, str(loaded)))


def _versions(repository: Repository, found: Survey, model: ModelName, digest: ObjectId,
              deadline_s: float) -> list[Owner]:
    try:
        rows = repository.history_at(digest, model, Deadline(deadline_s))
    except IntegrityError as error:
        found.add(Fault(kind_of(error), keys.history(digest), str(model), None, None, str(error)))
        return []
    versions = list(rows.versions)
    for part in rows.segments:
        try:
            versions += _segment(repository, rows, part, deadline_s)
        except IntegrityError as error:
            found.add(Fault(kind_of(error), keys.history(part.digest), str(model), None, None,
                            f"versions v{part.first} to v{part.last}: {error}"))
    numbers = {version.number for version in versions}
    for tag, number in rows.live_tags.items():
        if number not in numbers:
            found.add(Fault("missing", keys.history(digest), str(model), f"v{number}", None,
                            f"the tag {tag} names it, and it is not there"))
    return [Owner(model, version.name, version.manifest) for version in versions]


def _segment(repository: Repository, rows: History, part: SegmentRef, deadline_s: float) -> list[Version]:
    alone = History(rows.model, rows.next, removed=rows.removed, segments=(part,))
    return repository.versions(alone, Deadline(deadline_s))


def _version(repository: Repository, found: Survey, owner: Owner, deadline_s: float) -> list[Rows]:
    model, version = str(owner.model), owner.version
    found.owners.append(owner)
    try:
        manifest = repository.manifest(owner.manifest, Deadline(deadline_s))
    except IntegrityError as error:
        found.add(Fault(kind_of(error), keys.manifest(owner.manifest), model, version, None, str(error)))
        return []
    placing = placing_of(repository, manifest, found.indexes, Deadline(deadline_s))
    if placing.fault is not None:
        found.bad_layouts.append(owner)
        found.add(Fault(kind_of(placing.fault), keys.layout(owner.manifest), model, version, None, str(placing.fault)))
        lost = np.flatnonzero(~placing.known)
        files = np.searchsorted(manifest.first_rows, lost.astype(np.uint64), side="right") - 1
        for file in np.unique(files).tolist():
            found.add(Fault("missing", None, model, version, manifest.file(file).path,
                            f"{int((files == file).sum())} of its chunks are named by no layout and no index"))
    known = placing.known
    bases = _bases_of(manifest.chunk_lengths[known], placing.layout.places,
                      placing.layout.row_place[known].astype(np.int64), found.codecs)
    return [_rows_of_version(manifest, placing, found.codecs)[known], bases]


def _rows_of_version(manifest: Manifest, placing: Placing, codecs: CodecNumbers) -> Rows:
    layout = placing.layout
    return rows_of(manifest.chunk_ids, manifest.chunk_lengths, layout.places, layout.row_place.astype(np.int64), codecs)


def _unknown_codecs(found: Survey) -> None:
    for name in found.codecs.names():
        try:
            check_codec(name)
        except Unsupported as error:
            found.add(Fault("malformed", None, None, None, None, str(error)))

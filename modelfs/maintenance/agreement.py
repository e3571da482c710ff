"""Whether several stores hold the same repository, and mending one of them from another.

Rule: equal maps of models are equal content, so one request each is all it takes where nothing differs; histories are
read only of models that do. What a copy brings is put only once it hashed to its name. Of a pack that several hold, and
of which they say different things, the bytes themselves decide.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import TypeVar

import numpy as np

from modelfs.cache.system import page_buffer
from modelfs.errors import IntegrityError, ModelfsError
from modelfs.ids import DIGEST_SIZE, ModelName, ObjectId
from modelfs.maintenance.auditing import DIGEST_ROW, Packs, Question, names_of, row_of
from modelfs.maintenance.placing import comparable
from modelfs.maintenance.survey import MAX_FAULTS, Fault, Kind
from modelfs.repository import keys
from modelfs.repository.catalog import Catalog
from modelfs.repository.pack import MAX_OBJECT_BYTES
from modelfs.repository.repository import Repository
from modelfs.units import Deadline

T = TypeVar("T")
_NAMED = (keys.PACKS, keys.MANIFESTS, keys.HISTORIES, keys.INDEXES)


@dataclass(frozen=True, slots=True)
class _Model:
    """What one store's history says. manifests: number → manifest, without the removed, whose numbers stand apart."""

    manifests: Mapping[int, ObjectId]
    removed: frozenset[int]
    tags: Mapping[str, int]
    yanked: Mapping[int, str]


def differences(repositories: Sequence[Repository], *, deadline_s: float = 60.0) -> list[list[Fault]]:
    """For each, where it differs from the others: `missing` for what another has and it lacks, `diverged` where two say
    different things. A store that holds only some models is compared by those.

    Raises Unavailable, Forbidden.
    """
    first = repositories[0]
    if any(other.info.id != first.info.id for other in repositories):
        return [[] if one.info.id == first.info.id else
                [Fault("diverged", keys.INFO, None, None, None, f"another repository than {first.store.url}")]
                for one in repositories]
    catalogs = [state.catalog for state in
                _together([partial(one.catalog, Deadline(deadline_s)) for one in repositories])]
    faults: list[list[Fault]] = [[] for _ in repositories]
    for model in sorted({model for found in catalogs for model in (*found.models, *found.removed)}, key=str):
        holders = [number for number, found in enumerate(catalogs) if found.held is None or model in found.held]
        digests = {number: _digest(catalogs[number], model) for number in holders}
        if len(set(digests.values())) > 1:
            known = _together([partial(_read, repositories[number], model, digests[number], deadline_s)
                               for number in holders])
            for number, fault in _compare(model, dict(zip(holders, known, strict=True)), catalogs, repositories):
                faults[number].append(fault)
    return [found[:MAX_FAULTS] for found in faults]


def _digest(found: Catalog, model: ModelName) -> ObjectId | None:
    return found.models.get(model) or found.removed.get(model)


def _read(repository: Repository, model: ModelName, digest: ObjectId | None, deadline_s: float) -> _Model | None:
    """None where it cannot be read: that is a fault that `verify` finds by itself."""
    if digest is None:
        return _Model({}, frozenset(), {}, {})
    try:
        rows = repository.history_at(digest, model, Deadline(deadline_s))
        versions = repository.versions(rows, Deadline(deadline_s))
    except IntegrityError:
        return None
    return _Model({row.number: row.manifest for row in versions}, rows.removed_numbers, rows.live_tags,
                  rows.yanked)


def _compare(model: ModelName, known: Mapping[int, _Model | None], catalogs: Sequence[Catalog],
             repositories: Sequence[Repository]) -> Iterator[tuple[int, Fault]]:
    """(number of the store, fault)."""
    read = {number: one for number, one in known.items() if one is not None}

    def at(number: int) -> str:
        return f"{repositories[number].store.url} (serial {catalogs[number].serial})"

    for version in sorted({number for one in read.values() for number in one.manifests}):
        having = {number: one.manifests[version] for number, one in read.items() if version in one.manifests}
        first = min(having)
        for number, one in read.items():
            if version in one.removed:
                yield number, _fault("diverged", model, version, f"removed at {at(number)}, not at {at(first)}")
            elif number not in having:
                yield number, _fault("missing", model, version, f"not at {at(number)}; {at(first)} has it")
            elif having[number] != having[first]:
                yield number, _fault("diverged", model, version,
                                     f"manifest {having[number].hex()[:16]} at {at(number)}, "
                                     f"{having[first].hex()[:16]} at {at(first)}")
    for tag in sorted({tag for one in read.values() for tag in one.tags}):
        names = {number: one.tags.get(tag) for number, one in read.items()}
        first = min(number for number, version in names.items() if version is not None)
        for number, found in names.items():
            if found != names[first]:
                yield number, Fault("diverged", None, str(model), None, None,
                                    f"the tag {tag} is {_shown(found)} at {at(number)}, "
                                    f"{_shown(names[first])} at {at(first)}")
    for version in sorted({number for one in read.values() for number in one.yanked}):
        said = {number: one.yanked.get(version) for number, one in read.items() if version in one.manifests}
        first = min(said)
        for number, reason in said.items():
            if reason != said[first]:
                yield number, _fault("diverged", model, version, f"{_state(reason)} at {at(number)}, "
                                                                 f"{_state(said[first])} at {at(first)}")


def _state(reason: str | None) -> str:
    return "not withdrawn" if reason is None else f"withdrawn ({reason})"


def _fault(kind: Kind, model: ModelName, version: int, detail: str) -> Fault:
    return Fault(kind, None, str(model), f"v{version}", None, detail)


def _shown(version: int | None) -> str:
    return "not there" if version is None else f"v{version}"


def contradictions(repositories: Sequence[Repository], marks: Sequence[Packs], question: Question, *,
                   deadline_s: float = 60.0) -> list[list[Fault]]:
    """For each, the packs of which it says that they are right, and whose bytes have another mark than it says.

    marks: of each, by the question. Raises Unavailable, Forbidden.
    """
    faults: list[list[Fault]] = [[] for _ in repositories]
    for id in _disputed(marks)[:MAX_FAULTS]:
        key = keys.pack(id)
        data = next((data for one in repositories if (data := _right(one, key, deadline_s)) is not None), None)
        truth = b"" if data is None else row_of(id, data, question)
        for number, said in enumerate(marks):
            row = said.find(id)
            if row is not None and row["right"] and row.tobytes() != truth:
                faults[number].append(Fault("corrupt", key, None, None, None,
                                            "what is said to be its digest, by its server, is not that of its bytes"))
    return faults


def _disputed(marks: Sequence[Packs]) -> list[ObjectId]:
    """Packs that several call right, and with different marks."""
    rows = np.concatenate([np.zeros(0, DIGEST_ROW), *(said.rows[said.rows["right"]] for said in marks)])
    values = comparable(rows.view(np.uint8).reshape(-1, DIGEST_ROW.itemsize))
    names, counts = np.unique(names_of(rows[np.unique(values, return_index=True)[1]]), return_counts=True)
    return [ObjectId(name.ljust(DIGEST_SIZE, b"\0")) for name in names[counts > 1].tolist()]


def mend(repository: Repository, faults: Sequence[Fault], others: Sequence[Repository], *,
         deadline_s: float = 60.0, jobs: int = 4) -> tuple[str, ...]:
    """Put the objects that are missing or corrupt, and named by their own digest, from whichever other store has them
    right; the keys of those that were put. Raises Forbidden where the store only reads, NoSpace, Unavailable."""
    wanted = dict.fromkeys(fault.object for fault in faults
                           if fault.object is not None and fault.object.startswith(_NAMED))

    def bring(key: str) -> str | None:
        data = next((data for other in others if (data := _right(other, key, deadline_s)) is not None), None)
        if data is None:
            return None
        repository.store.put(key, data, Deadline(deadline_s).patient())
        return key

    with ThreadPoolExecutor(jobs) as pool:
        return tuple(key for key in pool.map(bring, wanted) if key is not None)


def _right(other: Repository, key: str, deadline_s: float) -> memoryview | None:
    """The object, if it is there and hashes to its name."""
    try:
        size = other.store.stat(key, Deadline(deadline_s)).size
        if not size or (key.startswith(keys.PACKS) and size > MAX_OBJECT_BYTES):
            return None
        data = memoryview(page_buffer(size))
        with other.store.open_range(key, 0, size, Deadline(deadline_s).patient()) as stream:
            stream.readinto(data)
    except ModelfsError:
        return None
    return data if ObjectId.of(data).hex() == key.rpartition("/")[2] else None


def _together(calls: Sequence[Callable[[], T]]) -> list[T]:
    """Each call's result, in order."""
    with ThreadPoolExecutor(max(len(calls), 1)) as pool:
        return [future.result() for future in [pool.submit(call) for call in calls]]

"""A store whose one object that moves, the catalog, moves in etcd: writers on several hosts, over a store that need
not know conditions. Everything else passes through.

Rule: a change is made once a majority of etcd has it, and by nothing else; only then it is published as the store's own
object, and whoever finds that one behind publishes it. Without a majority nothing changes, and the store's own is read.
"""

from __future__ import annotations

import json
import secrets
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass

from modelfs.errors import Conflict, DeadlinePassed, Forbidden, ModelfsError, ObjectMissing, SwapLost, Unavailable
from modelfs.logs import log_event, logger_for
from modelfs.stores import etcd_record
from modelfs.stores.etcd_client import EtcdClient
from modelfs.stores.etcd_record import Record, digest_of
from modelfs.stores.retrying import RetryingStore
from modelfs.stores.store import Buffer, Fetched, ObjectInfo, ObjectStore, RangeStream, as_content
from modelfs.units import Deadline, KiB

_LOG = logger_for(__name__)
_READ_S, _AGAIN_S = 2.0, 5.0
"""How long a reader waits for etcd before the store's own catalog has to do, and then asks no more."""
_LEASE_S = 3
_PUBLISH_S, _LEAST_PUBLISH_S = 15.0, 5.0  # longer than the turn of one who was killed lasts
_FIRST_PAUSE_S, _LONGEST_PAUSE_S = 0.05, 0.5
_MARK_TRIES = 20
_MAX_MARK_BYTES = 4 * KiB


@dataclass(frozen=True, slots=True)
class CatalogKeys:
    """What the store's objects are called. catalog: the one that moves. mark: says which store etcd's catalog is of, so
    that two stores of one repository (a replica, a copy) are never taken for each other."""

    catalog: str
    mark: str


@dataclass(frozen=True, slots=True)
class _Kept:
    """What etcd holds. revision: of its last change."""

    record: Record
    revision: int


@dataclass(frozen=True, slots=True)
class _Copy:
    """The store's own catalog. digest: None where there is none. name: the store's etag. content: None where it was
    not sent because its digest was known."""

    digest: str | None
    name: str | None
    content: bytes | memoryview | None


class ConsensusStore:
    """An ObjectStore around another. An etag of the catalog is its BLAKE3, hex, wherever it was read.

    repository: asked once for the repository's id, under which etcd keeps it. serial: of a catalog; raises where it is
    none. limit: bytes of a catalog.
    """

    def __init__(self, store: ObjectStore, etcd: EtcdClient, keys: CatalogKeys, *, limit: int,
                 repository: Callable[[ObjectStore, Deadline], str], serial: Callable[[bytes], int]) -> None:
        self.store, self.url = store, store.url
        self._etcd, self._key, self._mark_key, self._limit = etcd, keys.catalog, keys.mark, limit
        self._repository, self._serial = repository, serial
        self._lock = threading.Lock()
        self._prefix: str | None = None  # guarded by _lock, as all below
        self._known: _Copy | None = None
        self._ours: str | None = None  # the mark that was found to be the store's
        self._made: str | None = None  # the mark that was put by us
        self._may_publish = True
        self._down_until = 0.0

    def get(self, key: str, deadline: Deadline, *, limit: int, etag: str | None = None,
            fresh: bool = False) -> Fetched | None:
        if key != self._key:
            return self.store.get(key, deadline, limit=limit, etag=etag, fresh=fresh)
        kept = self._for_readers(deadline)
        if kept is None:
            return self._plain(deadline, limit, etag)
        if kept.record.digest is None:
            raise ObjectMissing("an object is missing", where=self._where)
        if kept.record.digest == etag:
            return None
        return Fetched(as_content(memoryview(kept.record.content(limit))), kept.record.digest)

    def open_range(self, key: str, offset: int, length: int, deadline: Deadline) -> RangeStream:
        return self.store.open_range(key, offset, length, deadline)

    def stat(self, key: str, deadline: Deadline) -> ObjectInfo:
        kept = self._for_readers(deadline) if key == self._key else None
        if kept is None or kept.record.digest is None:
            return self.store.stat(key, deadline)
        return ObjectInfo(key, kept.record.size)

    def put(self, key: str, data: Buffer, deadline: Deadline, *, only_if_absent: bool = False) -> bool:
        if key != self._key:
            return self.store.put(key, data, deadline, only_if_absent=only_if_absent)
        while True:
            expected = None if only_if_absent else self._for_writers(deadline).record.digest
            try:
                self.swap(key, expected, bytes(data), deadline)
            except SwapLost:
                if only_if_absent:
                    return False
            else:
                return True

    def swap(self, key: str, expected: str | None, new: bytes, deadline: Deadline) -> str | None:
        """Raises DeadlinePassed, too, where etcd took the change and never said what became of it."""
        if key != self._key:
            return self.store.swap(key, expected, new, deadline)
        kept = self._for_writers(deadline)
        if kept.record.digest != expected:
            raise self._lost()
        change = kept.record.next(new)
        self._commit(kept.revision, change, deadline)
        self._publish(deadline if deadline.remaining() > _LEAST_PUBLISH_S else Deadline(_LEAST_PUBLISH_S), wait=True)
        return change.digest

    def list(self, prefix: str, deadline: Deadline) -> Iterator[ObjectInfo]:
        return (info for info in self.store.list(prefix, deadline) if info.key != self._mark_key)

    def delete(self, key: str, deadline: Deadline) -> None:
        if key == self._key and (kept := self._read(deadline)) is not None:
            self._commit(kept.revision, Record.first(kept.record.store, None), deadline)
            self._note_published(None, deadline)
        self.store.delete(key, deadline)

    @property
    def _where(self) -> str:
        return f"{self.url}/{self._key}"

    def _name(self, part: str, deadline: Deadline) -> str:
        """A key of ours in etcd."""
        with self._lock:
            prefix = self._prefix
        if prefix is None:
            prefix = f"modelfs/{self._repository(self.store, deadline)}"
            with self._lock:
                self._prefix = prefix
        return f"{prefix}/{part}"

    def _read(self, deadline: Deadline) -> _Kept | None:
        found = self._etcd.read(self._name("catalog", deadline), deadline)
        return None if found is None else _Kept(etcd_record.parse(found.data), found.revision)

    def _for_readers(self, deadline: Deadline) -> _Kept | None:
        """What etcd holds, the store's own brought up to it where that is behind. None where the store's own has to do:
        etcd does not answer soon, or does not keep this store's."""
        self._name("catalog", deadline)
        with self._lock:
            if time.monotonic() < self._down_until:
                return None
        try:
            kept = self._read(deadline.sooner(_READ_S))
        except Unavailable as error:
            with self._lock:
                self._down_until = time.monotonic() + _AGAIN_S
            log_event(_LOG, "warning", "etcd.unreachable", key=self.url, store=self.url, why=str(error))
            return None
        if kept is None:
            return None
        if not self._is_ours(kept.record, deadline):
            log_event(_LOG, "warning", "etcd.other_store", key=self.url, store=self.url, etcd=self._etcd.where)
            return None
        with suppress(ModelfsError):  # what is wrong with the store is for those to say who read from it
            if self._may_publish and self._copy(kept.record.digest, deadline.sooner(_READ_S)).digest \
                    != kept.record.digest:
                self._publish(deadline.sooner(_LEAST_PUBLISH_S), wait=False)
                kept = self._read(deadline) or kept
        return kept

    def _for_writers(self, deadline: Deadline) -> _Kept:
        """What etcd holds, at the first use made of what the store has. Raises Conflict of another store's."""
        for _ in range(_MARK_TRIES):
            kept = self._read(deadline)
            with self._lock:
                self._down_until = 0.0
            if kept is None:
                self._begin(deadline)
                continue
            if self._is_ours(kept.record, deadline):
                return kept
            deadline.check("a store did not answer in time", self._where)
            time.sleep(min(_FIRST_PAUSE_S, deadline.remaining()))  # another may be about to begin
        raise Conflict("etcd keeps the catalog of another store of this repository", where=self._where,
                       why=f"its {self._mark_key} is not the one that etcd at {self._etcd.where} names",
                       advice=f"Take etcd out of this remote, or delete the key {self._name('catalog', deadline)} in "
                              "etcd, which then begins anew with this store's catalog.")

    def _begin(self, deadline: Deadline) -> None:
        """The first use: the store says whose it is, then etcd takes its catalog, unless somebody came first."""
        copy = self._copy(None, deadline)
        mark = self._mark(deadline)
        if mark is None:
            mark = secrets.token_hex(16)
            with self._lock:
                self._made = mark
            self._put_mark(mark, deadline)
        record = Record.first(mark, copy.content)
        if self._etcd.put_if(self._name("catalog", deadline), 0, record.serialise(), deadline)[0]:
            self._note_published(record.digest, deadline)

    def _is_ours(self, record: Record, deadline: Deadline) -> bool:
        """Whether etcd's catalog is this store's. Of two that begin at once one puts its mark over the other's, and
        finds out here that it came second."""
        with self._lock:
            ours, made = self._ours, self._made
        if ours == record.store:
            return True
        mark = self._mark(deadline)
        if mark != record.store and mark is not None and mark == made:
            self._put_mark(record.store, deadline)
            mark = record.store
        with self._lock:
            self._ours = mark
        return mark == record.store

    def _mark(self, deadline: Deadline) -> str | None:
        try:
            found = self.store.get(self._mark_key, deadline, limit=_MAX_MARK_BYTES, fresh=True)
            return str(json.loads(bytes(found.content))["store"]) if found else None
        except (ObjectMissing, ValueError, KeyError, TypeError):
            return None

    def _put_mark(self, mark: str, deadline: Deadline) -> None:
        try:
            self.store.put(self._mark_key, json.dumps({"store": mark}).encode(), deadline)
        except (Forbidden, ObjectMissing) as error:  # a server that knows only a repository's keys has none of this one
            raise Forbidden("a store refuses", where=error.where, why=error.why,
                            advice=f"{error.advice} A repository behind `modelfs serve` needs no etcd.") from error

    def _commit(self, revision: int, change: Record, deadline: Deadline) -> None:
        """Returns once the change is known to be made. Raises SwapLost once it is known that it never will be."""
        data, name = change.serialise(), self._name("catalog", deadline)
        pause_s = _FIRST_PAUSE_S
        while True:
            try:
                done, found = self._etcd.put_if(name, revision, data, deadline)
            except Unavailable as error:
                # It may be done, or on its way: to ask for the same again can do it only once.
                if deadline.remaining() <= pause_s:
                    raise DeadlinePassed(
                        "etcd does not say whether the catalog was changed", where=self._etcd.where, why=error.why,
                        advice="Try again: what was done is not done twice.") from error
                time.sleep(pause_s)
                pause_s = min(2 * pause_s, _LONGEST_PAUSE_S)
                continue
            if done or (found is not None and etcd_record.parse(found.data).is_or_follows(change)):
                return
            raise self._lost()

    def _publish(self, deadline: Deadline, *, wait: bool) -> None:
        """Make the store's own catalog what etcd holds, in turn with others. Whoever comes next does what fails here:
        the change is made, and its maker must not be told otherwise.

        wait: for one's turn, or until the one whose turn it is has published ours, too.
        """
        try:
            deadline = deadline.sooner(_PUBLISH_S)
            pause_s = _FIRST_PAUSE_S
            while (lease := self._turn(deadline)) is None:
                if not wait:
                    return
                time.sleep(min(pause_s, deadline.remaining()))
                pause_s = min(2 * pause_s, _LONGEST_PAUSE_S)
                kept = self._read(deadline)
                if kept is None or self._copy(kept.record.digest, deadline).digest == kept.record.digest:
                    return
            try:
                self._level(deadline)
            finally:
                with suppress(ModelfsError):
                    self._etcd.revoke(lease, deadline)
        except ModelfsError as error:
            if isinstance(error, Forbidden):
                with self._lock:
                    self._may_publish = False  # a reader without the right to write
            log_event(_LOG, "warning", "catalog.not_published", key=self.url, store=self.url, why=str(error))

    def _turn(self, deadline: Deadline) -> str | None:
        """A lease on being the one who publishes; None while another has it."""
        name = self._name("publisher", deadline)
        if self._etcd.read(name, deadline) is not None:
            return None
        lease = self._etcd.grant(_LEASE_S, deadline)
        if self._etcd.put_if(name, 0, b"", deadline, lease=lease)[0]:
            return lease
        with suppress(ModelfsError):
            self._etcd.revoke(lease, deadline)
        return None

    def _level(self, deadline: Deadline) -> None:
        """Returns once both were seen equal, the store's own after etcd's: so one who was stopped in between, and put
        an old one over a newer, mends that."""
        moved = False
        while (kept := self._read(deadline)) is not None:
            deadline.check("the catalog was not published in time", self._where)
            record = kept.record
            copy = self._copy(record.digest, deadline)
            if copy.digest == record.digest:
                if moved:
                    self._note_published(record.digest, deadline)
                return
            moved = True
            if self._came_past(copy, record, deadline):
                self._take_over(kept, copy, deadline)
            elif record.digest is not None:
                with suppress(SwapLost):
                    self._replace(copy, record, deadline)
            else:
                return

    def _replace(self, copy: _Copy, record: Record, deadline: Deadline) -> None:
        """By the store's own condition where it has one: it keeps an old one from going over a newer."""
        content, store = record.content(self._limit), RetryingStore(self.store)
        if copy.digest is not None and copy.name is None:
            store.put(self._key, content, deadline)
            return
        name = store.swap(self._key, copy.name, content, deadline)
        with self._lock:
            self._known = _Copy(record.digest, name, None)

    def _came_past(self, copy: _Copy, record: Record, deadline: Deadline) -> bool:
        """Whether somebody who does not know of etcd changed the store's own after etcd's was published."""
        if copy.content is None or copy.digest is None or record.replaced(copy.digest):
            return False
        published = self._etcd.read(self._name("published", deadline), deadline)
        if published is None or published.data != _published(record.digest):
            return False
        try:
            return record.digest is None or (
                self._serial(bytes(copy.content)) >= self._serial(record.content(self._limit)))
        except ModelfsError:
            return False

    def _take_over(self, kept: _Kept, copy: _Copy, deadline: Deadline) -> None:
        assert copy.content is not None
        change = kept.record.next(copy.content)
        if self._etcd.put_if(self._name("catalog", deadline), kept.revision, change.serialise(), deadline)[0]:
            log_event(_LOG, "warning", "catalog.past_etcd", store=self.url)

    def _note_published(self, digest: str | None, deadline: Deadline) -> None:
        name = self._name("published", deadline)
        before = self._etcd.read(name, deadline)
        self._etcd.put_if(name, before.revision if before else 0, _published(digest), deadline)

    def _copy(self, known: str | None, deadline: Deadline, limit: int | None = None) -> _Copy:
        """The store's own catalog; known: a digest of which the content is not needed."""
        with self._lock:
            seen = self._known
        name = seen.name if seen and known is not None and seen.digest == known else None
        try:
            found = self.store.get(self._key, deadline, limit=self._limit if limit is None else limit, etag=name,
                                   fresh=True)
        except ObjectMissing:
            return _Copy(None, None, None)
        if found is None:
            return _Copy(known, name, None)
        copy = _Copy(digest_of(found.content), found.etag, found.content)
        with self._lock:
            self._known = _Copy(copy.digest, copy.name, None)
        return copy

    def _plain(self, deadline: Deadline, limit: int, etag: str | None) -> Fetched | None:
        copy = self._copy(etag, deadline, limit)
        if copy.digest is None:
            raise ObjectMissing("an object is missing", where=self._where)
        if copy.content is None or copy.digest == etag:
            return None
        return Fetched(copy.content, copy.digest)

    def _lost(self) -> SwapLost:
        return SwapLost("an object was changed meanwhile", where=self._where, why="it is not what was read before",
                        advice="Read it again and retry.")


def _published(digest: str | None) -> bytes:
    return (digest or "-").encode()

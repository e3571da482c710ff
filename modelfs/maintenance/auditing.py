"""What a store's own server says of the packs that it holds: their sizes, or what it just made of all of their bytes.

Rule: a digest of bytes (a mark) is keyed with a nonce that nobody knew before, so no answer can be kept from an earlier
audit. A server that is asked alone is taken at its word; marks prove something where two stores give the same
(agreement.py).
"""

from __future__ import annotations

import re
import secrets
import struct
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
from blake3 import blake3
from numpy.typing import NDArray

from modelfs.errors import DeadlinePassed, Forbidden, IntegrityError, Malformed, ModelfsError, Unavailable
from modelfs.ids import DIGEST_SIZE
from modelfs.maintenance.placing import comparable
from modelfs.repository.beside import beside
from modelfs.stores.opening import is_http
from modelfs.stores.store import Buffer, ObjectStore, RangeStream
from modelfs.units import Deadline

What = Literal["sizes", "digests"]

_KEY = re.compile(r"audit/(sizes|digests)/([0-9a-f]{64})/([01][0-9a-f]{16})/([0-9a-f]{64})")
_FIRST = bytes(DIGEST_SIZE)
_ALL = 1 << 64

# An answer: _HEAD (with the nonce), then frames of rows, then one with _LAST for its count, and the rows' keyed digest.
# Binary: a repository of 100 TB has six million packs, whose rows numpy takes as they are.
_HEAD = struct.Struct("<8s32s")
_MAGIC = b"MFSAUDT1"
_FRAME = struct.Struct("<QI")  # bytes hashed until now, rows that follow
_LAST = 0xFFFF_FFFF
SIZE_ROW = np.dtype([("name", "V32"), ("size", "<u8")])
DIGEST_ROW = np.dtype([("name", "V32"), ("size", "<u8"), ("mark", "V32"), ("right", "?")])
"""right: whether the bytes hash to the pack's name."""
Rows = NDArray[np.void]

MOST_ROWS = 1 << 12  # of a frame
_MOST_PACKS = 1 << 26  # 1 PiB of them: whose answer goes on for longer must not fill our memory
_ENDLESS = 1 << 62  # the length of an answer is not known when it begins
_VAIN_TRIES = 3  # after which a server that breaks off before it said anything new is let be
_PROBE_S = 10.0  # some proxies say 502 or 504 to what they do not know: that is not to be tried for a whole deadline
_LOOK_S = 0.2


@dataclass(frozen=True, slots=True)
class Question:
    """below: of 2**64, what part of the packs is meant; which they are, the nonce says. after: beyond this name."""

    what: What
    nonce: bytes
    below: int = _ALL
    after: bytes = _FIRST

    @classmethod
    def fresh(cls, what: What, part: float = 1.0) -> Question:
        return cls(what, secrets.token_bytes(DIGEST_SIZE), min(int(part * _ALL), _ALL))

    @classmethod
    def parse(cls, key: str) -> Question | None:
        """None of what asks nothing: objects have other keys."""
        found = _KEY.fullmatch(key)
        if found is None:
            return None
        what: What = "sizes" if found[1] == "sizes" else "digests"
        return cls(what, bytes.fromhex(found[2]), int(found[3], 16), bytes.fromhex(found[4]))

    @property
    def key(self) -> str:
        """A key, so that it goes through whatever stands before a store."""
        return f"audit/{self.what}/{self.nonce.hex()}/{self.below:017x}/{self.after.hex()}"

    def chooses(self, name: bytes) -> bool:
        if self.below >= _ALL:
            return True
        return int.from_bytes(blake3(name, key=self.nonce).digest(length=8), "big") < self.below

    @property
    def row_type(self) -> np.dtype[np.void]:
        return SIZE_ROW if self.what == "sizes" else DIGEST_ROW

    def root(self, rows: Rows) -> bytes:
        return blake3(rows.view(np.uint8).data, key=self.nonce).digest()


class Marking:
    """The mark of one pack's bytes, which come in pieces."""

    def __init__(self, nonce: bytes) -> None:
        self._plain, self._keyed = blake3(), blake3(key=nonce)

    def update(self, piece: Buffer) -> None:
        self._plain.update(piece)
        self._keyed.update(piece)

    def row(self, name: bytes, size: int) -> tuple[bool, bytes]:
        """Whether the bytes hash to name, and the row of it."""
        right = self._plain.digest() == name
        return right, digest_row(name, size, self._keyed.digest(), right)


def row_of(name: bytes, data: Buffer, question: Question) -> bytes:
    """Of a pack that is in memory."""
    marking = Marking(question.nonce)
    marking.update(data)
    return marking.row(name, len(data))[1]


def digest_row(name: bytes, size: int, mark: bytes, right: bool) -> bytes:
    return np.array((name, size, mark, right), DIGEST_ROW).tobytes()


def size_row(name: bytes, size: int) -> bytes:
    return np.array((name, size), SIZE_ROW).tobytes()


class Writer:
    """The bytes of an answer."""

    def __init__(self, question: Question) -> None:
        self._nonce, self._width = question.nonce, question.row_type.itemsize
        self._hasher = blake3(key=question.nonce)

    def head(self) -> bytes:
        return _HEAD.pack(_MAGIC, self._nonce)

    def frame(self, hashed_bytes: int, rows: bytes) -> bytes:
        """Without rows it only tells that work goes on."""
        self._hasher.update(rows)
        return _FRAME.pack(hashed_bytes, len(rows) // self._width) + rows

    def end(self, hashed_bytes: int) -> bytes:
        return _FRAME.pack(hashed_bytes, _LAST) + self._hasher.digest()


class Packs:
    """Rows by name, each once."""

    def __init__(self, rows: Rows) -> None:
        self.rows = rows[np.unique(names_of(rows), return_index=True)[1]]
        self._names = names_of(self.rows)

    def __len__(self) -> int:
        return len(self.rows)

    def find(self, name: bytes) -> np.void | None:
        at = int(np.searchsorted(self._names, np.bytes_(name)))
        return self.rows[at] if at < len(self.rows) and self.rows["name"][at].tobytes() == name else None


def names_of(rows: Rows) -> NDArray[np.bytes_]:
    return comparable(np.ascontiguousarray(rows["name"]).view(np.uint8).reshape(-1, DIGEST_SIZE))


class Word:
    """What the server of one store says. sizes: of all packs that it holds. trouble: why it did not say all that it
    was asked for, once `digests` returned."""

    def __init__(self, sizes: Packs, digests: _Listening | None) -> None:
        self.sizes, self._digests = sizes, digests

    def digests(self, hashed: Callable[[int], None]) -> Packs:
        """Waits for all of them; whatever is not among them is for the caller to read. hashed: told, now and then, how
        many bytes the server hashed since it was told last."""
        return self._digests.wait(hashed) if self._digests else Packs(np.zeros(0, DIGEST_ROW))

    @property
    def trouble(self) -> ModelfsError | None:
        return self._digests.trouble if self._digests else None


def consult(store: ObjectStore, question: Question | None, *, deadline_s: float = 60.0) -> Word | None:
    """None where no server of ours answers. question: what of its digests is asked for, beside what the caller does.

    deadline_s: between two signs of life.
    """
    if not is_http(store.url):
        return None
    sizes = _Listening(store, Question.fresh("sizes"), min(deadline_s, _PROBE_S))
    told = sizes.wait(lambda hashed: None)
    if sizes.trouble is not None:
        return None
    return Word(told, _Listening(store, question, deadline_s) if question else None)


class _Listening:
    """One answer, as it comes, in a thread of its own; broken off, it is asked for anew from where it was."""

    def __init__(self, store: ObjectStore, question: Question, deadline_s: float) -> None:
        self._store, self._question, self._deadline_s = store, question, deadline_s
        self._parts: list[Rows] = [np.zeros(0, question.row_type)]
        self._said = self._hashed = 0  # rows and bytes; written by the thread alone
        self._done = threading.Event()
        self.trouble: ModelfsError | None = None
        self._answer = beside(self._listen)

    def wait(self, hashed: Callable[[int], None]) -> Packs:
        told, over = 0, False
        while not over:
            over = self._done.wait(_LOOK_S)
            hashed(self._hashed - told)
            told = self._hashed
        self._answer()
        return Packs(np.concatenate(self._parts))

    def _listen(self) -> None:
        vain = 0
        try:
            while vain < _VAIN_TRIES:
                said, before = self._said, self._hashed
                try:
                    for hashed, rows in self._frames():
                        self._hashed = before + hashed
                        if len(rows):
                            self._take(rows)
                    self.trouble = None
                    return
                except (DeadlinePassed, IntegrityError, Forbidden) as error:
                    self.trouble = error
                    return
                except Unavailable as error:
                    self.trouble = error
                    vain = 0 if self._said > said else vain + 1
        finally:
            self._done.set()

    def _take(self, rows: Rows) -> None:
        names = names_of(rows)
        if names[0].ljust(DIGEST_SIZE, b"\0") <= self._question.after or (names[1:] <= names[:-1]).any():
            raise self._wrong("its packs are in no order")
        self._parts.append(rows)
        self._said += len(rows)
        if self._said > _MOST_PACKS:
            raise self._wrong("its packs have no end")
        self._question = replace(self._question, after=rows["name"][-1].tobytes())

    def _frames(self) -> Iterator[tuple[int, Rows]]:
        """(bytes hashed until now, rows). Raises Unavailable where it breaks off, IntegrityError, Forbidden."""
        question, deadline = self._question, Deadline(self._deadline_s).patient()
        with self._store.open_range(question.key, 0, _ENDLESS, deadline) as stream:
            if _HEAD.unpack(_exactly(stream, _HEAD.size)) != (_MAGIC, question.nonce):
                raise self._wrong("what answers is no audit")
            hasher = blake3(key=question.nonce)
            while True:
                hashed, count = _FRAME.unpack(_exactly(stream, _FRAME.size))
                deadline.renewed()
                if count == _LAST:
                    break
                if count > MOST_ROWS:
                    raise self._wrong(f"{count} rows at once")
                rows = np.zeros(count, question.row_type)
                if count:
                    stream.readinto(rows.view(np.uint8).data)
                    hasher.update(rows.view(np.uint8).data)
                yield hashed, rows
            if _exactly(stream, DIGEST_SIZE) != hasher.digest():
                raise self._wrong("it was changed on its way")

    def _wrong(self, why: str) -> Malformed:
        return Malformed("a server's audit cannot be used", where=self._store.url, why=why)


def _exactly(stream: RangeStream, size: int) -> bytes:
    out = bytearray(size)
    stream.readinto(memoryview(out))
    return bytes(out)

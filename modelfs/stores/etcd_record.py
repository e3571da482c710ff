"""What etcd holds for one catalog: its bytes, whose store it belongs to, and which catalogs came before it.

Rule: a record is made anew for every change and has a number of its own, so that who put one whose answer was lost
finds out whether it was put, also after others have put theirs.
"""

from __future__ import annotations

import json
import secrets
from dataclasses import dataclass

import zstandard
from blake3 import blake3

from modelfs.errors import Malformed, Unsupported

_FORMAT = 1
_KEPT = 128
"""Changes that are remembered: more than happen while one writer waits for an answer, or for its turn to publish."""
_SHORT = 16


def digest_of(content: bytes | memoryview) -> str:
    return blake3(content).hexdigest()


@dataclass(frozen=True, slots=True)
class Record:
    """store: which store's catalog it is. digest: BLAKE3 of the catalog, hex; None where there is none (yet). size: its
    bytes. number: of this change, random. before: the changes before it, newest first, digest and number shortened.
    body: the catalog, compressed."""

    store: str
    digest: str | None
    size: int
    number: str
    before: tuple[str, ...]
    body: bytes

    @classmethod
    def first(cls, store: str, content: bytes | memoryview | None) -> Record:
        return _made(store, content, ())

    def next(self, content: bytes | memoryview) -> Record:
        """The record of the change after this one."""
        return _made(self.store, content, (self._short, *self.before)[:_KEPT])

    @property
    def _short(self) -> str:
        return f"{(self.digest or '')[:_SHORT]:-<{_SHORT}}{self.number}"

    def is_or_follows(self, change: Record) -> bool:
        """Whether that change was made."""
        return change.number == self.number or any(each[_SHORT:] == change.number for each in self.before)

    def replaced(self, digest: str) -> bool:
        """Whether the catalog of that digest is one before this one."""
        return any(each[:_SHORT] == digest[:_SHORT] for each in self.before)

    def content(self, limit: int) -> bytes:
        """Raises Malformed where it has more than limit bytes, or is damaged."""
        if self.size > limit:
            raise Malformed("an object is too large", where="the catalog in etcd",
                            why=f"{self.size} bytes where at most {limit} are expected")
        try:
            if zstandard.frame_content_size(self.body) != self.size:
                raise Malformed("the catalog in etcd is damaged", why="its size differs")
            found = zstandard.ZstdDecompressor().decompress(self.body)
        except zstandard.ZstdError as error:
            raise Malformed("the catalog in etcd is damaged", why=str(error)) from error
        if digest_of(found) != self.digest:
            raise Malformed("the catalog in etcd is damaged", why="its hash differs")
        return found

    def serialise(self) -> bytes:
        head = {"format": _FORMAT, "store": self.store, "digest": self.digest, "size": self.size,
                "number": self.number, "before": self.before}
        return json.dumps(head, separators=(",", ":")).encode() + b"\n" + self.body


def parse(data: bytes) -> Record:
    """Raises Malformed, Unsupported."""
    line, _, body = data.partition(b"\n")
    try:
        head = json.loads(line)
        if head["format"] != _FORMAT:
            raise Unsupported("the catalog in etcd", why=f"it is of format {head['format']!r:.20}",
                              advice="Use a newer modelfs.")
        digest = None if head["digest"] is None else str(head["digest"])
        return Record(str(head["store"]), digest, int(head["size"]), str(head["number"]),
                      tuple(map(str, head["before"])), body)
    except (KeyError, TypeError, ValueError) as error:
        raise Malformed("the catalog in etcd is damaged", why=f"no record of modelfs ({type(error).__name__})"
                        ) from error


def _made(store: str, content: bytes | memoryview | None, before: tuple[str, ...]) -> Record:
    if content is None:
        return Record(store, None, 0, secrets.token_hex(8), before, b"")
    return Record(store, digest_of(content), len(content), secrets.token_hex(8), before,
                  zstandard.ZstdCompressor(level=3).compress(content))

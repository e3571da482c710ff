"""A model's history: its versions, its tags, and what was removed. Immutable; every change makes a new one.

Rule: a version's number is never given twice, also after the whole model was removed. The newest rows stand
in the history itself, older ones in sealed segments of SEGMENT rows, so that a push rewrites little.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from itertools import pairwise
from typing import Any

from modelfs.errors import BadInput, Malformed
from modelfs.ids import Digest, ModelName, ObjectId, check_tag
from modelfs.repository.records import Record, canonical

SEGMENT = 256
MAX_HISTORY_BYTES = 64 << 20


@dataclass(frozen=True, slots=True)
class Version:
    """One row. content: digest of what makes a version (manifest.content_digest). stored_bytes: when pushed."""

    number: int
    manifest: ObjectId
    content: Digest
    created: str
    message: str | None
    parent: int | None
    metadata: Mapping[str, str]
    files: int
    chunks: int
    decoded_bytes: int
    stored_bytes: int

    @property
    def name(self) -> str:
        return f"v{self.number}"

    def fields(self) -> dict[str, Any]:
        return {"version": self.number, "manifest": self.manifest.hex(), "content": self.content.hex(),
                "created": self.created, "message": self.message, "parent": self.parent,
                "metadata": dict(self.metadata), "files": self.files, "chunks": self.chunks,
                "decoded_bytes": self.decoded_bytes, "stored_bytes": self.stored_bytes}

    @classmethod
    def of(cls, record: Record) -> Version:
        return cls(record.integer("version", 1), record.object_id("manifest"),
                   Digest(record.object_id("content")), record.text("created"), record.optional_text("message"),
                   record.optional_integer("parent", 1), record.texts("metadata"), record.integer("files"),
                   record.integer("chunks"), record.integer("decoded_bytes"), record.integer("stored_bytes"))


@dataclass(frozen=True, slots=True)
class Tag:
    """version: a number, or None once the tag was removed. moved: when (RFC 3339)."""

    version: int | None
    moved: str


@dataclass(frozen=True, slots=True)
class Removed:
    """A tombstone."""

    number: int
    manifest: ObjectId
    removed: str


@dataclass(frozen=True, slots=True)
class Yank:
    """A version was withdrawn: it stays, for who has reasons to read it. reason: None once that was taken back.
    moved: when (RFC 3339)."""

    reason: str | None
    moved: str


@dataclass(frozen=True, slots=True)
class SegmentRef:
    """A sealed segment: versions first..last (some may be missing from it: removed before it was sealed)."""

    first: int
    last: int
    digest: ObjectId


@dataclass(frozen=True, slots=True)
class History:
    """versions: the newest rows, oldest first. next: the number that the next version gets."""

    model: ModelName
    next: int = 1
    versions: tuple[Version, ...] = ()
    tags: Mapping[str, Tag] = field(default_factory=dict)
    removed: tuple[Removed, ...] = ()
    segments: tuple[SegmentRef, ...] = ()
    yanks: Mapping[int, Yank] = field(default_factory=dict)
    others: Mapping[str, Any] = field(default_factory=dict)

    @property
    def live_tags(self) -> dict[str, int]:
        return {name: tag.version for name, tag in sorted(self.tags.items()) if tag.version is not None}

    @property
    def removed_numbers(self) -> frozenset[int]:
        return frozenset(row.number for row in self.removed)

    @property
    def yanked(self) -> dict[int, str]:
        """The reason by number, of versions that are withdrawn now."""
        gone = self.removed_numbers
        return {number: yank.reason for number, yank in self.yanks.items()
                if yank.reason is not None and number not in gone}

    def with_version(self, row: Version) -> History:
        """row.number must be self.next."""
        return replace(self, versions=(*self.versions, row), next=row.number + 1)

    def with_tag(self, tag: str, version: int | None, moved: str) -> History:
        return replace(self, tags={**self.tags, tag: Tag(version, moved)})

    def with_yank(self, number: int, reason: str | None, moved: str) -> History:
        return replace(self, yanks={**self.yanks, number: Yank(reason, moved)})

    def without(self, rows: list[Version], removed: str) -> History:
        """Tombstones for rows, in sealed segments too: those are never rewritten."""
        gone = {row.number for row in rows}
        return replace(self, versions=tuple(row for row in self.versions if row.number not in gone),
                       removed=(*self.removed, *(Removed(row.number, row.manifest, removed) for row in rows)))

    def sealable(self) -> tuple[Version, ...]:
        """The oldest rows, once there are two segments' worth; they go into a segment, see `sealed`."""
        return self.versions[:SEGMENT] if len(self.versions) >= 2 * SEGMENT else ()

    def sealed(self, digest: ObjectId) -> History:
        rows = self.sealable()
        return replace(self, versions=self.versions[len(rows):],
                       segments=(*self.segments, SegmentRef(rows[0].number, rows[-1].number, digest)))

    def serialise(self) -> bytes:
        return canonical({
            **self.others, "model": str(self.model), "next": self.next,
            "versions": [row.fields() for row in self.versions],
            "tags": {name: {"version": tag.version, "moved": tag.moved} for name, tag in self.tags.items()},
            "removed": [{"version": row.number, "manifest": row.manifest.hex(), "removed": row.removed}
                        for row in self.removed],
            "segments": [{"first": part.first, "last": part.last, "digest": part.digest.hex()}
                         for part in self.segments],
            **({"yanked": [{"version": number, "reason": yank.reason, "moved": yank.moved}
                           for number, yank in sorted(self.yanks.items())]} if self.yanks else {})})


def segment_bytes(model: ModelName, rows: tuple[Version, ...]) -> bytes:
    return canonical({"model": str(model), "versions": [row.fields() for row in rows]})


def parse_segment(data: bytes, model: ModelName, part: SegmentRef) -> tuple[Version, ...]:
    """Raises Malformed."""
    record = Record.parse(data, f"history segment of {model}")
    if record.text("model") != str(model):
        raise Malformed(record.what, why="it belongs to another model")
    rows = _rows(record)
    if rows and not part.first <= rows[0].number <= rows[-1].number <= part.last:
        raise Malformed(record.what, why="it has versions that are not its own")
    return rows


def parse(data: bytes, model: ModelName) -> History:
    """Raises Malformed."""
    record = Record.parse(data, f"history of {model}")
    if record.text("model") != str(model):
        raise Malformed(record.what, why="it belongs to another model")
    tags = {}
    for name, fields in record.mapping("tags").items():
        entry = Record(f"{record.what} tag", fields)
        try:
            tags[check_tag(name)] = Tag(entry.optional_integer("version", 1), entry.text("moved"))
        except BadInput as error:
            raise Malformed(record.what, why=str(error)) from error
    history = History(
        model, record.integer("next", 1), _rows(record), tags,
        tuple(Removed(row.integer("version", 1), row.object_id("manifest"), row.text("removed"))
              for row in record.records("removed")),
        tuple(SegmentRef(row.integer("first", 1), row.integer("last", 1), row.object_id("digest"))
              for row in record.records("segments")),
        {row.integer("version", 1): Yank(row.optional_text("reason"), row.text("moved"))
         for row in (record.records("yanked") if "yanked" in record.fields else ())},
        record.others("model", "next", "versions", "tags", "removed", "segments", "yanked"))
    spans = [(part.first, part.last) for part in history.segments]
    spans += [(history.versions[0].number, history.versions[-1].number)] if history.versions else []
    if any(last < first for first, last in spans) or any(b[0] <= a[1] for a, b in pairwise(spans)):
        raise Malformed(record.what, why="its segments are not in order")
    if any(number >= history.next for number in [last for _, last in spans] + [row.number for row in history.removed]):
        raise Malformed(record.what, why="a version's number is not below the next one's")
    return history


def _rows(record: Record) -> tuple[Version, ...]:
    rows = tuple(Version.of(row) for row in record.records("versions"))
    if any(b.number <= a.number for a, b in pairwise(rows)):
        raise Malformed(record.what, why="versions are not in order")
    return rows

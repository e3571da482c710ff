"""Histories: numbers are never given twice, old rows are sealed, and what is false is Malformed."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from repository.builder import WHEN, Builder, deadline

from modelfs.errors import Malformed
from modelfs.ids import Digest, ModelName, ObjectId
from modelfs.repository import history, keys
from modelfs.repository.history import SEGMENT, History, Version
from modelfs.repository.records import canonical

MODEL = ModelName("acme", "base")
digest = st.binary(min_size=32, max_size=32)
text = st.text(st.characters(codec="utf-8"), max_size=12)
tag = st.from_regex(r"[a-uw-z][a-z0-9]{0,8}", fullmatch=True)


def row(number: int) -> Version:
    return Version(number, ObjectId(number.to_bytes(32, "big")), Digest(bytes(32)), WHEN, None, None, {}, 1, 2, 3, 4)


@st.composite
def histories(draw: st.DrawFn) -> History:
    """What pushes, tags and removals make of an empty history."""
    rows = History(MODEL)
    for _ in range(draw(st.integers(0, 8))):
        rows = rows.with_version(Version(
            rows.next, ObjectId(draw(digest)), Digest(draw(digest)), WHEN, draw(st.none() | text),
            draw(st.none() | st.integers(1, 9)), draw(st.dictionaries(text, text, max_size=3)),
            *draw(st.tuples(*[st.integers(0, 2**63 - 1)] * 4))))
        if draw(st.booleans()):
            rows = rows.with_tag(draw(tag), draw(st.none() | st.integers(1, rows.next - 1)), WHEN)
        if rows.versions and draw(st.integers(0, 3)) == 0:
            rows = rows.without([draw(st.sampled_from(rows.versions))], WHEN)
    return rows


@given(histories())
def test_what_was_written_is_read(rows: History) -> None:
    assert history.parse(rows.serialise(), MODEL) == rows


@given(histories(), st.dictionaries(text.map(lambda key: "x" + key), text, max_size=3))
def test_fields_of_a_later_modelfs_are_kept(rows: History, others: dict[str, str]) -> None:
    fields = json.loads(rows.serialise())
    found = history.parse(canonical({**fields, **others}), MODEL)
    assert json.loads(found.with_tag("new", 1, WHEN).serialise()).items() >= others.items()


@given(histories())
def test_a_number_is_never_given_twice(rows: History) -> None:
    used = {each.number for each in rows.versions} | rows.removed_numbers
    gone = history.parse(rows.without(list(rows.versions), WHEN).serialise(), MODEL)
    assert gone.versions == ()
    assert gone.next not in used
    assert used == set(range(1, gone.next))


def test_the_oldest_rows_are_sealed_when_there_are_two_segments_of_them(tmp_path: Any) -> None:
    made = Builder(tmp_path / "repo")
    rows = History(MODEL)
    for number in range(1, 2 * SEGMENT):
        rows = rows.with_version(row(number))
    assert rows.sealable() == ()
    rows = rows.without([rows.versions[9]], WHEN)
    for number in range(2 * SEGMENT, 2 * SEGMENT + 2):
        rows = rows.with_version(row(number))
    sealed = rows.sealable()
    assert len(sealed) == SEGMENT
    body = history.segment_bytes(MODEL, sealed)
    made.put(keys.history(ObjectId.of(body)), body)
    rows = history.parse(rows.sealed(ObjectId.of(body)).serialise(), MODEL)
    assert [(part.first, part.last) for part in rows.segments] == [(1, SEGMENT + 1)]
    assert len(rows.versions) == SEGMENT
    found = made.repository.versions(rows, deadline())
    assert [each.number for each in found] == [number for number in range(2 * SEGMENT + 1, 0, -1) if number != 10]
    assert made.repository.version(rows, 3, deadline()) == row(3)
    less = rows.without([found[-1]], WHEN)
    assert [each.number for each in made.repository.versions(less, deadline())][-1] == 2


def test_a_segment_of_another_model_or_with_other_versions_is_malformed() -> None:
    body = history.segment_bytes(MODEL, (row(3), row(4)))
    part = history.SegmentRef(3, 4, ObjectId.of(body))
    assert history.parse_segment(body, MODEL, part) == (row(3), row(4))
    with pytest.raises(Malformed, match="another model"):
        history.parse_segment(body, ModelName("acme", "other"), part)
    for first, last in ((4, 4), (3, 3), (5, 9)):
        with pytest.raises(Malformed):
            history.parse_segment(body, MODEL, history.SegmentRef(first, last, part.digest))


def a_history() -> dict[str, Any]:
    rows = History(MODEL)
    for number in range(1, 6):
        rows = rows.with_version(row(number))
    fields: dict[str, Any] = json.loads(rows.without([row(2)], WHEN).with_tag("prod", 3, WHEN).serialise())
    fields["versions"] = fields["versions"][2:]
    fields["segments"] = [{"first": 1, "last": 2, "digest": "ab" * 32}, {"first": 3, "last": 3, "digest": "cd" * 32}]
    return fields


def at(*path: str | int, value: object) -> Callable[[dict[str, Any]], None]:
    def spoil(fields: dict[str, Any]) -> None:
        inner: Any = fields
        for step in path[:-1]:
            inner = inner[step]
        inner[path[-1]] = value
    return spoil


FALSE: dict[str, Callable[[dict[str, Any]], None]] = {
    "another model's": at("model", value="acme/other"),
    "no next number": at("next", value=None),
    "a next number that is used": at("next", value=5),
    "a next number that a removed version had": at("removed", 0, "version", value=6),
    "a next number beyond all": at("next", value=2**63),
    "a next number that is true": at("next", value=True),
    "versions that are no list": at("versions", value={}),
    "a version that is no object": at("versions", 0, value=7),
    "versions out of order": at("versions", 0, "version", value=5),
    "a version below its segments": at("versions", 0, "version", value=3),
    "version 0": at("versions", 0, "version", value=0),
    "a manifest that is no digest": at("versions", 0, "manifest", value="ab"),
    "a digest in capitals": at("versions", 0, "manifest", value="AB" * 32),
    "a size below zero": at("versions", 0, "decoded_bytes", value=-1),
    "a size that is a fraction": at("versions", 0, "decoded_bytes", value=1.5),
    "a message that is a list": at("versions", 0, "message", value=[]),
    "metadata that are numbers": at("versions", 0, "metadata", value={"a": 1}),
    "a tag like a version": at("tags", "v1", value={"version": 1, "moved": WHEN}),
    "a tag that leaves its directory": at("tags", "../x", value={"version": 1, "moved": WHEN}),
    "a tag that is a number": at("tags", "prod", value=3),
    "segments that overlap": at("segments", 1, "first", value=2),
    "a segment that ends before it begins": at("segments", 0, "last", value=0),
    "a segment that runs backwards": at("segments", 1, "last", value=2),
    "no tombstones": lambda fields: fields.pop("removed"),
}


@pytest.mark.parametrize("what", FALSE)
def test_a_false_history_is_malformed(what: str) -> None:
    fields = a_history()
    assert history.parse(canonical(fields), MODEL).live_tags == {"prod": 3}
    FALSE[what](fields)
    with pytest.raises(Malformed):
        history.parse(canonical(fields), MODEL)
